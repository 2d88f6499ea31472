"""The encoder-state cache: nothing is computed twice, lost to a kill, read damaged, or copied."""

from __future__ import annotations

import json
import pickle
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data.audio import pcm_sha256, read_audio
from data.encoder_states import AudioItem, StateKey, open_encoder_states, write_encoder_states
from data.executors import ProcessExecutor, SerialExecutor

KEY = StateKey(encoder_name="test", weights_sha256="ab" * 32, padding="none", width=4)


def build_counting_encode(journal: str, mark: float = 0.0):
    """An encoder that notes in `journal` when it is built and what it encodes, in whichever process."""
    with Path(journal).open("a") as stream:
        stream.write("built\n")

    def encode(waveform: np.ndarray) -> np.ndarray:
        with Path(journal).open("a") as stream:
            stream.write("encoded\n")
        frames = len(waveform) // 320
        states = np.repeat(waveform[: frames * 320 : 320, None], 4, axis=1)
        return (states + mark).astype(np.float16)

    return encode


class Corpus:
    """Some short audio files, and what happened to them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root, self.journal = folder, folder / "states", folder / "journal"

    def items(self, count: int) -> list[AudioItem]:
        return [self.item(number) for number in range(count)]

    def item(self, number: int) -> AudioItem:
        path = self.folder / f"{number}.wav"
        if not path.exists():
            samples = np.random.default_rng(number).uniform(-0.5, 0.5, 640 + 320 * number).astype(np.float32)
            soundfile.write(path, samples, 16_000, subtype="PCM_16")
        return AudioItem(audio_sha256=pcm_sha256(read_audio(path)), path=path)

    def write(self, items, executor=None, **options):
        return write_encoder_states(
            self.root,
            key=options.pop("key", KEY),
            items=items,
            build_encode=partial(build_counting_encode, str(self.journal), options.pop("mark", 0.0)),
            executor=executor or SerialExecutor(),
            shard_files=options.pop("shard_files", 2),
            **options,
        )

    def count(self, what: str) -> int:
        return self.journal.read_text().split().count(what) if self.journal.exists() else 0

    def shards(self) -> list[Path]:
        return sorted((self.root / KEY.folder).glob("*.arrow"))


@pytest.fixture()
def corpus(tmp_path) -> Corpus:
    return Corpus(tmp_path)


def assert_right(states, items) -> None:
    assert len(states) == len(items)
    for item in items:
        expected = read_audio(item.path)[: states.frames(item.audio_sha256) * 320 : 320].astype(np.float16)
        np.testing.assert_array_equal(states[item.audio_sha256], np.repeat(expected[:, None], 4, axis=1))


def test_states_come_back_as_they_were_computed(corpus):
    items = corpus.items(5)
    progress = []
    assert_right(corpus.write(items, on_progress=lambda done, total: progress.append((done, total))), items)
    states = open_encoder_states(corpus.root, KEY)
    assert_right(states, items)
    assert [states.frames(item.audio_sha256) for item in items] == [2, 3, 4, 5, 6]
    assert "0" * 64 not in states
    assert progress == [(0, 5), (2, 5), (4, 5), (5, 5)]
    assert corpus.count("built") == 1, "one worker process builds its encoder once"


def test_a_second_run_computes_nothing_and_new_audio_only_adds(corpus):
    corpus.write(corpus.items(3))
    before = {path: path.stat().st_mtime_ns for path in corpus.shards()}
    corpus.write(corpus.items(3), mark=0.5)
    assert corpus.count("encoded") == 3 and corpus.count("built") == 1
    assert_right(corpus.write(corpus.items(5)), corpus.items(5))
    assert corpus.count("encoded") == 5
    assert {path: path.stat().st_mtime_ns for path in corpus.shards() if path in before} == before


def test_the_same_sound_twice_is_computed_once(corpus):
    again = corpus.folder / "copy.flac"
    soundfile.write(again, read_audio(corpus.item(0).path), 16_000, subtype="PCM_16")
    copy = AudioItem(audio_sha256=pcm_sha256(read_audio(again)), path=again)
    assert len(corpus.write([corpus.item(0), copy])) == 1
    assert corpus.count("encoded") == 1


def test_states_are_read_only_views_of_the_mapped_file(corpus):
    item = corpus.item(3)
    states = corpus.write([item, corpus.item(0)])
    view = states[item.audio_sha256]
    assert view.dtype == np.float16 and not view.flags.writeable and not view.flags.owndata
    assert np.shares_memory(view, states[item.audio_sha256])
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(corpus.shards()[0]) in line]
    address = view.__array_interface__["data"][0]
    assert any(int(a, 16) <= address < int(b, 16) for a, b in (line.split()[0].split("-") for line in mapped))


def test_opened_states_travel_to_other_processes_as_a_path(corpus):
    items = corpus.items(2)
    packed = pickle.dumps(corpus.write(items))
    assert len(packed) < 1_000
    assert_right(pickle.loads(packed), items)


def test_a_pool_of_processes_gives_the_same(corpus):
    items = corpus.items(4)
    assert_right(corpus.write(items, executor=ProcessExecutor(1)), items)
    assert corpus.count("encoded") == 4 and corpus.count("built") == 1


def test_a_killed_run_keeps_its_finished_shards(corpus):
    class Killed(BaseException):
        pass

    def kill(done, total):
        if done >= 4:
            raise Killed

    items = corpus.items(6)
    with pytest.raises(Killed):
        corpus.write(items, on_progress=kill)
    with pytest.raises(ValueError, match="no finished encoder states"):
        open_encoder_states(corpus.root, KEY)
    folder = corpus.root / KEY.folder
    (folder / ".half.arrow.x1").write_bytes(b"cut off")
    (folder / "orphan.arrow").write_bytes(b"no sidecar")
    assert corpus.count("encoded") == 4
    assert_right(corpus.write(items), items)
    assert corpus.count("encoded") == 6
    assert {path.suffix for path in folder.iterdir()} == {"", ".arrow", ".json"} and len(corpus.shards()) == 3


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_shard_is_refused_and_healed(corpus, damage):
    items = corpus.items(4)
    corpus.write(items)
    shard = corpus.shards()[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "delete":
        shard.unlink()
    else:
        shard.write_bytes(content if damage == "flip" else content[:-10])
    with pytest.raises(ValueError, match="write the encoder states again") as error:
        open_encoder_states(corpus.root, KEY)
    assert str(shard) in str(error.value)
    assert_right(corpus.write(items), items)
    assert corpus.count("encoded") == 6, "only the damaged shard's two files are computed again"
    assert_right(open_encoder_states(corpus.root, KEY), items)


def test_changed_audio_is_refused_and_the_rest_is_kept(corpus):
    items = corpus.items(4)
    soundfile.write(items[3].path, np.zeros(640, np.float32), 16_000, subtype="PCM_16")
    with pytest.raises(ValueError, match=r"3\.wav: audio has changed"):
        corpus.write(items)
    assert_right(corpus.write(items[:2]), items[:2])
    assert corpus.count("encoded") == 3


def test_audio_that_is_not_cached_is_named(corpus):
    states = corpus.write(corpus.items(1))
    for look_up in (states.__getitem__, states.frames):
        with pytest.raises(ValueError, match=f"no encoder states for audio {'0' * 64}"):
            look_up("0" * 64)


def test_other_weights_or_padding_are_another_cache(corpus):
    items = corpus.items(1)
    other = StateKey(encoder_name="test", weights_sha256="cd" * 32, padding="none", width=4)
    padded = StateKey(encoder_name="test", weights_sha256="ab" * 32, padding="30s", width=4)
    for key in (KEY, other, padded):
        corpus.write(items, key=key)
    assert corpus.count("encoded") == 3
    manifest = corpus.root / KEY.folder / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 0}))
    with pytest.raises(ValueError, match=r"manifest\.json: format and key"):
        open_encoder_states(corpus.root, KEY)


def test_two_preparations_at_once_share_the_work(corpus):
    items = corpus.items(6)
    threads = [threading.Thread(target=corpus.write, args=(items,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert corpus.count("encoded") == 6
    assert_right(open_encoder_states(corpus.root, KEY), items)
