"""GPT's auxiliary objective against transformers' own language model on the same weights."""

import pytest
import torch

from recipes.core.errors import UserError
from recipes.finetuning.classification_head import keep_head_input, next_token_loss


@pytest.fixture(scope="module")
def decoders():
    """A LLaMA with a language model's head and one with a classifier's, of the same weights."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    language_model, classifier = LlamaForCausalLM(config), LlamaForSequenceClassification(config)
    classifier.model.load_state_dict(language_model.model.state_dict())
    return language_model, classifier


def test_it_is_the_language_model_s_loss(decoders):
    language_model, classifier = decoders
    ids = torch.randint(1, 50, (3, 8))
    mask = torch.ones_like(ids)
    ids[0, 5:], mask[0, 5:] = 0, 0
    kept = keep_head_input(classifier)
    classifier(input_ids=ids, attention_mask=mask)
    ours = next_token_loss(kept[0], classifier.get_input_embeddings().weight, ids, mask)
    labels = ids.masked_fill(mask == 0, -100)
    theirs = language_model(input_ids=ids, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(ours, theirs)


def test_a_prompt_before_the_text_is_not_predicted(decoders):
    _, classifier = decoders
    hidden, ids = torch.randn(2, 6, 16), torch.randint(1, 50, (2, 6))
    embedding, mask = classifier.get_input_embeddings().weight, torch.ones_like(ids)
    longer = torch.cat([torch.randn(2, 3, 16), hidden], dim=1)
    torch.testing.assert_close(
        next_token_loss(longer, embedding, ids, mask), next_token_loss(hidden, embedding, ids, mask)
    )


def test_the_recipe_adds_it_times_lambda(trainer_of, tiny, task_data, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = {
        "model_name_or_path": str(tiny / "tied"),
        "dataset_name": str(task_data / "labels.jsonl"),
        "test_split_size": 0.2,
        "max_length": 32,
        "max_steps": 1,
        "learning_rate": 0.0,
    }
    model = AutoModelForCausalLM.from_pretrained(tiny / "model")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tiny / "tied")
    AutoTokenizer.from_pretrained(tiny / "tokenizer").save_pretrained(tiny / "tied")
    losses = {}
    for lm_coef in (0.0, 0.5, 1.0):
        trainer = trainer_of("finetuning/classification", {**base, "lm_coef": lm_coef})
        batch = next(iter(trainer.get_eval_dataloader()))
        trainer.model.train()
        losses[lm_coef] = trainer.compute_loss(trainer.model, trainer._prepare_inputs(dict(batch))).item()
        trainer.model.eval()
        plain = trainer.compute_loss(trainer.model, trainer._prepare_inputs(dict(batch))).item()
        assert plain == pytest.approx(losses[0.0], rel=1e-5), "it is no part of the held-out loss"
    assert losses[1.0] - losses[0.0] == pytest.approx(2 * (losses[0.5] - losses[0.0]), rel=1e-4)
    assert losses[0.5] - losses[0.0] > 1, "about half of ln 300 nats"


def test_an_encoder_and_an_untied_decoder_are_refused(models):
    from transformers import BertForSequenceClassification, LlamaForSequenceClassification

    with pytest.raises(UserError, match="a bert has no next token to predict"):
        keep_head_input(BertForSequenceClassification.from_pretrained(models / "encoder"))
    with pytest.raises(UserError, match="tie_word_embeddings: false"):
        keep_head_input(LlamaForSequenceClassification.from_pretrained(models / "scorer"))
