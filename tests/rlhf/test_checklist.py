"""The page on PPO's details names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_checklist_names_tests_that_exist():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "ppo.md").read_text()))
    written = {
        name
        for file in (ROOT / "tests" / "rlhf").glob("*.py")
        for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    assert len(named) > 25
    assert named <= written, named - written
