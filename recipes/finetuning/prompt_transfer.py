"""SPoT: soft prompts of source tasks; the one most like a target task's own is where that task starts again, at few shots.

Paper: Vu et al. 2021, SPoT: Better Frozen Model Adaptation through Soft Prompt Transfer, arXiv 2110.07904, sections 2 and 3
       (transfer) and 4 (task embeddings, similarity, retrieval).
Run:   accelerate launch -m recipes.finetuning.prompt_transfer --config configs/finetuning/prompt_transfer/quickstart.yaml
"""

from dataclasses import dataclass, field, replace
from statistics import mean

from recipes.adapters.prompt_similarity import cosine_of_average_tokens, per_token_average_cosine
from recipes.core import DataConfig, ModelConfig, Run, UserError, recipe
from recipes.core.errors import did_you_mean
from recipes.finetuning import classification_gap
from recipes.finetuning.classification import ClassificationConfig
from recipes.finetuning.classification_data import baselines, labels_of, task_of
from recipes.finetuning.few_shots import few_shots, load_prompt, start_from


@dataclass
class PromptTransferConfig(ClassificationConfig):
    """The arguments of prompts of source tasks, and those in which the target's differ; data are those of the target."""

    sources: dict[str, str] | None = field(
        default=None, metadata={"help": "Source tasks: a name, and the dataset; their labels are words of the gap."}
    )
    source_verbalizers: dict[str, dict[str, str]] | None = field(
        default=None, metadata={"help": "The words of a source's labels; default: the labels."}
    )
    shots: int = field(default=16, metadata={"help": "Training rows of each label of the target."})
    target_steps: int = field(default=500, metadata={"help": "Optimiser steps on the target, from any start."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Each draws other shots."})

    def __post_init__(self):
        super().__post_init__()
        if self.template is None:
            raise UserError("prompt_transfer has no head to transfer: set template")
        if not self.sources:
            raise UserError("sources: name at least one source task: {name: dataset}")
        strangers = set(self.source_verbalizers or {}) - set(self.sources)
        if strangers:
            raise UserError(
                f"source_verbalizers: no source '{min(strangers)}'{did_you_mean(min(strangers), self.sources)}"
            )
        if self.shots < 1:
            raise UserError(f"shots must be at least 1, not {self.shots}")


@recipe
def main(run: Run, model: ModelConfig, data: DataConfig, training: PromptTransferConfig) -> None:
    if model.peft is None or model.peft.get("method") != "prompt_tuning":
        raise UserError("prompt_transfer carries over prompts of peft: {method: prompt_tuning}")
    target = task_of(data)
    labels = labels_of(target)

    prompts = {}
    for name, source in training.sources.items():  # 1: a prompt for each source task, from all its rows
        part = run.stage(f"source-{name}", verbalizer=(training.source_verbalizers or {}).get(name))
        if not part.finished():
            task = task_of(replace(data, dataset_name=source, max_train_samples=None))
            trainer = classification_gap.make_trainer(replace(model), part.arguments, task, labels_of(task))
            part.fit(trainer)
            part.record(accuracy=trainer.evaluate()["eval_accuracy"])
            part.finish()
        run.record(**{f"accuracy_source_{name}": part.metrics["accuracy"]})
        prompts[name] = load_prompt(part.output_dir)

    scores: dict[str, list[float]] = {start: [] for start in ("random", *prompts, "retrieved")}
    retrieved, similarities = [], []
    for (
        seed
    ) in training.seeds:  # 2: the target from a random start gives its embedding; then from each source's prompt
        few = few_shots(target, training.shots, seed)
        own = None
        for start in ("random", *prompts):
            part = run.stage(f"seed-{seed}/from-{start}", seed=seed, max_steps=training.target_steps)
            if not part.finished():
                trainer = classification_gap.make_trainer(replace(model), part.arguments, few, labels)
                if start in prompts:
                    start_from(trainer.model, prompts[start])
                part.fit(trainer)
                part.record(accuracy=trainer.evaluate()["eval_accuracy"])
                part.finish()
            scores[start].append(part.metrics["accuracy"])
            own = load_prompt(part.output_dir) if own is None else own
        similarities.append({name: cosine_of_average_tokens(own, prompt) for name, prompt in prompts.items()})
        retrieved.append(max(prompts, key=similarities[-1].get))
        scores["retrieved"].append(scores[retrieved[-1]][-1])

    between = {
        name: {other: per_token_average_cosine(prompts[name], prompts[other]) for other in prompts} for name in prompts
    }
    run.record(
        **{f"accuracy_from_{start}": mean(values) for start, values in scores.items()},
        seeds=scores,
        retrieved=retrieved,
        similarity_to_target=similarities,
        similarity_of_sources=between,
        baselines={
            "accuracy_from_retrieved": mean(scores["random"]),
            "accuracy_from_random": baselines(target)["accuracy"],
        },
    )


if __name__ == "__main__":
    main()
