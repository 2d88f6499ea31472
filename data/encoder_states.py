"""Turns audio files into encoder states on disk, once per (audio content, encoder weights, padding), and maps them.

    <root>/<key folder>/manifest.json   the shards, their hashes and rows; written last
                        <id>.arrow      Arrow IPC file with the fp16 states of some 64 audio files
                        <id>.json       its entry for the manifest

The encoder is passed in as a factory (`model.encoder.encode_factory`). The cache only grows: audio that is there is
never computed again, new audio adds shards. A shard that a killed run finished is adopted; a damaged one is replaced.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.atomic import atomic_open, file_sha256, write_json
from data.audio import pcm_sha256, read_audio
from data.executors import Executor
from data.folder_lock import LOCK, locked_folder

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "manifest.json"
SHARD_FILES = 64  # audio files a task: some seconds of work, some megabytes of states

States = NDArray[np.float16]
Encode = Callable[[NDArray[np.float32]], States]
"""float32 [samples] at 16 kHz -> float16 [frames, width]."""
OnProgress = Callable[[int, int], None]
"""Called with (audio files that are cached by now, audio files in all)."""


@dataclass(frozen=True, kw_only=True)
class StateKey:
    """Everything that decides the states, except the audio."""

    encoder_name: str
    weights_sha256: str
    padding: str
    width: int

    @property
    def folder(self) -> str:
        """Readable folder name below the cache's root."""
        return f"{self.encoder_name}-pad-{self.padding}-{self.weights_sha256[:12]}"


