"""Files and batches of the loopback server."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from openai_server.answering import (
    BATCH_FAULTS,
    Bank,
    Faults,
    chat_completion,
    response,
    usage_of,
    write_trace,
)


@dataclass
class Batches:
    """Uploaded files, batches and what came of them. A batch moves one step at every look."""

    bank: Bank
    max_requests: int = 50_000
    queue: int | None = None  # requests that may wait at once; a batch above it fails
    looks: int = 2  # until a batch is complete
    complaint: str = "it broke"  # of a request that failed
    garbled: int = 0  # replies about batches, from the first one, that are no JSON
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def upload(self, content: bytes) -> dict[str, Any]:
        """A new file."""
        with self.lock:
            name = f"file-{len(self.files):06d}"
            self.files[name] = content
        return {
            "id": name,
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "filename": "requests.jsonl",
            "purpose": "batch",
            "status": "processed",
        }

    def create(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A new batch, checked as the API does."""
        rows = [json.loads(line) for line in self.files[asked["input_file_id"]].splitlines()]
        with self.lock:
            waiting = sum(b["request_counts"]["total"] for b in self.batches.values() if b["status"] == "in_progress")
            problem = None
            if len(rows) > self.max_requests or len({row["custom_id"] for row in rows}) < len(rows):
                problem = "invalid_request_file"
            elif self.queue is not None and waiting + len(rows) > self.queue:
                problem = "token_limit_exceeded"
            name = f"batch_{len(self.batches):06d}"
            errors = {"object": "list", "data": [{"code": problem, "message": f"{problem} at {len(rows)}"}]}
            self.batches[name] = {
                "id": name,
                "object": "batch",
                "endpoint": asked["endpoint"],
                "input_file_id": asked["input_file_id"],
                "completion_window": "24h",
                "status": "failed" if problem else "in_progress",
                "errors": errors if problem else None,
                "created_at": int(time.time()),
                "metadata": asked.get("metadata"),
                "output_file_id": None,
                "error_file_id": None,
                "request_counts": {"total": len(rows), "completed": 0, "failed": 0},
                "looks": 0,
            }
        return self.batches[name]

    def look(self, name: str, faults: Faults) -> dict[str, Any]:
        """A batch, a step further."""
        batch = self.batches[name]
        with self.lock:
            batch["looks"] += 1
            if batch["status"] == "in_progress" and batch["looks"] >= self.looks:
                self._complete(batch, faults)
        return batch

    def newest_first(self) -> list[dict[str, Any]]:
        """All batches."""
        return list(reversed(self.batches.values()))

    def _complete(self, batch: dict[str, Any], faults: Faults) -> None:
        answers, errors = [], []
        for line in self.files[batch["input_file_id"]].splitlines():
            row = json.loads(line)
            fault = faults.draw(f"{batch['id']}|{row['custom_id']}", BATCH_FAULTS)
            if fault == "batch_missing":
                continue
            if fault in ("batch_expired", "batch_failing"):
                errors.append(_error_line(row, None if fault == "batch_expired" else self.complaint))
                continue
            answer = self._answer(row, fault)
            answers += [answer, answer] if fault == "batch_twice" else [answer]
        answers.reverse()  # the order of the input is not kept
        for field_name, rows in (("output_file_id", answers), ("error_file_id", errors)):
            if rows:
                name = f"file-{len(self.files):06d}"
                self.files[name] = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
                batch[field_name] = name
        batch["status"] = "expired" if any(row["error"] for row in errors) else "completed"
        batch["request_counts"].update(completed=len(answers), failed=len(errors))

    def _answer(self, row: dict[str, Any], fault: str | None) -> dict[str, Any]:
        body = row["body"]
        messages = body.get("messages") or body["input"]
        text = write_trace(messages, fault)
        usage = usage_of(messages, text)
        name = self.bank.bill(row["custom_id"], usage, "batch")
        reply = (chat_completion if "messages" in body else response)(name, body["model"], text, usage)
        return {
            "id": f"batch_req_{name}",
            "custom_id": row["custom_id"],
            "response": {"status_code": 200, "request_id": f"req_{name}", "body": reply},
            "error": None,
        }


def _error_line(row: dict[str, Any], complaint: str | None) -> dict[str, Any]:
    if complaint is None:
        error = {"code": "batch_expired", "message": "This request could not be executed before the window expired."}
        return {"id": "batch_req", "custom_id": row["custom_id"], "response": None, "error": error}
    body = {"error": {"code": "server_error", "message": complaint}}
    answer = {"status_code": 500, "request_id": "req", "body": body}
    return {"id": "batch_req", "custom_id": row["custom_id"], "response": answer, "error": None}
