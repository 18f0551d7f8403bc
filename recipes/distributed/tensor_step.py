"""One forward and backward of a LLaMA, whole or split over processes: what a process holds, sends and finds.

The formulas count from the shape of the model alone. What a process holds is measured on its tensors; what it sends, on
the messages that it brings to collectives, each of which is taken to go round a ring.
"""

from typing import Any

import torch.distributed as dist
from torch import Tensor

from recipes.distributed.processes import device
from recipes.distributed.small_llama import SmallLlamaTask
from recipes.distributed.split_linear import split_llama
from recipes.distributed.text_bytes import VOCABULARY
from recipes.distributed.traffic import Traffic, ring_bytes

BY_HAND, BY_LIBRARY = "Megatron's layers by hand", "transformers' plan"
FP32 = 4  # bytes


def load(folder: str, plan: str) -> Any:
    """The saved LLaMA in this process: all of it in a world of one, else its share by either plan."""
    import transformers
    from transformers import LlamaForCausalLM
    from transformers.distributed import DistributedConfig

    transformers.utils.logging.disable_progress_bar()
    processes = dist.get_world_size()
    if plan == BY_LIBRARY and processes > 1:
        # Each process reads only its slices of the files.
        split = DistributedConfig(tp_plan="auto", tp_size=processes)
        return LlamaForCausalLM.from_pretrained(folder, distributed_config=split)
    model = LlamaForCausalLM.from_pretrained(folder).to(device())
    if processes > 1:
        split_llama(model)
    return model


def step(rank: int, folder: str, rows: Tensor) -> dict[str, dict[str, Any]]:
    """By plan: the loss, the logits (batch, length, 256), this process's gradients, its parameters' bytes, its traffic.

    Gradients are whole where the library holds them as DTensor; by hand they are slices.

    Args:
        rows: (batch, length) int64.
    """
    found = {}
    for plan in (BY_HAND, BY_LIBRARY):
        model = load(folder, plan)
        inputs = rows.to(device())
        with Traffic() as traffic:
            output = model(inputs, labels=inputs)
            output.loss.backward()
        parameters = dict(model.named_parameters())
        gradients = {name: parameter.grad for name, parameter in parameters.items()}
        found[plan] = {
            "loss": output.loss.detach(),
            "logits": output.logits.detach(),
            "gradients": {name: full(gradient) for name, gradient in gradients.items()},
            "parameter_bytes": sum(local(parameter).nbytes for parameter in parameters.values()),
            "sent_bytes": traffic.ring_bytes(dist.get_world_size()),
            "calls": dict(traffic.calls),
        }
    return found


def local(tensor: Tensor) -> Tensor:
    """What this process has of a tensor of the library's plan."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def full(tensor: Tensor) -> Tensor:
    """A tensor of the library's plan, put together from all processes."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def parameter_formula(task: SmallLlamaTask, plan: str, processes: int) -> float:
    """Bytes of parameters that a process holds.

    The projections of the layers are split, and by the library's plan the embedding and the head as well.
    """
    width, layers = task.hidden_size, task.num_hidden_layers
    key_value = width * task.num_key_value_heads // task.num_attention_heads
    projections = layers * (2 * width * width + 2 * width * key_value + 3 * width * task.intermediate_size)
    ends = 2 * VOCABULARY * width
    norms = (2 * layers + 1) * width
    split = projections + (ends if plan == BY_LIBRARY else 0)
    return FP32 * (split / processes + projections + ends + norms - split)


def traffic_formula(task: SmallLlamaTask, plan: str, processes: int) -> float:
    """Bytes that a process sends in a step, its collectives being rings.

    By hand a layer has the paper's 4 all-reduces of batch · length · width numbers. In the library's plan each of q, k, v,
    gate and up sums the gradient of its input by itself, which makes 7; the embedding and the head have 1 each, and the
    head's logits are gathered.
    """
    tokens = task.batch_size * task.max_length
    layers = task.num_hidden_layers
    reduced = ring_bytes("all-reduce", FP32 * tokens * task.hidden_size, processes)
    if plan == BY_HAND:
        return 4 * layers * reduced
    return (7 * layers + 2) * reduced + ring_bytes("all-gather", FP32 * tokens * VOCABULARY // processes, processes)
