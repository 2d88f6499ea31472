"""Every kind of file that a trial leaves, damaged in five ways: the next run ends in the same answers and scores, or names file and remedy.

The trial is driven in this process with everything but Ray: the ledger's states, an attempt, the worker's own code.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from corpus_samples.synthetic import CONFIG as CORPUS
from corpus_samples.synthetic import REF
from data.atomic import write_json, write_sealed_json
from data.callcentre.synthesize import synthesize
from data.encoder_states import AudioItem, open_encoder_states, write_encoder_states
from data.executors import SerialExecutor
from data.metric_lines import read_metrics
from data.supervision import SupervisionConfig
from model.configs import AdapterConfig, Budget, EncoderConfig, EvaluationConfig, Execution, OptimConfig, TrialConfig
from model.encoder import encode_factory, state_key
from model.foundations import FOUNDATIONS
from model.hooks import TrialHooks, TrialInterrupted
from model.whisper_weights import ensure_encoder_weights
from orchestrator.attempts import open_attempt
from orchestrator.identity import fingerprint, trial_id, write_config
from orchestrator.layout import RunFolder, TrialFolder
from orchestrator.lease import hold_lease
from orchestrator.ledger import read_states, set_damaged_aside
from orchestrator.plan import planned_seeds
from orchestrator.results import describe_failure, write_failure
from orchestrator.trial_driver import TrialOrder
from orchestrator.trial_worker import _work
from stand_ins.damages import DAMAGES, PREPARED, RUN, damage, flipped, of_finished, of_half, of_trial, size_of_case

CONFIG = TrialConfig(
    foundation=FOUNDATIONS["tiny-instruct"],
    supervision=SupervisionConfig(mode="regular", label_descriptions=False, value_form="spoken"),
    corpus=REF,
    budget=Budget(steps=4, batch_size=4),
    adapter=AdapterConfig(hidden_width=32),
    optim=OptimConfig(precision="fp32", lora_learning_rate=1e-3),
    evaluation=EvaluationConfig(max_new_tokens_direct=6, splits=("validation", "test")),
)
EXECUTION = Execution(checkpoint_every=2, evaluation_batch_size=2)


TRIAL = f"trials/{trial_id(CONFIG)}"
FINISHED = RUN | of_trial(TRIAL) | of_finished(TRIAL)
HALF = RUN | of_trial(TRIAL) | of_half(TRIAL)


def run_once(run: RunFolder, paths: Callable, *, stop: Callable[[], bool] = lambda: False) -> None:
    """What `run` does with a grid of this one trial: nothing when it is done."""
    planned_seeds(run)
    with hold_lease(run, watch_s=0.2):
        for state in read_states(run, [CONFIG]):
            set_damaged_aside(state)
        (state,) = read_states(run, [CONFIG])
        if state.state == "done":
            return
        folder = state.folder
        if not folder.config.exists():
            write_config(folder.config, CONFIG)
        where = paths(folder.path)
        order = TrialOrder(
            trial_id=state.id,
            folder=folder.path,
            fingerprint=fingerprint(CONFIG),
            execution=EXECUTION,
            corpus=where.corpus,
            encoder_states=where.encoder_states,
            encoder_key=where.encoder_key,
            ray_storage=run.path / "ray",
        )
        attempt = open_attempt(folder, devices=1)
        attempt.folder.log.write_text("working\n")
        attempt.note("started")
        hooks = TrialHooks(
            before_write=attempt.check_current,
            on_checkpoint=lambda step: attempt.note("checkpointed", step=step),
            should_stop=stop,
        )
        with attempt.watch():
            _work(order, attempt, 0, hooks, begins=False)


def _whole(run: RunFolder) -> None:
    """What a killed driver leaves beside the trial, and an attempt that was to be followed by another."""
    write_sealed_json(run.plan, {"seeds": 2})
    write_json(run.stop, {"pid": 1})
    folder = run.trial(trial_id(CONFIG))
    failure = describe_failure(RuntimeError("Connection reset by peer"), folder)
    write_failure(folder.attempt(1), replace(failure, goes_on=True))
    with hold_lease(run):
        lease = run.lease.read_bytes()
    run.lease.write_bytes(lease)


@pytest.fixture(scope="module")
def runs(trial_paths, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run folder whose trial is done, and one whose trial was stopped after its first answers, with two checkpoints."""
    finished, half = (RunFolder(tmp_path_factory.mktemp(name) / "run") for name in ("finished", "half"))
    run_once(finished, trial_paths)
    part = half.trial(trial_id(CONFIG)).path / "predictions-direct.part-0.jsonl"
    with pytest.raises(TrialInterrupted):
        run_once(half, trial_paths, stop=lambda: part.exists() and part.stat().st_size > 0)
    for run in (finished, half):
        _whole(run)
    return {"finished": finished.path, "half": half.path}


