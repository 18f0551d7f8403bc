"""What the `peft` block takes and what it refuses: against the method, the model, and the training."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from recipes.core import ModelConfig, UserError, peft_block
from recipes.core.weights import weights_in

LORA = {"method": "lora", "r": 2, "target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"method": "lora", "r": 0}, "r must be above 0, not 0"),
        ({"method": "lora", "r": -1}, "r must be above 0"),
        ({"method": "lora", "r": 2.5}, "'r' must be an integer"),
        ({"method": "lora", "rank": 2}, "method lora has no key 'rank'"),
        ({"method": "lora", "task_type": "SEQ_CLS"}, "'task_type' is the recipe's to say"),
        ({"method": "lora", "inference_mode": True}, "'inference_mode' is the recipe's to say"),
        ({"method": "lorax"}, "must name a PEFT method, not 'lorax'"),
        ({}, "must name a PEFT method, not None"),
        ({"method": "prompt_tuning"}, "needs num_virtual_tokens"),
        ({"method": "prefix_tuning", "num_virtual_tokens": 0}, "num_virtual_tokens must be above 0"),
        ({"method": "adalora", "init_r": 4, "target_r": 4}, "target_r \\(4\\) must be below init_r \\(4\\)"),
        ({"method": "adalora", "r": 4}, "adalora ignores r"),
        ({"method": "bottleneck", "placement": "pfeifer"}, "'placement' must be one of 'houlsby', 'pfeiffer'"),
        ({"method": "bottleneck", "reduction_factor": 0}, "reduction_factor"),
        ({"method": "p_tuning_template"}, "set template to a text with"),
        ({"method": "adapter_fusion", "adapters": {"a": "x"}}, "at least two trained adapters"),
        ({"method": "lora", "init_lora_weights": "eva"}, "init_lora_weights: eva is made from data"),
        (
            {"method": "prompt_tuning", "num_virtual_tokens": 2, "prompt_tuning_init_text": "good"},
            "prompt_tuning_init_text has no effect unless prompt_tuning_init is TEXT",
        ),
        (
            {"method": "prefix_tuning", "num_virtual_tokens": 2, "encoder_hidden_size": 8},
            "encoder_hidden_size has no effect unless prefix_projection is True",
        ),
    ],
)
def test_a_block_that_the_method_cannot_have_is_refused(block, message):
    with pytest.raises(UserError, match=message):
        peft_block.read(block, "CAUSAL_LM")


def test_a_block_is_the_method_s_own_config():
    config = peft_block.read({**LORA, "lora_alpha": 4}, "SEQ_CLS")
    assert (config.peft_type, config.task_type, config.r, config.lora_alpha) == ("LORA", "SEQ_CLS", 2, 4)
    assert peft_block.read({"method": "adalora"}, "SEQ_CLS").total_step == peft_block.STEPS_UNKNOWN


def test_words_to_start_from_are_of_the_model_s_tokenizer():
    block = {
        "method": "prompt_tuning",
        "num_virtual_tokens": 2,
        "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_text": "good",
    }
    assert peft_block.read(block, "SEQ_CLS", "a/b").tokenizer_name_or_path == "a/b"
    assert (
        peft_block.read({**block, "tokenizer_name_or_path": "c/d"}, "SEQ_CLS", "a/b").tokenizer_name_or_path == "c/d"
    )


def test_a_base_from_scratch_is_refused():
    with pytest.raises(UserError, match="peft adapts trained weights"):
        ModelConfig(model_config={"model_type": "llama"}, tokenizer_name_or_path="x", peft=LORA)


# ------------------------------------------------------------------------------------------------------ with the model
def test_a_module_that_is_not_there_is_named_with_those_that_are(tiny):
    """PEFT would train the one that is there and say nothing of the other."""
    block = {"method": "lora", "r": 2, "target_modules": ["q_proj", "query"]}
    with pytest.raises(UserError, match=r"no module 'query'.*mlp.down_proj, .*self_attn.q_proj"):
        ModelConfig(model_name_or_path=str(tiny / "model"), peft=block).load_causal_lm()


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_fits_no_module_is_refused(key, tiny):
    with pytest.raises(UserError, match=f"{key}: LlamaForCausalLM has no module 'querry'"):
        ModelConfig(model_name_or_path=str(tiny / "model"), peft={**LORA, key: {"querry": 8}}).load_causal_lm()
    ModelConfig(model_name_or_path=str(tiny / "model"), peft={**LORA, key: {"layers.0.*q_proj": 8}}).load_causal_lm()


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning"])
def test_every_virtual_token_of_an_encoder_decoder_learns(method):
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 20}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0))
    block = {"method": method, "num_virtual_tokens": 5}
    adapted = peft_block.adapt(model, peft_block.read(block, "SEQ_2_SEQ_LM"))
    ids = torch.tensor([[3, 4, 5]])
    adapted(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
    gradient = adapted.prompt_encoder["default"].embedding.weight.grad
    assert gradient.shape == (5, 16)
    assert gradient.abs().sum(dim=1).min() > 0


def test_ia3_of_the_t0_config_rescales_what_the_paper_does():
    """Keys and values of d_model, and the hidden units of the gated feed-forward layers."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 40, "num_layers": 1, "num_heads": 2, "vocab_size": 20}
    model = T5ForConditionalGeneration(T5Config(**sizes, feed_forward_proj="gated-gelu"))
    config = Path("configs/finetuning/sequence_to_sequence/t0-3b-ia3-rte.yaml").read_text()
    adapted = peft_block.adapt(model, peft_block.read(yaml.safe_load(config)["peft"], "SEQ_2_SEQ_LM"))
    vectors = {name: p.numel() for name, p in adapted.named_parameters() if p.requires_grad}
    assert {name.split(".ia3_l")[0].rpartition(".")[2] for name in vectors} == {"k", "v", "wo"}
    assert all(size == (40 if ".wo." in name else 16) for name, size in vectors.items())