@dataclass(frozen=True, kw_only=True)
class AudioItem:
    """One audio file and the hash its samples must have (`Example.audio_sha256`)."""

    audio_sha256: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One finished Arrow file: its entry in the manifest."""

    file: str
    sha256: str
    size: int  # bytes
    rows: tuple[tuple[str, int], ...]  # (audio_sha256, frames)


class EncoderStates:
    """The cached states of one key: maps `audio_sha256` to float16 [frames, width]. Read-only; pickles as its path."""

    def __init__(self, root: Path, key: StateKey, shards: Sequence[Shard]) -> None:
        self.root, self.key = root, key
        self._shards = tuple(shards)
        self._places = {
            audio: (shard, row, frames) for shard in self._shards for row, (audio, frames) in enumerate(shard.rows)
        }
        self._columns: dict[str, tuple[States, NDArray[np.int64]]] = {}

    def __contains__(self, audio_sha256: str) -> bool:
        return audio_sha256 in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __reduce__(self) -> tuple[Any, ...]:
        return open_encoder_states, (self.root, self.key, False)

    def frames(self, audio_sha256: str) -> int:
        """The number of frames; reads no states. Raises ValueError when the audio is not cached."""
        return self._place(audio_sha256)[2]

    def __getitem__(self, audio_sha256: str) -> States:
        """float16 [frames, width], a read-only view of the mapped file. Raises ValueError when it is not cached."""
        shard, row, frames = self._place(audio_sha256)
        if shard.file not in self._columns:
            self._columns[shard.file] = _map_shard(self.root / self.key.folder / shard.file)
        values, offsets = self._columns[shard.file]
        return values[offsets[row] : offsets[row + 1]].reshape(frames, self.key.width)

    def _place(self, audio_sha256: str) -> tuple[Shard, int, int]:
        try:
            return self._places[audio_sha256]
        except KeyError:
            folder = self.root / self.key.folder
            raise ValueError(
                f"{folder}: no encoder states for audio {audio_sha256}; write them for this corpus first"
            ) from None


def open_encoder_states(root: Path, key: StateKey, verify: bool = True) -> EncoderStates:
    """Open the finished cache of `key`; shards are mapped when first used.

    `verify` hashes every shard; without it only sizes are compared (for further processes of a job that verified once).
    Raises ValueError when there is no finished cache, when it belongs to another key, or when a shard is damaged.
    """
    folder = root / key.folder
    if not (folder / MANIFEST).exists():
        raise ValueError(f"{folder / MANIFEST}: no finished encoder states here; write them first")
    shards = _read_manifest(folder, key)
    for shard in shards:
        if problem := _damage(folder, shard, hashed=verify):
            raise ValueError(f"{folder / shard.file}: {problem}; write the encoder states again to replace it")
    return EncoderStates(root, key, shards)


def write_encoder_states(
    root: Path,
    *,
    key: StateKey,
    items: Sequence[AudioItem],
    build_encode: Callable[[], Encode],
    executor: Executor,
    on_progress: OnProgress | None = None,
    shard_files: int = SHARD_FILES,
) -> EncoderStates:
    """Compute the states of the audio that the cache lacks, and open it.

    `build_encode` must be picklable; every worker process calls it once, and none where nothing is missing.
    Raises ValueError when an audio file cannot be read or does not have its item's hash; finished shards are kept.
    """
    folder = root / key.folder
    folder.mkdir(parents=True, exist_ok=True)
    with locked_folder(folder):
        known = _read_manifest(folder, key) if (folder / MANIFEST).exists() else []
        shards = [*_sound_shards(folder, known), *_finished_shards(folder, known)]
        _remove_leftovers(folder, shards)
        cached = {audio for shard in shards for audio, _ in shard.rows}
        wanted = {item.audio_sha256: item for item in items}
        missing = [item for audio, item in wanted.items() if audio not in cached]
        tasks = [missing[start : start + shard_files] for start in range(0, len(missing), shard_files)]
        done = len(wanted) - len(missing)
        if on_progress is not None:
            on_progress(done, len(wanted))
        for shard in executor.map_unordered(partial(_write_shard, folder, key, build_encode), tasks):
            shards.append(shard)
            done += len(shard.rows)
            if on_progress is not None:
                on_progress(done, len(wanted))
        shards.sort(key=lambda shard: shard.file)
        if shards != known or not (folder / MANIFEST).exists():
            manifest = {"format": FORMAT, "key": asdict(key), "shards": [asdict(shard) for shard in shards]}
            write_json(folder / MANIFEST, manifest)
    return EncoderStates(root, key, shards)


def _write_shard(folder: Path, key: StateKey, build_encode: Callable[[], Encode], items: Sequence[AudioItem]) -> Shard:
    """Encode a task's audio into an Arrow file and its sidecar, which is written second and makes it count."""
    encode = _worker_encode(build_encode)
    rows, states = [], []
    for item in items:
        waveform = read_audio(item.path)
        if (found := pcm_sha256(waveform)) != item.audio_sha256:
            raise ValueError(
                f"{item.path}: audio has changed, its samples hash to {found}, not {item.audio_sha256}; "
                "restore the file or import the corpus again"
            )
        encoded = encode(waveform)
        assert encoded.dtype == np.float16 and encoded.shape[1:] == (key.width,), f"{encoded.dtype} {encoded.shape}"
        rows.append((item.audio_sha256, len(encoded)))
        states.append(encoded)
    content = _arrow_file(rows, states)
    name = hashlib.sha256("".join(audio for audio, _ in rows).encode()).hexdigest()[:16]
    shard = Shard(file=f"{name}.arrow", sha256=hashlib.sha256(content).hexdigest(), size=content.size, rows=tuple(rows))
    with atomic_open(folder / shard.file, "wb") as stream:
        stream.write(content)
    write_json(folder / f"{name}.json", asdict(shard))
    return shard


_encoders: dict[bytes, Encode] = {}
"""This worker process's encoder, by the pickle of its factory: pools and Ray give one process many tasks."""


def _worker_encode(build_encode: Callable[[], Encode]) -> Encode:
    identity = pickle.dumps(build_encode)
    if identity not in _encoders:
        _encoders.clear()  # one at a time is enough, and weights are large
        _encoders[identity] = build_encode()
    return _encoders[identity]


