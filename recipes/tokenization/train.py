"""Tokenizer: a vocabulary learned from text by BPE, WordPiece, Unigram or SentencePiece, ready for AutoTokenizer.

Paper: Sennrich et al. 2016, Neural Machine Translation of Rare Words with Subword Units, arXiv 1508.07909 (BPE);
       Schuster & Nakajima 2012 and Devlin et al. 2019, arXiv 1810.04805 (WordPiece); Kudo 2018, arXiv 1804.10959
       (Unigram); Kudo & Richardson 2018, arXiv 1808.06226 (SentencePiece); Radford et al. 2019 (BPE on bytes).
Run:   python -m recipes.tokenization.train --config configs/tokenization/train/quickstart.yaml
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from recipes.core import DataConfig, Run, recipe
from recipes.tokenization.algorithms import learn, wrap
from recipes.tokenization.measure import measure
from recipes.tokenization.tokenizer_config import TokenizerConfig


@recipe
def main(run: Run, data: DataConfig, method: TokenizerConfig) -> None:
    texts = data.load(("text",), ("prompt", "completion"), mixed=True)

    tokenizer = wrap(learn(Documents(texts["train"]), method), method)
    if method.chat_template_path:
        tokenizer.chat_template = Path(method.chat_template_path).read_text(encoding="utf-8").strip()

    run.start()
    tokenizer.save_pretrained(run.output_dir)

    measured = measure(tokenizer, list(Documents(texts["test"]))) if "test" in texts else {}
    run.record(
        vocab_size=len(tokenizer),
        **measured,
        baselines={"bytes_per_token": 1.0, "round_trip_share": 1.0} if measured else {},
    )


@dataclass
class Documents:
    """The text of every row: its `text`, or each message of its dialogue."""

    rows: Dataset

    def __iter__(self) -> Iterator[str]:
        for row in self.rows:
            if row.get("text"):
                yield row["text"]
            else:
                for part in (row["prompt"], row["completion"]):
                    yield from [part] if isinstance(part, str) else [message["content"] for message in part]


if __name__ == "__main__":
    main()
