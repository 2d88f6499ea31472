"""The four sizes that every experiment can be run at, and the rule that picks one: a `Scale` turns a grid cell into a `TrialConfig`.

The paper publishes the foundations, the modes and the LoRA rank. Learning rates, steps, batch sizes and precision are ours everywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from data.callcentre.synthesize import SyntheticCorpusConfig
from data.records import INFERENCE_MODES, SUPERVISION_MODES, SupervisionMode
from data.scoring import METRIC_VERSION
from data.supervision import SupervisionConfig, ValueForm
from model.configs import (
    AdapterConfig,
    AlignmentConfig,
    Budget,
    EncoderConfig,
    EvaluationConfig,
    Execution,
    Foundation,
    LoRAConfig,
    OptimConfig,
    TrialConfig,
)
from model.foundations import FOUNDATIONS
from orchestrator.corpora import GridCorpus, ImportedCorpus, corpus_ref
from orchestrator.hardware import gpu_query

PAPER_GPU_GIB = 39
"""The smallest GPU that an 8B trial fits: 16 GB of bf16 weights, LoRA, and the activations of a micro-batch. A "40 GB" card reports a little less."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Everything that the cells of a grid share at one size; the axes come from `foundations`, `modes` and the seeds."""

    name: str
    summary: str
    foundations: tuple[Foundation, ...]
    modes: tuple[SupervisionMode, ...] = SUPERVISION_MODES
    seeds: int = 1  # when `--seeds` does not say
    only_cells: frozenset[tuple[str, SupervisionMode]] | None = None  # (foundation, mode); None: the full product
    corpus: GridCorpus
    label_descriptions: bool = True
    value_form: ValueForm = "surface"
    budget: Budget
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    alignment: AlignmentConfig | None = None  # a stage before slot filling; the paper under reproduction does not say
    execution: Execution
    max_concurrent: int | None = None  # trials at a time; None: as many as the machines hold
    canary: bool = True  # before a foundation's trials, a minute's check that it loads, learns, stops and reloads

    @property
    def label(self) -> str:
        """Names run folders: the scale's name, and the corpus's where it is not the scale's own."""
        return f"{self.name}-{self.corpus.ref.name}" if isinstance(self.corpus, ImportedCorpus) else self.name

    def on(self, corpus: ImportedCorpus) -> Scale:
        """This scale on another corpus than its own, scored on the splits that it has."""
        splits = tuple(split for split in self.evaluation.splits if split in corpus.splits)
        return replace(self, corpus=corpus, evaluation=replace(self.evaluation, splits=splits))

    def trial(self, *, foundation: Foundation, mode: SupervisionMode, seed: int) -> TrialConfig:
        """One cell of a grid at this scale."""
        ref = corpus_ref(self.corpus)
        return TrialConfig(
            foundation=foundation,
            supervision=SupervisionConfig(
                mode=mode, label_descriptions=self.label_descriptions, value_form=self.value_form
            ),
            # Direct answers are trained without traces: new traces leave such a trial what it is.
            corpus=ref if "think" in INFERENCE_MODES[mode] else replace(ref, traces=None),
            budget=self.budget,
            seed=seed,
            encoder=self.encoder,
            adapter=self.adapter,
            lora=self.lora,
            optim=self.optim,
            evaluation=self.evaluation,
            alignment=self.alignment,
            metric_version=METRIC_VERSION,
        )

    def excludes(self, trial: TrialConfig) -> bool:
        """Whether this scale leaves a cell out: smoke runs two cells of its product."""
        return self.only_cells is not None and (trial.foundation.name, trial.mode) not in self.only_cells


def _foundations(*names: str) -> tuple[Foundation, ...]:
    return tuple(FOUNDATIONS[name] for name in names)


_TINY_OPTIM = OptimConfig(lora_learning_rate=1.5e-3, adapter_learning_rate=1e-3, precision="fp32")
_TINY_ADAPTER = AdapterConfig(hidden_width=512)

SMOKE = Scale(
    name="smoke",
    summary="2 trials in about a minute, to see that everything works; its scores mean nothing",
    foundations=_foundations("tiny-instruct", "tiny-hybrid"),
    modes=("regular", "hybrid"),
    only_cells=frozenset({("tiny-instruct", "regular"), ("tiny-hybrid", "hybrid")}),
    corpus=SyntheticCorpusConfig(train=40, validation=6, test=10, test_frame=4, test_domain=2),
    label_descriptions=False,
    value_form="spoken",
    budget=Budget(steps=12, batch_size=4),
    adapter=_TINY_ADAPTER,
    optim=_TINY_OPTIM,
    evaluation=EvaluationConfig(max_new_tokens_direct=24, max_new_tokens_think=48),
    execution=Execution(checkpoint_every=4),
    canary=False,  # the tests train the packaged foundations; a canary would cost more than the trials
)

