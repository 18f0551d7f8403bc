"""MPMD: one program generates with the latest weights and another learns; against SPMD, where every rank does both.

Paper: Noukhovitch et al. 2024, Asynchronous RLHF: Faster and More Efficient Off-Policy RL for Language Models,
       arXiv 2410.18252, section 3 and figure 2; Barham et al. 2022, Pathways, arXiv 2203.12533, section 2, for the words.
Run:   python -m recipes.distributed.mpmd --config configs/distributed/mpmd/quickstart.yaml
"""

import statistics
from dataclasses import dataclass, field

from recipes.core import Run, TaskConfig, UserError, recipe
from recipes.distributed import rollout_and_learner, timeline
from recipes.distributed.mpmd_plot import draw
from recipes.distributed.processes import spawn
from recipes.distributed.small_llama import SmallLlamaConfig

LAST = 10  # updates whose mean reward is what a run has reached


@dataclass
class MpmdConfig(TaskConfig):
    """The policy-gradient job, and how far its two programs may be apart."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Each form runs with each of them."})
    updates_behind: int = field(
        default=1, metadata={"help": "Age in updates of the weights that generate, in the asynchronous form."}
    )
    cliprange: float = field(default=0.2, metadata={"help": "PPO's clip range of the ratio."})
    batch_size: int = field(default=64, metadata={"help": "Rows of an update, over both processes."})
    max_steps: int = field(default=60, metadata={"help": "Updates."})
    learning_rate: float = field(default=3e-3, metadata={"help": "AdamW's."})

    def __post_init__(self):
        if len(set(self.seeds)) < 2 or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise UserError(f"'seeds' must be two or more different numbers, to know the noise, not {self.seeds}")
        if self.batch_size < 4 or self.batch_size % 2:
            raise UserError(f"'batch_size' must be an even number of at least 4, not {self.batch_size}")
        for key, least in (("updates_behind", 1), ("max_steps", LAST)):
            if getattr(self, key) < least:
                raise UserError(f"'{key}' must be at least {least}, not {getattr(self, key)}")
        if self.cliprange <= 0:
            raise UserError(f"'cliprange' must be above 0, not {self.cliprange}")


@recipe
def main(run: Run, model: SmallLlamaConfig, method: MpmdConfig) -> None:
    job = rollout_and_learner.Job(model, method.batch_size, method.max_steps, method.learning_rate, method.cliprange)
    ranks = spawn(rollout_and_learner.compare, 2, job, method.seeds, method.updates_behind)

    forms = {}
    for name in ranks[0]:
        runs = list(zip(*(rank[name] for rank in ranks)))  # by seed, both processes of each
        over_all = [statistics.mean(first["rewards"]) for first, _ in runs]
        forms[name] = {
            "reward_reached": statistics.mean(statistics.mean(first["rewards"][-LAST:]) for first, _ in runs),
            "mean_reward": statistics.mean(over_all),
            "noise": statistics.stdev(over_all),
            "seconds_per_update": min(first["seconds"] for first, _ in runs) / method.max_steps,
            "utilisation": max(timeline.utilisation([rank["timeline"] for rank in both]) for both in runs),
            "bytes_sent_per_update": [rank["sent"] for rank in runs[0]],
            "rewards": [first["rewards"] for first, _ in runs],
        }
    one, same, behind = forms.values()

    run.start()
    draw(forms, {name: [rank[name][0]["timeline"] for rank in ranks] for name in forms}, run.output_dir / "plot.png")
    run.record(
        # The same samples, and so the same curve but for the order of sums.
        largest_deviation=max(abs(a - b) for x, y in zip(one["rewards"], same["rewards"]) for a, b in zip(x, y)),
        reward_reached=same["reward_reached"],
        reward_reached_behind=behind["reward_reached"],
        # Over all updates: how early it learns. The noise is the deviation over seeds.
        mean_reward=same["mean_reward"],
        mean_reward_behind=behind["mean_reward"],
        noise=one["noise"],
        milliseconds_per_update=1e3 * same["seconds_per_update"],
        milliseconds_per_update_behind=1e3 * behind["seconds_per_update"],
        forms=forms,
        baselines={
            "largest_deviation": 0,
            "reward_at_start": statistics.mean(rewards[0] for rewards in one["rewards"]),
            **{f"reward_reached{form}": one["reward_reached"] for form in ("", "_behind")},
            **{f"mean_reward{form}": one["mean_reward"] for form in ("", "_behind")},
            **{f"milliseconds_per_update{form}": 1e3 * one["seconds_per_update"] for form in ("", "_behind")},
        },
    )


if __name__ == "__main__":
    main()
