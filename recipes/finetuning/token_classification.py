"""Token classification: a tag for each word of a sentence, such as the names in it.

Paper: Devlin et al. 2018, BERT, arXiv 1810.04805, section 5.3: the first piece of a word speaks for the word.
Run:   python -m recipes.finetuning.token_classification --config configs/finetuning/token_classification/quickstart.yaml
"""

import json
from dataclasses import dataclass, field
from functools import partial

from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    Trainer,
    TrainingArguments,
)

from recipes.core import DataConfig, ModelConfig, Run, recipe
from recipes.core.losses import mean_over_tokens
from recipes.finetuning.word_tags import FORM, baselines, encode, entity_measures, predicted_tags, tags_of


@dataclass
class TokenClassificationConfig(TrainingArguments):
    """TrainingArguments and the length of a row."""

    max_length: int = field(default=128, metadata={"help": "Tokens of a row; words beyond it are left out."})


@recipe
def main(run: Run, model: ModelConfig, data: DataConfig, training: TokenClassificationConfig) -> None:
    sentences = data.load(FORM)
    tags = tags_of(sentences)
    tokenizer, tagger = model.load(
        AutoModelForTokenClassification,
        needs=("pad_token",),
        id2label=dict(enumerate(tags)),
        label2id={tag: number for number, tag in enumerate(tags)},
    )
    rows = {split: encode(sentences[split], tokenizer, tags, training.max_length) for split in sentences}

    trainer = Trainer(
        model=model.adapt(tagger, "TOKEN_CLS", training),
        args=training,
        processing_class=tokenizer,
        data_collator=DataCollatorForTokenClassification(tokenizer),
        train_dataset=rows["train"],
        eval_dataset=rows.get("test"),
        compute_loss_func=partial(mean_over_tokens, label_smoothing=training.label_smoothing_factor),
        preprocess_logits_for_metrics=predicted_tags,
        compute_metrics=entity_measures(tags),
    )
    run.fit(trainer)

    run.write("labels.json", json.dumps(tags, ensure_ascii=False) + "\n")
    if "test" in sentences:
        measured = trainer.evaluate()
        names = ("precision", "recall", "f1", "accuracy")
        run.record(**{name: measured[f"eval_{name}"] for name in names}, baselines=baselines(sentences))


if __name__ == "__main__":
    main()
