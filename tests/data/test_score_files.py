"""Scoring files: each format, what only one side has, SLURP's own rules, every defect named, and the same sheet for the same rows."""

import json

import pytest

from data.records import prediction_from_json
from data.score_files import DefectsError, read_cases, recognise
from data.score_sheet import build_sheet, iter_errors
from data.scoring import score

SENTENCE = {
    "slurp_id": 7,
    "sentence": "wake Bob at ten am",
    "scenario": "alarm",
    "action": "set",
    "intent": "not read",
    "tokens": [{"surface": word, "id": i} for i, word in enumerate(["wake", "Bob", "at", "ten", "am"])],
    "recordings": [{"file": "a.flac"}, {"file": "a-headset.flac"}],
    "entities": [{"span": [1], "type": "person"}, {"span": [3, 4], "type": "time"}],
}
OTHER = {
    "slurp_id": 8,
    "scenario": "weather",
    "action": "query",
    "tokens": [{"surface": "rain"}],
    "recordings": [{"file": "b.flac"}],
    "entities": [],
}


def slurp_prediction(file, *entities, scenario="alarm", action="set"):
    fillers = [{"type": label, "filler": filler} for label, filler in entities]
    return {"file": file, "scenario": scenario, "action": action, "entities": fillers}


RIGHT = (("person", "bob"), ("time", "ten am"))
OURS = {
    "example_id": "test-1",
    "split": "test",
    "mode": "direct",
    "asked_labels": ["name", "day"],
    "reference": [["name", "Anna"], ["day", "Monday"]],
    "output_text": '{"name": "Anna", "day": "Tuesday"}',
    "output_tokens": 9,
    "truncated": False,
    "extra": {},
}
MANIFEST = {"id": "test-1", "split": "test", "domain": "travel", "slots": [{"label": "name", "surface": "Anna"}]}


@pytest.fixture
def write(tmp_path):
    """Write rows (or raw lines) to a file and return its path."""

    def write(name, *rows):
        path = tmp_path / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
        return path

    return write


def test_slurp_files_are_scored_as_the_official_script_does(write):
    references = write("test.jsonl", SENTENCE, OTHER)
    predictions = write(
        "predictions.jsonl",
        slurp_prediction("a.flac", *RIGHT),
        slurp_prediction("a-headset.flac", ("time", "ten pm"), scenario="calendar"),
        slurp_prediction("b.flac", ("date", "today"), scenario="weather", action="query"),
    )
    sheet = build_sheet(read_cases(predictions, references))
    # Matches: person, time, time. 4 values predicted, 4 references. "ten pm": 1/2 of the words, 1/6 of the characters.
    assert sheet["scores"]["slu_word_f1"] == pytest.approx(6 / (8 + 1), abs=1e-6)
    assert sheet["scores"]["slu_char_f1"] == pytest.approx(6 / (8 + 1 / 3), abs=1e-6)
    assert sheet["scores"]["slu_f1"] == pytest.approx(6 / (8 + 1 / 2 + 1 / 6), abs=1e-6)
    official = sheet["official_script"]
    assert official["slu"]["precision"] == pytest.approx(6 / (8 + 2 / 3), abs=1e-6)
    assert official["entities"]["f1"] == pytest.approx(2 / 4)
    assert (official["scenario"], official["action"], official["intent"]) == pytest.approx((2 / 3, 1, 2 / 3))
    assert sheet["per_domain"]["alarm"]["examples"] == 2
    assert sheet["outcomes"]["missed"] == sheet["outcomes"]["hallucinated"] == 1
    assert "parse_failure_rate" not in sheet["scores"]


def test_a_recording_without_a_prediction_is_missed_and_told(write):
    references = write("test.jsonl", SENTENCE, OTHER)
    predictions = write("predictions.jsonl", slurp_prediction("a.flac", *RIGHT), slurp_prediction("train.flac", *RIGHT))
    sheet = build_sheet(read_cases(predictions, references))
    assert sheet["scores"]["slu_f1"] == pytest.approx(2 * 2 / (2 + 4))
    assert sheet["scores"]["intent_accuracy"] == pytest.approx(1 / 3)
    assert (sheet["official_script"]["slu"]["f1"], sheet["official_script"]["intent"]) == (1, 1)
    assert sheet["warnings"] == [
        "2 of 3 references have no prediction (first: a-headset.flac); all their values count as missed",
        "1 of 2 predictions have no reference (first: train.flac) and are left out",
    ]


