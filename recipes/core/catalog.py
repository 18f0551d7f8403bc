"""What there is: recipes, configs and runs, read from the folders alone (nothing is registered, nothing heavy imported)."""

import ast
from dataclasses import dataclass
from pathlib import Path

from recipes.core.errors import UserError, did_you_mean

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
LAUNCH = CONFIGS / "launch"
FAMILIES = (
    "tokenization",
    "pretraining",
    "finetuning",
    "rlhf",
    "prompting",
    "blackbox",
    "vision",
    "distributed",
    "apps",
)


@dataclass(frozen=True)
class Recipe:
    """A script under `recipes/<family>/` that has configs under `configs/<family>/<recipe>/`."""

    name: str

    @property
    def module(self) -> str:
        return "recipes." + self.name.replace("/", ".")

    @property
    def script(self) -> Path:
        return ROOT / "recipes" / f"{self.name}.py"

    @property
    def description(self) -> str:
        docstring = ast.get_docstring(ast.parse(self.script.read_text(encoding="utf-8"))) or ""
        return docstring.split("\n\n")[0].replace("\n", " ").strip()

    @property
    def modules(self) -> list[Path]:
        """The script and all modules of its family that it imports, directly or not."""
        prefix, found, waiting = self.module.rpartition(".")[0] + ".", set(), [self.script]
        while waiting:
            file = waiting.pop()
            if file in found or not file.exists():
                continue
            found.add(file)
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(prefix):
                    names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
                    waiting += [
                        file.parent / f"{name.removeprefix(prefix)}.py" for name in names if name != prefix[:-1]
                    ]
        return sorted(found)

    @property
    def configs(self) -> list["Config"]:
        return [Config(f"{self.name}/{path.stem}") for path in sorted((CONFIGS / self.name).glob("*.yaml"))]


@dataclass(frozen=True)
class Config:
    """A YAML file `configs/<family>/<recipe>/<variant>.yaml`."""

    name: str

    @property
    def path(self) -> Path:
        return CONFIGS / f"{self.name}.yaml"

    @property
    def recipe(self) -> Recipe:
        return Recipe(self.name.rpartition("/")[0])

    @property
    def description(self) -> str:
        first = self.path.read_text(encoding="utf-8").partition("\n")[0]
        return first.lstrip("# ").strip()


def recipes() -> list[Recipe]:
    """Every script that has a folder of configs, family by family in the order of the literature."""
    return [
        Recipe(f"{family}/{folder.name}")
        for family in FAMILIES
        for folder in sorted((CONFIGS / family).glob("*/"))
        if (ROOT / "recipes" / family / f"{folder.name}.py").exists()
    ]


def configs() -> list[Config]:
    return [config for recipe in recipes() for config in recipe.configs]


def find_config(name_or_path: str) -> Path:
    """The file of a config given by its name (`rlhf/ppo/quickstart`) or by a path.

    Raises:
        UserError: there is no such file; the message names the nearest config.
    """
    for candidate in (Path(name_or_path), CONFIGS / f"{name_or_path}.yaml"):
        if candidate.is_file():
            return candidate
    known = [config.name for config in configs()]
    wanted = name_or_path.removeprefix("configs/").removesuffix(".yaml")
    raise UserError(f"no config '{name_or_path}'{did_you_mean(wanted, known) or '; see: python -m recipes list'}")


def config_name(path: Path) -> str | None:
    """`rlhf/ppo/quickstart` for a file inside `configs/`, None for a file elsewhere."""
    path = path.resolve()
    return str(path.relative_to(CONFIGS).with_suffix("")) if path.is_relative_to(CONFIGS) else None


def launch_profile(name: str) -> Path:
    """The accelerate profile `configs/launch/<name>.yaml`.

    Raises:
        UserError: there is no such profile.
    """
    path = LAUNCH / f"{name}.yaml"
    if not path.is_file():
        known = [profile.stem for profile in LAUNCH.glob("*.yaml")]
        raise UserError(f"no launch profile '{name}' in configs/launch{did_you_mean(name, known)}")
    return path


def parent_config(path: str) -> str | None:
    """The config whose run a path such as `runs/rlhf/reward/quickstart` names, or None if it names no run."""
    parts = Path(path).parts
    names = ("/".join(parts[start:]) for start in range(1, len(parts)))
    return next((name for name in names if (CONFIGS / f"{name}.yaml").is_file()), None)


def check_source(path: str, key: str) -> None:
    """Raise a UserError if `path` is a run that is not finished yet or a folder that is not there."""
    folder, config = Path(path), parent_config(path)
    if config and not (folder / "result.json").exists():
        state = "is not finished" if folder.exists() else "was not made yet"
        runs_dir = path.rstrip("/").removesuffix(config).rstrip("/")
        elsewhere = f" --runs_dir {runs_dir}" if runs_dir != "runs" else ""
        raise UserError(f"{key}: {path} {state}; make it with: python -m recipes run {config}{elsewhere}")
    looks_local = path.startswith((".", "/", "~", "$", "runs/")) or path.count("/") > 1
    if looks_local and not folder.exists():
        hint = " (environment variables are not expanded)" if "$" in path else ""
        raise UserError(f"{key}: no folder '{path}'{hint}")
