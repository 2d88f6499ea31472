"""A small corpus as a lab writes it by hand: short rows, a two-channel call that is cut into turns, a few rows with previous turns."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from corpus_samples.sound import babble

TURNS = {
    "train": [
        ("i want to fly to denver on monday", {"city": "denver", "day": "monday"}),
        ("book a flight to oslo", {"city": "oslo"}),
        ("two seats to rome please", {"city": "rome", "seats": "two"}),
        ("from paris to boston", {"city": ["paris", "boston"]}),
        ("is there anything on friday", {"day": "friday"}),
        ("good morning", {}),
        ("three of us are going to lima", {"seats": "three", "city": "lima"}),
        ("change it to tuesday", {"day": "tuesday"}),
    ],
    "validation": [
        ("a flight to madrid on sunday", {"city": "madrid", "day": "sunday"}),
        ("four seats please", {"seats": "four"}),
        ("to cairo", {"city": "cairo"}),
    ],
    "test": [
        ("i'm going to tokyo on thursday", {"city": "tokyo", "day": "thursday"}),
        ("one seat to delhi", {"seats": "one", "city": "delhi"}),
        ("no it is saturday", {"day": "saturday"}),
    ],
}
CALL = [
    ("can i still go to vienna", [{"label": "city", "value": "vienna"}], "how can i help you"),
    ("on wednesday", [{"label": "day", "value": "wednesday"}], "when do you want to travel"),
    ("five", [{"label": "seats", "spoken": "five", "surface": "5", "canonical": "5"}], "how many seats"),
]
"""Turns of the caller, the second channel of one recording, each after a question of the agent."""


def write(root: Path) -> None:
    """manifest.jsonl (8 + 3 train, 3 validation, 3 test rows) and audio/: WAV, FLAC and OGG at several rates. No ontology, no ids."""
    (root / "audio").mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for split, turns in TURNS.items():
        for number, (transcript, slots) in enumerate(turns):
            audio = f"audio/{split}-{number}.{('wav', 'flac', 'ogg')[number % 3]}"
            rate = (8_000, 16_000, 44_100)[number % 3]
            soundfile.write(root / audio, babble(len(rows), 0.9 + number / 10, rate), rate)
            rows.append({"audio": audio, "transcript": transcript, "slots": slots, "split": split})
    rows[7]["context"] = [{"speaker": "agent", "text": "which day"}, {"speaker": "caller", "text": "monday"}]
    rows[-1]["context"] = [{"speaker": "agent", "text": "on friday then"}]
    rows += call_rows(root)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (root / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def call_rows(root: Path) -> list[dict[str, Any]]:
    """The caller's turns of a call, agent left and caller right, two seconds for each pair."""
    channels = [babble(100, 2.0 * len(CALL), 8_000), babble(101, 2.0 * len(CALL), 8_000)]
    soundfile.write(root / "audio/call.wav", np.stack(channels, axis=1), 8_000)
    context: list[dict[str, str]] = []
    rows = []
    for number, (transcript, slots, question) in enumerate(CALL):
        context = [*context, {"speaker": "agent", "text": question}]
        row = {"audio": "audio/call.wav", "channel": 1, "start_s": 2.0 * number + 1, "end_s": 2.0 * number + 2}
        rows.append({**row, "transcript": transcript, "slots": slots, "context": context, "split": "train"})
        rows[-1] |= {"dialogue": "call", "speaker": "caller-7"}
        context = [*context, {"speaker": "caller", "text": transcript}]
    return rows
