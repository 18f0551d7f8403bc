"""Bytes of one process, worked out by hand and held against the papers' own figures."""

import dataclasses
import json

import pytest
import torch

from recipes.planner.architecture import Adapter
from recipes.planner.hardware import GIB
from recipes.planner.layouts import Layout
from recipes.planner.memory import BUCKET, memory, of_share, shares
from recipes.planner.reading import find_architecture
from recipes.planner.workload import QUANTISED, Role, Rollout

LORA = Adapter(json.dumps({"method": "lora", "r": 4, "target_modules": "all-linear"}))


def moments(workload, layout, cluster):
    return {found.moment: found for found in of_share(workload, layout, cluster, shares(workload, layout)[0])}


@pytest.mark.parametrize(
    ("sharding", "data", "per_parameter"),
    [
        ("zero1", 1, 16),  # nothing is shared out: 2 + 2 + 12
        ("zero1", 64, 4 + 12 / 64),  # 31.4 GB of figure 1
        ("zero2", 64, 2 + 14 / 64),  # 16.6 GB
        ("zero3", 64, 16 / 64),  # 1.9 GB
    ],
)
def test_zero_keeps_what_its_paper_says(workload, cluster, sharding, data, per_parameter):
    """Rajbhandari et al. 2020, arXiv 1910.02054, figure 1: bytes a parameter with K = 12, and for 7.5 billion of them."""
    found = moments(workload(), Layout(sharding, data), cluster(data))["optimizer step"]
    kept = found.weights + found.optimizer
    # ZeRO-1's gradients are whole at the end of the backward pass; its step needs a share of them only
    at = "end of backward" if sharding == "zero1" else "optimizer step"
    kept += moments(workload(), Layout(sharding, data), cluster(data))[at].gradients
    assert kept / workload().trained == pytest.approx(per_parameter, rel=1e-3)
    figures = {1: 120, 4 + 12 / 64: 31.4, 2 + 14 / 64: 16.6, 16 / 64: 1.9}
    if per_parameter in figures:
        assert 7.5 * per_parameter == pytest.approx(figures[per_parameter], abs=0.06)


def test_ddp_in_float32_weights_takes_sixteen_bytes_a_parameter_and_four_for_its_buckets(workload, cluster):
    plain = workload()
    alone = moments(plain, Layout("ddp", 1), cluster(1))["optimizer step"]
    assert alone.total == 16 * plain.trained
    two = moments(plain, Layout("ddp", 2), cluster(2))["optimizer step"]
    assert two.total == 20 * plain.trained
    in_bf16 = workload(weights=torch.bfloat16)
    assert moments(in_bf16, Layout("ddp", 1), cluster(1))["optimizer step"].total == 8 * plain.trained


def test_an_unfused_adamw_makes_a_copy_of_a_state(workload, cluster):
    found = moments(workload(optimizer="adamw_torch"), Layout("ddp", 1), cluster(1))["optimizer step"]
    assert found.total == 20 * workload().trained


def test_optimizers_keep_what_they_keep(workload):
    bytes_of = {"adamw_torch_fused": 8, "sgd": 0, "lion_32bit": 4, "adafactor": 0, "paged_adamw_32bit": 8}
    for name, expected in bytes_of.items():
        assert workload(optimizer=name).optimizer_bytes(4) == expected, name
    assert workload(optimizer="adamw_8bit").optimizer_bytes(4) == pytest.approx(2, rel=0.02)


def test_double_quantisation_saves_what_its_paper_says():
    """Dettmers et al. 2023, arXiv 2305.14314, section 3: constants of 0.5 bits a parameter, and of 0.127 bits."""
    assert 8 * QUANTISED["4bit"] - 4 == pytest.approx(0.5)
    assert 8 * QUANTISED["4bit-double"] - 4 == pytest.approx(0.127, abs=1e-3)


