"""The grid as a user runs it: a whole smoke run, the same again, killed in the middle, and every wrong input told in one line."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stand_ins.grids import SCRIPT, environment, grid, run_folder, start_smoke_grid

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_lone_script_runs_the_grid_and_leaves_everything(smoke: Path) -> None:
    run = run_folder(smoke)
    assert {"results.csv", "costs.csv", "report.md", "heatmap.png", "plan.json"} <= {
        path.name for path in run.iterdir()
    }
    for trial in ("tiny-instruct.regular.seed0", "tiny-hybrid.hybrid.seed0"):
        result = json.loads((run / "trials" / trial / "result.json").read_text())
        assert 0 <= result["scores"]["eval/partial_f1"] <= 1
        assert result["scores"]["eval/direct/output_tokens"] > 0
    assert not (run / "ray").exists(), "Ray's own state is of no use to anyone afterwards"


def test_mlflow_mirrors_the_grid(smoke: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{smoke / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("grid")
    runs = client.search_runs([experiment.experiment_id])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert (len(runs), len(children)) == (3, 2)
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in children:
        assert {"kind", "foundation", "mode", "seed", "fingerprint", "git_revision"} <= run.data.tags.keys()
        folder = run_folder(smoke) / "trials" / f"{run.data.tags['foundation']}.{run.data.tags['mode']}.seed0"
        assert (
            run.data.metrics["eval/partial_f1"]
            == json.loads((folder / "result.json").read_text())["scores"]["eval/partial_f1"]
        )
        written = {
            row["step"]: row["metrics"]["train/loss"]
            for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
            if "train/loss" in row["metrics"]
        }
        mirrored = {point.step: point.value for point in client.get_metric_history(run.info.run_id, "train/loss")}
        assert mirrored == written
        assert any(artifact.path.startswith("predictions") for artifact in client.list_artifacts(run.info.run_id))


def test_a_finished_grid_runs_again_in_seconds_and_computes_nothing(smoke: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run_folder(smoke).glob("trials/*/*") if path.is_file()}
    begun = time.monotonic()
    done = grid("--scale", "smoke", cwd=smoke, script=smoke / "grid.py")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begun < 30
    assert "nothing to train" in done.stdout
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.full
def test_the_same_seed_gives_the_same_results_after_a_kill(smoke: Path, tmp_path: Path) -> None:
    """kill -9 of the whole process group once a trial has its first checkpoint; the rerun ends with the undisturbed run's bytes."""
    process = start_smoke_grid(tmp_path, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while not list(run_folder(tmp_path).glob("trials/*/checkpoints/*/commit.json")):
        assert process.poll() is None and time.monotonic() < deadline, "it ended, or hung, before the first checkpoint"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run_folder(tmp_path) / "results.csv").exists()

    done = grid("--scale", "smoke", cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (run_folder(tmp_path) / "results.csv").read_bytes() == (run_folder(smoke) / "results.csv").read_bytes()


def one_line_error(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0], done.stderr


def test_wrong_usage_is_one_line(tmp_path: Path) -> None:
    one_line_error(grid("--scale", "huge", cwd=tmp_path), "huge", "smoke")
    one_line_error(grid("runn", cwd=tmp_path), "runn", "plan")
    one_line_error(grid("--only", "kind=hybird", "--scale", "smoke", cwd=tmp_path), "hybird")


def corpus_of(folder: Path) -> Path:
    return next((folder / "runs" / "prepared" / "corpora").iterdir())


def test_a_broken_manifest_row_names_file_line_and_remedy(unfinished: Path) -> None:
    manifest = corpus_of(unfinished) / "manifest.jsonl"
    lines = manifest.read_text().splitlines()
    row = json.loads(lines[4])
    row["slots"][0]["label"] = "no_such_label"
    lines[4] = json.dumps(row)
    manifest.write_text("\n".join(lines) + "\n")
    one_line_error(grid("--scale", "smoke", cwd=unfinished), "manifest.jsonl")


def test_a_manifest_that_is_no_json_names_the_line(unfinished: Path) -> None:
    manifest = corpus_of(unfinished) / "manifest.jsonl"
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([*lines[:2], lines[2][:40], *lines[3:]]) + "\n")
    one_line_error(grid("plan", "--scale", "smoke", cwd=unfinished), "manifest.jsonl, line 3")


def test_a_missing_audio_file_is_named(unfinished: Path) -> None:
    audio = next((corpus_of(unfinished) / "audio").rglob("*.flac"))
    audio.unlink()
    one_line_error(grid("--scale", "smoke", cwd=unfinished), audio.name)


def test_wrong_encoder_weights_are_refused(unfinished: Path) -> None:
    weights = next((unfinished / "runs" / "prepared" / "encoders").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    one_line_error(grid("--scale", "smoke", cwd=unfinished), weights.name, "sha256")


@pytest.fixture
def small_disk(unfinished: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a file system of a given size, as `mount` takes it."""
    folder = unfinished / "small"
    folder.mkdir()
    mounted = []

    def mount(size: str) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip("this machine does not let us mount a small file system")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_one_line(unfinished: Path, small_disk: Callable[[str], Path]) -> None:
    done = grid("--scale", "smoke", "--store", str(small_disk("1m")), cwd=unfinished)
    one_line_error(done, "are free", "are needed", "status --disk", "--store")


def fill(disk: Path) -> Path:
    """Leave no byte free; returns the file that takes the space."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
        while True:
            stream.write(b"x" * 65536)
    return filler


def test_a_disk_that_fills_during_training_ends_the_run_in_order_and_the_rerun_goes_on(
    smoke: Path, unfinished: Path, small_disk: Callable[[str], Path]
) -> None:
    store = small_disk("512m")
    shutil.copytree(unfinished / "runs" / "prepared", store / "prepared")
    command = [sys.executable, str(SCRIPT), "--scale", "smoke", "--store", str(store)]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=unfinished, env=environment(), **output) as process:
        deadline = time.monotonic() + 400
        while not any("training" in path.read_text() for path in store.glob("grid-smoke/trials/*/status.json")):
            assert process.poll() is None and time.monotonic() < deadline, "it ended, or hung, before it trained"
            time.sleep(0.05)
        filler = fill(store)
        out, _ = process.communicate(timeout=400)
    assert process.returncode == 1, out[-3000:]
    assert "the disk is full" in out and "status --disk" in out, out[-3000:]
    for path in store.glob("grid-smoke/**/*.json"):
        json.loads(path.read_text())  # whole

    filler.unlink()
    done = grid("--scale", "smoke", "--store", str(store), cwd=unfinished)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = (run_folder(smoke) / "results.csv").read_bytes()
    assert (store / "grid-smoke" / "results.csv").read_bytes() == results
