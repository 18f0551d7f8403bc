"""Say how alike soft prompts are: both of SPoT's similarities for every pair, the most alike first.

A prompt is a folder that PEFT saved, or a file as github.com/google-research/prompt-tuning publishes them.

Run: python -m scripts.prompt_similarity sst2.npy rte.npy runs/finetuning/classification/prompt-tuning-random
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.core.errors import UserError, report_user_errors

if TYPE_CHECKING:
    import torch


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("prompts", nargs="+", type=Path, help="two or more")
    options = parser.parse_args(argv)
    with report_user_errors():
        print(table(options.prompts))


def table(paths: list[Path]) -> str:
    """The similarities in Markdown.

    Raises:
        UserError: fewer than two prompts, one that cannot be read, or prompts of models of different width.
    """
    from recipes.adapters.prompt_similarity import similarity_table

    if len(set(paths)) < 2:
        raise UserError("one prompt alone is like nothing; name two or more")
    prompts = {str(path): read_prompt(path) for path in paths}
    widths = {prompt.shape[1] for prompt in prompts.values()}
    if len(widths) > 1:
        raise UserError(f"the prompts are for models of different width ({', '.join(map(str, sorted(widths)))})")
    lines = [
        "| prompt | prompt | cosine of average tokens | per-token average cosine |",
        "| --- | --- | ---: | ---: |",
    ]
    for row in similarity_table(prompts):
        pair = (Path(row["first"]).stem, Path(row["second"]).stem)
        figures = (row["cosine_of_average_tokens"], row["per_token_average_cosine"])
        lines.append(f"| {' | '.join(pair)} | {' | '.join(f'{figure:.4f}' for figure in figures)} |")
    return "\n".join(lines)


def read_prompt(path: Path) -> "torch.Tensor":
    """The prompt of a file or folder, (tokens, features).

    Raises:
        UserError: it holds no single matrix.
    """
    from safetensors.torch import load_file

    from recipes.adapters.published import read_tensors

    saved = path / "adapter_model.safetensors"
    if path.is_dir() and not saved.is_file():
        raise UserError(f"{path}: holds no adapter_model.safetensors")
    tensors = load_file(saved) if path.is_dir() else read_tensors(path)
    matrices = [tensor for name, tensor in tensors.items() if not path.is_dir() or name == "prompt_embeddings"]
    if len(matrices) != 1 or matrices[0].ndim != 2:
        raise UserError(f"{path}: holds no soft prompt, which is one matrix of tokens and features")
    return matrices[0]


if __name__ == "__main__":
    main()
