"""What the planner's tests share: small workloads on a cluster that needs no file."""

import dataclasses

import pytest
import torch
from transformers import LlamaConfig

from recipes.planner import hardware
from recipes.planner.architecture import Architecture
from recipes.planner.workload import Workload


@pytest.fixture(scope="session")
def llama():
    """A LLaMA of four layers."""
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return Architecture("llama", config)


@pytest.fixture
def workload(llama):
    """`workload(**changes)`: plain training in float32 weights under bf16 autocast, two sequences of 32 tokens."""

    def make(**changes) -> Workload:
        plain = Workload(
            name="test",
            architecture=llama,
            sequences=2,
            length=32,
            accumulation=1,
            weights=torch.float32,
            bf16=True,
            checkpointing=False,
            attention="flash",
            optimizer="adamw_torch_fused",
        )
        return dataclasses.replace(plain, **changes)

    return make


@pytest.fixture
def cluster():
    """`cluster(gpus, nodes)`: H100s without overhead."""

    def make(gpus: int, nodes: int | None = None, **assumed) -> hardware.Cluster:
        return hardware.cluster("h100-80gb", gpus, nodes, **{"overhead_gib": 0.0, **assumed})

    return make
