"""The comparison for people: scores against KL as a plot, answers side by side as Markdown."""

import json
from pathlib import Path
from typing import Any

from recipes.core.files import write_atomically

GOLD_PREFIX = "reward/"


def training_curve(run_dir: Path, gold: str) -> dict[str, list[float]]:
    """KL, reward and gold score of each rollout, from a PPO run's log; empty lists where the log has none.

    Args:
        gold: name of the function that the run logged as `reward/<name>`.
    """
    curve: dict[str, list[float]] = {"kl": [], "reward": [], "gold_score": []}
    log = run_dir / "log.jsonl"
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else []:
        entry = json.loads(line)
        if "kl" in entry and f"{GOLD_PREFIX}{gold}" in entry:
            curve["kl"].append(entry["kl"])
            curve["reward"].append(entry["reward"])
            curve["gold_score"].append(entry[f"{GOLD_PREFIX}{gold}"])
    return curve


def draw_frontier(
    table: dict[str, dict[str, Any]],
    best_of_n: list[dict[str, float]],
    curves: dict[str, dict[str, list[float]]],
    reference: str,
    path: Path,
) -> None:
    """Two plots over KL to the reference: the proxy that policies are trained on, and what they should become better at.

    Policies that stand before the reference in the table are what it came from; their KL would be out of proportion.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    names = list(table)
    shown = [name for name in names[names.index(reference) + 1 :] if name != "best_of_n"]
    color = dict(zip(shown, colormaps["tab10"].colors * len(shown)))
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, (key, title) in zip(
        figure.subplots(1, 2),
        {"reward": "reward model (the proxy)", "gold_score": "gold score (never trained on)"}.items(),
    ):
        for name in filter(curves.get, shown):
            curve = curves[name]
            axes.plot(curve["kl"], curve[key], color=color[name], alpha=0.45, label=f"{name}, each rollout")
        axes.plot(
            [point["kl"] for point in best_of_n],
            [point[key] for point in best_of_n],
            color="black",
            marker=".",
            linestyle="--",
            label=f"best of n, n ≤ {best_of_n[-1]['n']}",
        )
        for name in shown:
            axes.plot(
                table[name]["kl"],
                table[name][key],
                marker="*",
                markersize=13,
                color=color[name],
                linestyle="",
                label=f"{name}, held out",
            )
        axes.axhline(table[reference][key], color="grey", linewidth=1, linestyle=":", label=reference)
        axes.set(title=title, xlabel="KL to the reference, nats an answer")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120))


def side_by_side(prompts: list, answers: dict[str, list[str]], gold: dict[str, Any], count: int) -> str:
    """The first prompts with every policy's answer and its gold score, as Markdown."""
    lines = ["# Answers side by side", "", "The first held-out prompts; the gold score stands in brackets.", ""]
    for index, prompt in enumerate(prompts[:count]):
        asked = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        lines += [f"**{_inline(asked)}**", ""]
        lines += [
            f"- {name} ({gold[name][index]:.2f}): {_inline(texts[index]) or '*(nothing)*'}"
            for name, texts in answers.items()
        ]
        lines += [""]
    return "\n".join(lines)


def _inline(text: str) -> str:
    """One line of Markdown without markup of its own."""
    text = " ".join(text.split())
    for sign in "\\`*_<>[]":
        text = text.replace(sign, "\\" + sign)
    return text
