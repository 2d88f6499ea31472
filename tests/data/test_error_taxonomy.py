"""What becomes of values: the worked examples of the metric card, and that every value has exactly one outcome."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.answers import parse_answer
from data.error_taxonomy import ERRORS, OUTCOMES, classify_values, count_outcomes
from data.scoring import Counts, count_values

STEADY = settings(derandomize=True, deadline=None)

CARD = Path(__file__).parents[2] / "docs" / "metric.md"


def read_card_rows():
    """The rows of the table of outcomes in the metric card, as dicts by column, backticks removed."""
    section = CARD.read_text(encoding="utf-8").split("## Worked examples: outcomes\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


@pytest.mark.parametrize("row", read_card_rows(), ids=lambda row: row["#"])
def test_examples_of_the_metric_card(row):
    answer = parse_answer(row["The model wrote"])
    unread = "truncation" if row["Ended by"] == "budget" else "parse_failure" if answer.parse_failure else None
    references = parse_answer(row["Reference"]).slots
    found = count_outcomes(classify_values(references, () if unread else answer.slots, unread=unread))
    shown = dict(part.split() for part in row["Outcomes"].split(", "))
    assert {kind: count for kind, count in found.items() if count} == {kind: int(n) for kind, n in shown.items()}


def test_an_outcome_says_which_values_it_is_about():
    (outcome,) = classify_values([("from", "Paris")], [("to", "paris")])
    assert (outcome.kind, outcome.reference, outcome.predicted) == ("wrong_label", ("from", "Paris"), ("to", "paris"))


def test_a_missing_answer_has_missed_everything():
    assert count_outcomes(classify_values([("a", "x"), ("b", "y")], []))["missed"] == 2


WORDS = st.sampled_from(["anna", "smith", "three", "3", "red", "shoes", "uh"])
VALUE = st.lists(WORDS, min_size=1, max_size=3).map(" ".join)
PAIRS = st.lists(st.tuples(st.sampled_from("abc"), VALUE), max_size=6)


@STEADY
@given(PAIRS, PAIRS, st.sampled_from([None, None, "parse_failure", "truncation"]))
def test_every_value_has_exactly_one_outcome(references, predicted, unread):
    predicted = [] if unread else predicted
    outcomes = classify_values(references, predicted, unread=unread)
    assert Counter(o.reference for o in outcomes if o.reference) == Counter(references)
    assert Counter(o.predicted for o in outcomes if o.predicted) == Counter(predicted)
    assert all(o.reference or o.predicted for o in outcomes)
    found = count_outcomes(outcomes)
    assert tuple(found) == OUTCOMES and sum(found.values()) == len(outcomes)
    counts = sum(count_values(references, predicted).values(), start=Counts())
    assert found["correct"] + found["partial"] == counts.true_positives
    assert found["correct"] <= counts.exact_true_positives
    errors = sum(found[kind] for kind in ERRORS)
    assert (errors == 0) == (counts.true_positives == counts.references == counts.predicted)


@STEADY
@given(PAIRS, PAIRS, st.randoms(use_true_random=False))
def test_order_changes_nothing(references, predicted, rnd):
    shuffled = classify_values(rnd.sample(references, len(references)), rnd.sample(predicted, len(predicted)))
    assert shuffled == classify_values(references, predicted)


@STEADY
@given(PAIRS)
def test_a_perfect_answer_has_no_errors(references):
    found = count_outcomes(classify_values(references, references))
    assert found["correct"] == len(references) == sum(found.values()), json.dumps(references)
