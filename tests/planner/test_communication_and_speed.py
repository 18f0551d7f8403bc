"""Messages and seconds of a step, worked out by hand."""

import dataclasses
import json

import pytest
import torch
from transformers import GPT2Config

from recipes.planner.architecture import Adapter, Architecture
from recipes.planner.communication import GLOO, Traffic, traffic
from recipes.planner.hardware import cluster as cluster_of
from recipes.planner.hardware import find_gpu
from recipes.planner.layouts import Layout
from recipes.planner.reading import find_architecture
from recipes.planner.speed import forward_operations, speed, training_operations
from recipes.planner.workload import Role, Rollout, Value

LORA = Adapter(json.dumps({"method": "lora", "r": 4, "target_modules": "all-linear"}))


def sent(workload, layout, cluster, rings=None) -> float:
    return sum(message.sent(rings) if rings else message.sent() for message in traffic(workload, layout, cluster))


@pytest.mark.parametrize(
    ("sharding", "in_bf16"),
    [
        ("ddp", 2 * 2),  # an all-reduce of float32 gradients: two of their halves, in units of bf16
        ("zero1", 2 + 1),  # DeepSpeed's all-reduce, and the updated weights
        ("zero2", 2 + 1),
        ("fsdp2", 1 + 1 + 1),  # weights forward, weights backward, gradients
    ],
)
def test_what_a_step_sends(workload, cluster, sharding, in_bf16):
    """ZeRO's section 7 counts in Ψ of 2 bytes: 2Ψ without sharding of the weights, 3Ψ with it."""
    plain = workload(weights=torch.bfloat16) if sharding == "ddp" else workload()
    units = in_bf16 / 2 if sharding == "ddp" else in_bf16
    missing = plain.architecture.head if sharding == "fsdp2" else 0  # the head stays between loss and backward pass
    expected = 2 * (units * plain.trained - missing) * 7 / 8
    assert sent(plain, Layout(sharding, 8), cluster(8)) == pytest.approx(expected)


def test_zero3_gathers_a_large_model_twice_and_a_small_one_once(workload, cluster):
    assert sent(workload(), Layout("zero3", 8), cluster(8)) == pytest.approx(2 * 2 * workload().trained * 7 / 8)
    large = workload(architecture=find_architecture("meta-llama/Llama-3.1-8B"))
    assert sent(large, Layout("zero3", 8), cluster(8)) == pytest.approx(2 * 3 * large.trained * 7 / 8, rel=0.03)


def test_zero3_gathers_again_what_it_cannot_know_is_needed_soon(workload, cluster):
    rollout = Rollout(prompt=8, length=8, responses=4, together=4, epochs=1)
    found = {one.what: one.payload for one in traffic(workload(rollout=rollout), Layout("zero3", 8), cluster(8))}
    assert found["weights, backward"] == found["weights, forward"] == 2 * workload().trained


def test_micro_batches_add_up_before_anything_is_sent_but_for_zero2(workload, cluster):
    for sharding, times in (("ddp", 1), ("zero1", 1), ("zero2", 4)):
        message = traffic(workload(accumulation=4), Layout(sharding, 2), cluster(2))[0]
        assert (message.what, message.times) == ("gradients", times)


def test_a_rollout_is_gathered_once_and_scored_in_chunks(workload, cluster, llama):
    """Two optimizer steps to a rollout of four chunks: half of one gathering and of four falls to each."""
    rollout = Rollout(prompt=8, length=8, responses=16, together=4, epochs=1)
    value = Value("separate", llama.parameters, llama.embedding)
    others = (Role("reference", llama.parameters),)
    policy = workload(loss="blocks", sequences=8, length=16, rollout=rollout, value=value, others=others)
    assert (policy.steps_per_rollout, rollout.chunks) == (2, 4)

    def messages(policy):
        found = traffic(policy, Layout("fsdp2", 8), cluster(8))
        return {message.what: message.payload * message.times for message in found}

    found = messages(policy)
    assert found["weights, sampling"] == 2 * (llama.parameters + llama.embedding) / 2
    root = 2 * llama.embedding + llama.head  # with the value's layers comes what is in one unit with its embedding
    assert found["all models, scoring"] == 2 * (2 * llama.parameters - llama.embedding + root) * 4 / 2
    shared = messages(policy.changed(value=Value("shared", llama.hidden)))
    assert shared["all models, scoring"] == 2 * llama.parameters * 4 / 2  # the reference's alone
    anew = messages(policy.changed(rollout=dataclasses.replace(rollout, gathered_once=False)))
    assert anew["weights, sampling"] == 8 * 4 * found["weights, sampling"]  # for each token of each chunk


