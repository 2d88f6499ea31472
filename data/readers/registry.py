"""The corpus formats that `slotgrid data import` knows. A new one is a file beside this one and a line here."""

from __future__ import annotations

from data.readers.source import Reader

_ALL: tuple[Reader, ...] = ()
READERS: dict[str, Reader] = {reader.name: reader for reader in _ALL}
