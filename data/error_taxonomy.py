"""Reference and predicted values of one example -> what became of each: right, or exactly one kind of error.

Every reference value is in one outcome, and so is every predicted value: a pair of the two where they belong together,
else alone. So the outcomes add up to the reference values, and to the predicted ones.
"""

from __future__ import annotations

import operator
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from data.normalize import normalize_value
from data.scoring import Pairs, assign_values, group_values, values_match

Unread = Literal["parse_failure", "truncation"]
"""Why nothing was read of an answer: it holds no readable object, or the token budget ended it."""

OutcomeKind = Literal[
    "correct",  # a reference and a predicted value of its label, equal once normalised
    "partial",  # the same, but only a partial match
    "wrong_label",  # a reference value, written under another label (equal once normalised)
    "wrong_value",  # a reference value whose label was filled with something else
    "missed",  # a reference value alone
    "hallucinated",  # a predicted value alone
    "parse_failure",  # a reference value, of an answer that ended by itself and cannot be read
    "truncation",  # a reference value, of an answer that the token budget ended
]
OUTCOMES: tuple[OutcomeKind, ...] = get_args(OutcomeKind)
ERRORS: tuple[OutcomeKind, ...] = tuple(kind for kind in OUTCOMES if kind not in ("correct", "partial"))

Value = tuple[str, str]  # (label, value)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a reference value, of a predicted value, or of the two together."""

    kind: OutcomeKind
    reference: Value | None
    predicted: Value | None


def classify_values(references: Pairs, predicted: Pairs, *, unread: Unread | None = None) -> list[Outcome]:
    """The outcomes of one example, by label; the order of the values given changes nothing.

    First values of one label are assigned as the partial-match score does, equal ones first. Of what is left, equal values
    under different labels make a wrong label; then values left under one label make a wrong value. An answer that was not
    read, or was not given (`predicted` is empty), has written nothing.
    """
    if unread:
        return [Outcome(kind=unread, reference=value, predicted=None) for value in _sorted(references)]
    outcomes: list[Outcome] = []
    missing: list[Value] = []
    surplus: list[Value] = []
    wanted_of, written_of = group_values(references), group_values(predicted)
    for label in sorted({*wanted_of, *written_of}):
        wanted = _sorted((label, value) for value in wanted_of.get(label, ()))
        written = _sorted((label, value) for value in written_of.get(label, ()))
        pairs = _assign(written, wanted)
        for column, row in sorted(pairs.items()):
            equal = _tokens(wanted[column]) == _tokens(written[row])
            kind: OutcomeKind = "correct" if equal else "partial"
            outcomes.append(Outcome(kind=kind, reference=wanted[column], predicted=written[row]))
        missing += [value for column, value in enumerate(wanted) if column not in pairs]
        surplus += [value for row, value in enumerate(written) if row not in set(pairs.values())]
    outcomes += _pair_off("wrong_label", missing, surplus, by=_tokens)
    outcomes += _pair_off("wrong_value", missing, surplus, by=operator.itemgetter(0))
    outcomes += [Outcome(kind="missed", reference=value, predicted=None) for value in missing]
    return outcomes + [Outcome(kind="hallucinated", reference=None, predicted=value) for value in surplus]


def count_outcomes(outcomes: Iterable[Outcome]) -> dict[OutcomeKind, int]:
    """How many there are of every kind, zeros included."""
    counts = Counter(outcome.kind for outcome in outcomes)
    return {kind: counts[kind] for kind in OUTCOMES}


def _assign(written: Sequence[Value], wanted: Sequence[Value]) -> dict[int, int]:
    """A largest assignment by the partial-match rule, grown from the equal pairs: reference index to predicted index."""
    rows, columns = [_tokens(value) for value in written], [_tokens(value) for value in wanted]
    return assign_values(rows, columns, values_match, begin=assign_values(rows, columns, operator.eq))


def _pair_off(
    kind: OutcomeKind, missing: list[Value], surplus: list[Value], *, by: Callable[[Value], object]
) -> list[Outcome]:
    """Pair missing with surplus values that have the same `by`, each once, and take the pairs out of both lists."""
    there: dict[object, list[Value]] = defaultdict(list)
    for value in surplus:
        there[by(value)].append(value)
    outcomes = []
    for value in list(missing):
        if same := there[by(value)]:
            found = same.pop(0)
            outcomes.append(Outcome(kind=kind, reference=value, predicted=found))
            missing.remove(value)
            surplus.remove(found)
    return outcomes


def _sorted(values: Iterable[Value]) -> list[Value]:
    return sorted(values, key=lambda value: (value[0], _tokens(value), value[1]))


def _tokens(value: Value) -> tuple[str, ...]:
    return normalize_value(value[1])
