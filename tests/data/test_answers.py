"""Reading answers: the forms models are trained on, the ways they break, and that nothing breaks the reader."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.answers import Answer, parse_answer

STEADY = settings(derandomize=True, deadline=None)  # the same examples on every machine, however busy it is

FORMS = {
    "direct": ('{"name": "Anna", "item": ["hat", "scarf"]}', (("name", "Anna"), ("item", "hat"), ("item", "scarf"))),
    "special tokens around it": ('<s> {"name": "Anna"}<|end|></s>', (("name", "Anna"),)),
    "code fence": ('Sure:\n```json\n{"name": "Anna"}\n```', (("name", "Anna"),)),
    "nothing to fill": ("{}", ()),
    "no value": ('{"name": null, "date": "", "item": [], "city": "  ", "size": [null, ""]}', ()),
    "space is stripped": ('{" name ": " Anna\\n"}', (("name", "Anna"),)),
    "numbers as written": (
        '{"n": 3, "price": 1.50, "ids": [7, -2], "ok": true, "no": false, "x": NaN}',
        (("n", "3"), ("price", "1.50"), ("ids", "7"), ("ids", "-2"), ("ok", "true"), ("no", "false"), ("x", "NaN")),
    ),
    "an integer too long for int()": ('{"n": ' + "9" * 5000 + "}", (("n", "9" * 5000),)),
    "a label twice keeps both": ('{"item": "hat", "item": "scarf"}', (("item", "hat"), ("item", "scarf"))),
    "a tag inside a value": ('{"name": "<thinking> <response>"}', (("name", "<thinking> <response>"),)),
    "a second object is ignored": ('{"name": "Anna"}{"name": "Ben"}', (("name", "Anna"),)),
    "lone surrogate": ('{"name": "A\\ud800"}', (("name", "A?"),)),
}

BROKEN = {
    "prose": "The name is Anna.",
    "empty": "",
    "cut off": '{"name": "An',
    "not quoted": "{name: Anna}",
    "list, not object": '["Anna"]',
    "nested object": '{"name": {"first": "Anna"}}',
    "object in a list": '{"name": [{"first": "Anna"}]}',
    "list in a list": '{"name": [["Anna"]]}',
    "a broken object does not yield its inside": '{"a": oops, "b": {"name": "Anna"}}',
    "a model in a loop": '{"a": ' + "[" * 100_000,
    "a slot before the nested one is no answer either": '{"city": "Paris", "name": {"first": "Anna"}}',
}


@pytest.mark.parametrize(("text", "slots"), FORMS.values(), ids=FORMS.keys())
def test_reads_the_slots(text, slots):
    assert parse_answer(text) == Answer(slots=slots, thought=False, closed=True, parse_failure=False)


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_what_cannot_be_read_is_a_parse_failure_without_slots(text):
    answer = parse_answer(text)
    assert answer.parse_failure
    assert answer.slots == ()


def test_thinking_is_told_from_the_response():
    text = '<thinking>I hear: {"name": "Ben"}</thinking><response>{"name": "Anna"}</response></s>'
    expected = Answer(slots=(("name", "Anna"),), thought=True, closed=True, parse_failure=False)
    assert parse_answer(text) == expected
    assert parse_answer(text.replace("<response>", "").replace("</response>", "")) == expected


def test_unclosed_thinking_is_a_parse_failure_that_thought():
    answer = parse_answer('<thinking>I hear {"name": "Anna"}')
    assert answer == Answer(slots=(), thought=True, closed=False, parse_failure=True)


def test_unclosed_response_is_read_and_reported():
    answer = parse_answer('<thinking>hm</thinking><response>{"name": "Anna"}')
    assert answer == Answer(slots=(("name", "Anna"),), thought=True, closed=False, parse_failure=False)


def test_an_empty_thinking_block_is_no_thinking():
    assert not parse_answer('<thinking>\n</thinking><response>{"name": "Anna"}</response>').thought


TEXT = st.text(max_size=8) | st.sampled_from(
    [
        "<thinking>",
        "</thinking>",
        "<response>",
        "</response>",
        "{",
        "}",
        "[",
        "]",
        '"a"',
        ":",
        ",",
        "1",
        "null",
        "\ud800",
    ]
)


@STEADY
@given(st.lists(TEXT, max_size=12).map("".join))
def test_never_raises_and_failures_have_no_slots(text):
    answer = parse_answer(text)
    assert not (answer.parse_failure and answer.slots)
    for label, value in answer.slots:
        assert value == value.strip() != ""
        (label + value).encode("utf-8")


WORD = st.text(min_size=1, max_size=6).map(str.strip).filter(bool)
SLOTS = st.dictionaries(WORD, st.lists(WORD, min_size=1, max_size=3), max_size=4)


@STEADY
@given(slots=SLOTS, thought=st.booleans(), ascii_only=st.booleans())
def test_what_is_written_is_read_back(slots, thought, ascii_only):
    written = json.dumps(slots, ensure_ascii=ascii_only)
    text = f"<thinking>I hear.</thinking><response>{written}</response></s>" if thought else written
    pairs = tuple((label, value) for label, values in slots.items() for value in values)
    assert parse_answer(text) == Answer(slots=pairs, thought=thought, closed=True, parse_failure=False)
