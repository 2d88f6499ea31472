"""Alignments in a grid: what they depend on, who shares one, when one is trained again, what the plan says, and a grid that begins with one."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data.atomic import file_sha256, write_sealed_json
from data.encoder_states import StateKey
from data.records import SupervisionMode
from model.configs import AlignmentConfig, Budget, EvaluationConfig, Execution, LoRAConfig, OptimConfig, TrialConfig
from orchestrator.alignments import aligned_adapter, alignment_config, alignment_folder, order_alignments
from orchestrator.canaries import canary_config
from orchestrator.experiment import Experiment
from orchestrator.identity import config_from_json, config_to_json, fingerprint, trial_id
from orchestrator.layout import RunFolder, Store
from orchestrator.plan import Plan, make_plan, plan_to_json
from orchestrator.prepare import PreparedData
from orchestrator.scales import SCALES
from orchestrator.trial_driver import TrialOrder

ROOT = Path(__file__).parents[2]
TINY = SCALES["tiny"]
ALIGNMENT = AlignmentConfig(budget=Budget(steps=100, batch_size=8))
ALIGNED = replace(TINY, alignment=ALIGNMENT)
MODES: tuple[SupervisionMode, ...] = ("regular", "reasoning", "hybrid")
KEY = StateKey(encoder_name="none", weights_sha256="0" * 64, padding="none", width=512)


def trials(*modes: SupervisionMode, seeds: int = 1, scale=ALIGNED) -> list[TrialConfig]:
    return [scale.trial(foundation=scale.foundations[0], mode=m, seed=s) for m in modes for s in range(seeds)]


def ordered(run: RunFolder, grid: list[TrialConfig], execution: Execution = TINY.execution) -> dict[str, TrialOrder]:
    prepared = {TINY.encoder: PreparedData(corpus=run.path, encoder_states=run.path, encoder_key=KEY)}
    return order_alignments(run, grid, lambda trial: execution, prepared, storage=run.path / "ray")


def planned(store: Store, grid: list[TrialConfig]) -> Plan:
    experiment = Experiment(name="toy", hypothesis="It works.", declare=lambda scale, seeds: grid)
    return make_plan(experiment, ALIGNED, grid, store, seeds=1)


@pytest.fixture
def align(finish: Callable[..., None]) -> Callable[..., None]:
    """Leave what a finished alignment leaves."""

    def align(run: RunFolder, trial: TrialConfig) -> None:
        config, folder = alignment_config(trial), alignment_folder(run, trial)
        folder.path.parent.mkdir(parents=True, exist_ok=True)
        finish(run, config)
        run.trial(trial_id(config)).path.rename(folder.path)
        folder.adapter.write_bytes(b"weights")
        write_sealed_json(folder.alignment, {"adapter_sha256": file_sha256(folder.adapter)})

    return align


def test_the_modes_of_a_foundation_share_one_alignment_and_another_seed_has_its_own(store: Store):
    run, grid = store.runs("toy", "tiny"), trials(*MODES, seeds=2)
    orders = ordered(run, grid)
    assert orders.keys() == {trial_id(trial) for trial in grid}
    assert len({id(order) for order in orders.values()}) == 2
    name = TINY.foundations[0].name
    for seed in (0, 1):
        adapters = {aligned_adapter(run, trial) for trial in grid if trial.seed == seed}
        assert adapters == {run.path / "alignments" / f"{name}.seed{seed}" / "adapter.safetensors"}
        assert {order.folder for id_, order in orders.items() if id_.endswith(f"seed{seed}")} == {
            path.parent for path in adapters if path
        }
    assert ordered(run, trials(*MODES, scale=TINY)) == {}
    assert aligned_adapter(run, trials("regular", scale=TINY)[0]) is None


def test_an_alignment_is_another_one_for_what_it_depends_on_alone():
    (trial,) = trials("hybrid")
    of = fingerprint(alignment_config(trial))
    same = [
        replace(trial, lora=LoRAConfig(r=4)),
        replace(trial, budget=Budget(steps=9, batch_size=2)),
        replace(trial, evaluation=EvaluationConfig()),
        replace(trial, optim=replace(trial.optim, lora_learning_rate=1, adapter_learning_rate=1)),
        replace(trial, corpus=replace(trial.corpus, traces="f" * 64)),
        replace(trial, metric_version=9),
    ]
    assert {fingerprint(alignment_config(config)) for config in same} == {of}
    other = [
        replace(trial, seed=1),
        replace(trial, corpus=replace(trial.corpus, fingerprint="f" * 64)),
        replace(trial, foundation=replace(trial.foundation, revision="1" * 64)),
        replace(trial, optim=OptimConfig(precision="bf16")),
        replace(trial, adapter=replace(trial.adapter, stack_factor=4)),
        replace(trial, alignment=replace(ALIGNMENT, adapter_learning_rate=2e-3)),
        replace(trial, alignment=replace(ALIGNMENT, budget=Budget(steps=101, batch_size=8))),
    ]
    assert of not in {fingerprint(alignment_config(config)) for config in other}
    assert config_from_json(config_to_json(alignment_config(trial))) == alignment_config(trial)
    assert canary_config([trial]) == canary_config(trials("hybrid", scale=TINY)), "a canary runs before any alignment"


def test_what_a_wording_was_trained_with_is_part_of_the_identity():
    written = config_to_json(trials("regular")[0])
    assert written["alignment"]["transcription_version"] == 1
    written["alignment"]["transcription_version"] = 0
    with pytest.raises(ValueError, match=r"alignment\.transcription_version: this code writes version 1, not 0"):
        config_from_json(written)


def test_trials_that_cannot_share_an_alignment_are_refused(store: Store):
    regular, hybrid = trials("regular", "hybrid")
    other = replace(hybrid, alignment=AlignmentConfig(budget=Budget(steps=5, batch_size=8)))
    message = r"hybrid\.seed0: alignment: is not the one of .*regular\.seed0, and the trials of one foundation and seed"
    with pytest.raises(ValueError, match=message):
        planned(store, [regular, other])


def test_a_finished_alignment_is_trained_again_only_when_it_is_stale_or_its_adapter_damaged(store: Store, align):
    run, grid = store.runs("toy", "tiny"), trials(*MODES)
    align(run, grid[0])
    folder = alignment_folder(run, grid[0])
    assert ordered(run, grid) == {}

    folder.adapter.write_bytes(b"weightz")
    assert len(ordered(run, grid)) == 3
    assert not folder.result.exists() and folder.adapter.exists(), "it goes on from its checkpoint"

    changed = [replace(trial, adapter=replace(trial.adapter, hidden_width=8)) for trial in grid]
    (order, *_) = ordered(run, changed).values()
    assert order.fingerprint == fingerprint(alignment_config(changed[0]))
    assert folder.path.with_name(f"{folder.path.name}.stale-1").is_dir() and not folder.adapter.exists()


def test_micro_batches_are_no_larger_than_the_trials(store: Store):
    execution = Execution(workers=2, use_gpu=True, zero_stage=1, micro_batches=4)  # of 16 / (2 x 4) = 2
    (order,) = ordered(store.runs("toy", "tiny"), trials("regular"), execution).values()
    assert (order.execution.workers, order.execution.micro_batches) == (2, 2)


def test_a_plan_shows_the_alignments_and_counts_their_steps(store: Store, align, finish, begin):
    run, grid = store.runs("toy", "tiny"), trials(*MODES, seeds=2)
    steps = TINY.budget.steps
    plan = planned(store, grid)
    first, second = plan_to_json(plan)["alignments"]
    assert (first["action"], first["steps"], len(first["trials"])) == ("start", 100, 3)
    assert (second["name"], second["seed"]) == ("tiny-base.seed1", 1)
    assert plan.steps_left == plan_to_json(plan)["steps_left"] == 6 * steps + 2 * 100

    align(run, grid[0])
    begin(run, alignment_config(grid[1]), step=40)  # with the id of the regular trial
    run.trial(trial_id(grid[1])).path.rename(alignment_folder(run, grid[1]).path)
    plan = planned(store, grid)
    assert [row["action"] for row in plan_to_json(plan)["alignments"]] == ["skip", "continue"]
    assert plan.steps_left == 6 * steps + 60

    for trial in grid:
        finish(run, trial)
    plan = planned(store, grid)
    assert [row["action"] for row in plan_to_json(plan)["alignments"]] == ["skip", "skip"], "nobody needs it any more"
    assert plan.steps_left == 0


def test_a_changed_alignment_makes_its_trials_stale_and_the_plan_names_the_field(store: Store, align, finish):
    run, (trial,) = store.runs("toy", "tiny"), trials("regular")
    align(run, trial)
    finish(run, trial)
    changed = replace(trial, alignment=replace(ALIGNMENT, adapter_learning_rate=5e-3))
    plan = planned(store, [changed])
    with pytest.raises(ValueError, match=r"alignment\.adapter_learning_rate: 0\.001 -> 0\.005"):
        plan.check()
    (row,) = plan_to_json(plan)["alignments"]
    assert (row["state"], row["action"]) == ("stale", "skip"), "no trial that may run waits for it"
    assert plan_to_json(replace(plan, rerun_stale=True))["alignments"][0]["action"] == "rerun"
    assert plan_to_json(planned(store, [replace(trial, alignment=None)]))["alignments"] == []


SCRIPT = '''"""Does an alignment stage help, and what becomes of trials whose foundation cannot be aligned?"""

import sys
from dataclasses import replace
from pathlib import Path

from model.configs import AlignmentConfig, Budget
from model.foundations import FOUNDATIONS
from orchestrator import scales
from orchestrator.cli import main
from orchestrator.experiment import Experiment
from orchestrator.grid import product

good = FOUNDATIONS["tiny-instruct"]
broken = replace(good, name="broken", source=str(Path(__file__).parent / "model"))
scales.SCALES["smoke"] = replace(
    scales.SMOKE,
    foundations=(good, broken),
    modes=("regular", "hybrid"),
    only_cells=frozenset({("tiny-instruct", "regular"), ("tiny-instruct", "hybrid"), ("broken", "regular")}),
    alignment=AlignmentConfig(budget=Budget(steps=6, batch_size=4)),
)


def declare(scale, seeds):
    return product(
        scale.trial, exclude=scale.excludes, foundation=scale.foundations, mode=scale.modes, seed=range(seeds)
    )


if __name__ == "__main__":
    sys.exit(main(Experiment(name="birds", hypothesis=__doc__, declare=declare)))
'''


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_grid_begins_with_its_alignments_and_a_failed_one_fails_its_trials(tmp_path: Path):
    shutil.copytree(ROOT / "model" / "tiny_foundations" / "tiny-instruct", tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ '<|assistant|>' }}")
    (tmp_path / "birds.py").write_text(SCRIPT)
    dropped = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "SLOTGRID_STORE")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {"SLOTGRID_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def birds(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "birds.py", *arguments, "--scale", "smoke"]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=800)

    done = birds()
    told = done.stdout[-3000:] + done.stderr[-3000:]
    assert done.returncode == 1 and "3 trials: 2 done, 1 failed" in done.stdout, told
    run = tmp_path / "runs" / "birds-smoke"
    aligned = run / "alignments" / "tiny-instruct.seed0"
    assert [path.name for path in (aligned / "attempts").iterdir()] == ["1"], "once for two trials"
    result = json.loads((aligned / "result.json").read_text())
    assert result["validation_scores"].keys() == {"validation/loss_before", "validation/loss"}
    for mode in ("regular", "hybrid"):
        trial = run / "trials" / f"tiny-instruct.{mode}.seed0"
        started = json.loads((trial / "attempts" / "1" / "attempt.json").read_text())["started"]
        assert (trial / "result.json").exists() and started > result["finished"]

    failed = run / "trials" / "broken.regular.seed0"
    assert not (failed / "checkpoints").exists() and not (failed / "status.json").exists()
    failure = json.loads((failed / "attempts" / "1" / "failure.json").read_text())
    assert failure["cause"] == "alignment"
    assert failure["message"].startswith("alignment-broken.seed0: ")
    assert "chat template writes the user's text 0 times" in failure["message"]
    assert "alignment" in (run / "report.md").read_text()
    results = (run / "results.csv").read_text()
    assert len(results.splitlines()) == 4 and "alignment-" not in results.replace(failure["message"], "")

    plan = json.loads(birds("plan", "--json").stdout)
    rows = [(row["name"], row["action"]) for row in plan["alignments"]]
    assert rows == [("tiny-instruct.seed0", "skip"), ("broken.seed0", "retry")]
    assert plan["steps_left"] == 12 + 6
