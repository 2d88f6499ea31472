"""Files that are either whole or absent: written to a temporary name beside the target, flushed to disk, then renamed. And their hash."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic_open(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file that becomes `path` when the block ends well, and vanishes when it does not.

    Raises OSError (disk full, no permission) before anything at `path` has changed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a failed write, as on a full disk, names no file
            error.filename = str(path)
        raise


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a mount that knows no such thing, e.g. for folders
            raise
    finally:
        os.close(handle)


def set_aside(path: Path) -> Path:
    """Rename a damaged file to `<name>.damaged-<n>`, n counting up from 1, and return the new path."""
    number = 1
    while (target := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return path.rename(target)


def file_sha256(path: Path) -> str:
    """The hash of a file's content, in hex; large files are read piece by piece."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document, readable by people, whole or not at all."""
    with atomic_open(path) as stream:
        stream.write(_document(value))


def _document(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


SEAL = "sha256"


class DamagedFileError(ValueError):
    """A file is not what was written."""


def write_sealed_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with its own hash under `SEAL`, whole or not at all: no changed byte goes unnoticed when it is read.

    What was renamed into the same folder before is on the disk, too, when this returns.
    """
    write_json(path, {**value, SEAL: _seal(value)})
    flush_to_disk(path.parent)


def rewrite_sealed_json(path: Path, value: Mapping[str, Any], *, replaces: Callable[[dict[str, Any]], bool]) -> None:
    """Write into the file itself, where `replaces` says so of its content or that is damaged.

    What somebody else renames to `path` meanwhile is another file, and never written over, however long this process sleeps between looking
    and writing. The price: who reads at that moment may find the file damaged. Raises FileNotFoundError when it is absent.
    """
    with path.open("r+b") as stream:
        try:
            if not replaces(_unseal(stream.read(), path)):
                return
        except DamagedFileError:
            pass  # the new content is whole again
        content = _document({**value, SEAL: _seal(value)}).encode()
        os.pwrite(stream.fileno(), content, 0)
        stream.truncate(len(content))
        os.fsync(stream.fileno())


def read_sealed_json(path: Path) -> dict[str, Any]:
    """The object that `write_sealed_json` wrote, without its hash.

    Raises DamagedFileError, naming the file, when it is not that any more; FileNotFoundError when it is absent.
    """
    return _unseal(path.read_bytes(), path)


def _unseal(content: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise DamagedFileError(f"{path}: not JSON any more ({error}): the file is damaged") from error
    if not isinstance(value, dict) or value.get(SEAL) != _seal({k: v for k, v in value.items() if k != SEAL}):
        raise DamagedFileError(f"{path}: its content is not what was written: the file is damaged")
    del value[SEAL]
    return value


def _seal(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON value a line, whole or not at all."""
    with atomic_open(path) as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def iter_whole_lines(path: Path) -> Iterator[Any]:
    """Yield the JSON value of every complete line of an append-only file; a last line cut off by a kill is left out."""
    with path.open("rb") as stream:
        for line in stream:
            if not line.endswith(b"\n"):
                return
            yield json.loads(line)
