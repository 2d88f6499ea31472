"""What is wrong between rows: the keys of all rows of a corpus -> `Finding`s, each for the row that has to go.

A row by itself may be sound and still spoil a corpus: an id given twice, or a recording or a sentence that is trained on and tested on.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from data.findings import Finding
from data.json_lines import Location, shown
from data.records import SPLITS, Split, Turn

_RANK = {split: rank for rank, split in enumerate(SPLITS)}
_APOSTROPHES = dict.fromkeys(map(ord, "’‘ʼ`´＇ʹ′"), "'")
_LOOSE_APOSTROPHE = re.compile(r"(?<!\w)'|'(?!\w)")
_ASCII_PUNCTUATION = re.compile(r"[^a-z0-9'$+<=>^|~]+")


class RowKey(NamedTuple):
    """What of a row is compared with other rows; `row_key` makes it. A few hundred bytes, so that a million rows fit in memory."""

    file: Path
    line: int | None
    id: str
    split: Split
    audio: bytes
    sentence: bytes
    dialogue: bytes | None  # None: not known


def row_key(
    *,
    file: Path,
    line: int | None,
    id: str,
    split: Split,
    audio: str,
    transcript: str,
    context: Iterable[Turn] = (),
    dialogue: str = "",
) -> RowKey:
    """The key of one row.

    `audio` is the same string for the same sound: its `audio_sha256`, or path, channel and cut where it was not decoded. Sentences are the
    same when they differ in case, punctuation, spaces or the form of apostrophes only, and so do the previous turns.
    """
    said = [plain_sentence(transcript)]
    for turn in context:
        said += (turn.speaker, plain_sentence(turn.text))
    sentence, known = _digest("\n".join(said)), _digest(dialogue) if dialogue else None
    return RowKey(file, line, id, split, _digest(audio), sentence, known)


def check_across(rows: Sequence[RowKey], *, allow_shared_sentences: bool = False) -> list[tuple[int, Finding]]:
    """Compare all rows; (place in `rows`, finding) in the order of `rows`.

    In error is an id that is given twice, and a recording, or a sentence after the same previous turns, in two splits. A warning are shared
    sentences with `allow_shared_sentences`, a recording twice in one split, and a dialogue in two. Of two rows that clash the one goes whose
    split comes earlier in `SPLITS`, so that the test splits stay whole and train gives way; in one split it is the later one. A row that is in
    error pushes out no other row.
    """
    findings: list[tuple[int, Finding]] = []
    ids: dict[str, RowKey] = {}
    sounds: dict[bytes, RowKey] = {}
    sentences: dict[bytes, RowKey] = {}
    dialogues: dict[bytes | None, RowKey] = {}
    for place in sorted(range(len(rows)), key=lambda place: (-_RANK[rows[place].split], place)):
        row = rows[place]
        found = []
        if kept := ids.get(row.id):
            found.append(_id_twice(row, kept))
        if kept := sounds.get(row.audio):
            found.append(_audio_twice(row, kept))
        if (kept := sentences.get(row.sentence)) and kept.split != row.split:
            found.append(_sentence_twice(row, kept, allow_shared_sentences))
        if (kept := dialogues.get(row.dialogue)) and kept.split != row.split:
            found.append(_dialogue_twice(row, kept))
        if errors := [finding for finding in found if finding.severity == "error"]:
            found = errors  # a warning is of a row that stays
        else:
            ids[row.id] = row
            sounds.setdefault(row.audio, row)
            sentences.setdefault(row.sentence, row)
            if row.dialogue:
                dialogues.setdefault(row.dialogue, row)
        findings += ((place, finding) for finding in found)
    return sorted(findings, key=lambda found: found[0])


@lru_cache(maxsize=1 << 16)  # the agent's questions come again and again
def plain_sentence(text: str) -> str:
    """A sentence without what does not sound: "Don’t  go!" -> "don't go"; one of nothing but punctuation stays as it is."""
    plain = unicodedata.normalize("NFKC", text).casefold().translate(_APOSTROPHES)
    if plain.isascii():
        plain = _ASCII_PUNCTUATION.sub(" ", plain)
    else:  # by category, for \w knows no combining marks, and without them Hindi words fall together
        plain = "".join(" " if c != "'" and unicodedata.category(c)[0] in "PZC" else c for c in plain)
    return " ".join(_LOOSE_APOSTROPHE.sub(" ", plain).split()) or text.strip()


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _place(row: RowKey, other: RowKey) -> str:
    """Where the other row stands, as a reader of this row's finding needs it."""
    line = f"line {other.line}" if other.line is not None else ""
    file = other.file.name if other.file != row.file or not line else ""
    return f"{file}, {line}" if file and line else file or line


def _clash(row: RowKey, other: RowKey) -> str:
    return f"{_place(row, other)} (id {shown(other.id)}, split {other.split})"


def _id_twice(row: RowKey, kept: RowKey) -> Finding:
    stands = f"stands {'on' if kept.line is not None else 'in'} {_place(row, kept)} too"
    with_it = ", with the same recording" if row.audio == kept.audio else ""
    return _at(row).error("id-duplicate", "id", f"{shown(row.id)} {stands}{with_it}", "give every example its own id")


def _audio_twice(row: RowKey, kept: RowKey) -> Finding:
    problem = f"is the recording of {_clash(row, kept)} too"
    if row.split == kept.split:
        return _at(row).warning("audio-twice", "audio", problem, "remove one of the two, unless that is meant")
    remedy = "keep a recording in one split"
    return _at(row).error("audio-in-two-splits", "audio", f"{problem}, and this row is in {row.split}", remedy)


def _sentence_twice(row: RowKey, kept: RowKey, allowed: bool) -> Finding:
    tell = _at(row).warning if allowed else _at(row).error
    problem = f"is the sentence of {_clash(row, kept)} after the same previous turns, and this row is in {row.split}"
    remedy = "keep a sentence in one split, or allow it with --allow-shared-sentences"
    return tell("sentence-in-two-splits", "transcript", problem, remedy)


def _dialogue_twice(row: RowKey, kept: RowKey) -> Finding:
    problem = f"has a turn on {_clash(row, kept)} too, and this row is in {row.split}"
    return _at(row).warning("dialogue-in-two-splits", "dialogue", problem, "keep a dialogue in one split")


def _at(row: RowKey) -> Location:
    return Location(row.file, row.line, row.id)
