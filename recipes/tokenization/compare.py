"""Compare: every algorithm with the same vocabulary size on the same texts, beside published tokenizers.

Paper: Sennrich et al. 2016, arXiv 1508.07909; Devlin et al. 2019, arXiv 1810.04805; Kudo 2018, arXiv 1804.10959; Kudo &
       Richardson 2018, arXiv 1808.06226, section 5, for what is measured.
Run:   python -m recipes.tokenization.compare --config configs/tokenization/compare/quickstart.yaml
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter

from recipes.core import DataConfig, Run, TaskConfig, UserError, recipe
from recipes.core.errors import did_you_mean
from recipes.tokenization.algorithms import learn, wrap
from recipes.tokenization.comparison import draw, to_markdown
from recipes.tokenization.measure import encode_rate, measure
from recipes.tokenization.published import open_published
from recipes.tokenization.tokenizer_config import ALGORITHMS, TokenizerConfig

LOSSLESS = ("byte_bpe", "sentencepiece_unigram", "sentencepiece_bpe")


@dataclass
class CompareConfig(TaskConfig):
    """Which tokenizers are made, of what size, and which are held beside them."""

    algorithms: list[str] = field(
        default_factory=lambda: list(ALGORITHMS), metadata={"help": "Those that learn a vocabulary of the texts."}
    )
    vocab_size: int = field(default=32_000, metadata={"help": "Tokens of each of them in all."})
    limit_alphabet: int | None = field(
        default=None, metadata={"help": "char_bpe, wordpiece: only the most frequent characters are known."}
    )
    published: list[str] = field(
        default_factory=list, metadata={"help": "Hub names, folders of transformers, or folders as first published."}
    )
    repeats: int = field(default=3, metadata={"help": "Timed encodings of the held-out texts; the fastest counts."})

    def __post_init__(self):
        if not self.algorithms:
            raise UserError(f"'algorithms' is empty; name some of {', '.join(ALGORITHMS)}")
        for algorithm in self.algorithms:
            if algorithm not in ALGORITHMS:
                raise UserError(f"'algorithms': no '{algorithm}'{did_you_mean(algorithm, ALGORITHMS)}")
            self.settings_of(algorithm)
        names = [*self.algorithms, *(Path(source).name for source in self.published)]
        for name in names:
            if names.count(name) > 1:
                raise UserError(
                    f"'published': two tokenizers are called '{name}', which is what they are told apart by"
                )
        if self.repeats < 1:
            raise UserError(f"'repeats' must be at least 1, not {self.repeats}")

    def settings_of(self, algorithm: str) -> TokenizerConfig:
        """Each algorithm as it is used: WordPiece after BERT's normalisation, all others on the text as it is."""
        return TokenizerConfig(
            algorithm=algorithm,
            vocab_size=self.vocab_size,
            normalization="bert" if algorithm == "wordpiece" else "none",
            limit_alphabet=self.limit_alphabet if algorithm in ("char_bpe", "wordpiece") else None,
            pad_token="<pad>",
            eos_token="</s>",
            unk_token="<unk>",
        )


@recipe
def main(run: Run, data: DataConfig, method: CompareConfig) -> None:
    corpora = {corpus_name(name): replace(data, dataset_name=name).load(("text",)) for name in data.names}
    if len(corpora) < len(data.names):
        raise UserError("'dataset_name': two corpora end in the same name, which is what they are called by")
    if any("test" not in corpus for corpus in corpora.values()):
        raise UserError("'dataset_test_split' is null; there is nothing to compare on")
    held_out = {name: corpus["test"]["text"][:] for name, corpus in corpora.items()}
    together = [text for texts in held_out.values() for text in texts]

    opened = {Path(source).name: open_published(source) for source in method.published}
    texts = [text for corpus in corpora.values() for text in corpus["train"]["text"]]
    tokenizers, seconds = {}, {}
    for algorithm in method.algorithms:
        settings = method.settings_of(algorithm)
        began = perf_counter()
        tokenizers[algorithm] = wrap(learn(texts, settings), settings)
        seconds[algorithm] = perf_counter() - began
    table = {
        name: {
            "vocab_size": len(tokenizer),
            "training_seconds": seconds.get(name),
            "megabytes_per_second": encode_rate(tokenizer, together, method.repeats),
            "corpora": {corpus: measure(tokenizer, held) for corpus, held in held_out.items()},
        }
        for name, tokenizer in (tokenizers | opened).items()
    }

    report = to_markdown(table)
    print(report)
    run.write("table.md", report)
    draw(table, run.output_dir / "plot.png")
    whole = {name: measure(tokenizer, together) for name, tokenizer in tokenizers.items()}
    lossless = [whole[name]["round_trip_share"] for name in LOSSLESS if name in whole]
    run.record(
        **{f"bytes_per_token_{name}": figures["bytes_per_token"] for name, figures in whole.items()},
        lossless_round_trip_share=min(lossless, default=None),
        tokenizers=table,
        baselines={"lossless_round_trip_share": 1.0},
    )


def corpus_name(source: str) -> str:
    """`chinese` for `runs/data/languages/chinese` or `chinese.jsonl`."""
    return Path(source).name.partition(".")[0]


if __name__ == "__main__":
    main()
