"""The README tells the truth: every module is in its tree, and what it says can be typed can be typed."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGES = ("data", "model", "orchestrator", "experiments")


def test_every_module_has_its_line_in_the_tree() -> None:
    tree = README.split("## The tree")[1].split("## The run folder")[0]
    modules = {path.name for package in PACKAGES for path in (ROOT / package).rglob("*.py")} - {"__init__.py"}
    named = set(re.findall(r"[\w]+\.py", tree))
    assert modules - named == set()
    assert named - modules <= {"test_end_to_end.py"}


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_local_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z-]+)", README)) <= targets


def test_commands_of_the_experiment_are_verbs_and_scales() -> None:
    from orchestrator.scales import AUTO, SCALES
    from orchestrator.verbs import VERBS

    assert set(re.findall(r"python experiments/grid\.py ([a-z]+)", README)) <= set(VERBS)
    assert set(re.findall(r"^\| `(\w+)`", README, flags=re.MULTILINE)) == {*SCALES, AUTO}
