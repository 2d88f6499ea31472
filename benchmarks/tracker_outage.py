"""What does a dead MLflow server cost the training? `python benchmarks/tracker_outage.py --repeats 5`.

The smoke grid with more steps runs in turn with the server up, with nobody at its address, and with `--silent` before a server that accepts and never
answers (A B C A B C ...). After each run the server is there again, `doctor --repair` runs, and MLflow must hold every point of the files once.
Exit codes: 0 training took at most 5 % longer and nothing is missing; 1 not so (the folder is kept); 2 it could not be measured.
"""

from __future__ import annotations

import shutil
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, in a checkout

import psutil
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.chaos_mlflow import check_mirror
from benchmarks.chaos_processes import MlflowServer, Session, mlflow_server
from benchmarks.chaos_state import EXPERIMENT, grid_command
from benchmarks.folders import measure_in_folder
from orchestrator.layout import Store
from orchestrator.provenance import describe_environment
from orchestrator.results import read_result
from orchestrator.scales import SMOKE

Tracker = Literal["up", "dead", "silent"]
Figure = Literal["train_s", "wall_s", "cpu_s"]

GOAL = 1.05
"""Of the seconds of training without a tracker to those with one: the median of the repeats."""
STEPS = 240
"""Of each trial: half a minute of training. The smoke grid's own 12 take two seconds, too few to see 5 % of."""
_GRID_ENDS_WITHIN_S = 3600.0
_DOCTOR_ENDS_WITHIN_S = 600.0
_LOOK_EVERY_S = 1.0

