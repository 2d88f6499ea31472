"""A URI -> the objects below it, by name: listed, fetched and put through pyarrow.fs. The one module that speaks to object stores.

An object is whole or absent: stores show it when its last byte has arrived, and in a folder (`file://`, for tests and mounts) it is renamed into
its place. pyarrow knows no conditional put: who may write is the lease's business (`orchestrator.lease`). Credentials come from the environment.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from data.atomic import atomic_open
from orchestrator.bucket.names import folder_of
from orchestrator.lease import Holder, LeaseFile
from orchestrator.patience import within
from orchestrator.redaction import redact

CHUNK_BYTES = 8 * 1024**2
"""What a transfer holds in memory; an object up to this size is sent by one request."""
SILENCE_S = 5.0
"""A connection that does not come about, or on which nothing moves, is given up after this; each request is tried three times."""
ANSWER_S = 40.0
"""How long a store may take to answer at all, name lookup and credentials included."""
APART_S = 1.1
"""Between two puts of one name, for listings count in whole seconds."""
_S3_OPTIONS = ("endpoint_override", "region", "scheme")
_LOOK_EVERY_S = 5.0
_log = logging.getLogger(__name__)


class BucketError(OSError):
    """An object store cannot be reached, or refuses: one line with a remedy."""


@dataclass(frozen=True)
class Version:
    """Which content an object has at the moment, as a listing tells."""

    size: int
    second: int  # of its last change, by the store's clock; compared for equality only, so puts of one name must be `APART_S` apart


@dataclass(frozen=True)
class Content:
    """What was transferred."""

    size: int
    sha256: str


class Bucket:
    """The objects below one URI. Names are relative to it: "grid-smoke/trials/a.regular.seed0/result.json"."""

    def __init__(self, uri: str) -> None:
        """Connect. Raises BucketError when there is no such bucket, when it cannot be reached, and when it may not be read."""
        self.uri = urlunsplit(urlsplit(uri)._replace(query="", fragment="")).rstrip("/")
        try:
            self._fs, self._base = within(ANSWER_S, lambda: self._connect(uri))
        except TimeoutError as error:
            raise BucketError(explain(self.uri, str(error))) from None
        self._is_folder = self._fs.type_name == "local"

    def _connect(self, uri: str) -> tuple[Any, str]:
        from pyarrow import fs

        with self._told():
            system, base = _file_system(uri)
            root = base.split("/")[0] if system.type_name != "local" else base
            if system.get_file_info(root).type != fs.FileType.Directory:
                raise FileNotFoundError(f"there is no {'folder' if system.type_name == 'local' else 'bucket'} {root}")
        return system, base.rstrip("/")

    def list(self, folder: str) -> dict[str, Version]:
        """Every object below a folder. Names that would lead out of a working folder are passed over with a warning."""
        from pyarrow import fs

        selector = fs.FileSelector(f"{self._base}/{folder}", recursive=True, allow_not_found=True)
        with self._told():
            infos = self._fs.get_file_info(selector)
        found = {}
        for info in infos:
            name = info.path.removeprefix(f"{self._base}/")
            if info.type != fs.FileType.File or name.rpartition("/")[2].startswith("."):
                continue
            if is_inside(name, folder):
                found[name] = _version(info)
            else:
                _log.warning(
                    "%s: an object is named %r, which leads out of its folder; it is left alone", self.uri, name
                )
        return found

    def version(self, name: str) -> Version | None:
        """What is there under this name; None: nothing."""
        from pyarrow import fs

        with self._told():
            info = self._fs.get_file_info(f"{self._base}/{name}")
        return _version(info) if info.type == fs.FileType.File else None

    def fetch(self, name: str, target: Path, *, moved: Callable[[int], None] = lambda size: None) -> Content:
        """Download an object to `target`, whole or not at all. Raises FileNotFoundError when it is gone. `moved` is told of every chunk."""
        digest, size = hashlib.sha256(), 0
        path = f"{self._base}/{name}"
        with (
            self._told(may_be_absent=True),
            self._fs.open_input_stream(path) as source,
            atomic_open(target, "wb") as stream,
        ):
            while chunk := source.read(CHUNK_BYTES):
                stream.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                moved(len(chunk))
        return Content(size=size, sha256=digest.hexdigest())

    def put(
        self, name: str, source: Path, *, moved: Callable[[int], None] = lambda size: None
    ) -> tuple[Content, Version]:
        """Upload a file. Raises FileNotFoundError when it has vanished; what it grows by meanwhile may be missing."""
        target = f"{self._base}/{name}"
        writing = f"{folder_of(target)}/.{secrets.token_hex(8)}" if self._is_folder else target
        digest, size = hashlib.sha256(), 0
        with source.open("rb") as stream:
            # Read before the object is opened: closing makes an object of what was written, whatever happened.
            chunk = stream.read(CHUNK_BYTES)
            with self._told():
                if self._is_folder:
                    self._fs.create_dir(folder_of(target))
                with self._fs.open_output_stream(writing) as sink:
                    while chunk:
                        sink.write(chunk)
                        digest.update(chunk)
                        size += len(chunk)
                        moved(len(chunk))
                        chunk = stream.read(CHUNK_BYTES)
                if self._is_folder:
                    self._fs.move(writing, target)
        version = self.version(name)
        if version is None or version.size != size:
            raise BucketError(f"{self.uri}/{name}: is not there after it was put; does somebody else write here?")
        return Content(size=size, sha256=digest.hexdigest()), version

    def remove(self, name: str) -> None:
        """Delete an object; nothing happens where there is none."""
        try:
            with self._told(may_be_absent=True):
                self._fs.delete_file(f"{self._base}/{name}")
        except FileNotFoundError:
            return

    @contextmanager
    def _told(self, *, may_be_absent: bool = False) -> Iterator[None]:
        """Turn what pyarrow raises into BucketError; errors of this machine's disk, which name a file, pass, and where it may be an absent object."""
        from pyarrow import ArrowException

        try:
            yield
        except (OSError, ArrowException) as error:
            if isinstance(error, OSError) and (error.filename is not None or isinstance(error, BucketError)):
                raise
            if may_be_absent and isinstance(error, FileNotFoundError):
                raise
            raise BucketError(explain(self.uri, str(error))) from error


