"""A plain PyTorch loop of a causal recipe's model, to hold the recipe's time against: no Trainer, no checks, no files.

It reads the recipe's config, so that model, rows, batch, optimizer and schedule are the same; prints one line of JSON.

Run: python -m scripts.bench.causal_plain --config configs/pretraining/causal/shakespeare-char.yaml --steps 500
"""

import argparse
import json
import math
import time

import torch
from transformers import set_seed

from recipes.core import ModelConfig
from recipes.pretraining.causal import CausalConfig, main
from recipes.pretraining.corpus import CorpusConfig


def train(config: str, steps: int) -> dict[str, float]:
    """Seconds from the first batch to the last update, and the loss of the last batch."""
    asked = main.parse(["--config", config])
    model, data, training = (asked.get(group) for group in (ModelConfig, CorpusConfig, CausalConfig))
    set_seed(training.seed)
    tokenizer, language_model = model.load_causal_lm()
    language_model.config.use_cache = False
    ids = torch.from_numpy(data.tokens(tokenizer, tokenizer.eos_token_id)["train"].ids).long()
    rows = ids[: len(ids) // training.max_length * training.max_length].view(-1, training.max_length)

    decayed = [weight for weight in language_model.parameters() if weight.ndim > 1]
    rest = [weight for weight in language_model.parameters() if weight.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": training.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        fused=True,
    )
    least = (training.lr_scheduler_kwargs or {}).get("min_lr", 0.0) / training.learning_rate
    size, order, begin = training.per_device_train_batch_size, torch.empty(0), 0
    language_model.train()
    began = time.perf_counter()
    for step in range(steps):
        if begin + size > len(order):
            order, begin = torch.randperm(len(rows)), 0
        batch = rows[order[begin : begin + size]]
        begin += size
        if step < training.warmup_steps:
            share = step / training.warmup_steps
        else:
            turn = (step - training.warmup_steps) / max(1, steps - training.warmup_steps)
            share = least + (1 - least) * 0.5 * (1 + math.cos(math.pi * turn))
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * share
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=training.bf16):
            loss = language_model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(language_model.parameters(), training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return {"seconds": time.perf_counter() - began, "loss": loss.item()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="configs/pretraining/causal/shakespeare-char.yaml")
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    print(json.dumps(train(options.config, options.steps)))
