"""The lesson as Markdown: each function shows what one algorithm did, with the figures it decided by."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from recipes.tokenization import bpe as pairs
from recipes.tokenization import unigram
from recipes.tokenization import wordpiece as pieces
from recipes.tokenization.unigram import NOTHING, Model, Pieces

SHOWN = 8  # rows of a table that could go on


def words(counts: Mapping[str, int]) -> list[str]:
    """How often each word stands in the text."""
    return ["# The text", "", ", ".join(f"`{word}` {count}" for word, count in counts.items()), ""]


def bpe(merges: Sequence[pairs.Merge], examples: Sequence[str]) -> list[str]:
    """Every merge with its frequency, and what the merges do to the examples."""
    lines = [
        "# Byte-pair encoding",
        "",
        "The most frequent pair of neighbours becomes one symbol, again and again.",
        "",
    ]
    lines += ["| step | pair | frequency | new symbol |", "| ---: | --- | ---: | --- |"]
    for step, merge in enumerate(merges, 1):
        left, right = merge.pair
        lines.append(f"| {step} | `{left}` `{right}` | {merge.frequency} | `{left}{right}` |")
    lines += ["", "A word is cut by the same merges in the same order:", ""]
    for word in examples:
        lines.append(f"- {word}: " + " → ".join(f"`{' '.join(symbols)}`" for symbols in pairs.segment(word, merges)))
    return [*lines, ""]


def wordpiece(counts: Mapping[str, int], steps: Sequence[Sequence[pieces.Join]], examples: Sequence[str]) -> list[str]:
    """Every step's best pair, all scores of the first step, and the longest match first for the examples."""
    lines = [
        "# WordPiece",
        "",
        "The pair with the highest score, freq(ab) / (freq(a) · freq(b)), becomes one piece: what rarely stands apart.",
        "",
        "| step | pair | freq(ab) | freq(a) | freq(b) | score | new piece | runner-up |",
        "| ---: | --- | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for number, (best, *others) in enumerate(steps, 1):
        second = f"`{' '.join(others[0].pair)}` {float(others[0].score):.4f}" if others else ""
        lines.append(
            f"| {number} | `{' '.join(best.pair)}` | {best.frequency} | {best.left} | {best.right} | "
            f"{float(best.score):.4f} | `{best.piece}` | {second} |"
        )
    if steps:
        lines += ["", "All pairs before the first step:", "", "| pair | frequency | score |", "| --- | ---: | ---: |"]
        lines += [
            f"| `{' '.join(each.pair)}` | {each.frequency} | {each.frequency}/({each.left}·{each.right}) = "
            f"{float(each.score):.4f} |"
            for each in steps[0]
        ]
    known = {*pieces.alphabet(counts), *(step[0].piece for step in steps)}
    lines += ["", "A word is cut by the longest known piece, then the longest that continues it:", ""]
    lines += [f"- {word}: `{' '.join(pieces.encode(word, known))}`" for word in examples]
    return [*lines, ""]


def unigram_learning(
    counts: Mapping[str, int], seed: Model, model: Model, pruned: Model, losses: Mapping[str, float], again: Model
) -> list[str]:
    """One round: the seed's probabilities, those after EM, what each piece is worth, and which stay."""
    likelihood = [unigram.log_likelihood(counts, each) for each in (seed, model, again)]
    expected = unigram.expected_counts(counts, seed)
    lines = [
        "# Unigram",
        "",
        "A segmentation is as probable as its pieces together. Begin with too many pieces; set their probabilities by EM;",
        "take away those that the text misses least; and again, until as many are left as are wanted.",
        "",
        f"Log likelihood of the text, nats: {likelihood[0]:.3f} with the seed's {len(seed)} pieces, "
        f"{likelihood[1]:.3f} after one EM step,",
        f"{likelihood[2]:.3f} with the {len(pruned)} pieces that one pruning left and one more EM step.",
        "",
        "| piece | p, seed | expected count | p, after EM | loss, nats | stays |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for piece in sorted(model, key=lambda each: (-losses.get(each, math.inf), each)):
        loss = f"{losses[piece]:.3f}" if piece in losses else "never removed"
        lines.append(
            f"| `{piece}` | {math.exp(seed[piece]):.4f} | {expected[piece]:.3f} | {math.exp(model[piece]):.4f} | "
            f"{loss} | {'yes' if piece in pruned else 'no'} |"
        )
    return [*lines, ""]


def unigram_lattice(word: str, model: Model) -> list[str]:
    """Every edge of a word's lattice, and the most probable paths through it."""
    best, _ = unigram.best_path(word, model)
    ends = [len("".join(best[: index + 1])) for index in range(len(best))]
    on_path = {(end - len(piece), end) for piece, end in zip(best, ends)}
    lines = [
        f"## The lattice of {word}",
        "",
        "An edge is a piece that stands there; the best path is marked.",
        "",
        "| from | to | piece | p | best path |",
        "| ---: | ---: | --- | ---: | --- |",
    ]
    for edge in unigram.lattice(word, model):
        if edge.log_probability != NOTHING:
            mark = "●" if (edge.begin, edge.end) in on_path else ""
            lines.append(
                f"| {edge.begin} | {edge.end} | `{edge.piece}` | {math.exp(edge.log_probability):.4f} | {mark} |"
            )
    total = unigram.marginal(word, model)
    lines += ["", "| segmentation | p | share |", "| --- | ---: | ---: |"]
    for segmentation, value in unigram.n_best(word, model, SHOWN):
        if value != NOTHING:
            lines.append(f"| `{' '.join(segmentation)}` | {math.exp(value):.3e} | {math.exp(value - total):.4f} |")
    return [*lines, "", f"All segmentations together: {math.exp(total):.3e}.", ""]


def unigram_sampling(word: str, exact: Mapping[Pieces, float], drawn: Counter[Pieces], alpha: float) -> list[str]:
    """How often each segmentation was drawn, beside how often it should be."""
    lines = [
        "## Subword regularisation",
        "",
        f"A model in training sees {word} cut anew each time, in proportion to P^{alpha:g}; of {drawn.total():,} drawn:",
        "",
        "| segmentation | drawn | expected |",
        "| --- | ---: | ---: |",
    ]
    for segmentation in sorted(exact, key=lambda each: -exact[each])[:SHOWN]:
        share = drawn[segmentation] / drawn.total()
        lines.append(f"| `{' '.join(segmentation)}` | {share:.4f} | {exact[segmentation]:.4f} |")
    return [*lines, ""]
