"""Turns an audio file, or a part of one, into the one waveform form of slotgrid, float32 mono at 16 kHz, and a waveform into its hash."""

from __future__ import annotations

import hashlib
import io
import math
import sys
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from data.audio_length import CUT_OFF, missing_end
from data.records import SAMPLE_RATE

Waveform = npt.NDArray[np.float32]
"""[samples], full scale is 1.0."""

AudioDefect = Literal[
    "audio-not-found",  # no such file
    "audio-undecodable",  # not a sound file, or of a format that libsndfile does not know
    "audio-truncated",  # it stops before the end that it announces, or is damaged on the way there
    "audio-empty",  # no samples
    "audio-channels",  # several channels, and none is chosen
    "audio-channel-unknown",  # the chosen channel is not there
    "audio-cut-outside",  # the cut ends before it starts, or reaches beyond the file
    "audio-not-finite",  # NaN or infinite samples
    "audio-sample-rate",  # no speech is recorded at such a rate
    "audio-too-long",
    "audio-too-short",
    "audio-silent",
]

MAX_UTTERANCE_S = 30.0
"""What Whisper hears at once; of a longer turn it would miss the end."""
MIN_UTTERANCE_S = 0.1
"""No word is shorter: such a row is a slip of the cut."""
SILENCE_PEAK = 10 ** (-60 / 20)
"""-60 dBFS. The loudest sample of the quietest telephone line that carries speech lies far above it, digital noise below."""
SAMPLE_RATES = (4_000, 192_000)
"""Hz, lowest and highest. Beyond them a header is damaged."""
CUT_SLACK_S = 0.1
"""How far a cut may reach beyond the end of its file: authors round their times up."""

_FORWARD_ONLY = ("OGG", "MP3")
"""libsndfile's seek is exact for every other format; in these it lands up to 0.1 s away, so they are decoded from the start."""
_BLOCK = 1 << 17  # samples over all channels


class AudioError(ValueError):
    """Audio that cannot be used: what is wrong, and the remedy. The message begins with the file."""

    def __init__(self, kind: AudioDefect, name: str, problem: str, remedy: str) -> None:
        super().__init__(f"{name}: {problem}; {remedy}")
        self.kind, self.problem, self.remedy = kind, problem, remedy


class _Stream(soundfile.SoundFile):
    """A sound file that is never asked to seek where it would not arrive."""

    def seekable(self) -> bool:
        # soundfile seeks to where it stands after every read: in an MP3 that alone loses samples.
        return bool(super().seekable()) and self.format not in _FORWARD_ONLY


