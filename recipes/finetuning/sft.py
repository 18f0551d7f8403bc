"""Supervised fine-tuning: a language model learns to answer from demonstrations; only the answer is supervised.

Paper: Ouyang et al. 2022, Training language models to follow instructions with human feedback, arXiv 2203.02155, step 1.
Run:   accelerate launch -m recipes.finetuning.sft --config configs/finetuning/sft/quickstart.yaml
"""

import math

from trl import SFTConfig, SFTTrainer

from recipes.core import DataConfig, ModelConfig, Run, recipe
from recipes.finetuning.supervision import check_supervision


@recipe
def main(run: Run, model: ModelConfig, data: DataConfig, training: SFTConfig) -> None:
    dialogues = data.load(("prompt", "completion"), ("messages",), ("text",))
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


if __name__ == "__main__":
    main()
