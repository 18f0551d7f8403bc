"""One function for each algorithm: from texts to a `tokenizers.Tokenizer`, special tokens first in the vocabulary.

Each is the paper's pipeline: what is done to a text, where it is cut before anything is learned, what is learned, and
how tokens become a text again.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from recipes.core import UserError
from recipes.tokenization.tokenizer_config import TokenizerConfig

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

    Args:
        texts: what can be gone through more than once, such as a list.

    Raises:
        UserError: the vocabulary has no room for the characters of the texts.
    """
    from recipes.tokenization.sentencepiece_model import learn_sentencepiece

    learners = {"byte_bpe": byte_bpe, "char_bpe": char_bpe, "wordpiece": wordpiece, "unigram": unigram}
    tokenizer = learners.get(method.algorithm, learn_sentencepiece)(texts, method)
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
    """What transformers takes: special tokens by role, sentinels, and the length of a context."""
    types = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **method.roles,
        extra_special_tokens=method.further_tokens,
        model_max_length=method.model_max_length,
        clean_up_tokenization_spaces=False,
        **(types if ":1" in (method.pair_template or "") else {}),
    )


# ------------------------------------------------------------------------------------------------------------------- BPE
def byte_bpe(texts: Iterable[str], method: TokenizerConfig) -> Tokenizer:
    """BPE on the 256 bytes (Radford et al. 2019, section 2.2): nothing is unknown, every text comes back exactly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = NORMALIZERS[method.normalization]()
    digits = [pre_tokenizers.Digits(individual_digits=True)] if method.split_digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=method.vocab_size,
        min_frequency=method.min_frequency,
        special_tokens=method.special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def char_bpe(texts: Iterable[str], method: TokenizerConfig) -> Tokenizer:
    """BPE on characters, inside words that end in </w> (Sennrich et al. 2016, algorithm 1).

    Words stand between white space; which white space it was is lost.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=method.unk_token, end_of_word_suffix=END_OF_WORD))
    tokenizer.normalizer = NORMALIZERS[method.normalization]()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.BPEDecoder(suffix=END_OF_WORD)
    learn_with_marks(tokenizer, texts, method, trainers.BpeTrainer, end_of_word_suffix=END_OF_WORD)
    return tokenizer


def wordpiece(texts: Iterable[str], method: TokenizerConfig) -> Tokenizer:
    """BERT's WordPiece (Devlin et al. 2019): the longest known piece first, ## before what continues a word.

    The library learns the pieces by frequency, as BPE does; the score of Schuster & Nakajima is in wordpiece.py.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token=method.unk_token))
    tokenizer.normalizer = NORMALIZERS[method.normalization]()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    learn_with_marks(tokenizer, texts, method, trainers.WordPieceTrainer)
    return tokenizer


def learn_with_marks(
    tokenizer: Tokenizer, texts: Iterable[str], method: TokenizerConfig, trainer: type, **options: object
) -> None:
    """Train BPE whose characters have a second form, with ## or </w>, so that it is the same every time.

    Of equally frequent pairs the library merges the one with the lowest ids, and gives the second forms their ids in the
    order of a random hash. Here a first training, without a merge, finds them; sorted, they come before all others.
    """
    if method.limit_alphabet is not None:
        counts = Counter(sign for text in texts for sign in tokenizer.normalizer.normalize_str(text))
        signs = sorted((sign for sign in counts if not sign.isspace()), key=lambda sign: (-counts[sign], sign))
        options["initial_alphabet"] = signs[: method.limit_alphabet]
        options["limit_alphabet"] = len(options["initial_alphabet"])

    def trained(size: int, first: list[str]) -> Tokenizer:
        copy = Tokenizer.from_str(tokenizer.to_str())
        copy.train_from_iterator(
            texts,
            trainer(
                vocab_size=size,
                min_frequency=method.min_frequency,
                special_tokens=first,
                show_progress=False,
                **options,
            ),
        )
        return copy

    special = method.special_tokens
    letters = trained(len(special), special).get_vocab()
    marked = sorted(token for token in letters if len(token) > 1 and token not in special)
    tokenizer.model = trained(method.vocab_size, [*special, *marked]).model


# --------------------------------------------------------------------------------------------------------------- Unigram
CAME_BACK = 1e-4  # the library's difference in score between two characters that came back


def unigram(texts: Iterable[str], method: TokenizerConfig) -> Tokenizer:
    """The unigram language model (Kudo 2018, section 3.2) on texts whose spaces are ▁.

    As in SentencePiece no piece holds letters and other signs together. The library sums in the order of a random hash,
    by which the scores differ in their last digits from one training to the next; here these digits are cut off, and
    pieces of equal score stand in the order of their letters. Characters that pruning took away come back in that random
    order too, each a little less likely than the one before; here the order is that of the characters.
    """
    tokenizer = Tokenizer(models.Unigram())
    with_meta_symbol(tokenizer, method, LETTERS_OR_NOT, method.split_digits)
    trainer = trainers.UnigramTrainer(
        vocab_size=method.vocab_size,
        special_tokens=method.special_tokens,
        unk_token=method.unk_token,
        show_progress=False,
    )
    try:
        tokenizer.train_from_iterator(texts, trainer)
    except Exception as error:  # the library has no kind of its own
        if "not large enough" not in str(error):
            raise
        raise UserError(
            f"'vocab_size': {method.vocab_size} tokens do not hold the special tokens and the characters of the texts"
        ) from None
    special = len(method.special_tokens)
    vocabulary = [(piece, round(score, 4)) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
    scores = dict(vocabulary[special:])
    letters = sorted((piece for piece in scores if len(piece) == 1), key=scores.get)
    steps = (scores[above] - scores[below] > 1.5 * CAME_BACK for below, above in itertools.pairwise(letters))
    back = letters[: next((count for count, step in enumerate(steps, 1) if step), len(letters))]
    scores |= zip(sorted(back, reverse=True), [scores[piece] for piece in back])
    learned = sorted(scores.items(), key=lambda each: (-each[1], each[0]))
    unknown = method.special_tokens.index(method.unk_token)
    tokenizer.model = models.Unigram([*vocabulary[:special], *learned], unknown, False)
    return tokenizer


def with_meta_symbol(
    tokenizer: Tokenizer, method: TokenizerConfig, pieces: str = WORDS, split_digits: bool = False
) -> None:
    """Give a tokenizer SentencePiece's reversible handling of spaces (Kudo & Richardson 2018, section 3.2).

    A space is the symbol ▁; a ▁ of the text's own comes back as a space.

    Args:
        pieces: expression for what a text is cut into; no learned piece may cross a cut.
        split_digits: cut around each digit too.
    """
    prefix = [normalizers.Prepend(META)] if method.add_dummy_prefix else []
    tokenizer.normalizer = normalizers.Sequence(
        [NORMALIZERS[method.normalization](), *prefix, normalizers.Replace(" ", META)]
    )
    cuts = [pre_tokenizers.Split(Regex(pieces), "isolated")]
    if split_digits:
        cuts.append(pre_tokenizers.Digits(individual_digits=True))
    if method.byte_fallback and isinstance(tokenizer.model, models.Unigram):
        # The text `<0x41>` is not the byte 0x41: cut after its first sign, so that the piece of that name is not found.
        cuts.append(pre_tokenizers.Split(Regex("<(?=0x[0-9A-F]{2}>)"), "isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    strip = [decoders.Strip(" ", 1, 0)] if method.add_dummy_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(META, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