class _Memory(io.BytesIO):
    """A file in memory that stays where it is when damaged data asks it to seek to before its begin."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:  # soundfile would print a traceback
            return self.tell()


class AudioFile:
    """A sound file that is opened once and read in parts; parts in the order of time cost one pass over any format."""

    def __init__(self, source: Path | bytes, name: str = "") -> None:
        """`source`: a file, or the content of one, which errors call `name`. Raises AudioError."""
        self._source, self._name = source, name or (str(source) if isinstance(source, Path) else "audio")
        if isinstance(source, Path) and not _is_file(source):
            remedy = "restore it, or remove its line from the manifest"
            raise self._error("audio-not-found", "no such audio file", remedy)
        self._stream = self._open()
        self.rate: int = self._stream.samplerate
        self.channels: int = self._stream.channels
        if not SAMPLE_RATES[0] <= self.rate <= SAMPLE_RATES[1]:
            self.close()
            raise self._error("audio-sample-rate", f"has a sample rate of {self.rate} Hz", "export it again at 16 kHz")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._stream.close()

    def read(self, *, channel: int | None = None, start_s: float = 0.0, end_s: float | None = None) -> Waveform:
        """[samples] of one channel (from 0; None: there must be only one) between two times, mono at 16 kHz; `end_s` None: to the end.

        Raises AudioError when that part is not there, is empty, cannot be decoded, or holds NaN or infinite samples.
        """
        return self._read(channel, start_s, end_s, longest_s=None)

    def read_utterance(
        self, *, channel: int | None = None, start_s: float = 0.0, end_s: float | None = None
    ) -> Waveform:
        """`read` for something that is said: an AudioError too when it is silent, or not between 0.1 and 30 seconds long."""
        samples = self._read(channel, start_s, end_s, longest_s=MAX_UTTERANCE_S)
        seconds, peak = len(samples) / SAMPLE_RATE, float(np.abs(samples).max())
        if seconds < MIN_UTTERANCE_S:
            raise self._error(
                "audio-too-short", f"is {seconds:.3f} s long, less than {MIN_UTTERANCE_S} s", "check where it is cut"
            )
        if peak < SILENCE_PEAK:
            level = f"its peak is {20 * math.log10(peak):.0f} dBFS" if peak else "every sample is 0"
            raise self._error(
                "audio-silent", f"is silent ({level})", "check the channel and the cut, or record it again"
            )
        return samples

    def _read(self, channel: int | None, start_s: float, end_s: float | None, longest_s: float | None) -> Waveform:
        self._check_channel(channel)
        first, wanted = self._frames_of(start_s, end_s)
        longest = sys.maxsize if longest_s is None else round(longest_s * self.rate)
        samples = self._decode(first, min(wanted, longest + 1), channel or 0)
        if len(samples) > longest:
            raise self._error("audio-too-long", f"is longer than {longest_s:g} s", "cut it into shorter turns")
        if len(samples) < wanted:
            self._check_end(first, len(samples), None if end_s is None else first + wanted)
        if not len(samples):
            raise self._error(
                "audio-empty", "holds no samples", "record it again, or remove its line from the manifest"
            )
        if not np.isfinite(samples).all():
            raise self._error("audio-not-finite", "holds NaN or infinite samples", "export it again as 16-bit PCM")
        if self.rate != SAMPLE_RATE:
            samples = soxr.resample(samples, self.rate, SAMPLE_RATE, quality="HQ").astype(np.float32, copy=False)
        return samples

    def _check_channel(self, channel: int | None) -> None:
        if channel is None and self.channels != 1:
            problem = f"has {self.channels} channels, and none of them is chosen"
            raise self._error("audio-channels", problem, "mix it to mono, or keep the caller's channel only")
        if channel is not None and not 0 <= channel < self.channels:
            problem = f"has no channel {channel}, only {self.channels} counted from 0"
            raise self._error("audio-channel-unknown", problem, "choose one of those")

    def _frames_of(self, start_s: float, end_s: float | None) -> tuple[int, int]:
        """The first frame of a cut and how many there are; to the end: more than any file has."""
        if not (math.isfinite(start_s) and start_s >= 0 and (end_s is None or start_s < end_s < math.inf)):
            problem = f"cannot be cut from {start_s} s to {end_s} s"
            raise self._error("audio-cut-outside", problem, "correct the times: the end must come after the start")
        first = round(start_s * self.rate)
        return first, sys.maxsize if end_s is None else round(end_s * self.rate) - first

    def _decode(self, first: int, wanted: int, channel: int) -> Waveform:
        """[samples] of one channel from a frame on: as many as are wanted, or all that there are."""
        blocks: list[Waveform] = [np.zeros(0, np.float32)]
        try:
            self._go_to(first)
            while wanted and len(block := self._next_block(wanted)):
                blocks.append(block[:, channel].copy())
                wanted -= len(block)
        except soundfile.SoundFileError as error:
            there = (first + sum(map(len, blocks))) / self.rate
            problem = f"cannot be decoded beyond about {there:.1f} s, it is cut off or damaged there ({_reason(error)})"
            raise self._error("audio-truncated", problem, "copy it again") from error
        return np.concatenate(blocks)

    def _go_to(self, frame: int) -> None:
        if self._stream.seekable():
            self._stream.seek(min(frame, self._stream.frames))
            return
        if frame < self._position:
            self.close()
            self._stream = self._open()
        while self._position < frame and len(self._next_block(frame - self._position)):
            pass

    def _next_block(self, wanted: int) -> npt.NDArray[np.float32]:
        """The next [frames, channels], a few at a time: a header can promise more than any memory holds."""
        frames = min(wanted, max(1, _BLOCK // self.channels))
        block: npt.NDArray[np.float32] = self._stream.read(frames, dtype="float32", always_2d=True)
        self._position += len(block)
        return block

    def _check_end(self, first: int, there: int, last: int | None) -> None:
        """Why a file ended before the wanted number of frames: its own end, a lost end, or a cut that lies outside."""
        if first + there < self._stream.frames:
            raise self._error("audio-truncated", CUT_OFF, "copy it again")
        with io.BytesIO(self._source) if isinstance(self._source, bytes) else self._source.open("rb") as file:
            if problem := missing_end(file, self._stream.format, self._stream.extra_info):
                raise self._error("audio-truncated", problem, "copy it again")
        too_far = (last or 0) - (first + there) > CUT_SLACK_S * self.rate
        if too_far or (not there and (first or last)):
            asked = f"{first / self.rate:.3f} s to " + ("its end" if last is None else f"{last / self.rate:.3f} s")
            problem = f"is {self._stream.frames / self.rate:.3f} s long, and the row asks for {asked}"
            raise self._error("audio-cut-outside", problem, "correct the times, or check that it is the right file")

    def _open(self) -> _Stream:
        self._position = 0
        source = _Memory(self._source) if isinstance(self._source, bytes) else self._source
        try:
            return _Stream(source)
        except (soundfile.SoundFileError, OSError) as error:
            problem = f"cannot be decoded, it is cut off or not audio ({_reason(error)})"
        except TypeError:  # what soundfile has to say of `.raw`
            problem = "cannot be decoded, it has no header"
        raise self._error("audio-undecodable", problem, "copy it again, or convert it to WAV or FLAC")

    def _error(self, kind: AudioDefect, problem: str, remedy: str) -> AudioError:
        return AudioError(kind, self._name, problem, remedy)


def read_audio(path: Path, *, channel: int | None = None, start_s: float = 0.0, end_s: float | None = None) -> Waveform:
    """Read a file that libsndfile knows (WAV, FLAC, OGG, MP3 ...), or a part of it: see `AudioFile.read`."""
    with AudioFile(path) as file:
        return file.read(channel=channel, start_s=start_s, end_s=end_s)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, a folder that may not be entered
        return False


def _reason(error: Exception) -> str:
    """What libsndfile or the system says, without the path of the file: the same wherever the corpus lies."""
    return str(getattr(error, "error_string", None) or getattr(error, "strerror", None) or error)


def to_pcm16(samples: npt.NDArray[np.floating]) -> npt.NDArray[np.int16]:
    """Float samples as 16-bit integers, [samples] -> [samples]; what lies beyond full scale is clipped.

    The exact inverse of reading 16-bit PCM as float: a file that is read and written again keeps its hash.
    """
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


def encode_flac(pcm: npt.NDArray[np.int16]) -> bytes:
    """The content of a mono 16 kHz 16-bit FLAC file that holds `pcm` [samples]."""
    stream = io.BytesIO()  # in memory, so that a full disk is an OSError of Python's and not a codec's error
    soundfile.write(stream, pcm, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


def pcm_sha256(samples: npt.NDArray[Any]) -> str:
    """`Example.audio_sha256` of float or int16 [samples] at 16 kHz: the hash of their 16-bit little-endian form."""
    pcm = samples if samples.dtype == np.int16 else to_pcm16(samples)
    return hashlib.sha256(pcm.astype("<i2", copy=False).tobytes()).hexdigest()