def test_slurp_letter_case_and_blank_fillers_are_the_official_scripts(write):
    references = write("test.jsonl", SENTENCE)
    predictions = write(
        "predictions.jsonl",
        slurp_prediction("a.flac", ("person", "Bob"), ("time", "ten am")),
        slurp_prediction("a-headset.flac", ("person", ""), ("time", "ten am")),
    )
    sheet = build_sheet(read_cases(predictions, references))
    # "Bob" for "bob" and "" for "bob": a word of one each; characters 1/3 and 1.
    assert sheet["official_script"]["word"]["f1"] == pytest.approx(8 / (8 + 2 * 2))
    assert sheet["official_script"]["char"]["f1"] == pytest.approx(8 / (8 + 2 * 4 / 3))
    assert sheet["scores"]["exact_f1"] == pytest.approx(6 / 8)  # our own scores do not look at letter case
    assert sheet["outcomes"]["wrong_value"] == 1


def test_slurp_predictions_from_gold_transcripts_are_keyed_by_sentence(write):
    references = write("test.jsonl", SENTENCE, OTHER)
    rows = [slurp_prediction("", *RIGHT), slurp_prediction("", scenario="weather", action="query")]
    for row, sentence in zip(rows, ("7", "8"), strict=True):
        del row["file"]
        row["slurp_id"] = sentence
    sheet = build_sheet(read_cases(write("gold.jsonl", *rows), references))
    assert (sheet["examples"], sheet["scores"]["slu_f1"], sheet["scores"]["intent_accuracy"]) == (2, 1, 1)


def test_slurp_references_may_have_the_form_of_predictions(write):
    rows = [slurp_prediction("a.flac", ("person", "Bob"))]
    sheet = build_sheet(
        read_cases(write("p.jsonl", slurp_prediction("a.flac", ("person", "bob"))), write("r.jsonl", *rows))
    )
    assert sheet["official_script"]["slu"]["f1"] == 1


def test_plain_lines_take_both_forms_of_slots(write):
    references = write(
        "references.jsonl",
        {"id": "1", "domain": "travel", "slots": {"city": ["Paris", "Rome"], "date": None, "time": ""}},
        {"id": "2", "domain": "retail", "slots": [{"label": "count", "value": "25"}]},
    )
    predictions = write(
        "predictions.jsonl",
        {"id": "2", "slots": {"count": "twenty five"}},
        {"id": "1", "slots": [{"label": "city", "value": "rome"}, {"label": "date", "value": "Paris"}]},
    )
    case_set = read_cases(predictions, references)
    sheet = build_sheet(case_set)
    assert (case_set.format, sheet["examples"], sheet["warnings"]) == ("jsonl", 2, [])
    assert sheet["scores"]["exact_f1"] == pytest.approx(4 / 6)  # numbers in words and digits are one value
    assert list(sheet["per_label"]) == ["city", "count", "date"] and list(sheet["per_domain"]) == ["retail", "travel"]
    assert list(iter_errors(case_set)) == [
        {
            "id": "1",
            "domain": "travel",
            "kind": "wrong_label",
            "reference": ("city", "Paris"),
            "predicted": ("date", "Paris"),
        }
    ]


def test_a_trials_predictions_score_as_the_trial_does(write):
    rows = [
        OURS,
        {**OURS, "example_id": "test-2", "output_text": "It is Anna."},
        {**OURS, "example_id": "test-3", "output_text": "{'name': 'Anna'}"},
        {**OURS, "example_id": "test-4", "output_text": '{"name": "An', "truncated": True},
        {**OURS, "example_id": "validation-1", "split": "validation"},
    ]
    predictions = write("predictions-direct.jsonl", *rows)
    sheet = build_sheet(read_cases(predictions))
    expected = score(prediction_from_json(row) for row in rows[:4]).metrics()
    assert {name: sheet["scores"][name] for name in expected} == expected
    assert (
        sheet["scores"]["repair_rate"]
        == sheet["scores"]["truncation_rate"]
        == sheet["scores"]["parse_failure_rate"]
        == 0.25
    )
    kinds = {"correct": 2, "partial": 0, "wrong_label": 0, "wrong_value": 1, "missed": 1, "hallucinated": 0}
    assert sheet["outcomes"] == {**kinds, "parse_failure": 2, "truncation": 2}
    assert sheet["per_domain"] == {}
    assert build_sheet(read_cases(predictions, split="validation"))["examples"] == 1


