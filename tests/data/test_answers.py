"""Reading answers: the forms models are trained on, the ways they break, and that nothing breaks the reader."""

import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.answers import MAX_REPAIR_CHARS, Answer, parse_answer

STEADY = settings(derandomize=True, deadline=None)  # the same examples on every machine, however busy it is

CARD = Path(__file__).parents[2] / "docs" / "metric.md"

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
    "cut off in the response": '<response>{"name": "An',
    "two broken objects": "{name: Anna} {name: Ben}",
    "a brace in prose": "The name is {Anna}.",
    "a part of a number": '{"price": 5 dollars}',
    "a number that a repair would change": '{"time": 15:30,}',
    "a nested object that needs a repair": '{"name": {"first": "Anna",},}',
    "a nested list that needs a repair": '{"name": [["Anna"],],}',
    "nothing in it": "<response>{</response>",
    "list, not object": '["Anna"]',
    "a list of objects": '[{"name": "Anna"}, {"city": "Paris"}]',
    "a list of labels and values": '```json\n[\n  {"label": "name", "value": "Anna"}\n]\n```',
    "a table": "| label | value |\n|---|---|\n| name | Anna |",
    "a wrapper": '{"slots": {"name": "Anna"}}',
    "a tool call": '<tool_call>{"name": "fill", "arguments": {"name": "Anna"}}</tool_call>',
    "a set": '{"Anna", "Paris"}',
    "a template before the answer": '{label: value}\n{"name": "Anna"}',
    "half of an amount": '{"share": 50%, "name": "Anna"}',
    "half of a time": '{"time": 7 AM}',
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


THOUGHTS = {
    "closed twice": "<thinking>hm</thinking></thinking>",
    "two blocks": '<thinking>hm</thinking>\n<thinking>{"name": "Ben"}?</thinking>',
    "begun by the prompt": 'I hear {"name": "Ben"}</thinking>',
    "as other models write it": '<think>\n{"name": "Ben"}\n</think>\n\n',
    "in capitals": '<Thinking>{"name": "Ben"}</THINKING>',
    "a response in it": '<thinking>like <response>{"name": "Ben"}</response></thinking>',
}


@pytest.mark.parametrize("thinking", THOUGHTS.values(), ids=THOUGHTS.keys())
def test_what_is_thought_is_never_the_answer(thinking):
    expected = Answer(slots=(("name", "Anna"),), thought=True, closed=True, parse_failure=False)
    assert parse_answer(thinking + '<response>{"name": "Anna"}</response>') == expected
    assert parse_answer(thinking) == Answer(slots=(), thought=True, closed=True, parse_failure=True)
    begun = parse_answer(f'{thinking}<thinking>or {{"name": "Carl"}}')
    assert begun == Answer(slots=(), thought=True, closed=False, parse_failure=True)


def test_tags_behind_the_beginning_of_the_answer_are_no_thought():
    for text in ('{"name": "Anna"} <thinking>next', '<response>{"name": "Anna"}</response></thinking>'):
        answer = parse_answer(text)
        assert (answer.slots, answer.thought, answer.parse_failure) == ((("name", "Anna"),), False, False)


def test_an_empty_thinking_block_is_no_thinking():
    assert not parse_answer('<thinking>\n</thinking><response>{"name": "Anna"}</response>').thought


REPAIRED = {
    "no quotes, and prose behind": ("{name: Anna} I hope this helps", (("name", "Anna"),)),
    "single quotes": ("{'name': 'Anna', 'old': None, 'ok': True}", (("name", "Anna"), ("ok", "true"))),
    "trailing comma in a fence": ('```json\n{"name": "Anna",}\n```', (("name", "Anna"),)),
    "missing comma": ('{"name": "Anna" "city": "Paris"}</s>', (("name", "Anna"), ("city", "Paris"))),
    "missing bracket": ('{"item": ["hat", 2}', (("item", "hat"), ("item", "2"))),
    "no closing brace": ('<response>{"name": "Anna"</response>', (("name", "Anna"),)),
    "a line break in a value": ('{"name": "Anna\nSmith"}', (("name", "Anna\nSmith"),)),
    "quotes in a value": ('{"name": "the "Duke" of York"}', (("name", 'the "Duke" of York'),)),
    "numbers as written": (
        '{"n": 007, "price": 1.50, "day": 2024-03-03, "x": -2,}',
        (("n", "007"), ("price", "1.50"), ("day", "2024-03-03"), ("x", "-2")),
    ),
    "curly quotes": ("{“name”: “Anna”}", (("name", "Anna"),)),
    "an apostrophe in single quotes": (
        "{'name': 'O'Brien', 'city': 'Paris'}",
        (("name", "O'Brien"), ("city", "Paris")),
    ),
    "comments": (
        '{"name": "Anna", // the caller\n "city": "Paris" # where to\n}',
        (("name", "Anna"), ("city", "Paris")),
    ),
    "a number with commas": ('{"price": 1,000, "name": "Anna"}', (("price", "1,000"), ("name", "Anna"))),
    "an ellipsis": ('{"name": "Anna", ...}', (("name", "Anna"),)),
    "of a label twice the last": ('{"item": "hat", "item": "scarf",}', (("item", "scarf"),)),
}


@pytest.mark.parametrize(("text", "slots"), REPAIRED.values(), ids=REPAIRED.keys())
def test_a_broken_object_is_repaired_and_says_so(text, slots):
    answer = parse_answer(text)
    assert (answer.slots, answer.parse_failure, answer.repaired) == (slots, False, True)


