"""Packed rows, the head's hand-made gradient and the shrinking batch: all give what the plain way gives."""

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    set_seed,
)

from recipes.rlhf import head, ppo_math
from recipes.rlhf.generation import Sampling, generate, generate_plain
from recipes.rlhf.packing import make_packable, pack, rounded
from recipes.rlhf.ppo_models import PolicyWithValue
from recipes.rlhf.ppo_values import ValueHead

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PACKED = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES),
    "gemma": GemmaConfig(**SIZES),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=40, pad_token_id=0, bos_token_id=1, eos_token_id=2),
    "pythia": GPTNeoXConfig(**SIZES),
    "phi": PhiConfig(**SIZES),
    "opt": OPTConfig(**SIZES, ffn_dim=64),
}
PADDED = {
    "bloom": BloomConfig(**SIZES, n_head=4),  # biases of attention by distance
    "gemma2": Gemma2Config(**SIZES),  # windows, and logits that are capped
    "mistral": MistralConfig(**SIZES, sliding_window=8),
}


def make(config, attention="sdpa"):
    set_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def a_batch():
    """Prompts of 5, 1 and 3 tokens, responses of 2, 4 and 1."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 40, (3, 9), generator=generator)
    prompt_mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 1], [0, 0, 1, 1, 1]])
    response_mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    return {
        "prompt_ids": ids[:, :5] * prompt_mask,
        "prompt_mask": prompt_mask,
        "response_ids": ids[:, 5:] * response_mask,
        "response_mask": response_mask,
    }


def one_by_one(model, batch, temperature):
    """Log-probabilities and entropies of the response tokens, each sequence alone and without any of our code."""
    logprobs, entropies = (torch.zeros(batch["response_mask"].shape) for _ in range(2))
    for row in range(len(logprobs)):
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
        response = batch["response_ids"][row][batch["response_mask"][row].bool()]
        logits = model(torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1] / temperature
        table = logits.log_softmax(-1)
        logprobs[row, : len(response)] = table[torch.arange(len(response)), response]
        entropies[row, : len(response)] = -(table.exp() * table).sum(-1)
    return logprobs, entropies


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", [*PACKED, *PADDED])
def test_a_batch_is_its_sequences_one_by_one(name, attention):
    if name in ("bloom", "gemma2") and attention == "sdpa":
        pytest.skip("the library has eager attention alone for it")
    config = (PACKED | PADDED)[name]
    model, batch = make(config, attention), a_batch()
    expected, entropies = one_by_one(model, batch, 0.7)
    both = PolicyWithValue(model, ValueHead(32)).eval()
    assert both.packs == (name in PACKED)
    result = both(**batch, temperature=0.7, with_entropy=True)
    torch.testing.assert_close(result["logprobs"], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(result["entropy"], entropies, atol=1e-5, rtol=0)


def test_the_gradient_of_a_packed_batch_is_that_of_its_sequences():
    batch = a_batch()
    plain, packed = make(PACKED["llama"]), PolicyWithValue(make(PACKED["llama"]))
    logprobs, entropies = one_by_one(plain, batch, 0.7)
    weights = torch.linspace(-1, 1, 12).view(3, 4)
    ((logprobs + 0.3 * entropies) * weights).sum().backward()
    result = packed(**batch, temperature=0.7, with_value=False, with_entropy=True)
    ((result["logprobs"] + 0.3 * result["entropy"]) * weights).sum().backward()
    for (name, one), other in zip(plain.named_parameters(), packed.policy.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_pack_takes_the_real_tokens_in_order():
    packed = pack(torch.tensor([[0, 7, 8], [5, 6, 0]]), torch.tensor([[0, 1, 1], [1, 1, 0]]))
    assert packed.inputs["input_ids"].tolist() == [[7, 8, 5, 6]]
    assert packed.inputs["position_ids"].tolist() == [[0, 1, 0, 1]]
    assert packed.index[torch.tensor([[0, 1, 1], [1, 1, 0]]).bool()].tolist() == [0, 1, 2, 3]


def test_a_model_that_cannot_be_packed_keeps_its_attention():
    model = make(PADDED["gemma2"], "eager")
    assert not make_packable(model)
    assert model.config._attn_implementation == "eager"


def test_packing_leaves_no_trace_in_the_saved_config(tmp_path):
    model = make(PACKED["llama"])
    make_packable(model)
    model.save_pretrained(tmp_path)
    assert "packed" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_head_logprobs_are_those_of_log_softmax(blocks, bias, with_entropy, monkeypatch):
    monkeypatch.setattr(head, "BLOCK_BYTES", 4 * 11 * (7 if blocks == 1 else 3))  # 7 tokens, a vocabulary of 11
    linear = nn.Linear(5, 11, bias=bias, dtype=torch.float64)
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(11, (7,))

    def ours(hidden, *parameters):
        logprobs, entropy = head.head_logprobs(linear, hidden, tokens, 0.7, with_entropy)
        return logprobs.double() + (0.3 * entropy.double() if with_entropy else 0)

    table = (linear(hidden) / 0.7).log_softmax(-1)
    expected = table.gather(-1, tokens[:, None])[:, 0] - (0.3 * (table.exp() * table).sum(-1) if with_entropy else 0)
    inputs = (hidden, *linear.parameters())
    weights = torch.linspace(-1, 1, 7, dtype=torch.float64)
    torch.testing.assert_close(ours(hidden), expected, atol=1e-6, rtol=0)
    for one, other in zip(
        torch.autograd.grad(ours(hidden) @ weights, inputs),
        torch.autograd.grad(expected @ weights, inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_a_head_under_something_else_is_called_as_it_is():
    wrapped = nn.Sequential(nn.Linear(5, 11))
    hidden, tokens = torch.randn(7, 5), torch.randint(11, (7,))
    logprobs, entropy = head.head_logprobs(wrapped, hidden, tokens, 0.7, with_entropy=True)
    plain, plain_entropy = head.head_logprobs(wrapped[0], hidden, tokens, 0.7, with_entropy=True)
    torch.testing.assert_close(logprobs, plain)
    torch.testing.assert_close(entropy, plain_entropy)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", PACKED)
def test_responses_are_those_of_each_prompt_alone(name, attention):
    """Sampling by hand, token by token without a cache, from each prompt without padding."""
    model, batch, length, temperature = make(PACKED[name], attention), a_batch(), 6, 0.7
    uniforms = torch.rand(3, length, generator=torch.Generator().manual_seed(1))
    expected = torch.zeros(3, length, dtype=torch.long)
    for row in range(3):
        ids = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
        for step in range(length):
            logits = model(ids[None]).logits[:, -1] / temperature
            token = ppo_math.inverse_cdf_sample(logits.softmax(-1), uniforms[row, step : step + 1])
            expected[row, step] = token
            ids = torch.cat([ids, token])
    for stop in (None, expected[0, 1].item()):
        wanted = expected * ppo_math.response_mask(expected, stop)
        assert make_packable(model)
        prompts = {key: batch[key] for key in ("prompt_ids", "prompt_mask")}
        sampling = Sampling(temperature, stop, pad_token_id=0)
        for way in (generate, generate_plain):
            drawn = way(model, **prompts, uniforms=uniforms, sampling=sampling)
            assert drawn["response_ids"].tolist() == wanted.tolist()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", PACKED)
def test_what_generation_knows_of_its_tokens_is_what_a_pass_over_them_finds(name, attention):
    """Log-probabilities, entropies and values of sequences of many lengths, in a batch that shrinks."""
    both = PolicyWithValue(make(PACKED[name], attention), ValueHead(32))
    torch.nn.init.normal_(both.value.weight)
    batch, uniforms = a_batch(), torch.rand(3, 6, generator=torch.Generator().manual_seed(1))
    prompts = {key: batch[key] for key in ("prompt_ids", "prompt_mask")}
    sampling = Sampling(0.7, None, pad_token_id=0)
    stop = both.respond(**prompts, uniforms=uniforms, sampling=sampling)["response_ids"][0, 1].item()
    drawn = both.respond(**prompts, uniforms=uniforms, sampling=Sampling(0.7, stop, pad_token_id=0))
    mask = ppo_math.response_mask(drawn["response_ids"], stop)
    assert mask.sum() < mask.numel()
    found = both(**prompts, response_ids=drawn["response_ids"], response_mask=mask, temperature=0.7, with_entropy=True)
    for key in ("logprobs", "entropy", "values"):
        torch.testing.assert_close(drawn[key] * mask, found[key], atol=1e-5, rtol=1e-5)


def test_sizes_are_rounded_by_little_to_few():
    sizes = range(1, 5000)
    assert all(size <= rounded(size) <= size + max(3, size / 16) for size in sizes)
    assert len({rounded(size) for size in sizes}) < 200
