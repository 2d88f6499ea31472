"""The offline annotator: an example -> its reasoning trace by rule, from transcript and gold, for corpora without a key.

It writes what `data.annotation.trace_checks` accepts, in the tone of the synthetic corpus. It knows no self-repairs and no paraphrases:
what an LLM writes is better, what this writes is free.
"""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass

from data.annotation.trace_checks import MAX_BECAUSE, occurs, words
from data.annotation.trace_requests import TraceAnswer, bare_sentence
from data.records import Example, Justification, Mention, SlotValue, Trace

RULE_ANNOTATOR = "rule"
"""The name under which these traces are kept, where an LLM's are kept under its model's name."""
RULE_VERSION = 1

CUE_WORDS = 2
_BRACKETS = re.compile(r"[<>|\[\]]")
_LABEL_JOINTS = re.compile(r"[-_.]")
_PUNCTUATION = re.compile(r"^[\W_]+|[\W_]+$")


def rule_trace(example: Example) -> Trace:
    """The trace of one example; the same on every call.

    Every value is justified. It is mentioned where its words occur in the transcript or in a previous turn. Only where a gold value itself
    holds a tag such as `</thinking>` does `check_trace` refuse the trace: no trace of that example could be trained on.
    """
    slots = list({(slot.label, slot.spoken): slot for slot in example.slots}.values())
    turn = _Turn.of(example.transcript)
    places = _find_values(turn, slots)
    mentions, justifications = [], []
    for slot, place in zip(slots, places, strict=True):
        if place is not None or any(occurs(slot.spoken, earlier.text) for earlier in example.context):
            mentions.append(Mention(label=slot.label, text=bare_sentence(slot.spoken)))
        rng = random.Random(hashlib.sha256(f"rule trace|{example.id}|{slot.label}|{slot.spoken}".encode()).digest())
        because = _because(example, turn, slot, place, rng)
        justifications.append(Justification(label=slot.label, value=slot.spoken, because=because))
    return Trace(
        transcription=bare_sentence(_unmarked(example.transcript)),
        mentions=tuple(mentions),
        justifications=tuple(justifications),
    )


def rule_answer(example: Example) -> TraceAnswer:
    """The trace by rule with the gold slots, as `check_trace` takes it."""
    return TraceAnswer(trace=rule_trace(example), slots=tuple((slot.label, slot.spoken) for slot in example.slots))


@dataclass(frozen=True)
class _Turn:
    """A transcript as it is written and as it is compared."""

    written: tuple[str, ...]  # its blank-separated parts
    words: tuple[str, ...]  # as `data.annotation.trace_checks.words` compares them
    part: tuple[int, ...]  # of each word: the index in `written`

    @classmethod
    def of(cls, text: str) -> _Turn:
        written = text.split()
        pairs = [
            (word, index)
            for index, part in enumerate(written)
            for word in words(part)
            if any(map(str.isalnum, word))  # a dash between blanks is no word
        ]
        return cls(tuple(written), tuple(word for word, _ in pairs), tuple(index for _, index in pairs))


def _find_values(turn: _Turn, slots: list[SlotValue]) -> list[tuple[int, int] | None]:
    """Where each value stands in the turn as (first, last) index in `turn.written`, None where it does not.

    Long values take their words first, so that "york" is not found inside "new york" while it also stands elsewhere.
    """
    places: list[tuple[int, int] | None] = [None] * len(slots)
    taken: set[int] = set()
    for index in sorted(range(len(slots)), key=lambda index: -len(words(slots[index].spoken))):
        value = words(slots[index].spoken)
        found = [
            range(at, at + len(value))
            for at in range(len(turn.words) - len(value) + 1)
            if turn.words[at : at + len(value)] == value
        ]
        if found:
            best = next((span for span in found if taken.isdisjoint(span)), found[0])
            taken.update(best)
            places[index] = turn.part[best[0]], turn.part[best[-1]]
    return places


def _because(example: Example, turn: _Turn, slot: SlotValue, place: tuple[int, int] | None, rng: random.Random) -> str:
    """Why the value has its label: where it was heard, in one of a few wordings."""
    noun = _plain(_LABEL_JOINTS.sub(" ", slot.label))
    before = _plain(" ".join(turn.written[max(0, place[0] - CUE_WORDS) : place[0]])) if place else ""
    after = _plain(" ".join(turn.written[place[1] + 1 : place[1] + 1 + CUE_WORDS])) if place else ""
    if place is None:
        speakers = [earlier.speaker for earlier in example.context if occurs(slot.spoken, earlier.text)]
        wordings = [f"the {speaker} said it before" for speaker in speakers[-1:]] or [
            f"what the caller says amounts to this {noun}",
            f"the turn as a whole means this {noun}",
        ]
    elif _is_asked_for(noun, example):
        wordings = [f"the agent asked for the {noun}", f"the caller answers the question about the {noun}"]
    elif before:
        wordings = [f'the caller says it after "{before}"', f'the {noun} comes after "{before}"']
    elif after:
        wordings = [f'the caller says it before "{after}"', f'the {noun} comes before "{after}"']
    else:
        wordings = [f"the caller says just the {noun}", f"the {noun} is all the caller says"]
    because = bare_sentence(rng.choice(wordings))
    return because if len(because) <= MAX_BECAUSE else "the caller says so"


def _is_asked_for(noun: str, example: Example) -> bool:
    """Whether the agent's last turn names the label's last word: "what day" asks for a "delivery day"."""
    question = example.context[-1] if example.context else None
    return bool(noun and question and question.speaker == "agent" and occurs(noun.split()[-1], question.text))


def _unmarked(text: str) -> str:
    """A text on one line without anything that could be markup."""
    return " ".join(_BRACKETS.sub(" ", text).split())


def _plain(text: str) -> str:
    """An unmarked text without punctuation at its ends where words remain."""
    line = _unmarked(text)
    return _PUNCTUATION.sub("", line) or line
