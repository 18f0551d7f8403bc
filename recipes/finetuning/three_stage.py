"""BERT in three stages: further pretraining on any text, then on the task's own domain, then fine-tuning layer by layer.

Paper: Sun et al. 2019, How to Fine-Tune BERT for Text Classification?, arXiv 1905.05583, sections 5.3.3 (layer-wise rates)
       and 5.4 (further pretraining). Left out: its multi-task fine-tuning, and the tail of long texts beside their head.
Run:   accelerate launch -m recipes.finetuning.three_stage --config configs/finetuning/three_stage/quickstart.yaml
"""

from dataclasses import dataclass, field, replace

from transformers import AutoModelForPreTraining

from recipes.core import DataConfig, ModelConfig, Run, UserError, recipe
from recipes.finetuning import classification_head
from recipes.finetuning.classification import ClassificationConfig
from recipes.finetuning.classification_data import baselines, labels_of, task_of
from recipes.finetuning.layer_decay import use_layer_decay
from recipes.finetuning.masked_text import masked_trainer, texts_of


@dataclass
class ThreeStageConfig(ClassificationConfig):
    """The arguments of the last stage, fine-tuning, and those in which pretraining differs from it."""

    further_dataset_name: str = field(
        default="embedded/text", metadata={"help": "Stage 1: text of any kind, column text."}
    )
    further_dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of a Hub dataset of stage 1."}
    )
    further_steps: int = field(default=1000, metadata={"help": "Optimiser steps of stage 1."})
    in_domain_dataset_name: str | None = field(
        default=None, metadata={"help": "Stage 2: text of the task's domain; null: the task's training texts."}
    )
    in_domain_dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of a Hub dataset of stage 2."}
    )
    in_domain_steps: int = field(default=1000, metadata={"help": "Optimiser steps of stage 2."})
    pretraining_learning_rate: float = field(default=5e-5, metadata={"help": "Of stages 1 and 2; 5e-5 in the paper."})
    pretraining_max_length: int = field(default=128, metadata={"help": "Tokens of a row in stages 1 and 2."})
    layer_decay: float = field(default=0.95, metadata={"help": "ξ: a layer's rate over that of the layer above it."})

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"layer_decay must lie above 0 and at most at 1, not {self.layer_decay}")
        if self.template is not None:
            raise UserError("three_stage fine-tunes a head; drop template")
        if self.lm_coef:
            raise UserError("lm_coef: three_stage goes on with masked words, and a model of those has no next token")


@recipe
def main(run: Run, model: ModelConfig, data: DataConfig, training: ThreeStageConfig) -> None:
    if model.peft is not None:
        raise UserError("peft: three_stage trains all weights in all of its stages; drop the block")
    task = task_of(data)
    labels = labels_of(task)
    further = replace(data, dataset_name=training.further_dataset_name, dataset_config=training.further_dataset_config)
    domain = task.select_columns("text")
    if training.in_domain_dataset_name is not None:
        name, configuration = training.in_domain_dataset_name, training.in_domain_dataset_config
        domain = texts_of(replace(data, dataset_name=name, dataset_config=configuration))

    def pretrain(name: str, source: str, text, steps: int) -> str:
        """Go on with masked words from the model in `source`; returns the folder of the new one."""
        rate, length = training.pretraining_learning_rate, training.pretraining_max_length
        part = run.stage(name, learning_rate=rate, max_steps=steps)
        if not part.finished():
            tokenizer, encoder = replace(model, model_name_or_path=source).load(
                AutoModelForPreTraining, needs=("pad_token",)
            )
            part.fit(masked_trainer(encoder, part.arguments, tokenizer, text, length))
            part.finish()
        return str(part.output_dir)

    base = model.model_name_or_path
    one = pretrain("further", base, texts_of(further), training.further_steps)
    two = pretrain("in-domain", base, domain, training.in_domain_steps)
    three = pretrain("further and in-domain", one, domain, training.in_domain_steps)

    for stages, source in (("1_stage", base), ("2_stages", two), ("3_stages", three)):
        part = run.stage(f"fine-tuned after {stages}")
        if not part.finished():
            trainer = classification_head.make_trainer(
                replace(model, model_name_or_path=source), part.arguments, task, labels
            )
            use_layer_decay(trainer, training.layer_decay)
            part.fit(trainer)
            part.record(accuracy=trainer.evaluate()["eval_accuracy"])
            part.finish()
        run.record(**{f"accuracy_{stages}": part.metrics["accuracy"]})
    run.record(baselines=baselines(task))


if __name__ == "__main__":
    main()
