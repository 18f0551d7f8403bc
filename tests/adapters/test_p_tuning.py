"""P-tuning: embeddings at the pseudo positions and nowhere else, from the paper's prompt encoder."""

import pytest
import torch
from small_models import HIDDEN, VOCABULARY, build, disturb, inputs_of, logits
from transformers import AutoTokenizer

from recipes.adapters import PTuningTemplateConfig, attach, open_adapter
from recipes.adapters.cloze import ClozeTemplate, Verbalizer
from recipes.adapters.p_tuning import PromptEncoder, PromptLayer
from recipes.core.errors import UserError

TEMPLATE = "[P]*3 {text} [P]*2 it was [MASK]"


def with_pseudo(kind: str) -> dict[str, torch.Tensor]:
    batch = inputs_of(kind)
    batch["input_ids"][0, [0, 4]] = VOCABULARY + torch.tensor([0, 2])
    batch["input_ids"][1, 3] = VOCABULARY + 1
    return batch


@pytest.mark.parametrize("encoder", ["lstm", "mlp", "none"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "llama", "gpt2"])
def test_the_model_sees_the_prompt_at_its_places(kind, encoder):
    """Against the base model given the embeddings by hand."""
    base = build(kind)
    table = base.get_input_embeddings().weight
    model = attach(base, PTuningTemplateConfig(num_pseudo_tokens=3, encoder=encoder))
    prompt = next(m for m in model.modules() if isinstance(m, PromptLayer)).blocks["default"]()
    assert prompt.shape == (3, HIDDEN)
    batch = with_pseudo(kind)
    ids = batch["input_ids"]
    rows = [[prompt[i - VOCABULARY] if i >= VOCABULARY else table[i] for i in row] for row in ids.tolist()]
    embeddings = torch.stack([torch.stack(row) for row in rows]).detach()
    plain = build(kind)
    with torch.no_grad():
        extra = {}
        if kind == "roberta":  # its positions come from the ids; the base's would be those of any other token
            extra["position_ids"] = torch.arange(ids.shape[1]).expand_as(ids) + 2
        expected = plain(inputs_embeds=embeddings, attention_mask=batch["attention_mask"], **extra).logits
        torch.testing.assert_close(model(**batch).logits, expected, atol=1e-6, rtol=1e-5)


def test_the_encoder_is_the_papers():
    """h = MLP([LSTM forward : LSTM backward]) (equation 6), the two directions together as wide as the model."""
    encoder = PromptEncoder(HIDDEN, PTuningTemplateConfig(template=TEMPLATE))
    assert encoder.embeddings.shape == (5, HIDDEN)
    assert (encoder.lstm.hidden_size, encoder.lstm.num_layers, encoder.lstm.bidirectional) == (HIDDEN // 2, 2, True)
    outputs, _ = encoder.lstm(encoder.embeddings[None])
    first, _, second = encoder.mlp
    expected = (outputs[0] @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias
    torch.testing.assert_close(encoder(), expected)


def test_all_pseudo_tokens_depend_on_each_other():
    encoder = PromptEncoder(HIDDEN, PTuningTemplateConfig(num_pseudo_tokens=4))
    encoder()[0].sum().backward()
    assert (encoder.embeddings.grad.abs().sum(dim=1) > 0).all()


def test_the_table_of_tokens_is_not_trained():
    model = attach(build("bert"), PTuningTemplateConfig(num_pseudo_tokens=3))
    model(**with_pseudo("bert"), labels=inputs_of("bert")["input_ids"]).loss.backward()
    assert [
        name for name, p in model.named_parameters() if p.grad is not None and ".p_tuning_template_" not in name
    ] == []


def test_it_learns_to_classify_on_a_frozen_decoder(tiny):
    """A decoder of random weights and four sentences: the prompt alone makes it say the right word."""
    tokenizer = AutoTokenizer.from_pretrained(tiny / "tokenizer")
    torch.manual_seed(0)
    base = build("llama", vocab_size=len(tokenizer), initializer_range=0.3)  # large enough for its input to matter
    template = ClozeTemplate("[P]*4 {text} [P]*2 one[MASK]")
    words = Verbalizer({"animal": "d", "number": "n"}, tokenizer, template)
    model = attach(base, PTuningTemplateConfig(template=template.text, task_type="CAUSAL_LM"))
    texts = ["the dog", "the fox", "one two", "three four"]
    labels = torch.tensor([0, 0, 1, 1])
    rows = [template.encode(tokenizer, {"text": text}, len(tokenizer), 32) for text in texts]
    width = max(len(row["input_ids"]) for row in rows)
    batch = {
        key: torch.tensor([row[key] + [0] * (width - len(row[key])) for row in rows])
        for key in ("input_ids", "attention_mask")
    }
    at = torch.tensor([row["answer_position"] for row in rows])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(words.scores(model(**batch).logits, at), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_the_encoder_is_saved(tmp_path):
    model = attach(build("bert"), PTuningTemplateConfig(template=TEMPLATE))
    disturb(model)
    before = model(**with_pseudo("bert")).logits
    model.save_pretrained(tmp_path)
    opened = open_adapter(build("bert"), tmp_path)
    torch.testing.assert_close(opened(**with_pseudo("bert")).logits, before, atol=1e-6, rtol=1e-6)


def test_pseudo_tokens_need_their_adapter():
    model = attach(build("bert"), PTuningTemplateConfig(num_pseudo_tokens=3))
    with model.disable_adapter(), pytest.raises(UserError, match="the input has pseudo tokens"):
        model(**with_pseudo("bert"))
    model.add_adapter("other", PTuningTemplateConfig(num_pseudo_tokens=1))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(UserError, match="set one adapter active"):
        logits(model, "bert")


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_decoder_is_refused(kind):
    with pytest.raises(UserError, match="take a masked language model or a decoder"):
        attach(build(kind), PTuningTemplateConfig(num_pseudo_tokens=3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"set template to a text with \[P\]"),
        ({"template": "{text} it was [MASK]"}, r"set template to a text with \[P\]"),
        ({"template": TEMPLATE, "num_pseudo_tokens": 4}, "num_pseudo_tokens is 4 and the template has 5"),
        ({"template": TEMPLATE, "target_modules": ["query"]}, "P-tuning has one place"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        PTuningTemplateConfig(**settings)