def _version(info: Any) -> Version:
    return Version(size=info.size, second=(info.mtime_ns or 0) // 10**9)


def is_inside(name: str, folder: str) -> bool:
    """Whether an object's name is one of a file below `folder`, on every system."""
    parts = name.split("/")
    plain = not any(part in ("", ".", "..") or "\\" in part or not part.isprintable() for part in parts)
    return plain and name.startswith(f"{folder}/")


_REMEDIES = (
    (r"no.?such.?bucket|there is no (bucket|folder)|container not found", "create it, or name another with --store"),
    (
        r"access.?denied|forbidden|invalid.?access.?key|signature|credential|authenticat|\b40[13]\b",
        "set the credentials in the environment, and let them list, read, write and delete there",
    ),
    (
        r"unrecognized filesystem|query parameter|missing bucket",
        "give e.g. s3://bucket/prefix?region=eu-central-1, gs://bucket/prefix or abfs://container@account.dfs.core.windows.net/prefix",
    ),
    ("", "check the address, the network and the store's own state"),
)


def explain(uri: str, message: str) -> str:
    """A store's error in one line: where, what, and what to do."""
    text = redact(" ".join(message.split()))
    remedy = next(remedy for pattern, remedy in _REMEDIES if re.search(pattern, text, re.IGNORECASE))
    return f"{uri}: {text[:300]}; {remedy}"


def _file_system(uri: str) -> tuple[Any, str]:
    """pyarrow's file system and the path in it. A URI cannot say everything: how long S3 may be silent, and where Azure's key is."""
    from pyarrow import fs

    parts = urlsplit(uri)
    options = dict(parse_qsl(parts.query))
    path = f"{parts.netloc}/{parts.path.strip('/')}".rstrip("/")
    if parts.scheme == "s3":
        if unknown := options.keys() - set(_S3_OPTIONS):
            raise OSError(f"unknown query parameter {sorted(unknown)[0]}; there are {', '.join(_S3_OPTIONS)}")
        if not {"endpoint_override", "region"} & options.keys() and not os.environ.get("AWS_DEFAULT_REGION"):
            options["region"] = os.environ.get("AWS_REGION") or fs.resolve_s3_region(parts.netloc)
        waits: dict[str, Any] = {"connect_timeout": SILENCE_S, "request_timeout": SILENCE_S}
        return fs.S3FileSystem(**options, **waits, allow_delayed_open=True), path
    if parts.scheme in ("abfs", "abfss"):
        # Without a key pyarrow 25 asks for a token, and where there is none the whole process is aborted.
        key, token = os.environ.get("AZURE_STORAGE_KEY"), os.environ.get("AZURE_STORAGE_SAS_TOKEN")
        if not (key or token) or not parts.username:
            raise OSError("no credential in AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN, or no container before the @")
        account = (parts.hostname or "").partition(".")[0]
        system = fs.AzureFileSystem(account, account_key=key, sas_token=None if key else token)
        return system, f"{parts.username}/{parts.path.strip('/')}".rstrip("/")
    if parts.scheme == "gs" and "retry_limit_seconds" not in options:  # the default retries for a quarter of an hour
        query = "&".join(filter(None, [parts.query, f"retry_limit_seconds={3 * SILENCE_S:.0f}"]))
        parts = parts._replace(query=query)
    system, path = fs.FileSystem.from_uri(urlunsplit(parts))
    return system, path


@dataclass(frozen=True)
class LeaseObject:
    """A lease in an object (`orchestrator.lease.LeasePlace`), sealed like the one in a file.

    Without a conditional put two may write at the same moment. Whoever writes waits and reads again (`hold_place`), so one of them goes on. A
    driver that falls asleep while its heartbeat is being put, wakes after another has taken over and finishes it, wins the lease back; the
    other one finds that within seconds and stops.
    """

    bucket: Bucket
    name: str
    scratch: Path  # a file of this machine to pass the object through; nobody else's

    def __str__(self) -> str:
        return f"{self.bucket.uri}/{self.name}"

    @property
    def look_every_s(self) -> float:
        """A request each."""
        return _LOOK_EVERY_S

    def read(self) -> Holder | None:
        """The object's content."""
        target = self.scratch.with_name(f"{self.scratch.name}.{threading.get_ident()}")
        try:
            self.bucket.fetch(self.name, target)
            return LeaseFile(target).read()
        except FileNotFoundError:
            return None
        finally:
            target.unlink(missing_ok=True)

    def write(self, holder: Holder) -> None:
        """Replace the object."""
        LeaseFile(self.scratch).write(holder)
        self.bucket.put(self.name, self.scratch)

    def renew(self, holder: Holder) -> None:
        """Replace the object."""
        self.write(holder)

    def remove(self) -> None:
        """Delete the object."""
        self.bucket.remove(self.name)
