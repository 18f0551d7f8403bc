"""An adapter that gets no gradient is an error, but not where answers are sampled and all of them have the same reward."""

import json

import pytest

LORA = "{method: lora, r: 2, target_modules: all-linear}"


@pytest.mark.parametrize("recipe", ["rlhf/grpo", "rlhf/rloo", "rlhf/ppo"])
def test_answers_of_one_reward_give_no_gradient_and_stop_nothing(recipe, main, job, tmp_path, monkeypatch):
    (tmp_path / "rewards.py").write_text("def nothing(prompts, **_):\n    return [0.0] * len(prompts)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("recipes.core.results.draw_curves", lambda *_: None)
    flags = [
        "--peft",
        LORA,
        "--reward_funcs",
        "[rewards:nothing]",
        "--missing_eos_penalty",
        "null",
        "--max_steps",
        "2",
    ]
    flags += ["--value_model", "shared"] if recipe == "rlhf/ppo" else []
    main(recipe)(job(recipe, tmp_path / "run", *flags))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 2
