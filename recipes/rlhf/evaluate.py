"""Comparison of policies on held-out prompts: reward, gold score, win rate, KL, length, and best-of-n beside them.

Paper: Gao et al. 2022, Scaling Laws for Reward Model Overoptimization, arXiv 2210.10760, for proxy and gold against KL;
       Nakano et al. 2021, WebGPT, arXiv 2112.09332, for best-of-n.
Run:   python -m recipes.rlhf.evaluate --config configs/rlhf/evaluate/quickstart.yaml
"""

from dataclasses import dataclass, field
from pathlib import Path

from recipes.core import DataConfig, Run, TaskConfig, UserError, recipe
from recipes.core.errors import did_you_mean
from recipes.rlhf.comparison import best_of_n, kl_of_samples, score, summary
from recipes.rlhf.contestants import check_prompts, check_vocabularies, open_judge, open_policy
from recipes.rlhf.evaluate_plots import draw_frontier, side_by_side, training_curve
from recipes.rlhf.ppo_data import as_conversations
from recipes.rlhf.rewards import check_reward
from recipes.rlhf.sampling import sample


@dataclass
class EvaluateConfig(TaskConfig):
    """Which policies are compared, and by whom they are judged."""

    policies: dict[str, str] = field(
        default_factory=dict, metadata={"help": "Name: folder, run or Hub name, in the table's order."}
    )
    reference: str = field(default="sft", metadata={"help": "The policy that wins and KL are measured against."})
    reward_model: str = field(
        default="", metadata={"help": "What the policy was trained on: a model or package.module:function."}
    )
    gold: str = field(default="", metadata={"help": "What the policy was not trained on: the judge of wins."})
    best_of_n: list[int] = field(
        default_factory=lambda: [1, 2, 4, 8, 16],
        metadata={"help": "Sizes n; the reference's samples, the best by reward."},
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "Ask plain prompts as a conversation that this system message begins."}
    )
    response_length: int = field(default=53, metadata={"help": "Most tokens that an answer may have."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature; that of PPO's rollouts."})
    samples: int = field(default=10, metadata={"help": "Answers of every policy to show side by side."})

    def __post_init__(self):
        for key in ("policies", "reward_model", "gold"):
            if not getattr(self, key):
                raise UserError(f"required key '{key}' is missing or empty")
        if self.reference not in self.policies:
            raise UserError(f"reference: no policy '{self.reference}'{did_you_mean(self.reference, self.policies)}")
        for key, low in {"response_length": 1, "temperature": 0, "samples": 0}.items():
            if getattr(self, key) < low:
                raise UserError(f"{key} must be at least {low}, not {getattr(self, key)}")
        if not self.best_of_n or min(self.best_of_n) < 1:
            raise UserError("'best_of_n' must list whole numbers of at least 1, such as [1, 4, 16]")

    def check_names(self) -> None:
        for name in (self.reward_model, self.gold):
            check_reward(name)


@recipe
def main(run: Run, data: DataConfig, method: EvaluateConfig) -> None:
    splits = as_conversations(data.load(("prompt",)), method.system_prompt)
    if "test" not in splits:
        raise UserError(
            "dataset_test_split: the policies are compared on a test split; name one, or set test_split_size"
        )
    rows = splits["test"]
    prompts, drawing = rows["prompt"][:], (method.response_length, method.temperature, method.seed)
    judges = {"reward": open_judge(method.reward_model), "gold_score": open_judge(method.gold)}
    check_vocabularies(method.policies, method.reference)
    reference_tokenizer, reference = open_policy(method.policies[method.reference])

    columns, texts = {}, {}
    for name, path in method.policies.items():
        tokenizer, policy = open_policy(path)
        check_prompts(prompts, tokenizer, policy, method.response_length)
        answers = sample(policy, tokenizer, prompts, *drawing)
        texts[name] = answers.texts
        columns[name] = {judge: score(rows[:], answers, judges[judge], tokenizer) for judge in judges}
        columns[name] |= {
            "kl": kl_of_samples(policy, reference, answers, method.temperature),
            "response_length": answers.lengths.cpu().numpy(),
            "eos_share": answers.ended.cpu().numpy(),
        }
    points, columns["best_of_n"], texts["best_of_n"] = best_of_n(
        reference, reference_tokenizer, rows, judges, method.best_of_n, *drawing
    )
    table = {name: summary(figures, columns[method.reference]) for name, figures in columns.items()}
    table["best_of_n"]["kl"] = points[-1]["kl"]

    run.start()
    curves = {name: training_curve(Path(path), judges["gold_score"].name) for name, path in method.policies.items()}
    curves = {name: curve for name, curve in curves.items() if curve["kl"]}
    gold = {name: figures["gold_score"] for name, figures in columns.items()}
    draw_frontier(table, points, curves, method.reference, run.output_dir / "frontier.png")
    run.write("samples.md", side_by_side(prompts, texts, gold, method.samples))
    headline = {f"gold_score_{name}": figures["gold_score"] for name, figures in table.items()}
    headline |= {
        f"win_rate_{name}": figures["win_rate"] for name, figures in table.items() if name != method.reference
    }
    run.record(prompts=len(rows), **headline, policies=table, best_of_n=points)


if __name__ == "__main__":
    main()
