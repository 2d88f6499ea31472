"""The records that pass between stages: corpus rows, reasoning traces, predictions. Plain frozen dataclasses with one JSON form each.

A corpus is a folder: `manifest.jsonl` (one `Example` a line), `ontology.json` (labels per domain), `traces.jsonl` (one reasoning trace per
example, optional), audio files below it, and `corpus.json`, written last: the corpus is complete when it exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

SAMPLE_RATE = 16_000
"""Hz. Every waveform in slotgrid is mono at this rate (what Whisper takes)."""

Split = Literal["train", "validation", "test", "test_frame", "test_domain"]
"""`test` is the headline split: unseen utterances and speakers, some unseen values. `test_frame` asks more: sentence patterns that training never
sees. `test_domain` holds a domain that training never sees."""
SPLITS: tuple[Split, ...] = ("train", "validation", "test", "test_frame", "test_domain")
TEST_SPLITS: tuple[Split, ...] = ("test", "test_frame", "test_domain")

InferenceMode = Literal["direct", "think"]
"""How a model is asked: answer at once, or write the reasoning trace first."""

SupervisionMode = Literal["regular", "reasoning", "hybrid"]
"""How a model is trained (paper, supervision modes)."""
SUPERVISION_MODES: tuple[SupervisionMode, ...] = ("regular", "reasoning", "hybrid")

INFERENCE_MODES: dict[SupervisionMode, tuple[InferenceMode, ...]] = {
    "regular": ("direct",),
    "reasoning": ("think",),
    "hybrid": ("direct", "think"),
}
"""The inference modes a model trained under each supervision mode is asked in."""


@dataclass(frozen=True, kw_only=True)
class SlotValue:
    """One filled slot of an utterance, in its three forms."""

    label: str
    spoken: str  # as it is said, the way the transcript writes it: "march third"
    surface: str  # as people write it: "March 3rd"
    canonical: str  # as a machine stores it: "--03-03"


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One previous turn of the dialogue, as text."""

    speaker: Literal["agent", "caller"]
    text: str


@dataclass(frozen=True, kw_only=True)
class Example:
    """One spoken turn with its gold slots."""

    id: str
    split: Split
    domain: str
    audio: str  # path below the corpus root, never absolute, never leaving it
    audio_sha256: (
        str  # of the 16 kHz mono int16 little-endian samples, so the same sound in another container is the same sound
    )
    duration_s: float
    transcript: str
    slots: tuple[SlotValue, ...]
    context: tuple[Turn, ...] = ()  # previous turns, oldest first; supervision takes the last T of them
    speaker: str = ""
    held_out: tuple[str, ...] = ()  # which of "frame", "value", "speaker", "domain" training never sees


@dataclass(frozen=True, kw_only=True)
class Mention:
    """A span of the transcription (or context) that may fill a label: step 2 of a reasoning trace."""

    label: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Justification:
    """Why a value was given to a label: step 3 of a reasoning trace."""

    label: str
    value: str
    because: str


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A reasoning trace in the paper's three steps: transcription, mentions per label, justification per value."""

    transcription: str
    mentions: tuple[Mention, ...]
    justifications: tuple[Justification, ...]


@dataclass(frozen=True, kw_only=True)
class AnnotatedExample:
    """An example and its reasoning trace; `trace` is None where only the regular mode is trained."""

    example: Example
    trace: Trace | None


@dataclass(frozen=True, kw_only=True)
class Label:
    """One slot label of the ontology."""

    name: str
    description: str
    values: tuple[
        str, ...
    ] = ()  # some values seen in the train split, the most frequent first; for people, never in a prompt


@dataclass(frozen=True, kw_only=True)
class Ontology:
    """The slot labels that can be asked for, per domain. Distractor labels are drawn from the example's own domain first."""

    domains: Mapping[str, tuple[Label, ...]]

    def labels(self) -> dict[str, Label]:
        """Every label by name, over all domains."""
        return {label.name: label for labels in self.domains.values() for label in labels}


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One generated answer beside its reference: a line of `predictions-<inference mode>.jsonl`."""

    example_id: str
    split: Split
    mode: InferenceMode
    asked_labels: tuple[str, ...]
    reference: tuple[tuple[str, str], ...]  # (label, value), the gold answer in the trained value form
    output_text: str  # everything the model wrote, special tokens included, without padding
    output_tokens: int
    truncated: bool  # the token budget ended it, not the model
    extra: Mapping[str, Any] = field(default_factory=dict)


def example_from_json(row: Mapping[str, Any]) -> Example:
    """The inverse of `to_json` for a manifest row that `data.manifest` has validated."""
    return Example(
        **{
            **row,
            "slots": tuple(SlotValue(**slot) for slot in row["slots"]),
            "context": tuple(Turn(**turn) for turn in row.get("context", ())),
            "held_out": tuple(row.get("held_out", ())),
        }
    )


def trace_from_json(row: Mapping[str, Any]) -> Trace:
    """The inverse of `to_json` for a trace."""
    return Trace(
        transcription=row["transcription"],
        mentions=tuple(Mention(**m) for m in row["mentions"]),
        justifications=tuple(Justification(**j) for j in row["justifications"]),
    )


def prediction_from_json(row: Mapping[str, Any]) -> Prediction:
    """The inverse of `to_json` for a prediction line."""
    return Prediction(
        **{
            **row,
            "asked_labels": tuple(row["asked_labels"]),
            "reference": tuple((label, value) for label, value in row["reference"]),
        }
    )


def to_json(record: Any) -> dict[str, Any]:
    """A record as a JSON-ready dict, fields in declaration order."""
    return asdict(record)
