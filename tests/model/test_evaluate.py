"""An evaluation that was cut off goes on: what was answered is not asked again, and the predictions are those of an undisturbed one, to the byte."""

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from data.supervision import SupervisionConfig
from model.checkpoint_folder import WEIGHTS_FILE, commit_checkpoint, new_checkpoint
from model.configs import Budget, EvaluationConfig, Execution, TrialConfig
from model.evaluate import evaluate
from model.foundations import FOUNDATIONS
from model.hooks import TrialHooks, TrialInterrupted
from model.process_group import join_process_group
from model.speech_llm import SpeechLLM
from model.trial_data import TrialData
from model.trial_log import TrialLog
from stand_ins.evaluations import run_until_answered
from stand_ins.trials import Job, run_jobs, small_trial, trial_data, untrained_model
from stand_ins.workers import run_on_workers

PREDICTIONS, PART = "predictions-direct.jsonl", "predictions-direct.part-0.jsonl"
QUESTIONS = 10  # 3 of validation, 5 of test, 2 of test_frame: 6 batches of two, as they do not cross splits


def tiny_trial(folder: Path, **changes) -> TrialConfig:
    """A trial of an untrained model around a foundation whose answers differ in length."""
    untrained = Budget(steps=0, batch_size=4)
    return small_trial("qwen3", folder, foundation=FOUNDATIONS["tiny-hybrid"], budget=untrained, **changes)


@dataclass
class Bench:
    """A model and its questions."""

    config: TrialConfig
    model: SpeechLLM
    data: TrialData
    generated: int = 0  # answers, of all evaluations so far

    def evaluate(self, output: Path, *, batch_size: int = 2, log: TrialLog | None = None, **hooks: Callable) -> int:
        """Evaluate into a folder; returns how many answers were generated. Raises what the hooks raise."""
        before, execution = self.generated, Execution(evaluation_batch_size=batch_size)
        tokenizer, asks = self.data.tokenizer, TrialHooks(**hooks)
        evaluate(self.config, execution, self.model, tokenizer, self.data, output, hooks=asks, log=log)
        return self.generated - before

    def stop_after(self, output: Path, batches: int, **options) -> int:
        """Evaluate until so many batches are answered; returns how many answers were generated."""
        before, asked = self.generated, []

        def should_stop() -> bool:
            asked.append(True)
            return len(asked) > batches

        with pytest.raises(TrialInterrupted):
            self.evaluate(output, should_stop=should_stop, **options)
        return self.generated - before