def _arrow_file(rows: Sequence[tuple[str, int]], states: Sequence[States]) -> pa.Buffer:
    """One record batch: audio_sha256, frames, states (flat: frames x width values a row)."""
    offsets = np.cumsum([0, *(state.size for state in states)], dtype=np.int64)
    values = pa.array(np.concatenate([state.reshape(-1) for state in states]))
    batch = pa.record_batch(
        {
            "audio_sha256": pa.array([audio for audio, _ in rows], pa.string()),
            "frames": pa.array([frames for _, frames in rows], pa.int32()),
            "states": pa.LargeListArray.from_arrays(pa.array(offsets), values),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def _map_shard(path: Path) -> tuple[States, NDArray[np.int64]]:
    """(values of all rows, row offsets), views of the mapped file. The map outlives the file handle, so none add up."""
    with pa.memory_map(str(path)) as mapped:
        states = pa.ipc.open_file(mapped).get_batch(0).column("states")
    return states.values.to_numpy(zero_copy_only=True), states.offsets.to_numpy(zero_copy_only=True)


def _read_manifest(folder: Path, key: StateKey) -> list[Shard]:
    path = folder / MANIFEST
    remedy = f"delete {folder} and write the encoder states again"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        shards = [_shard_from_json(row) for row in manifest["shards"]]
        found = (manifest["format"], manifest["key"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: cannot be read ({error!r}); {remedy}") from error
    if found != (FORMAT, asdict(key)):
        raise ValueError(f"{path}: format and key are {found}, expected {(FORMAT, asdict(key))}; {remedy}")
    return shards


def _shard_from_json(row: dict[str, Any]) -> Shard:
    return Shard(**{**row, "rows": tuple((str(audio), int(frames)) for audio, frames in row["rows"])})


def _damage(folder: Path, shard: Shard, hashed: bool = True) -> str | None:
    """What is wrong with a shard's file, in words, or None."""
    path = folder / shard.file
    if not path.exists():
        return "the shard is missing"
    if path.stat().st_size != shard.size:
        return f"the shard is damaged ({path.stat().st_size} bytes instead of {shard.size})"
    if not hashed:
        return None
    found = file_sha256(path)
    return None if found == shard.sha256 else f"the shard is damaged (sha256 {found} instead of {shard.sha256})"


def _sound_shards(folder: Path, shards: Sequence[Shard]) -> list[Shard]:
    """The shards whose files are as they were written; the others are reported, and their audio counts as missing."""
    sound = []
    for shard in shards:
        if problem := _damage(folder, shard):
            log.warning("%s: %s; computing it again", folder / shard.file, problem)
        else:
            sound.append(shard)
    return sound


def _finished_shards(folder: Path, known: Sequence[Shard]) -> list[Shard]:
    """Shards that a killed run finished: sidecar and file are there and agree, but the manifest does not name them."""
    named = {shard.file for shard in known}
    sidecars = [path for path in sorted(folder.glob("*.json")) if path.name != MANIFEST]
    new = [path for path in sidecars if path.with_suffix(".arrow").name not in named]
    return _sound_shards(folder, [shard for path in new if (shard := _read_sidecar(path)) is not None])


def _read_sidecar(path: Path) -> Shard | None:
    """A killed run's sidecar; None when it is damaged: its shard is then computed again."""
    try:
        return _shard_from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s: cannot be read (%r); its shard is computed again", path, error)
        return None


def _remove_leftovers(folder: Path, shards: Sequence[Shard]) -> None:
    """Delete what no sound shard owns: temporary files, shards without a sidecar, damaged shards."""
    keep = {MANIFEST, LOCK}
    for shard in shards:
        keep |= {shard.file, Path(shard.file).with_suffix(".json").name}
    for path in folder.iterdir():
        if path.name not in keep:
            path.unlink()
