"""What every recipe shares. Imported lazily, so that a script pays only for what it names."""

from recipes.core.data import DataConfig
from recipes.core.errors import UserError
from recipes.core.models import ModelConfig
from recipes.core.recipe import recipe
from recipes.core.run import Run, RunConfig, TaskConfig

__all__ = ["DataConfig", "ModelConfig", "Run", "RunConfig", "TaskConfig", "UserError", "recipe"]
