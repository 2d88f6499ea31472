"""The alignment stage before slot filling: a foundation and a corpus -> `adapter.safetensors`, with which every supervision mode then starts.

The speech adapter alone learns to let the frozen foundation write down what is said (companion paper, multi-stage). LoRA has no part, so the
foundation that the adapter learns to speak to is the one that slot filling begins with. Knows neither Ray nor MLflow, like `model.trial`, and
trains, saves and resumes as that does. Writes what a trial's training writes, the adapter, and `alignment.json` with what it gained.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from data.atomic import file_sha256, write_sealed_json
from data.batching import IGNORE, Batch, collate
from data.metric_lines import read_metrics
from data.rendering import RenderedExample
from data.supervision import transcribe
from model.checkpoint_folder import checkpoint_to_resume
from model.checkpoints import load_optimizer, load_trainable, save_adapter
from model.configs import Execution, TrialConfig
from model.hooks import TrialHooks
from model.process_group import agreed, join_process_group
from model.speech_llm import SpeechLLM, load_tokenizer
from model.stage import train_stage
from model.train import build_engine
from model.trial import TrialPaths, build_trial_model
from model.trial_data import TrialData
from model.trial_log import TrialLog

ADAPTER, RECORD = "adapter.safetensors", "alignment.json"
VALIDATION_LOSS = "validation/loss"


@dataclass(frozen=True, kw_only=True)
class AlignmentOutcome:
    """What the stage gained: losses in nats per target token, over all of the validation split."""

    validation_loss_before: float  # of the adapter as it was made
    validation_loss: float
    adapter_sha256: str  # of `adapter.safetensors`
    validation_examples: int
    seconds: float


class TranscriptionData(TrialData):
    """A trial's examples, batches and order, with the transcript as every target."""

    def _render_training(self, pair: tuple[int, int]) -> tuple[str, RenderedExample]:
        epoch, index = pair
        supervised = transcribe(self._train_example(index).example, draw=f"seed{self.config.seed}/epoch{epoch}")
        return supervised.example_id, self._render(supervised)

    def validation_batch(self, number: int, size: int) -> Batch:
        """The `number`-th batch of `size` validation examples, from 0; its loss is the sum over target tokens."""
        examples = self.corpus.split("validation")[number * size : (number + 1) * size]
        supervised = [(a, transcribe(a.example, draw="evaluation")) for a in examples]
        return collate(
            [(s.example_id, self._render(s), self._states(a)) for a, s in supervised],
            stack_factor=self.config.adapter.stack_factor,
            pad_id=self.tokenizer.pad_token_id,
            with_targets=True,
        )


def run_alignment(
    config: TrialConfig, execution: Execution, paths: TrialPaths, *, hooks: TrialHooks | None = None
) -> AlignmentOutcome | None:
    """Train the adapter from the newest checkpoint (or from nothing) and write it. Returns None on every rank but 0.

    `config` is what `orchestrator.alignments.alignment_config` makes of a trial's: its budget and optimisation are the alignment's own.
    Raises as `model.trial.run_trial`.
    """
    assert config.alignment and config.budget == config.alignment.budget, "not an alignment's configuration"
    hooks = hooks or TrialHooks()
    started = time.perf_counter()
    torch.set_num_threads(execution.cpus_per_worker)
    join_process_group(use_gpu=execution.use_gpu)
    rank, steps = torch.distributed.get_rank(), config.budget.steps
    data = open_transcriptions(config, paths)
    model = build_alignment_model(config, execution, data)
    before = agreed(lambda: _loss_before(paths.output))
    # Where the row of that loss is lost it begins anew, as a training does from the first row that is lost.
    checkpoint = agreed(lambda: checkpoint_to_resume(paths.output, steps=steps)) if before is not None else None
    if checkpoint:
        load_trainable(model, checkpoint)
    engine = build_engine(model, config.optim, execution, batch_size=config.budget.batch_size)
    first_step = load_optimizer(engine, checkpoint, rank=rank, steps=steps) if checkpoint else 0
    log = TrialLog(paths.output, steps=steps) if rank == 0 else None
    if before is None:
        before = validation_loss(engine, data, execution)
        if log:
            log.scores(0, {VALIDATION_LOSS: before})
    train_stage(config, execution, engine, data, paths.output, first_step=first_step, hooks=hooks, log=log)
    after = validation_loss(engine, data, execution)
    agreed(hooks.before_write)
    save_adapter(engine, paths.output / ADAPTER, rank=rank)
    if log is None:
        return None
    outcome = AlignmentOutcome(
        validation_loss_before=before,
        validation_loss=after,
        adapter_sha256=file_sha256(paths.output / ADAPTER),
        validation_examples=len(data.corpus.split("validation")),
        seconds=time.perf_counter() - started,
    )
    write_sealed_json(paths.output / RECORD, asdict(outcome))
    log.scores(steps, {VALIDATION_LOSS: after})
    log.status("done", force=True, step=steps, steps=steps)
    log.close()
    return outcome


def open_transcriptions(config: TrialConfig, paths: TrialPaths) -> TranscriptionData:
    """What an alignment trains and is measured on. Raises ValueError as `TrialData` does."""
    return TranscriptionData(
        config,
        load_tokenizer(config.foundation),
        corpus=paths.corpus,
        encoder_states=paths.encoder_states,
        encoder_key=paths.encoder_key,
    )


def build_alignment_model(config: TrialConfig, execution: Execution, data: TranscriptionData) -> SpeechLLM:
    """The untrained speechLLM of a trial without its LoRA: the adapter alone trains."""
    model = build_trial_model(config, execution, data)
    model.llm = model.llm.unload()  # type: ignore[operator]  # PEFT's: the foundation's own layers are put back
    return model


@torch.no_grad()
def validation_loss(engine: Any, data: TranscriptionData, execution: Execution) -> float:
    """Nats per target token over the validation split. Collective: each rank computes its share, in micro-batches that fit training too."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    size = max(1, data.config.budget.batch_size // (world * execution.micro_batches))
    count = -(-len(data.corpus.split("validation")) // size)
    engine.module.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=engine.device)
    # As many forward passes on every rank, for under ZeRO-3 each gathers weights from all: the last ones compute a batch that counts nothing.
    for place in range(rank, -(-count // world) * world, world):
        batch = data.validation_batch(place % count, size).to(engine.device)
        loss = engine.module(batch).double()
        if place < count:
            sums += torch.stack([loss, (batch.labels != IGNORE).sum()])
    if world > 1:
        torch.distributed.all_reduce(sums)
    nats, tokens = sums.tolist()
    return float(nats / tokens)


def _loss_before(output: Path) -> float | None:
    """The loss before the first step, where an earlier attempt measured it."""
    rows = [row for row in read_metrics(output / "metrics.jsonl").rows if row.step == 0]
    return rows[0].metrics[VALIDATION_LOSS] if rows else None
