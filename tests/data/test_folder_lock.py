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

    def second() -> None:
        with locked_folder(tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    with caplog.at_level(logging.WARNING), locked_folder(tmp_path):
        thread.start()
        time.sleep(1.0)
        order.append("first")
    thread.join(timeout=5)
    assert order == ["first", "second"]
    told = [
        record.getMessage() for record in caplog.records if "another process is writing here" in record.getMessage()
    ]
    assert len(told) >= 3 and str(tmp_path) in told[0]
