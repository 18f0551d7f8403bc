"""One policy-gradient job as one program on all processes (SPMD), and as two programs that talk (MPMD).

The job: a small language model is rewarded for the share of lower-case letters in the bytes that it writes. The loss is
PPO's clipped one (Schulman et al. 2017, arXiv 1707.06347, eq. 7) with rewards held against those of the other rows of the
batch (Kool et al. 2019, Buy 4 REINFORCE Samples, Get a Baseline for Free!) in place of a critic: with samples of the
latest weights, where the ratio is 1, it is REINFORCE with a leave-one-out baseline.

    SPMD     every rank:  generate its share ─ learn from its share ─ average gradients ─ generate …

    MPMD     rollout:     generate ──┐                      ┌─ generate ──┐
             learner:                └─ learn ─ (weights) ──┘             └─ learn ─ …

    behind   rollout:     generate ──┬─ generate ──┬─ generate …     with weights that are one update old
             learner:                └─ learn ─────┴─ learn …        while the learner is at work

The random numbers belong to (seed, update, share) and not to a process, so that SPMD and MPMD draw the same samples.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from recipes.distributed.gradient_averaging import GradientAverager
from recipes.distributed.point_to_point import Wire, sent_bytes
from recipes.distributed.processes import device
from recipes.distributed.small_llama import SmallLlamaConfig
from recipes.distributed.timeline import Timeline

SHARES = 2  # of a batch: one a rank under SPMD; the rollout program generates one after the other
ROLLOUT, LEARNER = 0, 1


@dataclass
class Job:
    """What is learned, whoever does it."""

    shape: SmallLlamaConfig
    batch_size: int
    max_steps: int
    learning_rate: float
    cliprange: float

    def start(self, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = self.shape.build(seed).to(device())
        return model, torch.optim.AdamW(model.parameters(), self.learning_rate, weight_decay=0.0)

    @torch.no_grad()
    def generate(self, model: nn.Module, seed: int, update: int, share: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One share of a batch: rows (rows, max_length) that begin with a random byte, and what else was drawn.

        Returns:
            the rows, and the log-probability of each byte after the first when it was drawn (rows, max_length − 1).
        """
        generator = torch.Generator(device()).manual_seed(hash((seed, update, share)) % 2**63)
        rows = torch.randint(0, 256, (self.batch_size // SHARES, 1), generator=generator, device=device())
        drawn, cache = [], None
        while rows.shape[1] < self.shape.max_length:
            output = model(input_ids=rows[:, -1:], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logprobs = output.logits[:, -1].log_softmax(-1)
            byte = torch.multinomial(logprobs.exp(), 1, generator=generator)
            rows = torch.cat([rows, byte], 1)
            drawn.append(logprobs.gather(1, byte))
        return rows, torch.cat(drawn, 1)

    def loss(
        self, model: nn.Module, rows: torch.Tensor, drawn: torch.Tensor, advantages: torch.Tensor
    ) -> torch.Tensor:
        """PPO's clipped loss over all bytes; `advantages` has one number a row."""
        logprobs = model(input_ids=rows[:, :-1]).logits.log_softmax(-1).gather(2, rows[:, 1:, None])[..., 0]
        ratio = (logprobs - drawn).exp()
        clipped = ratio.clamp(1 - self.cliprange, 1 + self.cliprange)
        return -torch.minimum(ratio * advantages[:, None], clipped * advantages[:, None]).mean()


def reward(rows: torch.Tensor) -> torch.Tensor:
    """Share of lower-case letters in the written bytes of each row."""
    written = rows[:, 1:]
    return ((written >= ord("a")) & (written <= ord("z"))).float().mean(1)


def against_the_others(rewards: torch.Tensor) -> torch.Tensor:
    """Each reward minus the mean of all others: the leave-one-out baseline."""
    return (rewards - rewards.mean()) * len(rewards) / (len(rewards) - 1)


# ----------------------------------------------------------------------------------------------------------------- SPMD
def spmd(rank: int, job: Job, seed: int) -> dict[str, Any]:
    """Both ranks generate, both learn.

    Returns:
        `rewards`, the mean of each update's batch; this rank's `timeline`, in which to learn includes to average, and so
        to wait for the other; `sent`, bytes this rank sends for an update.
    """
    model, optimizer = job.start(seed)
    averager = GradientAverager(model, float("inf"))
    timeline, means = Timeline(), []
    for update in range(job.max_steps):
        with timeline("generate"):
            rows, drawn = job.generate(model, seed, update, rank)
        mine = reward(rows)
        dist.all_gather_single(rewards := mine.new_empty(job.batch_size), mine)
        means.append(rewards.mean().item())
        with timeline("learn"):
            advantages = against_the_others(rewards).chunk(SHARES)[rank]
            job.loss(model, rows, drawn, advantages).backward()
            averager.finish()
            optimizer.step()
            optimizer.zero_grad()
    gradients = sum(parameter.nbytes for parameter in model.parameters())
    sent = sent_bytes("all_reduce", rank, SHARES, gradients) + sent_bytes("all_gather", rank, SHARES, rewards.nbytes)
    return {"rewards": means, "timeline": timeline.spans, "sent": sent}


# ----------------------------------------------------------------------------------------------------------------- MPMD
def mpmd(rank: int, job: Job, seed: int, behind: int, group: dist.ProcessGroup) -> dict[str, Any]:
    """The two programs, each on its process; returns what `spmd` does.

    Args:
        group: for the weights alone: in one group with the rows, nccl would let them wait for each other.
        behind: by how many updates the weights that generate may be older than the latest; 0 makes each wait for the other.
    """
    return (rollout if rank == ROLLOUT else learn)(job, seed, behind, Wire(group))


def rollout(job: Job, seed: int, behind: int, weights_wire: Wire) -> dict[str, Any]:
    """The program of ROLLOUT: generate with the weights that come; send rows, log-probabilities and rewards."""
    model, _ = job.start(seed)
    weights = parameters_to_vector(model.parameters()).detach()
    wire, timeline, means = Wire(), Timeline(), []
    for update in range(job.max_steps):
        if update > behind:
            weights_wire.receive(weights, LEARNER)
            vector_to_parameters(weights, model.parameters())
        with timeline("generate"):
            rows, drawn = map(torch.cat, zip(*(job.generate(model, seed, update, share) for share in range(SHARES))))
        rewards = reward(rows)
        means.append(rewards.mean().item())
        for tensor in (rows, drawn, rewards):
            wire.send(tensor, LEARNER)
    return {"rewards": means, "timeline": timeline.spans, "sent": wire.sent / job.max_steps}


def learn(job: Job, seed: int, behind: int, weights_wire: Wire) -> dict[str, Any]:
    """The program of LEARNER: learn from the rows that come; send the weights, without waiting until they are fetched."""
    model, optimizer = job.start(seed)
    wire, timeline, means = Wire(), Timeline(), []
    rows = torch.empty(job.batch_size, job.shape.max_length, dtype=torch.long, device=device())
    drawn = torch.empty(job.batch_size, job.shape.max_length - 1, device=device())
    rewards = torch.empty(job.batch_size, device=device())
    on_their_way = []
    for update in range(job.max_steps):
        for tensor in (rows, drawn, rewards):
            wire.receive(tensor, ROLLOUT)
        means.append(rewards.mean().item())
        with timeline("learn"):
            job.loss(model, rows, drawn, against_the_others(rewards)).backward()
            optimizer.step()
            optimizer.zero_grad()
        if update + behind + 1 < job.max_steps:  # else nothing will be generated with them any more
            while len(on_their_way) > behind:  # these were fetched before the rows just learned from were made
                on_their_way.pop(0).wait()
            weights = parameters_to_vector(model.parameters()).detach()
            on_their_way.append(weights_wire.start_to_send(weights, ROLLOUT))
    for work in on_their_way:
        work.wait()
    return {"rewards": means, "timeline": timeline.spans, "sent": weights_wire.sent / job.max_steps}


# -------------------------------------------------------------------------------------------------------------- compare
def compare(rank: int, job: Job, seeds: list[int], behind: int) -> dict[str, list[dict[str, Any]]]:
    """All three forms with each seed, by the form's name; each with its `seconds`."""
    group = dist.new_group()
    forms = {
        "SPMD": lambda seed: spmd(rank, job, seed),
        "MPMD": lambda seed: mpmd(rank, job, seed, 0, group),
        "MPMD behind": lambda seed: mpmd(rank, job, seed, behind, group),
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in forms}
    for seed in seeds:
        for name, form in forms.items():
            dist.barrier()
            began = time.monotonic()
            result = form(seed)
            dist.barrier()
            found[name].append({**result, "seconds": time.monotonic() - began})
    return found