def test_a_manifest_adds_domains_and_shows_what_was_not_predicted(write):
    manifest = write(
        "manifest.jsonl", MANIFEST, {**MANIFEST, "id": "test-9"}, {**MANIFEST, "id": "t", "split": "train"}
    )
    sheet = build_sheet(read_cases(write("predictions-direct.jsonl", OURS), manifest))
    assert (sheet["examples"], sheet["answered"], sheet["per_domain"]["travel"]["references"]) == (2, 1, 3)
    assert sheet["outcomes"]["missed"] == 1
    assert sheet["warnings"] == [
        "1 of 2 references have no prediction (first: test-9); all their values count as missed"
    ]


def test_the_order_of_lines_changes_nothing(write):
    references, others = [SENTENCE, OTHER], [OTHER, SENTENCE]
    rows = [slurp_prediction(f, ("time", "ten"), ("person", "anna")) for f in ("a.flac", "b.flac", "a-headset.flac")]
    one = read_cases(write("p1.jsonl", *rows), write("r1.jsonl", *references))
    two = read_cases(write("p2.jsonl", *rows[::-1]), write("r2.jsonl", *others))
    assert json.dumps(build_sheet(one)) == json.dumps(build_sheet(two))
    assert list(iter_errors(one)) == list(iter_errors(two))


def test_the_format_is_recognised_or_asked_for(write):
    assert recognise(write("a.jsonl", OURS)) == "slotgrid"
    assert recognise(write("b.jsonl", slurp_prediction("a.flac"))) == "slurp"
    assert recognise(write("c.jsonl", {"id": "1", "slots": {}})) == "jsonl"
    with pytest.raises(
        ValueError, match=r"d\.jsonl, line 1: has none of the fields output_text .*, but id, text; write one"
    ):
        recognise(write("d.jsonl", {"id": "1", "text": "x"}))
    with pytest.raises(ValueError, match=r"e\.jsonl: holds no rows"):
        recognise(write("e.jsonl"))
    with pytest.raises(ValueError, match=r"f\.jsonl: is missing"):
        recognise(write("c.jsonl").with_name("f.jsonl"))


def test_what_cannot_be_combined_is_said(write):
    plain = write("plain.jsonl", {"id": "1", "slots": {}})
    with pytest.raises(ValueError, match=r"--references: .*plain\.jsonl is of format jsonl, which holds none"):
        read_cases(plain)
    with pytest.raises(ValueError, match="--split: only a trial's own predictions have splits"):
        read_cases(plain, plain, split="test")
    with pytest.raises(ValueError, match="has no predictions of split 'train', it has test; name one"):
        read_cases(write("ours.jsonl", OURS), split="train")
    with pytest.raises(ValueError, match=r"no prediction belongs to a reference .*'2'.*'1'"):
        read_cases(write("other.jsonl", {"id": "2", "slots": {}}), plain)


PLAIN_DEFECTS = {
    "{": r"line 2: is not valid JSON",
    "[]": r"line 2: must be a JSON object",
    "": r"line 2: is not valid JSON \(it is blank\)",
    '{"slots": {}}': "line 2, field id: is missing; write it",
    '{"id": 3, "slots": {}}': "line 2, field id: must be a string, not 3",
    '{"id": " ", "slots": {}}': "line 2, field id: must be a string, not ' '",
    '{"id": "2"}': "line 2, field slots: is missing",
    '{"id": "2", "slots": 3}': "line 2, field slots: must be an object or a list, not 3",
    '{"id": "2", "slots": {"n": 3}}': r"line 2, field slots\.n: must be a string, not 3; write it in quotes",
    '{"id": "2", "slots": {"n": ["x", {}]}}': r"line 2, field slots\.n: must be a string, not an object",
    '{"id": "2", "slots": ["x"]}': r"line 2, field slots\[0\]: must be an object of label and value",
    '{"id": "2", "slots": [{"label": "n", "value": 3}]}': r"line 2, field slots\[0\]\.value: must be a string",
    '{"id": "2", "domain": 3, "slots": {}}': "line 2, field domain: must be a string, not 3",
    '{"id": "2", "slots": {"n": "x", "n": "y"}}': "line 2, field n: is given twice",
    '{"id": "1", "slots": {}}': "line 2: example '1' is there already, in line 1; keep one of the two",
}


