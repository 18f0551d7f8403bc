"""Registering a method with PEFT, whose list of methods is an enumeration that was closed when PEFT was imported."""

from peft.utils import PeftType, register_peft_method


def register(name: str, config_cls: type, model_cls: type) -> None:
    """Make `name` a method of PEFT: its type, its config class, its tuner and the prefix of its tensors.

    From then on `get_peft_model`, `PeftModel.from_pretrained` and `PeftConfig.from_pretrained` know it.
    """
    value = name.upper()
    if value not in PeftType.__members__:
        member = str.__new__(PeftType, value)
        member._name_ = member._value_ = value
        PeftType._member_names_.append(value)
        PeftType._member_map_[value] = PeftType._value2member_map_[value] = member
        type.__setattr__(PeftType, value, member)  # the enumeration's own __setattr__ protects its members
    register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls, prefix=model_cls.prefix)
