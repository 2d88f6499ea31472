"""A trace that an LLM or a rule wrote -> every reason why it may not be trained on, each a sentence that can be sent back to its author.

Texts are compared as word sequences: case, punctuation and the shape of apostrophes do not count. Justified values count to the letter, since
`data.supervision` finds the answer's form by them.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data.annotation.trace_requests import TraceAnswer
from data.records import Example, Label, Trace
from data.supervision import trace_text

MAX_BECAUSE = 160  # characters of a reason
MAX_MENTION = 80  # characters of a mention, or as many as the longest gold value has
SPARE = 300  # characters a trace may have beyond its transcript, one mention and one reason per value: room for values taken back
_SENTENCES = 40  # characters that `trace_text` writes around one value: "label: text." and "label is value because ..."

_WORD = re.compile(r"[^\W_]+")
_MARKUP = re.compile(r"<\|[^<>]*\|>|</?[^\W\d][^<>]*>|\[/?INST\]")
"""Tags, the thinking and response tags among them, and the special tokens of chat templates, `AUDIO_MARKER` among them."""
_REVEALED = re.compile(
    r"\b(?:gold|given|provided|final|expected|correct|annotated|reference)\s(?:slot|answer|annotation|label)s?\b|\bground truth\b",
    re.IGNORECASE,
)
"""What a person who has only the sound would not write."""


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """One reason to refuse a trace."""

    kind: str  # a stable name, kebab-case: what reports count by
    text: str  # for the author of the trace


def check_trace(answer: TraceAnswer, example: Example, asked: Sequence[Label]) -> list[Rejection]:
    """Every reason to refuse the trace of `example`, for which `asked` were the labels; an empty list accepts it."""
    trace = answer.trace
    return [
        *_check_texts(trace, example, asked),
        *_check_transcription(trace, example),
        *_check_mentions(trace, example, asked),
        *_check_justifications(trace, example, asked),
        *_check_slots(answer, example),
    ]


def words(text: str) -> tuple[str, ...]:
    """The words of a text as they are compared: "It’s  DENVER!" -> ("it", "s", "denver"). Empty only for blank text."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return tuple(_WORD.findall(folded)) or tuple(folded.split())


def occurs(phrase: str, text: str) -> bool:
    """Whether the words of a phrase stand in a text, in one piece."""
    part, whole = words(phrase), words(text)
    return any(whole[at : at + len(part)] == part for at in range(len(whole) - len(part) + 1))


def longest_trace(example: Example) -> int:
    """How many characters the text of an example's trace may have."""
    values = sum(2 * len(slot.label) + 2 * len(slot.spoken) + _SENTENCES + MAX_BECAUSE for slot in example.slots)
    return len(example.transcript) + values + SPARE


def _check_texts(trace: Trace, example: Example, asked: Sequence[Label]) -> Iterator[Rejection]:
    """Form: nothing is empty, broken over lines, marked up, too long, or tells where the values come from."""
    transcription = [("the transcription", trace.transcription)]
    mentions = [(f"the mention of {mention.label}", mention.text) for mention in trace.mentions]
    reasons = [(f"the reason for {just.label}", just.because) for just in trace.justifications]
    values = [(f"the value of {just.label}", just.value) for just in trace.justifications]
    for where, text in transcription + mentions + reasons + values:
        if not text.strip():
            yield Rejection(kind="empty", text=f"{where} is empty")
        if markup := _MARKUP.search(text):
            yield Rejection(kind="markup", text=f"{where} contains {markup[0]!r}; write plain text")
    for where, text in transcription + mentions + reasons:  # a value is the gold one to the letter, whatever it holds
        if len(text.splitlines()) > 1:
            yield Rejection(kind="line-break", text=f"{where} has a line break; write it on one line")
    known = " ".join([*_heard(example), *(f"{label.name} . {label.description}" for label in asked)])
    longest = max([MAX_MENTION, *(len(slot.spoken) for slot in example.slots)])
    for where, text, limit in [(*part, longest) for part in mentions] + [(*part, MAX_BECAUSE) for part in reasons]:
        if len(text) > limit:
            yield Rejection(kind="too-long", text=f"{where} has {len(text)} characters; write at most {limit}")
    for where, text in reasons:
        for revealed in _REVEALED.findall(text):
            if not occurs(revealed, known):
                yield Rejection(
                    kind="source-revealed",
                    text=f"{where} speaks of {revealed!r}; write as somebody who has only the sound and the context",
                )
    if (length := len(trace_text(trace))) > (limit := longest_trace(example)):
        yield Rejection(
            kind="too-long", text=f"the notes have {length} characters; write at most {limit}: fewer mentions, shorter"
        )