@pytest.mark.parametrize(("line", "message"), PLAIN_DEFECTS.items())
def test_defects_of_plain_lines(write, line, message):
    good = write("good.jsonl", {"id": "1", "slots": {}})
    with pytest.raises(DefectsError, match=r"bad\.jsonl, " + message):
        read_cases(write("bad.jsonl", {"id": "1", "slots": {}}, line), good)


SLURP_DEFECTS = {
    "file": ({"file": None}, "field file: must be a string, not null"),
    "scenario": ({"scenario": 3}, "field scenario: must be a string, not 3"),
    "entities": ({"entities": {}}, "field entities: must be a list, not an object"),
    "entity": ({"entities": ["x"]}, r"field entities\[0\]: must be an object"),
    "type": ({"entities": [{"filler": "x"}]}, r"field entities\[0\]\.type: is missing"),
    "filler": (
        {"entities": [{"type": "x", "filler": None}]},
        r"field entities\[0\]\.filler: must be a string, not null",
    ),
}


@pytest.mark.parametrize(("change", "message"), SLURP_DEFECTS.values(), ids=SLURP_DEFECTS.keys())
def test_defects_of_slurp_predictions(write, change, message):
    predictions = write("bad.jsonl", slurp_prediction("a.flac"), {**slurp_prediction("b.flac"), **change})
    with pytest.raises(DefectsError, match=r"bad\.jsonl, line 2, " + message):
        read_cases(predictions, write("test.jsonl", SENTENCE, OTHER))


REFERENCE_DEFECTS = {
    "span": (
        {"entities": [{"type": "x", "span": [5]}]},
        r"entities\[0\]\.span: must be a list of token numbers below 5",
    ),
    "surface": ({"tokens": [{"id": 0}], "entities": []}, r"tokens\[0\]\.surface: is missing"),
    "recordings": ({"recordings": None}, "recordings: must be a list, not null"),
    "recording": ({"recordings": [{}]}, r"recordings\[0\]\.file: is missing"),
    "slurp_id": ({"slurp_id": None}, "slurp_id: must be a string, not null"),
}


@pytest.mark.parametrize(("change", "message"), REFERENCE_DEFECTS.values(), ids=REFERENCE_DEFECTS.keys())
def test_defects_of_slurp_references(write, change, message):
    references = write("test.jsonl", {**SENTENCE, **change})
    with pytest.raises(DefectsError, match=r"test\.jsonl, line 1, field " + message):
        read_cases(write("p.jsonl", slurp_prediction("a.flac")), references)


OUR_DEFECTS = {
    "output_text": ({"output_text": None}, "field output_text: must be a string"),
    "tokens": ({"output_tokens": True}, "field output_tokens: must be a whole number, not true"),
    "truncated": ({"truncated": "no"}, "field truncated: must be true or false, not 'no'"),
    "asked": ({"asked_labels": [1]}, r"field asked_labels\[0\]: must be a string"),
    "unasked": ({"reference": [["city", "Paris"]]}, r"field reference\[0\]: must be \[label, value\]"),
    "blank": ({"reference": [["name", " "]]}, r"field reference\[0\]: must be \[label, value\]"),
}


@pytest.mark.parametrize(("change", "message"), OUR_DEFECTS.values(), ids=OUR_DEFECTS.keys())
def test_defects_of_a_trials_predictions(write, change, message):
    with pytest.raises(DefectsError, match=r"bad\.jsonl, line 1, " + message):
        read_cases(write("bad.jsonl", {**OURS, **change}))


def test_all_defects_are_found_at_once(write):
    references = write("references.jsonl", {"id": "1"}, {"id": "2", "slots": {}})
    with pytest.raises(DefectsError, match=r"\(and 2 more\)") as caught:
        read_cases(write("predictions.jsonl", {"slots": {}}, {"id": "2", "slots": 1}), references)
    assert [(f.file.name, f.line, f.field) for f in caught.value.findings] == [
        ("references.jsonl", 1, "slots"),
        ("predictions.jsonl", 1, "id"),
        ("predictions.jsonl", 2, "slots"),
    ]
