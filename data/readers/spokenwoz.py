"""SpokenWOZ: `text_5700_{train_dev,test}/data.json` and two-channel dialogue recordings -> one row per turn of the caller.

`data.json` is one object of dialogues; a dialogue's `log` lists its turns, each with `tag` (user or system), `text`, `dialog_act`, `span_info`
and the recogniser's timed `words`.

- Sound: the channel that the words name, from the first word to the last, with `MARGIN_S` on both sides: less where a neighbouring turn is
  nearer, and none after the last turn.
- Slots: what `span_info` marks in this turn, not the dialogue state: [act, slot, value, start, end]. start and end count characters of `text`
  and end is exclusive (the corpus's README; MultiWOZ 2.1 counts tokens here). A span that cuts a word is a finding, never taken for tokens.
  The label is "<domain>-<slot>" with the act's domain, in lower case: "hotel-area" of ["Hotel-Inform", "area", ...]. The canonical form is
  the value. Spans without a value ("?", "none") ask for something and fill no slot.
- Domain: that of the first span's act, else of the first act in `dialog_act`, else the previous turn's.

The file is read dialogue by dialogue, so that what stands before a fault in the JSON is kept. `valListFile.json` (not JSON: an id a line)
names the dialogues of the validation split.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.audio_folder import AudioFolder
from data.findings import Finding
from data.json_lines import CorpusError, Location
from data.readers.source import AudioSource, Reader, SourceRow, Unusable
from data.readers.texts import cuts_word
from data.records import SlotValue, Split, Turn

MARGIN_S = 0.2  # the recogniser's times cut off the first and the last sound
CONTEXT_TURNS = 6
"""How many previous turns a row keeps; supervision takes up to 3 of them."""
LONGEST_MS = 1e9
NO_VALUE = ("", "?", "none")
GENERAL = "general"
"""The domain of greetings and thanks, and of turns before any other domain is named."""
DESCRIPTIONS = {
    **{f"{domain}-pricerange": f"how expensive the {domain} may be" for domain in ("hotel", "restaurant")},
    **{f"{domain}-leaveat": f"when the {domain} leaves" for domain in ("bus", "taxi", "train")},
    **{f"{domain}-arriveby": f"when the {domain} arrives" for domain in ("bus", "taxi", "train")},
    "hotel-stay": "how many nights the caller stays at the hotel",
    "hotel-stars": "how many stars the hotel has",
    "profile-name": "the caller's name",
    "profile-email": "the caller's e-mail address",
    "profile-phonenumber": "the caller's telephone number",
    "profile-idnumber": "the number of the caller's identity card",
    "profile-platenumber": "the number plate of the caller's car",
}
"""Of the labels whose names do not say it."""

_BLANK = re.compile(r"\s*")
_DIALOGUE_ID = re.compile(r"[\w.-]+")
_NOT_UTF8 = re.compile("[\ud800-\udfff]")  # bytes that errors="surrogateescape" kept, and escapes like "\\ud800"


def read(root: Path) -> Iterator[SourceRow | Finding]:
    """The rows of train and validation, then test. CorpusError when `text_5700_train_dev` lacks its dialogues or its validation list."""
    for name in ("data.json", "valListFile.json"):
        needed = root / "text_5700_train_dev" / name
        if not needed.is_file():
            raise CorpusError(f"{needed}: is missing; give the folder that holds text_5700_train_dev of SpokenWOZ")
    return _iter_rows(root)


def _iter_rows(root: Path) -> Iterator[SourceRow | Finding]:
    audio = AudioFolder(root, links=True)
    listed = (root / "text_5700_train_dev" / "valListFile.json").read_text(encoding="utf-8", errors="replace")
    validation = frozenset(listed.split())
    for part in ("train_dev", "test"):
        path = root / f"text_5700_{part}" / "data.json"
        if not path.is_file():
            problem, remedy = "does not exist: there is no test split", "unpack text_5700_test there"
            yield Location(path).warning("split-missing", None, problem, remedy)
            continue
        for item in _iter_dialogues(path):
            if isinstance(item, Finding):
                yield item
                continue
            name, dialogue = item
            split: Split = "test" if part == "test" else "validation" if name in validation else "train"
            yield from _iter_turns(path, name, dialogue, split, audio, f"audio_5700_{part}/{name}.wav")


def _iter_dialogues(path: Path) -> Iterator[tuple[str, Any] | Finding]:
    """(id, dialogue) of every member of the one object in a file; at a fault in the JSON a Finding, and the end."""
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    decoder = json.JSONDecoder()

    def skip(place: int, expected: str) -> int:
        """The place after blanks and one of the expected characters."""
        place = _blank_end(text, place)
        if place >= len(text) or text[place] not in expected:
            raise json.JSONDecodeError(f"Expecting {' or '.join(expected)}", text, place)
        return place + 1

    try:
        place = skip(0, "{")
        if text[_blank_end(text, place) : _blank_end(text, place) + 1] == "}":
            return
        while text[place - 1] != "}":
            skip(place, '"')
            name, place = decoder.raw_decode(text, _blank_end(text, place))
            dialogue, place = decoder.raw_decode(text, _blank_end(text, skip(place, ":")))
            yield name, dialogue
            place = skip(place, ",}")
    except (ValueError, RecursionError) as error:  # ValueError: a fault, or a number of thousands of digits
        line = error.lineno if isinstance(error, json.JSONDecodeError) else None
        where = (
            f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else "too deep or too long"
        )
        problem, remedy = f"is not valid JSON from here on ({where})", "unpack the file again"
        yield Location(path, line).error("json-broken", None, problem, remedy)


def _blank_end(text: str, place: int) -> int:
    found = _BLANK.match(text, place)
    return found.end() if found else place


def _iter_turns(
    path: Path, name: str, dialogue: Any, split: Split, audio: AudioFolder, place: str
) -> Iterator[SourceRow | Finding]:
    """The rows of one dialogue, and the findings of its turns; one finding where it cannot be read or its recording is missing."""
    log = dialogue.get("log") if isinstance(dialogue, dict) else None
    if not isinstance(log, list) or not _DIALOGUE_ID.fullmatch(name):
        problem, remedy = "is not a dialogue: an id, and an object that lists a log", "restore the authors' file"
        yield Location(path).error("dialogue-broken", name[:80], problem, remedy)
        return
    if found := audio.problem(place):
        remedy = "unpack the recordings again, or remove the dialogue"
        yield Location(path).error("audio-missing", name, f"its recording {place!r} {found.problem}", remedy)
        return
    turns: list[dict[str, Any]] = [turn if isinstance(turn, dict) else {} for turn in log]
    context: list[Turn] = []
    domain = GENERAL
    for number, turn in enumerate(turns):
        domain = _read_domain(turn) or domain
        try:
            said = _read_said(turn)
            previous = tuple(context[-CONTEXT_TURNS:])
            context.append(said)
            if said.speaker == "caller":
                yield SourceRow(
                    file=path,
                    line=None,
                    id=f"{name}-{number}",
                    split=split,
                    dialogue=name,
                    domain=domain,
                    transcript=said.text,
                    slots=_read_slots(turn),
                    audio=_cut(turns, number, place),
                    context=previous,
                )
        except Unusable as defect:
            yield defect.finding(Location(path, None, f"{name}-{number}"), f"{name}.log[{number}]")


def _read_said(turn: dict[str, Any]) -> Turn:
    """Who says what in a turn."""
    tag, text = turn.get("tag"), turn.get("text")
    if tag not in ("user", "system"):
        raise Unusable("tag-unknown", ".tag", f"is {tag!r}, not 'user' or 'system'")
    if not isinstance(text, str) or not text.strip():
        raise Unusable("transcript-missing", ".text", f"is {text!r}, not the words of the turn")
    if _NOT_UTF8.search(text):
        raise Unusable("not-utf-8", ".text", "is not UTF-8", "save the file as UTF-8")
    return Turn(speaker="caller" if tag == "user" else "agent", text=text.strip())


def _read_domain(turn: dict[str, Any]) -> str | None:
    """The domain of the first span's act, else of the first act; None where they name none but "general"."""
    spans, acts = turn.get("span_info"), turn.get("dialog_act")
    names = [span[0] for span in spans if isinstance(span, list) and span] if isinstance(spans, list) else []
    for act in (*names, *(acts if isinstance(acts, dict) else ())):
        readable = isinstance(act, str) and not _NOT_UTF8.search(act)
        if readable and (domain := _act_domain(act)) != GENERAL:
            return domain
    return None


