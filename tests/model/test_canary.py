"""A canary in a plain process: sound foundations pass, and each way to break one fails with the reason, in seconds."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from corpus_samples.synthetic import REF
from data.records import SupervisionMode
from data.supervision import SupervisionConfig
from model.canary import CanaryReport, run_canary
from model.configs import AdapterConfig, Budget, Execution, Foundation, OptimConfig, TrialConfig
from model.foundations import FOUNDATIONS, local_folder
from model.hooks import TrialHooks
from model.hub import HubUnreachable
from stand_ins.hub import KINDS, write_stand_in
from stand_ins.hub_server import COMMIT, REPOSITORY, Hub, use_hub
from stand_ins.workers import run_on_workers


def canary(
    foundation: Foundation, mode: SupervisionMode = "regular", *, steps: int = 60, rate: float = 4e-3
) -> TrialConfig:
    return TrialConfig(
        foundation=foundation,
        supervision=SupervisionConfig(mode=mode, label_descriptions=False, value_form="spoken"),
        corpus=REF,
        budget=Budget(steps=steps, batch_size=16 if mode == "hybrid" else 8),
        adapter=AdapterConfig(hidden_width=512),
        optim=OptimConfig(precision="fp32", lora_learning_rate=rate),
    )


def failed(report: CanaryReport) -> set[str]:
    return {check.name for check in report.checks if not check.passed}


def copied(folder: Path, name: str = "tiny-instruct") -> Foundation:
    """A packaged foundation in a folder of its own, to be broken."""
    source = local_folder(FOUNDATIONS[name])
    assert source is not None
    shutil.copytree(source, folder)
    return replace(FOUNDATIONS[name], source=str(folder))


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(("name", "mode"), [("tiny-instruct", "regular"), ("tiny-hybrid", "hybrid")])
def test_a_sound_foundation_passes_and_is_shown_to_people(
    trial_paths, tmp_path: Path, name: str, mode: SupervisionMode
) -> None:
    config = canary(FOUNDATIONS[name], mode)
    report = run_canary(config, Execution(), trial_paths(tmp_path))
    assert report.passed, report.reason
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["passed"] and not written["reason"] and written["steps"] <= 60
    assert [check["name"] for check in written["checks"]] == [
        "learns",
        "stops by itself",
        "can be read",
        "obeys the inference mode",
        "fills the right slots",
        "reloaded loss",
        "reloaded answers",
    ]
    assert [answer["mode"] for answer in written["answers"]] == list(config.inference_modes)
    assert all("[audio]" in answer["prompt"] and "{" in answer["answer"] for answer in written["answers"])
    assert not (tmp_path / "checkpoints").exists(), "a gigabyte for an 8B foundation"


@pytest.mark.slow
@pytest.mark.parametrize("family", KINDS)
def test_random_weights_in_every_familys_format_pass(trial_paths, tmp_path: Path, family: str) -> None:
    """The checks judge template, end token, mask and checkpoint, not talent."""
    foundation = write_stand_in(tmp_path / "model", family)
    report = run_canary(canary(foundation), Execution(), trial_paths(tmp_path / "out"))
    assert report.passed, report.reason


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_sharded_weights_pass(trial_paths, tmp_path: Path, stage: int) -> None:
    foundation = write_stand_in(tmp_path / "model", "qwen3")
    execution = Execution(zero_stage=stage, micro_batches=2)
    report = run_canary(canary(foundation), execution, trial_paths(tmp_path / "out"))
    assert report.passed, report.reason


@pytest.mark.slow
def test_workers_that_share_sharded_weights_come_to_one_verdict(trial_paths, tmp_path: Path) -> None:
    config = canary(write_stand_in(tmp_path / "model", "qwen3"))
    (tmp_path / "out").mkdir()
    arguments = config, Execution(workers=2, zero_stage=3), trial_paths(tmp_path / "out")
    reports = run_on_workers(run_canary, *arguments, folder=tmp_path / "workers")
    assert [report.reason for report in reports] == ["", ""]
    assert reports[0].answers == reports[1].answers


def test_a_template_that_drops_the_users_turn_fails_before_any_step(trial_paths, tmp_path: Path) -> None:
    foundation = copied(tmp_path / "broken")
    template = tmp_path / "broken" / "chat_template.jinja"
    template.write_text("{{ '<|assistant|>' }}")
    report = run_canary(canary(foundation), Execution(), trial_paths(tmp_path / "out"))
    assert (failed(report), report.steps) == ({"runs"}, 0)
    assert "its chat template writes the user's text 0 times" in report.reason
    assert "explain" in json.loads((tmp_path / "out" / "report.json").read_text())["remedy"]


def test_a_hub_that_is_away_condemns_no_foundation(
    trial_paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is raised is for the failure policy, which waits and tries again (see tests/orchestrator)."""
    copy = copied(tmp_path / "model")
    hub = Hub({path.name: path.read_bytes() for path in Path(copy.source).iterdir()})
    use_hub(monkeypatch, hub, tmp_path / "cache")
    config = canary(replace(copy, source=REPOSITORY, revision=COMMIT, family="llama"))
    hub.status = 520
    with pytest.raises(HubUnreachable):
        run_canary(config, Execution(), trial_paths(tmp_path))
    assert not (tmp_path / "report.json").exists(), "no verdict"
    hub.status = None
    assert run_canary(config, Execution(), trial_paths(tmp_path)).passed


def test_an_end_token_inside_the_answers_is_seen(trial_paths, tmp_path: Path) -> None:
    """What generation stops at is the foundation's own setting: here every answer is cut at its first colon."""
    foundation = copied(tmp_path / "broken")
    vocabulary = json.loads((tmp_path / "broken" / "tokenizer.json").read_text())["model"]["vocab"]
    ends = [number for token, number in vocabulary.items() if ":" in token]
    rewrite(tmp_path / "broken" / "config.json", eos_token_id=ends)
    report = run_canary(canary(foundation), Execution(), trial_paths(tmp_path / "out"))
    assert failed(report) == {"can be read", "fills the right slots"}
    assert "can be read: 0 of 8 answers, 6 needed" in report.reason


def test_a_foundation_that_does_not_learn_is_seen(trial_paths, tmp_path: Path) -> None:
    report = run_canary(canary(FOUNDATIONS["tiny-instruct"], steps=2, rate=1e-9), Execution(), trial_paths(tmp_path))
    assert {"learns", "fills the right slots"} <= failed(report)
    assert not failed(report) & {"reloaded loss", "reloaded answers"}


def test_what_a_killed_canary_saved_is_not_taken_for_the_next_ones(trial_paths, tmp_path: Path) -> None:
    def kill(step: int) -> None:
        raise KeyboardInterrupt

    config = canary(FOUNDATIONS["tiny-instruct"], rate=1e-9)
    with pytest.raises(KeyboardInterrupt):
        run_canary(config, Execution(), trial_paths(tmp_path), hooks=TrialHooks(on_checkpoint=kill))
    report = run_canary(canary(FOUNDATIONS["tiny-instruct"]), Execution(), trial_paths(tmp_path))
    assert report.passed and report.steps < 60, report.reason


def test_a_checkpoint_that_loses_what_was_learned_is_seen(trial_paths, tmp_path: Path) -> None:
    def lose(step: int) -> None:
        next((tmp_path / "checkpoints").glob("step-*/commit.json")).unlink()

    report = run_canary(
        canary(FOUNDATIONS["tiny-instruct"]), Execution(), trial_paths(tmp_path), hooks=TrialHooks(on_checkpoint=lose)
    )
    assert failed(report) == {"reloaded loss", "reloaded answers"}
