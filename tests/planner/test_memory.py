"""Bytes of one process, worked out by hand and held against the papers' own figures and a real step."""

import dataclasses
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from recipes.planner.architecture import Adapter
from recipes.planner.hardware import GIB
from recipes.planner.layouts import Layout
from recipes.planner.memory import BUCKET, memory, moments, shares
from recipes.planner.reading import find_architecture
from recipes.planner.workload import QUANTISED, Role, Rollout, Value

LORA = Adapter(json.dumps({"method": "lora", "r": 4, "target_modules": "all-linear"}))
ROLLOUT = Rollout(prompt=8, length=8, responses=4, together=4, epochs=1)


@pytest.fixture
def at(cluster):
    """`at(workload, "fsdp2", 8, "loss")`: the bytes at a moment."""

    def find(workload, sharding, data, moment, cluster_=None):
        layout = Layout(sharding, data)
        found = moments(workload, layout, cluster_ or cluster(data), shares(workload, layout)[0])
        return {one.moment: one for one in found}[moment]

    return find


@pytest.mark.parametrize(
    ("sharding", "data", "per_parameter", "gigabytes"),
    [
        ("zero1", 1, 16, 120),  # nothing is shared out: 2 + 2 + 12
        ("zero1", 64, 4 + 12 / 64, 31.4),
        ("zero2", 64, 2 + 14 / 64, 16.6),
        ("zero3", 64, 16 / 64, 1.9),
    ],
)
def test_zero_keeps_what_its_paper_says(workload, at, sharding, data, per_parameter, gigabytes):
    """Rajbhandari et al. 2020, arXiv 1910.02054, figure 1: K = 12, 7.5 billion parameters, 64 processes."""
    # ZeRO-1's gradients are whole at the end of the backward pass; its step needs a share of them only
    found = at(workload(), sharding, data, "end of backward" if sharding == "zero1" else "optimizer step")
    kept = (found.weights + found.optimizer + found.gradients) / workload().trained
    assert kept == pytest.approx(per_parameter, rel=1e-3)
    assert 7.5 * kept == pytest.approx(gigabytes, abs=0.06)


