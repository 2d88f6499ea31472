"""What is wrong with what a manifest row says: texts, lengths, values; beside its structure, which `data.manifest_rows` checks.

A finished corpus is opened without these checks: `slotgrid data validate` and the import make them once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from posixpath import splitext
from typing import Any

from data.audio_folder import AudioFolder
from data.findings import Finding
from data.json_lines import Location, shown
from data.manifest_rows import Labels, RowForm, check_row, slot_items
from data.normalize import normalize_value

MAX_ID = 200
"""Characters. Ids are names of files and keys of ledgers; file systems stop at 255 bytes."""
MAX_CHARACTERS_PER_SECOND = 40
"""Nobody speaks faster: an auctioneer says about 25."""
AUDIO_SUFFIXES = (
    ".wav",
    ".flac",
    ".ogg",
    ".oga",
    ".opus",
    ".mp3",
    ".aif",
    ".aiff",
    ".aifc",
    ".au",
    ".snd",
    ".caf",
    ".w64",
    ".rf64",
    ".sph",
    ".nist",
)
"""What libsndfile reads (http://libsndfile.github.io/libsndfile/formats.html), of what speech comes in."""

_SUSPECT = re.compile("[\x00-\x1f\x7f-\x9f\xad\u200b\u2060\ufeff\ufffd\ud800-\udfff]|Ã[\x80-\xbf]|â€")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_LINE_BREAK = re.compile("[\t\n\r]")
_INVISIBLE = re.compile("[\xad\u200b\u2060\ufeff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_WRONGLY_DECODED = re.compile("Ã[\x80-\xbf]|â€")
_MARKUP = re.compile(r"<[^<>]+>|\[[^\[\]]+\]|\{[^{}]+\}|&(?:\w+|#\d+);")


def check_whole_row(
    at: Location,
    row: Mapping[str, Any],
    form: RowForm,
    *,
    labels: Labels | None,
    audio: AudioFolder,
    plain: bool = False,
) -> list[Finding]:
    """Every defect of one row, of its structure and of its content. `plain`: all its texts are known to be printable ASCII."""
    found = list(check_row(at, row, form, labels=labels, audio=audio))
    sound = row
    if found:  # a field that is wrong already is not looked at again, and an end without its start says nothing
        broken = {re.split(r"[.\[]", finding.field or "", maxsplit=1)[0] for finding in found}
        broken |= {"end_s"} if "start_s" in broken else set()
        sound = {field: value for field, value in row.items() if field not in broken}
    if not plain:
        found += _check_texts(at, sound)
    found += _check_names(at, sound)
    found += _check_lengths(at, sound)
    found += _check_values(at, sound)
    return found


def _check_texts(at: Location, row: Mapping[str, Any]) -> Iterator[Finding]:
    for field in ("id", "domain", "audio", "transcript", "speaker", "dialogue"):
        if field in row:
            yield from _check_text(at, field, row[field])
    for label, value, field in slot_items(row.get("slots", [])):
        for text in (label, *(value.values() if isinstance(value, dict) else [value])):
            yield from _check_text(at, field, text)
    for place, turn in enumerate(row.get("context", [])):
        yield from _check_text(at, f"context[{place}].text", turn["text"])


def _check_names(at: Location, row: Mapping[str, Any]) -> Iterator[Finding]:
    """Id, name of the audio file, and what in the transcript is no word."""
    if markup := _MARKUP.search(row.get("transcript", "")):
        problem = f"holds {shown(markup.group())}, which nobody says"
        yield at.warning("transcript-markup", "transcript", problem, "write the words that are said and nothing else")
    if len(row.get("id", "")) > MAX_ID:
        yield at.error("id-too-long", "id", f"has {len(row['id'])} characters", f"use at most {MAX_ID}")
    if "audio" in row and splitext(row["audio"])[1].lower() not in AUDIO_SUFFIXES:
        problem = f"{shown(row['audio'])} is no kind of sound file that can be read"
        yield at.error("audio-suffix-unknown", "audio", problem, "convert it to WAV or FLAC")


def _check_text(at: Location, field: str, text: str) -> Iterator[Finding]:
    """Characters that speech does not have; they come from wrong decoding and copying."""
    if not _SUSPECT.search(text):
        return
    for pattern, kind, problem in (
        (_CONTROL, "text-control-character", "holds a control character"),
        (_SURROGATE, "text-lone-surrogate", "holds half of a surrogate pair, which is no character"),
        (re.compile("\ufffd"), "text-replacement-character", "holds U+FFFD: a character was lost when it was decoded"),
    ):
        if found := pattern.search(text):
            remedy = "export the text again as UTF-8"
            yield at.error(kind, field, f"{problem} ({found.group()!a}, character {found.start() + 1})", remedy)
    for pattern, kind, problem in (
        (_LINE_BREAK, "text-line-break", "holds a tab or a line break"),
        (_INVISIBLE, "text-invisible-character", "holds a character that cannot be seen"),
        (_WRONGLY_DECODED, "text-wrongly-decoded", "looks like UTF-8 that was read as Latin-1"),
    ):
        if found := pattern.search(text):
            remedy = (
                "write a space, or nothing" if pattern is not _WRONGLY_DECODED else "export the text again as UTF-8"
            )
            yield at.warning(kind, field, f"{problem} ({found.group()!a}, character {found.start() + 1})", remedy)


def _check_lengths(at: Location, row: Mapping[str, Any]) -> Iterator[Finding]:
    from data.audio import (
        MAX_UTTERANCE_S,
        MIN_UTTERANCE_S,
    )  # here, because it loads numpy and the readers are listed before

    lengths = {"duration_s": row["duration_s"]} if "duration_s" in row else {}
    if "end_s" in row:
        lengths["end_s"] = row["end_s"] - row.get("start_s", 0)
    for field, seconds in lengths.items():
        stem = "duration" if field == "duration_s" else "cut"
        if seconds > MAX_UTTERANCE_S:
            problem = f"makes the turn {seconds:g} s long, more than {MAX_UTTERANCE_S:g} s"
            yield at.error(f"{stem}-too-long", field, problem, "cut it into turns")
        elif seconds < MIN_UTTERANCE_S:
            problem = f"makes the turn {seconds:g} s long, less than {MIN_UTTERANCE_S:g} s"
            yield at.error(f"{stem}-too-short", field, problem, "correct the times, or remove the line")
    length, longest = len(row.get("transcript", "")), round(MAX_CHARACTERS_PER_SECOND * MAX_UTTERANCE_S)
    if length > longest:
        problem = f"has {length} characters, more than anyone says in {MAX_UTTERANCE_S:g} s ({longest})"
        yield at.error("transcript-too-long", "transcript", problem, "give the words of this turn only")
    elif length > (fits := MAX_CHARACTERS_PER_SECOND * max(1.0, *lengths.values(), MAX_UTTERANCE_S * (not lengths))):
        problem = f"has {length} characters, more than anyone says in this time ({fits:.0f})"
        yield at.warning(
            "transcript-too-fast", "transcript", problem, "check that transcript and audio belong together"
        )


def _check_values(at: Location, row: Mapping[str, Any]) -> Iterator[Finding]:
    """Every slot once, and its value among the words of the transcript in one of its forms."""
    seen: set[tuple[str, str]] = set()
    transcript = row.get("transcript", "")
    folded = transcript.casefold()
    for label, value, field in slot_items(row.get("slots", [])):
        forms = [value] if isinstance(value, str) else [value["canonical"], value["spoken"], value["surface"]]
        if (label, forms[0].casefold()) in seen:
            problem = f"gives {shown(label)} the value {shown(forms[0])} once more"
            yield at.warning("slot-twice", field, problem, "remove one, unless the value is said of two things")
        seen.add((label, forms[0].casefold()))
        if transcript and not any(form.casefold() in folded for form in forms) and not _is_said(forms, transcript):
            problem = f"{shown(forms[0])} is not in the transcript {shown(transcript)}"
            yield at.warning(
                "slot-value-not-in-transcript", field, problem, "give the words of the transcript, if they are there"
            )


def _is_said(forms: list[str], transcript: str) -> bool:
    """Whether the words of one of the forms follow one another in the transcript, normalised: "$5" is said in "five dollars"."""
    said = normalize_value(transcript)
    words = [normalize_value(form) for form in forms]
    return any(said[at : at + len(part)] == part for part in words for at in range(len(said) - len(part) + 1))
