"""What a streamed corpus costs: time beside the tokenizer library's own, and memory at 1, 10 and 100 MB of text.

Each size is a JSONL file of distinct documents, made of the embedded text's paragraphs in random order. Time: reading,
tokenizing and packing it into the token file, against `encode_batch` of the same texts, which are in memory already,
turn by turn in one process. Memory: the peak of a process that runs the causal recipe on it for a few steps, streamed and,
for comparison, in memory.

Run: python -m scripts.bench.corpus --sizes 1 10 100
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from recipes.core.catalog import ROOT
from recipes.core.files import write_json
from recipes.core.results import commit, hardware, versions


def write_corpus(path: Path, size: int) -> None:
    """A JSONL file of `size` bytes of text in documents of about a kilobyte."""
    from recipes import embedded

    paragraphs = [
        part for text in embedded.load("text")["train"]["text"] for part in text.split("\n\n") if part.strip()
    ]
    numbers, written = random.Random(0), 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            text = "\n\n".join(numbers.choices(paragraphs, k=5))
            written += len(text.encode())
            file.write(json.dumps({"text": text}) + "\n")


def throughput(path: Path, tokenizer_path: str, rounds: int) -> dict[str, float]:
    """MB a second of the library's encode and of ours with reading and writing, medians; and their ratio."""
    from transformers import AutoTokenizer

    from recipes.pretraining import corpus

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    texts = [json.loads(line)["text"] for line in path.open(encoding="utf-8")]
    pieces = list(corpus._by_size(texts))
    size = sum(len(text.encode()) for text in texts) / 1e6
    library, ours = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        with corpus._all_cores():
            for piece in pieces:
                tokenizer.backend_tokenizer.encode_batch(piece, add_special_tokens=False)
        library.append(time.perf_counter() - began)
        began = time.perf_counter()
        encoded = corpus.encode(corpus.read(path, "text"), tokenizer, tokenizer.eos_token_id)
        corpus._write(path.with_suffix(".bin"), encoded, "uint16")
        ours.append(time.perf_counter() - began)
    ratios = [one / other for one, other in zip(library, ours)]
    return {
        "library_mb_per_second": size / statistics.median(library),
        "ours_mb_per_second": size / statistics.median(ours),
        "share_of_library": statistics.median(ratios),
    }


def peak_mib(path: Path, streaming: bool, steps: int) -> float:
    """Peak resident memory of the recipe's process."""
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "output_dir": f"{folder}/run",
            "dataset_name": str(path),
            "dataset_streaming": str(streaming).lower(),
            "test_split_size": "0.001",
            "max_steps": str(steps),
            "save_strategy": "no",
            "num_samples": "0",
        }
        command = [sys.executable, "-m", "recipes.pretraining.causal"]
        command += ["--config", "configs/pretraining/causal/quickstart.yaml"]
        command += [word for key, value in flags.items() for word in (f"--{key}", value)]
        environment = {"HF_DATASETS_CACHE": f"{folder}/cache"}
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env=os.environ | environment)
        return json.loads(Path(f"{folder}/run/result.json").read_text())["peak_memory_mib"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 10, 100], help="Megabytes of text.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tokenizer", default="runs/tokenization/train/quickstart")
    parser.add_argument("--output", type=Path, default=Path("results/bench/corpus.json"))
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            path = Path(folder) / f"{size}mb.jsonl"
            write_corpus(path, size * 10**6)
            row = {"megabytes": size}
            if size <= 10:
                row |= throughput(path, options.tokenizer, options.rounds)
            row["streamed_peak_mib"] = peak_mib(path, True, options.steps)
            row["in_memory_peak_mib"] = peak_mib(path, False, options.steps)
            rows.append(row)
            print(", ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
            path.unlink()
    write_json(options.output, {"rows": rows, "versions": versions(), "commit": commit(), "hardware": hardware()})


if __name__ == "__main__":
    main()
