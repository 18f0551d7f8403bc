"""Convert an adapter that was published before PEFT had a format into a folder that PEFT opens.

    microsoft-lora   LoRA of github.com/microsoft/LoRA, such as roberta_base_lora_mnli.bin
    t-few-ia3        (IA)³ of github.com/r-three/t-few, such as t03b_ia3_finish.pt
    t5-prompt        soft prompt of github.com/google-research/prompt-tuning, such as sst2.npy

The file is read as tensors alone; nothing in it is executed. The base model is named, not opened.

Run: python -m scripts.convert_adapter microsoft-lora roberta_base_lora_mnli.bin --base FacebookAI/roberta-base
     --output_dir runs/adapters/roberta-mnli
"""

import argparse
from pathlib import Path

from recipes.core.errors import UserError, report_user_errors
from recipes.core.files import check_writable

FORMATS = ("microsoft-lora", "t-few-ia3", "t5-prompt")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("format", choices=FORMATS)
    parser.add_argument("file", type=Path)
    parser.add_argument("--base", required=True, help="Hub name or folder of the model it was trained on")
    parser.add_argument("--output_dir", type=Path, required=True, help="a new folder")
    parser.add_argument("--lora_alpha", type=float, default=16, help="microsoft-lora: α of α/r (default: 16)")
    options = parser.parse_args(argv)
    with report_user_errors():
        convert(options)


def convert(options: argparse.Namespace) -> None:
    """Read, convert and write.

    Raises:
        UserError: the file is not of that format, or the folder is there already.
    """
    from safetensors.torch import save_file

    from recipes.adapters.published import FORMATS as CONVERTERS
    from recipes.adapters.published import read_tensors

    if options.output_dir.exists():
        raise UserError(f"output_dir: {options.output_dir} is there already; name a new folder")
    check_writable(options.output_dir)
    more = {"lora_alpha": options.lora_alpha} if options.format == "microsoft-lora" else {}
    try:
        tensors, config = CONVERTERS[options.format](read_tensors(options.file), options.base, **more)
    except UserError as error:
        raise UserError(f"{options.file}: {str(error).removeprefix(f'{options.file}: ')}") from None
    config.save_pretrained(str(options.output_dir))
    save_file(tensors, options.output_dir / "adapter_model.safetensors", metadata={"format": "pt"})
    numbers = sum(tensor.numel() for tensor in tensors.values())
    print(
        f"{options.output_dir}: {config.peft_type.value} for {options.base}, {len(tensors)} tensors, {numbers:,} numbers"
    )


if __name__ == "__main__":
    main()
