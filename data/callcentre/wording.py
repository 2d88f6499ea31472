"""A template and its values become the words of a turn, with fillers and self-repairs, and a reason for each value."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from data.callcentre.grammar import MACRO, SLOT, LabelSpec, Shared
from data.callcentre.values import Value

REPAIR_SHARE = 0.18
FILLER_SHARE = 0.3
OPENING_SHARE = 0.15
CLOSING_SHARE = 0.12
LONGEST_REPAIRED = 3
"""Words. People correct a short value as a whole; saying a long number twice would make the turn too long."""
CUE_WORDS = 2


@dataclass(frozen=True)
class Piece:
    """A stretch of a turn: template words, a value, a value taken back, an extra (filler, greeting, repair marker)."""

    role: Literal["text", "value", "taken_back", "extra"]
    words: str
    label: str = ""
    because: str = ""


def spoken_text(pieces: Sequence[Piece]) -> str:
    """The transcript of some pieces."""
    return " ".join(piece.words for piece in pieces)


def core_text(pieces: Sequence[Piece]) -> str:
    """What a turn says once fillers, greetings and values taken back are left out."""
    return spoken_text([piece for piece in pieces if piece.role in ("text", "value")])


def expand_macros(template: str, rng: random.Random, shared: Shared) -> str:
    """A template with every `<macro>` replaced by one of its wordings."""
    return MACRO.sub(lambda match: rng.choice(shared.macros[match[1]]), template)


def fill_template(
    template: str, values: Mapping[str, Value], labels: Mapping[str, LabelSpec], asked: str | None = None
) -> list[Piece]:
    """A template without macros -> its pieces. The reason for the label `asked` is that the agent asked for it."""
    parts = [part.strip() for part in SLOT.split(template)]  # text, slot, text, slot, ..., text
    pieces = []
    for index, part in enumerate(parts):
        if index % 2:
            noun = labels[part].noun
            because = (
                f"agent asked for the {noun}"
                if part == asked
                else f"{_article(noun)} {noun} said {_cue(parts[index - 1], parts[index + 1])}"
            )
            pieces.append(Piece("value", values[part].spoken, part, because))
        elif part:
            pieces.append(Piece("text", part))
    return pieces


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeio" else "a"


def _cue(before: str, after: str) -> str:
    """The words beside a value that show what it is: those before it, or else those after it."""
    if before:
        return f'after "{" ".join(before.split()[-CUE_WORDS:])}"'
    return f'before "{" ".join(after.split()[:CUE_WORDS])}"' if after else "alone"


def can_be_repaired(value: Value) -> bool:
    """Whether a value is short enough to be said twice."""
    return len(value.spoken.split()) <= LONGEST_REPAIRED


def add_repair(pieces: list[Piece], at: int, wrong: Value, rng: random.Random, shared: Shared) -> list[Piece]:
    """Say `wrong` before the value at `pieces[at]` and take it back: "march third no sorry march fifth"."""
    right = pieces[at]
    said = [
        Piece("taken_back", wrong.spoken, right.label),
        Piece("extra", rng.choice(shared.phrases["repairs"])),
        replace(right, because=f"caller corrects {wrong.spoken} to {right.words}"),
    ]
    return pieces[:at] + said + pieces[at + 1 :]


def add_extras(pieces: list[Piece], rng: random.Random, shared: Shared) -> list[Piece]:
    """Sometimes a filler before a value or at the start, an opening, a closing."""
    if rng.random() < FILLER_SHARE:
        places = [0, *(index for index, piece in enumerate(pieces) if piece.role in ("value", "taken_back"))]
        at = rng.choice(places)
        pieces = [*pieces[:at], Piece("extra", rng.choice(shared.phrases["fillers"])), *pieces[at:]]
    if rng.random() < OPENING_SHARE:
        pieces = [Piece("extra", rng.choice(shared.phrases["openings"])), *pieces]
    if rng.random() < CLOSING_SHARE:
        pieces = [*pieces, Piece("extra", rng.choice(shared.phrases["closings"]))]
    return pieces
