"""Audio files become 16 kHz mono waveforms, and every unusable file is refused by name."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from corpus_samples.sound import babble
from data.audio import AudioError, AudioFile, encode_flac, pcm_sha256, read_audio, to_pcm16
from data.records import SAMPLE_RATE


def tone(rate: int = SAMPLE_RATE, seconds: float = 1.0, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def read_audio_bytes(data: bytes, **cut: float) -> np.ndarray:
    with AudioFile(data, "call 7") as file:
        return file.read(**cut)


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
        "has 2 channels, and none of them is chosen; mix it to mono",
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


ENCODINGS = {
    "wav": ("WAV", "PCM_24", 44_100, 2e-4),
    "flac": ("FLAC", "PCM_16", 8_000, 2e-4),
    "aiff": ("AIFF", "PCM_16", 22_050, 2e-4),
    "ulaw": ("WAV", "ULAW", 8_000, 0.02),
    "gsm": ("WAV", "GSM610", 8_000, 0.2),
    "vorbis": ("OGG", "VORBIS", 44_100, 0.1),
    "opus": ("OGG", "OPUS", 48_000, 0.1),
    "mp3": ("MP3", "MPEG_LAYER_III", 44_100, 0.1),
}


def encoded(name: str, seconds: float = 20.0, channels: int = 1) -> tuple[bytes, int]:
    """A file's content and its rate; channel c is babble of seed c."""
    container, subtype, rate, _ = ENCODINGS[name]
    stream = io.BytesIO()
    sound = np.stack([babble(seed, seconds, rate) for seed in range(channels)], 1)
    soundfile.write(stream, sound, rate, format=container, subtype=subtype)
    return stream.getvalue(), rate


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_part_is_the_same_as_that_part_of_the_whole(tmp_path: Path, name: str) -> None:
    data, rate = encoded(name)
    (tmp_path / "call").write_bytes(data)
    whole = soundfile.read(io.BytesIO(data), frames=20 * rate, dtype="float32")[0]
    assert np.abs(whole - babble(0, 20.0, rate)).max() < ENCODINGS[name][3]
    cuts = [(0.0, 1.0), (6.8027, 8.25), (6.9, 7.1), (15.0, 19.5), (2.5, 3.0), (0.0, None)]  # not in the order of time
    with AudioFile(tmp_path / "call") as file:
        for start, end in cuts:
            part = whole[round(start * rate) : None if end is None else round(end * rate)]
            expected = soxr.resample(part, rate, SAMPLE_RATE, quality="HQ")
            assert np.array_equal(file.read(start_s=start, end_s=end), expected), (start, end)
            assert np.array_equal(read_audio_bytes(data, start_s=start, end_s=end), expected)


def test_a_part_at_16_khz_is_cut_to_the_sample(tmp_path: Path) -> None:
    pcm = to_pcm16(babble(3, 4.0))
    (tmp_path / "a.flac").write_bytes(encode_flac(pcm))
    samples = read_audio(tmp_path / "a.flac", start_s=1.25, end_s=2.5)
    assert np.array_equal(to_pcm16(samples), pcm[20_000:40_000])


def test_a_channel_is_chosen(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "call.wav", np.stack([babble(1), babble(2)], 1), SAMPLE_RATE, subtype="FLOAT")
    for channel in (0, 1):
        assert np.array_equal(read_audio(tmp_path / "call.wav", channel=channel), babble(channel + 1))
    for channel in (2, -1):
        with pytest.raises(AudioError, match=f"has no channel {channel}, only 2 counted from 0") as caught:
            read_audio(tmp_path / "call.wav", channel=channel)
        assert caught.value.kind == "audio-channel-unknown"


@pytest.mark.parametrize("name", [name for name in ENCODINGS if name != "gsm"])
@pytest.mark.parametrize("left", [0.95, 0.5])
def test_a_file_without_its_end_is_noticed_and_what_is_left_can_be_read(name: str, left: float) -> None:
    data, _ = encoded(name)
    cut = data[: round(len(data) * left)]
    with pytest.raises(AudioError, match="cut off") as caught:
        read_audio_bytes(cut)
    assert caught.value.kind == "audio-truncated" and "\n" not in str(caught.value)
    with pytest.raises(AudioError) as caught:
        read_audio_bytes(cut, start_s=19.0, end_s=19.9)
    assert caught.value.kind == "audio-truncated"
    assert np.array_equal(read_audio_bytes(cut, start_s=1.0, end_s=3.0), read_audio_bytes(data, start_s=1.0, end_s=3.0))