def _act_domain(act: str) -> str:
    """ "Hotel-Inform" -> "hotel"; acts without a domain ("ack") belong to "general"."""
    domain, dash, _ = act.partition("-")
    return domain.strip().lower() if dash and domain.strip() else GENERAL


def _read_slots(turn: dict[str, Any]) -> tuple[SlotValue, ...]:
    """The slots that the spans of a turn fill, in the order of its text; a span that two acts name counts once."""
    text, spans = turn["text"], turn.get("span_info") or []
    if not isinstance(spans, list):
        raise Unusable("spans-broken", ".span_info", f"is {str(spans)[:100]!r}, not a list")
    slots: dict[tuple[int, int, str], SlotValue] = {}
    for place, span in enumerate(spans):
        field = f".span_info[{place}]"
        if not isinstance(span, list) or len(span) < 3 or not all(isinstance(part, str) for part in span[:3]):
            raise Unusable("span-broken", field, f"is {str(span)[:100]!r}, not [act, slot, value, start, end]")
        if _NOT_UTF8.search("".join(span[:3])):
            raise Unusable("not-utf-8", field, "is not UTF-8", "save the file as UTF-8")
        act, slot, value = (part.strip() for part in span[:3])
        if value.lower() in NO_VALUE or slot.lower() in NO_VALUE:
            continue
        if len(span) != 5 or [type(number) for number in span[3:]] != [int, int]:
            raise Unusable("span-broken", field, f"is {str(span)[:100]!r}, not [act, slot, value, start, end]")
        start, end = span[3:]
        remedy = "give the first character in text, from 0, and the one after the last"
        if not 0 <= start < end <= len(text):
            problem = f"{start} to {end} lies outside the {len(text)} characters of text"
            raise Unusable("span-out-of-range", field, problem, remedy)
        if cuts_word(text, start, end):
            problem = f"{start} to {end} cuts a word of text: {text[start:end]!r} for {value!r}"
            raise Unusable("span-cuts-word", field, problem, remedy)
        label, spoken = f"{_act_domain(act)}-{slot.lower()}", text[start:end].strip()
        slots[start, end, label] = SlotValue(label=label, spoken=spoken, surface=spoken, canonical=value)
    return tuple(slot for _, slot in sorted(slots.items()))


