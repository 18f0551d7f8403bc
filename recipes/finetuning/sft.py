"""Supervised fine-tuning: a language model learns to answer from demonstrations.

Of `prompt` and `completion` the completion alone is supervised; of `messages` every turn, or the assistant's alone with
`assistant_only_loss`.

Paper: Ouyang et al. 2022, Training language models to follow instructions with human feedback, arXiv 2203.02155, step 1.
Run:   accelerate launch -m recipes.finetuning.sft --config configs/finetuning/sft/quickstart.yaml
"""

import math
from dataclasses import dataclass, field

from trl import SFTConfig, SFTTrainer

from recipes.core import DataConfig, ModelConfig, Run, UserError, recipe
from recipes.finetuning.answers import count_answers
from recipes.finetuning.supervision import check_supervision


@dataclass
class TuningConfig(SFTConfig):
    """SFTConfig, and how many held-out prompts are answered at the end."""

    answers: int = field(default=0, metadata={"help": "Held-out prompts that are answered, greedily, and counted."})
    answer_length: int = field(default=64, metadata={"help": "Tokens that such an answer may have."})


@recipe
def main(run: Run, model: ModelConfig, data: DataConfig, training: TuningConfig) -> None:
    dialogues = data.load(("prompt", "completion"), ("messages",), ("text",))
    if training.answers and not {"prompt", "completion"} <= set(dialogues["train"].column_names):
        raise UserError("answers: only data with the columns 'prompt' and 'completion' have prompts to be answered")
    if training.answers and "test" not in dialogues:
        raise UserError(
            "answers: there is no test split to take prompts from; drop the key, or dataset_test_split: null"
        )
    tokenizer, language_model = model.load_causal_lm(dialogues)

    trainer = SFTTrainer(
        model=language_model,
        args=training,
        processing_class=tokenizer,
        train_dataset=dialogues["train"],
        eval_dataset=dialogues.get("test"),
        peft_config=model.peft_config("CAUSAL_LM"),
    )
    supervision = check_supervision(trainer)
    run.fit(trainer)

    run.record(**supervision)
    if "test" in dialogues:
        loss = trainer.evaluate()["eval_loss"]
        run.record(eval_loss=loss, perplexity=math.exp(loss), baselines=run.at_start("eval_loss"))
        if training.answers:
            run.record(
                **count_answers(trainer, dialogues["test"], data.names, training.answers, training.answer_length)
            )


if __name__ == "__main__":
    main()
