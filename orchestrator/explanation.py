"""What `explain` tells of one trial, as records: the prompt and target token by token, lengths, parameters, data and schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from data.records import InferenceMode, Split
from model.configs import TrialConfig

Mark = Literal["masked", "audio", "trained"]


@dataclass(frozen=True, kw_only=True)
class ShownToken:
    """One column of the model's input; of the audio all columns together."""

    mark: Mark
    text: str
    id: int | None  # None: the audio


@dataclass(frozen=True, kw_only=True)
class ShownExample:
    """One example as the model meets it in one inference mode."""

    mode: InferenceMode
    columns: Mapping[Mark, int]
    tokens: tuple[ShownToken, ...]
    text: tuple[tuple[Mark, str], ...]  # the same in four parts: prompt, audio, prompt, target
    max_new_tokens: int  # in evaluation; a target longer than this is always cut


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """What the tokenizer and its chat template make of an example."""

    special_tokens: Mapping[str, tuple[str, int]]  # role -> text and id; those that the tokenizer has
    stops_at: tuple[tuple[str, int], ...]  # the first one is trained; the others are the foundation's own
    examples: tuple[ShownExample, ...]  # one per inference mode


@dataclass(frozen=True, kw_only=True)
class AudioLength:
    """From seconds to the columns that the audio takes."""

    seconds: float
    assumed: bool  # the example has no audio yet
    encoder_frames: int
    stack_factor: int
    embeddings: int


@dataclass(frozen=True, kw_only=True)
class TrainableParameters:
    """What trains, part by part, and what stays frozen."""

    parts: Mapping[str, int]
    trained: int
    frozen: int

    @property
    def share(self) -> float:
        """Of all parameters, those that train."""
        return self.trained / (self.trained + self.frozen)


@dataclass(frozen=True, kw_only=True)
class DataCounts:
    """How many examples there are, and how many of them train."""

    prepared: bool  # the corpus is on disk; else these are the numbers that will be made
    splits: Mapping[Split, int]
    train_with_trace: int
    items: Mapping[InferenceMode, int]  # what one pass trains on, per inference mode


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The optimizer's work."""

    steps: int
    batch_size: int
    passes: float  # over the training items
    warmup_steps: int
    learning_rates: Mapping[str, tuple[float, float]]  # peak and last, per parameter group
    max_grad_norm: float
    precision: str


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Everything that `explain` shows of one trial."""

    trial: TrialConfig
    trial_id: str
    example_id: str
    example_from: str
    audio: AudioLength
    rendering: Rendering | None  # None: the tokenizer is not on this machine
    parameters: TrainableParameters | None  # None: the foundation's dimensions are not known
    data: DataCounts
    schedule: Schedule
    gaps: tuple[str, ...]  # what could not be shown, and what to do about it
