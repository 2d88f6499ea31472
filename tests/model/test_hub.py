"""A hub on loopback: a foundation is downloaded once by whoever comes first, gone on with after a cut, and refused in one line."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REPOSITORY, COMMIT = "lab/stand-in", "0123456789abcdef0123456789abcdef01234567"
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
    print("refused:", error)
"""


class Hub:
    """What it served, and how it is to fail."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()  # whole bodies by file
        self.ranges: list[str] = []
        self.gated = False
        self.cut_weights_once = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                path = self.path.split("?")[0]
                if hub.gated:
                    self.reply(403, b"{}", {"X-Error-Code": "GatedRepo"})
                elif path.startswith(f"/api/models/{REPOSITORY}/tree/"):
                    tree = [{"type": "file", "path": n, "size": len(d), "oid": sha(d)} for n, d in FILES.items()]
                    self.reply(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
                elif path.startswith(f"/api/models/{REPOSITORY}"):
                    info = {"id": REPOSITORY, "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
                    self.reply(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
                elif path.startswith(f"/{REPOSITORY}/resolve/{COMMIT}/"):
                    self.send_file(path.removeprefix(f"/{REPOSITORY}/resolve/{COMMIT}/"), body=body)
                else:
                    self.reply(404, b"{}", {})

            def send_file(self, name: str, *, body: bool) -> None:
                data, headers = FILES[name], {"ETag": f'"{sha(FILES[name])}"', "X-Repo-Commit": COMMIT}
                wanted = self.headers.get("Range", "")
                start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
                if not body:
                    self.reply(200, data, headers, body=False)
                    return
                if wanted:
                    hub.ranges.append(wanted)
                    headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
                if name == "model.safetensors" and hub.cut_weights_once:
                    hub.cut_weights_once = False
                    self.reply(200, data, headers, body=False)
                    self.wfile.write(data[:-1000])
                    self.wfile.flush()
                    self.close_connection = True
                    return
                self.reply(206 if wanted else 200, data[start:], headers)
                hub.sent[name] += 1

            def reply(self, status: int, data: bytes, headers: dict[str, str], *, body: bool = True) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if body and self.command == "GET":
                    self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def sha(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
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
    assert answer.startswith("refused: foundation stand-in") and "hf auth login" in answer and answer.count("\n") == 1
    hub.server.shutdown()
    hub.server.server_close()
    answer = fetch(hub, tmp_path)
    assert "hub cannot be reached" in answer and "hf download" in answer and answer.count("\n") == 1
