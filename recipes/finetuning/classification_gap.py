"""Classification without a head: a language model fills a gap, and the word that it prefers says the label.

Paper: Schick & Schütze 2020, Exploiting Cloze Questions for Few Shot Text Classification, arXiv 2001.07676, eq. 1 and 2;
       Liu et al. 2021, GPT Understands, Too, arXiv 2103.10385, for templates with pseudo tokens and for decoders.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, DatasetDict
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerBase, Trainer

from recipes.adapters.cloze import ClozeTemplate, Verbalizer
from recipes.core import ModelConfig, UserError
from recipes.core.errors import did_you_mean
from recipes.finetuning.classification_data import measures

if TYPE_CHECKING:
    from recipes.finetuning.classification import ClassificationConfig


def make_trainer(
    model: ModelConfig, training: "ClassificationConfig", texts: DatasetDict, labels: Sequence[str]
) -> Trainer:
    """The trainer of a masked language model or a decoder that is asked with `training.template`.

    Raises:
        UserError: the template, the verbaliser and the adapter do not fit each other, the data or the vocabulary.
    """
    template = ClozeTemplate(training.template)
    pseudo = model.peft is not None and model.peft.get("method") == "p_tuning_template"
    if bool(template.num_pseudo_tokens) != pseudo:
        raise UserError(
            "template: [P] are the pseudo tokens of peft: {method: p_tuning_template}; use both or neither"
        )
    if pseudo and model.peft_config("CAUSAL_LM").num_pseudo_tokens != template.num_pseudo_tokens:
        raise UserError(
            f"template has {template.num_pseudo_tokens} [P]; set peft: {{num_pseudo_tokens: {template.num_pseudo_tokens}}}"
        )
    tokenizer = model.load_tokenizer(needs=("pad_token",))
    template.check(tokenizer, texts["train"].column_names)
    words = Verbalizer(wording(training.verbalizer, labels), tokenizer, template)
    masked = tokenizer.mask_token_id is not None
    tokenizer, language_model = model.load(
        AutoModelForMaskedLM if masked else AutoModelForCausalLM, needs=("pad_token",)
    )
    vocabulary = language_model.get_input_embeddings().num_embeddings
    rows = {
        split: encode(dataset, tokenizer, labels, template, vocabulary, training.max_length)
        for split, dataset in texts.items()
    }
    training.remove_unused_columns = False  # where the gap is, is no input of the model
    return GapTrainer(
        model=model.adapt(language_model, "FEATURE_EXTRACTION" if masked else "CAUSAL_LM", training),
        args=training,
        processing_class=tokenizer,
        data_collator=pad(tokenizer),
        train_dataset=rows["train"],
        eval_dataset=rows.get("test"),
        compute_metrics=measures,
        words=words,
    )


def wording(verbalizer: dict[str, str] | None, labels: Sequence[str]) -> dict[str, str]:
    """The word of each label, in the labels' order; without a verbaliser the labels speak for themselves.

    Raises:
        UserError: a label without a word, or a word for no label.
    """
    if verbalizer is None:
        return {label: label for label in labels}
    for label in labels:
        if label not in verbalizer:
            raise UserError(f"verbalizer: has no word for the label '{label}'")
    for label in verbalizer:
        if label not in labels:
            raise UserError(f"verbalizer: no label '{label}' in the training split{did_you_mean(label, labels)}")
    return {label: verbalizer[label] for label in labels}


def encode(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str],
    template: ClozeTemplate,
    vocabulary: int,
    max_length: int,
) -> Dataset:
    """Rows of `input_ids`, `attention_mask`, `answer_position` and `labels`."""

    def row(text: dict[str, str]) -> dict[str, Any]:
        return {**template.encode(tokenizer, text, vocabulary, max_length), "labels": labels.index(text["label"])}

    return dataset.map(row, remove_columns=dataset.column_names, desc="Tokenizing")


def pad(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
    """A collator that pads on the right, so that `answer_position` keeps its meaning."""

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        inputs = [{key: row[key] for key in ("input_ids", "attention_mask")} for row in rows]
        batch = dict(tokenizer.pad(inputs, padding_side="right", return_tensors="pt"))
        return batch | {key: torch.tensor([row[key] for row in rows]) for key in ("answer_position", "labels")}

    return collate


class GapTrainer(Trainer):
    """A Trainer whose loss is the cross-entropy over the labels' words alone, at the gap.

    In evaluation the model's output is these scores [batch, labels] in place of the logits of the whole vocabulary.
    """

    loss_is_scaled_for_ga = False

    def __init__(self, *args, words: Verbalizer, **kwargs):
        super().__init__(*args, **kwargs)
        self.words = words

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        logits = logits[:, -inputs["input_ids"].shape[1] :]  # a prompt before the text has positions of its own
        scores = self.words.scores(logits, inputs["answer_position"]).float()
        loss = cross_entropy(scores, inputs["labels"], label_smoothing=self.args.label_smoothing_factor)
        return (loss, {"logits": scores}) if return_outputs else loss