_SCRIPT = '''"""The grid at smoke scale, trained longer."""

import sys
from dataclasses import replace

from experiments.grid import EXPERIMENT
from orchestrator.cli import main
from orchestrator.scales import SCALES, SMOKE

SCALES["smoke"] = replace(
    SMOKE,
    budget=replace(SMOKE.budget, steps={steps}),
    execution=replace(SMOKE.execution, checkpoint_every={checkpoint_every}),
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
'''

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One run of the grid, and what MLflow held in the end."""

    repeat: int  # from 1
    tracker: Tracker
    train_s: float  # the trials' own seconds of training, summed
    wall_s: float  # of the command
    cpu_s: float  # of the command's processes (the server's are not among them), as seen in looks of a second
    points: int = 0  # in the files
    breaches: tuple[str, ...] = ()


def ratios(measurements: Sequence[Measurement], tracker: Tracker, figure: Figure) -> dict[str, float]:
    """Median, smallest and largest of `figure` under `tracker` to that of the same repeat with the tracker up."""
    of = {(row.repeat, row.tracker): float(getattr(row, figure)) for row in measurements}
    return _spread([value / of[repeat, "up"] for (repeat, name), value in of.items() if name == tracker])


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summarize(measurements: Sequence[Measurement]) -> dict[str, Any]:
    """Every ratio of every way to be without a tracker, whether training stayed within the goal in all of them, and what MLflow lacks."""
    trackers: list[Tracker] = [name for name in ("dead", "silent") if any(row.tracker == name for row in measurements)]
    figures: tuple[Figure, ...] = ("train_s", "wall_s", "cpu_s")
    found = {name: {figure: ratios(measurements, name, figure) for figure in figures} for name in trackers}
    return {
        "goal": GOAL,
        "within_goal": all(by_figure["train_s"]["median"] <= GOAL for by_figure in found.values()),
        "ratios": found,
        "up_train_s": _spread(
            [row.train_s for row in measurements if row.tracker == "up"]
        ),  # how quiet the machine was
        "points": sum(row.points for row in measurements),
        "breaches": sum(len(row.breaches) for row in measurements),
    }


def measure_outage(
    folder: Path, *, repeats: int, steps: int, silent: bool, on_event: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Run everything in `folder`; returns the document that `--out` holds.

    Raises RuntimeError when the server does not work, or a grid does not end well by itself.
    """
    script = folder / "longer_grid.py"
    checkpoint_every = max(1, steps * SMOKE.execution.checkpoint_every // SMOKE.budget.steps)
    script.write_text(_SCRIPT.format(steps=steps, checkpoint_every=checkpoint_every), encoding="utf-8")
    trackers: tuple[Tracker, ...] = ("up", "dead", "silent") if silent else ("up", "dead")
    measurements = []
    with mlflow_server(folder / "mlflow") as server:
        bench = _Bench(folder, script, server)
        on_event("a first run, not counted, prepares the data")
        bench.train("prepared", server.uri)
        for repeat in range(1, repeats + 1):
            for tracker in trackers:
                row = bench.measure(repeat, tracker)
                on_event(f"{repeat} {tracker}: trained {row.train_s:.1f} s, command {row.wall_s:.1f} s")
                measurements.append(row)
    return {
        "benchmark": "tracker_outage",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "settings": {"repeats": repeats, "steps": steps, "checkpoint_every": checkpoint_every, "trackers": trackers},
        "environment": describe_environment(),
        "summary": summarize(measurements),
        "runs": [asdict(row) for row in measurements],
    }


class _Bench:
    """Runs the grid in one fresh store after the other."""

    def __init__(self, folder: Path, script: Path, server: MlflowServer) -> None:
        self._folder, self._script, self._server = folder, script, server

    def measure(self, repeat: int, tracker: Tracker) -> Measurement:
        """Run the grid under this tracker, then have the doctor mirror what is missing, and compare."""
        name = f"{repeat:02d}-{tracker}"
        store = self._folder / name
        shutil.copytree(self._folder / "prepared" / "prepared", store / "prepared")
        with _tracker(self._server, tracker) as uri:
            wall_s, cpu_s = self.train(name, uri)
        run = Store(store).runs(EXPERIMENT, SMOKE.label)
        breaches = self._doctor(name, "--repair")
        mirror = check_mirror(self._server.uri, EXPERIMENT, run)
        breaches += mirror.breaches + self._doctor(name)
        results = [read_result(run.trial(path.name)) for path in sorted(run.trials.iterdir())]
        return Measurement(
            repeat=repeat,
            tracker=tracker,
            train_s=sum(result.costs["train_seconds"] for result in results),
            wall_s=wall_s,
            cpu_s=cpu_s,
            points=mirror.points,
            breaches=tuple(f"{name}: {line}" for line in breaches),
        )

    def train(self, name: str, uri: str) -> tuple[float, float]:
        """Run the grid in the store of that name; returns the command's seconds and its processes' CPU seconds."""
        session = self._start(name, uri)
        cpu: dict[int, float] = {}
        try:
            while session.wait(_LOOK_EVERY_S) is None and time.monotonic() - session.started < _GRID_ENDS_WITHIN_S:
                for pid in session.members():
                    with suppress(psutil.Error):
                        times = psutil.Process(pid).cpu_times()
                        cpu[pid] = times.user + times.system
            wall_s, code = time.monotonic() - session.started, session.returncode
        finally:
            session.kill()
        if code != 0:
            ended = f"ended with exit code {code}" if code is not None else "did not end"
            raise RuntimeError(f"the grid {ended} after {wall_s:.0f} s; see {session.log}")
        return wall_s, sum(cpu.values())

    def _doctor(self, name: str, *words: str) -> list[str]:
        """Look (or with --repair put right); what is wrong with the answer."""
        session = self._start(name, self._server.uri, "doctor", *words)
        try:
            code = session.wait(_DOCTOR_ENDS_WITHIN_S)
        finally:
            session.kill()
        return [] if code == 0 else [f"{' '.join(['doctor', *words])} ended with exit code {code}; see {session.log}"]

    def _start(self, name: str, uri: str, *words: str) -> Session:
        store, log = self._folder / name, self._folder / f"{'-'.join([name, *(word.strip('-') for word in words)])}.log"
        return Session(grid_command(Store(store), uri, *words, script=self._script), cwd=self._folder, log=log)


@contextmanager
def _tracker(server: MlflowServer, tracker: Tracker) -> Iterator[str]:
    """The address that the grid is given for the block: of the server, of the server that was killed, of one who says nothing."""
    if tracker == "silent":
        with silent_server() as uri:
            yield uri
        return
    if tracker == "dead":
        server.kill()
    yield server.uri
    server.wait()


@contextmanager
def silent_server() -> Iterator[str]:
    """The address of somebody who accepts every connection and never says a word, for the block."""
    connections: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with suppress(OSError):  # the end of the block
                while True:
                    connections.append(listener.accept()[0])

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # closing alone would not wake the thread
            thread.join()
            for connection in connections:
                connection.close()


def show(document: Mapping[str, Any], console: Console) -> None:
    """Print a row per run, the ratios, and everything that MLflow lacks."""
    table = Table(title=f"{document['settings']['steps']} steps a trial; seconds")
    for name in ("repeat", "tracker", "training", "command", "CPU", "points in the files"):
        table.add_column(name, justify="left" if name == "tracker" else "right")
    for row in document["runs"]:
        seconds = (f"{row[figure]:.1f}" for figure in ("train_s", "wall_s", "cpu_s"))
        table.add_row(str(row["repeat"]), row["tracker"], *seconds, f"{row['points']:,}")
    console.print(table)
    summary = document["summary"]
    for tracker, by_figure in summary["ratios"].items():
        told = [f"{figure} {of['median']:.3f} ({of['min']:.3f} to {of['max']:.3f})" for figure, of in by_figure.items()]
        console.print(f"{tracker} to up, pair by pair: {', '.join(told)}")
    up = summary["up_train_s"]
    console.print(f"up, among themselves: train_s {up['median']:.1f} ({up['min']:.1f} to {up['max']:.1f})")
    verdict = "PASS" if summary["within_goal"] else "MISSED"
    console.print(f"training at most {GOAL} times as long: {verdict}")
    for line in (line for row in document["runs"] for line in row["breaches"]):
        console.print(f"BROKEN: {line}", markup=False)


@app.command()
def main(
    repeats: Annotated[int, typer.Option(min=1, help="pairs of runs")] = 5,
    steps: Annotated[int, typer.Option(min=3, help="optimizer steps of each of the two trials")] = STEPS,
    silent: Annotated[bool, typer.Option("--silent", help="also a server that accepts and never answers")] = False,
    store: Annotated[Path | None, typer.Option(help="a new folder for everything; default: a temporary one")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="keep the folder though all went well")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file with every run")] = None,
) -> None:
    """Train the smoke grid with and without its tracker, and check that the doctor brings all of it in afterwards."""
    console = Console(highlight=False, soft_wrap=True)

    def on_event(line: str) -> None:
        console.print(f"{time.strftime('%H:%M:%S')} {line}", markup=False)

    def is_good(document: Mapping[str, Any]) -> bool:
        return document["summary"]["within_goal"] and not document["summary"]["breaches"]

    code = measure_in_folder(
        "tracker_outage",
        partial(measure_outage, repeats=repeats, steps=steps, silent=silent, on_event=on_event),
        show=show,
        is_good=is_good,
        store=store,
        keep=keep,
        out=out,
        console=console,
    )
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
