"""What trials read, in the store's folder prepared/ and in a bucket: fetched where it is missing, put where the bucket lacks it.

Nothing in the bucket is ever replaced: grids on several machines share it, and two of them may have prepared the same data with other bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from model.configs import TrialConfig
from orchestrator.bucket.names import folder_of, order_of
from orchestrator.bucket.objects import Bucket, Version
from orchestrator.layout import Store


def prepared_for(trials: Iterable[TrialConfig], store: Store) -> list[str]:
    """What the trials read, as patterns `prepared/<kind>/<name>`."""
    patterns = []
    for trial in trials:
        encoder = trial.encoder
        patterns += [
            f"prepared/corpora/{store.corpus(trial.corpus).name}",
            f"prepared/encoder_states/{encoder.name}-pad-{encoder.padding}-*",
            f"prepared/encoders/{encoder.name}.*",
        ]
    return list(dict.fromkeys(patterns))


class PreparedReplica:
    """The prepared data of some trials, here and in the bucket."""

    def __init__(self, bucket: Bucket, root: Path, patterns: Sequence[str], *, moved: Callable[[int], None]) -> None:
        """`patterns`: see `prepared_for`. `moved` is told of the bytes that are put."""
        self._bucket, self._root, self._patterns, self._moved = bucket, root, patterns, moved
        self._there: set[str] = set()

    def missing(self) -> dict[str, Version]:
        """What the folder lacks and the bucket has. A corpus is taken whole, and only one that is finished."""
        missing: dict[str, Version] = {}
        for pattern in self._patterns:
            there = self._bucket.list(folder_of(pattern) if "*" in pattern else pattern)
            there = {name: version for name, version in there.items() if _is_of(name, pattern)}
            if finished := _finished(pattern):
                missing |= there if finished in there and not (self._root / finished).exists() else {}
            else:
                missing |= {name: version for name, version in there.items() if not (self._root / name).exists()}
        return missing

    def push(self, check: Callable[[], None], *, seconds: float | None) -> None:
        """Put what the bucket lacks, for so long at a time; None: all of it. `check` raises when nothing may be put any more."""
        deadline = time.monotonic() + (seconds if seconds is not None else float("inf"))
        for pattern in self._patterns:
            finished = _finished(pattern)
            if finished in self._there or (finished and not (self._root / finished).exists()):
                continue
            names = self._files(pattern)
            if finished and self._bucket.version(finished):  # somebody else's, not to be mixed with this one
                self._there.update(names)
            for name in names:
                if name in self._there or (name.endswith(".arrow") and f"{name[:-6]}.json" not in names):
                    continue  # a shard of encoder states counts when its sidecar is there
                if time.monotonic() > deadline:
                    return
                check()
                self._put(name, anew=not finished)

    def left(self) -> list[str]:
        """The files here of which it is not known that the bucket has them."""
        return [name for pattern in self._patterns for name in self._files(pattern) if name not in self._there]

    def _put(self, name: str, *, anew: bool) -> None:
        """`anew`: ask whether somebody else has put it meanwhile."""
        try:
            if not (anew and self._bucket.version(name)):
                self._bucket.put(name, self._root / name, moved=self._moved)
        except FileNotFoundError:  # a damaged shard is removed and computed again
            return
        self._there.add(name)

    def _files(self, pattern: str) -> list[str]:
        found = []
        for top in self._root.glob(pattern):
            for path in [top] if top.is_file() else top.rglob("*"):
                if path.is_file() and not path.name.startswith("."):
                    found.append(path.relative_to(self._root).as_posix())
        return sorted(found, key=order_of)


def _finished(pattern: str) -> str:
    """The file that says that a corpus is finished; empty for encoders and their states, which grow file by file."""
    return f"{pattern}/corpus.json" if pattern.startswith("prepared/corpora/") else ""


def _is_of(name: str, pattern: str) -> bool:
    """Whether a name is the file, or in the folder, that a pattern means."""
    return fnmatchcase("/".join(name.split("/")[:3]), pattern)