def test_a_revision_is_of_tokenizer_base_and_adapter_too(tiny, monkeypatch):
    asked = {}

    def tokenizer(source, **options):
        asked["tokenizer"] = options
        return opened(source)

    from transformers import AutoTokenizer

    opened = AutoTokenizer.from_pretrained
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", tokenizer)
    model = ModelConfig(model_name_or_path=str(tiny / "model"), model_revision="v2", peft=LORA)
    assert model.peft_config("CAUSAL_LM").revision == "v2"
    model.load_tokenizer()
    assert asked["tokenizer"] == {"revision": "v2"}


def test_a_model_from_scratch_has_the_type_it_is_asked_for(tiny):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"model_type": "llama", **sizes, "max_position_embeddings": 16}
    _, model = ModelConfig(
        model_config=config, tokenizer_name_or_path=str(tiny / "tokenizer"), dtype="bfloat16"
    ).load_causal_lm()
    assert model.dtype == torch.bfloat16


def test_weights_in_four_bits_count_one_by_one():
    from bitsandbytes.nn import Linear4bit

    layer = Linear4bit(64, 32, bias=False, quant_storage=torch.uint8).to("cpu")
    assert weights_in(layer.weight) == 64 * 32 > layer.weight.numel()
    assert weights_in(torch.nn.Linear(4, 3).weight) == 12


