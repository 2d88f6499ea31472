"""A real HTTP server on loopback that speaks chat completions, responses, files and batches, fails when told to, and keeps its own bills.

In a test: `with running_server(Faults(...)) as server`. In a process of its own, for tests that kill the client:
`python -m openai_server.server '{"late": 0.05, ...}'` prints its address; GET /bills tells what it charged.
"""

from __future__ import annotations

import email
import email.policy
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from openai_server.answering import (
    LIVE_FAULTS,
    Bank,
    Faults,
    chat_completion,
    response,
    usage_of,
    write_trace,
)
from openai_server.batches import Batches

KEY = "sk-test-4f9d1c0a7b6e"


class LoopbackServer(ThreadingHTTPServer):
    """The server and its state."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, faults: Faults) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults = faults
        self.bank = Bank()
        self.batches = Batches(self.bank)
        self.key = KEY
        self.keeps_answers = True  # False: like a server that knows neither stored answers nor metadata
        self.forgets = False  # like an account with zero data retention: takes `store`, keeps nothing, lists nothing
        self.listed_after_s = 0.0  # how long it takes until a stored answer is listed
        self.redirects_to: str | None = None  # base URL of another server, for all that comes
        self.keys: set[str | None] = set()  # every authorization header that came
        self.has_batches = True
        self.per_second: float | None = None  # questions that it answers; more are declined with 429
        self.refuses: tuple[int, str, str] | None = None  # status, code, message for every request that asks something
        self.requests: list[str] = []  # method and path of everything that came
        self.asked: list[str] = []  # the user's message of every question
        self.faults_end_after: int | None = None  # questions

    @property
    def url(self) -> str:
        """What clients take as base URL."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed or give up are no news."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Cut(ConnectionError):
    """The connection is to be cut without a reply."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: LoopbackServer

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def _serve(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        parts = urlsplit(self.path)
        self.server.requests.append(f"{method} {parts.path}")
        path = parts.path.removeprefix("/v1").strip("/").split("/")
        self.server.keys.add(self.headers.get("authorization"))
        try:
            if self.server.redirects_to:
                place = self.server.redirects_to + self.path.removeprefix("/v1")
                self._send(307, b"", "text/plain", {"Location": place})
            elif path == ["bills", "count"]:
                self._reply(200, {"count": len(self.server.bank.bills)})
            elif path == ["bills"]:
                self._reply(200, {"bills": self.server.bank.bills})
            elif self.headers.get("authorization") != f"Bearer {self.server.key}":
                given = self.headers.get("authorization", "").removeprefix("Bearer ")
                self._fail(401, "invalid_api_key", f"Incorrect API key provided: {given}. Find yours in the dashboard.")
            elif method == "GET":
                self._get(path, parse_qs(parts.query))
            else:
                self._post(path, body)
        except _Cut:
            self.close_connection = True

    def _get(self, path: list[str], query: dict[str, list[str]]) -> None:
        server = self.server
        match path:
            case ["chat", "completions"] if server.keeps_answers:
                wanted = query.get("metadata[slotgrid_request]")
                self._list(server.bank.listed(wanted[0], server.listed_after_s) if wanted else [])
            case ["responses", name] if name in server.bank.responses:
                done = server.bank.responses[name]
                queued = {**done, "status": "in_progress", "output": [], "usage": None}
                self._reply(200, done if time.time() >= server.bank.ready_at.get(name, 0) else queued)
            case ["files", name, "content"] if name in server.batches.files:
                self._send(200, server.batches.files[name], "application/octet-stream")
            case ["batches"]:
                self._list(server.batches.newest_first())
            case ["batches", name] if name in server.batches.batches:
                self._tell_batch(server.batches.look(name, server.faults))
            case _:
                self._fail(404, "not_found", "no such path")

    def _post(self, path: list[str], body: bytes) -> None:
        server = self.server
        match path:
            case ["chat", "completions"] | ["responses"]:
                self._ask(json.loads(body), chat=path[0] == "chat")
            case ["files"] if server.has_batches:
                head = f"Content-Type: {self.headers['content-type']}\r\n\r\n".encode()
                form = email.message_from_bytes(head + body, policy=email.policy.HTTP)
                fields = {part.get_param("name", header="content-disposition"): part for part in form.iter_parts()}
                assert fields["purpose"].get_content().strip() == "batch"
                self._reply(200, server.batches.upload(fields["file"].get_payload(decode=True)))
            case ["batches"] if server.has_batches:
                batch = server.batches.create(json.loads(body))
                if server.faults.draw(batch["id"], ("batch_creation_cut",)):
                    raise _Cut
                self._tell_batch(batch)
            case _:
                self._fail(404, "not_found", "no such path")

    def _ask(self, body: dict[str, Any], *, chat: bool) -> None:
        """Answer one question, or fail as drawn."""
        server = self.server
        stored = bool(body.get("store"))
        if server.refuses:
            return self._fail(*server.refuses)
        if server.per_second and not server.bank.has_room(server.per_second):
            return self._fail(429, "rate_limit_exceeded", "Rate limit reached", {"retry-after-ms": "50"})
        if stored and not server.keeps_answers:
            return self._fail(400, "unknown_parameter", "Unrecognized request arguments: metadata, store")
        messages = body["messages"] if chat else body["input"]
        server.asked.append(messages[-1]["content"])
        if server.faults_end_after is not None and len(server.asked) > server.faults_end_after:
            server.faults = Faults()
        request = (body.get("metadata") or {}).get("slotgrid_request") or json.dumps(messages)
        fault = server.faults.draw(f"{request}|{server.bank.nth_try(request)}", LIVE_FAULTS)
        match fault:
            case "rate_limited":
                wait = str(server.faults.retry_after_s)
                return self._fail(429, "rate_limit_exceeded", "Rate limit reached", {"retry-after": wait})
            case "failing":
                return self._fail(500, "server_error", "The server had an error")
            case "cut_before":
                raise _Cut
            case "late":
                time.sleep(server.faults.late_s)
        time.sleep(server.faults.working_s)
        text = write_trace(messages, fault)
        usage = usage_of(messages, text)
        name = server.bank.bill(request, usage, "live")
        reply = (chat_completion if chat else response)(name, body["model"], text, usage)
        if stored and chat and not server.forgets:
            server.bank.store(request, reply)
        if not chat:
            server.bank.responses[reply["id"]] = reply
        if fault == "cut_after":
            raise _Cut
        if fault == "garbled":
            return self._send(200, b'{"id": "chatcmpl-', "application/json")
        if fault == "gateway":
            return self._fail(502, "bad_gateway", "Bad gateway")
        if body.get("background"):
            server.bank.ready_at[reply["id"]] = time.time() + server.faults.background_s
            reply = response(name, body["model"], None, usage)
        self._reply(200, reply)

    def _tell_batch(self, batch: dict[str, Any]) -> None:
        if self.server.batches.garbled > 0:
            self.server.batches.garbled -= 1
            return self._send(200, b'{"id": "batch_', "application/json")
        return self._reply(200, batch)

    def _list(self, rows: list[dict[str, Any]]) -> None:
        self._reply(200, {"object": "list", "data": rows, "has_more": False, "first_id": None, "last_id": None})

    def _fail(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        error = {"message": message, "type": "error", "param": None, "code": code}
        self._send(status, json.dumps({"error": error}).encode(), "application/json", headers or {})

    def _reply(self, status: int, value: Any) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        lines = [f"HTTP/1.1 {status} {'OK' if status == 200 else 'Error'}", f"Content-Type: {kind}"]
        lines += [f"Content-Length: {len(body)}", *(f"{name}: {value}" for name, value in (headers or {}).items())]
        self.wfile.write("\r\n".join([*lines, "", ""]).encode() + body)


@contextmanager
def running_server(faults: Faults | None = None) -> Iterator[LoopbackServer]:
    """The server in a thread of this process."""
    server = LoopbackServer(faults or Faults())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    """Serve until killed, with the faults given as JSON."""
    server = LoopbackServer(replace(Faults(), **json.loads(sys.argv[1])))
    print(json.dumps({"url": server.url, "faults": asdict(server.faults)}), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
