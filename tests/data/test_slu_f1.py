"""SLU-F1: the worked examples of the metric card, an implementation of its own from the definition, and the properties of the score."""

import json
import random
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.scoring import count_values
from data.slu_f1 import SluCounts, count_slu

STEADY = settings(derandomize=True, deadline=None)

CARD = Path(__file__).parents[2] / "docs" / "metric.md"


def read_card_rows():
    """The rows of the SLU-F1 table of the metric card, as dicts by column, backticks removed."""
    section = CARD.read_text(encoding="utf-8").split("## Worked examples: SLU-F1\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


ROWS = read_card_rows()


def count_row(row, **options):
    references, predicted = ([tuple(pair) for pair in json.loads(row[side])] for side in ("Reference", "Predicted"))
    return sum((counts.slu for counts in count_values(references, predicted, **options).values()), start=SluCounts())


def assert_row(row, counts):
    assert counts.matches == int(row["Matches"])
    assert (counts.word_distance, counts.char_distance) == (Fraction(row["D(word)"]), Fraction(row["D(char)"]))
    expected = [float(Fraction(row[name])) for name in ("Word-F1", "Char-F1", "SLU-F1")]
    assert [counts.word.f1, counts.char.f1, counts.slu.f1] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("row", ROWS[:-1], ids=lambda row: row["#"])
def test_examples_of_the_metric_card(row):
    assert_row(row, count_row(row))


def test_sum_of_the_metric_card():
    assert_row(ROWS[-1], sum(map(count_row, ROWS[:-1]), start=SluCounts()))


def test_slurps_letter_case_is_the_official_scripts():
    # Only the reference is put in lower case: one word of one, one character of four.
    counts = count_row({"Reference": '[["person", "Anna"]]', "Predicted": '[["person", "Anna"]]'}, fold_case=False)
    assert (counts.word_distance, counts.char_distance) == (1, Fraction(1, 4))


def levenshtein(one, other):
    """Edits between two sequences, by the textbook table."""
    previous = list(range(len(other) + 1))
    for i, left in enumerate(one, start=1):
        current = [i]
        for j, right in enumerate(other, start=1):
            current.append(min(previous[j] + 1, current[j - 1] + 1, previous[j - 1] + (left != right)))
        previous = current
    return previous[-1]


def confusion_of(examples, distance):
    """(TP, FP, FN) from the definition: a matched label is a true positive, its distance is a false positive and a false negative."""
    true_positives = false_positives = false_negatives = 0.0
    for references, predicted in examples:
        left = list(references)
        for label, value in predicted:
            same = [
                (distance(reference, value), place) for place, (name, reference) in enumerate(left) if name == label
            ]
            if not same:
                false_positives += 1
                continue
            nearest, place = min(same)
            true_positives += 1
            false_positives += nearest
            false_negatives += nearest
            del left[place]
        false_negatives += len(left)
    return true_positives, false_positives, false_negatives


def f1_of(true_positives, false_positives, false_negatives):
    precision = true_positives / (true_positives + false_positives) if true_positives else 0.0
    recall = true_positives / (true_positives + false_negatives) if true_positives else 0.0
    return precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def word_error_rate(reference, value):
    return levenshtein(reference.split(), value.split()) / len(reference.split())


def char_error_rate(reference, value):
    return levenshtein(reference, value) / max(len(reference), len(value))


WORDS = ("anna", "ana", "smith", "ten", "am", "pm", "seven", "hundred", "red", "hat", "o'clock", "é")


def draw_values(rnd):
    return [(rnd.choice("abc"), " ".join(rnd.choices(WORDS, k=rnd.randint(1, 4)))) for _ in range(rnd.randint(0, 5))]


@pytest.mark.parametrize("seed", range(30))
def test_agrees_with_an_implementation_of_its_own(seed):
    rnd = random.Random(seed)
    examples = []
    for _ in range(rnd.randint(1, 40)):
        references = draw_values(rnd)
        examples.append(
            (references, rnd.sample(references, len(references)) if rnd.random() < 0.3 else draw_values(rnd))
        )
    counts = sum(
        (c.slu for references, predicted in examples for c in count_values(references, predicted).values()),
        start=SluCounts(),
    )
    word, char = confusion_of(examples, word_error_rate), confusion_of(examples, char_error_rate)
    both = [a + b for a, b in zip(word, char, strict=True)]
    for found, expected in ((counts.word, word), (counts.char, char), (counts.slu, both)):
        assert (found.precision, found.recall, found.f1) == pytest.approx(f1_of(*expected), abs=1e-9)


VALUE = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join)
VALUES = st.lists(VALUE, max_size=4)


@STEADY
@given(VALUES, VALUES)
def test_is_bounded_and_f1_lies_between_precision_and_recall(references, predicted):
    counts = count_slu(references, predicted)
    for found in (counts.word, counts.char, counts.slu):
        assert 0 <= min(found.precision, found.recall) <= found.f1 + 1e-12
        assert found.f1 <= max(found.precision, found.recall) + 1e-12 <= 1 + 1e-12
    assert min(counts.word.f1, counts.char.f1) <= counts.slu.f1 <= max(counts.word.f1, counts.char.f1)


@STEADY
@given(st.lists(VALUE, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_a_perfect_prediction_scores_one_in_any_order(references, rnd):
    assert count_slu(references, rnd.sample(references, len(references))).slu.f1 == 1


@STEADY
@given(st.lists(st.tuples(VALUES, VALUES), max_size=5), st.randoms(use_true_random=False))
def test_order_of_adding_changes_nothing(examples, rnd):
    counts = [count_slu(*example) for example in examples]
    assert sum(rnd.sample(counts, len(counts)), start=SluCounts()) == sum(counts, start=SluCounts())


@STEADY
@given(VALUES, VALUES, VALUE)
def test_a_value_too_many_never_raises_precision(references, predicted, value):
    predicted = [*predicted, *["x"] * len(references)]  # every reference value is taken already
    before, after = count_slu(references, predicted), count_slu(references, [*predicted, value])
    assert after.slu.precision <= before.slu.precision
