"""The synthetic corpus is voiced once, the same by any executor, and goes on where a killed run stopped."""

from __future__ import annotations

import errno
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.audio import pcm_sha256, read_audio
from data.callcentre.speakers import TEST_SPEAKERS, TRAIN_SPEAKERS, apply_speaker, choose_speaker, seeded_generator
from data.callcentre.synthesize import SyntheticCorpusConfig, synthesize
from data.callcentre.voice import VOICE_RATE, check_voice, trim_silence
from data.executors import ProcessExecutor, SerialExecutor
from data.manifest import Corpus, CorpusError, open_corpus
from data.records import SAMPLE_RATE, SPLITS, TEST_SPLITS

CONFIG = SyntheticCorpusConfig(train=5, validation=2, test=2, test_frame=1, test_domain=2, seed=3)
CORPUS_FILES = ("manifest.jsonl", "ontology.json", "traces.jsonl", "corpus.json")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return synthesize(tmp_path_factory.mktemp("corpus"), config=CONFIG, executor=SerialExecutor())


def contents(root: Path) -> dict[str, bytes]:
    """Every file that a reader of the corpus sees."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in [*(root / name for name in CORPUS_FILES), *root.glob("audio/*/*")]
    }


class Killed(Exception):
    """What stands for a kill: nothing of ours catches it."""


class Backwards:
    """Works from the last task to the first, and dies before the task `dies_at`."""

    def __init__(self, dies_at: int | None = None, error: Exception | None = None) -> None:
        self.dies_at, self.error = dies_at, error or Killed()

    def map_unordered(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        for place, task in enumerate(reversed(list(tasks))):
            if place == self.dies_at:
                raise self.error
            yield function(task)


def test_examples_are_whole(corpus: Corpus) -> None:
    assert Counter(row.example.split for row in corpus.examples) == {split: CONFIG.count(split) for split in SPLITS}
    for row in corpus.examples:
        samples = read_audio(corpus.audio_path(row.example))
        assert pcm_sha256(samples) == row.example.audio_sha256
        assert abs(len(samples) / SAMPLE_RATE - row.example.duration_s) < 1e-3
        assert 0.4 + 0.1 * len(row.example.transcript.split()) < row.example.duration_s < 15
        assert 0.005 < float(np.sqrt(np.mean(samples**2))) < 0.2 and np.abs(samples).max() < 1
        assert row.trace and row.trace.transcription == row.example.transcript
    assert json.loads((corpus.root / "corpus.json").read_text())["splits"]["train"] == 5
    assert not list(corpus.root.glob("audio/*/.*"))


def test_only_the_test_splits_hear_the_test_speakers(corpus: Corpus) -> None:
    unseen = {speaker.id for speaker in TEST_SPEAKERS}
    for row in corpus.examples:
        in_test = row.example.split in TEST_SPLITS
        assert (row.example.speaker in unseen) == in_test == ("speaker" in row.example.held_out)


def test_speakers_are_balanced_and_distinct() -> None:
    assert (len(TRAIN_SPEAKERS), len(TEST_SPEAKERS)) == (24, 8)
    settings = [(s.pitch, s.speed, s.telephone, s.room_s, s.noise, s.snr_db) for s in (*TRAIN_SPEAKERS, *TEST_SPEAKERS)]
    assert len(set(settings)) == len({s.id for s in (*TRAIN_SPEAKERS, *TEST_SPEAKERS)}) == 32
    assert all(speaker.snr_db >= 12 for speaker in (*TRAIN_SPEAKERS, *TEST_SPEAKERS))
    chosen = [choose_speaker("train", index, seed=0).id for index in range(240)]
    assert set(Counter(chosen).values()) == {10}
    assert chosen[:24] != chosen[24:48]
    assert chosen != [choose_speaker("train", index, seed=1).id for index in range(240)]


def test_the_same_files_whatever_the_executor(corpus: Corpus, tmp_path: Path) -> None:
    synthesize(tmp_path / "pool", config=CONFIG, executor=ProcessExecutor(2))
    assert contents(tmp_path / "pool") == contents(corpus.root)


def test_a_killed_run_goes_on_and_ends_the_same(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        synthesize(tmp_path, config=CONFIG, executor=Backwards(dies_at=3))
    assert not (tmp_path / "corpus.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("audio/test*/*.flac")}
    assert len(kept) == 5
    whole, cut, gone = sorted(kept)[:3]
    cut.write_bytes(cut.read_bytes()[:-100])
    gone.unlink()
    (tmp_path / "audio/test/.test-000000.flac.x1y2").write_bytes(b"half a file")
    progress: list[tuple[int, int]] = []
    synthesize(tmp_path, config=CONFIG, executor=Backwards(), on_progress=lambda *done: progress.append(done))
    assert progress == [(2, 12), (3, 12), (5, 12), (7, 12), (12, 12)]
    assert contents(tmp_path) == contents(corpus.root)
    assert whole.stat().st_mtime_ns == kept[whole]


def test_a_finished_corpus_is_only_opened(corpus: Corpus) -> None:
    again = synthesize(corpus.root, config=CONFIG, executor=Backwards(dies_at=0))
    assert again == corpus == open_corpus(corpus.root)


def test_a_damaged_corpus_is_an_error_until_mending_is_asked_for(corpus: Corpus) -> None:
    before = contents(corpus.root)
    lost = corpus.audio_path(corpus.examples[1].example)
    lost.unlink()
    with pytest.raises(CorpusError, match=rf"{lost.name}.* delete .*corpus.json and run again"):
        synthesize(corpus.root, config=CONFIG, executor=SerialExecutor())
    (corpus.root / "manifest.jsonl").write_text("{}\n")
    (corpus.root / "corpus.json").unlink()
    assert synthesize(corpus.root, config=CONFIG, executor=SerialExecutor()) == corpus
    assert contents(corpus.root) == before


@pytest.mark.parametrize("finished", [True, False])
def test_another_corpus_in_the_folder_is_refused(corpus: Corpus, tmp_path: Path, finished: bool) -> None:
    root = corpus.root if finished else tmp_path
    if not finished:
        with pytest.raises(Killed):
            synthesize(root, config=CONFIG, executor=Backwards(dies_at=0))
    other = SyntheticCorpusConfig(train=6, validation=2, test=2, test_frame=1, test_domain=2, seed=3)
    with pytest.raises(ValueError, match=r"holds another corpus \(train 5 -> 6\); choose another folder, or delete"):
        synthesize(root, config=other, executor=SerialExecutor())


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/tmp/x")
    with pytest.raises(OSError, match=r"no space left while voicing 12 utterances .* run the same command again"):
        synthesize(tmp_path, config=CONFIG, executor=Backwards(dies_at=1, error=full))
    assert synthesize(tmp_path, config=CONFIG, executor=SerialExecutor()).fingerprint == CONFIG.fingerprint()


def test_sizes() -> None:
    config = SyntheticCorpusConfig.of_size(3000, seed=7)
    assert [config.count(split) for split in SPLITS] == [2400, 150, 240, 120, 90]
    assert [SyntheticCorpusConfig.of_size(n).examples for n in (5, 7, 10, 999)] == [5, 7, 10, 999]
    assert len({SyntheticCorpusConfig.of_size(8, seed).fingerprint() for seed in range(3)}) == 3
    with pytest.raises(ValueError, match="examples is 4; a corpus needs at least 5"):
        SyntheticCorpusConfig.of_size(4)
    with pytest.raises(ValueError, match=r"SyntheticCorpusConfig\.test is -1"):
        SyntheticCorpusConfig(train=1, validation=0, test=-1, test_domain=0)


@pytest.mark.parametrize("name", ["espeak", "hibari:nobody"])
def test_unknown_voices_are_refused_before_any_work(tmp_path: Path, name: str) -> None:
    config = SyntheticCorpusConfig(train=1, validation=0, test=0, test_domain=0, voice=name)
    with pytest.raises(ValueError, match=f"voice '{name}' is unknown; "):
        synthesize(tmp_path / "corpus", config=config, executor=SerialExecutor())
    assert not (tmp_path / "corpus").exists()
    check_voice("hibari")


def test_silence_is_cut_and_filled_to_a_tenth_of_a_second() -> None:
    tone = np.sin(np.arange(VOICE_RATE) / 20).astype(np.float32)
    for silence in (0, VOICE_RATE):
        around = np.zeros(silence, np.float32)
        assert len(trim_silence(np.concatenate([around, tone, around]), VOICE_RATE)) == round(1.2 * VOICE_RATE)
    assert len(trim_silence(np.zeros(VOICE_RATE, np.float32), VOICE_RATE)) == 0


@pytest.mark.parametrize("speaker", [TRAIN_SPEAKERS[1], TRAIN_SPEAKERS[10]], ids=["telephone, low", "wide, high"])
def test_speakers_shift_pitch_and_narrow_the_line(speaker: Any) -> None:
    seconds = np.arange(2 * VOICE_RATE) / VOICE_RATE
    voice = (np.sin(2 * np.pi * 1000 * seconds) + np.sin(2 * np.pi * 5000 * seconds)).astype(np.float32)
    heard = apply_speaker(voice, VOICE_RATE, speaker, seeded_generator("test"))
    assert abs(len(heard) / SAMPLE_RATE - 2 / speaker.pitch) < 0.01
    power = np.abs(np.fft.rfft(heard)) ** 2
    hertz = np.fft.rfftfreq(len(heard), 1 / SAMPLE_RATE)
    below = hertz < 3500
    assert abs(hertz[below][power[below].argmax()] - 1000 * speaker.pitch) < 5
    high = power[hertz > 3900].sum() / power.sum()
    assert high < 0.001 if speaker.telephone else high > 0.3
