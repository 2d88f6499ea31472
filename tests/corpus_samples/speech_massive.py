"""A small Speech-MASSIVE: two locales, shards as the datasets library writes them, 44.1 kHz wav inside. The sentences are ours."""

import hashlib
import io
import re
from pathlib import Path
from typing import Any

import pyarrow
import soundfile
from pyarrow import parquet

from corpus_samples.sound import babble

SENTENCES: dict[str, list[tuple[str, str]]] = {
    "de-DE/train-00000-of-00001.parquet": [
        ("alarm", "weck mich um [time : fünf uhr]"),
        ("alarm", "stell einen wecker für [date : freitag] [time : sechs uhr]"),
        ("audio", "stille für [time : zwei stunden]"),
        ("weather", "regnet es [date : morgen] in [place_name : berlin]"),
        ("weather", "wie wird das wetter in [place_name : köln]"),
        ("music", "spiele [song_name : atemlos] von [artist_name : helene fischer]"),
        ("music", "welches lied läuft gerade"),
    ],
    "fr-FR/train-00000-of-00001.parquet": [
        ("iot", "allume [device_type : la prise]"),
        ("alarm", "réveille-moi à [time : sept heures]"),
        ("weather", "va-t-il pleuvoir à [place_name : paris] [date : demain]"),
        ("calendar", "ajoute [person : anna] [person : luc] au rendez-vous"),
        ("datetime", "quelle heure est-il à [place_name : l'aéroport]"),
    ],
    "de-DE/validation-00000-of-00001.parquet": [
        ("alarm", "wecker um [time : neun uhr] bitte"),
        ("weather", "scheint [date : heute] die sonne in [place_name : bonn]"),
        ("music", "mach [artist_name : nena] an"),
    ],
    "fr-FR/test-00000-of-00001.parquet": [
        ("alarm", "alarme à [time : six heures]"),
        ("iot", "éteins [device_type : la lampe]"),
        ("weather", "il fait beau à [place_name : lyon]"),
    ],
}
PARTITIONS = {"train": "train", "validation": "dev", "test": "test"}


def write(root: Path) -> None:
    """<locale>/<split>-00000-of-00001.parquet, in row groups of three."""
    number = 1000
    for name, sentences in SENTENCES.items():
        rows = []
        for scenario, annotated in sentences:
            number += 1
            rows.append(row(number, name, scenario, annotated))
        write_shard(root / name, rows)


def write_shard(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=3)


def row(number: int, name: str, scenario: str, annotated: str) -> dict[str, Any]:
    locale, file = name.split("/")
    split = file.split("-")[0]
    found = re.findall(r"\[(\w+) : ([^]]+)\]|(\S+)", annotated)
    tagged = [(token, label or "Other") for label, words, word in found for token in (words or word).split()]
    stream = io.BytesIO()
    soundfile.write(stream, babble(number, 0.8 + number % 7 / 10, 44_100), 44_100, format="WAV", subtype="PCM_16")
    recording = hashlib.md5(str(number).encode()).hexdigest() + ".wav"
    return {
        "id": str(number),
        "locale": locale,
        "partition": PARTITIONS[split],
        "scenario": 0,
        "scenario_str": scenario,
        "intent_idx": 0,
        "intent_str": f"{scenario}_query",
        "utt": " ".join(token for token, _ in tagged),
        "annot_utt": annotated,
        "worker_id": "8",
        "tokens": [token for token, _ in tagged],
        "labels": [label for _, label in tagged],
        "audio": {"bytes": stream.getvalue(), "path": recording},
        "path": f"{split}/{recording}",
        "is_transcript_reported": False,
        "is_validated": True,
        "speaker_id": f"5f32d5f107d49607c3f6cf{number % 4}",
        "speaker_sex": "Female",
        "speaker_age": "40",
    }
