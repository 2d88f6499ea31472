"""A stage of training: an engine and its data -> trained weights on disk, with a metrics line and a checkpoint now and then.

What slot filling (`model.trial`) and the alignment before it (`model.alignment`) share around `model.train.training_steps`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from data.batching import Batch
from data.metric_lines import is_logged
from model.checkpoints import save_checkpoint
from model.configs import Execution, TrialConfig
from model.hooks import TrialHooks, TrialInterrupted
from model.process_group import agreed
from model.train import training_steps
from model.trial_data import TrialData
from model.trial_log import TrialLog


def train_stage(
    config: TrialConfig,
    execution: Execution,
    engine: Any,
    trial_data: TrialData,
    output: Path,
    *,
    first_step: int,
    hooks: TrialHooks,
    log: TrialLog | None,
) -> None:
    """Train from `first_step` to the last of `config.budget`; a checkpoint every `execution.checkpoint_every` steps and after the last.

    Collective; `log` is rank 0's. Raises TrialInterrupted, after a checkpoint, when `hooks.should_stop` said so, and whatever a hook raises.
    """
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def micro_batches_of(step: int) -> list[Batch]:
        return trial_data.micro_batches(step, rank=rank, world=world, micro_batches=execution.micro_batches)

    for info in training_steps(
        engine, micro_batches_of, first_step=first_step, steps=config.budget.steps, optim=config.optim
    ):
        last = info.step == config.budget.steps
        if log:
            log.step(info, log=is_logged(info.step, steps=config.budget.steps))
        stop = agreed(hooks.should_stop)
        if last or stop or info.step % execution.checkpoint_every == 0:
            agreed(hooks.before_write)
            if log:
                log.flush()
            save_checkpoint(engine, output / "checkpoints", step=info.step, before_commit=hooks.before_write)
            hooks.on_checkpoint(info.step)
        if stop:
            raise TrialInterrupted(f"stopped after step {info.step}, which is saved")
