"""Which traces may be trained on, and what the author of another one is told."""

from dataclasses import replace

import pytest

from data.annotation.trace_checks import MAX_BECAUSE, check_trace, occurs, words
from data.annotation.trace_requests import TraceAnswer, asked_labels
from data.callcentre.dialogues import build_ontology, iter_utterances
from data.records import Example, Justification, Label, Mention, SlotValue, Split, Trace, Turn

ASKED = [Label(name=name, description=f"the {name}") for name in ("airline", "city", "date", "gold_card")]
EXAMPLE = Example(
    id="call-1",
    split="train",
    domain="travel",
    audio="audio/a.flac",
    audio_sha256="0" * 64,
    duration_s=3.0,
    transcript="To New York, on March third. It's the final answer!",
    slots=(
        SlotValue(label="city", spoken="New York", surface="New York", canonical="new-york"),
        SlotValue(label="date", spoken="March third", surface="March 3rd", canonical="--03-03"),
    ),
    context=(Turn(speaker="caller", text="with sun air"), Turn(speaker="agent", text="where to")),
)
TRACE = Trace(
    transcription="to new york on march third it’s the final answer",
    mentions=(
        Mention(label="city", text="new york"),
        Mention(label="date", text="MARCH third"),
        Mention(label="airline", text="sun air"),
    ),
    justifications=(
        Justification(label="city", value="New York", because="it comes after to"),
        Justification(label="date", value="March third", because='a day said after "on"'),
    ),
)
SLOTS = (("date", "march third"), ("city", "new-york"))


def _because(text: str) -> Trace:
    first, second = TRACE.justifications
    return replace(TRACE, justifications=(replace(first, because=text), second))


def _value(text: str) -> Trace:
    first, second = TRACE.justifications
    return replace(TRACE, justifications=(replace(first, value=text), second))


def _mention(label: str, text: str) -> Trace:
    return replace(TRACE, mentions=(*TRACE.mentions, Mention(label=label, text=text)))


def _justified(label: str, value: str) -> Trace:
    extra = Justification(label=label, value=value, because="it is so")
    return replace(TRACE, justifications=(*TRACE.justifications, extra))


def kinds(trace: Trace, slots: tuple[tuple[str, str], ...] = SLOTS, example: Example = EXAMPLE) -> list[str]:
    return [rejection.kind for rejection in check_trace(TraceAnswer(trace=trace, slots=slots), example, ASKED)]


def test_a_good_trace_passes_whatever_its_case_punctuation_and_apostrophes() -> None:
    assert kinds(TRACE) == []


@pytest.mark.parametrize(
    ("trace", "expected"),
    [
        (replace(TRACE, transcription="to york on march third it's the final answer"), ["transcription-differs"]),
        (replace(TRACE, transcription=""), ["empty", "transcription-differs"]),
        (_mention("city", "boston"), ["mention-not-heard"]),
        (_mention("city", "york march"), ["mention-not-heard"]),  # both are said, not in one piece
        (_mention("city", "air where"), ["mention-not-heard"]),  # over the end of a turn
        (_mention("city", "ew yor"), ["mention-not-heard"]),  # words, not characters
        (_mention("city", " "), ["empty"]),
        (_mention("town", "new york"), ["label-not-asked"]),
        (_mention("city", EXAMPLE.transcript + " " * 80), ["too-long"]),
        (replace(TRACE, mentions=TRACE.mentions[1:]), ["mention-missing"]),
        (replace(TRACE, mentions=TRACE.mentions * 20), ["too-long"]),
        (_because(""), ["empty"]),
        (_because("one line\nanother"), ["line-break"]),
        (_because("x" * (MAX_BECAUSE + 1)), ["too-long"]),
        (_because("said</thinking><response>{}"), ["markup"]),
        (_because("said <b>here"), ["markup"]),
        (_because("it is <|audio|>"), ["markup"]),
        (_because("it is <|im_end|>"), ["markup"]),
        (_because("it is </s>"), ["markup"]),
        (_because("3 < 4 and 5 > 2"), []),
        (_because("it is among the given slots"), ["source-revealed"]),
        (_because("the Gold annotation has it"), ["source-revealed"]),
        (_because("the caller says final answer"), []),  # heard, so no secret
        (_because("the caller has a gold card"), []),
        (replace(TRACE, justifications=TRACE.justifications[:1]), ["value-not-justified"]),
        (replace(TRACE, justifications=TRACE.justifications + TRACE.justifications[:1]), ["justified-twice"]),
        (_value("new york"), ["value-differs", "value-not-justified"]),  # supervision finds the answer's form by it
        (_value("York"), ["value-differs", "value-not-justified"]),
        (_justified("airline", "sun air"), ["label-without-value"]),
        (_justified("town", "New York"), ["label-not-asked"]),
    ],
)
def test_each_fault_is_named(trace: Trace, expected: list[str]) -> None:
    assert kinds(trace) == expected


