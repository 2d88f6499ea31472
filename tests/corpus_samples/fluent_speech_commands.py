"""A small Fluent Speech Commands: two speakers, the official files, which share their sentences, and 16 kHz wav."""

import csv
import uuid
from pathlib import Path

import soundfile

from corpus_samples.sound import babble

COMMANDS: list[tuple[str, str, str, str]] = [
    ("Turn on the lights", "activate", "lights", "none"),
    ("Turn the lights off", "deactivate", "lights", "none"),
    ("Switch on the kitchen lights", "activate", "lights", "kitchen"),
    ("Hey, it's dark in here, turn on the washroom lights", "activate", "lights", "washroom"),
    ("Decrease the heating in the bathroom", "decrease", "heat", "washroom"),
    ("Turn the heat up", "increase", "heat", "none"),
    ("Increase the temperature in the kitchen", "increase", "heat", "kitchen"),
    ("Lower the volume", "decrease", "volume", "none"),
    ("Play the music", "activate", "music", "none"),
    ("Bring me the newspaper", "bring", "newspaper", "none"),
    ("Fetch my socks", "bring", "socks", "none"),
    ("Set the language to Chinese", "change language", "Chinese", "none"),
    ("Switch off the lamp", "deactivate", "lamp", "none"),
    ("Bedroom heat down", "decrease", "heat", "bedroom"),  # from here: what `draw_split` puts in validation ...
    ("Get me the juice", "bring", "juice", "none"),
    ("Turn the bathroom lights on", "activate", "lights", "washroom"),
    ("Make it louder", "increase", "volume", "none"),  # ... and in test
    ("Bring me some juice", "bring", "juice", "none"),
    ("Pause the music", "deactivate", "music", "none"),
    ("Change the language", "change language", "none", "none"),
]
COLUMNS = ("", "path", "speakerId", "transcription", "action", "object", "location")
SPEAKERS = {"train": "2BqVo8kVB2Skwgyb", "valid": "5o9BvRGEGvhaeBwA", "test": "4BrX8aDqK2cLZRYl"}


def write(root: Path) -> None:
    """data/{train,valid,test}_data.csv and wavs/speakers/<speaker>/<uuid>.wav. The official test repeats sentences of train."""
    parts = {"train": COMMANDS, "valid": COMMANDS[13:15], "test": [COMMANDS[0], COMMANDS[16]]}
    (root / "data").mkdir(parents=True)
    seed = 0
    for part, commands in parts.items():
        folder = Path("wavs/speakers", SPEAKERS[part])
        (root / folder).mkdir(parents=True)
        with (root / f"data/{part}_data.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(COLUMNS)
            for number, command in enumerate(commands):
                seed += 1
                path = folder / f"{uuid.uuid5(uuid.NAMESPACE_OID, str(seed))}.wav"
                soundfile.write(root / path, babble(seed, 0.8 + seed % 7 / 10), 16_000, subtype="PCM_16")
                writer.writerow((number, path.as_posix(), SPEAKERS[part], *command))
