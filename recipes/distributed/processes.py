"""Real processes on this machine that all run one function, each with its rank, and what each of them returned."""

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from recipes.core import UserError


def spawn(worker: Callable[..., Any], processes: int, *arguments: Any) -> list[Any]:
    """Run `worker(rank, *arguments)` in `processes` new processes of one group; their results, by rank.

    The group is nccl's, one GPU a process, where the machine has that many GPUs, else gloo's on the CPU, whose cores are
    shared out. Results travel through files, so tensors in them are copies on the CPU.

    Args:
        worker: a function at the top level of a module.
        processes: size of the group, at least 1.

    Raises:
        UserError: fewer than one process.
        torch.multiprocessing.ProcessRaisedException: the first process to fail, with its traceback; the others are ended.
    """
    if processes < 1:
        raise UserError(f"'processes' must be at least 1, not {processes}")
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.start_processes(
            _join, (processes, folder, _free_port(), worker, arguments), processes, start_method="spawn"
        )
        return [
            torch.load(Path(folder, str(rank)), map_location="cpu", weights_only=False) for rank in range(processes)
        ]


def device() -> torch.device:
    """Where this process computes: its own GPU in an nccl group, else the CPU."""
    return torch.device("cuda", dist.get_rank()) if dist.get_backend() == "nccl" else torch.device("cpu")


def _join(rank: int, processes: int, folder: str, port: int, worker: Callable[..., Any], arguments: tuple) -> None:
    """Join the group, work, leave the result in a file, leave the group."""
    # What `accelerate launch` would have set, for libraries that read it.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    on_gpus = torch.cuda.device_count() >= processes
    if on_gpus:
        torch.cuda.set_device(rank)
    # A file, not the port, is where they meet: no other program can take it in between.
    dist.init_process_group(
        "nccl" if on_gpus else "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=processes
    )
    try:
        torch.save(worker(rank, *arguments), Path(folder, str(rank)))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
