"""Kill everything that a running grid consists of, again and again, and check that nothing is lost: `python benchmarks/chaos.py --kills 100`.

An undisturbed smoke run is the reference. Then the same grid runs under a seeded schedule of kills (worker, trial driver, Train controller, head
script, raylet, gcs_server, all at once, MLflow server) and other faults (damaged files, clock jumps, a second driver), is started again by the same
command whenever it ended badly, and another round begins whenever one is done, until there were enough kills. `benchmarks/README.md` says what is
checked. Ctrl-C ends it after the round at hand, with all that was measured until then; a second one at once.
Exit codes: 0 all promises kept; 1 one was broken (the folder is kept); 2 it could not be measured.
"""

from __future__ import annotations

import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, in a checkout

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.chaos_faults import KILLS, Fault, schedule
from benchmarks.chaos_mlflow import count_parents
from benchmarks.chaos_processes import mlflow_server
from benchmarks.chaos_rounds import Round
from benchmarks.chaos_state import EXPERIMENT, HANG_S, Chaos, Strike, run_reference
from benchmarks.folders import measure_in_folder
from orchestrator.provenance import describe_environment
from orchestrator.scales import SMOKE

app = typer.Typer(add_completion=False)


def run_chaos(
    folder: Path,
    *,
    kills: int,
    seed: int,
    faults: Iterator[Fault] | None = None,
    hang_s: float = HANG_S,
    on_event: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run the reference and as many rounds as `kills` take; returns the document that `--out` holds. `faults`: other ones than the seed's.

    Raises RuntimeError when the undisturbed run or the MLflow server does not work at all.
    """
    began = time.monotonic()
    with mlflow_server(folder / "mlflow") as server:
        chaos = Chaos(
            folder=folder,
            server=server,
            kills=kills,
            faults=faults or schedule(seed),
            rng=random.Random(f"victims {seed}"),
            on_event=on_event,
            hang_s=hang_s,
        )
        on_event("the undisturbed run")
        reference_s = run_reference(chaos)
        rounds = 0
        with _ended_by_interrupt(chaos):
            while chaos.killed < chaos.kills:
                rounds += 1
                Round(chaos, rounds).play()
        server.wait()
        if (parents := count_parents(server.uri, EXPERIMENT)) != rounds + 1:
            chaos.breach(f"MLflow: {parents} grids instead of {rounds + 1}")
    return _document(chaos, asked=kills, began=began, rounds=rounds, reference_s=reference_s, seed=seed)


@contextmanager
def _ended_by_interrupt(chaos: Chaos) -> Iterator[None]:
    """The first SIGINT strikes nothing more, so that the round at hand is the last; the next one raises KeyboardInterrupt."""

    def on_interrupt(*_: object) -> None:
        chaos.strike_no_more()
        chaos.on_event(f"interrupted after {chaos.killed} kills: this round is the last; again: at once")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _document(chaos: Chaos, *, asked: int, began: float, rounds: int, reference_s: float, seed: int) -> dict[str, Any]:
    strikes = [_row(strike, began) for strike in chaos.strikes]
    recovered = recoveries(strikes)
    redone = [loss.redone for loss in chaos.losses]
    return {
        "benchmark": "chaos",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "settings": {
            "kills": asked,
            "seed": seed,
            "steps": SMOKE.budget.steps,
            "checkpoint_every": SMOKE.execution.checkpoint_every,
        },
        "environment": describe_environment(),
        "summary": {
            "kills": chaos.killed,
            "other_faults": len(chaos.strikes) - chaos.killed,
            "rounds": rounds,
            "starts": chaos.starts,
            "seconds": round(time.monotonic() - began, 1),
            "undisturbed_run_s": round(reference_s, 1),
            "resumed_attempts": len(redone),
            "steps_redone": sum(redone),
            "steps_redone_most": max(redone, default=0),
            "recovery_s_median": round(statistics.median(recovered), 1) if recovered else None,
            "recovery_s_most": max(recovered, default=None),
            "silence_s_most": round(chaos.silence_s_most, 1),
            "mlflow_points": chaos.mirror.points,
            "mlflow_lost": len(chaos.mirror.lost),
            "mlflow_doubled": len(chaos.mirror.doubled),
            "mlflow_changed": len(chaos.mirror.changed),
            "rounds_mirrored_by_a_further_run": chaos.mirrored_late,
            "breaches": len(chaos.breaches),
        },
        "breaches": chaos.breaches,
        "strikes": strikes,
    }


def recoveries(strikes: list[dict[str, Any]]) -> list[float]:
    """The seconds after which training or evaluation went on, of the kills that took it away: not of MLflow, and not when all trials were done."""
    return [
        row["recovered_s"]
        for row in strikes
        if row["recovered_s"] is not None and row["victim"] != "mlflow" and set(row["trials"].values()) != {"done"}
    ]


def _row(strike: Strike, began: float) -> dict[str, Any]:
    def rounded(seconds: float | None) -> float | None:
        return None if seconds is None else round(seconds, 1)

    return {
        "number": strike.number,
        "round": strike.round,
        "at_s": rounded(strike.at - began),
        "victim": strike.fault.victim,
        "moment": strike.fault.moment,
        "trials": strike.trials,
        "what": strike.what,
        "recovered_s": rounded(strike.recovered_s),
        "ended_s": rounded(strike.ended_s),
        "redone": strike.redone,
    }


def show(document: dict[str, Any], console: Console) -> None:
    """Print a row per kind of victim, the sums, and every broken promise."""
    table = Table(title="kills by victim")
    for name in ("victim", "kills", "steps redone, most", "recovery, median s", "most s", "run ended after, most s"):
        table.add_column(name, justify="left" if name == "victim" else "right")
    for victim in KILLS:
        rows = [row for row in document["strikes"] if row["victim"] == victim]
        recovered = recoveries(rows)
        ended = [row["ended_s"] for row in rows if row["ended_s"] is not None]
        redone = [steps for row in rows for steps in row["redone"].values()]
        table.add_row(
            victim,
            str(len(rows)),
            str(max(redone, default=0)),
            f"{statistics.median(recovered):.1f}" if recovered else "",
            f"{max(recovered):.1f}" if recovered else "",
            f"{max(ended):.1f}" if ended else "",
        )
    console.print(table)
    for name, value in document["summary"].items():
        console.print(f"{name.replace('_', ' ')}: {value}")
    for line in document["breaches"]:
        console.print(f"BROKEN: {line}", markup=False)


@contextmanager
def _shown_progress(console: Console, kills: int) -> Iterator[Callable[[str], None]]:
    """A bar over the kills, and a line for each event."""
    columns = [TextColumn("kills"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("kills", total=kills)

        def on_event(line: str) -> None:
            bar.console.print(f"{time.strftime('%H:%M:%S')} {line}", markup=False)
            if line.split(" ", 1)[0] in KILLS:
                bar.advance(task)

        yield on_event


@app.command()
def main(
    kills: Annotated[int, typer.Option(min=1, help="kill -9, over as many rounds of the grid as they take")] = 100,
    seed: Annotated[int, typer.Option(help="of the schedule and of the choice among victims")] = 0,
    store: Annotated[Path | None, typer.Option(help="a new folder for everything; default: a temporary one")] = None,
    hang: Annotated[float, typer.Option(help="seconds without a sign of life that count as a hang")] = HANG_S,
    keep: Annotated[bool, typer.Option("--keep", help="keep the folder though all went well")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file with every kill")] = None,
) -> None:
    """Kill the smoke grid at random moments and check that nothing is lost."""
    console = Console(highlight=False, soft_wrap=True)

    def measure(folder: Path) -> dict[str, Any]:
        with _shown_progress(console, kills) as on_event:
            return run_chaos(folder, kills=kills, seed=seed, hang_s=hang, on_event=on_event)

    code = measure_in_folder(
        "chaos",
        measure,
        show=show,
        is_good=lambda document: not document["breaches"],
        store=store,
        keep=keep,
        out=out,
        console=console,
    )
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
