"""A grid on a corpus that somebody imported: what is told before it starts, and what its traces change."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data.atomic import write_json, write_jsonl
from data.manifest import CORPUS_FILE, TRACES_FILE, attach_traces
from data.records import Split
from experiments.grid import EXPERIMENT
from orchestrator.cli import main
from orchestrator.corpora import describe_corpus
from orchestrator.identity import fingerprint
from orchestrator.layout import Store
from orchestrator.scales import SCALES, Scale


@pytest.fixture
def imported(corpus_root: Path, store: Store) -> Path:
    """A corpus in the store, without traces, as an import leaves it."""
    root = store.corpora / "calls"
    shutil.copytree(corpus_root, root)
    (root / "annotations").mkdir()
    (root / TRACES_FILE).rename(root / "annotations" / TRACES_FILE)
    (root / TRACES_FILE).touch()
    change_summary(root, lambda summary: {**summary, "name": "calls", "files": {}})
    return root


def change_summary(root: Path, change: Callable[[dict], dict]) -> None:
    write_json(root / CORPUS_FILE, change(json.loads((root / CORPUS_FILE).read_text())))


def annotate(root: Path, name: str) -> None:
    file = root / "annotations" / TRACES_FILE
    attach_traces(root, file=file.relative_to(root), fingerprint=name * 64, annotator={"name": name}, quarantined=2)


def smoke_on(root: Path) -> Scale:
    return SCALES["smoke"].on(describe_corpus(root))


def fingerprints(scale: Scale) -> dict[str, str]:
    trials = [scale.trial(foundation=scale.foundations[1], mode=mode, seed=0) for mode in ("regular", "hybrid")]
    return {trial.mode: fingerprint(trial) for trial in trials}


def test_new_traces_make_other_trials_of_the_modes_that_think_only(imported: Path) -> None:
    none = fingerprints(smoke_on(imported))
    annotate(imported, "a")
    first = fingerprints(smoke_on(imported))
    annotate(imported, "b")
    second = fingerprints(smoke_on(imported))
    assert none["regular"] == first["regular"] == second["regular"]
    assert len({none["hybrid"], first["hybrid"], second["hybrid"]}) == 3


def plan(store: Store, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str, str]:
    code = main(EXPERIMENT, ["plan", "--scale", "smoke", "--store", str(store.root), "--corpus", "calls", *more])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_plan_asks_for_traces_before_anything_starts(imported: Path, store: Store, capsys) -> None:
    code, out, err = plan(store, capsys)
    assert code == 2 and "slotgrid data annotate" in err
    code, out, err = plan(store, capsys, "--only", "mode=regular")
    assert (code, err) == (0, "") and "grid-smoke-calls" in out
    annotate(imported, "a")
    code, out, err = plan(store, capsys)
    assert code == 0 and "2 examples have none" in out and "--corpus calls" in out


def test_a_corpus_is_scored_on_the_splits_that_it_has(imported: Path) -> None:
    def without_frames(summary: dict) -> dict:
        return {**summary, "splits": {**summary["splits"], "test_frame": 0}}

    assert "test_frame" in smoke_on(imported).evaluation.splits
    change_summary(imported, without_frames)
    assert smoke_on(imported).evaluation.splits == ("validation", "test")


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_corpus_without_a_split_that_every_trial_needs_is_refused(split: Split, imported: Path) -> None:
    change_summary(imported, lambda summary: {**summary, "splits": {**summary["splits"], split: 0}})
    with pytest.raises(ValueError, match=rf"corpus\.json.*no example in {split}"):
        describe_corpus(imported)


def test_a_corpus_that_is_not_there_is_told_with_those_that_are(imported: Path, store: Store, capsys) -> None:
    code = main(EXPERIMENT, ["plan", "--scale", "smoke", "--store", str(store.root), "--corpus", "cals"])
    err = capsys.readouterr().err
    assert code == 2 and "cals" in err and "the store has calls" in err and len(err.splitlines()) == 1


def test_a_mode_that_thinks_leaves_out_what_has_no_trace(imported: Path, trial_paths, tmp_path: Path) -> None:
    from model.speech_llm import load_tokenizer
    from model.trial_data import TrialData

    file = imported / "annotations" / TRACES_FILE
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    write_jsonl(file, rows[1:])
    annotate(imported, "a")
    scale, paths = smoke_on(imported), trial_paths(tmp_path)
    for mode, expected in (("regular", 10), ("hybrid", 9)):
        trial = scale.trial(foundation=scale.foundations[1], mode=mode, seed=0)
        opened = {"encoder_states": paths.encoder_states, "encoder_key": paths.encoder_key}
        data = TrialData(trial, load_tokenizer(trial.foundation), corpus=imported, **opened)
        assert len(data.train) == expected
        assert len(data.evaluation_items("test", "direct")) == 5
    annotate(imported, "b")
    with pytest.raises(ValueError, match="is not the corpus that this trial was declared with"):
        TrialData(trial, load_tokenizer(trial.foundation), corpus=imported, **opened)
