"""One process of a run that `scripts.bench.plan` measures: trains a recipe's config, and writes down what it took.

Memory is the peak of resident memory while training, above what the process had once everything was imported; what the
program has freed goes back to the kernel at once, so that what is resident is what is alive. Traffic is
what the kernel counted on the process's own TCP connections (gloo's), from the second optimizer step to the last.

Run by scripts.bench.plan, under an accelerate profile: python -m scripts.bench.plan_worker RECIPE OUT --config FILE
"""

import ctypes
import importlib
import json
import os
import socket
import struct
import sys
import threading
import time
from pathlib import Path

import transformers.trainer
from transformers import TrainerCallback

BYTES_SENT = 200  # offset of tcpi_bytes_sent in the kernel's struct tcp_info


def resident(field: str = "VmRSS") -> int:
    """Bytes of resident memory of this process: now (VmRSS), or at its peak (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def forget_peak() -> None:
    """Has the kernel count the peak of resident memory from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def give_back(every: float = 0.01) -> None:
    """Has the C library give freed memory back to the kernel, from now on, every so many seconds.

    PPO frees much between its phases that glibc would keep in the middle of its heap: 0.4 to 1.2 GiB beside 0.8 GiB alive.
    """
    trim = ctypes.CDLL("libc.so.6").malloc_trim

    def forever() -> None:
        while True:
            trim(0)
            time.sleep(every)

    threading.Thread(target=forever, daemon=True).start()


def bytes_sent() -> int:
    """Bytes this process has sent on its TCP connections that are open."""
    total = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            if not os.readlink(descriptor).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(descriptor.name))) as connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM:
                    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_SENT + 8)
                    total += struct.unpack_from("Q", info, BYTES_SENT)[0]
        except OSError:  # closed in between
            continue
    return total


class Meter(TrainerCallback):
    """After each optimizer step: its peak of memory, and all that was sent so far."""

    def __init__(self):
        self.steps: list[dict[str, int]] = []

    def on_train_begin(self, args, state, control, **kwargs):
        forget_peak()

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append({"peak": resident("VmHWM"), "sent": bytes_sent()})
        forget_peak()


def main() -> None:
    recipe, out, *argv = sys.argv[1:]
    import deepspeed  # noqa: F401  # imported here, so that no profile pays for it while it trains

    command = importlib.import_module("recipes." + recipe.replace("/", ".")).main
    meter = Meter()
    transformers.trainer.DEFAULT_CALLBACKS.append(meter)
    give_back()
    baseline = resident()
    command(argv)
    rank = os.environ.get("RANK", "0")
    result = {"baseline": baseline, "steps": meter.steps}
    Path(f"{out}.{rank}").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
