"""A corpus in each format, as a lab would bring it: imported, validated, annotated, looked at, trained on, scored again from its files."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORMATS = ("slurp", "speech-massive", "spokenwoz", "stop", "slue-voxpopuli", "fluent-speech-commands", "jsonl")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(*arguments: str, cwd: Path) -> str:
    """What a command printed; it must have ended well."""
    dropped = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "SLOTGRID_STORE", "SLOTGRID_DEBUG", "OPENAI_API_KEY")
    environment = {k: v for k, v in os.environ.items() if k not in dropped}
    environment |= {"SLOTGRID_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def slotgrid(*arguments: str, cwd: Path) -> str:
    return run("-m", "orchestrator.slotgrid_cli", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one store for all corpora: the encoder's weights are converted once."""
    return tmp_path_factory.mktemp("lab")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "slurp" else pytest.mark.full) for name in FORMATS]
)
def test_a_corpus_of_each_format_trains_in_the_smoke_scale(name: str, lab: Path) -> None:
    source = lab / "downloads" / name
    importlib.import_module(f"corpus_samples.{name.replace('-', '_')}").write(source)
    assert "next:" in slotgrid("data", "import", name, str(source), "--out", "runs", "--workers", "1", cwd=lab)
    corpus = lab / "runs" / "prepared" / "corpora" / name
    slotgrid("data", "validate", str(corpus), cwd=lab)
    slotgrid("data", "annotate", name, "--annotator", "rule", cwd=lab)
    only = ("mode=hybrid", "mode=regular") if name == "slurp" else ("mode=hybrid",)
    grid = (str(ROOT / "experiments" / "grid.py"), "--scale", "smoke", "--corpus", name, "--only", *only)
    run(*grid, cwd=lab)
    trials = lab / "runs" / f"grid-smoke-{name}" / "trials"
    results = {path.parent.name: json.loads(path.read_text()) for path in trials.glob("*/result.json")}
    assert len(results) == len(only)
    trial, result = next(item for item in results.items() if "hybrid" in item[0])
    rows = [json.loads(line) for line in (corpus / "manifest.jsonl").read_text().splitlines()]
    assert result["counts"]["test"] == sum(row["split"] == "test" for row in rows)
    scored = json.loads(
        slotgrid(
            *("score", "--references", str(corpus / "manifest.jsonl")),
            *("--predictions", str(trials / trial / "predictions-direct.jsonl"), "--json"),
            cwd=lab,
        )
    )
    assert (
        scored["metric_version"] == json.loads((trials / trial / "config.json").read_text())["config"]["metric_version"]
    )