def test_one_gpu_sends_nothing(workload, cluster):
    assert traffic(workload(), Layout("ddp", 1), cluster(1)) == []


def test_gloo_reduces_to_all_where_it_should_scatter():
    message = Traffic("gradients", "reduce-scatter", 1000.0, 1, 4, False, 4, True)
    assert (message.sent(), message.sent(GLOO)) == (750, 1500)


def test_split_matrices_sum_hidden_states_four_times_a_layer(workload, cluster, llama):
    """Megatron-LM, arXiv 1909.08053, section 3; six times where the layers run forward once more."""
    hidden = 2 * 32 * 64 * 4  # two rows of 32 tokens, 64 wide, in float32
    for checkpointing, times in ((False, 4), (True, 6)):
        layout = Layout("ddp", 1, tensor=2)
        (message,) = traffic(workload(checkpointing=checkpointing, bf16=False), layout, cluster(2))
        assert (message.payload, message.times) == (hidden, times * llama.layers * 2)  # two micro-batches for two GPUs


def test_between_nodes_a_ring_has_the_networks_of_its_neighbours(cluster):
    two = cluster(16, 2, link_efficiency=1.0)
    assert two.bandwidth(spans_nodes=False) == 450e9
    assert two.bandwidth(spans_nodes=True, neighbours=1) == 50e9
    assert two.bandwidth(spans_nodes=True, neighbours=8) == 400e9


def test_a_token_takes_six_operations_a_parameter(workload):
    """Brown et al. 2020, arXiv 2005.14165, table D.1: 3.14e23 for 300 billion tokens of GPT-3."""
    gpt3 = Architecture("gpt3", GPT2Config(n_embd=12288, n_layer=96, n_head=96, n_positions=2048, vocab_size=50257))
    found = training_operations(workload(architecture=gpt3, length=2048))
    assert found * 300e9 == pytest.approx(3.14e23, rel=0.03)


def test_checkpointing_and_adapters_change_the_operations(workload, llama):
    layers, head = forward_operations(workload())
    assert layers == 2 * llama.matrices + 4 * 16 * 64 * 4  # of 32 tokens, a token looks at 16 in the mean
    assert training_operations(workload()) == 3 * (layers + head)
    assert training_operations(workload(checkpointing=True)) == 4 * layers + 3 * head
    assert training_operations(workload(adapter=LORA)) == 2 * (layers + head)


def test_a_step_by_hand(workload, cluster):
    plain, two = workload(), cluster(2)
    found = speed(plain, Layout("ddp", 2), two)
    assert found.tokens == 2 * 64
    assert found.computing == pytest.approx(64 * training_operations(plain) / (989e12 * 0.5))
    assert found.seconds == found.computing + found.waiting
    message = traffic(plain, Layout("ddp", 2), two)[0]
    assert found.waiting == pytest.approx(message.sent() / (450e9 * 0.8) - found.computing * 2 / 3)


def test_the_bubble_is_that_of_its_paper(workload, cluster):
    """(p - 1) / m of the time that is computed: Narayanan et al. 2021, arXiv 2104.04473, section 2.2.1."""
    found = speed(workload(accumulation=4), Layout("ddp", 1, pipeline=4), cluster(4))
    assert found.bubble / found.computing == 3 / 16


def test_the_same_tokens_a_step_whatever_the_layout(workload, cluster):
    layouts = [
        Layout("ddp", 8),
        Layout("zero3", 8),
        Layout("fsdp2", 4, tensor=2),
        Layout("zero1", 2, tensor=2, pipeline=2),
    ]
    assert {speed(workload(accumulation=3), layout, cluster(8)).tokens for layout in layouts} == {8 * 3 * 64}


def test_sampling_a_token_reads_all_weights(workload):
    """A rollout of 4 responses of 100 tokens on an H100 that reads 3,350 GB/s at four fifths, before two steps."""
    model = find_architecture("meta-llama/Llama-2-7b-hf")
    rollout = Rollout(prompt=0, length=100, responses=4, together=4, epochs=1)
    found = workload(architecture=model, rollout=rollout, sequences=2, length=100, loss="blocks")
    seconds = 100 * 2 * model.parameters / (3350e9 * 0.8) / 2
    assert speed(found, Layout("ddp", 1), cluster_of("h100-80gb", 1)).sampling == pytest.approx(seconds, rel=0.05)


def test_float32_runs_at_its_own_rate(workload, cluster):
    gpu = find_gpu("h100-80gb")
    slow, fast = (speed(workload(bf16=bf16), Layout("ddp", 1), cluster(1)).computing for bf16 in (False, True))
    assert slow / fast == pytest.approx(gpu.bf16_tflops / gpu.fp32_tflops)
