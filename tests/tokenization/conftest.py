"""What the tests of this family share: a small corpus, a method for each algorithm, and lines that are hard to give back."""

import random

import pytest

SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
SENTENCES = (
    "the quick brown fox jumps over the lazy dog and says hello to everyone in 1984",
    "a newer tokenizer learns the widest pieces of the lowest words, faster than the old one did",
    "def fox(dog):\n    if dog is None:\n        return [1, 2, 3]\n\treturn dog.jumps(over='lazy')\n",
    "人工智能是研究如何让机器像人一样思考的学科。机器学习是人工智能的一个分支。",
    "吾輩は猫である。名前はまだ無い。どこで生れたか頓と見当がつかぬ。",
)


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    """A few hundred texts made by cutting and joining the sentences, with a seed."""
    rng = random.Random(0)
    texts = []
    for _ in range(300):
        first, second = rng.sample(SENTENCES, 2)
        texts.append(first[rng.randrange(len(first) // 2) :] + " " + second[: rng.randrange(1, len(second))])
    return texts


@pytest.fixture(scope="session")
def method():
    """`method("wordpiece", vocab_size=300)`: the settings of a tokenizer with <pad>, </s> and <unk>."""
    from recipes.tokenization.tokenizer_config import TokenizerConfig

    def settings(algorithm: str, **more):
        return TokenizerConfig(**{"algorithm": algorithm, "vocab_size": 600, **SPECIAL, **more})

    return settings


@pytest.fixture(scope="session")
def tokenizer_of(corpus, method, tmp_path_factory):
    """`tokenizer_of("unigram", …)`: learned from the corpus, saved, and opened by AutoTokenizer."""
    from transformers import AutoTokenizer

    from recipes.tokenization.algorithms import learn, wrap

    made = {}

    def make(algorithm: str, **more):
        key = repr((algorithm, sorted(more.items())))
        if key not in made:
            folder = tmp_path_factory.mktemp("tokenizer")
            settings = method(algorithm, **more)
            wrap(learn(corpus, settings), settings).save_pretrained(folder)
            made[key] = AutoTokenizer.from_pretrained(folder)
        return made[key]

    return make


RANGES = {  # first and last code point
    "ASCII": (0x20, 0x7E),
    "Latin and combining marks": (0xA0, 0x36F),
    "Hebrew and Arabic": (0x590, 0x6FF),
    "Indic": (0x900, 0xD7F),
    "Thai": (0xE00, 0xE5B),
    "punctuation, invisible signs, directions": (0x2000, 0x206F),
    "compatibility forms": (0x2460, 0x2473),
    "kana": (0x3041, 0x30FE),
    "Han": (0x4E00, 0x9FFF),
    "Hangul": (0xAC00, 0xD7A3),
    "presentation forms": (0xFB00, 0xFDFF),
    "emoji": (0x1F300, 0x1FAFF),
    "planes above": (0x10000, 0x10FFFF),
}
WHOLE = [
    "\t", "\n", "\r\n", "\x0b", "\x00", "\x7f", "  ", "    ", "\u00a0", "\u3000", "\u200b", "\ufeff",
    "👋🏽", "👨‍👩‍👧‍👦", "🇳🇴", "❤️", "1️⃣", "e\u0301", "n\u0303\u0323", "ﬁ", "שלום", "\u202eمرحبا\u202c",
    "<0x41>", "<unk", "</s", "##ing", "</w>", "Ġ", "Ċ", "don't", "3.14", "return x\n",
]  # fmt: skip


def hard_line(rng: random.Random) -> str:
    """Up to 24 parts of any script; lone surrogates, of which UTF-8 has none, become U+FFFD."""
    parts = []
    for _ in range(rng.randrange(1, 25)):
        kind = rng.randrange(4)
        if kind == 0:
            parts.append(rng.choice(WHOLE))
        elif kind == 1:
            parts.append(rng.choice(SENTENCES[rng.randrange(len(SENTENCES))].split(" ")) + " ")
        elif kind == 2:
            first, last = rng.choice(list(RANGES.values()))
            parts.append("".join(chr(rng.randint(first, last)) for _ in range(rng.randrange(1, 6))))
        else:
            parts.append(chr(rng.randint(0xD800, 0xDFFF)))
    return "".join(parts).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@pytest.fixture(scope="session")
def hard_lines() -> list[str]:
    """10,000 of them, from a seed."""
    rng = random.Random(0)
    return [hard_line(rng) for _ in range(10_000)]
