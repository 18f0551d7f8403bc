"""Classification: a label for a text, or for a pair of texts, by a head or by the word that fills a gap.

Paper: Devlin et al. 2018, BERT, arXiv 1810.04805, section 4.1 (head); Radford et al. 2018, Improving Language Understanding
       by Generative Pre-Training, eq. 5 (lm_coef); Schick & Schütze 2020, arXiv 2001.07676, eq. 1 (gap and verbaliser).
Run:   accelerate launch -m recipes.finetuning.classification --config configs/finetuning/classification/quickstart.yaml
"""

import json
from dataclasses import dataclass, field

from transformers import TrainingArguments

from recipes.core import DataConfig, ModelConfig, Run, UserError, recipe
from recipes.finetuning import classification_gap, classification_head
from recipes.finetuning.classification_data import FORMS, baselines, labels_of


@dataclass
class ClassificationConfig(TrainingArguments):
    """TrainingArguments, and how a label is said."""

    max_length: int = field(default=128, metadata={"help": "Tokens of a row; longer texts lose their end."})
    template: str | None = field(
        default=None,
        metadata={"help": "Ask with a gap in place of a head: '{text} It was [MASK] .'; a decoder's gap stands last."},
    )
    verbalizer: dict[str, str] | None = field(
        default=None, metadata={"help": "With template: the word that says each label, one token; default: the label."}
    )
    lm_coef: float = field(default=0.0, metadata={"help": "GPT's λ: the next-token loss beside a decoder's head."})
    freeze_base: bool = field(default=False, metadata={"help": "Train the head alone: what an adapter has to beat."})

    def __post_init__(self):
        super().__post_init__()
        if self.template is None and self.verbalizer is not None:
            raise UserError("verbalizer needs a template with a gap for its words")
        if self.template is not None and (self.lm_coef or self.freeze_base):
            raise UserError("template has no head: drop lm_coef and freeze_base")
        if self.lm_coef < 0:
            raise UserError(f"lm_coef must be at least 0, not {self.lm_coef}")


@recipe
def main(run: Run, model: ModelConfig, data: DataConfig, training: ClassificationConfig) -> None:
    texts = data.load(*FORMS)
    labels = labels_of(texts)

    way = classification_head if training.template is None else classification_gap
    trainer = way.make_trainer(model, training, texts, labels)
    run.fit(trainer)

    run.write("labels.json", json.dumps(labels, ensure_ascii=False) + "\n")  # PEFT saves no names with a head
    if "test" in texts:
        measured = trainer.evaluate()
        run.record(accuracy=measured["eval_accuracy"], f1=measured["eval_f1"], baselines=baselines(texts))


if __name__ == "__main__":
    main()
