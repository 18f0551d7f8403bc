"""Cloze questions: a template that puts a text beside a gap, and the words that fill the gap for each label.

Paper: Liu et al. 2021, GPT Understands, Too, arXiv 2103.10385 (P-tuning), sections 2 and 3; the words for labels are
       Schick & Schütze's 2020 verbaliser, arXiv 2001.07676.

A template is one line of text with
    {name}     the text of a column,
    [P]        a pseudo token, whose embedding P-tuning learns; [P]*3 are three; each [P] is another one,
    [MASK]     the gap, once.
`[P]*3 {text} [P]*3 It was [MASK] .` asks a masked language model. A decoder reads from left to right, so that its gap
is the end: `[P]*3 {text} [P]*3 It was [MASK]`.

How a script uses it:
    cloze = ClozeTemplate("[P]*3 {text} It was [MASK] .")
    words = Verbalizer({"neg": "bad", "pos": "good"}, tokenizer, cloze)
    row = cloze.encode(tokenizer, {"text": "a fine film"}, vocabulary=model.get_input_embeddings().weight.shape[0],
                       max_length=128)      # input_ids, attention_mask, answer_position: lists and a number
    logits = model(input_ids, attention_mask).logits                    # (batch, length, vocabulary)
    scores = words.scores(logits, answer_position)                      # (batch, labels), for a cross-entropy loss
Pseudo tokens get the ids from `vocabulary` on, which only a model with the method `p_tuning_template` has embeddings
for; a template without [P] is an ordinary prompt and goes with every method.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import torch

from recipes.core.errors import UserError, did_you_mean

MARK = re.compile(r"(?P<space>\s*)(?:\[P\](?:\*(?P<count>\d+))?|(?P<gap>\[MASK\])|\{(?P<name>\w+)\})")


@dataclass(frozen=True)
class Piece:
    """A part of a template. The blank before it belongs to it, as byte-level vocabularies have it.

    Attributes:
        kind: text, column, pseudo or gap.
        value: the words of a text, the name of a column.
    """

    kind: str
    value: str = ""
    space: str = ""


@dataclass(frozen=True)
class ClozeTemplate:
    """A parsed template.

    Raises:
        UserError: there is not exactly one [MASK], or no column.
    """

    text: str
    pieces: tuple[Piece, ...] = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "pieces", tuple(parse(self.text)))
        gaps = sum(piece.kind == "gap" for piece in self.pieces)
        if gaps != 1:
            raise UserError(f"template: must have one [MASK], not {gaps}: {self.text}")
        if not self.columns:
            raise UserError(f"template: must name the column of the text, as in {{text}}: {self.text}")

    @property
    def columns(self) -> list[str]:
        return [piece.value for piece in self.pieces if piece.kind == "column"]

    @property
    def num_pseudo_tokens(self) -> int:
        return sum(piece.kind == "pseudo" for piece in self.pieces)

    @property
    def gap(self) -> Piece:
        return next(piece for piece in self.pieces if piece.kind == "gap")

    def check(self, tokenizer: Any, columns: list[str]) -> None:
        """Raise a UserError if the template asks for a column that is not there, or for what the tokenizer cannot do.

        A tokenizer without a mask token is taken for a decoder's, whose gap must stand at the end.
        """
        for name in self.columns:
            if name not in columns:
                raise UserError(f"template: the data has no column '{name}'{did_you_mean(name, columns)}")
        if tokenizer.mask_token_id is None and self.pieces[-1].kind != "gap":
            raise UserError(
                "template: the tokenizer has no mask token, so the model reads from left to right: [MASK] must be last"
            )

    def encode(self, tokenizer: Any, row: dict[str, str], vocabulary: int, max_length: int) -> dict[str, Any]:
        """One row as token ids; of texts that are too long, the longest loses its end until they fit.

        Args:
            vocabulary: rows of the model's input embeddings; the pseudo tokens' ids begin there.
            max_length: tokens, with special ones.

        Returns:
            `input_ids` and `attention_mask` of one length, and `answer_position`: where the logits answer. In a masked
            language model that is the gap itself, in a decoder the last token before it.

        Raises:
            UserError: the template alone is longer than `max_length`.
        """
        masked = tokenizer.mask_token_id is not None
        start, end = special_tokens(tokenizer)
        parts: list[list[int]] = []
        pseudo, answer, texts = vocabulary, 0, []
        for piece in self.pieces:
            if piece.kind == "pseudo":
                parts.append([pseudo])
                pseudo += 1
            elif piece.kind == "gap":
                answer = len(parts)
                parts.append([tokenizer.mask_token_id] if masked else [])
            else:
                words = row[piece.value].strip() if piece.kind == "column" else piece.value
                parts.append(tokenizer(piece.space + words, add_special_tokens=False)["input_ids"])
                texts += [parts[-1]] if piece.kind == "column" else []
        end = end if masked else []  # a decoder's end of text would come before the answer
        for _ in range(len(start) + sum(map(len, parts)) + len(end) - max_length):
            longest = max(texts, key=len)
            if not longest:
                raise UserError(f"template: is longer than max_length ({max_length} tokens) without any text")
            longest.pop()
        before = len(start) + sum(map(len, parts[:answer]))
        ids = start + [token for part in parts for token in part] + end
        return {
            "input_ids": ids,
            "attention_mask": [1] * len(ids),
            "answer_position": before if masked else before - 1,
        }


def parse(template: str) -> list[Piece]:
    """The parts of a template in their order."""
    pieces, position = [], 0
    for mark in MARK.finditer(template):
        pieces += text_piece(template[position : mark.start()])
        position = mark.end()
        if mark["gap"]:
            pieces.append(Piece("gap", space=" " if mark["space"] else ""))
        elif mark["name"]:
            pieces.append(Piece("column", mark["name"], " " if mark["space"] else ""))
        else:
            pieces += [Piece("pseudo")] * int(mark["count"] or 1)
    return pieces + text_piece(template[position:])


def text_piece(text: str) -> list[Piece]:
    return [Piece("text", text.strip(), " " if text[0].isspace() else "")] if text.strip() else []


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    at = next(start for start in range(len(whole)) if whole[start : start + len(plain)] == plain)
    return whole[:at], whole[at + len(plain) :]


class Verbalizer:
    """The word that says each label, as one token.

    Args:
        words: label → word, or a list of words that mean the same; the order of the labels is that of the scores.
        template: where the word is to stand; with a blank before the gap the word has one too.

    Raises:
        UserError: a word is not one token, or two labels have the same one.
    """

    def __init__(self, words: dict[str, str | list[str]], tokenizer: Any, template: ClozeTemplate):
        self.labels = list(words)
        self.tokens = {
            label: [
                one_token(word, tokenizer, template.gap.space) for word in ([each] if isinstance(each, str) else each)
            ]
            for label, each in words.items()
        }
        said: dict[int, str] = {}
        for label, tokens in self.tokens.items():
            for token in tokens:
                if said.setdefault(token, label) != label:
                    raise UserError(
                        f"verbalizer: '{said[token]}' and '{label}' have the word {tokenizer.decode([token])!r}"
                    )

    def scores(self, logits: torch.Tensor, answer_position: torch.Tensor) -> torch.Tensor:
        """The mean logit of each label's words at the gap: (batch, labels).

        Args:
            logits: (batch, length, vocabulary).
            answer_position: (batch,), as `encode` gives it.
        """
        at_gap = logits[torch.arange(len(logits), device=logits.device), answer_position.to(logits.device)]
        return torch.stack([at_gap[:, tokens].mean(dim=-1) for tokens in self.tokens.values()], dim=-1)


def one_token(word: str, tokenizer: Any, space: str) -> int:
    """The token that a word is at the gap.

    Raises:
        UserError: it is more than one; the message shows into what it falls.
    """
    for text in dict.fromkeys((space + word, word)):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            return ids[0]
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(space + word, add_special_tokens=False)["input_ids"])
    raise UserError(f"verbalizer: '{word}' must be one token of the vocabulary, not {len(pieces)}: {' '.join(pieces)}")
