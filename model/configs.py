"""What a trial computes, as frozen dataclasses: foundation, encoder, adapter, LoRA, optimisation, budget, supervision, evaluation.

Standard library only, so that declaring and planning a grid never import torch. *Where* a trial runs (`Execution`) is kept apart: it never
enters a trial's fingerprint. Every class validates itself and names the field and the remedy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from data.records import INFERENCE_MODES, InferenceMode, Split, SupervisionMode
from data.supervision import TRANSCRIPTION_VERSION, SupervisionConfig

FoundationKind = Literal["base", "instruct", "reasoning", "hybrid"]
FOUNDATION_KINDS: tuple[FoundationKind, ...] = get_args(FoundationKind)

Padding = Literal["none", "30s"]
Precision = Literal["fp32", "bf16"]
Attention = Literal["sdpa", "flash_attention_2", "eager"]


TRAINING_VERSION = 1
"""Raised when a change of the code changes what the same configuration trains or answers: older trials are then stale, and say so."""


KeptCheckpoints = Literal["last", "weights"]
"""Of a done trial: the whole last checkpoint (it may be trained on), or its weights alone (a third of it; enough to export and to score)."""


def _require(condition: bool, field_name: str, remedy: str) -> None:
    if not condition:
        raise ValueError(f"{field_name}: {remedy}")


@dataclass(frozen=True, kw_only=True)
class Foundation:
    """A text foundation LLM: where its weights come from, and what kind it is (paper, foundation LLMs)."""

    name: str  # readable, names the trial: "qwen3-4b"
    kind: FoundationKind
    source: str  # a Hugging Face id, a local folder, or "package:<name>" for model/tiny_foundations/<name>
    revision: str  # the hub's commit or tag; for a packaged foundation the sha256 of its weights
    family: str
    parameters: int  # as published, for the plan's table

    def __post_init__(self) -> None:
        _require(
            self.kind in FOUNDATION_KINDS,
            f"foundation {self.name}: kind",
            f"{self.kind!r} is not one of {FOUNDATION_KINDS}",
        )


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The frozen speech encoder and how audio is padded before it."""

    name: str = "whisper-base"  # "whisper-base-random" (tests) must be asked for by name
    padding: Padding = (
        "none"  # "none": states of the audio alone; "30s": Whisper's own window, cut back to the audio's length
    )

    def __post_init__(self) -> None:
        _require(
            self.padding in get_args(Padding), "encoder.padding", f"{self.padding!r} is not one of {get_args(Padding)}"
        )


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The speech adapter: frames stacked, then a 2-layer MLP (paper: 2-layer MLP, 8x downsampling; the rest is our choice)."""

    stack_factor: int = 8
    hidden_width: int = 2048  # not known from the paper

    def __post_init__(self) -> None:
        _require(self.stack_factor >= 1, "adapter.stack_factor", "must be at least 1")
        _require(self.hidden_width >= 1, "adapter.hidden_width", "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """LoRA on the foundation (paper: r=32, alpha=128 for every experiment; target modules and dropout are our choice)."""

    r: int = 32
    alpha: int = 128
    dropout: float = 0.0
    target_modules: str = "all-linear"

    def __post_init__(self) -> None:
        _require(self.r >= 1, "lora.r", "must be at least 1")
        _require(0 <= self.dropout < 1, "lora.dropout", "must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warmup and cosine decay to `final_fraction` of the peak (all our choice; the paper does not say)."""

    lora_learning_rate: float = 2e-4
    adapter_learning_rate: float = 1e-3
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.98
    warmup_fraction: float = 0.1
    final_fraction: float = 0.05
    max_grad_norm: float = 1.0
    precision: Precision = "bf16"

    def __post_init__(self) -> None:
        _require(self.lora_learning_rate > 0, "optim.lora_learning_rate", "must be positive")
        _require(self.adapter_learning_rate > 0, "optim.adapter_learning_rate", "must be positive")
        _require(0 <= self.warmup_fraction < 1, "optim.warmup_fraction", "must be in [0, 1)")
        _require(self.precision in get_args(Precision), "optim.precision", f"must be one of {get_args(Precision)}")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much a trial trains: the same number of optimizer steps of the same global batch for every mode."""

    steps: int
    batch_size: int  # examples per optimizer step, over all workers

    def __post_init__(self) -> None:
        _require(self.steps >= 0, "budget.steps", "must not be negative (0 evaluates the untrained model)")
        _require(self.batch_size >= 1, "budget.batch_size", "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Greedy generation on the validation split (which picks the headline inference mode) and the test split (which scores it)."""

    max_new_tokens_direct: int = 128
    max_new_tokens_think: int = 512
    splits: tuple[Split, ...] = ("validation", "test", "test_frame")
    constrained: bool = False  # decode only answers that are JSON objects over the asked labels (`model.constrained`)

    def __post_init__(self) -> None:
        missing = {"validation", "test"} - set(self.splits)
        _require(
            not missing,
            "evaluation.splits",
            f"must hold {' and '.join(sorted(missing))}: one picks the headline, one scores it",
        )

    def max_new_tokens(self, mode: InferenceMode) -> int:
        """The token budget of one inference mode."""
        return self.max_new_tokens_think if mode == "think" else self.max_new_tokens_direct


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """A stage before slot filling: the adapter alone learns to let the foundation write down what is said (companion paper, multi-stage).

    Trained once per foundation and seed; every supervision mode starts from the same aligned adapter. The budget and rate are our choice.
    """

    budget: Budget
    adapter_learning_rate: float = 1e-3
    transcription_version: int = TRANSCRIPTION_VERSION  # of the prompts and targets

    def __post_init__(self) -> None:
        _require(
            self.budget.steps >= 1, "alignment.budget.steps", "must be at least 1; leave the alignment out instead"
        )
        _require(self.adapter_learning_rate > 0, "alignment.adapter_learning_rate", "must be positive")
        _require(
            self.transcription_version == TRANSCRIPTION_VERSION,
            "alignment.transcription_version",
            f"this code writes version {TRANSCRIPTION_VERSION}, not {self.transcription_version}",
        )


