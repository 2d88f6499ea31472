"""A trial, an example count and a GPU type -> what there is to compute, and how long that takes: columns, FLOPs, seconds.

What is only assumed about lengths and speed is a named constant here, and every plan prints it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from data.records import InferenceMode, Split
from model.architectures import Architecture, adapter_parameters, lora_parameters
from model.configs import Execution, TrialConfig
from model.foundations import architecture_of
from orchestrator.hardware import Hardware
from orchestrator.memory import BYTES

ENCODER_WIDTH, ENCODER_FRAMES_PER_SECOND = 512, 50  # Whisper-base
ASSUMED_MFU = 0.35
"""Share of the data sheet's peak that training reaches: an assumption, not measured yet."""
PADDING = 0.10
"""Columns added by padding: an assumption (examples of like length share a batch)."""
LAUNCH_SECONDS_PER_BLOCK = 0.5e-3
"""What launching one block's kernels takes in one forward pass, however small the batch: an assumption, not measured yet."""
TRANSCRIPT_TOKENS_PER_SECOND = 3.5
"""Speech at 150 words a minute, in tokens: an assumption."""
LONGEST_ANSWER = 2.0
"""A generated batch ends with its longest answer, this many times as long as the mean: an assumption."""
CHARACTERS_PER_TOKEN = 3.5
"""English with label names and JSON in a vocabulary of 50,000 to 150,000 tokens: an assumption."""
_TEMPLATE_TOKENS = 25
_INSTRUCTION, _LABEL, _DESCRIPTION, _TURN = 65, 15, 30, 50  # characters, as the synthetic corpus has them
_TRUE_LABELS, _MOST_TRUE_LABELS = 2, 4
_TARGET_TOKENS: dict[InferenceMode, int] = {"direct": 20, "think": 110}


@dataclass(frozen=True, kw_only=True)
class SequenceLengths:
    """How long examples are: means decide the time, the longest decide the memory. Tokens, and seconds of audio."""

    audio_seconds: float
    longest_audio_seconds: float
    prompt: int
    longest_prompt: int
    target: Mapping[InferenceMode, int]
    longest_target: Mapping[InferenceMode, int]


