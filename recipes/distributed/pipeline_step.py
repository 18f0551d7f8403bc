"""A step of a LLaMA whole, and by each of torch's schedules over a pipeline of processes; what was found, and when."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import Schedule1F1B, ScheduleGPipe

from recipes.distributed.deviation import largest_deviation
from recipes.distributed.pipeline_stage import LlamaStage, Span, WatchedStage, next_byte_loss
from recipes.distributed.processes import device

if TYPE_CHECKING:
    from recipes.distributed.pipeline_parallel import PipelineParallelConfig

SCHEDULES = {"GPipe": ScheduleGPipe, "1F1B": Schedule1F1B}


@dataclass
class Outcome:
    """What one process measured of one schedule.

    Attributes:
        loss: of the whole batch; the last stage's to know.
        gradient_deviation: of its layers from the whole model's.
        spans: of each timed step.
        in_flight, activation_bytes: the most micro-batches that waited for their backward, and the bytes they kept.
        first_bytes: those of one micro-batch.
        overruns: computations that took longer than the time they were to be stretched to.
    """

    schedule: str
    micro_batches: int
    loss: float | None
    gradient_deviation: float
    spans: list[list[Span]]
    in_flight: int
    activation_bytes: int
    first_bytes: int
    overruns: int


def whole_step(rank: int, task: "PipelineParallelConfig", rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of the whole model on the whole batch: what every schedule has to find."""
    model, rows = task.build(task.seed).to(device()), rows.to(device())
    loss = next_byte_loss(model(rows).logits, rows)
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def run_schedules(
    rank: int, task: "PipelineParallelConfig", rows: Tensor, gradients: dict[str, Tensor]
) -> list[Outcome]:
    """Every schedule with every number of micro-batches, this process being one stage of as many as there are.

    Args:
        rows: the whole batch (batch, length), which the schedules cut into micro-batches.
        gradients: the whole model's.
    """
    stage = LlamaStage(task.build(task.seed), rank, dist.get_world_size()).to(device())
    return [
        run_schedule(stage, name, count, task, rows.to(device()), gradients)
        for name in SCHEDULES
        for count in task.micro_batches
        if runs(name, dist.get_world_size(), count)
    ]


def runs(schedule: str, stages: int, micro_batches: int) -> bool:
    """Whether torch has the schedule for these: its 1F1B asks for a micro-batch a stage."""
    return schedule == "GPipe" or micro_batches >= stages


def run_schedule(
    module: LlamaStage,
    name: str,
    micro_batches: int,
    task: "PipelineParallelConfig",
    rows: Tensor,
    gradients: dict[str, Tensor],
) -> Outcome:
    """A step to find out what is sent, unwatched, and then the timed ones."""
    rank, stages = dist.get_rank(), dist.get_world_size()
    stage = WatchedStage(module, rank, stages)
    # The loss of the whole batch is the mean over micro-batches of equal size, and so torch scales the gradients.
    schedule = SCHEDULES[name](stage, micro_batches, loss_fn=next_byte_loss)
    spans: list[list[Span]] = []
    overruns = 0
    for repeat in range(1 + task.repeats):
        stage.watch(forward_seconds=(task.forward_ms or 0) / 1000 if repeat else 0.0)
        module.zero_grad()
        losses: list[Tensor] = []
        dist.barrier()
        inputs = (rows,) if rank == 0 else ()
        target = rows if rank == stages - 1 else None
        schedule.step(*inputs, target=target, losses=losses, return_outputs=False)
        if repeat:
            spans.append(stage.spans)
            overruns += stage.overruns
    here = {key: parameter.grad for key, parameter in module.named_parameters()}
    return Outcome(
        schedule=name,
        micro_batches=micro_batches,
        loss=torch.stack(losses).mean().item() if losses else None,
        gradient_deviation=largest_deviation({key: gradients[key].to(device()) for key in here}, here),
        spans=spans,
        in_flight=stage.in_flight,
        activation_bytes=stage.activations.peak,
        first_bytes=stage.first_bytes,
        overruns=overruns,
    )


def bubble(spans_by_rank: list[list[Span]]) -> float:
    """Share of all processes' time in which they computed nothing, from the first forward to the last backward."""
    spans = [span for spans in spans_by_rank for span in spans]
    lasted = max(span.ended for span in spans) - min(span.began for span in spans)
    return 1 - sum(span.ended - span.began for span in spans) / (lasted * len(spans_by_rank))


def bubble_formula(stages: int, micro_batches: int) -> float:
    """The share where all stages are equally slow and sending takes no time (GPipe, section 2.3)."""
    return (stages - 1) / (micro_batches + stages - 1)


def in_flight_formula(schedule: str, stages: int, micro_batches: int, stage: int = 0) -> int:
    """The most micro-batches that a stage keeps the activations of."""
    return micro_batches if schedule == "GPipe" else min(micro_batches, stages - stage)


def figures(loss: Tensor, pipelines: dict[int, list[list[Outcome]]]) -> list[dict[str, Any]]:
    """One row for each number of stages, schedule and number of micro-batches; memory is that of the first stage.

    Args:
        loss: the whole model's.
        pipelines: by number of stages, each rank's outcomes.
    """
    rows = []
    for stages, ranks in pipelines.items():
        for outcomes in zip(*ranks):
            first, last = outcomes[0], outcomes[-1]
            bubbles = sorted(bubble(spans) for spans in zip(*(outcome.spans for outcome in outcomes)))
            rows.append(
                {
                    "stages": stages,
                    "schedule": first.schedule,
                    "micro_batches": first.micro_batches,
                    "loss_deviation": abs(last.loss - loss.item()),
                    "gradient_deviation": max(outcome.gradient_deviation for outcome in outcomes),
                    "bubble": bubbles[len(bubbles) // 2],
                    "bubble_formula": bubble_formula(stages, first.micro_batches),
                    "in_flight": first.in_flight,
                    "in_flight_formula": in_flight_formula(first.schedule, stages, first.micro_batches),
                    "activations_mib": first.activation_bytes / 2**20,
                    "activations_over_one_micro_batch": first.activation_bytes / first.first_bytes,
                    "overruns": sum(outcome.overruns for outcome in outcomes),
                }
            )
    return rows
