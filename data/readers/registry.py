"""The corpus formats that `slotgrid data import` knows. A new one is a file beside this one and a line here."""

from __future__ import annotations

from data.readers import (
    fluent_speech_commands,
    jsonl,
    slue_voxpopuli,
    slurp,
    speech_massive,
    spokenwoz,
    stop,
)
from data.readers.source import Reader

_ALL: tuple[Reader, ...] = (
    slurp.READER,
    speech_massive.READER,
    spokenwoz.READER,
    stop.READER,
    slue_voxpopuli.READER,
    fluent_speech_commands.READER,
    jsonl.READER,
)
READERS: dict[str, Reader] = {reader.name: reader for reader in _ALL}
