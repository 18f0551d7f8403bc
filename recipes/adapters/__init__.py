"""Methods that PEFT does not have, registered with it: importing this package is all it takes.

    method                 config                  what is trained
    bitfit                 BitFitConfig            the bias terms
    bottleneck             BottleneckConfig        Houlsby's and Pfeiffer's adapters; invertible: true for MAD-X's
    adapter_fusion         AdapterFusionConfig     attention over adapters that were trained before
    p_tuning_template      PTuningTemplateConfig   pseudo tokens inside a cloze question

The configs' fields are the keys of the YAML block `peft:`. `attach` and `open_adapter` take every method of PEFT's.
"""

from recipes.adapters.bitfit import BitFitConfig, BitFitModel
from recipes.adapters.bottleneck import BottleneckConfig, BottleneckModel, stack
from recipes.adapters.fusion import AdapterFusionConfig, AdapterFusionModel
from recipes.adapters.p_tuning import PTuningTemplateConfig, PTuningTemplateModel
from recipes.adapters.registration import register

register("bitfit", BitFitConfig, BitFitModel)
register("bottleneck", BottleneckConfig, BottleneckModel)
register("adapter_fusion", AdapterFusionConfig, AdapterFusionModel)
register("p_tuning_template", PTuningTemplateConfig, PTuningTemplateModel)

from recipes.adapters.attaching import attach, check_config, check_modules, open_adapter  # noqa: E402 (it names the types above)

__all__ = [
    "AdapterFusionConfig",
    "AdapterFusionModel",
    "BitFitConfig",
    "BottleneckConfig",
    "PTuningTemplateConfig",
    "attach",
    "check_config",
    "check_modules",
    "open_adapter",
    "stack",
]
