"""Reference and predicted values per label -> SLU-F1, the score of the SLURP data set: right label, and how far off the value is.

Every predicted value that finds a reference value of its label is a true positive, and its distance to it, once in words
and once in characters, is added to the false positives and to the false negatives; both confusion sums are added up.
Source: Bastianelli et al. 2020, "SLURP: A Spoken Language Understanding Resource Package", and the official script
(https://github.com/pswietojanski/slurp, scripts/evaluation). Where the paper is silent, this does what the script does.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cache
from typing import Any, TypeVar

Distance = Callable[[str, str], Fraction]
"""(reference, predicted) -> 0 for equal values."""
Row = TypeVar("Row")


def add_fields(one: Row, other: Row) -> Row:
    """The sum of two dataclass objects of one kind, field by field."""
    kind: Any = type(one)
    names, values_of = _fields_of(kind)
    return kind(**dict(zip(names, map(operator.add, values_of(one), values_of(other)), strict=True)))


@cache
def _fields_of(kind: type[Any]) -> tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]:
    names = tuple(field.name for field in fields(kind))  # looked up once: a split of 100,000 examples is a million sums
    return names, operator.attrgetter(*names)


@dataclass(frozen=True, kw_only=True)
class PrecisionRecallF1:
    """Three fractions from 0 to 1."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, kw_only=True)
class SluCounts:
    """What SLU-F1 is made of, for one label of one example or, added up, for many. Fractions, so that the order of adding changes nothing."""

    matches: int = 0  # predicted values that found a reference value of their label
    predicted: int = 0
    references: int = 0
    word_distance: Fraction = Fraction(0)  # summed over the matches
    char_distance: Fraction = Fraction(0)

    def __add__(self, other: SluCounts) -> SluCounts:
        """Field by field."""
        return add_fields(self, other)

    @property
    def word(self) -> PrecisionRecallF1:
        """Word-F1: the distance is the word error rate."""
        return self._score(1, self.word_distance)

    @property
    def char(self) -> PrecisionRecallF1:
        """Char-F1: the distance is the edit distance in characters by the length of the longer value."""
        return self._score(1, self.char_distance)

    @property
    def slu(self) -> PrecisionRecallF1:
        """SLU-F1: the sum of both confusion sums."""
        return self._score(2, self.word_distance + self.char_distance)

    def _score(self, sums: int, distance: Fraction) -> PrecisionRecallF1:
        """Of `sums` confusion sums together. Nothing to find and nothing written is perfect, every other 0 / 0 is 0."""
        if self.predicted + self.references == 0:
            return PrecisionRecallF1(precision=1.0, recall=1.0, f1=1.0)
        true_positives = sums * self.matches
        predicted = sums * self.predicted + distance  # TP + FP, FP = what found no reference + distance
        references = sums * self.references + distance  # TP + FN
        return PrecisionRecallF1(
            precision=float(true_positives / predicted) if predicted else 0.0,
            recall=float(true_positives / references) if references else 0.0,
            f1=float(2 * true_positives / (predicted + references)),
        )


def word_distance(reference: str, predicted: str) -> Fraction:
    """The word error rate: edits by words of the reference; above 1 where many words are too many. The reference has a word."""
    from rapidfuzz.distance import Levenshtein  # here, so that declaring a grid does not pay for it

    words = reference.split()
    return Fraction(Levenshtein.distance(words, predicted.split()), len(words))


def char_distance(reference: str, predicted: str) -> Fraction:
    """Edits by characters of the longer value, from 0 to 1. The reference has a character."""
    from rapidfuzz.distance import Levenshtein

    return Fraction(Levenshtein.distance(reference, predicted), max(len(reference), len(predicted)))


def count_slu(references: Sequence[str], predicted: Sequence[str]) -> SluCounts:
    """The counts of one label of one example. `references` hold a word each; values are compared as they are, letter case included."""
    return SluCounts(
        matches=min(len(references), len(predicted)),
        predicted=len(predicted),
        references=len(references),
        word_distance=_distance_of_matches(references, predicted, word_distance),
        char_distance=_distance_of_matches(references, predicted, char_distance),
    )


def _distance_of_matches(references: Sequence[str], predicted: Sequence[str], distance: Distance) -> Fraction:
    """As the official script: each predicted value, in the order written, takes the nearest reference value that is left, the first of equals.

    So the order of several values of one label can matter, and words and characters may pair differently.
    """
    left = list(references)
    total = Fraction(0)
    for value in predicted:
        if not left:
            break
        distances = [distance(reference, value) for reference in left]
        nearest = min(distances)
        left.pop(distances.index(nearest))
        total += nearest
    return total
