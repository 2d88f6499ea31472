"""Keeps a bucket and its working folder alike: the bucket is the home of a grid, the folder the place where one machine works on it.

    lease.json         in the bucket: who drives, as `orchestrator.lease` says
    generation.json    in the bucket: the last driver's lease token; it tells whether another machine has driven meanwhile
    replica.json       in the folder: what was the same on both sides (`State`)

If another machine has driven since, the bucket wins, and files that differ are moved to `<run>.superseded-<n>`; else what the folder has is what
counts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path

from data.atomic import file_sha256, read_sealed_json, write_sealed_json
from model.checkpoint_folder import COMMIT_FILE
from orchestrator.bucket.names import (
    CONFIG,
    DERIVED,
    GENERATION,
    STATE,
    Stats,
    commits,
    folder_of,
    is_large,
    is_old,
    is_shared,
    order_of,
    outdated_checkpoints,
    rank_of,
    scan,
    trial_of,
    unfinished_checkpoints,
)
from orchestrator.bucket.objects import APART_S, Bucket, Version
from orchestrator.bucket.prepared import PreparedReplica
from orchestrator.layout import RunFolder, Store

GROWING_EVERY_S = 30.0
"""Between two puts of logs, curves and other files that grow, where nothing of their trial has been committed meanwhile."""
_SAVE_EVERY_S = 5.0
_PREPARED_S = 10.0
"""A pass puts prepared data for so long, so that checkpoints do not wait for them."""
_FETCHES_AT_ONCE = 8


@dataclass(frozen=True)
class Entry:
    """A file that was the same on both sides."""

    sha256: str
    size: int
    mtime_ns: int  # of the file
    second: int  # of the object, as in `orchestrator.bucket.objects.Version`

    def is_of(self, version: Version) -> bool:
        """Whether the object is still the one that was put or fetched."""
        return (self.size, self.second) == (version.size, version.second)


@dataclass
class State:
    """What a working folder knows of its bucket."""

    generations: list[str] = field(default_factory=list)  # lease tokens of this folder's own drivers
    files: dict[str, Entry] = field(default_factory=dict)


class Replica:
    """One run folder and what its trials read, here and in the bucket. One process at a time may work with it."""

    def __init__(self, bucket: Bucket, store: Store, run: RunFolder, prepared: Sequence[str] = ()) -> None:
        """`prepared`: patterns, as `orchestrator.bucket.prepared.prepared_for` makes them."""
        self._bucket, self._root, self._run = bucket, store.root, run
        self._prepared = PreparedReplica(bucket, store.root, prepared, moved=self._count)
        self._name = run.path.name
        self._file = run.path / STATE
        self._state = self._read_state()
        self._written: dict[str, object] = {}
        self._saved = self._passed = 0.0
        self._looked: dict[str, float] = {}  # when a trial was put last, by the monotonic clock
        self._unfinished: set[str] = (
            set()
        )  # in the bucket, of checkpoints that a killed driver did not finish to put or to remove
        self.moved = 0  # bytes, both ways

    @property
    def generations(self) -> Collection[str]:
        """The lease tokens by which this folder was driven."""
        return self._state.generations

    @property
    def folder(self) -> Path:
        """The run folder here."""
        return self._run.path

    def pull(self, *, whole: bool, tell: Callable[[str], None] = lambda text: None) -> None:
        """Fetch what the folder lacks; `whole`: with checkpoints and prepared data. `tell` is told how much that is."""
        theirs = {name: version for name, version in self._bucket.list(self._name).items() if is_shared(name)}
        self._unfinished = unfinished_checkpoints(theirs)
        theirs = {name: version for name, version in theirs.items() if name not in self._unfinished}
        mine: Stats = scan(self._run.path, self._root)
        files = self._state.files
        if theirs and self._read_generation() not in self._state.generations:
            mine = self._give_way(mine, theirs)
            vanished = set()
        else:
            for name in mine.keys() & files.keys() - theirs.keys():
                del files[name]  # somebody has removed the object: it is put again
            for name in outdated_checkpoints(theirs, mine):  # put by a driver that was killed before it had noted so
                files.setdefault(name, Entry("", theirs[name].size, 0, theirs[name].second))
            vanished = set(self._changes(mine)[1])  # to be removed there
        files = self._state.files
        wanted = {
            name: version
            for name, version in theirs.items()
            if not (is_large(name) and (is_old(name) or not whole))
            and name not in vanished
            and (name not in mine or (self._is_same(name, mine[name]) and not files[name].is_of(version)))
        }
        if whole:
            wanted |= self._prepared.missing()
        if wanted:
            megabytes = sum(version.size for version in wanted.values()) / 1e6
            tell(f"fetching {len(wanted)} files ({megabytes:,.1f} MB) from {self._bucket.uri}")
            self._fetch(wanted)

    def claim(self, token: str) -> None:
        """Note who drives from now on: before anything is put, and after everything was pulled."""
        scratch = self._file.with_name(f".{GENERATION}")
        write_sealed_json(scratch, {"token": token})
        self._bucket.put(f"{self._name}/{GENERATION}", scratch)
        self._state.generations = [token]
        self._save()

    def accept(self, token: str) -> None:
        """Note a lease token as this folder's own, before `claim` tells the bucket: a kill in between changes nothing."""
        self._state.generations.append(token)
        self._save()

    def push(self, check: Callable[[], None], *, final: bool) -> None:
        """Put what is new and remove what is gone; `final`: also what has only grown. `check` raises when nothing may be put any more."""
        time.sleep(max(0.0, self._passed + APART_S - time.monotonic()))
        check()
        mine = scan(self._run.path, self._root)
        self._withdraw(self._unfinished - mine.keys())
        self._unfinished = set()
        changed, vanished = self._changes(mine)
        # what was set aside comes first: nothing is removed in its old place before it is in the new one
        groups = sorted({trial_of(name) for name in changed + vanished}, key=lambda group: (not is_old(group), group))
        try:
            for group in groups:
                names = [name for name in changed if trial_of(name) == group]
                waited = time.monotonic() - self._looked.get(group, -GROWING_EVERY_S)
                if final or waited >= GROWING_EVERY_S or any(commits(name) for name in names):
                    self._push_trial(group, mine, names, [name for name in vanished if trial_of(name) == group], check)
                    self._looked[group] = time.monotonic()
            self._prepared.push(check, seconds=None if final else _PREPARED_S)
        finally:
            self._save()
            self._passed = time.monotonic()

    def behind(self) -> tuple[int, int]:
        """How many files, of how many bytes, the bucket does not have as they are; it is not asked."""
        mine = scan(self._run.path, self._root)
        changed, vanished = self._changes(mine)
        prepared = self._prepared.left()
        size = sum(mine[name].st_size for name in changed) + sum(
            (self._root / name).stat().st_size for name in prepared
        )
        return len(changed) + len(vanished) + len(prepared), size

    def _push_trial(
        self, group: str, mine: Stats, changed: list[str], vanished: Collection[str], check: Callable[[], None]
    ) -> None:
        """Put a trial's files so that the bucket holds a trial that can go on, whenever this ends."""
        known, config = self._state.files, f"{group}/{CONFIG}"
        if config in changed and config in known:  # another trial: of the old one nothing may be left
            self._withdraw([name for name in known if trial_of(name) == group])
            changed, vanished = [name for name in mine if trial_of(name) == group], []
        incomplete = set()
        for order, names in groupby(sorted(changed, key=order_of), key=rank_of):
            check()
            for name in names:
                if (order >= 2 and folder_of(name) in incomplete) or not self._put(name):
                    incomplete.add(folder_of(name))
        if not incomplete:
            self._withdraw(vanished)

    def _put(self, name: str) -> bool:
        """Put one file; False when it has vanished."""
        path = self._root / name
        try:
            before = path.stat().st_mtime_ns  # a file that changes meanwhile has another one then, and is put again
            content, version = self._bucket.put(name, path, moved=self._count)
        except FileNotFoundError:
            return False
        self._state.files[name] = Entry(content.sha256, content.size, before, version.second)
        self._save_now_and_then()
        return True

    def _withdraw(self, names: Iterable[str]) -> None:
        """Remove objects: what makes others count first, a trial's config last."""
        for name in sorted(names, key=order_of, reverse=True):
            self._bucket.remove(name)
            self._state.files.pop(name, None)
            self._save_now_and_then()

    def _changes(self, mine: Stats) -> tuple[list[str], list[str]]:
        """The files that the bucket does not have as they are, and those that were removed here on purpose.

        A cache may be cleaned: what is gone counts as removed where its trial's config or a newer checkpoint is still there, or the trial was set
        aside; the rest is fetched again. A checkpoint's files change with its commit, else they are damaged and the bucket's are kept.
        """
        known = self._state.files
        set_aside = {trial_of(name).partition(".stale-")[0] for name in mine if is_old(name)}
        saved = {folder_of(folder_of(name)) for name in mine if name.endswith(f"/{COMMIT_FILE}")}

        def is_damage(name: str) -> bool:
            commit = f"{folder_of(name)}/{COMMIT_FILE}"
            return name != commit and commit in known and commit in mine and self._is_same(commit, mine[commit])

        def was_removed(name: str) -> bool:
            if "/checkpoints/" in name and folder_of(folder_of(name)) in saved:
                return not is_damage(name)
            has_config = f"{trial_of(name)}/{CONFIG}" in mine
            return "/checkpoints/" not in name if has_config else trial_of(name) in set_aside

        changed = [name for name, found in mine.items() if not self._is_same(name, found) and not is_damage(name)]
        return changed, [name for name in known if name not in mine and was_removed(name)]

    def _is_same(self, name: str, found: os.stat_result) -> bool:
        """Whether a file is as it was when it was the same on both sides."""
        entry = self._state.files.get(name)
        if entry is None or entry.size != found.st_size:
            return False
        if entry.mtime_ns == found.st_mtime_ns:
            return True
        try:
            if file_sha256(self._root / name) != entry.sha256:
                return False
        except FileNotFoundError:
            return False
        self._state.files[name] = replace(entry, mtime_ns=found.st_mtime_ns)
        return True

    def _give_way(self, mine: Stats, theirs: Collection[str]) -> Stats:
        """Let the bucket win: what differs is moved aside, what was its own and is there no more is removed. Returns what stays."""
        number = 1
        while (aside := self._run.path.with_name(f"{self._name}.superseded-{number}")).exists():
            number += 1
        stays = {}
        for name, found in mine.items():
            path = self._root / name
            same = self._is_same(name, found)
            if same and name in theirs:
                stays[name] = found
            elif same or path.name in DERIVED:
                path.unlink()
            else:
                target = aside / path.relative_to(self._run.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.rename(target)
        for folder, _, _ in os.walk(self._run.path, topdown=False):
            if folder != str(self._run.path) and not any(Path(folder).iterdir()):
                Path(folder).rmdir()
        self._state.files = {name: entry for name, entry in self._state.files.items() if name in stays}
        return stays

    def _fetch(self, wanted: Mapping[str, Version]) -> None:
        """Download; what makes others count comes last."""

        def fetch(name: str) -> tuple[str, Entry | None]:
            path, version = self._root / name, wanted[name]
            try:
                content = self._bucket.fetch(name, path, moved=self._count)
            except FileNotFoundError:  # its driver has removed it meanwhile
                return name, None
            os.utime(path, (version.second, version.second))  # a killed attempt's last sign of life
            second = version.second if content.size == version.size else -1  # replaced meanwhile: fetched again
            return name, Entry(content.sha256, content.size, path.stat().st_mtime_ns, second)

        with ThreadPoolExecutor(_FETCHES_AT_ONCE, thread_name_prefix="bucket-fetch") as pool:
            for _, names in groupby(sorted(wanted, key=order_of), key=rank_of):
                for name, entry in pool.map(fetch, list(names)):
                    if entry and name.startswith(f"{self._name}/"):
                        self._state.files[name] = entry
                        self._save_now_and_then()
        self._save()

    def _count(self, size: int) -> None:
        self.moved += size

    def _read_generation(self) -> str | None:
        scratch = self._file.with_name(f".{GENERATION}")
        try:
            self._bucket.fetch(f"{self._name}/{GENERATION}", scratch)
            return str(read_sealed_json(scratch)["token"])
        except (FileNotFoundError, ValueError):  # nobody's that is known: the bucket wins
            return None

    def _read_state(self) -> State:
        """What is noted; nothing where that is damaged: then whatever the bucket has wins."""
        try:
            value = read_sealed_json(self._file)
        except (FileNotFoundError, ValueError):
            return State()
        return State(list(value["generations"]), {name: Entry(*entry) for name, entry in value["files"].items()})

    def _save(self) -> None:
        files = {name: list(asdict(entry).values()) for name, entry in self._state.files.items()}
        value: dict[str, object] = {"generations": [*self._state.generations], "files": files}
        if value != self._written:
            write_sealed_json(self._file, value)
            self._written = value
        self._saved = time.monotonic()

    def _save_now_and_then(self) -> None:
        if time.monotonic() - self._saved > _SAVE_EVERY_S:
            self._save()
