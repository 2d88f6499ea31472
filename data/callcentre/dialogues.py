"""Domains become caller turns: split, seed and number -> `Utterance` with transcript, gold slots, context and trace.

Splits are apart by construction. A turn's core (without fillers, greetings and repairs) belongs to one split by its
hash; held-out values are drawn for the test splits only, held-out frames are all of `test_frame`, the held-out domain is all
of `test_domain`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from data.callcentre.context import build_context
from data.callcentre.grammar import MAX_SLOTS, SLOT, Domain, Frame, LabelSpec, build_ontology, load_domains, load_shared
from data.callcentre.held_out import HeldOutValues, held_out_values
from data.callcentre.values import Value, draw_combined, list_value, stable_hash
from data.callcentre.wording import (
    REPAIR_SHARE,
    Piece,
    add_extras,
    add_repair,
    can_be_repaired,
    core_text,
    expand_macros,
    fill_template,
    spoken_text,
)
from data.records import TEST_SPLITS, AnnotatedExample, Example, Justification, Mention, SlotValue, Split, Trace, Turn

__all__ = [
    "GENERATOR_VERSION",
    "HeldOutValues",
    "Utterance",
    "build_ontology",
    "held_out_values",
    "iter_utterances",
    "load_domains",
]

GENERATOR_VERSION: int = 1
"""Raised whenever the same seed gives other utterances: a corpus made by another version is another corpus."""

HELD_OUT_VALUE_SHARE = 0.25
"""Of the test splits."""

ANSWER_SHARE = 0.3
STATEMENT_SHARE = {"request": 0.06, "answer": 0.4}
"""How often a turn adds a statement such as "my name is ..."; a bare answer is short, so it does so more often."""

SHORTEST, LONGEST = 4, 16
"""Words of a transcript."""

MAX_ATTEMPTS = 2_000
"""Draws for one utterance before the split counts as exhausted; about one draw in ten fits the rarest split."""


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """A row of the corpus before it is voiced."""

    id: str
    split: Split
    domain: str
    transcript: str
    slots: tuple[SlotValue, ...]  # in the order they are said
    context: tuple[Turn, ...]
    trace: Trace
    held_out: tuple[str, ...]  # of "frame", "value", "domain"

    def unvoiced(self) -> AnnotatedExample:
        """The row as the corpus holds it, but without audio."""
        example = Example(
            id=self.id,
            split=self.split,
            domain=self.domain,
            audio="",
            audio_sha256="",
            duration_s=0.0,
            transcript=self.transcript,
            slots=self.slots,
            context=self.context,
        )
        return AnnotatedExample(example=example, trace=self.trace)


def iter_utterances(split: Split, count: int, seed: int) -> Iterator[Utterance]:
    """Yield `count` utterances with distinct transcripts; number i depends on (seed, split, i) and on those before it.

    Raises ValueError when the grammar cannot say as many different things.
    """
    seen: set[str] = set()
    for index in range(count):
        for attempt in range(MAX_ATTEMPTS):
            rng = random.Random(stable_hash(f"{seed}/{split}/{index}/{attempt}"))
            utterance = _draw_utterance(rng, split, f"{split}-{index:06d}")
            if utterance is not None and utterance.transcript not in seen:
                break
        else:
            raise ValueError(
                f"the call-centre grammar has no more than {index} utterances for split '{split}'; ask for fewer"
            )
        seen.add(utterance.transcript)
        yield utterance


def split_of_core(core: str, frame: Frame, domain: Domain) -> Split:
    """The one split whose turns may have this core: train 7 in 10, validation 1 in 10, a test split 2 in 10."""
    bucket = stable_hash(f"split/{core}") % 10
    if bucket < 2:
        return "test_domain" if domain.held_out else "test_frame" if frame.held_out else "test"
    return "validation" if bucket == 2 else "train"


def _draw_value(label: LabelSpec, held_out: bool, rng: random.Random) -> Value:
    """One value of a label that is, or is not, test-only."""
    if label.kind == "list":
        return list_value(rng.choice(label.held_out_values if held_out else label.values), label.proper, held_out)
    shared = load_shared()
    while True:  # ends: one combined value in five is held out
        value = draw_combined(label.kind, rng, label.length, shared.first_names, shared.last_names)
        if value.held_out == held_out:
            return value


def _can_hold_out(label: LabelSpec) -> bool:
    return bool(label.held_out_values) if label.kind == "list" else label.kind not in ("count", "doctor")


@dataclass(frozen=True)
class _Choice:
    """A frame, one of its templates, and a statement to say before or after it."""

    frame: Frame
    template: str
    statement: str  # "" for none
    statement_first: bool
    labels: tuple[str, ...]


def _choose(domain: Domain, held_out_frame: bool, rng: random.Random) -> _Choice:
    """Draw the label first, then a frame that fills it, so that every label of a domain is about as frequent."""
    kind = "answer" if rng.random() < ANSWER_SHARE else "request"
    by_label: dict[str, list[tuple[Frame, str]]] = {}
    for frame in domain.frames:
        if frame.kind == kind and frame.held_out == held_out_frame:
            for template in frame.templates:
                for name in SLOT.findall(template):
                    by_label.setdefault(name, []).append((frame, template))
    frame, template = rng.choice(by_label[rng.choice(list(by_label))])
    labels = tuple(SLOT.findall(template))
    says = [
        label
        for label in domain.labels.values()
        if label.says and label.name not in labels and (kind == "answer" or label.identifies)
    ]
    statement = ""
    if says and len(labels) < MAX_SLOTS and rng.random() < STATEMENT_SHARE[kind]:
        statement = rng.choice(rng.choice(says).says)
        labels += tuple(SLOT.findall(statement))
    first = kind == "request" and rng.random() < 0.4
    return _Choice(frame, expand_macros(template, rng, load_shared()), statement, first, labels)


def _word_turn(choice: _Choice, values: dict[str, Value], domain: Domain, asked: str | None) -> list[Piece]:
    """The pieces of a turn, before fillers: the frame and the statement, in either order."""
    main = fill_template(choice.template, values, domain.labels, asked)
    if not choice.statement:
        return main
    statement = fill_template(choice.statement, values, domain.labels)
    first, second = (statement, main) if choice.statement_first else (main, statement)
    return [*first, Piece("text", "and"), *second]


def _draw_utterance(rng: random.Random, split: Split, name: str) -> Utterance | None:
    """One draw; None when it does not fit the split (its core is another one's, no value to hold out, too long)."""
    shared = load_shared()
    domain = rng.choice([domain for domain in load_domains() if domain.held_out == (split == "test_domain")])
    choice = _choose(domain, split == "test_frame", rng)
    special = None
    if split in TEST_SPLITS and rng.random() < HELD_OUT_VALUE_SHARE:
        eligible = [label for label in choice.labels if _can_hold_out(domain.labels[label])]
        if not eligible:
            return None
        special = rng.choice(eligible)
    values = {label: _draw_value(domain.labels[label], label == special, rng) for label in choice.labels}
    if len({value.spoken for value in values.values()}) < len(values):
        return None
    asked = choice.labels[0] if choice.frame.kind == "answer" else None
    pieces = _word_turn(choice, values, domain, asked)
    if split_of_core(core_text(pieces), choice.frame, domain) != split:
        return None
    if rng.random() < REPAIR_SHARE:
        at = rng.choice([index for index, piece in enumerate(pieces) if piece.role == "value"])
        wrong = _draw_value(domain.labels[pieces[at].label], False, rng)
        if can_be_repaired(wrong) and can_be_repaired(values[pieces[at].label]) and wrong.spoken != pieces[at].words:
            pieces = add_repair(pieces, at, wrong, rng, shared)
    pieces = add_extras(pieces, rng, shared)
    if not SHORTEST <= len(spoken_text(pieces).split()) <= LONGEST:
        return None
    context = build_context(domain, choice.labels, asked, lambda label: _draw_value(label, False, rng), rng, shared)
    return _assemble(name, split, domain, choice.frame, pieces, values, context)


def _assemble(
    name: str,
    split: Split,
    domain: Domain,
    frame: Frame,
    pieces: list[Piece],
    values: dict[str, Value],
    context: tuple[Turn, ...],
) -> Utterance:
    """The record of a worded turn."""
    gold = [piece for piece in pieces if piece.role == "value"]
    spoken = {label: values[label] for label in (piece.label for piece in gold)}
    transcript = spoken_text(pieces)
    finder = held_out_values()
    facts = {
        "frame": frame.held_out or (domain.held_out and frame.own),
        "value": any(finder.find(value.spoken) for value in values.values()),
        "domain": domain.held_out,
    }
    return Utterance(
        id=name,
        split=split,
        domain=domain.name,
        transcript=transcript,
        slots=tuple(
            SlotValue(label=label, spoken=value.spoken, surface=value.surface, canonical=value.canonical)
            for label, value in spoken.items()
        ),
        context=context,
        trace=Trace(
            transcription=transcript,
            mentions=tuple(Mention(label=piece.label, text=piece.words) for piece in pieces if piece.label),
            justifications=tuple(
                Justification(label=piece.label, value=piece.words, because=piece.because) for piece in gold
            ),
        ),
        held_out=tuple(fact for fact, holds in facts.items() if holds),
    )