def test_the_base_under_an_adapter_has_neither_gradients_nor_states(workload, cluster):
    adapted = workload(adapter=LORA, weights=torch.bfloat16)
    found = moments(adapted, Layout("ddp", 1), cluster(1))["optimizer step"]
    trained = adapted.trained
    assert found.weights == 2 * adapted.architecture.parameters + 4 * trained
    assert found.gradients + found.optimizer == 12 * trained
    quantised = workload(adapter=dataclasses.replace(LORA, in_float32=False), weights=torch.bfloat16, quantised="4bit")
    assert quantised.frozen_bytes < 0.5 * adapted.frozen_bytes
    plain = adapted.architecture.parameters - adapted.architecture.linear
    assert quantised.frozen_bytes == 2 * plain + 0.5625 * adapted.architecture.linear


def test_whole_gradients_wait_for_the_last_micro_batch(workload, cluster):
    """Under FSDP2 they are whole, unless every micro-batch is reduced."""
    often = workload(accumulation=4)
    one, many = (moments(each, Layout("ddp", 1), cluster(1))["loss"] for each in (workload(), often))
    assert (one.gradients, many.gradients) == (0, 4 * workload().trained)
    whole = moments(often, Layout("fsdp2", 8), cluster(8))["loss"]
    shared = moments(often.changed(sync_each_batch=True), Layout("fsdp2", 8), cluster(8))["loss"]
    assert whole.gradients == 2 * workload().trained
    assert shared.gradients == 4 * workload().trained / 8


def test_a_gpu_reserves_its_buckets_whole_and_a_cpu_what_it_touches(workload, cluster):
    on_gpu = moments(workload(), Layout("zero2", 2), cluster(2))["end of backward"]
    on_cpu = dataclasses.replace(cluster(2), counts_when_touched=True)
    on_cpu = moments(workload(), Layout("zero2", 2), on_cpu)["end of backward"]
    assert on_gpu.gathered == 2 * 3 * BUCKET
    assert on_cpu.gathered == 2 * 2 * workload().trained


def test_a_pipeline_holds_micro_batches_in_flight_and_its_share_of_the_layers(workload, cluster):
    plain = workload()
    first, last = shares(plain, Layout("zero1", 1, pipeline=2))
    assert (first.layers, first.head, last.embedding) == (2, 0, 0)
    assert first.trained + last.trained == pytest.approx(plain.architecture.parameters, rel=0.01)
    layout = Layout("ddp", 1, pipeline=2)
    held = [of_share(plain, layout, cluster(2), share)[0].activations for share in (first, last)]
    layer = plain.activations("ddp").layer
    assert held[0] - held[1] == pytest.approx(2 * layer, rel=0.2)


def test_four_processes_share_the_matrices(workload, cluster):
    architecture = find_architecture("meta-llama/Llama-3.1-8B")
    whole = workload(architecture=architecture)
    share = shares(whole, Layout("ddp", 1, tensor=4))[0]
    assert share.trained == pytest.approx(architecture.parameters / 4, rel=0.01)


def test_keys_and_values_by_hand(workload):
    """Llama 2 7B in bf16: two numbers for each of 32 layers, 32 heads and 128 channels, half a MiB a token."""
    rollout = Rollout(prompt=100, length=156, responses=8, together=4, epochs=1)
    found = workload(architecture=find_architecture("meta-llama/Llama-2-7b-hf"), rollout=rollout)
    assert found.cache_bytes(2) == 4 * 256 * 2**19


def test_a_policy_has_a_reference_and_reward_models_beside_it(workload, cluster, llama):
    roles = (Role("reference", llama, llama.parameters), Role("reward", llama, llama.parameters))
    rollout = Rollout(prompt=8, length=8, responses=4, together=4, epochs=1)
    policy = workload(loss="blocks", rollout=rollout, others=roles, weights=torch.bfloat16, trunks=2)
    whole, shared = (memory(policy, Layout(sharding, 4), cluster(4)) for sharding in ("zero2", "zero3"))
    assert whole.others == 4 * llama.parameters
    assert shared.others == llama.parameters
    assert set(moments(policy, Layout("ddp", 1), cluster(1))) == {
        "loss",
        "end of backward",
        "optimizer step",
        "rollout",
    }


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