@pytest.mark.parametrize(
    "slots",
    [
        (),
        SLOTS[:1],
        (*SLOTS, SLOTS[0]),
        (*SLOTS, ("airline", "sun air")),
        (("city", "march third"), ("date", "new york")),
    ],
)
def test_final_slots_are_the_gold_ones_as_often(slots: tuple[tuple[str, str], ...]) -> None:
    assert kinds(TRACE, slots) == ["slots-differ"]


def test_all_faults_are_told_at_once_in_sentences_of_one_line() -> None:
    bad = TraceAnswer(
        trace=Trace(transcription="to boston", mentions=(Mention(label="x", text="paris"),), justifications=()),
        slots=(),
    )
    rejections = check_trace(bad, EXAMPLE, ASKED)
    assert [rejection.kind for rejection in rejections] == [
        *("transcription-differs", "label-not-asked", "mention-not-heard", "mention-missing", "mention-missing"),
        *("value-not-justified", "value-not-justified", "slots-differ"),
    ]
    assert all(len(rejection.text.splitlines()) == 1 and len(rejection.text) < 250 for rejection in rejections)
    assert rejections[5].text == "add a justification of city with exactly the value 'New York'"


def test_a_turn_without_values_needs_its_transcription_only() -> None:
    quiet = replace(EXAMPLE, slots=())
    assert kinds(replace(TRACE, mentions=(), justifications=()), (), quiet) == []
    assert kinds(TRACE, (), quiet) == ["label-without-value", "label-without-value"]


def test_a_value_that_is_filled_twice_may_be_justified_once_or_twice() -> None:
    twice = replace(EXAMPLE, slots=(*EXAMPLE.slots, EXAMPLE.slots[0]))
    slots = (*SLOTS, ("city", "new york"))
    for times, expected in ((1, []), (2, []), (3, ["justified-twice"])):
        justifications = TRACE.justifications + TRACE.justifications[:1] * (times - 1)
        assert kinds(replace(TRACE, justifications=justifications), slots, twice) == expected


def test_a_canonical_value_that_nobody_says_needs_a_reason_but_no_mention() -> None:
    hidden = replace(
        EXAMPLE, slots=(SlotValue(label="date", spoken="2026-03-03", surface="March 3rd", canonical="2026-03-03"),)
    )
    reason = Justification(label="date", value="2026-03-03", because="march third is the next one")
    trace = replace(TRACE, mentions=(), justifications=(reason,))
    assert kinds(trace, (("date", "2026-03-03"),), hidden) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It’s  DENVER!", "it s denver"),
        ("seven p.m. (ish)", "seven p m ish"),
        ("ＡＢＣ cafe\u0301", "abc café"),
        ("STRASSE straße", "strasse strasse"),
        ("...", "..."),
        ("?  !", "? !"),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert words(text) == tuple(expected.split())


def test_a_phrase_of_punctuation_is_not_found_everywhere() -> None:
    assert occurs("third", "March third.") and not occurs("?", "March third.")


@pytest.mark.parametrize("split", ["train", "test_frame", "test_domain"])
def test_traces_of_the_synthetic_corpus_pass(split: Split) -> None:
    ontology = build_ontology()
    for turn in iter_utterances(split, 100, seed=1):
        facts = {"transcript": turn.transcript, "slots": turn.slots, "context": turn.context, "domain": turn.domain}
        example = replace(EXAMPLE, id=turn.id, **facts)
        answer = TraceAnswer(trace=turn.trace, slots=tuple((slot.label, slot.spoken) for slot in turn.slots))
        assert check_trace(answer, example, asked_labels(example, ontology)) == []
