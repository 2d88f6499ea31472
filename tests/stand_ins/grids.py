"""A grid as a user starts it: a process of its own, away from every other Ray, MLflow and network."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "grid.py"


def environment() -> dict[str, str]:
    """This process's own, without what would let a test reach another Ray, MLflow or the network."""
    dropped = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "SLOTGRID_STORE", "SLOTGRID_DEBUG")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "SLOTGRID_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def grid(*arguments: str, cwd: Path, script: Path = SCRIPT, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the grid's command line to its end; `more` are environment variables."""
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment() | more, capture_output=True, text=True, timeout=600)


def start_smoke_grid(cwd: Path, *, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """The smoke grid, begun, in a session of its own; `stdout`: where to all that it prints goes."""
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), "--scale", "smoke"],
        cwd=cwd,
        env=environment(),
        stdout=stdout,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_folder(folder: Path) -> Path:
    """Where a smoke grid that ran in `folder` left everything."""
    return folder / "runs" / "grid-smoke"
