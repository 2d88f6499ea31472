"""The outage benchmark's arithmetic: ratios of neighbours, the verdict, and that its silent server is silent."""

import io
import json
import socket
from dataclasses import asdict
from urllib.parse import urlsplit

import pytest
from rich.console import Console
from typer.testing import CliRunner

from benchmarks.tracker_outage import Measurement, Tracker, app, ratios, show, silent_server, summarize


def run(repeat: int, tracker: Tracker, train_s: float, *breaches: str) -> Measurement:
    return Measurement(
        repeat=repeat,
        tracker=tracker,
        train_s=train_s,
        wall_s=train_s + 60,
        cpu_s=2 * train_s,
        points=100,
        breaches=breaches,
    )


RUNS = [
    run(1, "up", 60),
    run(1, "dead", 66),
    run(2, "up", 100),  # the machine is slow for a while
    run(2, "dead", 104),
    run(3, "up", 50),
    run(3, "dead", 49),
]


def test_a_ratio_is_of_neighbours_not_of_sums() -> None:
    assert ratios(RUNS, "dead", "train_s") == {"median": 1.04, "min": 0.98, "max": 1.1}
    assert ratios(RUNS, "dead", "wall_s")["max"] == pytest.approx(126 / 120)


def test_the_median_of_every_outage_is_held_to_the_goal() -> None:
    summary = summarize(RUNS)
    assert (summary["within_goal"], summary["points"], summary["breaches"]) == (True, 600, 0)
    assert list(summary["ratios"]) == ["dead"]
    assert summary["up_train_s"] == {"median": 60, "min": 50, "max": 100}
    slow = [run(1, "silent", 64), run(2, "silent", 106), run(3, "silent", 50)]
    summary = summarize(RUNS + slow)
    assert summary["ratios"]["silent"]["train_s"]["median"] == pytest.approx(1.06)
    assert not summary["within_goal"], "one of the two is too slow"


def test_what_mlflow_lacks_is_told_whatever_the_ratios() -> None:
    rows = [*RUNS, run(4, "up", 10), run(4, "dead", 10, "04-dead: MLflow: lost point train/loss step 3")]
    summary = summarize(rows)
    assert summary["within_goal"] and summary["breaches"] == 1
    document = {"settings": {"steps": 240}, "summary": summary, "runs": [asdict(row) for row in rows]}
    said = io.StringIO()
    show(json.loads(json.dumps(document)), Console(file=said, width=150))
    assert "PASS" in said.getvalue() and "BROKEN: 04-dead: MLflow: lost point train/loss step 3" in said.getvalue()
    assert "train_s 1.020 (0.980 to 1.100)" in said.getvalue()


def test_a_silent_server_accepts_and_never_answers() -> None:
    with silent_server() as uri:
        address = (str(urlsplit(uri).hostname), int(urlsplit(uri).port or 0))
        with socket.create_connection(address, timeout=5) as client:
            client.sendall(b"GET /health HTTP/1.1\r\n\r\n")
            client.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=5)


def test_a_folder_that_is_not_empty_is_refused(tmp_path) -> None:
    (tmp_path / "something").touch()
    refused = CliRunner().invoke(app, ["--store", str(tmp_path)])
    assert refused.exit_code == 2 and "is not empty" in refused.output
