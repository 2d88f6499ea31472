"""The metric: the worked examples of its card, the properties a score must have, and what it costs to import."""

import json
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.normalize import build_normalizer, normalize_value
from data.records import Prediction
from data.scoring import METRIC_VERSION, assign_values, score, score_per_label, values_match
from data.slu_f1 import SluCounts

STEADY = settings(derandomize=True, deadline=None)  # the same examples on every machine, however busy it is

CARD = Path(__file__).parents[2] / "docs" / "metric.md"


def build_prediction(reference, output, *, asked=(), truncated=False, mode="direct", output_tokens=10):
    """`reference` and a dict `output` map labels to a value or a list of values."""
    pairs = [(k, v) for k, values in reference.items() for v in ([values] if isinstance(values, str) else values)]
    return Prediction(
        example_id="x1",
        split="test",
        mode=mode,
        asked_labels=tuple(asked or reference),
        reference=tuple(pairs),
        output_text=output if isinstance(output, str) else json.dumps(output),
        output_tokens=output_tokens,
        truncated=truncated,
    )


def read_table(heading):
    """The rows of the table under a heading of the metric card, as dicts by column, backticks removed."""
    section = CARD.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


VALUES = read_table("Worked examples: values")
ANSWERS = read_table("Worked examples: answers")


@pytest.mark.parametrize("row", VALUES, ids=lambda row: row["Predicted"])
def test_values_of_the_metric_card(row):
    predicted, reference = normalize_value(row["Predicted"]), normalize_value(row["Reference"])
    shared = len(predicted) - len([t for t in predicted if t not in reference])  # no token is repeated in the card
    assert Fraction(2 * shared, len(predicted) + len(reference)) == Fraction(row["Token F1"])
    assert values_match(predicted, reference) == values_match(reference, predicted) == (row["Partial"] == "yes")
    assert (predicted == reference) == (row["Exact"] == "yes")


def prediction_of(row):
    return build_prediction(
        json.loads(row["Reference"]),
        row["The model wrote"],
        asked=row["Asked"].split(", "),
        truncated=row["Ended by"] == "budget",
        mode="think" if row["The model wrote"].startswith("<thinking>") else "direct",
    )


def assert_row(row, found):
    shown = [float(Fraction(row[name])) for name in ("Precision", "Recall", "F1", "Exact F1", "Hallucinated")]
    assert [
        found.partial_precision,
        found.partial_recall,
        found.partial_f1,
        found.exact_f1,
        found.hallucinated_slot_rate,
    ] == pytest.approx(shown, abs=1e-12)


@pytest.mark.parametrize("row", ANSWERS[:-1], ids=lambda row: row["#"])
def test_answers_of_the_metric_card(row):
    assert_row(row, score([prediction_of(row)]))


def test_sum_of_the_metric_card():
    found = score(map(prediction_of, ANSWERS[:-1]))
    assert_row(ANSWERS[-1], found)
    assert found.parse_failure_rate == found.truncation_rate == 1 / 13
    assert found.mode_obedience == 1
    assert found.counts.unasked == 1


def test_assignment_finds_the_largest_matching():
    # "anna smith" fits both references and "anna" only the first: a greedy assignment would lose a pair.
    predicted = [("anna", "smith"), ("anna",)]
    assert assign_values(predicted, [("anna", "jones"), ("smith",)], values_match) == {0: 1, 1: 0}
    # Begun with the equal pair, it still grows to the largest.
    references = [("anna", "smith"), ("smith",)]
    assert assign_values(predicted, references, values_match, begin={0: 0}) == {0: 1, 1: 0}


