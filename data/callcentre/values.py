"""Slot values in three forms: a kind of value and a random generator become a `Value` (spoken, surface, canonical).

Kinds: `person`, `doctor`, `date`, `time`, `amount`, `count`, `phone`, `digits` (combined), `list` (in a domain file).
Of the combined kinds but `count` and `doctor`, one canonical value in five is test-only, by its hash: it never changes.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["person", "doctor", "date", "time", "amount", "count", "phone", "digits", "list"]
KINDS: tuple[Kind, ...] = get_args(Kind)

HELD_OUT_ONE_IN = 5
"""One canonical value in this many is test-only, for every kind whose values are combined rather than listed."""

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth "
    "fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
)
_MONTHS = "january february march april may june july august september october november december"
ONES = _ONES.split()
TENS = ["", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
ORDINALS = ["", *_ORDINALS.split()]
MONTHS = _MONTHS.split()
DAYS_IN_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
DAY_PARTS = (("morning", range(7, 12)), ("afternoon", range(12, 18)), ("evening", range(18, 21)))
MINUTES = (0, 15, 30, 45)
CENTS = (0, 10, 20, 25, 50, 75, 80, 99)
DIGIT_WORDS = {**{word: str(digit) for digit, word in enumerate(ONES[:10])}, "oh": "0"}


@dataclass(frozen=True)
class Value:
    """A value in its three forms, and whether training never sees it."""

    spoken: str
    surface: str
    canonical: str
    held_out: bool


def stable_hash(text: str) -> int:
    """A 64-bit number that is the same for the same text on every machine and in every run."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def is_hash_held_out(kind: Kind, canonical: str) -> bool:
    """Whether a combined value is test-only. All digit strings share one rule.

    Doctors need none: no training domain has any.
    """
    if kind in ("count", "doctor", "list"):
        return False
    family = "digits" if kind == "phone" else kind
    return stable_hash(f"{family}/{canonical}") % HELD_OUT_ONE_IN == 0


def number_words(number: int) -> str:
    """0 to 999 in words, without "and": 245 -> "two hundred forty five"."""
    if number >= 100:
        rest = f" {number_words(number % 100)}" if number % 100 else ""
        return f"{ONES[number // 100]} hundred{rest}"
    if number < 20:
        return ONES[number]
    return TENS[number // 10] + (f" {ONES[number % 10]}" if number % 10 else "")


def _value(kind: Kind, spoken: str, surface: str, canonical: str) -> Value:
    return Value(spoken, surface, canonical, is_hash_held_out(kind, canonical))


def date_value(month: int, day: int) -> Value:
    """Month 1-12, day of the month -> "march third", "March 3rd", "--03-03" (ISO 8601 without a year)."""
    ordinal = ORDINALS[day] if day <= 20 else "thirtieth" if day == 30 else f"{TENS[day // 10]} {ORDINALS[day % 10]}"
    suffix = "th" if 10 < day < 14 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    name = MONTHS[month - 1]
    return _value("date", f"{name} {ordinal}", f"{name.title()} {day}{suffix}", f"--{month:02d}-{day:02d}")


def time_value(hour: int, minute: int, part: str) -> Value:
    """Hour 0-23 -> "nine thirty in the morning", "9:30 AM", "09:30"."""
    spoken_hour = hour if hour <= 12 else hour - 12
    clock = number_words(spoken_hour) + (f" {number_words(minute)}" if minute else "")
    surface = f"{spoken_hour}:{minute:02d} {'AM' if hour < 12 else 'PM'}"
    return _value("time", f"{clock} in the {part}", surface, f"{hour:02d}:{minute:02d}")


def amount_value(dollars: int, cents: int) -> Value:
    """Dollars 2-999 and cents -> "forty five dollars and twenty cents", "$45.20", "45.20 USD"."""
    spoken = f"{number_words(dollars)} dollars" + (f" and {number_words(cents)} cents" if cents else "")
    surface = f"${dollars}.{cents:02d}" if cents else f"${dollars}"
    return _value("amount", spoken, surface, f"{dollars}.{cents:02d} USD")


def digits_value(kind: Kind, digits: str, zero: str) -> Value:
    """A digit string, said digit by digit; `zero` is how a 0 is said ("zero" or "oh")."""
    spoken = " ".join(zero if digit == "0" else ONES[int(digit)] for digit in digits)
    surface = f"{digits[:3]}-{digits[3:]}" if kind == "phone" else digits
    return _value(kind, spoken, surface, digits)


def person_value(first: str, last: str) -> Value:
    """ "anna", "smith" -> "anna smith", "Anna Smith", "Anna Smith"."""
    return _value("person", f"{first} {last}", f"{first} {last}".title(), f"{first} {last}".title())


def doctor_value(last: str) -> Value:
    """ "smith" -> "doctor smith", "Dr. Smith", "Dr Smith"."""
    return _value("doctor", f"doctor {last}", f"Dr. {last.title()}", f"Dr {last.title()}")


def list_value(spoken: str, proper: bool, held_out: bool) -> Value:
    """A listed value -> "gold plus", "Gold Plus" (a proper name) or "gold plus", "gold_plus"."""
    return Value(spoken, spoken.title() if proper else spoken, spoken.replace(" ", "_"), held_out)


def iter_dates() -> Iterator[Value]:
    """Every day of a leap year."""
    for month, days in enumerate(DAYS_IN_MONTH, start=1):
        for day in range(1, days + 1):
            yield date_value(month, day)


def iter_times() -> Iterator[Value]:
    """Every quarter of an hour from seven in the morning to a quarter to nine in the evening."""
    for part, hours in DAY_PARTS:
        for hour in hours:
            for minute in MINUTES:
                yield time_value(hour, minute, part)


def iter_amounts() -> Iterator[Value]:
    """Two to ninety nine dollars with cents, and the round amounts up to 950 dollars."""
    for dollars in range(2, 100):
        for cents in CENTS:
            yield amount_value(dollars, cents)
    for dollars in range(100, 1000, 50):
        yield amount_value(dollars, 0)


def draw_combined(kind: Kind, rng: random.Random, length: int, first: tuple[str, ...], last: tuple[str, ...]) -> Value:
    """One combined value, test-only or not as it falls. `length` counts digits; `first`, `last` are names."""
    if kind == "date":
        month = rng.randrange(12)
        return date_value(month + 1, 1 + rng.randrange(DAYS_IN_MONTH[month]))
    if kind == "time":
        part, hours = rng.choice(DAY_PARTS)
        return time_value(rng.choice(hours), rng.choice(MINUTES), part)
    if kind == "amount":
        if rng.random() < 0.25:
            return amount_value(rng.randrange(100, 1000, 50), 0)
        return amount_value(rng.randrange(2, 100), rng.choice(CENTS) if rng.random() < 0.4 else 0)
    if kind == "count":
        count = rng.randrange(2, 10)
        return _value("count", ONES[count], str(count), str(count))
    if kind in ("phone", "digits"):
        size = 7 if kind == "phone" else length
        digits = str(rng.randrange(2, 10)) + "".join(str(rng.randrange(10)) for _ in range(size - 1))
        return digits_value(kind, digits, rng.choice(("oh", "zero")))
    if kind == "person":
        return person_value(rng.choice(first), rng.choice(last))
    assert kind == "doctor", kind
    return doctor_value(rng.choice(last))