def test_new_modules_are_trained_beside_the_adapter():
    """BERT without a pooler, RoBERTa's head of two layers, T5's head that PEFT does not know."""
    for task, missing, expected in (
        (
            "SEQ_CLS",
            {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight"},
            ["bert.pooler.dense", "classifier"],
        ),
        ("SEQ_CLS", {"classifier.dense.weight", "classifier.out_proj.bias"}, ["classifier"]),
        ("SEQ_CLS", {"classification_head.dense.weight"}, ["classification_head"]),
    ):
        config = peft_block.read(LORA, task)
        peft_block.train_new_modules(config, missing)
        assert config.modules_to_save == expected
    config = peft_block.read(LORA, "CAUSAL_LM")
    peft_block.train_new_modules(config, ())
    assert config.modules_to_save is None


def test_a_prompt_has_no_place_in_an_encoder_decoder_but_one():
    from transformers import BartConfig, BartForSequenceClassification

    small = {
        f"{half}_{key}": value
        for half in ("encoder", "decoder")
        for key, value in (("layers", 1), ("attention_heads", 2))
    }
    model = BartForSequenceClassification(BartConfig(d_model=8, vocab_size=9, max_position_embeddings=8, **small))
    block = {"method": "prompt_tuning", "num_virtual_tokens": 2}
    with pytest.raises(UserError, match="in finetuning/sequence_to_sequence only"):
        peft_block.check_model(peft_block.read(block, "SEQ_CLS"), model)
    peft_block.check_model(peft_block.read(block, "SEQ_2_SEQ_LM"), model)
    with pytest.raises(UserError, match="fills all 8 positions"):
        peft_block.check_model(peft_block.read({**block, "num_virtual_tokens": 8}, "SEQ_2_SEQ_LM"), model)


def test_a_scorer_under_a_prompt_would_read_padding(tiny):
    """The guard, and that it is right: on either side padding changes a row's score, which it does not under a prefix."""
    prompt = {"method": "prompt_tuning", "num_virtual_tokens": 2}
    with pytest.raises(UserError, match="reads the last position, which may be padding"):
        ModelConfig(model_name_or_path=str(tiny / "model"), peft=prompt).load_scorer()

    def scores(block: dict) -> tuple[torch.Tensor, list[torch.Tensor]]:
        _, scorer = ModelConfig(model_name_or_path=str(tiny / "scorer")).load_scorer()
        torch.manual_seed(0)  # of the prompt: by chance one hardly shifts with the positions
        model = peft_block.adapt(scorer, peft_block.read(block, "SEQ_CLS")).eval()
        ids, pads = torch.tensor([[10, 11, 12]]), torch.full((1, 2), scorer.config.pad_token_id)
        padded = [torch.cat(pair, 1) for pair in ((ids, pads), (pads, ids))]
        with torch.no_grad():
            alone = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            return alone, [model(input_ids=each, attention_mask=(each != pads[0, 0]).long()).logits for each in padded]

    alone, (right, left) = scores(prompt)
    assert (right - alone).abs() > 1e-4
    assert (left - alone).abs() > 1e-4
    alone, (right, _) = scores({"method": "prefix_tuning", "num_virtual_tokens": 2})
    torch.testing.assert_close(right, alone)


def test_tokens_that_are_new_to_the_model_would_stay_as_they_are(tiny, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny / "model")
    model.resize_token_embeddings(310)  # room for more tokens than the tokenizer has, as published models have
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny / "tokenizer").save_pretrained(tmp_path)
    known = len(AutoTokenizer.from_pretrained(tmp_path))
    new = {"model_name_or_path": str(tmp_path), "tokenizer_kwargs": {"extra_special_tokens": ["<|new|>"]}}
    with pytest.raises(UserError, match=f"'<|new|>' is new to .* trainable_token_indices: \\[{known}\\]"):
        ModelConfig(**new, peft=LORA).load_causal_lm()
    ModelConfig(**new, peft={**LORA, "trainable_token_indices": [known]}).load_causal_lm()
    ModelConfig(**new).load_causal_lm()
    padding = {**new, "tokenizer_kwargs": {"pad_token": "<|new|>"}}
    ModelConfig(**padding, peft=LORA).load_causal_lm()


@pytest.fixture
def adapter(tiny, tmp_path):
    """A LoRA on the tiny model, saved."""
    from recipes.adapters import attach

    _, model = ModelConfig(model_name_or_path=str(tiny / "model")).load_causal_lm()
    attach(model, peft_block.read(LORA, "CAUSAL_LM")).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_of_another_base_is_refused(adapter, tiny, tmp_path):
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(tiny / "model", hidden_size=16, intermediate_size=16, head_dim=4)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "other")}))
    AutoTokenizer.from_pretrained(tiny / "tokenizer").save_pretrained(adapter)
    with pytest.raises(UserError, match="is an adapter of another base than"):
        ModelConfig(model_name_or_path=str(adapter)).load_causal_lm()


def test_a_prompt_cannot_be_merged_into_its_base(tiny, tmp_path):
    from transformers import AutoTokenizer

    from recipes.adapters import attach

    _, model = ModelConfig(model_name_or_path=str(tiny / "model")).load_causal_lm()
    block = {"method": "prompt_tuning", "num_virtual_tokens": 2}
    attach(model, peft_block.read(block, "CAUSAL_LM")).save_pretrained(tmp_path / "prompt")
    AutoTokenizer.from_pretrained(tiny / "tokenizer").save_pretrained(tmp_path / "prompt")
    with pytest.raises(UserError, match="prompt_tuning, which has no weights to merge"):
        ModelConfig(model_name_or_path=str(tmp_path / "prompt")).load_causal_lm()


# --------------------------------------------------------------------------------------------------- with the training
@pytest.fixture
def sft(main, job, tmp_path, capfd):
    """`sft(peft, **settings)`: the exit status and the last line of stderr of a run of SFT."""

    def run(peft: dict, **settings):
        config = yaml.safe_load(Path(job("finetuning/sft", tmp_path / "run")[1]).read_text())
        config |= {"peft": peft, "output_dir": str(tmp_path / "run"), "eval_on_start": False, **settings}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        try:
            main("finetuning/sft")(["--config", str(tmp_path / "config.yaml")])
            code = 0
        except SystemExit as stop:
            code = stop.code
        return code, ([""] + [line for line in capfd.readouterr().err.splitlines() if line.strip()])[-1]

    return run


