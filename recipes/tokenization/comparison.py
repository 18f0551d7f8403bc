"""The comparison for people: one table, and one plot whose rows are the tokenizers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.core.files import write_atomically

Table = Mapping[str, Mapping[str, Any]]
LABELS = {
    "byte_bpe": "BPE on bytes",
    "char_bpe": "BPE on characters",
    "wordpiece": "WordPiece",
    "unigram": "Unigram",
    "sentencepiece_unigram": "SentencePiece, unigram",
    "sentencepiece_bpe": "SentencePiece, BPE",
}


def label(name: str, row: Mapping[str, Any]) -> str:
    """What a reader calls it; of a published one its size too, since these differ."""
    return LABELS[name] if row["training_seconds"] is not None else f"{name} ({row['vocab_size']:,})"


def to_markdown(table: Table) -> str:
    """A row for each tokenizer and corpus.

    Args:
        table: by tokenizer `vocab_size`, `training_seconds` (None for a published one), `megabytes_per_second` and
            `corpora`, which by corpus holds what `measure` returns.
    """
    lines = [
        "| tokenizer | vocabulary | trained in, s | encodes, MB/s | corpus | bytes a token | tokens a word | "
        "tokens a character | unknown | come back exactly | come back but for spaces and case |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in table.items():
        seconds = "published" if row["training_seconds"] is None else f"{row['training_seconds']:.1f}"
        for corpus, figures in row["corpora"].items():
            lines.append(
                f"| {label(name, row)} | {row['vocab_size']:,} | {seconds} | {row['megabytes_per_second']:.2f} | {corpus} | "
                f"{figures['bytes_per_token']:.3f} | {figures['tokens_per_word']:.2f} | "
                f"{figures['tokens_per_character']:.3f} | {figures['unknown_share']:.2%} | "
                f"{figures['round_trip_share']:.1%} | {figures['characters_kept_share']:.1%} |"
            )
    return "\n".join(lines) + "\n"


def draw(table: Table, path: Path) -> None:
    """Five plots beside each other that share their rows, the tokenizers: length, losses, unknown, speed, training time."""
    from matplotlib.figure import Figure

    rows = list(table.values())
    corpora = list(rows[0]["corpora"])
    height = 0.42 * len(rows) + 1.7
    figure = Figure(figsize=(15, height), layout="constrained")
    length, exact, unknown, speed, training = figure.subplots(1, 5, sharey=True, width_ratios=[1.5, 1, 1, 1, 1])
    for axes, key, scale in (
        (length, "bytes_per_token", 1),
        (exact, "round_trip_share", 100),
        (unknown, "unknown_share", 100),
    ):
        for index, corpus in enumerate(corpora):
            values = [scale * row["corpora"][corpus][key] for row in rows]
            axes.plot(values, range(len(rows)), "osD^v"[index % 5], color=f"C{index}", label=corpus, alpha=0.85)
    for axes, values, color in (
        (speed, [row["megabytes_per_second"] for row in rows], "tab:grey"),
        (training, [row["training_seconds"] or 0 for row in rows], "tab:grey"),
    ):
        axes.barh(range(len(rows)), values, 0.55, color=color)
        for place, value in enumerate(values):
            axes.text(value, place, f" {value:.1f}" if value else " published", va="center", fontsize=8)
        axes.margins(x=0.25)
    length.set_yticks(range(len(rows)), [label(name, row) for name, row in table.items()])
    length.invert_yaxis()
    length.set_xlim(0, 1.08 * length.get_xlim()[1])
    length.set(title="Bytes of text in a token", xlabel="longer texts fit →")
    exact.set(title="Texts that come back exactly", xlabel="%", xlim=(-5, 105))
    most = max(1, unknown.get_xlim()[1])  # a thousandth of a percent is nothing
    unknown.set(title="Tokens that are unknown", xlabel="%", xlim=(-0.05 * most, 1.05 * most))
    speed.set(title="Encoding, one core", xlabel="MB a second")
    training.set(title="Learning the vocabulary", xlabel="seconds")
    ours = sum(row["training_seconds"] is not None for row in rows)
    for axes in (length, exact, unknown, speed, training):
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        if 0 < ours < len(rows):
            axes.axhline(ours - 0.5, color="black", linewidth=0.8)
    figure.legend(*length.get_legend_handles_labels(), loc="outside lower center", ncols=len(corpora), fontsize=9)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110))
