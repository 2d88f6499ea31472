"""A small SLURP: the layout, the fields and the tokens (contractions cut in two) of the authors' files; the sentences are ours."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import soundfile

from corpus_samples.sound import babble

SENTENCES: dict[str, list[tuple[str, str, str]]] = {
    "train": [
        ("alarm", "set", "wake me up at [time : eight] o'clock"),
        ("alarm", "set", "set an alarm for [date : friday] at [time : six am]"),
        ("alarm", "remove", "cancel the alarm at [time : nine thirty]"),
        ("calendar", "set", "put lunch with [person : maria] on [date : tuesday]"),
        ("calendar", "query", "what's on my calendar for [date : tomorrow]"),
        ("calendar", "remove", "delete [event_name : the dentist] from [date : monday]"),
        ("weather", "query", "will it rain in [place_name : denver] [date : this week]"),
        ("weather", "query", "how's the [weather_descriptor : snow] in [place_name : oslo]"),
        ("music", "play", "play [song_name : yesterday] by [artist_name : the beatles]"),
        ("music", "query", "who is singing now"),
        ("takeaway", "query", "is my order at [business_name : domino's] ready"),
        ("qa", "currency", "what is one [currency_name : dollar] in [currency_name : yen]"),
    ],
    "devel": [
        ("alarm", "set", "wake me at [time : seven] on [date : sunday]"),
        ("weather", "query", "is it sunny in [place_name : rome]"),
        ("music", "play", "put on [artist_name : adele]"),
    ],
    "test": [
        ("alarm", "set", "alarm at [time : ten pm] please"),
        ("calendar", "set", "meeting with [person : pawel] [date : tomorrow]"),
        ("weather", "query", "tell me the weather in [place_name : paris]"),
        ("takeaway", "order", "order a [food_type : pizza] from [business_name : domino's]"),
    ],
    "train_synthetic": [("alarm", "set", "an alarm for [time : noon] on [date : saturday] please")],
}
CLOSE_TALK_TOO = 2  # every so many sentences are recorded by a headset as well


def write(root: Path) -> None:
    """dataset/slurp/*.jsonl and metadata.json, audio/slurp_real/ and audio/slurp_synth/."""
    texts, metadata, number = root / "dataset/slurp", {}, 100
    texts.mkdir(parents=True)
    for name, sentences in SENTENCES.items():
        audio = root / "audio" / ("slurp_synth" if name == "train_synthetic" else "slurp_real")
        audio.mkdir(parents=True, exist_ok=True)
        with (texts / f"{name}.jsonl").open("w", encoding="utf-8") as stream:
            for scenario, action, annotation in sentences:
                number += 1
                files = [f"audio-14{number}.flac"]
                if number % CLOSE_TALK_TOO == 0:
                    files.append(f"audio-14{number}-headset.flac")
                for seed, file in enumerate(files, start=10 * number):
                    soundfile.write(audio / file, babble(seed, 0.8 + number % 7 / 10), 16_000, format="FLAC")
                stream.write(json.dumps(row(number, scenario, action, annotation, files)) + "\n")
                user = {"usrid": f"FO-{number % 5}", "status": "correct"}
                metadata[str(number)] = {"nlub_id": number, "recordings": dict.fromkeys(files, user)}
    (texts / "metadata.json").write_text(json.dumps(metadata))


def row(number: int, scenario: str, action: str, annotation: str, files: list[str]) -> dict[str, Any]:
    tokens, entities = [], []
    for label, words in pieces(annotation):
        surfaces = [part for word in words.split() for part in re.fullmatch(r"(.+?)('s)?", word).groups() if part]
        if label:
            entities.append({"span": list(range(len(tokens), len(tokens) + len(surfaces))), "type": label})
        tokens += surfaces
    return {
        "slurp_id": number,
        "sentence": " ".join(words for _, words in pieces(annotation)),
        "sentence_annotation": annotation,
        "intent": f"{scenario}_{action}",
        "action": action,
        "tokens": [{"surface": s, "id": i, "lemma": s, "pos": "NN"} for i, s in enumerate(tokens)],
        "scenario": scenario,
        "recordings": [{"file": file, "wer": 0.0, "ent_wer": 0.0, "status": "correct"} for file in files],
        "entities": entities,
    }


def pieces(annotation: str) -> Iterator[tuple[str, str]]:
    """(label, words) of the bracketed parts and ("", word) of the rest."""
    for label, words, word in re.findall(r"\[(\w+) : ([^]]+)\]|(\S+)", annotation):
        yield label, words or word
