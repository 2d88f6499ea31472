"""AnnotatedExample + supervision mode -> SupervisedExample: the words of the prompt, of the target, and the gold answer.

Three things are drawn per example so that the model meets unseen slots (paper, Data): T previous turns (0-3), S distractor labels (1-5) and one
of ten instruction wordings. The draw is a pure function of (seed, example id, epoch): the same on every worker, after every resume.
The prompt's text is ours (the paper's is not public) and versioned: any change of a wording changes `PROMPT_VERSION`.

`transcribe` is the task of the alignment stage that may come before: write down what is said, with wordings and a version of its own.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from data.records import (
    INFERENCE_MODES,
    SUPERVISION_MODES,
    AnnotatedExample,
    Example,
    InferenceMode,
    Label,
    Ontology,
    SupervisionMode,
    Trace,
    Turn,
)

PROMPT_VERSION = 1
AUDIO_MARKER = "<|audio|>"
"""Stands in the prompt where the audio embeddings go; text-only pretraining puts the transcript there."""
MODE_TOKENS: dict[InferenceMode, str] = {"think": "\\think", "direct": "\\no think"}
"""As printed in the paper. Only hybrid-trained models see them."""

INSTRUCTIONS = (
    "fill the slots from what the caller says",
    "listen to the caller and extract the values of these labels",
    "which of these labels does the caller give a value for",
    "extract the slot values from the call",
    "find the value of each label in the audio",
    "read the labels then listen and answer with the values you hear",
    "write the labels and values that the caller mentions",
    "what does the caller say about these labels",
    "return the slots that are filled in this turn",
    "get the details named by these labels from the caller",
)

TRANSCRIPTION_VERSION = 1
"""Of the alignment stage's prompts and targets, raised with any change of them; `PROMPT_VERSION` knows nothing of them."""
TRANSCRIPTION_INSTRUCTIONS = (
    "write down what the caller says",
    "listen to the caller and write down every word",
    "what does the caller say",
    "transcribe the audio",
    "repeat the words of the caller in writing",
)

ValueForm = Literal["spoken", "surface", "canonical"]


@dataclass(frozen=True, kw_only=True)
class SupervisionConfig:
    """The supervision mode and everything that shapes a prompt or a target."""

    mode: SupervisionMode
    max_context_turns: int = 3  # T is drawn from 0..this (paper: 3)
    max_distractors: int = 5  # S is drawn from 1..this (paper: 5)
    label_descriptions: bool = True  # list each asked label with its description
    value_form: ValueForm = "surface"  # which form of a value is the answer
    prompt_version: int = PROMPT_VERSION

    def __post_init__(self) -> None:
        if self.mode not in SUPERVISION_MODES:
            raise ValueError(f"supervision.mode: {self.mode!r} is not one of {', '.join(SUPERVISION_MODES)}")
        if self.value_form not in get_args(ValueForm):
            raise ValueError(f"supervision.value_form: {self.value_form!r} is not one of {get_args(ValueForm)}")
        if self.max_distractors < 1 or self.max_context_turns < 0:
            raise ValueError("supervision: max_distractors must be at least 1 and max_context_turns at least 0")
        if self.prompt_version != PROMPT_VERSION:
            raise ValueError(
                f"supervision.prompt_version: this code writes version {PROMPT_VERSION}, not {self.prompt_version}"
            )


@dataclass(frozen=True, kw_only=True)
class SupervisedExample:
    """One training or evaluation item: words only, no token ids yet."""

    example_id: str
    mode: InferenceMode
    prompt: str  # holds AUDIO_MARKER once
    target: str  # without the end-of-sequence token; empty where none was asked for
    asked_labels: tuple[str, ...]  # true labels and distractors, shuffled
    reference: tuple[tuple[str, str], ...]  # (label, value) in the configured value form


def supervise(
    annotated: AnnotatedExample,
    ontology: Ontology,
    config: SupervisionConfig,
    *,
    mode: InferenceMode,
    draw: str,
    with_target: bool = True,
) -> SupervisedExample:
    """Write the prompt and the target of one example for one inference mode.

    `draw` names the random draw, e.g. "seed0/epoch3" or "evaluation"; the result depends on it, the example and the config alone, and the
    two inference modes of one draw share their labels, context and wording. Raises ValueError when the target of "think" is wanted of an
    example without a trace; asking a model (`with_target=False`) needs none.
    """
    example = annotated.example
    rng = random.Random(hashlib.sha256(f"{draw}|{example.id}".encode()).digest())
    context = example.context[
        len(example.context) - rng.randint(0, min(config.max_context_turns, len(example.context))) :
    ]
    asked = _asked_labels(annotated, ontology, config, rng)
    instruction = rng.choice(INSTRUCTIONS)
    reference = tuple((slot.label, getattr(slot, config.value_form)) for slot in example.slots)
    return SupervisedExample(
        example_id=example.id,
        mode=mode,
        prompt=prompt_text(asked, context, config, mode, instruction),
        target=_target(annotated, config, mode, reference) if with_target else "",
        asked_labels=tuple(label.name for label in asked),
        reference=reference,
    )