TINY = Scale(
    name="tiny",
    summary="the full 4 kinds x 3 modes on a laptop: real speech, the real encoder, our own small foundations",
    foundations=_foundations("tiny-base", "tiny-instruct", "tiny-reasoning", "tiny-hybrid"),
    corpus=SyntheticCorpusConfig(train=3_000, validation=100, test=240, test_frame=80, test_domain=40),
    label_descriptions=False,
    value_form="spoken",
    budget=Budget(steps=450, batch_size=16),
    adapter=_TINY_ADAPTER,
    optim=_TINY_OPTIM,
    evaluation=EvaluationConfig(max_new_tokens_direct=64, max_new_tokens_think=208),
    execution=Execution(checkpoint_every=150),
    canary=False,  # as at smoke
)

SMALL = Scale(
    name="small",
    summary="one GPU: a real pretrained LLM of 0.6B parameters in every mode",
    foundations=_foundations("qwen3-0.6b"),
    corpus=SyntheticCorpusConfig.of_size(20_000),
    budget=Budget(steps=3_000, batch_size=32),
    execution=Execution(checkpoint_every=250, use_gpu=True, zero_stage=1, micro_batches=4),
)

PAPER = Scale(
    name="paper",
    summary="the paper's five LLMs x 3 modes x 3 seeds on a GPU cluster",
    foundations=_foundations("llama-3.1-8b", "llama-3.1-8b-instruct", "r1-distill-llama-8b", "qwen3-4b", "qwen3-0.6b"),
    seeds=3,
    corpus=SyntheticCorpusConfig.of_size(100_000),
    budget=Budget(steps=6_000, batch_size=64),
    execution=Execution(
        checkpoint_every=250,
        workers=4,
        use_gpu=True,
        cpus_per_worker=4,
        zero_stage=2,
        micro_batches=4,
        gradient_checkpointing=True,
    ),
)

SCALES: dict[str, Scale] = {scale.name: scale for scale in (SMOKE, TINY, SMALL, PAPER)}
AUTO = "auto"


def choose_scale(name: str) -> tuple[Scale, str]:
    """The scale of that name, and the line that says why. Raises ValueError for an unknown name."""
    if name == AUTO:
        scale, reason = _scale_by_what_is_there()
        return scale, f"scale: {scale.name} (auto: {reason}; {scale.summary})"
    if name not in SCALES:
        raise ValueError(f"--scale: {name!r} is not one of {', '.join([AUTO, *SCALES])}")
    return SCALES[name], f"scale: {name} ({SCALES[name].summary})"


def _scale_by_what_is_there() -> tuple[Scale, str]:
    """`paper` where its trials fit the GPUs, `small` on a smaller GPU, `tiny` where there is none."""
    if memory := gpu_memory_gib():
        found = f"{len(memory)} GPU{'s' * (len(memory) > 1)} of {min(memory):.0f} GiB"
        if len(memory) >= PAPER.execution.workers and min(memory) >= PAPER_GPU_GIB:
            return PAPER, found
        if cluster := cluster_gpus():
            return PAPER, f"{found} here, and a cluster whose {cluster}"
        return SMALL, found
    if cluster := cluster_gpus():
        return PAPER, f"a cluster whose {cluster}"
    return TINY, "no GPU found"


def gpu_memory_gib() -> list[float]:
    """The memory of each NVIDIA GPU of this machine, in GiB; empty where there is no driver that answers."""
    return [int(mib) / 1024 for mib in gpu_query("memory.total") if mib.isdigit()]


def cluster_gpus(config: Path | None = None) -> str | None:
    """What a Ray cluster's own configuration says of GPUs, on its head node; None anywhere else or when it has none.

    The head of a cluster often has no GPU itself. Ray's launcher leaves the configuration there, resources filled in.
    """
    path = config or Path.home() / "ray_bootstrap_config.yaml"
    if not path.is_file():
        return None
    found = re.search(r"\bGPU[\"']?:\s*([1-9]\d*)", path.read_text(encoding="utf-8"))
    return f"nodes have {found.group(1)} GPUs" if found else None
