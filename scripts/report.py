"""The report of the main job: what each stage bought, from the result files of its stages.

Writes `report.md` for people and `result.json` for programs. With several runs folders (one a seed) the report has all of
them side by side.

Run: python -m scripts.report --variant quickstart --runs_dir runs
"""

import argparse
import os
import statistics
from pathlib import Path
from typing import Any

from recipes.core.config import in_runs_dir
from recipes.core.errors import UserError, report_user_errors
from recipes.core.files import read_json, write_json, write_text

STAGES = (
    "tokenization/train",
    "pretraining/causal",
    "finetuning/sft",
    "rlhf/judge",
    "rlhf/reward",
    "rlhf/ppo",
    "rlhf/evaluate",
)
TITLES = {"base": "base model", "sft": "SFT", "best_of_n": "best of n of SFT"}
TITLES |= {method: method.upper() for method in ("dpo", "kto", "rloo", "grpo", "ppo")}


def collect(runs_dir: Path, variant: str) -> dict[str, dict[str, Any]]:
    """The result of every stage that this variant has.

    Raises:
        UserError: the comparison, on which the report rests, was not made yet, or is not about PPO and SFT.
    """
    found = {stage: read_json(runs_dir / stage / variant / "result.json") for stage in STAGES}
    if found["rlhf/evaluate"] is None:
        raise UserError(
            f"{runs_dir}/rlhf/evaluate/{variant} was not made yet; make it with: make rlhf VARIANT={variant}"
        )
    missing = {"sft", "ppo"} - found["rlhf/evaluate"]["metrics"]["policies"].keys()
    if missing:
        raise UserError(
            f"{runs_dir}/rlhf/evaluate/{variant} has no policy '{min(missing)}'; the report needs sft and ppo by these names"
        )
    reference = found["rlhf/evaluate"]["settings"].get("reference", "sft")
    if reference != "sft":
        raise UserError(
            f"{runs_dir}/rlhf/evaluate/{variant} holds the policies against '{reference}'; the report needs reference: sft"
        )
    return {stage: result for stage, result in found.items() if result}


def figures(stages: dict[str, dict[str, Any]], runs_dir: Path) -> dict[str, Any]:
    """The figures of one chain of stages, by the names that `result.json` promises."""
    policies = stages["rlhf/evaluate"]["metrics"]["policies"]
    folders = {
        name: in_runs_dir(path, str(runs_dir))
        for name, path in stages["rlhf/evaluate"]["settings"]["policies"].items()
    }
    runs = {
        name: (read_json(Path(folder) / "result.json") or {}).get("metrics", {}) for name, folder in folders.items()
    }
    reward, ppo = stages.get("rlhf/reward", {}), policies["ppo"]
    return {
        "gold_score": {name: entry["gold_score"] for name, entry in policies.items()},
        "reward": {name: entry["reward"] for name, entry in policies.items()},
        "win_rate_ppo_vs_sft": {"win_rate": ppo["win_rate"], "low": ppo["low"], "high": ppo["high"]},
        "kl_ppo_to_sft": ppo["kl"],
        "kl": {name: entry["kl"] for name, entry in policies.items() if "kl" in entry},
        "lm_loss": {name: metrics["eval_lm_loss"] for name, metrics in runs.items() if "eval_lm_loss" in metrics},
        "reward_pair_accuracy": reward.get("metrics", {}).get("pair_accuracy"),
        "label_noise_ceiling": reward.get("baselines", {}).get("label_noise_ceiling"),
        "seconds": {stage: result["seconds"] for stage, result in stages.items()},
        "seed": stages["rlhf/evaluate"]["seed"],
    }


def gap_closed(entry: dict[str, Any], policy: str = "ppo") -> float | None:
    """Share of what the SFT model is short of a perfect gold score that a policy made up; None where 1 is not perfect."""
    gold = entry["gold_score"]
    if not all(0 <= score <= 1 for score in gold.values()) or gold["sft"] == 1:
        return None
    return (gold[policy] - gold["sft"]) / (1 - gold["sft"])


def trained(policies: dict[str, Any]) -> list[str]:
    """The policies that were trained from the SFT model: those that stand behind it."""
    names = list(policies)
    return [name for name in names[names.index("sft") + 1 :] if name != "best_of_n"]


def table(rows: list[list[str]]) -> str:
    header, *body = rows
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *body])


def comparison(policies: dict[str, dict[str, Any]]) -> str:
    rows = [
        ["policy", "gold score", "reward", "wins against SFT (95 %)", "KL to SFT, nats", "tokens", "ends by itself"]
    ]
    for name, entry in policies.items():
        wins = f"{entry['win_rate']:.1%} ({entry['low']:.1%}–{entry['high']:.1%})" if name != "sft" else "–"
        kl = "–" if name == "sft" else f"{'≤ ' if name == 'best_of_n' else ''}{entry['kl']:.2f}"
        numbers = [f"{entry['gold_score']:.3f}", f"{entry['reward']:.2f}", wins, kl]
        rows.append([TITLES.get(name, name), *numbers, f"{entry['response_length']:.1f}", f"{entry['eos_share']:.1%}"])
    return table(rows)


