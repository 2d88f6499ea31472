"""What takes a store's space, what of it can go, and whether a run has room."""

import io
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from data.atomic import atomic_open
from model.configs import TrialConfig
from orchestrator.capacity import CHECKPOINTS_ON_DISK, plan_capacity
from orchestrator.corpora import corpus_folder
from orchestrator.disk import check_room, print_survey, survey_disk, survey_to_json
from orchestrator.hardware import find_hardware
from orchestrator.identity import trial_id
from orchestrator.layout import RunFolder, Store
from orchestrator.ledger import move_stale_aside, read_states
from orchestrator.scales import SCALES

TINY = SCALES["tiny"]
Usage = namedtuple("Usage", "total used free")


def fill(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)


@pytest.fixture
def run(store: Store, tiny_grid: list[TrialConfig], finish, begin) -> RunFolder:
    """A grid with a done, an interrupted and a stale trial, and what else lies in a store."""
    run = store.runs("grid", "tiny")
    done, interrupted, stale = (run.trial(trial_id(trial)) for trial in tiny_grid[:3])
    finish(run, tiny_grid[0])
    begin(run, tiny_grid[1])
    finish(run, replace(tiny_grid[2], metric_version=99))
    move_stale_aside(stale)
    fill(done.checkpoints / "step-000450" / "trainable.safetensors", 3_000)
    fill(done.path / "predictions-direct.jsonl", 200)
    fill(interrupted.attempt(1).log, 40)
    fill(interrupted.checkpoints / "step-000150" / "trainable.safetensors", 1_000)
    fill(corpus_folder(TINY.corpus, store) / "audio" / "a.flac", 7_000)
    fill(store.corpora / "other-123" / "a.flac", 500)
    fill(store.encoder_states / "whisper-base-pad-none-0" / "shard.arrow", 9_000)
    fill(run.path / "ray" / "left", 60)
    fill(store.runs("grid", "smoke").trials / "t" / "log", 70)
    fill(store.root / "mlflow.db", 80)
    return run


def test_every_byte_has_a_place_and_what_can_go_says_how(
    store: Store, run: RunFolder, tiny_grid: list[TrialConfig]
) -> None:
    survey = survey_disk(TINY, store, run, read_states(run, tiny_grid))
    trials = {trial.trial_id: trial for trial in survey.trials}
    done, interrupted = (trials[trial_id(trial)] for trial in tiny_grid[:2])
    assert (done.state, done.checkpoints, done.predictions, done.logs) == ("done", 3_000, 200, 0)
    assert (interrupted.state, interrupted.checkpoints, interrupted.logs) == ("interrupted", 1_000, 40)
    assert survey.done_checkpoints == 3_000

    mine = corpus_folder(TINY.corpus, store)
    shared = {use.path: use for use in survey.shared}
    assert shared[mine].bytes == 7_000 and shared[mine].remedy == ""
    assert shared[store.corpora / "other-123"].remedy.startswith(f"rm -r {store.corpora / 'other-123'}  (")
    assert "computes them again" in shared[store.encoder_states / "whisper-base-pad-none-0"].remedy
    aside = next(use for use in survey.shared if ".stale-1" in use.name)
    assert aside.remedy == f"rm -r {aside.path}  (set aside as stale)"
    assert shared[run.path / "ray"].bytes == 60 and shared[store.root / "mlflow.db"].bytes == 80
    assert shared[store.runs("grid", "smoke").path].bytes == 70
    free = shutil.disk_usage(store.root).free  # others write at the same time
    assert survey_to_json(survey)["free_bytes"] == pytest.approx(free, abs=1e9)


def test_the_tables_are_for_people(store: Store, run: RunFolder, tiny_grid: list[TrialConfig]) -> None:
    out = io.StringIO()
    print_survey(survey_disk(TINY, store, run, read_states(run, tiny_grid)), Console(file=out, width=200))
    lines = out.getvalue().splitlines()
    sizes = [line for line in lines if "encoder states" in line or "corpus" in line]
    assert "9.0 kB" in sizes[0], "the largest first"
    assert "are free on its device" in out.getvalue() and "checkpoints of done trials take 3.0 kB" in lines[-1]


def test_a_store_that_does_not_exist_yet_is_surveyed(store: Store) -> None:
    survey = survey_disk(TINY, store, store.runs("grid", "tiny"), [])
    assert survey.total == 0 and survey.free > 0 and not store.root.exists()


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch):
    """Pretend that the device has this many bytes left."""

    def free(size: float) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**15, 0, int(size)))

    return free


def test_too_little_room_is_told_with_need_place_and_remedies(store: Store, tiny_grid: list[TrialConfig], free) -> None:
    run = store.runs("grid", "tiny")
    free(20e6)
    with pytest.raises(ValueError, match=r"20\.0 MB are free and about .* are needed .*--disk.*--store") as error:
        check_room(TINY, tiny_grid, store, run, capacities={})
    assert str(error.value).startswith(f"{store.root}: ") and "\n" not in str(error.value)
    free(1e12)
    check_room(TINY, tiny_grid, store, run, capacities={})


def test_the_planned_capacity_is_taken_where_there_is_one_less_what_is_there_already(
    store: Store, free, monkeypatch: pytest.MonkeyPatch
) -> None:
    paper = SCALES["paper"]
    trial = paper.trial(foundation=paper.foundations[0], mode="regular", seed=0)
    run = store.runs("grid", "paper")
    counts = {split: 10 for split in ("validation", "test")}
    capacity = plan_capacity(trial, paper.execution, find_hardware("h100-80g"), examples=counts)
    assert capacity.checkpoint_bytes == CHECKPOINTS_ON_DISK * 12 * capacity.workload.trainable
    fill(corpus_folder(paper.corpus, store) / "corpus.json", 2)
    need = capacity.checkpoint_bytes + 0.1e9
    capacities = {trial_id(trial): capacity}
    free(need)
    check_room(paper, [trial], store, run, capacities=capacities)
    free(need - 1000)
    with pytest.raises(ValueError, match=r"for checkpoints of 1 trials"):
        check_room(paper, [trial], store, run, capacities=capacities)
    fill(run.trial(trial_id(trial)).checkpoints / "step-000250" / "trainable.safetensors", 1000)
    check_room(paper, [trial], store, run, capacities=capacities)


def test_a_full_disk_names_the_file_that_was_to_be_written(tmp_path: Path) -> None:
    """The system's error for a failed write names no file."""
    target = tmp_path / "result.json"
    with pytest.raises(OSError, match="No space left") as error, atomic_open(target) as stream:
        with Path("/dev/full").open("w") as full:
            full.write("x" * 100_000)
        stream.write("never")
    assert error.value.filename == str(target) and list(tmp_path.iterdir()) == []
