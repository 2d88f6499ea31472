"""Sound for hand-made corpora: harmonics with the loudness of syllables, seeded; nobody speaks in it, but an encoder hears it."""

import numpy as np


def babble(seed: int, seconds: float = 1.2, rate: int = 16_000) -> np.ndarray:
    """float32 [samples] at `rate`, peak 0.5. Another seed is another sound."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    pitch = rng.uniform(90, 240) * (1 + 0.05 * np.sin(2 * np.pi * rng.uniform(0.5, 2) * time))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    voice = sum(rng.uniform(0.1, 1) * np.sin(harmonic * phase) for harmonic in range(1, 6))
    syllables = 0.1 + np.clip(np.sin(2 * np.pi * rng.uniform(3, 5) * time + rng.uniform(0, 6)), 0, None)
    sound = voice * syllables
    return (0.5 * sound / np.abs(sound).max()).astype(np.float32)