def ends_of(folder: TrialFolder) -> tuple[object, ...]:
    """What must be the same however often a trial was disturbed."""
    (state,) = read_states(RunFolder(folder.path.parents[1]), [CONFIG])
    assert state.result is not None, state
    losses = [(row.step, row.metrics["train/loss"]) for row in read_metrics(folder.metrics).rows if row.of_training]
    predictions = (folder.path / "predictions-direct.jsonl").read_bytes()
    return state.result.scores, state.result.validation_scores, predictions, losses


CASES = [
    pytest.param(
        which, name, how, marks=[] if (which, how) == ("finished", "one bit flipped") else size_of_case(kind, how)
    )
    for which, kinds in (("finished", FINISHED), ("half", HALF))
    for kind, name in enumerate(kinds)
    for how in DAMAGES
]


@pytest.mark.parametrize(("which", "name", "how"), CASES)
def test_the_next_run_heals_the_damage_or_names_it(
    runs: dict[str, Path], trial_paths, tmp_path: Path, which: str, name: str, how: str
) -> None:
    run, kind = RunFolder(tmp_path / "run"), (FINISHED | HALF)[name]
    shutil.copytree(runs[which], run.path)
    file, folder = run.path / kind.path, run.trial(trial_id(CONFIG))
    assert damage(file, how) or "lock" in name, "a lock file is empty"
    if kind.named and (how != "deleted" or kind.deleted_is_named):
        with pytest.raises(ValueError, match=rf"{file.name}.*(move|delete)[^\n]* run again") as error:
            run_once(run, trial_paths)
        assert "\n" not in str(error.value)
        return
    run_once(run, trial_paths)
    reference = RunFolder(runs["finished"]).trial(trial_id(CONFIG))
    expected, found = ends_of(reference), ends_of(folder)
    if name == "metrics" and which == "finished":
        (state,) = read_states(run, [CONFIG])
        assert "metrics.jsonl is " in state.note and "delete result.json and run" in state.note
        expected, found = expected[:3], found[:3]
    assert found == expected
    if which == "finished" and name in ("result", "predictions"):
        assert how == "deleted" or file.with_name(f"{file.name}.damaged-1").exists()


def test_both_checkpoints_damaged_is_training_from_nothing_with_the_same_end(
    runs: dict[str, Path], trial_paths, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    shutil.copytree(runs["half"], run.path)
    folder = run.trial(trial_id(CONFIG))
    for weights in folder.checkpoints.glob("*/trainable.safetensors"):
        weights.write_bytes(flipped(weights.read_bytes()))
    times = [(row.step, row.time) for row in read_metrics(folder.metrics).rows]
    run_once(run, trial_paths)
    assert ends_of(folder) == ends_of(RunFolder(runs["finished"]).trial(trial_id(CONFIG)))
    rows = read_metrics(folder.metrics).rows
    assert [(row.step, row.time) for row in rows if row.of_training] == times, "a row keeps its time for life"


@pytest.fixture(scope="module")
def prepared(trial_paths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the trials share: a corpus, encoder weights and the encoder's states."""
    where, folder = trial_paths(Path()), tmp_path_factory.mktemp("shared") / "prepared"
    shutil.copytree(where.encoder_states.parent, folder)
    shutil.copytree(where.corpus, folder / "corpus")
    return folder


REMEDIES = ("delete", "restore", "write it again", "copy it again")


def prepare_again(folder: Path) -> dict[str, bytes]:
    """What `run` does before the trials; returns the states of every example."""
    encoder = EncoderConfig(name="whisper-base-random")
    corpus = synthesize(folder / "corpus", config=CORPUS, executor=SerialExecutor(), on_progress=None)
    weights = ensure_encoder_weights(encoder.name, folder)
    key = state_key(encoder, weights.sha256)
    heard = {row.example.audio_sha256: corpus.audio_path(row.example) for row in corpus.examples}
    write_encoder_states(
        folder / "states",
        key=key,
        items=[AudioItem(audio_sha256=sha256, path=path) for sha256, path in heard.items()],
        build_encode=encode_factory(encoder, weights.path),
        executor=SerialExecutor(),
    )
    states = open_encoder_states(folder / "states", key)
    return {sha256: np.asarray(states[sha256]).tobytes() for sha256 in heard}


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", PREPARED)
def test_damage_to_what_trials_share_is_healed_or_named(prepared: Path, tmp_path: Path, name: str, how: str) -> None:
    shutil.copytree(prepared, tmp_path / "prepared")
    file = next((tmp_path / "prepared").glob(PREPARED[name]))
    damage(file, how)
    if name == "recording":  # read when its states are made
        shutil.rmtree(tmp_path / "prepared" / "states")
    try:
        states = prepare_again(tmp_path / "prepared")
    except ValueError as error:
        assert file.stem in str(error) and any(word in str(error) for word in REMEDIES)
        assert "\n" not in str(error)
    else:
        assert states == prepare_again(prepared)
