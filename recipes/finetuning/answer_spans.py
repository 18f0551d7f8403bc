"""Answers as spans of a text: windows over it, the loss of start and end, and the best span of all windows.

Paper: Devlin et al. 2018, BERT, arXiv 1810.04805, section 4.2; windows as in its code for SQuAD.
"""

import re
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase, Trainer

from recipes.core.errors import UserError
from recipes.core.losses import refuse_smoothing
from recipes.core.metrics.squad.squad import normalize

FORM = ("question", "context", "answers")
ABSENT = 0  # the position that says: the answer is not in this window


def check_answers(questions: DatasetDict) -> None:
    """Raise a UserError that names the first row whose answer does not stand where it is said to."""
    for split, dataset in questions.items():
        for row, (context, answers) in enumerate(zip(dataset["context"], dataset["answers"]), 1):
            if not isinstance(answers, dict) or not {"text", "answer_start"} <= answers.keys():
                raise UserError(
                    f"{split} row {row}, column 'answers': must have 'text' and 'answer_start', as SQuAD's"
                )
            if not answers["text"] or len(answers["text"]) != len(answers["answer_start"]):
                raise UserError(f"{split} row {row}, column 'answers': needs at least one text, and a start for each")
            for text, start in zip(answers["text"], answers["answer_start"]):
                if not text or context[start : start + len(text)] != text:
                    raise UserError(f"{split} row {row}: the context does not have '{text}' at character {start}")


def encode(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, doc_stride: int) -> Dataset:
    """Windows of question and context of at most `max_length` tokens, neighbours sharing `doc_stride`.

    Rows hold what the tokenizer gives, `start_positions` and `end_positions` (of the first answer; ABSENT where the window
    does not hold all of it), `question_number`, and `offsets`: of each token of the context its two ends in characters,
    of any other (-1, -1).

    Raises:
        UserError: a question leaves no room for its context; the tokenizer has no offsets.
    """
    if not tokenizer.is_fast:
        raise UserError(f"{tokenizer.name_or_path}: its tokenizer has no offsets of tokens; use a fast one")
    longest = max(len(ids) for ids in tokenizer(list(dataset["question"]), add_special_tokens=False)["input_ids"])
    room = max_length - longest - tokenizer.num_special_tokens_to_add(pair=True)
    if room <= doc_stride:
        raise UserError(
            f"max_length {max_length} leaves {room} tokens of context beside a question of {longest}; it must be above "
            f"doc_stride ({doc_stride})"
        )

    def windows(batch: dict[str, list], numbers: list[int]) -> dict[str, list]:
        encoded = tokenizer(
            batch["question"],
            batch["context"],
            truncation="only_second",
            max_length=max_length,
            stride=doc_stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        found: dict[str, list] = {"start_positions": [], "end_positions": [], "offsets": [], "question_number": []}
        for window, sample in enumerate(encoded.pop("overflow_to_sample_mapping")):
            in_context = [part == 1 for part in encoded.sequence_ids(window)]
            offsets = [
                ends if inside else (-1, -1)
                for ends, inside in zip(encoded["offset_mapping"][window], in_context, strict=True)
            ]
            answers = batch["answers"][sample]
            first = answers["answer_start"][0]
            start, end = token_span(offsets, first, first + len(answers["text"][0]))
            found["start_positions"].append(start)
            found["end_positions"].append(end)
            found["offsets"].append(offsets)
            found["question_number"].append(numbers[sample])
        encoded.pop("offset_mapping")
        return {**encoded, **found}

    return dataset.map(
        windows, batched=True, with_indices=True, remove_columns=dataset.column_names, desc="Tokenizing"
    )


def token_span(offsets: list[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """The first and last token that hold characters start … end - 1; ABSENT twice unless all of them are there.

    Args:
        offsets: the two ends of each token in characters, (-1, -1) for one that is not of the text.
    """
    inside = [position for position, (left, right) in enumerate(offsets) if left < end and right > start and left >= 0]
    if not inside or offsets[inside[0]][0] > start or offsets[inside[-1]][1] < end:
        return ABSENT, ABSENT
    return inside[0], inside[-1]


class SpanTrainer(Trainer):
    """A Trainer whose loss is the mean of the cross-entropies of start and end, over the positions of the text alone.

    PEFT's prompts lengthen the logits by virtual tokens but leave the positions as they are: left to the model, the answer
    would be learned that many tokens too early. And a model's own loss has the padding among the positions, by which a row's
    loss would depend on the rows beside it.
    """

    loss_is_scaled_for_ga = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        refuse_smoothing(self.args)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        positions = [inputs[key] for key in ("start_positions", "end_positions")]
        given = {key: value for key, value in inputs.items() if key not in ("start_positions", "end_positions")}
        outputs = model(**given)
        length = inputs["input_ids"].shape[1]
        scores = [outputs[key][:, -length:].float() for key in ("start_logits", "end_logits")]
        padding = inputs["attention_mask"] == 0
        scores = [each.masked_fill(padding, torch.finfo(each.dtype).min) for each in scores]
        loss = sum(cross_entropy(each, position) for each, position in zip(scores, positions, strict=True)) / 2
        return (loss, dict(zip(("start_logits", "end_logits"), scores))) if return_outputs else loss


def best_answers(
    questions: Dataset, windows: Dataset, starts: np.ndarray, ends: np.ndarray, n_best: int, max_answer_length: int
) -> list[str]:
    """Of each question the span of the context with the highest sum of its start's and its end's score.

    Args:
        starts, ends: [windows, length], in the order of `windows`; what lies beyond a window's length is padding.
    """
    best: dict[int, tuple[float, str]] = {}
    for window, start_scores, end_scores in zip(windows, starts, ends, strict=True):
        number, offsets = window["question_number"], window["offsets"]
        context, length = questions[number]["context"], len(offsets)
        real = np.array([left >= 0 for left, _ in offsets])
        first, last = (np.where(real, scores[:length], -np.inf) for scores in (start_scores, end_scores))
        for start in np.argsort(-first)[:n_best]:
            for end in np.argsort(-last)[:n_best]:
                score = first[start] + last[end]
                if start <= end < start + max_answer_length and score > best.get(number, (-np.inf,))[0]:
                    best[number] = (score, context[offsets[start][0] : offsets[end][1]])
    return [best.get(number, (0.0, ""))[1] for number in range(len(questions))]


def nearest_sentences(questions: Dataset) -> list[str]:
    """What a reader without a model answers: the sentence of the context that shares most words with the question.

    Source: the sliding-window baseline of Rajpurkar et al. 2016, section 5.1, over sentences.
    """
    return [
        max(re.split(r"(?<=[.!?;])\s+", context), key=_shared_with(question))
        for question, context in zip(questions["question"], questions["context"])
    ]


def _shared_with(question: str) -> Any:
    words = set(normalize(question))
    return lambda sentence: (len(words & set(normalize(sentence))), -len(sentence))
