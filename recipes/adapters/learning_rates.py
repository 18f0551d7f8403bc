"""The learning rate that suits each method, and where the number comes from.

PEFT's defaults and habits are those of LoRA; prompt methods need rates ten to a thousand times as large.
"""

from typing import NamedTuple


class LearningRate(NamedTuple):
    """A method's own rate.

    Attributes:
        value: to begin with; small models and few steps often want more.
        searched: the rates that the paper or its code tried or used.
        source: paper or file, with model and task.
    """

    value: float
    searched: tuple[float, ...]
    source: str


LEARNING_RATES = {
    "full": LearningRate(2e-5, (2e-5, 3e-5, 5e-5), "Devlin et al. 2018 (1810.04805), appendix A.3: BERT on GLUE"),
    "bitfit": LearningRate(
        1e-3, (1e-4, 4e-4, 7e-4, 1e-3), "Ben Zaken et al. 2021 (2106.10199), appendix: BERT on GLUE, batch of 16"
    ),
    "bottleneck": LearningRate(
        3e-4, (3e-5, 3e-4, 3e-3), "Houlsby et al. 2019 (1902.00751), section 3.2; 1e-4 in Pfeiffer et al. and MAD-X"
    ),
    "adapter_fusion": LearningRate(5e-5, (5e-5,), "Pfeiffer et al. 2020 (2005.00247), section 4.1"),
    "lora": LearningRate(
        5e-4, (4e-4, 5e-4, 2e-4), "Hu et al. 2021 (2106.09685), appendix D: RoBERTa-base on GLUE; GPT-2 and GPT-3 2e-4"
    ),
    "adalora": LearningRate(
        8e-4, (5e-4, 8e-4, 1e-3, 1.2e-3, 2.2e-3), "Zhang et al. 2023 (2303.10512), appendix: DeBERTaV3-base on GLUE"
    ),
    "qlora": LearningRate(2e-4, (2e-4, 1e-4), "Dettmers et al. 2023 (2305.14314), appendix B: 7B and 13B; 1e-4 above"),
    "ia3": LearningRate(3e-3, (3e-3,), "Liu et al. 2022 (2205.05638), section 3.3: T0, Adafactor"),
    "prompt_tuning": LearningRate(
        0.3, (0.3,), "Lester et al. 2021 (2104.08691), section 3: T5, Adafactor with a constant rate, 30,000 steps"
    ),
    "p_tuning": LearningRate(1e-4, (1e-5, 1e-4), "Liu et al. 2021 (2103.10385), the authors' code: 1e-5 on LAMA"),
    "p_tuning_template": LearningRate(
        1e-4, (1e-5, 1e-4), "Liu et al. 2021 (2103.10385), the authors' code: 1e-4 for the prompt on SuperGLUE"
    ),
    "p_tuning_v2": LearningRate(
        7e-3, (5e-3, 7e-3, 1e-2), "Liu et al. 2021 (2110.07602), the authors' scripts: BoolQ 7e-3, RTE 1e-2"
    ),
    "prefix_tuning": LearningRate(
        5e-5, (5e-5,), "Li & Liang 2021 (2101.00190), appendix: GPT-2 on E2E with the MLP reparameterisation"
    ),
}
