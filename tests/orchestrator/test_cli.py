"""The command line as a user meets it: exit codes, one-line errors, next steps, JSON."""

import errno
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from model.configs import TrialConfig
from orchestrator.cli import main
from orchestrator.experiment import Experiment
from orchestrator.grid import product
from orchestrator.identity import trial_id
from orchestrator.layout import open_store
from orchestrator.lease import hold_lease
from orchestrator.results import Failure
from orchestrator.scales import SCALES, Scale
from orchestrator.slotgrid_cli import main as slotgrid


def declare(scale: Scale, seeds: int) -> list[TrialConfig]:
    return product(
        scale.trial, exclude=scale.excludes, foundation=scale.foundations, mode=scale.modes, seed=range(seeds)
    )


GRID = Experiment(name="grid", hypothesis="It works.", declare=declare)
SMOKE = declare(SCALES["smoke"], 1)


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Run the command line on a store of the test's own: exit code, standard output, standard error."""

    def call(*arguments: str, experiment: Experiment = GRID) -> tuple[int, str, str]:
        code = main(experiment, [*arguments, "--store", str(tmp_path / "store"), "--scale", "smoke"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explore"], "error: there is no verb 'explore'; the verbs are run, plan, status, report, explain, doctor"),
        (["plan", "tiny"], "error: unrecognized arguments: tiny; --help lists the options"),
        (["plan", "--frobnicate"], "error: unrecognized arguments: --frobnicate; --help lists the options"),
        (["plan", "--only", "mode"], "error: --only: 'mode' is not AXIS=VALUE, e.g. mode=hybrid"),
        (["plan", "--only"], "error: argument --only: expected at least one argument; --help lists the options"),
        (["plan", "--seeds", "0"], "error: --seeds: 0 is too few; give at least 1"),
        (["plan", "--seeds", "two"], "error: argument --seeds: invalid int value: 'two'; --help lists the options"),
        (
            ["run", "--json"],
            "error: --json: run prints its progress; use it with plan, status, report, explain or doctor",
        ),
        (["plan", "--repair"], "error: --repair: plan takes no such option; doctor does"),
        (["run", "--disk"], "error: --disk: run takes no such option; status does"),
        (["status", "--retry", "nan"], "error: --retry: status takes no such option; run and plan do"),
        (["report", "--rerun-stale"], "error: --rerun-stale: report takes no such option; run and plan do"),
    ],
)
def test_a_usage_error_is_one_line_and_exit_code_2(call, arguments: list[str], message: str) -> None:
    code, out, err = call(*arguments)
    assert (code, err.strip(), out) == (2, message, "")