def test_rates_are_out_of_all_examples():
    ref = {"name": "Anna"}
    thought = '<thinking>hm</thinking><response>{"name": "Anna"}</response>'
    found = score(
        [
            build_prediction(ref, ref, output_tokens=4),
            build_prediction(ref, thought, output_tokens=20),  # thinks unasked
            build_prediction(ref, "Anna", mode="think", output_tokens=3),  # unreadable, and did not think
            build_prediction(ref, "<thinking>hm", mode="think", truncated=True, output_tokens=13),
        ]
    )
    assert found.metrics() == {
        "partial_precision": 1.0,
        "partial_recall": 0.5,
        "partial_f1": 2 / 3,
        "exact_f1": 2 / 3,
        "slu_f1": 2 / 3,
        "parse_failure_rate": 0.25,
        "repair_rate": 0.0,
        "truncation_rate": 0.25,
        "hallucinated_slot_rate": 0.0,
        "mode_obedience": 0.5,
        "output_tokens": 10.0,
    }


def test_a_truncated_answer_fills_nothing_though_readable():
    found = score([build_prediction({"name": "Anna"}, '{"name": "Anna"} and', truncated=True)])
    assert (found.partial_f1, found.counts.predicted, found.parse_failure_rate) == (0, 0, 0)


def test_repaired_answers_are_scored_and_counted():
    ref = {"name": "Anna"}
    broken = "{'name': 'Anna'}"
    found = score(
        [build_prediction(ref, ref), build_prediction(ref, broken), build_prediction(ref, broken, truncated=True)]
    )
    assert (found.partial_recall, found.repair_rate, found.parse_failure_rate) == (2 / 3, 1 / 3, 0)
    assert found.truncation_rate == 1 / 3  # a truncated answer is not repaired, it fills nothing


def test_slu_f1_compares_values_as_they_are_written_in_lower_case():
    assert score([build_prediction({"name": "Anna Smith"}, {"name": "anna SMITH"})]).slu_f1 == 1
    numbers = score([build_prediction({"count": "25"}, {"count": "twenty five"})])
    assert (numbers.exact_f1, numbers.slu_f1) == (1, pytest.approx(2 / 5))  # word error rate 2, character distance 1


def test_the_card_names_this_version():
    assert f"# Metric card, version {METRIC_VERSION}\n" in CARD.read_text(encoding="utf-8")


def test_nothing_to_score_and_faulty_references_are_errors():
    with pytest.raises(ValueError, match="no predictions"):
        score([])
    with pytest.raises(ValueError, match=r"'x1'.*'name' is not in asked_labels"):
        score([build_prediction({"name": "Anna"}, {}, asked=["date"])])
    with pytest.raises(ValueError, match=r"'x1'.*'name' has a blank value"):
        score([build_prediction({"name": " "}, {})])


def test_labels_have_rows_of_their_own_that_add_up():
    rows = score_per_label(
        [
            build_prediction({"name": "Anna"}, {"name": "Anna", "date": "today", "made up": "x"}),
            build_prediction({"name": "Ben", "date": "today"}, {"date": "today"}),
        ]
    )
    assert list(rows) == ["date", "name"]
    assert (rows["name"].partial_precision, rows["name"].partial_recall) == (1.0, 0.5)
    assert (rows["date"].partial_precision, rows["date"].partial_recall) == (0.5, 1.0)
    assert rows["date"].counts.examples == 2


WORDS = st.sampled_from(["anna", "smith", "three", "3", "red", "shoes", "uh", "(none)"])
VALUE = st.lists(WORDS, min_size=1, max_size=4).map(" ".join)
SLOTS = st.dictionaries(st.sampled_from("abc"), st.lists(VALUE, min_size=1, max_size=3), max_size=3)


@st.composite
def predictions(draw):
    output = draw(SLOTS | st.sampled_from(["no idea", '{"a": "an', "<thinking>{}", "{'a': 'anna'}"]))
    return build_prediction(
        draw(SLOTS), output, asked="abc", truncated=draw(st.booleans()), mode=draw(st.sampled_from(["direct", "think"]))
    )


SETS = st.lists(predictions(), min_size=1, max_size=5)


@STEADY
@given(SETS)
def test_scores_are_bounded_and_exact_is_never_above_partial(rows):
    found = score(rows)
    fractions = {name: value for name, value in found.metrics().items() if name != "output_tokens"}
    assert all(0 <= value <= 1 for value in fractions.values())
    assert found.exact_f1 <= found.partial_f1
    assert found.parse_failure_rate + found.repair_rate + found.truncation_rate <= 1
    assert min(found.partial_precision, found.partial_recall) <= found.partial_f1
    assert found.partial_f1 <= max(found.partial_precision, found.partial_recall)


