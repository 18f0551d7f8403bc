"""Classification by a new head, and GPT's auxiliary objective: a classifier that goes on predicting the next token.

Paper: Radford et al. 2018, Improving Language Understanding by Generative Pre-Training, eq. 5: L3 = L2 + λ · L1.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from datasets import DatasetDict
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    Trainer,
)
from transformers.integrations import is_deepspeed_zero3_enabled

from recipes.core import ModelConfig, UserError
from recipes.finetuning.classification_data import encode, measures

if TYPE_CHECKING:
    from recipes.finetuning.classification import ClassificationConfig


def make_trainer(
    model: ModelConfig, training: "ClassificationConfig", texts: DatasetDict, labels: Sequence[str]
) -> Trainer:
    """The trainer of a model with a head of one score a label, under the adapter of `model.peft` if there is one."""
    tokenizer, classifier = model.load(
        AutoModelForSequenceClassification,
        needs=("pad_token",),
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    if training.freeze_base:
        model.freeze_all_but_new(classifier)
    rows = {split: encode(texts[split], tokenizer, labels, training.max_length) for split in texts}
    return ClassificationTrainer(
        model=model.adapt(classifier, "SEQ_CLS", training),
        args=training,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=rows["train"],
        eval_dataset=rows.get("test"),
        compute_metrics=measures,
        lm_coef=training.lm_coef,
    )


class ClassificationTrainer(Trainer):
    """A Trainer whose loss has the mean loss of the next token, times `lm_coef`, beside the model's own, a mean over rows.

    Trainer takes these models' loss, whose forward has keywords to spare, for one that is a sum over the whole step's labels
    already, and would multiply it by micro-batches and processes.
    """

    def __init__(self, *args, lm_coef: float = 0.0, **kwargs):
        super().__init__(*args, preprocess_logits_for_metrics=scores_alone, **kwargs)
        self.model_accepts_loss_kwargs = False
        self.lm_coef = lm_coef
        if lm_coef and (self.is_fsdp_enabled or is_deepspeed_zero3_enabled()):
            raise UserError("lm_coef reads the whole embedding, which ZeRO-3 and FSDP split up; use ddp or zero2")
        if lm_coef:
            self.hidden = keep_head_input(self.model)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self.lm_coef and model.training:
            embedding = self.accelerator.unwrap_model(model).get_input_embeddings().weight
            loss = loss + self.lm_coef * next_token_loss(
                self.hidden[-1], embedding, inputs["input_ids"], inputs["attention_mask"]
            )
        return (loss, outputs) if return_outputs else loss


def scores_alone(outputs: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """The scores [rows, labels]; an encoder-decoder gives its encoder's states too."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


def keep_head_input(model: nn.Module) -> list[Tensor]:
    """A list that holds what the head of a decoder was last given: the hidden states [batch, length, hidden].

    Raises:
        UserError: the model is no decoder with a head on its last layer, or its LM head is not its embedding.
    """
    heads = [module for name, module in model.named_modules() if name == "score" or name.endswith(".score")]
    base: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not heads:
        raise UserError(f"lm_coef: a {base.config.model_type} has no next token to predict; it needs a decoder")
    if not base.config.get_text_config().tie_word_embeddings:
        raise UserError(
            "lm_coef: the LM head of this model is not its embedding (tie_word_embeddings: false), and a classifier "
            "has no other"
        )
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kept[:] = [inputs[0]]

    heads[0].register_forward_pre_hook(keep)
    return kept


def next_token_loss(hidden: Tensor, embedding: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean over all real tokens but the first of -log p(token | those before it), scalar (L1 of the paper, in nats).

    Args:
        hidden: [batch, length, H] of the last layer; a prompt before the text may lengthen it.
        embedding: [V, H], which is the LM head, too.
        input_ids, attention_mask: [batch, length of the text].
    """
    hidden = hidden[:, -input_ids.shape[1] :]
    logits = (hidden[:, :-1] @ embedding.to(hidden.dtype).T).float()
    targets = input_ids[:, 1:].masked_fill((attention_mask[:, 1:] * attention_mask[:, :-1]) == 0, -100)
    return cross_entropy(logits.flatten(0, 1), targets.flatten())
