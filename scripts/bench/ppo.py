"""Our PPO against that of TRL 1.12, the last release with PPO, on the same work: time, memory, learning curves.

Both train the same random LLaMA weights on the same prompts, 4 epochs an update in optimizer steps of a quarter of the
episodes, with the same micro-batches, optimizer, torch and transformers, without gradient clipping (TRL has none) or
checkpointing. Each measurement is a process of its own (`ppo_workers`). The trainers take turns, and a figure is the median
of the ratios of neighbours, so that a machine that slows down does not count for or against one of them.

Run: python -m scripts.bench.ppo --size 5m --responses early --forms same shared lora
     python -m scripts.bench.ppo --curves
"""

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recipes.core.catalog import ROOT
from recipes.core.errors import UserError, report_user_errors
from recipes.core.files import check_writable, read_json, write_atomically, write_json, write_text

TRL = "1.12.0"


def shape(
    vocabulary: int, hidden: int, inner: int, layers: int, heads: int, key_heads: int, tied: bool
) -> dict[str, Any]:
    """Options of `transformers.LlamaConfig`."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "tie_word_embeddings": tied,
    }


SIZES = {
    "tiny": shape(512, 128, 256, 2, 4, 4, False),
    "5m": shape(4096, 256, 384, 6, 4, 4, False),
    "32k": shape(32000, 512, 1408, 8, 8, 8, False),
    "0.5b": shape(151936, 896, 4864, 24, 14, 2, True),  # Qwen2.5-0.5B's
    "1b": shape(128256, 2048, 8192, 16, 32, 8, True),  # Llama-3.2-1B's
}
SHARED = {"trainer": "ours", "value_model": "shared"}
FORMS: dict[str, dict[str, Any]] = {
    "trl": {"trainer": "trl"},
    "trl-bf16": {"trainer": "trl", "bf16": True},
    "trl-bf16-weights": {"trainer": "trl", "dtype": "bfloat16"},
    "trl-lora": {"trainer": "trl", "lora": True},
    "same": {"trainer": "ours"},
    "same-bf16": {"trainer": "ours", "bf16": True},
    "shared-fp32": SHARED,
    "shared": {**SHARED, "bf16": True},
    "lora-fp32": {**SHARED, "lora": True},
    "lora": {**SHARED, "lora": True, "bf16": True},
    # policy and reward are adapters on one frozen base in bf16, the value reads the policy's trunk
    "one-base": {**SHARED, "lora": True, "bf16": True, "dtype": "bfloat16", "reward_adapter": True},
}
REFERENCES = [name for name in FORMS if name.startswith("trl")]
LENGTHS = {"early": 14.0, "full": None}  # mean tokens after which EOS ends a response; the limit is 64
CURVES = {
    "task": "upper_half",
    "updates": 30,
    "prompt_tokens": [8, 8],
    "response_length": 24,
    "learning_rate": 1e-3,
    "kl_coef": 0.01,  # at 0.05 the best policy's reward is 0.7, hardly above the 0.5 of chance
}
SEEDS = (0, 1, 2)
LAST = 5  # updates over which the final reward is averaged


# -------------------------------------------------------------------------------------------------------- measuring
def base_job(size: str, responses: str, episodes: int, updates: int) -> dict[str, Any]:
    """What every form of one comparison shares; `ppo_workers` reads it."""
    return {
        "shape": SIZES[size],
        "mean_length": LENGTHS[responses],
        "stop_token": "eos" if responses == "early" else None,
        "response_length": 64,
        "prompt_tokens": [8, 24],
        "prompts": episodes * (updates + 2),  # accelerate steps early at the end of a dataset, which TRL never sees so
        "episodes": episodes,
        "updates": updates,
        "micro_batch": 16,
        "mini_batches": 4,
        "accumulation": episodes // 64,
        "temperature": 0.7,
        "kl_coef": 0.05,
        "learning_rate": 1e-6,
        "task": "model",
        "seed": 0,
    }


def form_job(form: str, attention: str | None) -> dict[str, Any]:
    """How a form differs."""
    defaults = {
        "bf16": False,
        "dtype": "float32",
        "lora": False,
        "value_model": "separate",
        "reward_adapter": False,
    }
    return {"do": "train", **defaults, **FORMS[form], "attention": attention}


def run(job: dict[str, Any], trl_dir: Path) -> dict[str, Any]:
    """The result of one job of `ppo_workers` in a process of its own.

    Raises:
        UserError: the process failed; its output goes to stderr.
    """
    uses_trl = job.get("trainer") == "trl"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("ACCELERATE_MIXED_PRECISION", None)
    if uses_trl:
        environment["PYTHONPATH"] = f"{trl_dir.resolve()}{os.pathsep}{ROOT}"
        if job["bf16"]:  # which its PPO makes no Accelerator from: it goes by what `accelerate launch` sets
            environment["ACCELERATE_MIXED_PRECISION"] = "bf16"
    command = [sys.executable, "-m", "scripts.bench.ppo_workers", json.dumps(job)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        raise UserError(f"{job['do']} failed with exit status {done.returncode}; its output stands above")
    result = json.loads(done.stdout.splitlines()[-1])
    if uses_trl and result["versions"]["trl"] != TRL:
        raise UserError(f"{trl_dir} holds trl {result['versions']['trl']}, not {TRL}: give another --trl_dir")
    return result


@contextmanager
def models(job: dict[str, Any], trl_dir: Path) -> Iterator[dict[str, Any]]:
    """The job with its weights, which last as long as this context, and the policy's parameters."""
    with tempfile.TemporaryDirectory() as folder:
        job = job | {"models": folder}
        yield job | run(job | {"do": "build"}, trl_dir)


