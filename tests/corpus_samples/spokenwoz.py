"""A hand-made SpokenWOZ: dialogues of caller and agent with timed words, and two-channel 8 kHz recordings of them.

Each side sounds on its own channel, while its words last. In MUL0003 and SNG0006 the caller is on channel 1.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from corpus_samples.sound import babble

RATE = 8_000
WORD_MS = 240
PAUSE_MS = 500

# caller and agent take turns, the caller first; {domain-slot=value|words}: a span
DIALOGUES = {
    "train_dev": {
        "SNG0001": [
            "hello, i need a {restaurant-food=italian|italian} restaurant please",
            "sure, which part of town?",
            "in the {restaurant-area=centre|center}, and {restaurant-pricerange=cheap|not too expensive}.",
            "i have found two of them",
            "please book it for {restaurant-booktime=19:00|seven in the evening}",
            "it is booked",
        ],
        "SNG0002": [
            "can you find me a hotel in the {hotel-area=north|north}?",
            "do you need parking?",
            "yes i do, and it should have {hotel-stars=4|four stars}",
            "how long will you stay?",
            "{hotel-bookstay=3|three nights} from {hotel-bookday=friday|friday}",
            "all done",
        ],
        "MUL0003": [
            "i want to go to {train-destination=cambridge|cambridge} on {train-day=sunday|sunday}",
            "where do you leave from?",
            "from {train-departure=norwich|norwich}, after {train-leaveat=10:00|ten o'clock}",
            "there is one at ten thirty",
            "great, and i want a {restaurant-food=indian|indian} place to eat there",
            "what time?",
            "at {restaurant-booktime=13:00|one p m}",
            "okay",
        ],
        "SNG0004": [
            "i look for a {hotel-pricerange=cheap|cheap} guesthouse",
            "in which area?",
            "somewhere in the {hotel-area=south|south} would be nice",
            "i can offer you one",
            "thank you, goodbye",
            "bye",
        ],
        "SNG0005": [
            "any {restaurant-food=chinese|chinese} food in the {restaurant-area=west|west}?",
            "yes, there is one",
            "book a table on {restaurant-bookday=monday|monday} please",
            "for how many?",
            "for {restaurant-bookpeople=5|five people}",
            "done",
        ],
        "SNG0006": [
            "is there a hotel with {hotel-stars=2|two stars}?",
            "there are several",
            "take one in the {hotel-area=east|east}",
            "for how long?",
            "for {hotel-bookstay=2|two nights}",
            "booked",
        ],
        "MUL0007": [
            "a train to {train-destination=ely|ely} please",
            "which day?",
            "{train-day=monday|monday} morning",
            "okay",
            "and an {restaurant-pricerange=expensive|expensive} restaurant too",
            "fine",
            "for {restaurant-bookpeople=4|four people} on {restaurant-bookday=friday|friday}",
            "fine, good bye",
        ],
    },
    "test": {
        "SNG1001": [
            "hi, i would like {restaurant-food=thai|thai} food",
            "which area?",
            "the {restaurant-area=north|north} of town",
            "one moment",
            "on {restaurant-bookday=tuesday|tuesday} for {restaurant-bookpeople=2|two people}",
            "booked",
        ],
        "MUL1002": [
            "i need a {hotel-pricerange=moderate|moderately priced} hotel",
            "for how many nights?",
            "{hotel-bookstay=5|five nights} starting {hotel-bookday=sunday|sunday}",
            "okay",
            "i come by train from {train-departure=london|london}",
            "sure",
        ],
    },
}
VALIDATION = ("SNG0005", "SNG0006")
CALLER_ON_1 = ("MUL0003", "SNG0006")


def parse(marked: str) -> tuple[str, list[list[Any]]]:
    """A turn's text without its marks, and its span_info: [act, slot, value, first character, character after the last]."""
    text, spans, end = "", [], 0
    for found in re.finditer(r"\{(\w+)-(\w+)=([^|]*)\|([^}]*)\}", marked):
        text += marked[end : found.start()]
        domain, slot, value, words = found.groups()
        spans.append([f"{domain}-inform", slot, value, len(text), len(text) + len(words)])
        text, end = text + words, found.end()
    return text + marked[end:], spans


def build(name: str, turns: list[str]) -> dict[str, Any]:
    """A dialogue as `data.json` holds it."""
    log: list[dict[str, Any]] = []
    time = 400
    for number, marked in enumerate(turns):
        text, spans = parse(marked)
        caller = number % 2 == 0
        channel = int(caller == (name in CALLER_ON_1))
        words = []
        for index, word in enumerate(re.findall(r"[\w']+", text)):
            begin, time = time, time + WORD_MS
            words.append({"BeginTime": begin, "ChannelId": channel, "EndTime": time, "Word": word, "WordIndex": index})
        time += PAUSE_MS
        acts: dict[str, list[list[str]]] = {}
        for act, slot, value, _, _ in spans:
            acts.setdefault(act, []).append([slot, value])
        log.append(
            {
                "tag": "user" if caller else "system",
                "text": text,
                "metadata": {} if caller else {"hotel": {"book": {}, "semi": {}}},
                "dialog_act": acts or {"general-greeting": [["none", "none"]]},
                "span_info": spans,
                "words": words,
                "turn_id": number,
            }
        )
    return {"goal": {}, "log": log}


def record(dialogue: dict[str, Any], seed: int) -> np.ndarray:
    """float32 [samples, 2]: on each channel sound while its words last."""
    last = dialogue["log"][-1]["words"][-1]["EndTime"]
    sound = np.zeros((round(last * RATE / 1000) + RATE // 5, 2), np.float32)
    for number, turn in enumerate(dialogue["log"]):
        words = turn["words"]
        begin, end = words[0]["BeginTime"] * RATE // 1000, words[-1]["EndTime"] * RATE // 1000
        voice = babble(seed + number, seconds=(end - begin) / RATE, rate=RATE)
        sound[begin : begin + len(voice), words[0]["ChannelId"]] = voice
    return sound


def write(root: Path) -> None:
    """The corpus below `root`: a folder of texts and one of recordings for train and dev, and the same for test."""
    seed = 1000
    for part, dialogues in DIALOGUES.items():
        texts, recordings = root / f"text_5700_{part}", root / f"audio_5700_{part}"
        texts.mkdir(parents=True)
        recordings.mkdir()
        built = {name: build(name, turns) for name, turns in dialogues.items()}
        (texts / "data.json").write_text(json.dumps(built), encoding="utf-8")
        listed = VALIDATION if part == "train_dev" else tuple(dialogues)
        list_file = "valListFile.json" if part == "train_dev" else "testListFile.json"
        (texts / list_file).write_text("\n".join(listed) + "\n", encoding="utf-8")
        for name, dialogue in built.items():
            seed += 100
            soundfile.write(recordings / f"{name}.wav", record(dialogue, seed), RATE, subtype="PCM_16")
