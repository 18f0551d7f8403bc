"""What PPO does to its prompts: tokens, order, and the padding of prompts and responses."""

from collections.abc import Callable, Iterator

import torch
from datasets import Dataset, DatasetDict
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from recipes.core.errors import UserError
from recipes.rlhf.ppo_config import PPOConfig


def as_conversations(prompts: DatasetDict, system_prompt: str | None) -> DatasetDict:
    """Plain prompts as conversations of a system and a user message; conversations, and all without one, as they are."""
    if system_prompt is None or not isinstance(prompts["train"][0]["prompt"], str):
        return prompts
    system = {"role": "system", "content": system_prompt}
    return prompts.map(lambda row: {"prompt": [system, {"role": "user", "content": row["prompt"]}]})


def prompt_token_ids(prompt: str | list[dict], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of a prompt, ready for the response: one BOS where the tokenizer writes one, no EOS."""
    if isinstance(prompt, list):
        goes_on = prompt[-1]["role"] == "assistant"
        return tokenizer.apply_chat_template(
            prompt, add_generation_prompt=not goes_on, continue_final_message=goes_on, return_dict=True
        )["input_ids"]
    has_bos = tokenizer.bos_token is not None and prompt.startswith(tokenizer.bos_token)
    ids = tokenizer(prompt, add_special_tokens=not has_bos)["input_ids"]
    ends_by_itself = ids[-1:] == [tokenizer.eos_token_id] and not prompt.endswith(tokenizer.eos_token)
    return ids[:-1] if ends_by_itself else ids


def response_texts(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: list[list[int]], response_ids: list[list[int]], chat: bool
) -> list[str]:
    """The responses without special tokens: of a conversation trimmed, of plain text so that prompt + response reads right.

    Some tokenizers (SentencePiece's) drop the blank in front of the first word that they decode, so plain text is decoded
    together with its prompt.
    """
    if chat:
        return [text.strip() for text in tokenizer.batch_decode(response_ids, skip_special_tokens=True)]
    whole = [prompt + response for prompt, response in zip(prompt_ids, response_ids, strict=True)]
    prompts = tokenizer.batch_decode(prompt_ids, skip_special_tokens=True)
    texts = tokenizer.batch_decode(whole, skip_special_tokens=True)
    return [text[len(prompt) :] for prompt, text in zip(prompts, texts, strict=True)]


def tokenize_prompts(
    dataset: Dataset, name: str, tokenizer: PreTrainedTokenizerBase, args: PPOConfig, context: float
) -> Dataset:
    """Adds the column `prompt_ids`; ValueError unless every prompt leaves room for a response in `context` tokens."""
    if not isinstance(dataset, Dataset):
        raise UserError(f"{name} must be a datasets.Dataset, not {type(dataset).__name__}")
    if "prompt" not in dataset.column_names:
        raise UserError(f"{name} has no column prompt, only {', '.join(dataset.column_names)}: rename one to prompt")
    if len(dataset) == 0:
        raise UserError(f"{name} is empty: give it at least one prompt")
    if isinstance(dataset[0]["prompt"], list) and tokenizer.chat_template is None:
        raise UserError(f"{name} holds conversations and the tokenizer has no chat template: set one")
    if args.prompt_length is not None and isinstance(dataset[0]["prompt"], list):
        raise UserError(f"prompt_length cuts plain text, and {name} holds conversations: leave it out")

    def tokenized(row: dict) -> dict:
        ids = prompt_token_ids(row["prompt"], tokenizer)
        if args.prompt_length is None or len(ids) <= args.prompt_length:
            return {"prompt_ids": ids}
        ids = ids[: args.prompt_length]
        return {"prompt_ids": ids, "prompt": tokenizer.decode(ids, skip_special_tokens=True)}

    with args.main_process_first(desc="tokenizing prompts"):
        dataset = dataset.map(
            tokenized,
            num_proc=args.dataset_num_proc,
            desc=f"Tokenizing {name}",
        )
    check_lengths([len(ids) for ids in dataset["prompt_ids"]], name, args.response_length, context)
    return dataset


def check_lengths(lengths: list[int], name: str, response_length: int, context: float) -> None:
    """UserError unless every prompt has a token and leaves room for a response in `context` tokens."""
    room = context - response_length
    too_long = sum(length > room for length in lengths)
    if too_long:
        raise UserError(
            f"{too_long} of {len(lengths)} prompts of {name} are longer than the {room} tokens that a context of "
            f"{context} leaves beside a response of {response_length} (the longest has {max(lengths)}): "
            "drop them or shorten the response"
        )
    if min(lengths) == 0:
        raise UserError(f"{name} holds a prompt without a single token, in row {lengths.index(0)}: drop it")


def check_rollout_size(args: PPOConfig, prompts: int) -> int:
    """Prompts in one rollout of all processes; ValueError with the nearest settings that fit if there are too few."""
    names = ("num_mini_batches", "gradient_accumulation_steps", "per_device_train_batch_size")
    values = [getattr(args, name) for name in names]
    rollout_size = size = args.world_size * values[0] * values[1] * values[2]
    if rollout_size <= prompts:
        return rollout_size
    advice = f"give at least {rollout_size} prompts"
    for name, value in zip(names, values, strict=True):
        size //= value
        if size <= prompts:
            advice = f"lower {name} to {prompts // size} or {advice}"
            break
    product = " x ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
    raise UserError(
        f"train_dataset has {prompts} prompts and one rollout takes {rollout_size} "
        f"({product} x {args.world_size} processes): {advice}"
    )


class RolloutSampler(Sampler):
    """The dataset in an order per epoch, rollout by rollout, each rollout's prompts once for every micro-batch."""

    def __init__(self, size: int, rollout_size: int, repeats: int, order: Callable[[], Tensor]):
        self.rollouts, self.rollout_size, self.repeats = size // rollout_size, rollout_size, repeats
        self.order = order

    def __iter__(self) -> Iterator[int]:
        order = self.order().tolist()
        for start in range(0, self.rollouts * self.rollout_size, self.rollout_size):
            for _ in range(self.repeats):
                yield from order[start : start + self.rollout_size]

    def __len__(self) -> int:
        return self.rollouts * self.rollout_size * self.repeats


def left_pad(prompts: list[list[int]], pad_token_id: int) -> dict[str, Tensor]:
    """`prompt_ids` and `prompt_mask`, int64 [B, P], of token lists of different lengths."""
    longest = max(len(ids) for ids in prompts)
    rows = [(longest - len(ids), ids) for ids in prompts]
    return {
        "prompt_ids": torch.tensor([[pad_token_id] * missing + ids for missing, ids in rows]),
        "prompt_mask": torch.tensor([[0] * missing + [1] * len(ids) for missing, ids in rows]),
    }


def right_pad(responses: list[list[int]], pad_token_id: int) -> dict[str, Tensor]:
    """`response_ids` and `response_mask`, int64 [B, R], of token lists of different lengths."""
    longest = max(len(ids) for ids in responses)
    rows = [(longest - len(ids), ids) for ids in responses]
    return {
        "response_ids": torch.tensor([ids + [pad_token_id] * missing for missing, ids in rows]),
        "response_mask": torch.tensor([[1] * len(ids) + [0] * missing for missing, ids in rows]),
    }


def select(batch: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """The given rows of left-padded prompts and right-padded responses, less the columns that are padding in all rows.

    Tensors named `prompt_*` follow `prompt_mask` [B, P], all others `response_mask` [B, R].
    """
    batch = {name: tensor[rows] for name, tensor in batch.items()}
    columns = {side: batch[f"{side}_mask"].any(dim=0) for side in ("prompt", "response") if f"{side}_mask" in batch}
    side = {name: "prompt" if name.startswith("prompt_") else "response" for name in batch}
    return {name: tensor[:, columns[side[name]]] for name, tensor in batch.items()}
