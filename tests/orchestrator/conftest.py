"""Run folders as finished, failed and interrupted trials leave them: the files that the ledger and the report read."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data.atomic import write_json
from model.configs import TrialConfig
from orchestrator.identity import fingerprint, trial_id, write_config
from orchestrator.layout import RunFolder, Store, open_store
from orchestrator.mlflow_tracker import MlflowTracker
from orchestrator.results import Failure, TrialResult, write_failure, write_result
from orchestrator.scales import SCALES


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's schema, made once: it takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowTracker(f"sqlite:///{path}", "other", artifact_root=path.parent / "artifacts")
    return path


@pytest.fixture
def tiny_grid() -> list[TrialConfig]:
    tiny = SCALES["tiny"]
    return [tiny.trial(foundation=f, mode=mode, seed=0) for f in tiny.foundations for mode in tiny.modes]


@pytest.fixture
def finish() -> Callable[..., None]:
    """Leave what a finished trial leaves."""

    def finish(run: RunFolder, trial: TrialConfig, partial_f1: float = 0.5, *, seconds: float = 10.0) -> None:
        folder = run.trial(trial_id(trial))
        write_config(folder.config, trial)
        mode = trial.inference_modes[-1]
        scores = {
            "eval/partial_f1": partial_f1,
            f"eval/{mode}/partial_f1": partial_f1,
            f"eval/{mode}/truncation_rate": 0.25,
        }
        write_result(
            folder,
            TrialResult(
                trial_id=trial_id(trial),
                fingerprint=fingerprint(trial),
                foundation=trial.foundation.name,
                kind=trial.foundation.kind,
                mode=trial.mode,
                seed=trial.seed,
                headline_inference_mode=mode,
                scores=scores,
                validation_scores={name.replace("eval/", "validation/"): value for name, value in scores.items()},
                costs={"device_seconds": seconds, "lost_device_seconds": 0.0},
            ),
        )

    return finish


@pytest.fixture
def begin() -> Callable[..., None]:
    """Leave what a trial leaves that was killed, or with `failure` one that failed."""

    def begin(run: RunFolder, trial: TrialConfig, *, step: int = 0, failure: Failure | None = None) -> None:
        folder = run.trial(trial_id(trial))
        write_config(folder.config, trial)
        previous = folder.latest_attempt()
        attempt = folder.attempt(previous.number + 1 if previous else 1)
        attempt.path.mkdir(parents=True)
        write_json(folder.status, {"phase": "training", "step": step, "steps": trial.budget.steps})
        if failure:
            write_failure(attempt, failure)

    return begin
