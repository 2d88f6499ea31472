"""The promises under kills, in short: four kills over the smoke grid, and a second driver. `benchmarks/chaos.py` strikes a hundred times."""

from pathlib import Path

import pytest

from benchmarks.chaos import run_chaos
from benchmarks.chaos_faults import Fault

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

FAULTS = (
    Fault(victim="second driver", moment="anytime", delay_s=1.0),
    Fault(victim="mlflow", moment="anytime"),
    Fault(victim="worker", moment="saving"),
    Fault(victim="head", moment="training", delay_s=0.3),
    Fault(victim="machine", moment="evaluating", then="damage"),
)


def test_nothing_is_lost_whatever_is_killed(tmp_path: Path) -> None:
    events: list[str] = []
    kills = sum(fault.is_kill for fault in FAULTS)
    document = run_chaos(tmp_path, kills=kills, seed=0, faults=iter(FAULTS), on_event=events.append)
    assert document["breaches"] == [], "\n".join(events)
    summary = document["summary"]
    assert summary["kills"] == kills
    assert [row["victim"] for row in document["strikes"]] == [fault.victim for fault in FAULTS]
    assert "exit code 2" in document["strikes"][0]["what"], "the second driver was refused"
    assert summary["steps_redone_most"] <= document["settings"]["checkpoint_every"]
    assert summary["mlflow_points"] > 0
    assert summary["mlflow_lost"] == summary["mlflow_doubled"] == 0