def test_a_real_step_of_adamw_holds_what_is_planned(workload, at, llama):
    model = AutoModelForCausalLM.from_config(llama.config, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.arange(64).view(2, 32)
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    tensors = [state for states in optimizer.state.values() for state in states.values() if state.dim()]
    real = {
        "weights": sum(weight.nbytes for weight in model.parameters()),
        "gradients": sum(weight.grad.nbytes for weight in model.parameters()),
        "optimizer": sum(tensor.nbytes for tensor in tensors),
    }
    found = at(workload(bf16=False), "ddp", 1, "optimizer step").parts
    assert {name: found[name] for name in real} == real


def test_ddp_in_float32_weights_takes_sixteen_bytes_a_parameter_and_four_for_its_buckets(workload, at):
    plain, in_bf16 = workload(), workload(weights=torch.bfloat16)
    assert at(plain, "ddp", 1, "optimizer step").total == 16 * plain.trained
    assert at(plain, "ddp", 2, "optimizer step").total == 20 * plain.trained
    assert at(in_bf16, "ddp", 1, "optimizer step").total == 8 * plain.trained


def test_an_unfused_adamw_makes_a_copy_of_a_state(workload, at):
    assert at(workload(optimizer="adamw_torch"), "ddp", 1, "optimizer step").total == 20 * workload().trained


def test_optimizers_keep_what_they_keep(workload):
    bytes_of = {"adamw_torch_fused": 8, "sgd": 0, "lion_32bit": 4, "adafactor": 0, "paged_ademamix_32bit": 12}
    for name, expected in bytes_of.items():
        assert workload(optimizer=name).optimizer_bytes(4) == expected, name
    assert workload(optimizer="adamw_8bit").optimizer_bytes(4) == pytest.approx(2, rel=0.02)


def test_double_quantisation_saves_what_its_paper_says():
    """Dettmers et al. 2023, arXiv 2305.14314, section 3: constants of 0.5 bits a parameter, and of 0.127 bits."""
    assert 8 * QUANTISED["4bit"] - 4 == pytest.approx(0.5)
    assert 8 * QUANTISED["4bit-double"] - 4 == pytest.approx(0.127, abs=1e-3)


def test_the_base_under_an_adapter_has_neither_gradients_nor_states(workload, at):
    adapted = workload(adapter=LORA, weights=torch.bfloat16)
    found, model = at(adapted, "ddp", 1, "optimizer step"), adapted.architecture
    assert found.weights == 2 * model.parameters + 4 * adapted.trained
    assert found.gradients + found.optimizer == 12 * adapted.trained
    in_bf16 = dataclasses.replace(LORA, in_float32=False)
    quantised = at(adapted.changed(adapter=in_bf16, quantised="4bit"), "ddp", 1, "optimizer step")
    plain = model.parameters - model.linear
    assert quantised.weights == 2 * plain + 0.5625 * model.linear + 2 * adapted.trained


def test_deepspeed_casts_frozen_weights_and_accelerate_does_not(workload, at):
    adapted = workload(adapter=LORA)  # float32 weights, to be trained in bf16
    frozen = adapted.architecture.parameters
    assert at(adapted, "zero2", 2, "optimizer step").weights == 2 * frozen + 2 * adapted.trained
    assert at(adapted, "fsdp2", 2, "optimizer step").weights == (4 * frozen + 4 * adapted.trained) / 2


def test_whole_gradients_wait_for_the_last_micro_batch(workload, at):
    """Under FSDP2 they are whole, unless every micro-batch is reduced."""
    often, trained = workload(accumulation=4), workload().trained
    assert [at(each, "ddp", 1, "loss").gradients for each in (workload(), often)] == [0, 4 * trained]
    assert at(often, "fsdp2", 8, "loss").gradients == 2 * trained
    assert at(often.changed(sync_each_batch=True), "fsdp2", 8, "loss").gradients == 4 * trained / 8


def test_fsdp2_puts_together_two_layers_and_what_is_around_them(workload, at, llama):
    """In bf16: at the loss the head; then a layer with its gradient, the next one, and the head's gradient as it is reduced;
    at the end the first layer so, and the embedding, of both of which no share of the gradient is there yet."""
    layer, plain = llama.layer, workload()
    assert at(plain, "fsdp2", 8, "loss").gathered == 2 * llama.head
    assert at(plain, "fsdp2", 8, "start of backward").gathered == 2 * (3 * layer + llama.head)
    end = at(plain, "fsdp2", 8, "end of backward")
    assert end.gathered == 2 * (3 * layer + llama.embedding)
    assert end.gradients == 4 * (plain.trained - layer - llama.embedding) / 8
    assert at(plain, "fsdp2", 8, "optimizer step").gradients == 4 * plain.trained / 8
    frozen = at(workload(adapter=LORA), "fsdp2", 8, "start of backward")
    assert frozen.gathered == 2 * (2 * layer + llama.head)


def test_a_gpu_reserves_its_buckets_whole_and_a_cpu_what_it_touches(workload, at, cluster):
    on_cpu = dataclasses.replace(cluster(2), on_cpus=True)
    assert at(workload(), "zero2", 2, "end of backward").gathered == 2 * 3 * BUCKET
    assert at(workload(), "zero2", 2, "end of backward", on_cpu).gathered == 2 * 2 * workload().trained


def test_a_pipeline_holds_micro_batches_in_flight_and_its_share_of_the_layers(workload, cluster):
    plain = workload()
    first, last = shares(plain, Layout("zero1", 1, pipeline=2))
    assert (first.layers, first.head, last.embedding) == (2, 0, 0)
    assert first.trained + last.trained == pytest.approx(plain.architecture.parameters, rel=0.01)
    layout = Layout("ddp", 1, pipeline=2)
    held = [moments(plain, layout, cluster(2), share)[0].activations for share in (first, last)]
    layer = plain.activations("ddp").layer
    assert held[0] - held[1] == pytest.approx(2 * layer, rel=0.2)


def test_four_processes_share_the_matrices(workload):
    architecture = find_architecture("meta-llama/Llama-3.1-8B")
    whole = workload(architecture=architecture)
    share = shares(whole, Layout("ddp", 1, tensor=4))[0]
    assert share.trained == pytest.approx(architecture.parameters / 4, rel=0.01)


def test_keys_and_values_by_hand_and_in_a_real_cache(workload, llama):
    """Llama 2 7B in bf16: two numbers for each of 32 layers, 32 heads and 128 channels, half a MiB a token."""
    rollout = Rollout(prompt=100, length=156, responses=8, together=4, epochs=1)
    found = workload(architecture=find_architecture("meta-llama/Llama-2-7b-hf"), rollout=rollout)
    assert found.cache_bytes(2) == 4 * 256 * 2**19
    model = AutoModelForCausalLM.from_config(llama.config, dtype=torch.float32)
    cache = model(input_ids=torch.zeros(4, 16, dtype=torch.long), use_cache=True).past_key_values
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert workload(rollout=ROLLOUT).cache_bytes(4) == real


def test_a_policy_has_a_reference_and_reward_models_beside_it(workload, at, llama):
    roles = (Role("reference", llama.parameters), Role("reward", llama.parameters))
    value = Value("separate", llama.parameters, llama.embedding)
    policy = workload(loss="blocks", rollout=ROLLOUT, others=roles, value=value, weights=torch.bfloat16)
    assert policy.trained == 2 * llama.parameters
    assert at(policy, "zero2", 4, "loss").others == 4 * llama.parameters
    assert at(policy, "zero3", 4, "loss").others == llama.parameters
    offloaded = policy.changed(offloaded=True)
    assert at(offloaded, "ddp", 1, "loss").others == 0
    assert at(offloaded, "ddp", 1, "pass of another model").gathered == 2 * llama.parameters


def test_autocast_keeps_the_matrices_it_casts_while_it_samples(workload, at, llama):
    policy = workload(rollout=ROLLOUT)
    found = {bf16: at(policy.changed(bf16=bf16), "ddp", 1, "sampling").gathered for bf16 in (True, False)}
    assert found == {True: 2 * (llama.matrices + llama.head), False: 0}


def test_weights_are_whole_while_ppo_samples_and_another_model_while_it_is_asked(workload, at, llama):
    """recipes/rlhf/ppo_rollout.py gathers once for a rollout; trl.models.utils.prepare_fsdp makes one unit of a model."""
    roles = (Role("reference", llama.parameters),)
    value = Value("separate", llama.parameters, llama.embedding)
    policy = workload(loss="blocks", rollout=ROLLOUT, others=roles, value=value)
    layers = sum(weight.numel() for weight in llama.stacks.parameters())
    root = llama.embedding + llama.head + llama.embedding  # of the policy, and what the value model has of it
    assert at(policy, "fsdp2", 4, "sampling").gathered == 2 * (layers + root)
    assert at(policy, "zero3", 4, "sampling").gathered == 2 * policy.trained
    assert at(policy, "fsdp2", 4, "pass of another model").gathered == 2 * llama.parameters
    anew = policy.changed(rollout=dataclasses.replace(ROLLOUT, gathered_once=False), value=None)
    assert at(anew, "fsdp2", 4, "sampling").gathered == 2 * (2 * layers / llama.layers + llama.head)


def test_offloading_leaves_the_states_to_the_host(workload, cluster):
    found = memory(workload(), Layout("zero3-offload", 2), cluster(2))
    assert found.weights == found.gradients == found.optimizer == 0
    assert found.host == (2 + 12 + 2 + 4) * workload().trained / 2
    assert found.total == sum(found.parts.values())


def test_more_processes_never_need_more(workload, cluster):
    for sharding in ("ddp", "zero1", "zero2", "zero3", "fsdp2"):
        sizes = [memory(workload(), Layout(sharding, gpus), cluster(gpus)).total for gpus in (2, 4, 8, 64)]
        assert sizes == sorted(sizes, reverse=True), sharding


def test_the_overhead_is_counted(workload, cluster):
    plain = memory(workload(), Layout("ddp", 1), cluster(1)).total
    assert memory(workload(), Layout("ddp", 1), cluster(1, overhead_gib=2.0)).total - plain == 2 * GIB
