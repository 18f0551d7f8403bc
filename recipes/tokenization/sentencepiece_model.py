"""SentencePiece's own trainer, and its model as a `tokenizers.Tokenizer` that gives the same pieces.

With `normalization: nmt_nfkc` a few characters are normalised otherwise than by the library, which keeps ～ (U+FF5E) and the
zero-width joiner of emoji and Indic scripts.
"""

import io
from collections.abc import Iterable

import sentencepiece
from tokenizers import Tokenizer, models

from recipes.core import UserError
from recipes.tokenization.algorithms import with_meta_symbol
from recipes.tokenization.tokenizer_config import TokenizerConfig


def learn_sentencepiece(texts: Iterable[str], method: TokenizerConfig) -> Tokenizer:
    """A SentencePiece model learned from raw texts (Kudo & Richardson 2018, arXiv 1808.06226), converted.

    Raises:
        UserError: the vocabulary is too small for the characters, or larger than the texts can fill.
    """
    return convert(train(texts, method), method)


def train(texts: Iterable[str], method: TokenizerConfig) -> sentencepiece.SentencePieceProcessor:
    """The library's model. Unlike its defaults, no space is dropped and no text is too long to be read.

    Ids 0, 1, … are the special tokens in the order of `method.special_tokens`.
    """
    special = method.special_tokens
    # The library knows four roles; a token of another one, or of none, is a control symbol to it.
    roles = {role: getattr(method, f"{role}_token") for role in ("pad", "eos", "bos", "unk")}
    ids = {f"{role}_id": -1 if token is None else special.index(token) for role, token in roles.items()}
    pieces = {f"{role}_piece": token for role, token in roles.items() if token is not None}
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type=method.algorithm.removeprefix("sentencepiece_"),
            vocab_size=method.vocab_size,
            hard_vocab_limit=False,
            character_coverage=method.character_coverage,
            byte_fallback=method.byte_fallback,
            normalization_rule_name="identity" if method.normalization == "none" else method.normalization,
            add_dummy_prefix=method.add_dummy_prefix,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=method.split_digits,
            max_sentence_length=2**30,
            control_symbols=[token for token in special if token not in pieces.values()],
            minloglevel=2,
            **ids,
            **pieces,
        )
    except (RuntimeError, OSError) as error:
        raise UserError(f"'vocab_size': sentencepiece refuses: {str(error).splitlines()[-1]}") from None
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def convert(model: sentencepiece.SentencePieceProcessor, method: TokenizerConfig) -> Tokenizer:
    """A `tokenizers.Tokenizer` with the model's pieces, ids and, for unigram, scores.

    transformers' own converter needs protobuf and keeps neither the prefix nor the digits.
    """
    ids = range(model.get_piece_size())
    vocabulary = [(model.id_to_piece(index), model.get_score(index)) for index in ids]
    if method.algorithm == "sentencepiece_unigram":
        tokenizer = Tokenizer(models.Unigram(vocabulary, model.unk_id(), method.byte_fallback))
    else:
        from transformers.convert_slow_tokenizer import generate_merges

        # Any two neighbours merge whose union is a piece, in the order of the pieces' scores.
        learned = [index for index in ids if not (model.is_control(index) or model.is_byte(index))]
        scores = {vocabulary[index] for index in learned if not model.is_unknown(index)}
        order = {piece: index for index, (piece, _) in enumerate(vocabulary)}
        known = {piece: order[piece] for piece, _ in scores}
        merges = generate_merges(known, sorted(scores, key=lambda each: order[each[0]]))
        tokenizer = Tokenizer(
            models.BPE(order, merges, unk_token=method.unk_token, fuse_unk=True, byte_fallback=method.byte_fallback)
        )
    with_meta_symbol(tokenizer, method)
    return tokenizer