def install_trl(trl_dir: Path) -> None:
    """TRL 1.12 in a folder of its own, without what it depends on; nothing where it is already.

    Raises:
        UserError: pip could not install it.
    """
    if (trl_dir / "trl").is_dir():
        return
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(trl_dir), f"trl=={TRL}"]
    if subprocess.run(command).returncode != 0:
        raise UserError(f"pip cannot install trl=={TRL}: put it into a folder and name that with --trl_dir")


def measure(options: argparse.Namespace, job: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The results of each form, round by round; the forms take turns within a round."""
    forms = [options.reference, *options.forms]
    results: dict[str, list[dict[str, Any]]] = {form: [] for form in forms}
    for number in range(options.rounds):
        for form in forms:
            one = run(job | form_job(form, options.attention), options.trl_dir)
            seconds = statistics.median(one["seconds"][1:])
            results[form].append(one | {"update_seconds": seconds})
            print(
                f"round {number + 1} {form}: {seconds:.2f} s an update, {one['memory_mib']:.0f} MiB, "
                f"{one['optimizer_steps']} optimizer steps, {one['response_length']:.1f} tokens a response, "
                f"score {statistics.mean(one['score']):.3f}",
                flush=True,
            )
    return results


def compare(options: argparse.Namespace, job: dict[str, Any], results: dict[str, list[dict]]) -> list[dict[str, Any]]:
    """One row of the table for each form: medians over the rounds, against the reference of the same round."""
    rows, reference = [], results[options.reference]
    for form in options.forms:
        pairs = list(zip(reference, results[form], strict=True))
        ratios = [theirs["update_seconds"] / own["update_seconds"] for theirs, own in pairs]
        last = results[form][-1]
        # 4 standard errors of the difference; the lengths' standard deviation is below their mean
        sampled = options.episodes * options.updates * options.rounds
        lengths = [statistics.mean(one["response_length"] for one in side) for side in (reference, results[form])]
        noise = 4 * (2 / sampled) ** 0.5 * lengths[0]
        rows.append(
            {
                "size": options.size,
                "responses": options.responses,
                "episodes": options.episodes,
                "form": form,
                "reference": options.reference,
                "parameters": job["parameters"],
                "speedup": statistics.median(ratios),
                "speedup_range": [min(ratios), max(ratios)],
                "seconds_an_update": statistics.median(one["update_seconds"] for one in results[form]),
                "reference_seconds_an_update": statistics.median(one["update_seconds"] for one in reference),
                "memory_share": statistics.median(own["memory_mib"] / theirs["memory_mib"] for theirs, own in pairs),
                "memory_mib": statistics.median(one["memory_mib"] for one in results[form]),
                "response_length": lengths[1],
                "reference_response_length": lengths[0],
                "same_length": abs(lengths[1] - lengths[0]) <= noise,
                "same_optimizer_steps": reference[-1]["optimizer_steps"] == last["optimizer_steps"],
                "attention": last["attention"],
                "autocast": last["autocast"],
                "versions": last["versions"] | {"reference_trl": reference[-1]["versions"]["trl"]},
                "threads": last["threads"],
                "commit": last["commit"],
                "command": options.command,
                "rounds": [{options.reference: theirs["seconds"], form: own["seconds"]} for theirs, own in pairs],
            }
        )
    return rows


# -------------------------------------------------------------------------------------------------------- reporting
def key(row: dict[str, Any]) -> tuple:
    return row["size"], row["responses"], row["episodes"], row["reference"], row["form"]


def hardware_name(hardware: dict[str, Any]) -> str:
    return ", ".join(hardware["accelerators"]) or f"{hardware['processor']}, {hardware['cores']} cores"


def product_rates() -> dict[str, float]:
    """GFLOP/s of products of matrices on this machine, by dtype: bf16 can gain no more than their ratio."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, inner, columns = (1280, 512, 1408) if device == "cpu" else (8192, 8192, 8192)
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = (torch.ones(shape, dtype=dtype, device=device) for shape in ((rows, inner), (columns, inner)))
        seconds = []
        for _ in range(100):
            began = time.perf_counter()
            torch.nn.functional.linear(left, right)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        rates[str(dtype).removeprefix("torch.")] = 2e-9 * rows * inner * columns / statistics.median(seconds)
    return rates


def report(rows: list[dict[str, Any]], hardware: dict[str, Any], rates: dict[str, float]) -> str:
    """The table as Markdown."""
    lines = [
        f"# PPO against TRL {TRL}: {hardware_name(hardware)}",
        "",
        "Faster: TRL's seconds an update over ours, median of the rounds' ratios and their range; memory: the peak over the "
        "imports as a share of TRL's. Versions, threads, commit and the command of each row are in the JSON beside this.",
        "",
        f"Products of matrices: {', '.join(f'{rate:,.0f} GFLOP/s in {dtype}' for dtype, rate in rates.items())}.",
        "",
        "| model | responses | episodes | form | against | faster | range | s an update | TRL's | memory | tokens | TRL's |",
        f"| {' | '.join(['---'] * 5 + ['---:'] * 7)} |",
    ]
    for row in rows:
        low, high = row["speedup_range"]
        checks = {"other lengths": row["same_length"], "other optimizer steps": row["same_optimizer_steps"]}
        doubts = "".join(f" ({doubt}!)" for doubt, fine in checks.items() if not fine)
        lines.append(
            f"| {row['size']}, {row['parameters'] / 1e6:.1f} M | {row['responses']} | {row['episodes']} "
            f"| {row['form']}{doubts} | {row['reference']} | {row['speedup']:.2f} | {low:.2f}–{high:.2f} "
            f"| {row['seconds_an_update']:.2f} | {row['reference_seconds_an_update']:.2f} | {row['memory_share']:.0%} "
            f"| {row['response_length']:.1f} | {row['reference_response_length']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def benchmark(options: argparse.Namespace) -> None:
    """Measures, and merges the rows into the files of this hardware."""
    with models(base_job(options.size, options.responses, options.episodes, options.updates), options.trl_dir) as job:
        results = measure(options, job)
        rows = compare(options, job, results)
    hardware = results[options.reference][0]["hardware"]
    slug = re.sub(r"[^a-z0-9]+", "-", hardware_name(hardware).lower()).strip("-")
    path = options.output_dir / f"ppo-{slug}.json"
    found = (read_json(path) or {"rows": []})["rows"]
    merged = sorted(({key(row): row for row in found} | {key(row): row for row in rows}).values(), key=key)
    rates = product_rates()
    write_json(path, {"hardware": hardware, "product_rates": rates, "rows": merged})
    write_text(path.with_suffix(".md"), report(merged, hardware, rates))
    print(report(rows, hardware, rates), path, sep="\n")


def profile(options: argparse.Namespace) -> None:
    """Prints peak memory and the median seconds of each phase of an update, without the first, for one form of ours."""
    with models(base_job(options.size, options.responses, options.episodes, options.updates), options.trl_dir) as job:
        result = run(job | form_job(options.profile, options.attention), options.trl_dir)
    print(f"{result['memory_mib']:8.0f}  MiB at most")
    print(f"{statistics.median(result['seconds'][1:]):8.3f}  update")
    for name, seconds in result["phases"].items():
        print(f"{statistics.median(seconds[1:]):8.3f}  {name.removeprefix('seconds/')}")
    if not result["phases"]:
        print("the trainer logs no seconds/<phase>")


def curves(options: argparse.Namespace) -> None:
    """Both trainers from the same weights towards the same reward, three seeds each and no EOS: JSON, plot, verdict."""
    found: dict[str, list[dict[str, Any]]] = {"trl": [], "same": []}
    for seed in SEEDS:
        job = base_job("tiny", "full", 64, CURVES["updates"]) | CURVES | {"seed": seed}
        with models(job, options.trl_dir) as job:
            for form, seeds in found.items():
                one = run(job | form_job(form, options.attention), options.trl_dir)
                final = statistics.mean(one["score"][-LAST:])
                kept = ("score", "kl", "optimizer_steps", "response_length", "versions", "threads", "commit")
                seeds.append({"seed": seed, "final": final, **{name: one[name] for name in kept}})
                print(f"seed {seed} {form}: score {one['score'][0]:.3f} → {final:.3f}", flush=True)
                for name in ("score", "kl"):
                    print(f"  {name}: {' '.join(f'{number:.3f}' for number in one[name])}", flush=True)
    spans = {form: [min(s["final"] for s in seeds), max(s["final"] for s in seeds)] for form, seeds in found.items()}
    means = {form: statistics.mean(s["final"] for s in seeds) for form, seeds in found.items()}
    overlap = spans["trl"][0] <= spans["same"][1] and spans["same"][0] <= spans["trl"][1]
    ranges = [[(min(column), max(column)) for column in zip(*(s["score"] for s in seeds))] for seeds in found.values()]
    within = sum(one[0] <= other[1] and other[0] <= one[1] for one, other in zip(*ranges))
    summary = {"final": means, "final_range": spans, "overlap": overlap, "updates_with_overlap": within}
    settings = {name: value for name, value in job.items() if name != "models"}
    result = {"command": options.command, "hardware": one["hardware"], "settings": settings}
    write_json(options.output_dir / "ppo-curves.json", {**result, "summary": summary, "runs": found})
    draw(found, options.output_dir / "ppo-curves.png")
    for form, (low, high) in spans.items():
        print(f"{form}: final reward {means[form]:.3f} ({low:.3f}–{high:.3f} over {len(SEEDS)} seeds)")
    print(
        f"final rewards {'lie' if overlap else 'do not lie'} within each other's spread; the seeds' ranges overlap at "
        f"{within} of {CURVES['updates']} updates\n{options.output_dir / 'ppo-curves.png'}"
    )


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Score and KL of every seed of both trainers over the updates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    titles = {
        "score": "reward: share of the upper half of the vocabulary",
        "kl": "KL to the reference, nats a response",
    }
    for axes, (name, title) in zip(figure.subplots(1, 2), titles.items()):
        for (form, seeds), color in zip(found.items(), ("tab:orange", "tab:blue")):
            for index, one in enumerate(seeds):
                label = {"trl": f"TRL {TRL}", "same": "ours"}[form] if index == 0 else None
                axes.plot(range(1, len(one[name]) + 1), one[name], color=color, alpha=0.8, label=label)
        axes.set(title=title, xlabel="update")
        axes.grid(alpha=0.25)
        axes.legend()
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--size", choices=SIZES, default="5m", help="shape of the models")
    parser.add_argument(
        "--responses", choices=LENGTHS, default="early", help="end by EOS after 14 tokens in the mean, or have 64"
    )
    parser.add_argument("--episodes", type=int, choices=(64, 256), default=64, help="responses an update")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["same"], help="what is measured")
    parser.add_argument("--reference", choices=REFERENCES, default="trl", help="form of TRL's that it is held against")
    parser.add_argument(
        "--attention", choices=("sdpa", "eager"), help="of all forms; default: eager for bf16 on a CPU"
    )
    parser.add_argument("--updates", type=int, default=4, help="updates a measurement; the first is warm-up")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each form")
    parser.add_argument(
        "--trl_dir", type=Path, default=Path("runs/bench/trl-1.12.0"), help="TRL 1.12; installed if absent"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("results/bench"), help="where the files go")
    parser.add_argument(
        "--profile", choices=[form for form in FORMS if form not in REFERENCES], help="time its phases only"
    )
    parser.add_argument("--curves", action="store_true", help="learning curves instead of times")
    options = parser.parse_args()
    options.command = f"python -m scripts.bench.ppo {shlex.join(sys.argv[1:])}".strip()
    with report_user_errors():
        for name, least in {"updates": 2, "rounds": 1}.items():
            if getattr(options, name) < least:
                raise UserError(f"--{name} must be at least {least}, not {getattr(options, name)}")
        if options.reference in options.forms:
            raise UserError(f"{options.reference} is the reference itself: drop it from --forms")
        check_writable(options.output_dir)
        install_trl(options.trl_dir)
        if options.profile:
            profile(options)
        elif options.curves:
            curves(options)
        else:
            benchmark(options)


if __name__ == "__main__":
    main()
