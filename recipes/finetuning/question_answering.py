"""Question answering: the piece of a text that answers a question, by where it starts and ends.

Paper: Devlin et al. 2018, BERT, arXiv 1810.04805, section 4.2; questions and counting: Rajpurkar et al. 2016, SQuAD,
       arXiv 1606.05250.
Run:   python -m recipes.finetuning.question_answering --config configs/finetuning/question_answering/quickstart.yaml
"""

from dataclasses import dataclass, field

from transformers import AutoModelForQuestionAnswering, DataCollatorWithPadding, TrainingArguments

from recipes.core import DataConfig, ModelConfig, Run, UserError, metrics, recipe
from recipes.finetuning.answer_spans import FORM, SpanTrainer, best_answers, check_answers, encode, nearest_sentences


@dataclass
class QuestionAnsweringConfig(TrainingArguments):
    """TrainingArguments, and how a long text is read and an answer chosen."""

    max_length: int = field(default=384, metadata={"help": "Tokens of a window: question and a part of the text."})
    doc_stride: int = field(default=128, metadata={"help": "Tokens that two neighbouring windows share."})
    n_best: int = field(default=20, metadata={"help": "Starts and ends that are looked at in each window."})
    max_answer_length: int = field(default=30, metadata={"help": "Tokens of an answer at most."})

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.doc_stride < self.max_length:
            raise UserError(f"doc_stride ({self.doc_stride}) must be below max_length ({self.max_length})")


@recipe
def main(run: Run, model: ModelConfig, data: DataConfig, training: QuestionAnsweringConfig) -> None:
    questions = data.load(FORM)
    check_answers(questions)
    tokenizer, reader = model.load(AutoModelForQuestionAnswering, needs=("pad_token",))
    tokenizer.padding_side = "right"  # answers are told by their places in a window
    windows = {
        split: encode(questions[split], tokenizer, training.max_length, training.doc_stride) for split in questions
    }

    trainer = SpanTrainer(
        model=model.adapt(reader, "QUESTION_ANS", training),
        args=training,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=windows["train"],
        eval_dataset=windows.get("test"),
    )
    run.fit(trainer)

    if "test" in questions:
        scores = trainer.predict(windows["test"]).predictions
        given = best_answers(questions["test"], windows["test"], *scores, training.n_best, training.max_answer_length)
        accepted = [answers["text"] for answers in questions["test"]["answers"]]
        count = metrics.load("squad").compute
        measured = count(predictions=given, references=accepted)
        run.record(**measured, baselines=count(predictions=nearest_sentences(questions["test"]), references=accepted))


if __name__ == "__main__":
    main()
