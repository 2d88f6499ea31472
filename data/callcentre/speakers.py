"""Turns one synthetic voice into many speakers: pitch, pace, room, noise and telephone line, fixed per speaker.

The list is fixed: 24 speakers for training and validation, 8 that only the test splits hear.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import soxr
from scipy import signal

from data.records import SAMPLE_RATE, TEST_SPLITS, Split

Waveform = npt.NDArray[np.float32]
Noise = Literal["white", "pink", "hum", "babble"]

TELEPHONE_RATE = 8_000
TELEPHONE_BAND_HZ = (300.0, 3400.0)
SPEECH_LEVEL_DB = -26.0  # root mean square before the speaker's own gain, relative to full scale
PEAK = 0.97
REVERBERATION_SHARE = 0.25  # energy of the reverberation relative to the direct sound


@dataclass(frozen=True, kw_only=True)
class SpeakerSetting:
    """How one speaker differs from the voice they are made of."""

    id: str
    pitch: float  # pitch and formants together: below 1 a larger speaker, above 1 a smaller one
    speed: float  # pace of speaking, whatever the pitch
    telephone: bool  # heard through a 300-3400 Hz line at 8 kHz
    room_s: float  # time in which the room's echo decays by 60 dB; 0 means no room
    noise: Noise
    snr_db: float  # speech over noise
    gain_db: float

    @property
    def voice_speed(self) -> float:
        """The pace to ask the voice for, so that after the pitch shift the speaker talks at `speed`."""
        return self.speed / self.pitch


def _speaker(
    number: int, pitch: float, speed: float, line: str, room_s: float, noise: Noise, snr_db: float, gain_db: float
) -> SpeakerSetting:
    return SpeakerSetting(
        id=f"speaker-{number:02d}",
        pitch=pitch,
        speed=speed,
        telephone=line == "telephone",
        room_s=room_s,
        noise=noise,
        snr_db=snr_db,
        gain_db=gain_db,
    )


TRAIN_SPEAKERS: tuple[SpeakerSetting, ...] = (
    _speaker(1, 1.00, 1.00, "wide", 0.00, "white", 40, 0),
    _speaker(2, 0.88, 1.05, "telephone", 0.00, "pink", 24, 2),
    _speaker(3, 1.10, 0.95, "telephone", 0.15, "babble", 20, -2),
    _speaker(4, 0.94, 1.10, "wide", 0.20, "pink", 22, 0),
    _speaker(5, 1.05, 1.00, "telephone", 0.00, "hum", 18, 3),
    _speaker(6, 0.85, 1.00, "wide", 0.00, "babble", 22, -3),
    _speaker(7, 1.15, 1.05, "telephone", 0.00, "white", 26, 0),
    _speaker(8, 0.97, 0.92, "telephone", 0.20, "pink", 20, 1),
    _speaker(9, 1.02, 1.15, "wide", 0.15, "babble", 18, -4),
    _speaker(10, 0.91, 0.95, "telephone", 0.00, "white", 16, 4),
    _speaker(11, 1.18, 0.97, "wide", 0.00, "hum", 24, -1),
    _speaker(12, 0.87, 1.12, "telephone", 0.15, "pink", 26, 0),
    _speaker(13, 1.07, 1.08, "telephone", 0.00, "babble", 16, -2),
    _speaker(14, 0.95, 1.00, "wide", 0.25, "white", 28, 2),
    _speaker(15, 1.12, 1.02, "telephone", 0.00, "pink", 18, -5),
    _speaker(16, 0.90, 0.98, "telephone", 0.00, "babble", 24, 1),
    _speaker(17, 1.00, 1.10, "telephone", 0.20, "white", 22, -3),
    _speaker(18, 0.86, 0.93, "wide", 0.15, "pink", 30, 3),
    _speaker(19, 1.04, 0.94, "telephone", 0.00, "pink", 14, 0),
    _speaker(20, 0.98, 1.04, "wide", 0.00, "babble", 14, 2),
    _speaker(21, 1.14, 1.10, "telephone", 0.15, "hum", 22, -2),
    _speaker(22, 0.92, 1.08, "telephone", 0.00, "white", 20, -6),
    _speaker(23, 1.08, 0.90, "wide", 0.20, "pink", 24, 1),
    _speaker(24, 0.89, 1.02, "telephone", 0.00, "hum", 28, 0),
)
"""Training and validation."""

TEST_SPEAKERS: tuple[SpeakerSetting, ...] = (
    _speaker(25, 1.03, 1.06, "telephone", 0.10, "pink", 19, 0),
    _speaker(26, 0.865, 1.03, "telephone", 0.00, "babble", 21, 2),
    _speaker(27, 1.165, 1.00, "wide", 0.10, "pink", 23, -2),
    _speaker(28, 0.93, 0.96, "wide", 0.00, "white", 17, 1),
    _speaker(29, 1.09, 1.12, "telephone", 0.00, "white", 23, -4),
    _speaker(30, 0.96, 1.13, "telephone", 0.18, "hum", 20, 3),
    _speaker(31, 1.13, 0.93, "wide", 0.22, "babble", 19, 0),
    _speaker(32, 0.905, 1.01, "telephone", 0.00, "pink", 15, -1),
)
"""The two test splits, and nothing else."""


def speakers_of(split: Split) -> tuple[SpeakerSetting, ...]:
    """The speakers that a split may hear."""
    return TEST_SPEAKERS if split in TEST_SPLITS else TRAIN_SPEAKERS


def choose_speaker(split: Split, index: int, seed: int) -> SpeakerSetting:
    """The speaker of example `index` of a split.

    Every run of `len(speakers)` examples hears each speaker once, in an order of its own.
    """
    speakers = speakers_of(split)
    turn, place = divmod(index, len(speakers))
    return speakers[int(seeded_generator(seed, split, turn).permutation(len(speakers))[place])]


def seeded_generator(*names: object) -> np.random.Generator:
    """A random generator that depends on the names given and on nothing else: the same in every process."""
    digest = hashlib.sha256("\n".join(map(str, names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def apply_speaker(voice: Waveform, voice_rate: int, speaker: SpeakerSetting, rng: np.random.Generator) -> Waveform:
    """The voice at `speaker.voice_speed` as the speaker sounds: [samples] at `voice_rate` Hz -> [samples] at 16 kHz."""
    speech = _shift_pitch(voice, voice_rate, speaker.pitch)
    if speaker.room_s:
        speech = _add_room(speech, speaker.room_s, seeded_generator("room", speaker.id))
    speech = speech / _rms(speech)
    speech = speech + _noise(speaker.noise, len(speech), rng) * 10 ** (-speaker.snr_db / 20)
    if speaker.telephone:
        speech = _telephone(speech)
    speech = speech * (10 ** ((SPEECH_LEVEL_DB + speaker.gain_db) / 20) / _rms(speech))
    peak = float(np.abs(speech).max())
    return (speech * min(1.0, PEAK / peak)).astype(np.float32)


def _rms(samples: npt.NDArray[np.floating]) -> float:
    return max(float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))), 1e-9)


def _shift_pitch(voice: Waveform, rate: int, factor: float) -> Waveform:
    """Played `factor` times faster, which moves pitch and formants alike, as a shorter vocal tract does."""
    return soxr.resample(voice, rate * factor, SAMPLE_RATE, quality="HQ").astype(np.float32, copy=False)


def _add_room(speech: Waveform, decay_s: float, rng: np.random.Generator) -> Waveform:
    """Direct sound and an exponentially decaying tail of noise, a small room's impulse response."""
    length = int(decay_s * SAMPLE_RATE)
    tail = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    tail[: SAMPLE_RATE // 500] = 0  # 2 ms: the first echo comes later than the voice
    tail *= np.sqrt(REVERBERATION_SHARE / np.sum(tail**2))
    tail[0] = 1.0
    return signal.oaconvolve(speech, tail.astype(np.float32))[: len(speech)].astype(np.float32, copy=False)


def _telephone(speech: Waveform) -> Waveform:
    """Through a narrow line: down to 8 kHz, 300-3400 Hz, and back."""
    narrow = soxr.resample(speech, SAMPLE_RATE, TELEPHONE_RATE, quality="HQ")
    band = signal.butter(4, TELEPHONE_BAND_HZ, btype="bandpass", fs=TELEPHONE_RATE, output="sos")
    wide = soxr.resample(signal.sosfilt(band, narrow).astype(np.float32), TELEPHONE_RATE, SAMPLE_RATE, quality="HQ")
    return wide[: len(speech)]


def _noise(kind: Noise, samples: int, rng: np.random.Generator) -> Waveform:
    """Background sound of root mean square 1, [samples] at 16 kHz."""
    if kind == "hum":
        time_s = np.arange(samples) / SAMPLE_RATE
        mains_hz = float(rng.choice((50.0, 60.0)))
        noise = sum(np.sin(2 * np.pi * (mains_hz * k * time_s + rng.random())) / k for k in range(1, 9))
        noise = noise + 0.05 * rng.standard_normal(samples)
    elif kind == "white":
        noise = rng.standard_normal(samples)
    else:
        noise = _pink(samples, rng)
        if (
            kind == "babble"
        ):  # several distant talkers: pink noise that swells about four times a second, like syllables do
            time_s = np.arange(samples) / SAMPLE_RATE
            swell = sum(np.sin(2 * np.pi * (rng.uniform(2.5, 5.5) * time_s + rng.random())) for _ in range(3))
            noise = noise * (1 + swell / 3)
    return (noise / _rms(noise)).astype(np.float32)


def _pink(samples: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Noise whose power falls as one over the frequency, flat below 100 Hz."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    hertz = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    return np.fft.irfft(spectrum / np.sqrt(np.maximum(hertz, 100.0)), samples)
