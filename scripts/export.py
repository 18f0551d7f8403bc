"""Merge an adapter into its base model and save one that opens with plain `from_pretrained`, if both say the same.

The base is opened in full precision, as the adapter names it or as --base does: QLoRA's adapter is merged into the
weights that its base was quantised from. The logits of three models are compared on random tokens: base with adapter,
merged, and what was saved, opened again. Differences are given as a share of the largest logit.

Run: python -m scripts.export runs/finetuning/sft/quickstart-lora --output_dir runs/export/sft
"""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.core.errors import UserError, report_user_errors
from recipes.core.files import check_writable

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOLERANCES = {"float32": 1e-5, "bfloat16": 5e-2, "float16": 5e-3}  # shares of the largest logit
CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("adapter", help="folder or Hub name of the adapter, such as runs/<config>")
    parser.add_argument("--output_dir", type=Path, required=True, help="a new folder")
    parser.add_argument("--base", help="the full-precision base model (default: the one that the adapter names)")
    parser.add_argument(
        "--dtype", choices=TOLERANCES, default="float32", help="of the saved weights (default: float32)"
    )
    parser.add_argument("--tolerance", type=float, help="default: 1e-5 in float32, 5e-2 bfloat16, 5e-3 float16")
    options = parser.parse_args(argv)
    with report_user_errors():
        export(options)


def export(options: argparse.Namespace) -> None:
    """Merge, compare, save, open again and compare; the folder appears only if all of it went well.

    Raises:
        UserError: the adapter cannot be merged, does not belong to the base, or the logits differ.
    """
    import torch

    from recipes.adapters import open_adapter
    from recipes.adapters.attaching import read_config
    from recipes.core.recipe import quiet_libraries

    quiet_libraries()
    if options.output_dir.exists():
        raise UserError(f"output_dir: {options.output_dir} is there already; name a new folder")
    check_writable(options.output_dir)
    config = read_config(options.adapter)
    check_mergeable(config, options.adapter)
    source = options.base or config.base_model_name_or_path
    if not source:
        raise UserError(f"{options.adapter}: the adapter does not name its base model; set --base")
    auto = model_class(config, options.adapter)
    base, tokenizer = (
        open_base(auto, source, options.adapter, config.task_type),
        open_tokenizer(options.adapter, source),
    )
    if base.config.pad_token_id is None and tokenizer is not None:
        base.config.pad_token_id = tokenizer.pad_token_id  # by which a decoder with a head finds the end of each row
    adapted = open_adapter(base, options.adapter, any_base=bool(options.base)).eval()
    before = logits_of(adapted)
    try:
        merged = adapted.merge_and_unload(safe_merge=True)
    except (NotImplementedError, ValueError) as error:
        raise UserError(f"{options.adapter}: cannot be merged: {error}") from None
    tolerance = TOLERANCES["float32"] if options.tolerance is None else options.tolerance
    compare("merged model", before, logits_of(merged), tolerance)

    merged.to(getattr(torch, options.dtype))
    unfinished = options.output_dir.with_name(f".{options.output_dir.name}-{os.getpid()}")
    try:
        merged.save_pretrained(unfinished)
        if tokenizer is not None:
            tokenizer.save_pretrained(unfinished)
        opened = auto.from_pretrained(unfinished, dtype=options.dtype).eval()
        tolerance = TOLERANCES[options.dtype] if options.tolerance is None else options.tolerance
        compare(f"saved model ({options.dtype})", before, logits_of(opened), tolerance)
        os.replace(unfinished, options.output_dir)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"{options.output_dir}: {type(merged).__name__}, {merged.num_parameters():,} parameters")


def check_mergeable(config: "PeftConfig", adapter: str) -> None:
    """Raise a UserError with the reason if adapters of this method are not part of any weight."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    method = config.peft_type.value.lower()
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    reason = getattr(tuner, "why_not_merged", None)
    if config.is_prompt_learning:
        reason = "its prompt is part of the input, not of a weight"
    if config.is_adaption_prompt:
        reason = "it attends to a prompt of its own beside the attention of the base"
    if reason:
        raise UserError(
            f"{adapter}: a {method} adapter cannot be merged: {reason}; open it with PeftModel.from_pretrained"
        )


def model_class(config: "PeftConfig", adapter: str) -> Any:
    """The class that opens the base with the adapter's head: by the task type, else the class that it was trained in."""
    import transformers

    if config.task_type in CLASSES:
        return getattr(transformers, CLASSES[config.task_type])
    name = (config.auto_mapping or {}).get("base_model_class")
    if not hasattr(transformers, name or ""):
        raise UserError(f"{adapter}: says neither its task type nor the class of its base model")
    return getattr(transformers, name)


