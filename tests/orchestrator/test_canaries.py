"""Canaries in a grid: what they compute, when they run again, who waits for them, and a grid with one broken foundation as a user meets it."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from data.encoder_states import StateKey
from data.records import SupervisionMode
from model.configs import Budget, Execution, LoRAConfig, TrialConfig
from orchestrator.canaries import canary_config, canary_execution, order_canaries
from orchestrator.identity import fingerprint, trial_id, write_config
from orchestrator.layout import RunFolder, Store
from orchestrator.ledger import read_states
from orchestrator.prepare import PreparedData
from orchestrator.ray_session import open_ray
from orchestrator.results import Failure
from orchestrator.scales import SCALES
from orchestrator.schedule import run_trials
from orchestrator.trial_driver import TrialOrder

ROOT = Path(__file__).parents[2]
TINY = SCALES["tiny"]
KEY = StateKey(encoder_name="none", weights_sha256="0" * 64, padding="none", width=512)


def trials(*modes: SupervisionMode, foundation: int = 0, seeds: int = 1) -> list[TrialConfig]:
    return [TINY.trial(foundation=TINY.foundations[foundation], mode=m, seed=s) for m in modes for s in range(seeds)]


def ordered(
    run: RunFolder, grid: list[TrialConfig], *names: str, execution: Execution = TINY.execution
) -> dict[str, TrialOrder]:
    prepared = {TINY.encoder: PreparedData(corpus=run.path, encoder_states=run.path, encoder_key=KEY)}
    return order_canaries(run, grid, lambda trial: execution, prepared, names=names, storage=run.path / "ray")


def test_a_canary_asks_for_every_inference_mode_of_its_foundation():
    assert canary_config(trials("regular")).mode == "regular"
    assert canary_config(trials("reasoning")).mode == "reasoning"
    assert canary_config(trials("regular", "reasoning")).mode == "hybrid"
    assert canary_config(trials("regular", "hybrid")).inference_modes == ("direct", "think")
    assert canary_config(trials("hybrid")).budget.batch_size == 16


def test_a_canary_is_another_one_for_what_it_depends_on_alone():
    (trial,) = trials("hybrid")
    same = [replace(trial, seed=3), replace(trial, budget=Budget(steps=9, batch_size=2))]
    other = [replace(trial, lora=LoRAConfig(r=4)), replace(trial, corpus=replace(trial.corpus, fingerprint="f" * 64))]
    of = fingerprint(canary_config([trial]))
    assert {fingerprint(canary_config([config])) for config in same} == {of}
    assert of not in {fingerprint(canary_config([config])) for config in other}


def test_a_canary_takes_one_device_unless_no_device_holds_the_weights():
    (trial,) = trials("hybrid")  # micro-batches of 16 / (4 x 2) = 2
    config = canary_config([trial])
    sharded = Execution(workers=4, use_gpu=True, zero_stage=2, micro_batches=2)
    alone = canary_execution(sharded, config, trial)
    assert (alone.workers, alone.zero_stage, alone.micro_batches, alone.use_gpu) == (1, 0, 8, True)
    together = canary_execution(replace(sharded, zero_stage=3), config, trial)
    assert (together.workers, together.zero_stage, together.micro_batches) == (4, 3, 2)


def test_a_passed_canary_is_not_run_again_until_what_it_depends_on_changes(store: Store, finish: Callable[..., None]):
    run, grid = store.runs("toy", "tiny"), trials("regular")
    name = grid[0].foundation.name
    assert list(ordered(run, grid, name, name)) == [name]

    config = canary_config(grid)
    finish(run, config)
    shutil.copy(run.trial(trial_id(config)).result, run.canary(name).result)
    assert ordered(run, grid, name) == {}

    (again,) = ordered(run, trials("regular", "hybrid"), name).values()
    assert again.fingerprint == fingerprint(canary_config(trials("regular", "hybrid")))
    assert not run.canary(name).result.exists()


def make_trial(run: RunFolder, config: TrialConfig, canary: TrialOrder) -> TrialOrder:
    def train(order: TrialOrder, config: TrialConfig, hooks):
        (order.folder / "started").write_text(str(time.time()))
        return toy_outcome()

    folder = run.trial(trial_id(config))
    write_config(folder.config, config)
    return replace(
        canary,
        trial_id=trial_id(config),
        folder=folder.path,
        fingerprint=fingerprint(config),
        run_trial=train,
        role="trial",
        first=(canary,),
        earlier_attempts=0,
    )


def toy_outcome():
    return SimpleNamespace(
        headline_inference_mode="direct",
        scores={"eval/partial_f1": 0.5},
        validation_scores={},
        counts={},
        seconds={},
    )


def behave(canary: TrialOrder, how: str) -> TrialOrder:
    """The canary with a toy in the model's place: it "fails", or once it "finds no hub" or "kills its driver"."""

    def run_toy(order: TrialOrder, config: TrialConfig, hooks):
        import psutil

        from model.hub import HubUnreachable
        from orchestrator.canaries import CanaryFailed

        time.sleep(1)
        first = order.folder / "first"
        if how == "fails":
            raise CanaryFailed("stops by itself: 0 of 8 answers, 6 needed")
        if not first.exists():
            first.touch()
            if how == "finds no hub":
                raise HubUnreachable("the hub answered 503")
            siblings = psutil.Process().parent().children()
            drivers = [process for process in siblings if "ImplicitFunc.train" in " ".join(process.cmdline())]
            holding = [p for p in drivers if any(f.path.endswith(f"{order.folder.name}/lock") for f in p.open_files())]
            assert holding, [process.cmdline() for process in siblings]
            for process in holding:
                process.kill()
            time.sleep(20)
        (order.folder / "passed").write_text(str(time.time()))
        return toy_outcome()

    return replace(canary, run_trial=run_toy)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_trials_wait_for_their_canary_and_a_failed_one_spends_nothing_on_them(
    store: Store, monkeypatch: pytest.MonkeyPatch, begin: Callable[..., None]
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    run = store.runs("toy", "tiny")
    grids = [trials("regular", foundation=number, seeds=2) for number in range(3)]
    names = [grid[0].foundation.name for grid in grids]
    shutil.rmtree(run.path, ignore_errors=True)
    begin(run, canary_config(grids[0]), failure=Failure(cause="canary", error="CanaryFailed", message="long ago"))
    shutil.copytree(run.trial(trial_id(canary_config(grids[0]))).path, run.canary(names[0]).path)
    canaries = ordered(run, [trial for grid in grids for trial in grid], *names)
    assert canaries[names[0]].earlier_attempts == 1  # that it failed in an earlier run is history
    toys = [
        behave(canaries[name], how)
        for name, how in zip(names, ("finds no hub", "fails", "kills its driver"), strict=True)
    ]
    orders = [make_trial(run, trial, toy) for grid, toy in zip(grids, toys, strict=True) for trial in grid]
    with open_ray():
        run_trials(orders, concurrent=2, storage=run.path / "ray")

    passing, failing, orphaned = (read_states(run, grid) for grid in grids)
    for name, states in ((names[0], passing), (names[2], orphaned)):
        passed = float((run.canary(name).path / "passed").read_text())
        assert [state.state for state in states] == ["done", "done"]
        assert all(float((state.folder.path / "started").read_text()) > passed for state in states)
    assert json.loads(run.canary(names[0]).result.read_text())["costs"]["device_seconds"] > 0
    assert run.canary(names[0]).latest_attempt().number == 3, "after the one of long ago and the one without a hub"
    assert run.canary(names[2]).latest_attempt().number == 2

    assert run.canary(names[1]).latest_attempt().number == 1, (
        "the second trial waits for the verdict, not for another canary"
    )
    for state in failing:
        assert state.state == "failed"
        assert state.failure == (
            f"canary: stops by itself: 0 of 8 answers, 6 needed; compare the chat template with `explain {state.id}`"
        )
        attempt = state.folder.latest_attempt()
        assert str(run.canary(names[1]).path) in attempt.log.read_text()
        assert json.loads((attempt.path / "attempt.json").read_text())["started"] is None
        assert not (state.folder.path / "started").exists()


SCRIPT = '''"""Does a canary keep a broken foundation from its trials?"""

import sys
from dataclasses import replace
from pathlib import Path

from model.foundations import FOUNDATIONS
from orchestrator import scales
from orchestrator.cli import main
from orchestrator.experiment import Experiment
from orchestrator.grid import product

good = FOUNDATIONS["tiny-instruct"]
broken = replace(good, name="broken", source=str(Path(__file__).parent / "model"))
scales.SCALES["smoke"] = replace(
    scales.SMOKE, foundations=(broken, good), modes=("regular",), only_cells=None, canary=True
)


def declare(scale, seeds):
    return product(scale.trial, foundation=scale.foundations, mode=scale.modes, seed=range(seeds))


if __name__ == "__main__":
    sys.exit(main(Experiment(name="birds", hypothesis=__doc__, declare=declare)))
'''


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_broken_template_costs_its_own_trials_and_no_others(tmp_path: Path):
    shutil.copytree(ROOT / "model" / "tiny_foundations" / "tiny-instruct", tmp_path / "model")
    template = tmp_path / "model" / "chat_template.jinja"
    right = template.read_text()
    template.write_text("{{ '<|assistant|>' }}")
    (tmp_path / "birds.py").write_text(SCRIPT)
    dropped = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "SLOTGRID_STORE")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {"SLOTGRID_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def birds() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "birds.py", "--scale", "smoke"]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)

    done = birds()
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-3000:]
    run = tmp_path / "runs" / "birds-smoke"
    assert (run / "trials" / "tiny-instruct.regular.seed0" / "result.json").exists()
    folder = run / "trials" / "broken.regular.seed0"
    assert not (folder / "checkpoints").exists() and not (folder / "status.json").exists()
    failure = json.loads((folder / "attempts" / "1" / "failure.json").read_text())
    assert failure["cause"] == "canary"
    assert "chat template writes the user's text 0 times" in failure["message"]
    assert "explain broken.regular.seed0" in failure["message"]
    record = json.loads((run / "canaries" / "broken" / "attempts" / "1" / "attempt.json").read_text())
    assert failure["time"] - record["started"] < 60
    assert "canary-broken  failed" in done.stdout and "canary-tiny-instruct  done" in done.stdout
    assert "canary: runs: ValueError: tokenizer" in (run / "report.md").read_text()
    results = (run / "results.csv").read_text()
    assert "canary" not in results.lower() and len(results.splitlines()) == 3

    passed = (run / "canaries" / "tiny-instruct" / "result.json").stat().st_mtime_ns
    template.write_text(right)
    done = birds()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (folder / "result.json").exists()
    assert json.loads((run / "canaries" / "broken" / "report.json").read_text())["passed"]
    assert (run / "canaries" / "tiny-instruct" / "result.json").stat().st_mtime_ns == passed

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("birds")
    assert len(client.search_runs([experiment.experiment_id])) == 3, "the grid and its two trials, no canary"
