"""PPO-ptx: texts whose language modelling loss joins the policy's (Ouyang et al. 2022, arXiv 2203.02155, eq. 2)."""

from collections.abc import Callable, Iterator

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from recipes.core.errors import UserError
from recipes.rlhf.ppo_config import PPOConfig
from recipes.rlhf.ppo_data import right_pad


class PretrainingTexts:
    """Texts as token ids: those that are mixed into training, and held-out ones to measure on, either may be absent."""

    def __init__(
        self, datasets: Dataset | dict[str, Dataset] | None, tokenizer: PreTrainedTokenizerBase, args: PPOConfig
    ):
        splits = datasets if isinstance(datasets, dict) else {"train": datasets}
        self.pad_token_id, self.device = tokenizer.pad_token_id, args.device
        self.train, self.test = (
            tokenize_texts(splits[split]["text"], tokenizer, args.ptx_length) if splits.get(split) else []
            for split in ("train", "test")
        )
        if args.ptx_coef > 0 and not self.train:
            raise UserError("ptx_coef mixes pretraining data in: give ptx_dataset, texts in a column text")
        self.mixed = args.ptx_coef > 0

    def draw(self, shape: tuple[int, int], process: int, generator: torch.Generator) -> tuple[Tensor, int]:
        """Numbers of texts for one optimizer step: this process's of [processes, texts], and the tokens of all."""
        numbers = torch.randint(len(self.train), shape, generator=generator)
        return numbers[process], sum(len(self.train[number]) - 1 for number in numbers.flatten().tolist())

    def batch(self, texts: list[list[int]]) -> dict[str, Tensor]:
        """Texts as prompts of one token and responses of the rest, the form that `PolicyWithValue` takes."""
        prompts = {"prompt_ids": torch.tensor([text[:1] for text in texts])}
        prompts["prompt_mask"] = torch.ones_like(prompts["prompt_ids"])
        batch = prompts | right_pad([text[1:] for text in texts], self.pad_token_id)
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def held_out_loss(self, logprobs: Callable[[dict[str, Tensor]], Tensor], batch_size: int) -> float:
        """Loss of the held-out texts in nats a token; `logprobs` gives those of a batch [B, T], 0 at the padding."""
        total = -sum(logprobs(batch).double().sum().item() for batch in self._test_batches(batch_size))
        return total / sum(len(text) - 1 for text in self.test)

    def _test_batches(self, size: int) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(self.test), size):
            yield self.batch(self.test[start : start + size])


def tokenize_texts(texts: list[str], tokenizer: PreTrainedTokenizerBase, length: int) -> list[list[int]]:
    """Texts as token ids, cut after `length` tokens; those of a single token are left out.

    Raises:
        UserError: no text is left.
    """
    tokens = [ids[:length] for ids in tokenizer(list(texts), verbose=False)["input_ids"]]
    tokens = [ids for ids in tokens if len(ids) > 1]
    if not tokens:
        raise UserError("ptx_dataset holds no text of two tokens or more")
    return tokens
