"""`slotgrid data annotate` as a user meets it: the estimate, the question, the progress, the summary, the exit code, the next step."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data.manifest import open_corpus
from openai_server.answering import Faults
from openai_server.corpus import write_text_corpus
from openai_server.server import KEY, LoopbackServer, running_server
from orchestrator import slotgrid_cli
from orchestrator.commands import annotate

ROOT = Path(__file__).parent.parent.parent
RUN = (
    "import sys; from orchestrator import slotgrid_cli as cli; from orchestrator.commands import annotate; "
    "cli._DATA = tuple(dict.fromkeys((*cli._DATA, annotate.add_command))); sys.exit(cli.main())"
)

Slotgrid = Callable[..., tuple[int, str]]


@pytest.fixture
def server():
    with running_server() as server:
        yield server


@pytest.fixture
def slotgrid(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Slotgrid:
    """Run a command line and give back its exit code and all that it printed."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(slotgrid_cli, "_DATA", tuple(dict.fromkeys((*slotgrid_cli._DATA, annotate.add_command))))

    def run(*arguments: object) -> tuple[int, str]:
        code = slotgrid_cli.main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        return code, told.out + told.err

    return run


def test_annotating_tells_what_it_costs_before_and_after_and_what_is_next(
    tmp_path: Path, server: LoopbackServer, slotgrid: Slotgrid
) -> None:
    root = tmp_path / "corpus"
    write_text_corpus(root, 12, poisoned=1)
    code, told = slotgrid("data", "annotate", root, "--base-url", server.url, "--yes", "--max-cost", "1")
    assert code == 0
    assert "gpt-4o at 127.0.0.1 (chat, live): 12 examples to ask" in told
    assert "estimate:" in told and "4 characters a token" in told and "limit: $1.00" in told
    assert "11 of 12 examples have a trace (91.7%)" in told and "1 quarantined" in told and "3 slots-differ" in told
    assert "14 answers over all runs" in told and "$0.0" in told
    assert f"next: slotgrid data stats {root}" in told
    assert KEY not in told

    code, told = slotgrid("data", "annotate", root, "--base-url", server.url)  # nothing left to pay: nothing to confirm
    assert code == 0 and "estimate" not in told


def test_spending_is_asked_for_where_somebody_can_answer_and_refused_where_nobody_can(
    tmp_path: Path, server: LoopbackServer, slotgrid: Slotgrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text_corpus(tmp_path, 3)
    code, told = slotgrid("data", "annotate", tmp_path, "--base-url", server.url)
    assert code == 2 and "add --yes" in told
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer, expected in (("n", 3), ("", 3), ("y", 0)):
        monkeypatch.setattr("builtins.input", lambda *prompt, answer=answer: answer)
        assert server.asked == []
        assert slotgrid("data", "annotate", tmp_path, "--base-url", server.url)[0] == expected
    assert len(server.asked) == 3


def test_a_cost_limit_that_is_reached_says_how_to_go_on(
    tmp_path: Path, server: LoopbackServer, slotgrid: Slotgrid
) -> None:
    write_text_corpus(tmp_path, 30)
    command = ["data", "annotate", tmp_path, "--base-url", server.url, "--yes"]
    code, told = slotgrid(*command, "--max-cost", "0.05")
    assert code == 1 and "stopped before --max-cost 0.05" in told
    code, told = slotgrid(*command, "--batch", "--max-cost", "9")
    assert code == 0 and "spent before: $0.0" in told and "30 of 30" in told


def test_the_rule_annotator_works_without_a_key(
    tmp_path: Path, slotgrid: Slotgrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    write_text_corpus(tmp_path, 8)
    code, told = slotgrid("data", "annotate", tmp_path)
    assert code == 2 and "OPENAI_API_KEY is not set" in told and "--annotator rule" in told
    code, told = slotgrid("data", "annotate", tmp_path, "--annotator", "rule")
    assert code == 0 and "8 of 8 examples have a trace" in told
    assert all(row.trace for row in open_corpus(tmp_path).examples)


@pytest.mark.parametrize(
    ("options", "told_as"),
    [
        (["--annotator", "rule", "--batch"], "--batch: is for language models"),
        (["--model", "llama-3.1-8b"], "give --price IN OUT"),
        (["--price", "free", "1"], "--price: 'free' is no number"),
        (["--max-cost", "-1"], "--max-cost"),
        (["--concurrency", "0"], "concurrency"),
        (["--limit", "0"], "--limit: 0 is too few"),
        (["--splits", "test"], "no examples in test"),
        (["--base-url", "http://me:secret@host/v1"], "credentials"),
    ],
)
def test_what_cannot_work_is_told_in_one_line(
    options: list[str], told_as: str, tmp_path: Path, slotgrid: Slotgrid
) -> None:
    write_text_corpus(tmp_path, 3)
    code, told = slotgrid("data", "annotate", tmp_path, "--yes", *options)
    assert code == 2 and told_as in told and told.count("\n") == 1 and "secret" not in told


def test_a_traceback_for_developers_does_not_hold_the_key(
    tmp_path: Path, server: LoopbackServer, slotgrid: Slotgrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text_corpus(tmp_path, 3)
    monkeypatch.setenv("SLOTGRID_DEBUG", "1")
    server.key = "another"
    code, told = slotgrid("data", "annotate", tmp_path, "--base-url", server.url, "--yes")
    assert code == 2 and "Traceback" in told and "does not accept the key" in told and KEY not in told


def test_ctrl_c_waits_for_the_answers_on_their_way_and_tells_how_to_resume(tmp_path: Path) -> None:
    write_text_corpus(tmp_path, 300)  # half a minute's work: also where this process gets little time
    environment = {**os.environ, "OPENAI_API_KEY": KEY, "PYTHONPATH": str(ROOT)}
    with running_server(Faults(working_s=0.3)) as server:
        command = ["data", "annotate", str(tmp_path), "--base-url", server.url, "--yes", "--concurrency", "4"]
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while len(server.bank.bills) < 8:
            time.sleep(0.02)
            assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=30)
        assert process.returncode == 3 and f"to resume: slotgrid {' '.join(command)}" in errors
        assert "Traceback" not in out + errors
        (ledger,) = tmp_path.glob("annotations/*/ledger.jsonl")
        lines = ledger.read_text().splitlines()
        assert (
            sum('"Answered"' in line for line in lines)
            == sum('"Sent"' in line for line in lines)
            == len(server.bank.bills)
        )