def assumed_lengths(trial: TrialConfig) -> SequenceLengths:
    """Lengths from the supervision settings, at the sizes of the synthetic corpus.

    The longest audio is what the encoder takes (30 s), the longest target what evaluation may generate.
    """
    supervision = trial.supervision
    label = _LABEL + supervision.label_descriptions * _DESCRIPTION

    def prompt(labels: float, turns: float) -> int:
        return _TEMPLATE_TOKENS + round((_INSTRUCTION + labels * label + turns * _TURN) / CHARACTERS_PER_TOKEN)

    modes = trial.inference_modes
    return SequenceLengths(
        audio_seconds=5.0,
        longest_audio_seconds=30.0,
        prompt=prompt(_TRUE_LABELS + (1 + supervision.max_distractors) / 2, supervision.max_context_turns / 2),
        longest_prompt=prompt(_MOST_TRUE_LABELS + supervision.max_distractors, supervision.max_context_turns),
        target={mode: min(_TARGET_TOKENS[mode], trial.evaluation.max_new_tokens(mode)) for mode in modes},
        longest_target={mode: trial.evaluation.max_new_tokens(mode) for mode in modes},
    )


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One trial on one type of GPU. Raises ValueError, when a figure is asked for, where the foundation's dimensions are not known."""

    trial: TrialConfig
    hardware: Hardware
    lengths: SequenceLengths
    examples: Mapping[Split, int]  # of the splits that are evaluated
    aligning: bool = False  # a trial's alignment stage: no LoRA

    @cached_property
    def alignment(self) -> Workload | None:
        """The alignment stage before the trial, where it has one: the adapter alone trains, transcripts are its targets."""
        stage, lengths = self.trial.alignment, self.lengths
        if stage is None:
            return None
        spoken, longest = (
            max(1, round(seconds * TRANSCRIPT_TOKENS_PER_SECOND))
            for seconds in (lengths.audio_seconds, lengths.longest_audio_seconds)
        )
        prompt = _TEMPLATE_TOKENS + round(_INSTRUCTION / CHARACTERS_PER_TOKEN)
        return replace(
            self,
            trial=replace(self.trial, budget=stage.budget, alignment=None),
            lengths=replace(
                lengths,
                prompt=prompt,
                longest_prompt=prompt,
                target=dict.fromkeys(lengths.target, spoken),
                longest_target=dict.fromkeys(lengths.target, longest),
            ),
            examples={},
            aligning=True,
        )

    @cached_property
    def architecture(self) -> Architecture:
        """The foundation's dimensions."""
        return architecture_of(self.trial.foundation)

    @cached_property
    def frozen(self) -> int:
        """The foundation's parameters."""
        return self.architecture.parameters.total

    @cached_property
    def lora(self) -> int:
        """LoRA's parameters."""
        return 0 if self.aligning else lora_parameters(self.architecture, self.trial.lora)

    @cached_property
    def adapter(self) -> int:
        """The speech adapter's parameters."""
        return adapter_parameters(
            self.trial.adapter, encoder_width=ENCODER_WIDTH, hidden_size=self.architecture.hidden_size
        )

    @property
    def trainable(self) -> int:
        """All that trains."""
        return self.lora + self.adapter

    @property
    def peak_flops(self) -> float:
        """The GPU's peak per second in the trial's precision."""
        return self.hardware.tflops(self.trial.optim.precision) * 1e12

    def audio_columns(self, seconds: float) -> int:
        """Audio embeddings of that many seconds."""
        return -(-round(seconds * ENCODER_FRAMES_PER_SECOND) // self.trial.adapter.stack_factor)

    @cached_property
    def mean_target(self) -> float:
        """Target tokens of a training example."""
        modes = self.trial.inference_modes
        return sum(self.lengths.target[mode] for mode in modes) / len(modes)

    @cached_property
    def mean_columns(self) -> float:
        """Columns of a training example, padding included."""
        heard = self.audio_columns(self.lengths.audio_seconds)
        return (heard + self.lengths.prompt + self.mean_target) * (1 + PADDING)

    @property
    def tokens_per_step(self) -> int:
        """Columns of a global batch."""
        return round(self.trial.budget.batch_size * self.mean_columns)

    def flops_per_step(self, *, recompute: bool) -> float:
        """FLOPs of one optimizer step on all GPUs.

        A weight costs 2 a token forward and 2 for the gradient of what enters it; 2 more for its own gradient where it trains (LoRA, adapter).
        Attention: 4 A x columns forward, twice that backward. The head sees target columns only. Checkpointing repeats the blocks' forward pass.
        """
        a, examples = self.architecture, self.trial.budget.batch_size
        attention = 4 * a.query_width * self.mean_columns * a.num_hidden_layers
        forward = 2 * (a.parameters.blocks + self.lora) + attention
        backward = 2 * a.parameters.blocks + 4 * self.lora + 2 * attention
        head = 4 * a.vocab_size * a.hidden_size * self.mean_target * (1 + PADDING)
        adapter = 6 * self.adapter * self.audio_columns(self.lengths.audio_seconds)
        blocks = self.mean_columns * (forward + backward + recompute * forward)
        return examples * (blocks + head + adapter)

    def gather_seconds(self, execution: Execution) -> float:
        """What ZeRO-3 takes to bring the frozen weights to every GPU once; it may overlap with arithmetic, here it does not."""
        if execution.zero_stage < 3:
            return 0.0
        missing = BYTES[self.trial.optim.precision] * self.frozen * (execution.workers - 1) / execution.workers
        return missing / (self.hardware.link_gb_per_s * 1e9)

    def step_seconds(self, execution: Execution) -> float:
        """One optimizer step: its arithmetic, or launching its kernels where the micro-batches are so small that this takes longer.

        A backward pass launches twice as many kernels as a forward pass. ZeRO-3 gathers the weights for each of the two, in every micro-batch.
        Trials that share a GPU take turns at its arithmetic, while each launches its kernels from a core of its own.
        """
        passes = 3 + execution.gradient_checkpointing
        flops = self.flops_per_step(recompute=execution.gradient_checkpointing)
        computing = execution.trials_per_gpu * flops / (execution.workers * self.peak_flops * ASSUMED_MFU)
        launching = execution.micro_batches * passes * self.architecture.num_hidden_layers * LAUNCH_SECONDS_PER_BLOCK
        return max(computing, launching) + 2 * execution.micro_batches * self.gather_seconds(execution)

    def evaluation_seconds(self, execution: Execution) -> float:
        """Greedy generation of every evaluated split in every inference mode: prompts are read at training speed, then token by token.

        Trials that share a GPU take turns as in `step_seconds`.
        """
        a, modes, evaluation = self.architecture, self.trial.inference_modes, self.trial.evaluation
        examples = sum(self.examples.get(split, 0) for split in evaluation.splits)
        batches = -(-examples // (execution.workers * execution.evaluation_batch_size))
        prompt = self.audio_columns(self.lengths.audio_seconds) + self.lengths.prompt
        reading = 2 * a.parameters.blocks * prompt * execution.evaluation_batch_size / (self.peak_flops * ASSUMED_MFU)
        weights = BYTES[self.trial.optim.precision] * (self.frozen + self.lora) / (self.hardware.memory_gb_per_s * 1e9)
        reading, weights = execution.trials_per_gpu * reading, execution.trials_per_gpu * weights
        token = max(weights, a.num_hidden_layers * LAUNCH_SECONDS_PER_BLOCK) + self.gather_seconds(execution)
        answers = sum(
            min(LONGEST_ANSWER * self.lengths.target[mode], evaluation.max_new_tokens(mode)) for mode in modes
        )
        return batches * (len(modes) * (reading + self.gather_seconds(execution)) + answers * token)

    def seconds(self, execution: Execution) -> float:
        """Training and evaluation."""
        return self.trial.budget.steps * self.step_seconds(execution) + self.evaluation_seconds(execution)
