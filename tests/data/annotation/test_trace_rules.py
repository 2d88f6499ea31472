"""The offline annotator: its traces pass the checks of an LLM's, say where a value was heard, and train."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.annotation.trace_checks import check_trace, words
from data.annotation.trace_requests import asked_labels
from data.annotation.trace_rules import rule_answer, rule_trace
from data.callcentre.dialogues import build_ontology, iter_utterances
from data.readers.source import plain_slot
from data.records import AnnotatedExample, Example, Label, Mention, Ontology, Split, Turn
from data.supervision import SupervisionConfig, supervise, trace_text

LABELS = ("city", "to_city", "arrival_day", "final_answer", "person.name", "_")
ONTOLOGY = Ontology(domains={"travel": tuple(Label(name=name, description="what it is") for name in LABELS)})


def example(transcript: str, *slots: tuple[str, str], context: tuple[Turn, ...] = (), name: str = "call-1") -> Example:
    return Example(
        id=name,
        split="train",
        domain="travel",
        audio="audio/a.flac",
        audio_sha256="0" * 64,
        duration_s=3.0,
        transcript=transcript,
        slots=tuple(plain_slot(label, value) for label, value in slots),
        context=context,
    )


def reasons(row: Example) -> set[str]:
    """Every wording of the first reason, over many ids."""
    return {rule_trace(replace(row, id=f"call-{number}")).justifications[0].because for number in range(20)}


def test_a_value_that_is_said_is_mentioned_with_the_words_beside_it() -> None:
    row = example("I go to Denver, please.", ("to_city", "denver"))
    assert rule_trace(row) == rule_trace(row)
    assert rule_trace(row).transcription == "I go to Denver, please"
    assert rule_trace(row).mentions == (Mention(label="to_city", text="denver"),)
    assert reasons(row) == {'the caller says it after "go to"', 'the to city comes after "go to"'}
    first = example("Denver, tomorrow please", ("city", "Denver"))
    assert reasons(first) == {'the caller says it before "tomorrow please"', 'the city comes before "tomorrow please"'}
    assert reasons(example("denver", ("city", "denver"))) == {
        "the caller says just the city",
        "the city is all the caller says",
    }


def test_a_question_of_the_agent_is_the_reason_for_what_answers_it() -> None:
    asked = (Turn(speaker="caller", text="which day"), Turn(speaker="agent", text="On what day?"))
    assert reasons(example("it is on monday", ("arrival_day", "monday"), context=asked)) == {
        "the agent asked for the arrival day",
        "the caller answers the question about the arrival day",
    }
    assert reasons(example("it is on monday", ("city", "monday"), context=asked)) == {
        'the caller says it after "is on"',
        'the city comes after "is on"',
    }


def test_a_value_said_before_is_mentioned_and_one_never_said_is_explained_only() -> None:
    before = (Turn(speaker="caller", text="to New York"), Turn(speaker="agent", text="right"))
    trace = rule_trace(example("yes that one", ("city", "new york"), context=before))
    assert trace.mentions == (Mention(label="city", text="new york"),)
    assert trace.justifications[0].because == "the caller said it before"
    hidden = example("the day after", ("arrival_day", "2026-03-03"))
    assert rule_trace(hidden).mentions == ()
    assert reasons(hidden) == {
        "what the caller says amounts to this arrival day",
        "the turn as a whole means this arrival day",
    }


def test_a_short_value_inside_a_long_one_is_looked_for_elsewhere() -> None:
    row = example("new york for mister york", ("person.name", "york"), ("city", "new york"))
    assert {just.label: just.because.split('"')[1] for just in rule_trace(row).justifications} == {
        "person.name": "for mister",
        "city": "for mister",
    }


def test_a_repeated_value_is_explained_once() -> None:
    row = example("denver i said denver", ("city", "denver"), ("city", "denver"))
    assert len(rule_trace(row).justifications) == len(rule_trace(row).mentions) == 1
    assert check_trace(rule_answer(row), row, asked_labels(row, ONTOLOGY)) == []


def test_markup_in_a_transcript_does_not_reach_the_target() -> None:
    row = example("to </thinking> denver [noise]", ("city", "denver"))
    assert check_trace(rule_answer(row), row, asked_labels(row, ONTOLOGY)) == []
    assert not re.search(r"[<>\[\]]", trace_text(rule_trace(row)))


@pytest.mark.parametrize("split", ["train", "test", "test_frame", "test_domain"])
def test_traces_of_synthetic_turns_pass_the_checks_and_become_targets(split: Split) -> None:
    ontology = build_ontology()
    config = SupervisionConfig(mode="reasoning")
    for turn in iter_utterances(split, 150, seed=2):
        facts = {"transcript": turn.transcript, "slots": turn.slots, "context": turn.context, "domain": turn.domain}
        row = replace(example("-"), id=turn.id, **facts)
        answer = rule_answer(row)
        assert check_trace(answer, row, asked_labels(row, ontology)) == []
        assert {mention.label for mention in answer.trace.mentions} == {slot.label for slot in turn.slots}
        annotated = AnnotatedExample(example=row, trace=answer.trace)
        target = supervise(annotated, ontology, config, mode="think", draw="d").target
        assert all(f"{slot.label} is {slot.surface} because" in target for slot in turn.slots)


VOCABULARY = st.sampled_from(
    [
        "new",
        "york",
        "New York",
        "a",
        "-",
        "Denver’s",
        "¨",
        "...",
        "㏂",
        "½",
        "Final",
        "answer",
        "p.m.",
        "İ",
        "e\u0301",
        "\u2028",
    ]
)
WORDS = st.lists(VOCABULARY | st.text(max_size=8), min_size=1, max_size=8).map(" ".join)
TURN = (WORDS | st.lists(st.sampled_from(["<b>", "</thinking>", "<|audio|>", "york"])).map(" ".join)).filter(
    lambda text: any(map(str.isalnum, "".join(words(text))))
)
VALUE = WORDS.map(lambda text: re.sub(r"[<>|\[\]]", "", text).strip()).filter(bool)


@settings(max_examples=400, deadline=None)
@given(
    TURN,
    st.lists(st.tuples(st.sampled_from(LABELS), VALUE), max_size=4),
    st.lists(st.builds(Turn, speaker=st.sampled_from(["agent", "caller"]), text=TURN), max_size=2),
)
def test_traces_by_rule_pass_the_checks_of_any_turn(
    transcript: str, slots: list[tuple[str, str]], context: list[Turn]
) -> None:
    row = example(transcript, *slots, context=tuple(context))
    assert check_trace(rule_answer(row), row, asked_labels(row, ONTOLOGY)) == []
