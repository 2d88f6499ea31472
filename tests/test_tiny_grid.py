"""The best cell of the tiny grid, trained for real: it hears, it is not guessing, and it had to be trained for it. About eight minutes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TRIAL = "tiny-instruct.regular.seed0"


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    dropped = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "SLOTGRID_STORE")
    environment = {
        **{k: v for k, v in os.environ.items() if k not in dropped},
        "SLOTGRID_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=2400
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.mark.slow
@pytest.mark.timeout(2700)
def test_the_best_cell_listens(tmp_path: Path) -> None:
    foundation, mode, _ = TRIAL.split(".")
    only = (f"foundation={foundation}", f"mode={mode}")
    run(str(ROOT / "experiments" / "grid.py"), "--scale", "tiny", "--only", *only, cwd=tmp_path)
    run("-m", "orchestrator.slotgrid_cli", "listening", "runs/grid-tiny", "--trial", TRIAL, cwd=tmp_path)
    listening = json.loads((tmp_path / "runs" / "grid-tiny" / "trials" / TRIAL / "listening.json").read_text())
    assert listening["trained"] >= 0.75
    assert listening["untrained"] < 0.05
    assert listening["shuffled"] <= listening["trained"] / 2