def _cut(turns: list[dict[str, Any]], number: int, place: str) -> AudioSource:
    """The caller's channel from the first word of the turn to the last, with the margin that the neighbouring turns leave."""
    begin, end = _read_times(turns[number])
    channels = [word.get("ChannelId") for word in turns[number]["words"]]
    channel = channels[0]
    if type(channel) is not int or channel < 0 or any(other != channel for other in channels):
        raise Unusable(
            "channel-unclear", ".words", "name no channel, or several", "give every word of the turn one ChannelId"
        )
    before = _neighbour_times(turns, number - 1)
    after = _neighbour_times(turns, number + 1)
    start_s = max(0.0, begin - MARGIN_S, min(begin, before[1]) if before else 0.0)
    end_s = min(end + MARGIN_S, max(end, after[0])) if after else end  # the recording may end with its last turn
    return AudioSource(path=place, channel=channel, start_s=round(start_s, 3), end_s=round(end_s, 3))


def _neighbour_times(turns: list[dict[str, Any]], number: int) -> tuple[float, float] | None:
    """The times of a turn, None where there is none or they cannot be read: that is the other turn's defect."""
    try:
        return _read_times(turns[number]) if 0 <= number < len(turns) else None
    except Unusable:
        return None


def _read_times(turn: dict[str, Any]) -> tuple[float, float]:
    """When the first word of a turn begins and the last one ends, in seconds."""
    words = turn.get("words")
    if not isinstance(words, list) or not words or not all(isinstance(word, dict) for word in words):
        raise Unusable(
            "words-missing", ".words", "is empty, or not a list of timed words", "remove the turn, or time it"
        )
    times = words[0].get("BeginTime"), words[-1].get("EndTime")
    if not all(type(time) in (int, float) and abs(time) < LONGEST_MS for time in times):  # NaN is not
        problem = f"give BeginTime {times[0]!r} and EndTime {times[1]!r}"
        raise Unusable("times-missing", ".words", problem, "give the milliseconds of the first and the last word")
    if not 0 <= times[0] < times[1]:
        problem = f"run from {times[0]} ms to {times[1]} ms"
        raise Unusable("times-reversed", ".words", problem, "correct BeginTime and EndTime")
    return times[0] / 1000, times[1] / 1000


READER = Reader(name="spokenwoz", title="SpokenWOZ", licence="CC BY-NC 4.0", read=read, descriptions=DESCRIPTIONS)
