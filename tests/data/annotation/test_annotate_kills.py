"""Nothing is lost and nothing is paid twice: an annotating process is killed again and again while the server fails in every way it can."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from data.annotation.costs import list_price
from data.annotation.requests import AnnotatorConfig
from data.annotation.trace_rules import rule_trace
from data.manifest import open_corpus
from openai_server.answering import NO_ID
from openai_server.corpus import write_text_corpus
from openai_server.server import KEY

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "OPENAI_API_KEY": KEY, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
EVERY_FAULT = (
    "rate_limited",
    "failing",
    "late",
    "cut_before",
    "cut_after",
    "garbled",
    "gateway",
    "invalid_json",
    "wrong_slots",
)


@contextmanager
def server_process(faults: dict) -> Iterator[str]:
    """A server that outlives every client; its address."""
    command = [sys.executable, "-m", "openai_server.server", json.dumps(faults)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.kill()
        process.wait()


def ask_server(url: str, path: str) -> dict:
    with urllib.request.urlopen(f"{url}/{path}", timeout=60) as reply:
        return json.load(reply)


def start(root: Path, url: str, options: dict) -> subprocess.Popen:
    command = [sys.executable, "-m", "openai_server.annotating", str(root), url, json.dumps(options)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> dict:
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return json.loads(out)


def kill_at(process: subprocess.Popen, url: str, bills: int) -> bool:
    """Kill the process when the server has charged so often; False when it ended before."""
    while ask_server(url, "bills/count")["count"] < bills:
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return True


def check_books(root: Path, url: str, count: int, poisoned: int) -> None:
    """Server's bills, ledger, report, traces and corpus tell the same story, and everything arrived once."""
    bills = ask_server(url, "bills")["bills"]
    twice = [request for request, times in Counter(bill["request"] for bill in bills).items() if times > 1]
    assert not twice, f"paid twice: {twice}"
    (folder,) = (path.parent for path in root.glob("annotations/*/report.json"))
    report = json.loads((folder / "report.json").read_text())
    events = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    answered = [event for event in events if event["event"] == "Answered"]
    assert sorted(event["request"] for event in answered) == sorted(bill["request"] for bill in bills)
    for name in ("tokens_in", "tokens_out"):
        assert sum(event[name] for event in answered) == sum(bill[name] for bill in bills) == report[name]
    price = list_price("gpt-4o")
    cost = sum((price.cost(bill["tokens_in"], bill["tokens_out"]) for bill in bills), Decimal(0))
    assert sum((Decimal(event["cost"]) for event in answered), Decimal(0)) == cost == Decimal(report["cost_usd"])

    quarantined = [json.loads(line) for line in (folder / "quarantined.jsonl").read_text().splitlines()]
    assert report["accepted"] + report["quarantined"] == report["examples"] == count
    assert len(quarantined) == report["quarantined"] >= poisoned
    asked = Counter(event["example"] for event in answered)
    attempts = AnnotatorConfig().max_attempts
    assert all(asked[row["id"]] == attempts and row["reasons"] for row in quarantined)
    given_up = {row["id"] for row in quarantined}
    corpus = open_corpus(root)
    (traces,) = folder.glob("traces-*.jsonl")
    names = [json.loads(line)["id"] for line in traces.read_text().splitlines()]
    assert names == [row.example.id for row in corpus.examples if row.example.id not in given_up]
    for row in corpus.examples:
        right = rule_trace(replace(row.example, id=NO_ID))
        assert row.trace == (None if row.example.id in given_up else right)


def kill_and_finish(
    tmp_path: Path, *, count: int, poisoned: int, kills: int, faults: dict, pace: dict, seed: int
) -> None:
    root = tmp_path / "corpus"
    write_text_corpus(root, count, poisoned=poisoned)
    rng = random.Random(seed)
    with server_process({**faults, "seed": seed}) as url:
        for bills in sorted(rng.sample(range(count // 20, count), kills)):
            assert kill_at(start(root, url, {"pace": pace}), url, bills)
        assert not finish(start(root, url, {"pace": pace}))["too_dear"]
        check_books(root, url, count, poisoned)
        bills = ask_server(url, "bills/count")["count"]
        finish(start(root, url, {"pace": pace}))
        assert ask_server(url, "bills/count")["count"] == bills, "a finished annotation asked again"


def test_two_kills_lose_nothing_and_pay_nothing_twice(tmp_path: Path) -> None:
    kill_and_finish(
        tmp_path,
        count=200,
        poisoned=2,
        kills=2,
        faults={**dict.fromkeys(EVERY_FAULT, 0.05), "late_s": 0.8, "working_s": 0.02},
        pace={"concurrency": 16, "timeout_s": 0.6, "grace_s": 1.0, "poll_s": 0.2},
        seed=1,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [2_000, pytest.param(10_000, marks=pytest.mark.full)])
def test_thousands_of_examples_survive_five_kills(count: int, tmp_path: Path) -> None:
    kill_and_finish(
        tmp_path,
        count=count,
        poisoned=5,
        kills=5,
        faults={**dict.fromkeys(EVERY_FAULT, 0.05), "late_s": 2.5},
        pace={"concurrency": 48, "timeout_s": 2.0, "grace_s": 3.0, "poll_s": 0.5},
        seed=0,
    )


@pytest.mark.slow
def test_the_limit_holds_over_kills(tmp_path: Path) -> None:
    root, limit = tmp_path / "corpus", Decimal(2)
    write_text_corpus(root, 2_000)
    options = {"max_cost": str(limit), "pace": {"concurrency": 32, "timeout_s": 2.0, "grace_s": 3.0, "poll_s": 0.5}}
    with server_process({**dict.fromkeys(EVERY_FAULT, 0.05), "late_s": 2.5}) as url:
        for bills in (60, 250):
            assert kill_at(start(root, url, options), url, bills)
        assert finish(start(root, url, options))["too_dear"]
        price = list_price("gpt-4o")
        bills = ask_server(url, "bills")["bills"]
        cost = sum((price.cost(bill["tokens_in"], bill["tokens_out"]) for bill in bills), Decimal(0))
        assert limit * Decimal("0.95") < cost <= limit
        options["max_cost"] = "100"
        assert not finish(start(root, url, options))["too_dear"]
        check_books(root, url, 2_000, 0)