def transcribe(example: Example, *, draw: str) -> SupervisedExample:
    """Write the alignment stage's prompt and target of one example: the audio in, its transcript out; no labels, no previous turns.

    `draw` as in `supervise`; it decides the wording. The inference mode is direct: nothing is to be thought about.
    """
    rng = random.Random(hashlib.sha256(f"transcription|{draw}|{example.id}".encode()).digest())
    return SupervisedExample(
        example_id=example.id,
        mode="direct",
        prompt=f"{rng.choice(TRANSCRIPTION_INSTRUCTIONS)}\naudio: {AUDIO_MARKER}",
        target=example.transcript,
        asked_labels=(),
        reference=(),
    )


def prompt_text(
    labels: Sequence[Label],
    context: Sequence[Turn],
    config: SupervisionConfig,
    mode: InferenceMode,
    instruction: str,
) -> str:
    """The words of a prompt, `AUDIO_MARKER` in the place of the audio: these labels and previous turns, in this order."""
    described = [f"{label.name}: {label.description}" if config.label_descriptions else label.name for label in labels]
    lines = [instruction, "labels: " + ("; " if config.label_descriptions else ", ").join(described)]
    lines += [f"{turn.speaker}: {turn.text}" for turn in context]
    lines.append(f"audio: {AUDIO_MARKER}")
    if config.mode == "hybrid":
        lines.append(MODE_TOKENS[mode])
    return "\n".join(lines)


def _target(
    annotated: AnnotatedExample,
    config: SupervisionConfig,
    mode: InferenceMode,
    reference: tuple[tuple[str, str], ...],
) -> str:
    answer = answer_json(reference)
    if mode == "direct":
        return answer
    if annotated.trace is None:
        raise ValueError(
            f"example {annotated.example.id}: no reasoning trace, which {config.mode} supervision needs; "
            "write one with `slotgrid data annotate`"
        )
    written = {(slot.label, slot.spoken): getattr(slot, config.value_form) for slot in annotated.example.slots}
    return f"<thinking>{trace_text(annotated.trace, written)}</thinking><response>{answer}</response>"


def inference_mode(config: SupervisionConfig, index: int) -> InferenceMode:
    """Which mode the `index`-th copy of an example is trained in: hybrid merges both sets, the others have one."""
    modes = INFERENCE_MODES[config.mode]
    return modes[index % len(modes)]


def answer_json(pairs: tuple[tuple[str, str], ...]) -> str:
    """The answer as one JSON object, labels in order of mention; a label with several values holds a list."""
    answer: dict[str, str | list[str]] = {}
    for label, value in pairs:
        held = answer.get(label)
        answer[label] = value if held is None else [*([held] if isinstance(held, str) else held), value]
    return json.dumps(answer, ensure_ascii=False)


def trace_text(trace: Trace, written: Mapping[tuple[str, str], str] | None = None) -> str:
    """The reasoning trace in the paper's three steps; the paper's only known example begins "I hea...".

    Transcription and mentions are as heard; a justified value is in the answer's form where `written` maps (label, spoken) to it.
    """
    written = written or {}
    parts = [f"I hear: {trace.transcription}."]
    parts += [f"{mention.label}: {mention.text}." for mention in trace.mentions]
    parts += [
        f"{just.label} is {written.get((just.label, just.value), just.value)} because {just.because}."
        for just in trace.justifications
    ]
    return " ".join(parts)


def _asked_labels(
    annotated: AnnotatedExample, ontology: Ontology, config: SupervisionConfig, rng: random.Random
) -> list[Label]:
    """The true labels and S distractors (the domain's own first, other domains' when it has too few), shuffled."""
    every = ontology.labels()
    true = list(dict.fromkeys(slot.label for slot in annotated.example.slots))
    count = rng.randint(1, config.max_distractors)
    own = [label.name for label in ontology.domains.get(annotated.example.domain, ()) if label.name not in true]
    others = [name for name in every if name not in true and name not in own]
    rng.shuffle(own)
    rng.shuffle(others)
    asked = true + (own + others)[:count]
    rng.shuffle(asked)
    return [every[name] for name in asked]
