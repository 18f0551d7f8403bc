"""The processes that `accelerate launch` started: joining them, leaving them, and what an earlier one left in the way."""

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from recipes.core.errors import UserError


def connect_processes(timeout: int = 1800) -> None:
    """Join the processes of `accelerate launch`, over gloo where the machine has no accelerator.

    Without this, accelerate lets processes on a CPU machine train side by side, each on all of the data.

    Args:
        timeout: seconds that a process waits for the others: TrainingArguments' `ddp_timeout`, which comes too late.

    Raises:
        UserError: there are more processes than accelerators, or they did not find each other.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return
    import torch
    from accelerate import PartialState

    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if torch.accelerator.is_available() and here > torch.accelerator.device_count():
        raise UserError(
            f"{here} processes were started on a machine with {torch.accelerator.device_count()} accelerators: "
            "set --num_processes to at most that"
        )
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" and os.environ.get("LOCAL_RANK", "0") == "0":
        discard_abandoned_builds()

    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        mend_fsdp2()
        if not torch.accelerator.is_available():
            allow_fsdp_on_cpus()
    patience = timedelta(seconds=timeout)
    joined = PartialState(cpu=not torch.accelerator.is_available(), timeout=patience).num_processes
    if joined != world:
        raise UserError(f"{world} processes were started and {joined} joined; launch with a profile of configs/launch")


def allow_fsdp_on_cpus() -> None:
    """Have accelerate do FSDP between processes on CPUs too, where it would leave it out and train data parallel instead."""
    from accelerate.state import AcceleratorState, DistributedType, PartialState

    init = AcceleratorState.__init__

    @functools.wraps(init)
    def with_fsdp(self, *args, fsdp_plugin=None, **kwargs) -> None:
        init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = self.distributed_type

    AcceleratorState.__init__ = with_fsdp


def mend_fsdp2() -> None:
    """Have accelerate's FSDP2 take every model of transformers.

    It knows one weight that embedding and head may share, and puts both into one unit. But an encoder-decoder's embedding
    has three places, and BERT's is in a module that the model wants in a unit of its own; each would be in two units, which
    FSDP2 cannot shard. Such weights stay in the unit of what is around the layers. And it takes every buffer that is saved
    for a weight that is sharded, as BART's bias of the logits is not. And it wants every kind of layer that a model may
    have, such as cross-attention, to be there.
    """
    import accelerate.accelerator
    import torch.distributed
    from accelerate.utils import FullyShardedDataParallelPlugin

    prepare, set_policy = (
        accelerate.accelerator.fsdp2_prepare_model,
        FullyShardedDataParallelPlugin.set_auto_wrap_policy,
    )

    @functools.wraps(set_policy)
    def set_policy_of_layers_there(self, model: Any) -> None:
        if self.transformer_cls_names_to_wrap is None:
            there = {type(module).__name__ for module in model.modules()}
            self.transformer_cls_names_to_wrap = sorted(there & set(getattr(model, "_no_split_modules", None) or ()))
        set_policy(self, model)

    @functools.wraps(prepare)
    def prepare_any(accelerator: Any, model: Any) -> Any:
        saved = set(model.state_dict())
        buffers = [name for name, _ in model.named_buffers() if name in saved]
        owners = [(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in buffers]
        for owner, name in owners:
            owner._non_persistent_buffers_set.add(name)
        with shared_weights_together(accelerator.state.fsdp_plugin, model):
            model = prepare(accelerator, model)
        for owner, name in owners:
            owner._non_persistent_buffers_set.discard(name)
            torch.distributed.broadcast(owner._buffers[name], 0)  # others may have loaded nothing
        return model

    FullyShardedDataParallelPlugin.set_auto_wrap_policy = set_policy_of_layers_there
    accelerate.accelerator.fsdp2_prepare_model = prepare_any


@contextlib.contextmanager
def shared_weights_together(plugin: Any, model: Any) -> Iterator[None]:
    """Meanwhile the units that `plugin` makes of `model` have all places of a weight or none."""
    places: dict[int, set[int]] = {}
    for module in model.modules():
        for weight in module._parameters.values():
            if weight is not None:
                places.setdefault(id(weight), set()).add(id(module))
    shared = [modules for modules in places.values() if len(modules) > 1]
    ends = {id(getattr(model, find, _none)()) for find in ("get_input_embeddings", "get_output_embeddings")}
    layers = list(plugin.transformer_cls_names_to_wrap or getattr(model, "_no_split_modules", None) or ())
    inside = {
        name: [{id(part) for part in module.modules()} for module in model.modules() if type(module).__name__ == name]
        for name in layers
    }
    cut = {
        name for name in layers for parts in inside[name] for modules in shared if modules & parts and modules - parts
    }
    if not cut and all(modules <= ends for modules in shared):
        yield
        return
    plugin.transformer_cls_names_to_wrap = [name for name in layers if name not in cut]
    vars(model).update(get_input_embeddings=_none, get_output_embeddings=_none)
    try:
        yield
    finally:
        del model.get_input_embeddings, model.get_output_embeddings


def _none() -> None:
    """No module."""


def discard_abandoned_builds() -> None:
    """Remove the locks of kernel builds whose process was killed; PyTorch would wait for them for ever, without a word.

    DeepSpeed compiles kernels when it is first used. A lock that no process has open is abandoned, which Linux can tell;
    on another system nothing is removed.
    """
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    locks = [lock for lock in root.glob("**/lock") if lock.is_file()]
    if not locks or not Path("/proc/self/fd").is_dir():
        return
    opened = {_target(descriptor) for descriptor in Path("/proc").glob("[0-9]*/fd/*")}
    for lock in locks:
        if str(lock.resolve()) not in opened:
            lock.unlink(missing_ok=True)
            print(f"removed {lock}, which a build that was killed had left", file=sys.stderr)


def _target(link: Path) -> str | None:
    try:
        return os.readlink(link)
    except OSError:  # the process has ended, or is another user's
        return None


def end_processes() -> Any:
    """Leave the process group in order, so that no rank complains about the others."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
