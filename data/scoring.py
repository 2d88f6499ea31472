"""Predictions -> partial-match F1, SLU-F1 and the rates that explain them. `docs/metric.md` is the metric card.

Counts add up: count each example once, then sum over a split, a label or a bootstrap resample, and turn the sum into a
`Score`. The paper does not publish its partial-match rule; this one is ours, and `METRIC_VERSION` names it.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields

from data.answers import Answer, parse_answer
from data.normalize import normalize_value
from data.records import Prediction
from data.slu_f1 import SluCounts, add_fields, count_slu

METRIC_VERSION = 2
"""Rises with any change that can change a score; scores of different versions are never compared."""

MIN_TOKEN_F1 = 0.5
"""Two values of which neither contains the other match from this token F1 on."""

Tokens = tuple[str, ...]
Pairs = Sequence[tuple[str, str]]
"""(label, value), in the order written."""
Matcher = Callable[[Tokens, Tokens], bool]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What the scores are made of, for one example or, added up, for many."""

    true_positives: int = 0  # partial matches
    exact_true_positives: int = 0
    predicted: int = 0  # slot values written
    references: int = 0  # slot values to find
    hallucinated: int = 0  # slot values written for a label without a reference value, unasked ones included
    unasked: int = 0  # slot values written for a label that was not asked for
    examples: int = 0
    truncated: int = 0  # answers that the token budget ended
    parse_failures: int = 0  # answers that ended by themselves and cannot be read
    repaired: int = 0  # answers that ended by themselves and could be read only after a repair
    obedient: int = 0  # answers that thought when asked to, or did not when not asked to
    output_tokens: int = 0
    slu: SluCounts = field(default_factory=SluCounts)

    def __add__(self, other: Counts) -> Counts:
        """Field by field."""
        return add_fields(self, other)


@dataclass(frozen=True, kw_only=True)
class Score:
    """The scores of a set of predictions: fractions from 0 to 1, not rounded, and the counts they come from."""

    partial_precision: float
    partial_recall: float
    partial_f1: float
    exact_f1: float
    slu_f1: float
    parse_failure_rate: float  # of examples; an answer is truncated or a parse failure, never both
    repair_rate: float  # of examples; a repaired answer is neither truncated nor a parse failure
    truncation_rate: float  # of examples
    hallucinated_slot_rate: float  # of predicted slot values
    mode_obedience: float  # of examples
    output_tokens: float  # mean per example, thinking included
    counts: Counts

    def metrics(self) -> dict[str, float]:
        """The scores by the names that the tracker and `results.csv` use, without the counts."""
        return {f.name: getattr(self, f.name) for f in fields(Score) if f.name != "counts"}


def values_match(predicted: Tokens, reference: Tokens) -> bool:
    """The partial-match rule on normalised tokens: one contains the other as a contiguous run, or token F1 >= 0.5."""
    short, long = sorted((predicted, reference), key=len)
    if not short:
        return False  # a blank value, which an answer cannot hold but a file of predictions can, is in no other
    if any(long[start : start + len(short)] == short for start in range(len(long) - len(short) + 1)):
        return True
    shared = (Counter(predicted) & Counter(reference)).total()
    return 2 * shared >= MIN_TOKEN_F1 * (len(predicted) + len(reference))


def assign_values(
    predicted: Sequence[Tokens], references: Sequence[Tokens], matches: Matcher, begin: Mapping[int, int] | None = None
) -> dict[int, int]:
    """A largest one-to-one assignment, reference index to predicted index (augmenting paths), grown from the assignment `begin`."""
    taken_by = dict(begin or {})

    def assign(row: int, tried: set[int]) -> bool:
        for column, reference in enumerate(references):
            if column in tried or not matches(predicted[row], reference):
                continue
            tried.add(column)
            if column not in taken_by or assign(taken_by[column], tried):
                taken_by[column] = row
                return True
        return False

    for row in sorted(set(range(len(predicted))) - set(taken_by.values())):
        assign(row, set())
    return taken_by


def group_values(pairs: Pairs) -> dict[str, list[str]]:
    """The values of each label, labels and values in the order written."""
    values: dict[str, list[str]] = {}
    for label, value in pairs:
        values.setdefault(label, []).append(value)
    return values


