"""The values that training text must never say, and a finder: text in spoken form -> the held-out values said in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from data.callcentre.grammar import load_domains, load_shared
from data.callcentre.values import (
    DIGIT_WORDS,
    Value,
    doctor_value,
    is_hash_held_out,
    iter_amounts,
    iter_dates,
    iter_times,
    person_value,
)

SHORTEST_NUMBER = 4
"""Digits. Shorter runs of digit words are counts or parts of times, not numbers."""


@dataclass(frozen=True)
class HeldOutValues:
    """What training never says. `known`: the spoken form of every listable value -> held out? Digits go by hash."""

    known: Mapping[str, bool]
    longest: int  # words in the longest known value

    def phrases(self) -> tuple[str, ...]:
        """The spoken forms of all listable held-out values, sorted (digit strings are too many to list: see `find`)."""
        return tuple(sorted(phrase for phrase, held_out in self.known.items() if held_out))

    def find(self, text: str) -> tuple[str, ...]:
        """The held-out values said in a text in spoken form (lower case, no punctuation), in order.

        At each word the longest value that starts there counts: "forty five dollars and ten cents" does not hold
        "forty five dollars".
        """
        words, found, at = text.split(), [], 0
        while at < len(words):
            size, held_out = self._longest_at(words, at)
            if held_out:
                found.append(" ".join(words[at : at + size]))
            at += max(size, 1)
        return tuple(found)

    def _longest_at(self, words: list[str], at: int) -> tuple[int, bool]:
        """How many words the longest value at a position has (0: none starts there), and whether it is held out."""
        end = at
        while end < len(words) and words[end] in DIGIT_WORDS:
            end += 1
        if end - at >= SHORTEST_NUMBER:
            return end - at, is_hash_held_out("digits", "".join(DIGIT_WORDS[word] for word in words[at:end]))
        for size in range(min(self.longest, len(words) - at), 0, -1):
            held_out = self.known.get(" ".join(words[at : at + size]))
            if held_out is not None:
                return size, held_out
        return 0, False


def _combined_values() -> list[Value]:
    """Every listable value of the combinatorial kinds that training uses."""
    shared = load_shared()
    people = [person_value(first, last) for first in shared.first_names for last in shared.last_names]
    return [*iter_dates(), *iter_times(), *iter_amounts(), *people]


@cache
def held_out_values() -> HeldOutValues:
    """The values that only the test splits use: marked or hashed ones, and those that only the held-out domain has."""
    known = {value.spoken: value.held_out for value in _combined_values()}
    known |= {doctor_value(name).spoken: True for name in load_shared().last_names}
    for domain in sorted(
        load_domains(), key=lambda domain: not domain.held_out
    ):  # held-out first: trained domains overrule
        for label in domain.labels.values():
            known |= {spoken: domain.held_out for spoken in label.values}
            known |= {spoken: True for spoken in label.held_out_values}
    return HeldOutValues(known=known, longest=max(len(spoken.split()) for spoken in known))
