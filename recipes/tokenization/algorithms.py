"""One function for each algorithm: from texts to a `tokenizers.Tokenizer`, special tokens first in the vocabulary.

Each is the paper's pipeline: what is done to a text, where it is cut before anything is learned, what is learned, and
how tokens become a text again.
"""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from recipes.core import UserError
from recipes.tokenization.tokenizer_config import SENTENCEPIECE, TokenizerConfig

META = "▁"  # SentencePiece's sign for a space
END_OF_WORD = "</w>"
WORDS = f"{META}*[^{META}]+|{META}+"  # a word with the run of spaces before it
LETTERS_OR_NOT = rf"{META}*[\p{{L}}\p{{M}}]+|{META}*[^{META}\p{{L}}\p{{M}}]+|{META}+"

NORMALIZERS = {
    "none": lambda: normalizers.Sequence([]),
    "nfkc": normalizers.NFKC,
    "nmt_nfkc": lambda: normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()]),
    "bert": lambda: normalizers.BertNormalizer(lowercase=False, strip_accents=False),
    "bert_lowercase": lambda: normalizers.BertNormalizer(lowercase=True),
}


def learn(texts: Iterable[str], method: TokenizerConfig) -> Tokenizer:
    """A tokenizer of `method.vocab_size` tokens, or fewer where the texts do not hold as many.

    Raises:
        UserError: the vocabulary has no room for the characters of the texts.
    """
    if method.algorithm in SENTENCEPIECE:
        from recipes.tokenization.sentencepiece_model import learn_sentencepiece

        tokenizer = learn_sentencepiece(texts, method)
    else:
        learners = {"byte_bpe": byte_bpe, "char_bpe": char_bpe, "wordpiece": wordpiece, "unigram": unigram}
        tokenizer, trainer = learners[method.algorithm](method)
        tokenizer.train_from_iterator(texts, trainer)
    size = tokenizer.get_vocab_size()
    if size > method.vocab_size:
        hint = "; limit_alphabet leaves out rare ones" if method.algorithm in ("char_bpe", "wordpiece") else ""
        raise UserError(
            f"'vocab_size': {method.vocab_size} tokens do not hold the special tokens and the characters of the "
            f"texts, {size} in all{hint}"
        )
    if size <= len(method.special_tokens):
        raise UserError(f"the texts hold nothing that {method.algorithm} could learn from")
    if method.single_template:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=method.single_template,
            pair=method.pair_template,
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in method.special_tokens],
        )
    return tokenizer


def wrap(tokenizer: Tokenizer, method: TokenizerConfig) -> PreTrainedTokenizerFast:
    """What transformers takes: special tokens by role, sentinels, chat template and lengths."""
    types = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **method.roles,
        extra_special_tokens=method.further_tokens,
        model_max_length=method.model_max_length,
        clean_up_tokenization_spaces=False,
        **(types if ":1" in (method.pair_template or "") else {}),
    )


def _bpe_trainer(method: TokenizerConfig, kind: type = trainers.BpeTrainer, **options: object) -> trainers.Trainer:
    if method.limit_alphabet is not None:
        options["limit_alphabet"] = method.limit_alphabet
    return kind(
        vocab_size=method.vocab_size,
        min_frequency=method.min_frequency,
        special_tokens=method.special_tokens,
        show_progress=False,
        **options,
    )


def _digits(method: TokenizerConfig) -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.Digits(individual_digits=True)] if method.split_digits else []


def byte_bpe(method: TokenizerConfig) -> tuple[Tokenizer, trainers.Trainer]:
    """BPE on the 256 bytes (Radford et al. 2019, section 2.2): nothing is unknown, every text comes back exactly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = NORMALIZERS[method.normalization]()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*_digits(method), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, _bpe_trainer(method, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def char_bpe(method: TokenizerConfig) -> tuple[Tokenizer, trainers.Trainer]:
    """BPE on characters, inside words that end in </w> (Sennrich et al. 2016, algorithm 1).

    Words stand between white space; which white space it was is lost.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=method.unk_token, end_of_word_suffix=END_OF_WORD))
    tokenizer.normalizer = NORMALIZERS[method.normalization]()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.BPEDecoder(suffix=END_OF_WORD)
    return tokenizer, _bpe_trainer(method, end_of_word_suffix=END_OF_WORD)


def wordpiece(method: TokenizerConfig) -> tuple[Tokenizer, trainers.Trainer]:
    """BERT's WordPiece (Devlin et al. 2019): the longest known piece first, ## before what continues a word.

    The library learns the pieces by frequency, as BPE does; the score of Schuster & Nakajima is in wordpiece.py.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token=method.unk_token))
    tokenizer.normalizer = NORMALIZERS[method.normalization]()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer, _bpe_trainer(method, trainers.WordPieceTrainer)


def unigram(method: TokenizerConfig) -> tuple[Tokenizer, trainers.Trainer]:
    """The unigram language model (Kudo 2018, section 3.2) on texts whose spaces are ▁.

    As in SentencePiece no piece holds letters and other signs together.
    """
    tokenizer = Tokenizer(models.Unigram())
    with_meta_symbol(tokenizer, method, LETTERS_OR_NOT)
    return tokenizer, trainers.UnigramTrainer(
        vocab_size=method.vocab_size,
        special_tokens=method.special_tokens,
        unk_token=method.unk_token,
        show_progress=False,
    )


def with_meta_symbol(tokenizer: Tokenizer, method: TokenizerConfig, pieces: str = WORDS) -> None:
    """Give a tokenizer SentencePiece's reversible handling of spaces (Kudo & Richardson 2018, section 3.2).

    A space is the symbol ▁; a ▁ of the text's own comes back as a space.

    Args:
        pieces: expression for what a text is cut into; no learned piece may cross a cut.
    """
    prefix = [normalizers.Prepend(META)] if method.add_dummy_prefix else []
    tokenizer.normalizer = normalizers.Sequence(
        [NORMALIZERS[method.normalization](), *prefix, normalizers.Replace(" ", META)]
    )
    cuts = [pre_tokenizers.Split(Regex(pieces), "isolated"), *_digits(method)]
    if method.byte_fallback and isinstance(tokenizer.model, models.Unigram):
        # The text `<0x41>` is not the byte 0x41: cut after its first sign, so that the piece of that name is not found.
        cuts.append(pre_tokenizers.Split(Regex("<(?=0x[0-9A-F]{2}>)"), "isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    strip = [decoders.Strip(" ", 1, 0)] if method.add_dummy_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(META, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
