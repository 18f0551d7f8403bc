"""A plan for people: two tables in the terminal, and a plot of the memory."""

from pathlib import Path

from recipes.core.files import write_atomically
from recipes.planner.hardware import GIB, Cluster
from recipes.planner.memory import moments, shares
from recipes.planner.plan import SYNC_EACH_BATCH, Plan, best, changes, gpu_hours, more_gpus, tokens_of
from recipes.planner.workload import Workload

PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "others": "other models",
    "gathered": "gathered",
    "activations": "activations",
    "logits": "logits",
    "cache": "KV cache",
    "overhead": "overhead",
}
SPENT = {
    "computing": "computing",
    "waiting": "waiting for messages",
    "bubble": "pipeline empty",
    "offloading": "offloading",
    "sampling": "sampling",
}


def report(workload: Workload, cluster: Cluster, plans: list[Plan]) -> str:
    """All that `python -m recipes plan` prints."""
    tables = (memory_table(plans), time_table(workload, cluster, plans))
    return "\n\n".join([_head(workload, cluster), *tables, _conclusion(workload, cluster, plans)])


def _head(workload: Workload, cluster: Cluster) -> str:
    model, gpu = workload.architecture, cluster.gpu
    numbers = f"weights {str(workload.weights).removeprefix('torch.')}, bf16 {'on' if workload.bf16 else 'off'}"
    lengths = f"{workload.length:,}" + (f" + {workload.written:,}" if workload.written else "")
    if workload.quantised:
        numbers += f", base in {workload.quantised}"
    lines = [
        f"{workload.name}: {model.name}, {model.parameters / 1e9:.3f} B parameters, {workload.trained / 1e9:.3f} B trained",
        f"a micro-batch of {workload.sequences} × {lengths} tokens, {workload.accumulation} to a step, {numbers}, "
        f"checkpointing {'on' if workload.checkpointing else 'off'}, {workload.optimizer}, {workload.kernel} attention",
        f"{cluster.gpus} × {gpu.name} ({gpu.memory_gib:g} GiB) in {cluster.nodes} "
        f"{'node' if cluster.nodes == 1 else 'nodes'}; {gpu.link} {gpu.link_gb_s:g} GB/s"
        + (f", {cluster.network.name} {cluster.network.gpu_gb_s:g} GB/s a GPU" if cluster.nodes > 1 else ""),
        f"assumed: products at {cluster.utilisation:.0%} of the peak, links at {cluster.link_efficiency:.0%}, "
        f"{cluster.overhead_gib:g} GiB of overhead",
        *([f"beside the policy: {'; '.join(beside)}"] if (beside := _beside(workload)) else []),
        *(f"note: {note}" for note in workload.notes),
    ]
    return "\n".join(lines)


def _beside(workload: Workload) -> list[str]:
    """The other models of a method."""
    models = [(role.name, role.parameters) for role in workload.others]
    if workload.value is not None:
        models.insert(0, (f"value ({workload.value.form})", workload.value.parameters))
    return [f"{name}, {parameters / 1e9:.3f} B" for name, parameters in models]


def memory_table(plans: list[Plan]) -> str:
    """GiB of one GPU at its highest, part by part; parts that no layout has are left out."""
    shown = {part: title for part, title in PARTS.items() if any(plan.memory.parts[part] for plan in plans)}
    columns = {title: [_gib(plan.memory.parts[part]) for plan in plans] for part, title in shown.items()}
    columns |= {
        "total": [_gib(plan.memory.total) for plan in plans],
        "fits": [plan.verdict for plan in plans],
        "highest at": [plan.memory.moment for plan in plans],
    }
    if any(plan.memory.host for plan in plans):
        columns["host"] = [_gib(plan.memory.host) if plan.memory.host else "" for plan in plans]
    return _table("GiB of a GPU", plans, columns)


def time_table(workload: Workload, cluster: Cluster, plans: list[Plan]) -> str:
    """One optimizer step, and the whole training where its length is known."""
    links = dict.fromkeys(link for plan in plans for link in plan.sent)
    spent = {name: title for name, title in SPENT.items() if any(getattr(plan.speed, name) >= 0.005 for plan in plans)}
    hours = [gpu_hours(workload, plan, cluster) for plan in plans]
    columns = {f"GB by {link}": [f"{plan.sent.get(link, 0) / 1e9:,.2f}" for plan in plans] for link in links}
    columns |= {f"s {title}": [f"{getattr(plan.speed, name):,.2f}" for plan in plans] for name, title in spent.items()}
    columns |= {
        "s in all": [f"{plan.speed.seconds:,.2f}" for plan in plans],
        "tokens/s": [f"{plan.speed.tokens_a_second:,.0f}" for plan in plans],
        "days": ["–" if all_ is None else _amount(all_ / cluster.gpus / 24) for all_ in hours],
        "GPU hours": ["–" if all_ is None else _amount(all_) for all_ in hours],
    }
    return _table("a step", plans, columns)


