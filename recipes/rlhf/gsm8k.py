"""A reward that can be checked: the answers of GSM8K (Cobbe et al. 2021, arXiv 2110.14168) end in one number."""

import re
from decimal import Decimal
from typing import Any

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def last_number_is_right(completions: list, answer: list[str], **columns: Any) -> list[float]:
    """1 for each completion whose last number is the one after `####` in the answer, else 0.

    Args:
        completions: texts or conversations.
        answer: GSM8K's column of worked answers.
    """
    texts = [completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions]
    return [
        float(_last_number(text) == _last_number(worked.rpartition("####")[2]))
        for text, worked in zip(texts, answer, strict=True)
    ]


def _last_number(text: str) -> Decimal | None:
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None