def count_values(
    references: Pairs, predicted: Pairs, *, asked: Collection[str] | None = None, fold_case: bool = True
) -> dict[str, Counts]:
    """The slot counts of one example per label that was asked for, is there to find or was written; the per-answer counts stay 0.

    `asked` None: every label may be written. SLU-F1 is the one score whose values are not normalised: both are compared in lower
    case, and `fold_case` False leaves the predicted ones as they are, as the official script does.
    """
    wanted_of, written_of = group_values(references), group_values(predicted)
    counts: dict[str, Counts] = {}
    for label in dict.fromkeys([*(asked or ()), *wanted_of, *written_of]):
        wanted, written = wanted_of.get(label, []), written_of.get(label, [])
        tokens, wanted_tokens = [normalize_value(v) for v in written], [normalize_value(v) for v in wanted]
        counts[label] = Counts(
            true_positives=len(assign_values(tokens, wanted_tokens, values_match)),
            exact_true_positives=len(assign_values(tokens, wanted_tokens, operator.eq)),
            predicted=len(written),
            references=len(wanted),
            hallucinated=0 if wanted else len(written),
            unasked=0 if asked is None or label in asked else len(written),
            slu=count_slu([v.lower() for v in wanted], [v.lower() for v in written] if fold_case else written),
        )
    return counts


def count_labels(prediction: Prediction, answer: Answer) -> dict[str, Counts]:
    """`count_values` of one answer; a truncated one fills nothing.

    Raises ValueError where the reference itself is faulty: a label that was not asked for, or a blank value.
    """
    asked = set(prediction.asked_labels)
    for label, value in prediction.reference:
        if label not in asked or not value.strip():
            fault = "has a blank value" if label in asked else "is not in asked_labels"
            raise ValueError(
                f"prediction of example {prediction.example_id!r}, field reference: label {label!r} {fault}; "
                "correct the slots of this example in the manifest, or generate the predictions again"
            )
    return count_values(
        prediction.reference, () if prediction.truncated else answer.slots, asked=prediction.asked_labels
    )


def count_answer(prediction: Prediction, answer: Answer) -> Counts:
    """The per-answer counts of one example; the slot counts stay 0."""
    return Counts(
        examples=1,
        truncated=int(prediction.truncated),
        parse_failures=int(answer.parse_failure and not prediction.truncated),
        repaired=int(answer.repaired and not prediction.truncated),
        obedient=int(answer.thought == (prediction.mode == "think")),
        output_tokens=prediction.output_tokens,
    )


def count_example(prediction: Prediction) -> Counts:
    """Everything that one example adds to the scores. Raises ValueError as `count_labels` does."""
    answer = parse_answer(prediction.output_text)
    return sum(count_labels(prediction, answer).values(), start=count_answer(prediction, answer))


def score_counts(counts: Counts) -> Score:
    """The scores of added-up counts. Nothing to find and nothing written is perfect: precision, recall and F1 are 1.

    Every other 0 / 0 is 0: a model that writes nothing has no precision to show. Raises ValueError without examples.
    """
    if counts.examples == 0:
        raise ValueError("no predictions to score: the split is empty, or its predictions file is; run the trial again")
    both = counts.predicted + counts.references

    def ratio(part: int, whole: int) -> float:
        if both == 0:
            return 1.0
        return part / whole if whole else 0.0

    return Score(
        partial_precision=ratio(counts.true_positives, counts.predicted),
        partial_recall=ratio(counts.true_positives, counts.references),
        partial_f1=ratio(2 * counts.true_positives, both),
        exact_f1=ratio(2 * counts.exact_true_positives, both),
        slu_f1=counts.slu.slu.f1,
        parse_failure_rate=counts.parse_failures / counts.examples,
        repair_rate=counts.repaired / counts.examples,
        truncation_rate=counts.truncated / counts.examples,
        hallucinated_slot_rate=counts.hallucinated / counts.predicted if counts.predicted else 0.0,
        mode_obedience=counts.obedient / counts.examples,
        output_tokens=counts.output_tokens / counts.examples,
        counts=counts,
    )


def score(predictions: Iterable[Prediction]) -> Score:
    """The micro-averaged scores of some predictions, in any order.

    Raises ValueError when there are none, and where a reference is faulty (see `count_labels`).
    """
    return score_counts(sum(map(count_example, predictions), start=Counts()))


def score_per_label(predictions: Iterable[Prediction]) -> dict[str, Score]:
    """The scores of each label that was asked for, by name, over the examples that asked for it or filled it unasked.

    Labels that models invent have no row of their own; `score` counts them. The true positives, predicted and
    reference values of the rows otherwise add up to those of `score`.
    """
    totals: dict[str, Counts] = {}
    asked: set[str] = set()
    for prediction in predictions:
        asked.update(prediction.asked_labels)
        answer = parse_answer(prediction.output_text)
        for label, counts in count_labels(prediction, answer).items():
            totals[label] = totals.get(label, Counts()) + counts + count_answer(prediction, answer)
    return {label: score_counts(totals[label]) for label in sorted(asked)}