@dataclass(frozen=True, kw_only=True)
class CorpusRef:
    """The corpus a trial trains on: its name and the fingerprint of its content or of the recipe that makes it."""

    name: str
    fingerprint: str
    traces: str | None = None
    """Fingerprint of the reasoning traces, where they were written after the corpus and the supervision mode trains on them."""


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """One cell of a grid: everything that decides its result, and nothing else."""

    foundation: Foundation
    supervision: SupervisionConfig
    corpus: CorpusRef
    budget: Budget
    seed: int = 0
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    alignment: AlignmentConfig | None = None  # None: slot filling from the start
    metric_version: int = 2
    training_version: int = TRAINING_VERSION

    def __post_init__(self) -> None:
        _require(
            self.training_version == TRAINING_VERSION,
            "training_version",
            f"this code computes version {TRAINING_VERSION}, not {self.training_version}",
        )

    @property
    def mode(self) -> SupervisionMode:
        """The supervision mode."""
        return self.supervision.mode

    @property
    def inference_modes(self) -> tuple[InferenceMode, ...]:
        """The modes this trial is asked in."""
        return INFERENCE_MODES[self.mode]


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a trial runs on the machine at hand. Changes its speed and memory, never its identity.

    Workers, micro-batches, ZeRO stage and kernels change the order of sums, so results differ by rounding.
    """

    checkpoint_every: int = 200  # optimizer steps
    workers: int = 1
    use_gpu: bool = False
    cpus_per_worker: int = 1
    zero_stage: int = 0  # DeepSpeed's: 1 shards the optimizer state, 2 the gradients too, 3 the weights too (the frozen LM's with them)
    micro_batches: int = 1  # per optimizer step and worker (gradient accumulation)
    gradient_checkpointing: bool = False
    attention: Attention = "sdpa"  # torch's own kernels; "flash_attention_2" needs a GPU and flash-attn
    liger_kernels: bool = False  # fused Triton kernels; needs a GPU and liger-kernel
    evaluation_batch_size: int = 64
    trials_per_gpu: int = 1  # small trials share a GPU; needs workers=1
    keep_checkpoints: KeptCheckpoints = "last"  # of a trial that is done

    def __post_init__(self) -> None:
        _require(self.zero_stage in (0, 1, 2, 3), "execution.zero_stage", "must be 0, 1, 2 or 3")
        _require(self.micro_batches >= 1, "execution.micro_batches", "must be at least 1")
        _require(self.checkpoint_every >= 1, "execution.checkpoint_every", "must be at least 1")
        _require(self.evaluation_batch_size >= 1, "execution.evaluation_batch_size", "must be at least 1")
        _require(
            self.trials_per_gpu == 1 or (self.trials_per_gpu > 1 and self.workers == 1 and self.use_gpu),
            "execution.trials_per_gpu",
            "must be at least 1; trials that share a GPU have one worker each and use_gpu",
        )
        _require(
            self.keep_checkpoints in get_args(KeptCheckpoints),
            "execution.keep_checkpoints",
            f"must be one of {get_args(KeptCheckpoints)}",
        )
        _require(self.attention in get_args(Attention), "execution.attention", f"must be one of {get_args(Attention)}")
        for kernel, chosen in (
            ("attention", self.attention == "flash_attention_2"),
            ("liger_kernels", self.liger_kernels),
        ):
            _require(self.use_gpu or not chosen, f"execution.{kernel}", "these kernels run on a GPU only; set use_gpu")
