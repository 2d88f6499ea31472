"""A real store, whose grid is done: every kind of file in it is known, and the command heals what it wrote itself, or names file and remedy."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data.atomic import write_json, write_sealed_json
from experiments.grid import EXPERIMENT
from orchestrator.cli import main
from orchestrator.layout import RunFolder
from orchestrator.lease import hold_lease
from stand_ins.damages import COMMAND, DAMAGES, RUN, damage, iter_unknown, size_of_case
from stand_ins.grids import grid

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RUN_FOLDER = "grid-smoke"
LARGE = (".safetensors", ".arrow", ".flac")


def copy(store: Path, target: Path) -> RunFolder:
    """A store's copy, its large files shared. MLflow's artifacts stay where its database says."""

    def copy_or_link(source: str, where: str) -> None:
        if source.endswith(LARGE):
            os.link(source, where)
        else:
            shutil.copy2(source, where)

    shutil.copytree(store, target, copy_function=copy_or_link)
    return RunFolder(target / RUN_FOLDER)


@pytest.fixture(scope="module")
def store(smoke: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke grid's store, with what a canary, a killed driver and a stop leave."""
    run = copy(smoke / "runs", tmp_path_factory.mktemp("store") / "runs")
    with hold_lease(run):
        lease = run.lease.read_bytes()
    run.lease.write_bytes(lease)
    write_json(run.stop, {"pid": 1})
    write_sealed_json(run.canary("tiny-base").path / "report.json", {"passed": True})
    return run.path.parent


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """The grid's command line in this process, on the store at `tmp_path`: exit code and output."""

    def run(*arguments: str) -> tuple[int, str]:
        code = main(EXPERIMENT, [*arguments, "--scale", "smoke", "--store", str(tmp_path / "runs")])
        out = "".join(capfd.readouterr())
        assert "Traceback" not in out and code in (0, 1, 2), out
        return code, out

    return run


def test_every_kind_of_file_is_known(smoke: Path) -> None:
    """A new kind needs a case in `stand_ins.damages`: what becomes of it when it is damaged?"""
    assert list(iter_unknown(smoke / "runs", RUN_FOLDER)) == []


CASES = [
    pytest.param(name, how, marks=size_of_case(kind, how))
    for kind, name in enumerate(RUN | COMMAND)
    if name != "database of MLflow"
    for how in DAMAGES
]


@pytest.mark.parametrize(("name", "how"), CASES)
def test_the_next_run_and_doctor_heal_what_the_command_wrote(
    store: Path, command, tmp_path: Path, name: str, how: str
) -> None:
    run, kind = copy(store, tmp_path / "runs"), (RUN | COMMAND)[name]
    results = run.results_csv.read_bytes()
    file = next(run.path.glob(kind.path))
    damage(file, how)
    code, out = command()
    if kind.named and (how != "deleted" or kind.deleted_is_named):
        (line,) = [line for line in out.splitlines() if file.name in line]
        assert code == 2 and ("move" in line or "delete" in line), out
        return
    assert (code, run.results_csv.read_bytes()) == (0, results), out
    assert "warning" not in out and not run.lease.exists() and not run.stop.exists(), out
    code, out = command("doctor", "--repair")
    assert code == 0, out
    assert "all is well" in command("doctor")[1]


@pytest.mark.parametrize("how", [pytest.param(how, marks=size_of_case(4, how)) for how in DAMAGES])
def test_a_damaged_database_of_mlflow_is_named_and_a_new_one_is_filled(
    store: Path, command, tmp_path: Path, how: str
) -> None:
    run = copy(store, tmp_path / "runs")
    database = tmp_path / "runs" / "mlflow.db"
    damage(database, how)
    for marker in run.path.rglob("mlflow_mirror.json"):
        marker.unlink()  # there is something to send
    code, out = command()
    assert code == 0 and out.count("warning:") <= 1, out
    code, told = command("doctor", "--repair")
    told = "".join(told.split())
    if how in ("truncated in the middle", "replaced by garbage"):
        assert "thedatabaseisdamaged" in "".join(out.split()) and f"move{database}*away" in "".join(out.split())
        assert code == 1 and "thedatabaseisdamaged" in told, told
    if code == 1:
        assert "thedatabaseisdamaged" in told, told
        database.rename(tmp_path / "mlflow.db.damaged")
        done = grid("doctor", "--repair", "--scale", "smoke", "--store", str(tmp_path / "runs"), cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    done = grid("doctor", "--scale", "smoke", "--store", str(tmp_path / "runs"), cwd=tmp_path)
    assert done.returncode == 0 and "all is well" in done.stdout, done.stdout + done.stderr


def test_a_grid_trains_to_its_end_over_a_damaged_database(smoke: Path, unfinished: Path) -> None:
    (unfinished / "runs" / "mlflow.db").write_bytes(b"garbage" * 1000)
    done = grid("--scale", "smoke", cwd=unfinished)
    out = done.stdout + done.stderr
    assert done.returncode == 0 and "Traceback" not in out, out
    (line,) = [line for line in out.splitlines() if "warning:" in line]
    assert "the database is damaged" in line and "away" in line
    results = Path("runs", RUN_FOLDER, "results.csv")
    assert (unfinished / results).read_bytes() == (smoke / results).read_bytes()
