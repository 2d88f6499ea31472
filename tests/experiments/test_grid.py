"""The full grid as a script: it plans in a moment, alone, wherever the file is copied to."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.grid import EXPERIMENT
from orchestrator.scales import SCALES

ROOT = Path(__file__).parents[2]


def script(path: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(path), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("scale", "trials"), [("smoke", 2), ("tiny", 12), ("small", 3), ("paper", 15)])
def test_every_scale_declares_its_grid(scale: str, trials: int) -> None:
    assert len(EXPERIMENT.declare(SCALES[scale], 1)) == trials
    assert len(EXPERIMENT.declare(SCALES[scale], 3)) == 3 * trials


def test_no_result_depends_on_where_it_is_declared() -> None:
    assert EXPERIMENT.declare(SCALES["tiny"], 2) == EXPERIMENT.declare(SCALES["tiny"], 2)


def test_the_lone_script_plans_in_under_two_seconds(tmp_path: Path) -> None:
    """`ray submit` copies one file to the head's home folder and runs it there."""
    lone = shutil.copy(ROOT / "experiments" / "grid.py", tmp_path / "grid.py")
    begun = time.monotonic()
    planned = script(Path(lone), "plan", "--scale", "tiny", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert time.monotonic() - begun < 2
    assert "tiny-hybrid.hybrid.seed0" in planned.stdout
    assert planned.stdout.splitlines()[-1] == f"next: python {lone} --scale tiny"
    assert [path.name for path in tmp_path.iterdir()] == ["grid.py"], "planning wrote something"


def test_planning_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from experiments.grid import EXPERIMENT; from orchestrator.cli import main; "
        "main(EXPERIMENT, ['plan', '--scale', 'tiny']); "
        "heavy = {'torch', 'ray', 'mlflow', 'deepspeed', 'peft', 'openai', 'transformers', 'matplotlib', 'numpy', 'pyarrow'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "[]", run.stderr
