"""Samples that a pretrained model leaves beside its figures: a page of held-out prompts and what it made of them."""

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, Trainer

from recipes.core import Run
from recipes.pretraining.corpus import TokenFile


def prompts_from(ids: np.ndarray | TokenFile, eos_token_id: int, count: int, length: int) -> list[list[int]]:
    """The first `length` token ids of the first `count` documents that are at least twice as long.

    Where there are fewer documents, as of one long text, those of as many places at equal distances.
    """
    head = ids[: 2**18]
    ends = np.flatnonzero(head == eos_token_id)
    begins = np.concatenate([[0], ends + 1])
    sizes = np.diff(np.append(begins, len(head)))
    chosen = begins[sizes >= 2 * length][:count]
    if len(chosen) < count:
        chosen = np.linspace(0, max(0, len(head) - 2 * length), count, dtype=int)
    return [head[begin : begin + length].tolist() for begin in chosen]


def continuations(
    trainer: Trainer, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], max_new_tokens: int
) -> list[tuple[str, str]]:
    """Each prompt's text and a sampled continuation of it (nucleus 0.95), until EOS or `max_new_tokens`.

    The draws depend on the run's seed alone.
    """
    model = trainer.model.eval()
    texts = []
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(trainer.args.seed)
        for prompt in prompts:
            ids = torch.tensor([prompt], device=model.device)
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_p=0.95,
                top_k=0,
                max_new_tokens=max_new_tokens,
                use_cache=True,
            )
            texts.append(
                (tokenizer.decode(prompt), tokenizer.decode(made[0, len(prompt) :], skip_special_tokens=True))
            )
    return texts


def is_whole(trainer: Trainer) -> bool:
    """Whether this process has all weights, and so can sample by itself."""
    plugin = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    return not trainer.is_fsdp_enabled and (plugin is None or plugin.zero_stage < 3)


def write_samples(run: Run, sections: dict[str, list[tuple[str, ...]]]) -> None:
    """`samples.md`: under each heading what the model was given, what it made of it and, where known, what was right."""
    lines = [f"# {run.name}", ""]
    for heading, rows in sections.items():
        lines += [f"## {heading}", ""]
        for row in rows:
            for name, text in zip(("Given:", "Made:", "Right:"), row):
                lines += [name, "", *_quoted(text), ""]
            lines += ["---", ""]
    run.write("samples.md", "\n".join(lines))


def _quoted(text: str) -> list[str]:
    return [f"    {line}".rstrip() for line in text.strip("\n").split("\n")]
