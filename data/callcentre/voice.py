"""Turns a transcript into speech with the synthetic voice of `hibari-tts` (optional: `pip install "slotgrid[tiny]"`).

One voice lies inside the package; its others are downloaded when asked for by name (`hibari:emma`) and never otherwise.
"""

from __future__ import annotations

import importlib.util
import re
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from hibari import Hibari

Waveform = npt.NDArray[np.float32]

VOICE_RATE = 24_000
EDGE_S = 0.1  # silence kept before and after the speech
SILENCE = 0.01  # of the loudest window; below it nothing is being said
WINDOW_S = 0.01


class Voice:
    """A loaded voice. Build it with `load_voice`, once per process."""

    def __init__(self, engine: Hibari) -> None:
        self._engine = engine

    def say(self, transcript: str, *, speed: float, seed: int) -> Waveform:
        """Speak a transcript (lower case, no punctuation): float32 [samples] at `VOICE_RATE`, 0.1 s of silence around.

        The same arguments give the same samples on the same kind of CPU. Raises ValueError when nothing can be said.
        """
        # The voice reads a lone "i" as a letter's name, swallows an "uh" without a pause, and falls only at a full stop.
        text = re.sub(r"\b(uh|um)\b", r"\1,", re.sub(r"\bi\b", "I", transcript)) + "."
        speech = trim_silence(self._engine(text, speed=speed, seed=seed), VOICE_RATE)
        if len(speech) == 0:
            raise ValueError(f"transcript {transcript!r}: the voice has nothing to say; write at least one word")
        return speech


def check_voice(name: str) -> None:
    """Raise ValueError with the remedy when a voice cannot be used here. Loads and downloads nothing."""
    package, _, variant = name.partition(":")
    if package != "hibari":
        raise ValueError(f"voice {name!r} is unknown; use 'hibari', or 'hibari:<name>' for one that is downloaded")
    for module, distribution in (("hibari", "hibari-tts"), ("scipy", "scipy")):
        if importlib.util.find_spec(module) is None:
            raise ValueError(
                f"voice {name!r} needs {distribution}, which is not installed; run: pip install {distribution}"
            )
    if variant:
        from hibari.voices import VOICES

        if variant not in VOICES:
            raise ValueError(f"voice {name!r} is unknown; hibari has: {', '.join(VOICES)}")


@lru_cache(maxsize=2)
def load_voice(name: str) -> Voice:
    """The voice of this process, one thread. ValueError when it is unknown, not installed or cannot be downloaded."""
    check_voice(name)
    from hibari import Hibari
    from hibari.voices import DEFAULT

    try:
        return Voice(Hibari(voice=name.partition(":")[2] or DEFAULT, threads=1))
    except RuntimeError as error:  # the download failed; the message holds the address and the file to copy by hand
        raise ValueError(f"voice {name!r}: {error}") from error


def trim_silence(speech: Waveform, rate: int) -> Waveform:
    """Cut or fill the silence at both ends to `EDGE_S`: [samples] -> [samples], empty when there is no sound at all."""
    window = int(WINDOW_S * rate)
    whole = speech[: len(speech) // window * window].reshape(-1, window)
    loudness = np.sqrt(np.mean(np.square(whole), axis=1)) if len(whole) else np.zeros(0)
    loud = np.flatnonzero(loudness > SILENCE * loudness.max(initial=0.0))
    if len(loud) == 0:
        return np.zeros(0, np.float32)
    edge = int(EDGE_S * rate)
    first, last = int(loud[0]) * window, (int(loud[-1]) + 1) * window
    kept = speech[max(0, first - edge) : last + edge]
    before, after = max(0, edge - first), max(0, last + edge - len(speech))
    return np.pad(kept, (before, after))
