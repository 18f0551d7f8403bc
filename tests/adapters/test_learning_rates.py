"""The table of learning rates: of methods that there are, each with a source that can be looked up."""

import re

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from recipes.adapters import LEARNING_RATES

WITHOUT_A_CONFIG = {
    "full",
    "qlora",
    "p_tuning_v2",
}  # no adapter, LoRA on a quantised base, prefix-tuning of an encoder


def test_every_row_is_of_a_method_and_says_where_it_comes_from():
    methods = {kind.value.lower() for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    assert set(LEARNING_RATES) - methods == WITHOUT_A_CONFIG
    assert {"bitfit", "bottleneck", "adapter_fusion", "p_tuning_template"} <= set(LEARNING_RATES)
    for rate in LEARNING_RATES.values():
        assert rate.value in rate.searched
        assert re.search(r"et al\.|& Liang", rate.source) and re.search(r"\(\d{4}\.\d{5}\)", rate.source)


def test_prompts_learn_faster_than_weights():
    assert LEARNING_RATES["prompt_tuning"].value > 100 * LEARNING_RATES["lora"].value > LEARNING_RATES["full"].value
