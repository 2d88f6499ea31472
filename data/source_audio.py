"""Turns the sounds that a corpus points at into 16 kHz mono FLAC files, a chunk of rows at a time, on any worker and resumable at any kill.

<root>/audio/<first two digits>/<sha256 of the samples>.flac    equal sounds are one file
<root>/imported/<chunk>.jsonl                                   one line a row: the sound's hash and length, or what is wrong with it
"""

from __future__ import annotations

import json
from bisect import bisect_right
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.atomic import atomic_open, iter_whole_lines, write_jsonl
from data.audio_folder import problem_of_path
from data.readers.source import AudioSource
from data.records import SAMPLE_RATE

if TYPE_CHECKING:
    from data.audio import AudioFile

ROWS_FOLDER = "imported"
CHUNK = 32  # rows of a task: a second of work, and what a killed run loses at most per worker
SOUND_VERSION = 2
"""Raise it when the same source gives other samples or other defects: what a killed run left is then made again."""


@dataclass(frozen=True, kw_only=True)
class SoundTask:
    """One chunk of sounds, as it travels to a worker."""

    root: Path
    source: Path  # the folder that the paths of `sounds` lie below
    number: int
    sounds: tuple[AudioSource, ...]

    @property
    def rows_file(self) -> Path:
        """Where the outcome of the finished chunk is kept."""
        return self.root / ROWS_FOLDER / f"{self.number:06d}.jsonl"


def audio_path(sha256: str) -> str:
    """Where a sound lies below the corpus root."""
    return f"audio/{sha256[:2]}/{sha256}.flac"


def store_sounds(task: SoundTask) -> tuple[int, list[dict[str, Any]]]:
    """Store a chunk's sounds, except those that an earlier run left whole: the chunk's number, and a row for each sound, in order.

    A row holds `made_from`, and either `audio_sha256`, `duration_s` and `flac_bytes`, or `kind`, `problem` and `remedy`. Raises OSError when
    the disk is full.
    """
    kept = list(iter_whole_lines(task.rows_file)) if task.rows_file.exists() else []
    known = {json.dumps(row["made_from"]): row for row in kept}
    rows = []
    with _Shelf(task.source) as shelf:
        for sound in task.sounds:
            made_from = _made_from(task.source, sound)
            row = known.get(json.dumps(made_from))
            if row is None or not _is_whole(task.root, row):
                row = {"made_from": made_from, **_store(task.root, sound, shelf)}
            rows.append(row)
    if rows != kept:
        write_jsonl(task.rows_file, rows)
    return task.number, rows


class _Shelf:
    """The sound files of one folder; the last one stays open, for the turns of a dialogue follow one another."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = ""
        self._file: AudioFile | None = None

    def __enter__(self) -> _Shelf:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def open(self, sound: AudioSource) -> AudioFile:
        """The file of a sound. Raises AudioError."""
        from data.audio import AudioFile

        path = self._folder / sound.path
        if self._file is None or sound.path != self._path or sound.parquet_row is not None:
            self.close()
            whole = path if sound.parquet_row is None else _parquet_sound(path, sound.parquet_row)
            self._file, self._path = AudioFile(whole, _name(sound)), sound.path
        return self._file

    def close(self) -> None:
        """Put the open file back."""
        if self._file:
            self._file.close()
        self._file = None


def _store(root: Path, sound: AudioSource, shelf: _Shelf) -> dict[str, Any]:
    """Write the FLAC file of one sound, or say what is wrong with it."""
    from data.audio import AudioError, encode_flac, pcm_sha256, to_pcm16  # here, because it needs numpy

    if wrong := problem_of_path(sound.path):
        return {**wrong._asdict(), "problem": f"{sound.path!r} {wrong.problem}"}
    try:
        samples = shelf.open(sound).read_utterance(channel=sound.channel, start_s=sound.start_s, end_s=sound.end_s)
    except AudioError as error:
        shelf.close()  # after damage nobody knows where it stands
        return {"kind": error.kind, "problem": f"{_name(sound)}: {error.problem}", "remedy": error.remedy}
    pcm = to_pcm16(samples)
    sha256, flac = pcm_sha256(pcm), encode_flac(pcm)
    with atomic_open(root / audio_path(sha256), "wb") as stream:
        stream.write(flac)
    return {"audio_sha256": sha256, "duration_s": round(len(pcm) / SAMPLE_RATE, 4), "flac_bytes": len(flac)}


def _made_from(folder: Path, sound: AudioSource) -> list[Any]:
    """What the outcome of a sound depends on, as JSON gives it back."""
    try:
        stat = (folder / sound.path).stat()
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return [SOUND_VERSION, asdict(sound), 0, 0]
    return [SOUND_VERSION, asdict(sound), stat.st_size, stat.st_mtime_ns]


def _is_whole(root: Path, row: dict[str, Any]) -> bool:
    """Whether the file that an earlier run wrote is still there; it was put there whole, so its length tells."""
    if "kind" in row:
        return True
    path = root / audio_path(row["audio_sha256"])
    return path.is_file() and path.stat().st_size == row["flac_bytes"]


def _name(sound: AudioSource) -> str:
    return sound.path if sound.parquet_row is None else f"{sound.path}, row {sound.parquet_row}"


def _parquet_sound(path: Path, row: int) -> bytes:
    """The bytes of the sound file in one row of a parquet file. Raises AudioError."""
    from data.audio import AudioError

    name = f"{path.name}, row {row}"
    try:
        stamp = path.stat().st_mtime_ns
        starts = _group_starts(path, stamp)
        if not 0 <= row < starts[-1]:
            problem = f"has no such row, it has {starts[-1]}"
            raise AudioError("audio-not-found", name, problem, "restore the file")
        group = bisect_right(starts, row) - 1
        column = _sounds_of_group(path, stamp, group)
    except FileNotFoundError as error:
        raise AudioError("audio-not-found", name, "no such parquet file", "restore it") from error
    except (OSError, ValueError, NotImplementedError) as error:  # all that pyarrow raises
        if isinstance(error, AudioError):
            raise
        raise AudioError("audio-undecodable", name, f"cannot be read as parquet ({error})", "copy it again") from error
    whole = column[row - starts[group]].as_py() if column is not None else None
    if not isinstance(whole, bytes):
        problem = "has no sound" if column is not None else "has no column `audio` with `bytes`"
        raise AudioError("audio-not-found", name, problem, "download the corpus with its audio")
    return whole


@lru_cache(maxsize=64)
def _group_starts(path: Path, stamp: int) -> list[int]:
    """The first row of every row group, and the number of rows. `stamp`: when the file was changed."""
    import pyarrow.parquet

    groups = pyarrow.parquet.read_metadata(path)
    return [0, *accumulate(groups.row_group(number).num_rows for number in range(groups.num_row_groups))]


@lru_cache(maxsize=1)  # the chunks of a file follow one another, and a row group can be 100 MB
def _sounds_of_group(path: Path, stamp: int, group: int) -> Any:
    """The sound files of one row group, [rows] of bytes; None where the file has none."""
    import pyarrow.compute
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        table = file.read_row_group(group, columns=["audio.bytes"], use_threads=False)
    return pyarrow.compute.struct_field(table.column("audio"), "bytes") if table.num_columns else None
