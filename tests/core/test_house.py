"""The rules of the house: thin scripts, families that know nothing of each other, a list that costs nothing."""

import ast
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.core.catalog import FAMILIES, ROOT, Recipe, recipes

SCRIPT_LINES, MODULE_LINES = 130, 540
SHARED = {"core", "adapters", "embedded", "planner"}
RECIPES = recipes()
MODULES = sorted((ROOT / "recipes").rglob("*.py"))


def imports(path: Path) -> set[str]:
    """The parts of `recipes` that a file imports, wherever in it: `recipes.core.data` gives `core`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("recipes.")}
    return found


def family(path: Path) -> str:
    return path.relative_to(ROOT / "recipes").parts[0]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_imports_are_seen():
    """The rule below could not fail if nothing were found."""
    assert "rlhf" in imports(ROOT / "recipes/rlhf/ppo.py")
    assert {"core", "pretraining"} <= imports(ROOT / "recipes/pretraining/causal.py")
    assert "embedded" in imports(ROOT / "recipes/core/data.py")


@pytest.mark.parametrize("path", [path for path in MODULES if family(path) in FAMILIES], ids=relative)
def test_a_family_imports_no_other_family(path):
    others = set(FAMILIES) - {family(path)}
    assert not imports(path) & others


@pytest.mark.parametrize("path", [path for path in MODULES if family(path) in SHARED], ids=relative)
def test_what_is_shared_imports_no_family(path):
    assert not imports(path) & set(FAMILIES)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_script_is_short_and_says_how_it_is_run(recipe):
    text = recipe.script.read_text(encoding="utf-8")
    assert len(text.splitlines()) < SCRIPT_LINES
    docstring = ast.get_docstring(ast.parse(text))
    assert re.search(r"^Paper: ", docstring, re.M)
    assert re.search(rf"^Run: +(accelerate launch|python) -m {re.escape(recipe.module)} --config \S+", docstring, re.M)
    named = re.search(r"--config (\S+)", docstring)[1]
    assert (ROOT / named).is_file()
    assert named.startswith(f"configs/{recipe.name}/")
    assert recipe.description.endswith(".")


def test_no_module_grows_without_end():
    long = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {path: lines for path, lines in long.items() if lines > MODULE_LINES} == {}


def test_there_is_no_module_for_odds_and_ends():
    assert not [path for path in MODULES if path.stem in ("utils", "util", "helpers", "misc", "common")]


def test_every_script_belongs_to_a_family_that_is_listed():
    folders = {path.name for path in (ROOT / "recipes").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= {*FAMILIES, *SHARED}


def test_the_list_imports_no_library_and_takes_no_time():
    heavy = {"torch", "transformers", "datasets", "trl", "peft", "accelerate", "numpy"}
    code = f"""
import sys, runpy
sys.argv = ["recipes", "list"]
runpy.run_module("recipes", run_name="__main__")
sys.exit(",".join({heavy} & set(sys.modules)) or None)
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ran.returncode == 0, ran.stderr
    for recipe in RECIPES:
        assert recipe.name in ran.stdout
        for config in recipe.configs:
            assert config.name in ran.stdout
            assert config.description in ran.stdout
    assert (
        after.ru_utime - before.ru_utime < 1.0
    )  # of the processor, which other work on the machine does not lengthen


def test_a_run_depends_on_what_its_script_imports():
    modules = {path.name for path in Recipe("rlhf/ppo").modules}
    assert modules >= {
        "ppo.py",
        "ppo_trainer.py",
        "head.py",
        "packing.py",
        "generation.py",
        "trunk.py",
        "naive_bayes.py",
    }
    assert not modules & {"reward.py", "evaluate.py", "grpo.py"}
    assert "packing.py" in {path.name for path in Recipe("pretraining/causal").modules}