def test_a_repair_says_what_else_the_form_lacks():
    answer = parse_answer("<thinking>hm</thinking><response>{'name': 'Anna'}")
    assert answer == Answer(slots=(("name", "Anna"),), thought=True, closed=False, parse_failure=False, repaired=True)


def test_a_long_broken_object_is_not_repaired():
    value = "a" * (MAX_REPAIR_CHARS - len("{name: }"))
    assert parse_answer("{name: " + value + "}").slots == (("name", value),)
    assert parse_answer("{name: " + value + "a}").parse_failure


def read_card_rows():
    """The rows of the table of readings in the metric card, backticks removed."""
    section = CARD.read_text(encoding="utf-8").split("## Reading and repairing an answer\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines][2:]


@pytest.mark.parametrize(("text", "slots", "read_as"), read_card_rows())
def test_readings_of_the_metric_card(text, slots, read_as):
    answer = parse_answer(text)
    assert [list(pair) for pair in answer.slots] == json.loads(slots)
    assert (answer.repaired, answer.parse_failure) == (read_as == "repaired", read_as == "parse failure")


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
    assert not (answer.parse_failure and (answer.slots or answer.repaired))
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


ANSWERS = (
    '{"name": "Anna Smith", "item": ["hat", "red scarf"], "count": 3, "price": 1.50, "date": null}',
    '<thinking>i hear: "march third". date: march third.</thinking><response>{"date": "march third"}</response></s>',
    '```json\n{\n  "city": "Paris",\n  "phone_number": "five five five oh one two"\n}\n```',
    "{'name': 'Anna', 'ok': True, 'note': 'it\\'s'}",
    "{}",
)
PIECES = (
    *(
        "{",
        "}",
        "[",
        "]",
        '"',
        "'",
        ":",
        ",",
        "\\",
        "\\u12",
        "(",
        ")",
        "/*",
        "//",
        "#",
        "`",
        "```json",
        "\n",
        " ",
        "-",
        ".",
    ),
    *(
        "1",
        "007",
        "1.5e3",
        "true",
        "None",
        "null",
        "NaN",
        "anna",
        "é",
        "“",
        "”",
        "：",
        "\ud800",
        "\0",
        "\ufeff",
        '{"a": ',
    ),
    *("<thinking>", "</thinking>", "<think>", "</think>", "<response>", "</response>", "</s>", '", "', '": "', '"}'),
)


def mutated(text, rnd):
    """`text` with one to four cuts, copies, swaps and insertions."""
    for _ in range(rnd.randint(1, 4)):
        start = rnd.randrange(len(text) + 1)
        end = min(len(text), start + rnd.choice((0, 0, 1, 1, 2, 8, 40)))
        middle = rnd.choice(
            ("", "", rnd.choice(PIECES), text[start:end] * rnd.choice((2, 2, 50)), text[start:end][::-1])
        )
        text = text[:start] + middle + text[end:]
    return text


def fuzz_text(rnd):
    """A mutated answer, or pieces of JSON, repeated ones too, or any characters."""
    kind = rnd.random()
    if kind < 0.6:
        return mutated(rnd.choice(ANSWERS), rnd)
    if kind < 0.9:
        text = "".join(rnd.choices(PIECES, k=rnd.randint(1, 20)))
        return text if kind < 0.88 else rnd.choice(("{", '{"a": ', "")) + text * rnd.randint(2, 60) + "}"
    return "".join(map(chr, rnd.choices(range(rnd.choice((0x80, 0x3000, 0x110000))), k=rnd.randint(0, 60))))


def check_fuzz(count, seed):
    """Parse `count` texts: no exception, no slots of a failure, no blank value, and none slower than a second of this process."""
    rnd, seen, slowest = random.Random(seed), Counter(), 0.0
    for _ in range(count):
        text = fuzz_text(rnd)
        begun = time.process_time()
        answer = parse_answer(text)
        slowest = max(slowest, time.process_time() - begun)
        seen["failed" if answer.parse_failure else "repaired" if answer.repaired else "read"] += 1
        assert not (answer.parse_failure and (answer.slots or answer.repaired)), text
        assert all(value.strip() and (label + value).encode() for label, value in answer.slots), text
    assert slowest < 1, slowest
    assert all(seen[kind] > count / 50 for kind in ("failed", "repaired", "read")), (
        seen
    )  # the texts reach every way out
    print(f"{count} texts: {dict(seen)}, slowest {slowest:.3f} s")


SLOW_TO_REPAIR = (
    "-'",
    "-','",
    "('",
    '("',
    "(','",
    '["["',
    '`"',
    '["',
    "['",
    "[','",
    '{"',
    "{{",
    "[",
    "(",
    "1 ",
    "\\",
    '"a" ',
)


@pytest.mark.parametrize("unit", SLOW_TO_REPAIR)
def test_no_text_takes_a_second(unit):
    for start in ("{", '{"a": ', "{a: [1, "):
        for length in (MAX_REPAIR_CHARS - 20, 200_000):
            begun = time.process_time()
            parse_answer(start + unit * (length // len(unit)) + "}")
            assert time.process_time() - begun < 1, (start, length)


def test_ten_thousand_broken_answers_raise_nothing():
    check_fuzz(10_000, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [200_000, pytest.param(1_000_000, marks=pytest.mark.full)])
def test_broken_answers_raise_nothing(count: int) -> None:
    check_fuzz(count, seed=1)