def open_base(auto: Any, source: str, adapter: str, task_type: str | None) -> "PreTrainedModel":
    """The base in float32, with a head of as many labels as the adapter's.

    Raises:
        UserError: it is stored quantised, or cannot be opened.
    """
    from transformers import AutoConfig

    from recipes.core.weights import load_pretrained

    try:
        stored = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(f"no base model could be opened at {source}: {error}") from None
    if getattr(stored, "quantization_config", None) is not None:
        raise UserError(
            f"{source}: is stored quantised; merging would round the adapter away: name the model it was quantised "
            "from with --base"
        )
    return load_pretrained(auto, source, dtype="float32", **labels_of(adapter, task_type))


def labels_of(adapter: str, task_type: str | None) -> dict[str, Any]:
    """The labels of the adapter's own head: from the config.json beside it, else their number from its tensors."""
    from peft.utils import load_peft_weights

    beside = Path(adapter) / "config.json"
    if beside.exists():
        settings = json.loads(beside.read_text(encoding="utf-8"))
        if "id2label" in settings:
            return {
                "id2label": {int(key): label for key, label in settings["id2label"].items()},
                "label2id": settings["label2id"],
                "num_labels": len(settings["id2label"]),
            }
    if task_type not in ("SEQ_CLS", "TOKEN_CLS"):
        return {}
    heads = ("classifier.weight", "classifier.out_proj.weight", "score.weight", "classification_head.out_proj.weight")
    sizes = [tensor.shape[0] for key, tensor in load_peft_weights(adapter, "cpu").items() if key.endswith(heads)]
    return {"num_labels": sizes[0]} if sizes else {}


def logits_of(model: "PreTrainedModel", rows: int = 4, length: int = 24) -> "torch.Tensor":
    """What the model says of random tokens, in float32: its logits, or for a model without a head its last states."""
    import torch

    generator = torch.Generator().manual_seed(0)
    size = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(min(10, size - 1), size, (rows, length), generator=generator).to(model.device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(model.config, "is_encoder_decoder", False) and not hasattr(model, "classification_head"):
        batch["decoder_input_ids"] = ids[:, : length // 2]
    if getattr(model.config, "is_encoder_decoder", False) and hasattr(model, "classification_head"):
        ids[:, -1] = model.config.eos_token_id  # the head reads the end of the text
    model.eval()
    with torch.no_grad():
        output = model(**batch)
    for name in ("logits", "start_logits", "last_hidden_state"):
        if getattr(output, name, None) is not None:
            return getattr(output, name).float()
    raise UserError(f"{type(model).__name__}: puts out no logits that could be compared")


def compare(what: str, before: "torch.Tensor", after: "torch.Tensor", tolerance: float) -> None:
    """Print the largest difference of two models' logits.

    Raises:
        UserError: it is above the tolerance, as a share of the largest logit.
    """
    largest = (after - before).abs().max().item()
    share = largest / before.abs().max().item()
    line = f"{what}: largest difference of a logit {largest:.3g}, {share:.2g} of the largest logit (tolerance {tolerance:g})"
    if not share <= tolerance:  # a difference that is no number is not within it
        raise UserError(line)
    print(line)


def open_tokenizer(adapter: str, source: str) -> "PreTrainedTokenizerBase | None":
    """The tokenizer that lies beside the adapter, else the base's, if there is one."""
    from transformers import AutoTokenizer

    for place in (adapter, source):
        try:
            return AutoTokenizer.from_pretrained(place)
        except (OSError, ValueError, KeyError):
            continue
    print(f"note: no tokenizer at {adapter} or {source}; the folder will have none")
    return None


if __name__ == "__main__":
    main()