def one_report(runs_dir: Path, variant: str, stages: dict[str, dict[str, Any]], output_dir: Path) -> str:
    """The Markdown of one chain of stages."""
    entry, evaluate = figures(stages, runs_dir), stages["rlhf/evaluate"]
    at = Path(os.path.relpath(runs_dir, output_dir))
    policies = evaluate["metrics"]["policies"]
    accuracy, ceiling = entry["reward_pair_accuracy"], entry["label_noise_ceiling"]
    lines = [
        f"# RLHF: {variant}",
        "",
        f"{evaluate['metrics']['prompts']} held-out prompts, seed {entry['seed']}, answers sampled at temperature "
        f"{evaluate['settings'].get('temperature', 1.0)}. The reward model's score is what policies are trained on; "
        "the gold score was never trained on.",
        "",
        comparison(policies),
        "",
    ]
    for name in trained(policies):
        method, figure, gap = TITLES.get(name, name), policies[name], gap_closed(entry, name)
        closes = f"closes {gap:.0%} of what SFT is short of a perfect gold score, " if gap is not None else "is "
        lines += [
            f"- {method} wins {figure['win_rate']:.1%} of the prompts against SFT, a tie counting half; 95 % interval "
            f"{figure['low']:.1%} to {figure['high']:.1%}, by bootstrap over prompts.",
            f"- {method} {closes}at a KL of {figure['kl']:.2f} nats an answer to the SFT model.",
        ]
    if accuracy is not None:
        noise = f"; label noise allows {ceiling:.1%}" if ceiling is not None else ""
        lines.append(f"- The reward model agrees with {accuracy:.1%} of the held-out labels{noise}.")
    links = {"Answers of every policy side by side": f"rlhf/evaluate/{variant}/samples.md"}
    if "rlhf/ppo" in stages:
        links["PPO as it trained"] = f"rlhf/ppo/{variant}/curves.png"
    if "rlhf/reward" in stages:
        links["calibration of the reward model"] = f"rlhf/reward/{variant}/calibration.png"
    lines += [
        "",
        f"![scores against KL]({at}/rlhf/evaluate/{variant}/frontier.png)",
        "",
        "; ".join(f"[{text}]({at}/{path})" for text, path in links.items()) + ".",
        "",
        "## Best of n",
        "",
        table(
            [["n", "KL ≤, nats", "reward", "gold score"]]
            + [
                [str(point["n"]), f"{point['kl']:.2f}", f"{point['reward']:.2f}", f"{point['gold_score']:.3f}"]
                for point in evaluate["metrics"]["best_of_n"]
            ]
        ),
        "",
        "## Stages",
        "",
        table(
            [["stage", "seconds", "peak memory, MiB"]]
            + [
                [stage, f"{result['seconds']:.0f}", f"{result['peak_memory_mib']:.0f}"]
                for stage, result in stages.items()
            ]
        ),
        "",
        f"{sum(entry['seconds'].values()):.0f} s in all on {evaluate['hardware']['cores']} cores "
        f"({evaluate['hardware']['processor']}).",
    ]
    return "\n".join(lines)


def seeds_table(entries: list[dict[str, Any]]) -> str:
    """One row a seed and the mean with its spread."""
    columns = {
        "gold: base": lambda entry: entry["gold_score"].get("base"),
        "SFT": lambda entry: entry["gold_score"]["sft"],
        "best of n": lambda entry: entry["gold_score"]["best_of_n"],
        "PPO": lambda entry: entry["gold_score"]["ppo"],
        "gap closed": gap_closed,
        "win rate": lambda entry: entry["win_rate_ppo_vs_sft"]["win_rate"],
        "low": lambda entry: entry["win_rate_ppo_vs_sft"]["low"],
        "high": lambda entry: entry["win_rate_ppo_vs_sft"]["high"],
        "KL": lambda entry: entry["kl_ppo_to_sft"],
        "RM accuracy": lambda entry: entry["reward_pair_accuracy"],
        "ceiling": lambda entry: entry["label_noise_ceiling"],
    }
    further = [name for name in trained(entries[0]["gold_score"]) if name != "ppo"]
    for name in further:
        for key in ("gold_score", "reward", "kl"):
            columns[f"{TITLES.get(name, name)}: {key.replace('_', ' ')}"] = lambda e, key=key, name=name: e[key][name]
    if further:
        for name in entries[0]["lm_loss"]:
            columns[f"{TITLES.get(name, name)}: LM loss"] = lambda e, name=name: e["lm_loss"][name]
    columns = {name: get for name, get in columns.items() if get(entries[0]) is not None}
    rows = [["seed", *columns]]
    rows += [[str(entry["seed"]), *(f"{get(entry):.3f}" for get in columns.values())] for entry in entries]
    spread = [[get(entry) for entry in entries] for get in columns.values()]
    rows.append(
        ["mean ± s.d.", *(f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}" for values in spread)]
    )
    return table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--variant", default="quickstart")
    parser.add_argument("--runs_dir", type=Path, nargs="+", default=[Path("runs")])
    parser.add_argument("--output_dir", type=Path, help="default: <runs_dir>/rlhf")
    options = parser.parse_args()
    with report_user_errors():
        chains = {runs_dir: collect(runs_dir, options.variant) for runs_dir in options.runs_dir}
        output_dir = options.output_dir or options.runs_dir[0] / "rlhf"
        entries = [figures(stages, runs_dir) for runs_dir, stages in chains.items()]
        reports = [one_report(runs_dir, options.variant, stages, output_dir) for runs_dir, stages in chains.items()]
        if len(entries) > 1:
            reports.insert(0, f"# RLHF: {options.variant}, {len(entries)} seeds\n\n{seeds_table(entries)}\n")
        write_text(output_dir / "report.md", "\n\n".join(reports) + "\n")
        measured = entries[0] if len(entries) == 1 else {"seeds": entries}
        write_json(output_dir / "result.json", {"variant": options.variant, **measured})
        print(
            reports[0]
            if len(entries) > 1
            else comparison(next(iter(chains.values()))["rlhf/evaluate"]["metrics"]["policies"])
        )
        print(f"\n{output_dir}/report.md")


if __name__ == "__main__":
    main()
