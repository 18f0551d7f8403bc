"""vLLM as a source of responses. It needs a GPU: here TRL's engine is played by one that writes what it was told."""

import pytest
import torch
from test_ppo_trainer import even_share, logs_of, make_config, make_trainer

from recipes.core.errors import UserError
from recipes.rlhf import ppo_vllm


class Engine:
    """Answers every prompt with its last token, once or twice, and the stop token where there is one."""

    def __init__(self, **options):
        self.options, self.synced, self.weights = options, 0, []

    def sync_weights(self):
        self.synced += 1
        self.weights.append([p.detach().clone() for p in self.options["model"].parameters()])

    def generate(self, prompts, images, num_generations):
        assert images is None
        assert num_generations == 1
        stop = self.options["generation_kwargs"]["stop_token_ids"]
        responses = [ids[-1:] * (1 + index % 2) + stop for index, ids in enumerate(prompts)]
        return prompts, responses, None, None


@pytest.fixture
def with_engine(monkeypatch):
    monkeypatch.setattr(ppo_vllm, "is_vllm_available", lambda: True)
    monkeypatch.setattr(ppo_vllm, "VLLMGeneration", Engine)


def test_its_responses_are_trained_on_with_the_weights_of_each_rollout(tmp_path, with_engine):
    trainer = make_trainer(tmp_path, even_share, max_steps=8, use_vllm=True, learning_rate=1e-2)
    engine = trainer.sampler.vllm.engine
    assert engine.options["model"] is trainer.model.policy
    assert engine.options["temperature"] == trainer.args.temperature
    assert engine.options["max_completion_length"] == trainer.args.response_length
    assert engine.options["generation_kwargs"]["ignore_eos"]
    stop = engine.options["generation_kwargs"]["stop_token_ids"]
    assert stop == [trainer.processing_class.eos_token_id]
    trainer.train()
    rollouts = 8 // trainer.args.steps_per_rollout
    assert engine.synced == rollouts
    assert any(not torch.equal(old, new) for old, new in zip(engine.weights[0], engine.weights[1]))
    first = logs_of(trainer)[0]
    assert first["response_length"] == pytest.approx(2.5)
    assert first["eos_share"] == 1.0


def test_log_probabilities_are_those_of_the_training_pass(tmp_path, with_engine):
    trainer = make_trainer(tmp_path, even_share, max_steps=4, use_vllm=True)
    examples = [trainer.train_dataset[index] for index in range(4)]
    batch = trainer._sample(trainer.model, examples, [(0, index) for index in range(4)])
    assert batch["response_mask"].sum(dim=1).tolist() == [2, 3, 2, 3]
    for row, example in enumerate(examples):
        response = batch["response_ids"][row][batch["response_mask"][row].bool()]
        ids = torch.cat([torch.tensor(example["prompt_ids"]), response])
        logits = trainer.model.policy(ids[None]).logits[0] / trainer.args.temperature
        expected = logits.log_softmax(-1)[len(example["prompt_ids"]) - 1 : -1].gather(1, response[:, None])[:, 0]
        torch.testing.assert_close(batch["logprobs"][row, : len(response)], expected, atol=1e-5, rtol=0)


def test_without_vllm_it_says_what_to_install(tmp_path):
    with pytest.raises(UserError, match="vLLM is not installed"):
        make_trainer(tmp_path, even_share, max_steps=4, use_vllm=True)


def test_a_server_needs_its_address(tmp_path):
    with pytest.raises(UserError, match="vllm_server_base_url"):
        make_config(tmp_path, use_vllm=True, vllm_mode="server")
    with pytest.raises(UserError, match="vllm_gpu_memory_utilization"):
        make_config(tmp_path, vllm_gpu_memory_utilization=1.5)
