"""Two writers of one folder: the second waits, says so again and again, and goes on when the first has ended."""

import logging
import threading
import time
from pathlib import Path

import pytest

from data import folder_lock
from data.folder_lock import locked_folder


def test_who_waits_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(folder_lock, "TELL_EVERY_S", 0.2)
    order = []

    def told() -> list[str]:
        return [
            text
            for text in map(logging.LogRecord.getMessage, caplog.records)
            if "another process is writing here" in text
        ]

    def second() -> None:
        with locked_folder(tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    with caplog.at_level(logging.WARNING), locked_folder(tmp_path):
        thread.start()
        until = time.monotonic() + 20
        while len(told()) < 3:
            assert time.monotonic() < until
            time.sleep(0.05)
        order.append("first")
    thread.join(timeout=20)
    assert order == ["first", "second"]
    assert str(tmp_path) in told()[0]
