"""A comparison for people: one table, and one plot of the score against the trained parameters."""

from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from recipes.core.files import read_json, write_atomically

if TYPE_CHECKING:
    from recipes.finetuning.comparison import ComparisonConfig

FAMILIES = {  # of methods: colour, and the words that their names begin with
    "all weights or the head": ("black", ("full", "frozen")),
    "adapter layers": ("tab:green", ("houlsby", "pfeiffer")),
    "low rank": ("tab:blue", ("lora", "dora", "rslora", "adalora", "qlora")),
    "prompts": ("tab:orange", ("prompt", "p-tuning", "prefix")),
    "biases and scales": ("tab:red", ("bitfit", "ia3")),
}
COLUMNS = (
    "method",
    "score",
    "learning rate",
    "trained parameters",
    "share",
    "seconds",
    "peak MiB",
    "KiB on disk",
    "merges",
)


def summary(
    name: str,
    best: float | None,
    searched: dict[Any, dict[str, Any] | None],
    finished: dict[Any, dict[str, Any] | None],
    compared: "ComparisonConfig",
) -> dict[str, Any]:
    """What a method's runs say: the score of each seed and their mean, what it cost, and every rate that was tried.

    Returns:
        `score` and `spread` (standard deviation over seeds), `scores`, `search` (rate: score on held-out rows, None where
        the loss did not stay finite), and of the final runs the largest memory and the means of the rest.
    """
    own = compared.own[name]["learning_rate"]
    search = {
        f"{rate * own:.3g}": result and result["metrics"].get(compared.score)
        for (method, rate), result in searched.items()
        if method == name
    }
    runs = {seed: result for (method, seed), result in finished.items() if method == name}
    results = [result for result in runs.values() if result]
    row: dict[str, Any] = {"score": None, "spread": None, "search": search}
    if len(results) < max(1, len(runs)):
        return row  # nothing to average: a seed diverged, or every rate did
    scores = [result["metrics"][compared.score] for result in results]
    folder = Path(results[0]["settings"]["output_dir"])
    return {
        "score": mean(scores),
        "spread": stdev(scores) if len(scores) > 1 else None,
        "scores": scores,
        "learning_rate": float(f"{best * own:.3g}"),
        "trained_parameters": results[0]["trained_parameters"],
        "share": results[0]["trained_parameters"] / results[0]["parameters"],
        "seconds": mean(result["seconds"] for result in results),
        "peak_memory_mib": max(result["peak_memory_mib"] for result in results),
        "kib_on_disk": sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1024,
        "merges": merges(folder),
        "search": search,
    }


def merges(folder: Path) -> bool | None:
    """Whether the adapter in a folder can become part of its base's weights; None where there is no adapter."""
    from peft import PeftConfig
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    import recipes.adapters  # noqa: F401  registers its methods with PEFT

    if read_json(folder / "adapter_config.json") is None:
        return None
    config = PeftConfig.from_pretrained(str(folder))
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    return not config.is_prompt_learning and getattr(tuner, "why_not_merged", None) is None


def markdown(rows: dict[str, dict[str, Any]], score: str) -> str:
    """The table, in the order of the methods; a dash where there is nothing to say."""
    lines = [
        "| " + " | ".join(COLUMNS).replace("score", score.replace("_", " "), 1) + " |",
        "| --- " + "| ---: " * 7 + "| --- |",
    ]
    for name, row in rows.items():
        if row["score"] is None:
            lines.append(f"| {name} | its loss did not stay finite |" + " – |" * 7)
            continue
        spread = f" ± {row['spread']:.3f}" if row["spread"] is not None else ""
        cells = [
            name,
            f"{row['score']:.3f}{spread}",
            f"{row['learning_rate']:g}",
            f"{row['trained_parameters']:,}",
            f"{100 * row['share']:.2f} %",
            f"{row['seconds']:.0f}",
            f"{row['peak_memory_mib']:.0f}",
            f"{row['kib_on_disk']:,.0f}",
            {True: "yes", False: "no", None: "–"}[row["merges"]],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: dict[str, dict[str, Any]], score: str, path: Path) -> None:
    """Score against trained parameters (log scale), a bar for the spread, each point named, coloured by family."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = {name: row for name, row in rows.items() if row["score"] is not None}
    if not shown:
        return
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)  # it knows how large a text is
    axes = figure.add_subplot()
    for family, (colour, beginnings) in FAMILIES.items():
        members = {
            name: row for name, row in shown.items() if name.startswith(beginnings) and family_of(name) == family
        }
        if members:
            axes.errorbar(
                [row["trained_parameters"] for row in members.values()],
                [row["score"] for row in members.values()],
                yerr=[row["spread"] or 0.0 for row in members.values()],
                fmt="o",
                color=colour,
                capsize=3,
                label=family,
            )
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.1)
    figure.draw_without_rendering()  # places the axes, so that names can be put beside points without overlap
    taken: list[Any] = []
    for name, row in sorted(shown.items(), key=lambda each: each[1]["trained_parameters"]):
        name_point(axes, name, (row["trained_parameters"], row["score"]), taken)
    axes.set_xlabel("trained parameters")
    axes.set_ylabel(f"{score.replace('_', ' ')}, mean and standard deviation over seeds")
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=8)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110))


def family_of(name: str) -> str:
    """The family whose beginning fits best: `prompt-tuning` is not `p-tuning`."""
    fits = [(len(word), family) for family, (_, words) in FAMILIES.items() for word in words if name.startswith(word)]
    return max(fits)[1] if fits else next(iter(FAMILIES))


def name_point(axes: Any, name: str, point: tuple[float, float], taken: list[Any]) -> None:
    """Write a name at the nearest place around a point, inside the axes, that no other name has taken."""
    renderer, inside = axes.figure.canvas.get_renderer(), axes.get_window_extent()
    offsets = [(x, y) for y in (4, -10, 14, -20, 24, -30, 34, -40, 44, -50) for x in (6, -6)]
    for x, y in offsets:
        text = axes.annotate(
            name, point, (x, y), textcoords="offset points", fontsize=8, ha="left" if x > 0 else "right"
        )
        box = text.get_window_extent(renderer)
        if inside.x0 < box.x0 and box.x1 < inside.x1 and not any(box.overlaps(other) for other in taken):
            break
        text.remove()
    else:
        text = axes.annotate(name, point, (6, 4), textcoords="offset points", fontsize=8)
        box = text.get_window_extent(renderer)
    taken.append(box)