def shuffle(prediction, rnd):
    """The same prediction with labels and values in another order."""
    reference: dict[str, list[str]] = {}
    for label, value in rnd.sample(prediction.reference, len(prediction.reference)):
        reference.setdefault(label, []).append(value)
    output = prediction.output_text
    if output.startswith(("{}", '{"')) and output.endswith("}"):
        slots = json.loads(output)
        output = {label: rnd.sample(slots[label], len(slots[label])) for label in rnd.sample(list(slots), len(slots))}
    return build_prediction(reference, output, asked="cab", truncated=prediction.truncated, mode=prediction.mode)


def without_slu(found):
    """SLU-F1 may depend on the order of several values of one label, as the official script does."""
    return replace(found, slu_f1=0.0, counts=replace(found.counts, slu=SluCounts()))


@STEADY
@given(SETS, st.randoms(use_true_random=False))
def test_order_of_examples_and_of_values_changes_nothing(rows, rnd):
    assert score(rnd.sample(rows, len(rows))) == score(rows)
    shuffled = score(shuffle(row, rnd) for row in rnd.sample(rows, len(rows)))
    assert without_slu(shuffled) == without_slu(score(rows))


@STEADY
@given(st.lists(SLOTS, min_size=1, max_size=4))
def test_a_perfect_answer_scores_one(references):
    found = score(build_prediction(slots, slots, asked="abc") for slots in references)
    assert (found.partial_precision, found.partial_recall, found.partial_f1, found.exact_f1) == (1, 1, 1, 1)
    assert found.slu_f1 == 1
    assert found.hallucinated_slot_rate == 0


@STEADY
@given(SLOTS, SLOTS, st.sampled_from(["zebra", "0"]))
def test_a_false_alarm_never_raises_a_score(reference, output, value):
    before = score([build_prediction(reference, output, asked="abc")])
    after = score([build_prediction(reference, {**output, "unasked": value}, asked="abc")])
    assert after.partial_precision <= before.partial_precision
    assert after.partial_f1 <= before.partial_f1
    assert after.slu_f1 <= before.slu_f1
    assert after.counts.slu.slu.precision <= before.counts.slu.slu.precision
    assert after.hallucinated_slot_rate >= before.hallucinated_slot_rate


HARD_VALUES = (
    *("kinda late", "sorta", "I dunno", "cause of loss", "it's", "won't", "Dr. St. John", "O'Brien", "A-12 B", "½"),
    *(
        "March the third",
        "double oh seven",
        "five five five one two",
        "$20.50",
        "twenty dollars and fifty cents",
        "50 %",
    ),
    *("--03-03", "T15:30", "(555) 123-4567", "2024-03-03", "john.doe@mail.com", "1,000", "1960s", "half past three"),
    *("", "uh", "...", "naïve café", "colour", "minus three point five", "two and a half", "١٢", "³", "\ud800"),
)


def test_a_number_without_end_keeps_its_own_digits() -> None:
    assert normalize_value("x " + "7" * 5000) == ("x", "7" * 5000)


def test_normaliser_is_whispers():
    from whisper.normalizers import EnglishTextNormalizer

    whispers = EnglishTextNormalizer()
    assert {text: build_normalizer()(text) for text in HARD_VALUES} == {text: whispers(text) for text in HARD_VALUES}


def test_every_value_that_is_not_blank_has_tokens():
    assert all(normalize_value(text) for text in HARD_VALUES if text)
    assert normalize_value("uh") == ("uh",)


def test_scoring_loads_no_torch_and_importing_it_not_even_the_normaliser():
    code = (
        "import sys, data.scoring; heavy = {'torch', 'numpy', 'scipy', 'whisper_normalizer', 'rapidfuzz', 'json_repair'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); "
        "from data.normalize import normalize_value; normalize_value('one'); "
        "assert 'torch' not in sys.modules and 'whisper' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=CARD.parents[1])