def _conclusion(workload: Workload, cluster: Cluster, plans: list[Plan]) -> str:
    chosen = best(plans)
    lines = []
    if chosen.fits:
        per_gpu = chosen.speed.tokens_a_second / cluster.gpus
        lines.append(f"fastest that fits: {chosen.layout.name}, {per_gpu:,.0f} tokens/s a GPU")
        if chosen.verdict == "tight":
            lines.append("it is tight: gaps between what the allocator gives and takes may still exhaust the memory")
    else:
        lines.append(f"none fits; {chosen.layout.name} needs least, {_gib(chosen.memory.total)} GiB. What would:")
        lines += [
            f"  {change.words}: {change.plan.layout.name} needs {_gib(change.plan.memory.total)} GiB, {_fits(change.plan)}"
            for change in changes(workload, cluster)
        ]
        more = more_gpus(workload, cluster)
        if more is not None:
            lines.append(
                f"  {more.words}: {more.plan.layout.name} needs {_gib(more.plan.memory.total)} GiB, which fits"
            )
    lines.append(checkpointing_line(workload, chosen))
    if workload.rollout is not None:
        (share,) = shares(workload, chosen.layout)
        found = {one.moment: one for one in moments(workload, chosen.layout, cluster, share)}["sampling"]
        lines.append(f"while it samples: {_gib(found.total)} GiB, of which keys and values {_gib(found.cache)}")
    if workload.accumulation > 1 and not workload.sync_each_batch and any(p.layout.sharding == "fsdp2" for p in plans):
        lines.append(
            "fsdp2 holds whole gradients between the micro-batches of a step; they are reduced after each with "
            f"{SYNC_EACH_BATCH}"
        )
    if tokens_of(workload, chosen) is None:
        hours = 1e9 / chosen.speed.tokens_a_second * cluster.gpus / 3600
        lines.append(f"a billion tokens take {hours:,.1f} GPU-hours; how many the data has, say with --tokens")
    elif workload.tokens or workload.steps:
        lines.append(f"the training is {tokens_of(workload, chosen):,} tokens, every sequence at its longest")
    return "\n".join(lines)


def checkpointing_line(workload: Workload, plan: Plan) -> str:
    """What checkpointing does to the activations of a layout without a pipeline."""
    layers = -(-workload.architecture.layers // plan.layout.pipeline) * workload.trunks
    one = workload.activations(plan.layout.sharding, plan.layout.tensor)
    on, off = (_gib(one.kept(layers, choice) + one.working(choice)) for choice in (True, False))
    return f"activations of a micro-batch: {on} GiB with checkpointing, {off} GiB without"


def _fits(plan: Plan) -> str:
    return "which fits" if plan.fits else "not yet"


def _amount(number: float) -> str:
    """A whole number, or two digits of a small one."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f}" if size < 99.95 * GIB else f"{size / GIB:,.0f}"


def _table(corner: str, plans: list[Plan], columns: dict[str, list[str]]) -> str:
    """A row for each layout; a title stands in as many lines as it has words."""
    titles = [[corner], *(title.split() for title in columns)]
    deep = max(map(len, titles))
    lines = list(zip(*([""] * (deep - len(title)) + title for title in titles)))
    lines += zip((plan.layout.name for plan in plans), *columns.values())
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
    )


def draw(workload: Workload, cluster: Cluster, plans: list[Plan], path: Path) -> None:
    """Memory of a GPU, layout by layout and part by part, against what it has."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.6 + 0.42 * len(plans)), layout="constrained")
    axes = figure.subplots()
    shown = [part for part in PARTS if any(plan.memory.parts[part] for plan in plans)]
    colors = dict(zip(PARTS, colormaps["tab10"].colors))
    left = [0.0] * len(plans)
    for part in shown:
        sizes = [plan.memory.parts[part] / GIB for plan in plans]
        axes.barh(range(len(plans)), sizes, left=left, color=colors[part], label=PARTS[part], height=0.7)
        left = [start + size for start, size in zip(left, sizes)]
    room = cluster.gpu.memory_gib
    axes.axvline(room, color="black", linestyle="--", linewidth=1)
    axes.text(room, -0.75, f" {cluster.gpu.name}: {room:g} GiB", fontsize=8, va="center")
    limit = max(room * 1.6, min(max(left), room * 3)) * 1.02
    for row, (plan, end) in enumerate(zip(plans, left)):
        text = f" {end:,.0f} GiB" if not plan.fits else f" {plan.speed.tokens_a_second:,.0f} tokens/s"
        white = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8}
        color = "black" if plan.fits else "tab:red"
        axes.text(min(end, limit * 0.88), row, text, va="center", fontsize=8, color=color, bbox=white)
    axes.set(xlim=(0, limit), ylim=(len(plans) - 0.4, -1.1), xlabel="GiB of one GPU at its highest")
    axes.set_yticks(range(len(plans)), [plan.layout.name for plan in plans])
    axes.set_title(f"{workload.name} on {cluster.gpus} × {cluster.gpu.name}", fontsize=10)
    figure.legend(fontsize=7, ncols=len(shown), loc="outside lower center")
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120))