def test_an_unknown_scale_lists_the_scales(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(GRID, ["plan", "--scale", "huge"]) == 2
    assert capsys.readouterr().err == "error: --scale: 'huge' is not one of auto, smoke, tiny, small, paper\n"


def test_a_store_that_is_no_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert slotgrid(["data", "stats", "calls", "--store", "s3://bucket/runs"]) == 2
    (tmp_path / "file").touch()
    assert main(GRID, ["plan", "--scale", "smoke", "--store", str(tmp_path / "file")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "s3://bucket/runs is a URI; this command works on a folder" in first and "is a file; give a folder" in second


def test_the_plan_ends_with_the_command_that_runs_it(call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["experiments/my grid.py"])
    code, out, _ = call("plan", "--only", "kind=hybrid")
    assert code == 0
    assert out.startswith("scale: smoke")
    assert "tiny-hybrid.hybrid.seed0" in out and "tiny-instruct" not in out
    last = out.splitlines()[-1]
    assert last.startswith("next: python 'experiments/my grid.py' --scale smoke --store ") and last.endswith(
        " --only kind=hybrid"
    )


def test_json_is_the_only_thing_on_standard_output(call, finish, tmp_path: Path) -> None:
    finish(open_store(tmp_path / "store").runs("grid", "smoke"), SMOKE[0], 0.75)
    code, out, _ = call("plan", "--json")
    assert code == 0 and [row["action"] for row in json.loads(out)["trials"]] == ["skip", "start"]
    code, out, _ = call("status", "--json")
    assert code == 0 and json.loads(out)["driver"] is None
    code, out, _ = call("report", "--json")
    assert code == 0 and [cell["partial_f1"] for cell in json.loads(out)["cells"]] == [0.75, None]


def test_status_tells_who_is_at_work(call, begin, tmp_path: Path) -> None:
    run = open_store(tmp_path / "store").runs("grid", "smoke")
    begin(run, SMOKE[0], step=3)
    code, out, _ = call("status")
    assert code == 0 and "1 interrupted, 1 pending" in out and "nobody is at work" in out
    with hold_lease(run):
        code, out, _ = call("status")
    assert code == 0 and f"driven by process {os.getpid()} on" in out and "training" in out


def test_status_tells_the_cause_of_a_failure_and_what_to_do(call, begin, tmp_path: Path) -> None:
    run = open_store(tmp_path / "store").runs("grid", "smoke")
    begin(
        run,
        SMOKE[0],
        step=3,
        failure=Failure(cause="nan", error="FloatingPointError", message="step 4: the loss is nan"),
    )
    begin(
        run,
        SMOKE[0],
        step=3,
        failure=Failure(cause="nan", error="FloatingPointError", message="step 4: the loss is nan"),
    )
    code, out, _ = call("status")
    assert code == 0 and "nan: step 4: the loss is nan" in out and "1 failed, 1 pending" in out
    assert "nan: see the loss in metrics.jsonl and lower the learning rate, or run --retry nan" in out
    assert out.splitlines()[-1].endswith("--retry nan  (when the cause is put right)")
    code, out, _ = call("status", "--json")
    rows = {row["name"]: row for row in json.loads(out)["status"]}
    failed = rows[trial_id(SMOKE[0])]
    assert (failed["state"], failed["cause"], failed["attempts"]) == ("failed", "nan", 2)
    assert "--retry nan" in failed["next_action"]


def test_what_would_fail_again_is_left_alone_unless_its_cause_is_named(call, begin, finish, tmp_path: Path) -> None:
    run = open_store(tmp_path / "store").runs("grid", "smoke")
    finish(run, SMOKE[1])
    begin(
        run,
        SMOKE[0],
        step=3,
        failure=Failure(cause="nan", error="FloatingPointError", message="step 4: the loss is nan"),
    )
    _, out, _ = call("plan", "--json")
    assert [row["action"] for row in json.loads(out)["trials"]] == ["leave", "skip"]
    _, out, _ = call("plan", "--json", "--retry", "nan")
    assert [row["action"] for row in json.loads(out)["trials"]] == ["retry", "skip"]
    code, out, _ = call("plan")
    assert code == 0 and out.splitlines()[-1].endswith("--retry nan  (when the cause is put right)")
    code, out, _ = call("run")  # trains nothing, so it is quick
    assert code == 1 and "nothing to train: what is not done would fail again" in out and "--retry nan" in out
    code, _, err = call("run", "--retry", "boredom")
    assert code == 2 and "'boredom'" in err and "out-of-memory" in err and err.count("\n") == 1


def test_status_disk_lists_what_takes_space(call, finish, tmp_path: Path) -> None:
    run = open_store(tmp_path / "store").runs("grid", "smoke")
    finish(run, SMOKE[0])
    (run.trial(trial_id(SMOKE[0])).checkpoints).mkdir()
    (run.trial(trial_id(SMOKE[0])).checkpoints / "weights").write_bytes(b"x" * 5000)
    code, out, _ = call("status", "--disk")
    assert (
        code == 0 and "5.0 kB" in out and "are free on its device" in out and out.splitlines()[-1].startswith("next: ")
    )
    code, out, _ = call("status", "--disk", "--json")
    assert code == 0 and json.loads(out)["trials"][0]["checkpoints"] == 5000


def test_doctor_says_how_to_repair_and_repairs(call, begin, tmp_path: Path) -> None:
    assert call("doctor")[0] == 0  # nothing has been run: nothing is wrong
    run = open_store(tmp_path / "store").runs("grid", "smoke")
    begin(run, SMOKE[0])
    run.lease.write_text(
        json.dumps({"pid": 2**22 + 1, "host": os.uname().nodename, "token": "x", "since": 0.0, "heartbeat": 0.0})
    )
    code, out, _ = call("doctor")
    assert (
        code == 1 and "lease" in out and out.splitlines()[-1].endswith(" --repair") and "doctor" in out.splitlines()[-1]
    )
    code, out, _ = call("doctor", "--json")
    assert code == 1 and json.loads(out)["left"][0]["kind"] == "lease"


def test_run_is_refused_while_another_driver_is_at_work(call, tmp_path: Path) -> None:
    with hold_lease(open_store(tmp_path / "store").runs("grid", "smoke")):
        code, _, err = call("run")
    assert code == 2 and f"another driver is at work here (process {os.getpid()} on" in err


def test_run_asks_before_it_touches_a_stale_trial(call, finish, tmp_path: Path) -> None:
    run = open_store(tmp_path / "store").runs("grid", "smoke")
    finish(run, replace(SMOKE[0], metric_version=99))
    code, _, err = call("run")
    assert code == 2 and "metric_version: 99 -> 2" in err and "--rerun-stale" in err
    assert run.trial(trial_id(SMOKE[0])).result.is_file() and not run.plan.exists()
    code, out, _ = call("plan")
    assert code == 0 and "blocked: metric_version: 99 -> 2" in out and "--rerun-stale" in out.splitlines()[-1]


def test_a_damaged_result_is_made_again_and_a_damaged_config_is_one_line_that_names_it(
    call, finish, tmp_path: Path
) -> None:
    run = open_store(tmp_path / "store").runs("grid", "smoke")
    finish(run, SMOKE[0])
    run.trial(trial_id(SMOKE[0])).result.write_text("{")
    code, out, _ = call("status")
    assert code == 0 and "result.json is damaged: made again" in out and "1 interrupted, 1 pending" in out
    path = run.trial(trial_id(SMOKE[0])).config
    path.write_text("{")
    code, _, err = call("status")
    assert code == 2 and err.startswith(f"error: {path}: ") and err.count("\n") == 1


def raising(error: BaseException) -> Experiment:
    def declare(scale: Scale, seeds: int) -> list[TrialConfig]:
        raise error

    return Experiment(name="grid", hypothesis="It fails.", declare=declare)


def test_a_full_disk_is_told_in_one_line(call) -> None:
    code, _, err = call("plan", experiment=raising(OSError(errno.ENOSPC, "No space left on device", "/store/x")))
    assert (
        code == 2
        and err.startswith("error: /store/x: No space left on device; free some space")
        and err.count("\n") == 1
    )


def test_a_value_error_has_no_traceback_unless_asked(call, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = call("plan", experiment=raising(ValueError("field x: two\nlines")))
    assert (code, err) == (2, "error: field x: two lines\n")
    monkeypatch.setenv("SLOTGRID_DEBUG", "1")
    assert "Traceback" in call("plan", experiment=raising(ValueError("x")))[2]


def test_our_own_bugs_are_not_hidden(call) -> None:
    for bug in (AssertionError("impossible"), ConnectionResetError(errno.ECONNRESET, "peer")):
        with pytest.raises(type(bug)):
            call("plan", experiment=raising(bug))


def test_ctrl_c_gives_the_command_that_resumes(call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["grid.py"])
    code, _, err = call("run", "--seeds", "2", experiment=raising(KeyboardInterrupt()))
    assert code == 3 and "to resume: python grid.py run --seeds 2 --store" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--examples", "2"], "error: examples is 2"),
        (["--examples", "6", "--workers", "0"], "error: --workers: 0 is too few"),
        (["--examples", "six"], "error: argument --examples: invalid int value: 'six'"),
        ([], "error: the following arguments are required: --examples"),
    ],
)
def test_slotgrid_tells_a_usage_error_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert slotgrid(["data", "synthesize", "--out", str(tmp_path / "corpus"), *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith(message) and err.count("\n") == 1


def test_slotgrid_synthesizes_a_corpus_and_refuses_to_turn_it_into_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["data", "synthesize", "--out", str(tmp_path / "corpus"), "--workers", "1"]
    assert slotgrid([*command, "--examples", "6"]) == 0
    out = capsys.readouterr().out
    assert "6 examples (2 train, 1 validation, 1 test, 1 test_frame, 1 test_domain)" in out and "next: " in out
    assert (tmp_path / "corpus" / "corpus.json").is_file()
    assert slotgrid([*command, "--examples", "7"]) == 2
    assert "holds another corpus" in capsys.readouterr().err


def test_the_store_can_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`ray submit` gives no options: the cluster file sets the shared store for every login shell."""
    monkeypatch.setenv("SLOTGRID_STORE", str(tmp_path / "shared"))
    assert main(GRID, ["plan", "--scale", "smoke"]) == 0
    assert str(tmp_path / "shared" / "grid-smoke") in capsys.readouterr().out


def test_a_password_in_an_address_is_shown_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = "http://reader:secret@127.0.0.1:9/"
    assert main(GRID, ["plan", "--scale", "smoke", "--store", str(tmp_path), "--tracking-uri", address]) == 0
    shown = capsys.readouterr()
    assert "127.0.0.1:9" in shown.out and "secret" not in shown.out + shown.err
