"""Turns an audio file into the one waveform form of slotgrid, float32 mono at 16 kHz, and a waveform into its hash."""

from __future__ import annotations

import hashlib
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from data.records import SAMPLE_RATE

Waveform = npt.NDArray[np.float32]
"""[samples], full scale is 1.0."""

UNKNOWN_SIZES = (0, 0xFFFFFFFF)
"""What a WAV writer that could not seek back leaves as the size of its data."""


class AudioError(ValueError):
    """An audio file that cannot be used; the message names the file and the remedy."""


def read_audio(path: Path) -> Waveform:
    """Read a file that libsndfile knows (WAV, FLAC, OGG, MP3 ...): float32 [samples], mono, resampled to 16 kHz.

    Raises AudioError when the file is missing, cut off, empty, not mono, or holds NaN or infinite samples.
    """
    if not path.is_file():
        raise AudioError(f"{path}: no such audio file; restore it, or remove its line from the manifest")
    try:
        with soundfile.SoundFile(path) as stream:
            rate, channels, announced = stream.samplerate, stream.channels, stream.frames
            samples: Waveform = stream.read(dtype="float32")
    except (soundfile.SoundFileError, OSError) as error:
        raise AudioError(f"{path}: cannot be decoded, it is cut off or not audio ({error}); copy it again") from error
    if channels != 1:
        raise AudioError(f"{path}: has {channels} channels; mix it to mono, or keep the caller's channel only")
    if len(samples) < announced or _wav_is_cut_off(path):
        raise AudioError(f"{path}: is cut off before the end that its header announces; copy it again")
    if len(samples) == 0:
        raise AudioError(f"{path}: holds no samples; record it again, or remove its line from the manifest")
    if not np.isfinite(samples).all():
        raise AudioError(f"{path}: holds NaN or infinite samples; export it again as 16-bit PCM")
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE, quality="HQ").astype(np.float32, copy=False)
    return samples


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


def _wav_is_cut_off(path: Path) -> bool:
    """Whether a RIFF file is shorter than its data chunk says. libsndfile reads what is there without a word."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(12)
        if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return False
        while len(chunk := stream.read(8)) == 8:
            name, length = struct.unpack("<4sI", chunk)
            if name == b"data":
                return length not in UNKNOWN_SIZES and stream.tell() + length > size
            stream.seek(length + length % 2, 1)
    return False
