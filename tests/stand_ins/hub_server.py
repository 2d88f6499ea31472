"""A model hub on loopback that serves one repository to the hub's own client, and fails as it is told to."""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

REPOSITORY, COMMIT = "lab/stand-in", "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What it served, and how it is to fail."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.sent: Counter[str] = Counter()  # whole bodies by file
        self.ranges: list[str] = []
        self.gated = False
        self.status: int | None = (
            None  # of every answer; its client asks again, for 23 s, after 429, 500, 502, 503 and 504
        )
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
                if hub.status:
                    self.reply(hub.status, b"{}", {})
                elif hub.gated:
                    self.reply(403, b"{}", {"X-Error-Code": "GatedRepo"})
                elif path.startswith(f"/api/models/{REPOSITORY}/tree/"):
                    tree = [{"type": "file", "path": n, "size": len(d), "oid": _sha(d)} for n, d in files.items()]
                    self.reply(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
                elif path.startswith(f"/api/models/{REPOSITORY}"):
                    info = {"id": REPOSITORY, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
                    self.reply(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
                elif path.startswith(f"/{REPOSITORY}/resolve/{COMMIT}/"):
                    self.send_file(path.removeprefix(f"/{REPOSITORY}/resolve/{COMMIT}/"), body=body)
                else:
                    self.reply(404, b"{}", {})

            def send_file(self, name: str, *, body: bool) -> None:
                data, headers = files[name], {"ETag": f'"{_sha(files[name])}"', "X-Repo-Commit": COMMIT}
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


def _sha(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def use_hub(monkeypatch: pytest.MonkeyPatch, hub: Hub, cache: Path) -> None:
    """Let the client in this process ask that hub, and keep what it downloads in `cache`; a child process has HF_ENDPOINT and HF_HOME."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
