"""What a plan shows before anything starts: states, actions, what is cached, what is missing."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from data.atomic import write_json
from model.configs import TrialConfig
from model.foundations import FOUNDATIONS
from orchestrator.corpora import corpus_ref
from orchestrator.experiment import Experiment
from orchestrator.grid import product
from orchestrator.hardware import find_hardware, hardware_called
from orchestrator.layout import Store
from orchestrator.plan import Plan, make_plan, plan_to_json, planned_seeds, write_plan
from orchestrator.results import Failure
from orchestrator.scales import SCALES, Scale, choose_scale, cluster_gpus


def declare(scale: Scale, seeds: int) -> list[TrialConfig]:
    return product(
        scale.trial, exclude=scale.excludes, foundation=scale.foundations, mode=scale.modes, seed=range(seeds)
    )


GRID = Experiment(name="grid", hypothesis="It works.", declare=declare)


def plan_of(store: Store, scale: Scale, trials: list[TrialConfig], *, rerun_stale: bool = False) -> Plan:
    return make_plan(GRID, scale, trials, store, seeds=1, rerun_stale=rerun_stale)


def prerequisite(plan: Plan, name: str) -> tuple[str, str]:
    return next((item.state, item.detail) for item in plan.prerequisites if item.name.startswith(name))


def test_a_plan_says_what_run_would_do(store: Store, tiny_grid: list[TrialConfig], finish, begin) -> None:
    run = store.runs("grid", "tiny")
    finish(run, tiny_grid[0])
    begin(run, tiny_grid[1], step=200)
    begin(run, tiny_grid[2], failure=Failure(cause="io", error="OSError", message="x"))
    begin(run, replace(tiny_grid[3], metric_version=99))
    plan = plan_of(store, SCALES["tiny"], tiny_grid)
    actions = [row["action"] for row in plan_to_json(plan)["trials"]]
    assert actions[:5] == ["skip", "continue", "retry", "blocked", "start"]
    assert len(plan.to_run) == 10
    with pytest.raises(ValueError, match=r"tiny-instruct\.regular\.seed0: metric_version: 99 -> 2.*--rerun-stale"):
        plan.check()
    again = plan_of(store, SCALES["tiny"], tiny_grid, rerun_stale=True)
    assert again.action(again.states[3]) == "rerun" and not again.blocked


def test_planning_writes_nothing(store: Store, tiny_grid: list[TrialConfig]) -> None:
    plan = plan_of(store, SCALES["tiny"], tiny_grid)
    assert not store.root.exists()
    assert json.loads(json.dumps(plan_to_json(plan)))["trials"][0]["examples"] == (
        tiny_grid[0].budget.steps * tiny_grid[0].budget.batch_size
    )


def test_the_plan_counts_the_audio_that_is_encoded_already(store: Store, tiny_grid: list[TrialConfig]) -> None:
    tiny = SCALES["tiny"]
    corpus = store.corpus(corpus_ref(tiny.corpus))
    assert prerequisite(plan_of(store, tiny, tiny_grid), "corpus")[0] == "to make"
    corpus.mkdir(parents=True)
    rows = [{"id": str(n), "audio_sha256": f"sha{n}"} for n in range(3)]
    (corpus / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_json(corpus / "corpus.json", {})
    states = store.encoder_states / "whisper-base-pad-none-0123456789ab"
    write_json(states / "manifest.json", {"shards": [{"rows": [["sha0", 10], ["sha2", 12]]}]})
    plan = plan_of(store, tiny, tiny_grid)
    assert prerequisite(plan, "corpus")[0] == "ready"
    assert prerequisite(plan, "encoder states") == ("to make", "1 of 3 audio files to encode")
    write_json(states / "manifest.json", {"shards": [{"rows": [["sha0", 10], ["sha2", 12], ["sha1", 9]]}]})
    assert prerequisite(plan_of(store, tiny, tiny_grid), "encoder states")[0] == "ready"


def test_a_model_that_cannot_be_had_is_found_before_anything_runs(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = SCALES["small"]
    trials = declare(small, 1)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("SLOTGRID_OFFLINE", raising=False)
    assert prerequisite(plan_of(store, small, trials), "foundation")[0] == "to make"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"foundation qwen3-0\.6b: offline and not in .*hf download Qwen/Qwen3-0\.6B"):
        plan_of(store, small, trials).check()
    repository = tmp_path / "hub" / "models--Qwen--Qwen3-0.6B"
    (repository / "snapshots" / "c0ffee").mkdir(parents=True)
    (repository / "snapshots" / "c0ffee" / "model.safetensors").touch()
    (repository / "refs").mkdir()
    (repository / "refs" / small.foundations[0].revision).write_text("c0ffee")
    assert prerequisite(plan_of(store, small, trials), "foundation")[0] == "ready"


def test_a_gated_model_asks_for_a_token_before_anything_runs(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paper = SCALES["paper"]
    gated = [paper.trial(foundation=FOUNDATIONS["llama-3.1-8b"], mode="regular", seed=0)]
    for name in ("HF_HUB_OFFLINE", "SLOTGRID_OFFLINE", "HF_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"llama-3\.1-8b: gated: accept its licence on https://.*hf auth login"):
        plan_of(store, paper, gated).check()
    monkeypatch.setenv("HF_TOKEN", "secret")
    state, detail = prerequisite(plan_of(store, paper, gated), "foundation")
    assert state == "to make" and "secret" not in detail


def test_a_packaged_foundation_without_weights_is_missing(store: Store) -> None:
    tiny = SCALES["tiny"]
    gone = replace(tiny.foundations[0], name="tiny-gone", source="package:tiny-gone")
    plan = plan_of(store, tiny, [tiny.trial(foundation=gone, mode="regular", seed=0)])
    with pytest.raises(ValueError, match=r"foundation tiny-gone: .* holds no weights; reinstall"):
        plan.check()


def test_a_finished_grid_needs_nothing(store: Store, finish, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither hub nor voice are asked for when there is nothing left to train."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    trials = declare(SCALES["small"], 1)
    for trial in trials:
        finish(store.runs("grid", "small"), trial)
    plan = plan_of(store, SCALES["small"], trials)
    assert plan.prerequisites == () and not plan.to_run
    plan.check()


def test_a_grid_that_has_grown_stays_grown(store: Store) -> None:
    smoke = SCALES["smoke"]
    run = store.runs("grid", "smoke")
    assert planned_seeds(run) == 0
    write_plan(make_plan(GRID, smoke, declare(smoke, 3), store, seeds=3))
    assert planned_seeds(run) == 3


def test_smoke_is_two_trials() -> None:
    assert [(t.foundation.name, t.mode) for t in declare(SCALES["smoke"], 1)] == [
        ("tiny-instruct", "regular"),
        ("tiny-hybrid", "hybrid"),
    ]


def test_auto_says_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake `nvidia-smi` on the PATH stands in for the hardware; the head of a GPU cluster has none itself."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    scale, line = choose_scale("auto")
    assert scale.name == "tiny" and "auto: no GPU found" in line
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 24576\n")
    smi.chmod(0o755)
    scale, line = choose_scale("auto")
    assert scale.name == "small" and "1 GPU of 24 GiB" in line
    smi.write_text("#!/bin/sh\nfor gpu in 1 2 3 4; do echo 81559; done\n")
    assert choose_scale("auto")[0].name == "paper"
    smi.unlink()
    (tmp_path / "ray_bootstrap_config.yaml").write_text("available_node_types: {w: {resources: {CPU: 96, GPU: 8}}}")
    scale, line = choose_scale("auto")
    assert scale.name == "paper" and "nodes have 8 GPUs" in line
    assert cluster_gpus(tmp_path / "absent.yaml") is None


def test_a_packaged_foundation_with_other_weights_is_refused(store: Store) -> None:
    tiny = SCALES["tiny"]
    other = replace(tiny.foundations[0], revision="0" * 64)
    plan = plan_of(store, tiny, [tiny.trial(foundation=other, mode="regular", seed=0)])
    with pytest.raises(ValueError, match=r"model.safetensors: sha256 is .* pinned is 000000000000; restore it"):
        plan.check()


def test_the_paper_grid_is_planned_for_a_gpu_type_in_a_blink(store: Store) -> None:
    paper = SCALES["paper"]
    trials = product(paper.trial, foundation=paper.foundations, mode=paper.modes, seed=range(3))
    started = time.perf_counter()
    plan = make_plan(GRID, paper, trials, store, seeds=3, hardware=find_hardware("h100-80g"))
    rows = json.loads(json.dumps(plan_to_json(plan)))["trials"]
    assert time.perf_counter() - started < 3
    assert len(rows) == 45
    for row in rows:
        capacity = row["capacity"]
        assert capacity["fits"] and 0 < capacity["memory_bytes"]["peak"] < capacity["memory_bytes"]["usable"]
        assert capacity["gpu_hours"] > 0 and capacity["execution"]["zero_stage"] in (0, 1, 2, 3)


def test_a_cell_that_does_not_fit_is_refused_before_anything_starts(store: Store) -> None:
    paper = SCALES["paper"]
    trial = paper.trial(foundation=FOUNDATIONS["llama-3.1-70b"], mode="regular", seed=0)
    plan = make_plan(GRID, paper, [trial], store, seeds=1, hardware=find_hardware("rtx4090-24g"))
    with pytest.raises(ValueError, match=r"llama-3\.1-70b\.regular\.seed0: .*GiB.*--only"):
        plan.check()


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80g"),
        ("NVIDIA A100-SXM4-40GB", "a100-40g"),
        ("NVIDIA GeForce RTX 4090", "rtx4090-24g"),
        ("NVIDIA A10G", "a10g-24g"),
        ("NVIDIA H200", "h200-141g"),
        ("Tesla T4", None),
        ("H100", "h100-80g"),
        ("A100", None),  # Ray does not say how large
    ],
)
def test_a_gpu_is_known_by_what_its_driver_calls_it(driver: str, name: str | None) -> None:
    found = hardware_called(driver)
    assert (found.name if found else None) == name
