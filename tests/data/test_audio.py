"""Audio files become 16 kHz mono waveforms, and every unusable file is refused by name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data.audio import AudioError, encode_flac, pcm_sha256, read_audio, to_pcm16
from data.records import SAMPLE_RATE


def tone(rate: int = SAMPLE_RATE, seconds: float = 1.0, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def test_flac_keeps_every_sample_and_its_hash(tmp_path: Path) -> None:
    pcm = to_pcm16(tone())
    (tmp_path / "a.flac").write_bytes(encode_flac(pcm))
    soundfile.write(tmp_path / "a.wav", pcm, SAMPLE_RATE)
    samples = read_audio(tmp_path / "a.flac")
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert np.array_equal(to_pcm16(samples), pcm)
    expected = hashlib.sha256(pcm.astype("<i2").tobytes()).hexdigest()
    assert {pcm_sha256(pcm), pcm_sha256(samples), pcm_sha256(read_audio(tmp_path / "a.wav"))} == {expected}


@pytest.mark.parametrize("rate", [8_000, 24_000, 44_100, 48_000])
def test_other_rates_keep_pitch_and_duration(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", tone(rate), rate)
    samples = read_audio(tmp_path / "a.wav")
    assert abs(len(samples) - SAMPLE_RATE) <= 2
    assert abs(int(np.abs(np.fft.rfft(samples[:SAMPLE_RATE])).argmax()) - 440) <= 1


def test_beyond_full_scale_is_clipped_not_wrapped() -> None:
    assert to_pcm16(np.array([2.0, -2.0, 0.0], np.float32)).tolist() == [32767, -32768, 0]


def write_nan(path: Path) -> None:
    soundfile.write(path, np.array([0.0, np.nan, 0.1], np.float32), SAMPLE_RATE, format="WAV", subtype="FLOAT")


def write_cut_wav(path: Path) -> None:
    soundfile.write(path, tone(), SAMPLE_RATE, format="WAV")
    path.write_bytes(path.read_bytes()[:20_000])


DEFECTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such audio file; restore it"),
    "folder": (lambda path: path.mkdir(), "no such audio file"),
    "no bytes": (lambda path: path.write_bytes(b""), "cannot be decoded"),
    "text": (lambda path: path.write_text("version https://git-lfs.example"), "cannot be decoded"),
    "flac cut off": (lambda path: path.write_bytes(encode_flac(to_pcm16(tone()))[:9_000]), "cut off"),
    "wav cut off": (write_cut_wav, "cut off before the end"),
    "no samples": (lambda path: soundfile.write(path, tone()[:0], SAMPLE_RATE, format="WAV"), "holds no samples"),
    "stereo": (
        lambda path: soundfile.write(path, np.stack([tone(), tone()], 1), SAMPLE_RATE, format="WAV"),
        "has 2 channels; mix it to mono",
    ),
    "NaN": (write_nan, "holds NaN or infinite samples"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_defects_name_file_and_remedy(tmp_path: Path, name: str) -> None:
    path = tmp_path / "call 7.audio"
    write, message = DEFECTS[name]
    write(path)
    with pytest.raises(AudioError, match=re.escape(message)) as caught:
        read_audio(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)