@pytest.fixture(scope="module")
def bench(trial_paths, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    join_process_group(use_gpu=False)
    regular = SupervisionConfig(mode="regular", label_descriptions=False, value_form="spoken")
    config = tiny_trial(folder, supervision=regular, evaluation=EvaluationConfig(max_new_tokens_direct=4))
    bench = Bench(config, untrained_model(config, trial_paths(folder)), trial_data(config, trial_paths(folder)))

    def count(module, arguments, output) -> None:
        bench.generated += len(arguments[0])

    bench.model.adapter.register_forward_hook(count)
    return bench


@pytest.fixture(scope="module")
def whole(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The predictions of an undisturbed evaluation."""
    folder = tmp_path_factory.mktemp("whole")
    assert bench.evaluate(folder) == QUESTIONS
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """The predictions in a folder, where no part is left."""
    assert not list(folder.glob("*.part-*"))
    return {path.name: path.read_bytes() for path in folder.glob("predictions-*.jsonl")}


def test_an_evaluation_stopped_after_every_batch_answers_each_question_once(bench, whole, tmp_path: Path) -> None:
    generated = [bench.stop_after(tmp_path, 1) for _ in range(5)]
    assert sorted([*generated, bench.evaluate(tmp_path)]) == [1, 1, 2, 2, 2, 2]
    assert contents(tmp_path) == whole
    assert bench.evaluate(tmp_path) == 0
    assert contents(tmp_path) == whole


@pytest.mark.parametrize(
    "damage", ["cut", "flip", "flip_checksum", "other_answer", "empty", "zeros", "garbage", "remove"]
)
def test_a_damaged_part_costs_what_was_damaged(bench, whole, tmp_path: Path, damage: str) -> None:
    assert bench.stop_after(tmp_path, 3) == 5  # of validation 2 and 1, of test 2
    part = tmp_path / PART
    content = part.read_bytes()
    first, second, third = content.splitlines(keepends=True)
    lost, changed = {
        "cut": (2, first + second + third[:-20]),
        "flip": (2, first[:40] + bytes([first[40] ^ 1]) + first[41:] + second + third),
        "flip_checksum": (1, first + second[:-4] + bytes([second[-4] ^ 1]) + second[-3:] + third),
        "other_answer": (1, first + second.replace(b'"output_text": "', b'"output_text": "x') + third),
        "empty": (5, b""),
        "zeros": (5, bytes(len(content))),
        "garbage": (0, b"\xff\x00[[[\n\n" + content),
        "remove": (5, None),
    }[damage]
    part.unlink()
    if changed is not None:
        assert changed != content
        part.write_bytes(changed)
    assert bench.evaluate(tmp_path) == QUESTIONS - 5 + lost
    assert contents(tmp_path) == whole


def test_what_is_answered_stays_when_the_batch_size_changes(bench, whole, tmp_path: Path) -> None:
    assert bench.stop_after(tmp_path, 2) == 3
    assert bench.evaluate(tmp_path, batch_size=1) == QUESTIONS - 3
    ids = [
        [json.loads(line)["example_id"] for line in files[PREDICTIONS].splitlines()]
        for files in (contents(tmp_path), whole)
    ]
    assert ids[0] == ids[1]


def test_answers_of_other_weights_do_not_count(bench, whole, tmp_path: Path) -> None:
    finished, cut = tmp_path / "finished", tmp_path / "cut"
    bench.evaluate(finished)
    bench.stop_after(cut, 3)
    for folder in (finished, cut):
        writing = new_checkpoint(folder / "checkpoints")
        (writing / WEIGHTS_FILE).write_bytes(b"other weights")
        commit_checkpoint(writing, step=4, world=1, samples=16)
        assert bench.evaluate(folder) == QUESTIONS
        assert contents(folder) == whole


@pytest.mark.parametrize("damage", ["flip", "cut", "commit_gone", "commit_flipped"])
def test_damaged_predictions_are_generated_again(bench, whole, tmp_path: Path, damage: str) -> None:
    bench.evaluate(tmp_path)
    path, commit = tmp_path / PREDICTIONS, tmp_path / "predictions-direct.commit.json"
    if damage == "flip":
        path.write_bytes(path.read_bytes().replace(b'"output_text": "', b'"output_text": "x', 1))
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-300])
    elif damage == "commit_gone":
        commit.unlink()
    else:
        commit.write_text(commit.read_text().replace("untrained", "untrainee"))
    assert bench.evaluate(tmp_path) == QUESTIONS
    assert contents(tmp_path) == whole


def test_a_worker_that_was_replaced_writes_no_predictions(bench, whole, tmp_path: Path) -> None:
    def replaced() -> None:
        if (tmp_path / PART).exists():
            raise RuntimeError("the run is another's now")

    with pytest.raises(RuntimeError, match="another's"):
        bench.evaluate(tmp_path, before_write=replaced)
    assert not (tmp_path / PREDICTIONS).exists()
    assert bench.evaluate(tmp_path) == 0, "what it had answered before is there"
    assert contents(tmp_path) == whole


def test_an_orphan_appends_to_a_part_that_is_gone(bench, whole, tmp_path: Path) -> None:
    bench.stop_after(tmp_path, 2)
    with (tmp_path / PART).open("ab") as orphan:
        bench.stop_after(tmp_path, 1)
        orphan.write(b"half an answer")
    assert b"half an answer" not in (tmp_path / PART).read_bytes()
    assert bench.evaluate(tmp_path) == QUESTIONS - 5
    assert contents(tmp_path) == whole


def test_the_status_counts_what_was_kept(bench, tmp_path: Path) -> None:
    bench.stop_after(tmp_path, 2)
    bench.stop_after(tmp_path, 1, log=TrialLog(tmp_path, steps=0))
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["phase"], status["mode"], status["split"]) == ("evaluating", "direct", "test")
    assert (status["step"], status["steps"]) == (3, QUESTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 3])
def test_whoever_goes_on_after_two_killed_workers_answers_as_one_would(
    trial_paths, tmp_path: Path, zero_stage: int
) -> None:
    """Under ZeRO-3 the last of the five batches of a mode needs both workers, though only one keeps its answers."""
    splits = EvaluationConfig(max_new_tokens_direct=10, max_new_tokens_think=6, splits=("validation", "test"))
    config = tiny_trial(tmp_path, evaluation=splits)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    one = Execution(evaluation_batch_size=2)
    two = Execution(evaluation_batch_size=2, workers=2, zero_stage=zero_stage)
    run_jobs([Job(config=config, execution=one, paths=trial_paths(whole))])
    job = Job(config=config, execution=two, paths=trial_paths(cut))
    run_on_workers(run_until_answered, job, 2, folder=tmp_path / "group", exit_code=-signal.SIGKILL)
    assert sum(part.read_bytes().count(b"\n") for part in cut.glob("*.part-*")) >= 2
    if zero_stage == 0:
        run_jobs([Job(config=config, execution=one, paths=trial_paths(cut))])
    else:
        run_on_workers(run_jobs, [job], folder=tmp_path / "next-group")
    assert contents(cut) == contents(whole)
