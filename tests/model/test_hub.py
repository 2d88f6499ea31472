"""A hub on loopback: a foundation is downloaded once by whoever comes first, gone on with after a cut, and refused in one line."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stand_ins.hub_server import COMMIT, REPOSITORY, Hub

ROOT = Path(__file__).parents[2]
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": bytes(range(256)) * 100_000,  # the client writes 10 MB at a time
    "original/consolidated.00.pth": b"the same weights as a pickle",
}
FETCH = f"""
from model.configs import Foundation
from model.hub import fetch_foundation
f = Foundation(name="stand-in", kind="base", source="{REPOSITORY}", revision="{COMMIT}", family="llama", parameters=1)
try:
    print(sorted(path.name for path in fetch_foundation(f).iterdir()))
except ValueError as error:
    print(type(error).__name__ + ":", error)
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub(FILES)
    yield hub
    hub.server.shutdown()


def start(hub: Hub, cache: Path) -> subprocess.Popen[str]:
    dropped = ("HF_TOKEN", "HF_HUB_OFFLINE", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    environment = {k: v for k, v in os.environ.items() if k not in dropped}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.Popen([sys.executable, "-c", FETCH], env=environment, stdout=subprocess.PIPE, text=True)


def fetch(hub: Hub, cache: Path) -> str:
    return start(hub, cache).communicate(timeout=120)[0]


def test_workers_that_start_together_download_once(hub: Hub, tmp_path: Path) -> None:
    workers = [start(hub, tmp_path) for _ in range(3)]
    answers = {worker.communicate(timeout=120)[0] for worker in workers}
    assert answers == {"['config.json', 'model.safetensors', 'tokenizer.json']\n"}
    assert hub.sent == {"config.json": 1, "tokenizer.json": 1, "model.safetensors": 1}, "once, and no pickle"


def test_a_cut_download_is_gone_on_with_and_then_the_hub_is_not_needed(hub: Hub, tmp_path: Path) -> None:
    hub.cut_weights_once = True
    assert "model.safetensors" in fetch(hub, tmp_path)
    assert hub.ranges, "only what was missing was asked for"
    weights = next(tmp_path.rglob("model.safetensors"))
    assert weights.read_bytes() == FILES["model.safetensors"]
    hub.server.shutdown()
    hub.server.server_close()
    assert "model.safetensors" in fetch(hub, tmp_path)


def test_what_cannot_be_had_is_told_in_one_line(hub: Hub, tmp_path: Path) -> None:
    hub.gated = True
    answer = fetch(hub, tmp_path)
    assert (
        answer.startswith("ValueError: foundation stand-in") and "hf auth login" in answer and answer.count("\n") == 1
    )
    hub.server.shutdown()
    hub.server.server_close()
    answer = fetch(hub, tmp_path)
    assert answer.startswith("HubUnreachable: foundation stand-in") and answer.count("\n") == 1
    assert "hub cannot be reached" in answer and "hf download" in answer


@pytest.mark.parametrize(("status", "refusal"), [(520, "HubUnreachable"), (404, "ValueError")])
def test_a_hub_in_trouble_is_another_thing_than_a_wrong_name(
    hub: Hub, tmp_path: Path, status: int, refusal: str
) -> None:
    hub.status = status
    answer = fetch(hub, tmp_path)
    assert answer.startswith(f"{refusal}: foundation stand-in") and answer.count("\n") == 1