def test_a_prefix_and_checkpointing_exclude_each_other(sft, tmp_path):
    prefix = {"method": "prefix_tuning", "num_virtual_tokens": 2}
    code, line = sft(prefix, activation_checkpointing=True)
    assert code == 2
    assert "activation_checkpointing" in line or "gradient checkpointing" in line
    assert not (tmp_path / "run").exists()


def test_an_adapter_under_reentrant_checkpointing_learns_all_the_same(sft, tmp_path):
    """Frozen layers below it have no input that could be differentiated, unless the embeddings' output is made to be."""
    code, line = sft(
        LORA, activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": True}, max_steps=2
    )
    assert code == 0, line


def test_an_adapter_without_a_gradient_stops_the_run(sft, monkeypatch):
    from peft.tuners.lora.layer import Linear

    forward = Linear.forward

    def detached(self, x, *args, **kwargs):
        with torch.no_grad():
            found = forward(self, x, *args, **kwargs)
        return found + 0 * sum(parameter.sum() for parameter in self.parameters() if parameter.requires_grad)

    monkeypatch.setattr(Linear, "forward", detached)
    code, line = sft(LORA, activation_checkpointing=False)
    assert code == 2
    assert "no gradient reaches the lora adapter in the first step" in line


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"total_step": 10}, "total_step is 10 and the run takes 6 steps; drop total_step"),
        ({"tinit": 4, "tfinal": 2}, "tinit 4 and tfinal 2 leave none of the 6 steps"),
    ],
)
def test_a_schedule_of_ranks_that_does_not_fit_is_refused(schedule, message, sft, tmp_path):
    code, line = sft({"method": "adalora", "init_r": 4, "target_r": 2, "target_modules": "all-linear", **schedule})
    assert code == 2
    assert message in line
    assert not (tmp_path / "run").exists()


def test_ranks_fall_to_the_budget_in_the_training_loop(sft, tmp_path):
    """14 matrices begin with 4 ranks each and end with 2 on average."""
    block = {"method": "adalora", "init_r": 4, "target_r": 2, "target_modules": "all-linear", "tfinal": 1}
    code, line = sft(block, activation_checkpointing=False)
    assert code == 0, line
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    left = [sum(kept) for kept in config["rank_pattern"].values()]
    assert len(left) == 14
    assert sum(left) == 2 * 14
    assert len(set(left)) > 1
    assert config["total_step"] == 6


def test_the_orthogonality_penalty_is_in_a_loss_that_the_trainer_works_out(tiny):
    """PEFT adds it to the model's own loss; from logits it has to be added: both trainers see the same penalty."""
    from transformers import Trainer, TrainingArguments

    from recipes.core.adalora import allocate_ranks, orthogonality

    def loss_from_logits(outputs, labels, num_items_in_batch=None):
        return outputs["logits"].float().square().mean()

    block = {"method": "adalora", "init_r": 4, "target_r": 2, "target_modules": "all-linear", "orth_reg_weight": 0.3}
    _, base = ModelConfig(model_name_or_path=str(tiny / "model")).load_causal_lm()
    model = peft_block.adapt(base, peft_block.read(block, "CAUSAL_LM"))
    arguments = TrainingArguments("unused", max_steps=4, use_cpu=True)
    trainer = Trainer(model=model, args=arguments, compute_loss_func=loss_from_logits)
    ids = torch.tensor([[10, 11, 12, 13]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    model.train()
    plain = trainer.compute_loss(model, dict(inputs))
    allocate_ranks(trainer)
    trainer.current_gradient_accumulation_steps = 1  # as in training
    penalised = trainer.compute_loss(model, dict(inputs))
    torch.testing.assert_close(penalised - plain, 0.3 * orthogonality(model))
    model.eval()
    torch.testing.assert_close(trainer.compute_loss(model, dict(inputs)), plain)

    model.train()
    with_model_s_loss = Trainer(model=model, args=arguments)
    ours = with_model_s_loss.compute_loss(model, dict(inputs))
    bare = model.base_model.model(**inputs).loss
    torch.testing.assert_close(ours - bare, 0.3 * orthogonality(model))