def mpeg_frames(data: bytes) -> bytes:
    """An MP3 file without its first frame, which holds the Xing header."""
    return data[data.index(data[:2], 4) :]


def test_an_mp3_without_a_header_of_its_length_is_whole_or_refused() -> None:
    stream = io.BytesIO()
    soundfile.write(stream, babble(0, 20.0), SAMPLE_RATE, format="MP3", bitrate_mode="CONSTANT", compression_level=0.5)
    constant = mpeg_frames(stream.getvalue())
    assert abs(len(read_audio_bytes(constant)) / SAMPLE_RATE - 20) < 0.2
    assert len(read_audio_bytes(constant + b"TAG" + bytes(125))) == len(read_audio_bytes(constant))
    with pytest.raises(AudioError, match="is cut off"):
        read_audio_bytes(constant[:-50])
    with pytest.raises(AudioError, match="varying bit rate without a header that tells its length"):
        read_audio_bytes(mpeg_frames(encoded("mp3")[0]))


SECOND = np.concatenate([babble(0, 1.0), np.zeros(SAMPLE_RATE // 2, np.float32), babble(1, 0.5)])
CUTS: dict[str, tuple[float, float | None]] = {
    "ends before it starts": (1.0, 0.5),
    "nothing": (1.0, 1.0),
    "before the file": (-0.5, 1.0),
    "no number": (float("nan"), 1.0),
    "without end": (0.0, float("inf")),
    "beyond the file": (1.5, 2.2),
    "behind the file": (2.1, 3.0),
    "behind the file, open": (5.0, None),
}


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("container", ["WAV", "OGG"])
def test_a_cut_outside_the_file_is_told(tmp_path: Path, name: str, container: str) -> None:
    soundfile.write(tmp_path / "a", SECOND, SAMPLE_RATE, format=container)
    start, end = CUTS[name]
    with pytest.raises(AudioError) as caught:
        read_audio(tmp_path / "a", start_s=start, end_s=end)
    assert caught.value.kind == "audio-cut-outside"


def test_a_cut_may_end_a_tenth_of_a_second_late(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", SECOND, SAMPLE_RATE)
    assert len(read_audio(tmp_path / "a.wav", start_s=1.5, end_s=2.09)) == SAMPLE_RATE // 2


def test_what_is_said_is_neither_silent_nor_short_nor_long(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", SECOND, SAMPLE_RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "hum.wav", SECOND * 0.0019, SAMPLE_RATE, subtype="FLOAT")  # peak 0.00095
    soundfile.write(tmp_path / "long.wav", babble(0, 30.1), SAMPLE_RATE)
    soundfile.write(tmp_path / "edge.wav", babble(0, 30.0), SAMPLE_RATE)

    def kind(name: str, **cut: float) -> str:
        with AudioFile(tmp_path / name) as file, pytest.raises(AudioError) as caught:
            file.read_utterance(**cut)
        assert len(read_audio(tmp_path / name, **cut))  # who only reads gets it
        return caught.value.kind

    assert kind("a.wav", start_s=1.05, end_s=1.45) == "audio-silent"
    assert kind("hum.wav") == "audio-silent"
    assert kind("a.wav", start_s=0.2, end_s=0.29) == "audio-too-short"
    assert kind("long.wav") == kind("long.wav", start_s=0.05, end_s=30.08) == "audio-too-long"
    with AudioFile(tmp_path / "edge.wav") as file:
        assert len(file.read_utterance()) == 30 * SAMPLE_RATE


@pytest.mark.parametrize("rate", [1, 3_999, 4_000_000])
def test_absurd_rates_are_refused(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", SECOND, rate)
    with pytest.raises(AudioError, match=f"a sample rate of {rate} Hz") as caught:
        read_audio(tmp_path / "a.wav")
    assert caught.value.kind == "audio-sample-rate"


def test_samples_without_a_header_are_refused(tmp_path: Path) -> None:
    (tmp_path / "call.raw").write_bytes(bytes(1000))
    with pytest.raises(AudioError, match="it has no header; "):
        read_audio(tmp_path / "call.raw")


def test_a_wav_that_was_streamed_is_whole() -> None:
    stream = io.BytesIO()
    soundfile.write(stream, SECOND, SAMPLE_RATE, format="WAV", subtype="FLOAT")
    data = bytearray(stream.getvalue())
    data[4:8] = data[data.index(b"data") + 4 : data.index(b"data") + 8] = b"\xff" * 4
    assert np.array_equal(read_audio_bytes(bytes(data)), SECOND)