def _check_transcription(trace: Trace, example: Example) -> Iterator[Rejection]:
    if words(trace.transcription) != words(example.transcript):
        yield Rejection(
            kind="transcription-differs", text=f"the transcription must be word for word: {example.transcript!r}"
        )


def _check_mentions(trace: Trace, example: Example, asked: Sequence[Label]) -> Iterator[Rejection]:
    """Mentions are of asked labels and can be heard; a value that is said is mentioned."""
    heard = _heard(example)
    names = {label.name for label in asked}
    for mention in trace.mentions:
        if mention.label not in names:
            yield _not_asked("mention", mention.label, names)
        if mention.text.strip() and not any(occurs(mention.text, text) for text in heard):
            yield Rejection(
                kind="mention-not-heard",
                text=f"the mention {mention.text!r} of {mention.label} is neither in the turn nor in the context; copy the words or leave it out",
            )
    mentioned = {mention.label for mention in trace.mentions}
    for slot in example.slots:
        if slot.label not in mentioned and occurs(slot.spoken, example.transcript):
            yield Rejection(
                kind="mention-missing",
                text=f"{slot.spoken!r} is said in the turn; add it to the mentions of {slot.label}",
            )


def _check_justifications(trace: Trace, example: Example, asked: Sequence[Label]) -> Iterator[Rejection]:
    """Each gold value is justified, to the letter and not more often than it is filled, and nothing else is."""
    names = {label.name for label in asked}
    gold = Counter((slot.label, slot.spoken) for slot in example.slots)
    filled = {label for label, _ in gold}
    justified = Counter((just.label, just.value) for just in trace.justifications)
    for (label, value), count in justified.items():
        if label not in names:
            yield _not_asked("justification", label, names)
        elif label not in filled:
            yield Rejection(
                kind="label-without-value", text=f"{label} has no value in this turn; remove its justification"
            )
        elif (label, value) not in gold:
            right = ", ".join(repr(known) for name, known in gold if name == label)
            yield Rejection(
                kind="value-differs", text=f"the justification of {label} has the value {value!r}; copy exactly {right}"
            )
        if count > max(1, gold[label, value]):
            yield Rejection(kind="justified-twice", text=f"{label} {value!r} is justified {count} times; keep one")
    for label, value in gold:
        if (label, value) not in justified:
            yield Rejection(
                kind="value-not-justified", text=f"add a justification of {label} with exactly the value {value!r}"
            )


def _check_slots(answer: TraceAnswer, example: Example) -> Iterator[Rejection]:
    written = Counter((label, words(value)) for label, value in answer.slots)
    if written != Counter((slot.label, words(slot.spoken)) for slot in example.slots):
        gold = "; ".join(f"{slot.label}: {slot.spoken!r}" for slot in example.slots) or "none at all"
        yield Rejection(kind="slots-differ", text=f"the final slots must be exactly these: {gold}")


def _heard(example: Example) -> list[str]:
    return [example.transcript, *(turn.text for turn in example.context)]


def _not_asked(part: str, label: str, names: set[str]) -> Rejection:
    return Rejection(
        kind="label-not-asked", text=f"a {part} has the label {label!r}; the labels are {', '.join(sorted(names))}"
    )
