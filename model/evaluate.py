"""A trained SpeechLLM -> the predictions of every split and inference mode, on disk as `predictions-<inference mode>.jsonl`.

What is asked together follows from the questions and the batch size alone, whatever the number of workers. Every finished batch is kept
(`model.answer_parts`): an evaluation that was killed, on however many workers, goes on with the batches that are missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data.records import InferenceMode, Prediction, Split
from model.answer_parts import AnswerFiles, Asked, asked
from model.checkpoint_folder import WEIGHTS_FILE, newest_checkpoint, read_commit
from model.configs import Execution, TrialConfig
from model.generate import Item, answer_batch, length_batches
from model.hooks import TrialHooks, TrialInterrupted
from model.process_group import agreed
from model.speech_llm import SpeechLLM
from model.trial_data import TrialData
from model.trial_log import TrialLog

ItemBatch = tuple[Split, list[Item]]


def evaluate(
    config: TrialConfig,
    execution: Execution,
    model: SpeechLLM,
    tokenizer: Any,
    trial_data: TrialData,
    output: Path,
    *,
    hooks: TrialHooks,
    log: TrialLog | None,
) -> list[Prediction]:
    """Generate what is not on disk yet, each rank its share; returns every prediction, split after split, on every rank. Collective.

    `model` holds the weights of the newest checkpoint below `output`; without one it is untrained. Raises TrialInterrupted, with every finished
    batch on disk, when `hooks.should_stop` says so; whatever a hook raises; OSError when answers cannot be kept.
    """
    weights = agreed(partial(_weights_name, output))
    everything: list[Prediction] = []
    for mode in config.inference_modes:
        items_of = {split: trial_data.evaluation_items(split, mode) for split in config.evaluation.splits}
        questions = _Questions(mode=mode, items_of=items_of, batch_size=execution.evaluation_batch_size)
        files = AnswerFiles(output, mode, model=weights)
        predictions = agreed(partial(files.committed, questions.asked()))
        if predictions is None:
            generation = partial(
                answer_batch,
                model,
                tokenizer,
                kind=config.foundation.kind,
                max_new_tokens=config.evaluation.max_new_tokens(mode),
                synced=execution.zero_stage == 3,
                constrained=config.evaluation.constrained,
            )
            batches = agreed(partial(files.kept, questions.asked()))
            if questions.missing(batches):
                batches = _answer_missing(
                    questions, batches, files, generation, synced=execution.zero_stage == 3, hooks=hooks, log=log
                )
            answers = {asked(answer): answer for batch in batches for answer in batch}
            predictions = [answers[question] for question in questions.asked()]
            agreed(hooks.before_write)
            if torch.distributed.get_rank() == 0:
                files.commit(predictions)
        everything += predictions
    return everything


@dataclass(frozen=True, kw_only=True)
class _Questions:
    """Everything that is asked in one inference mode."""

    mode: InferenceMode
    items_of: Mapping[Split, Sequence[Item]]
    batch_size: int

    def asked(self) -> list[Asked]:
        """Every question, split after split, in the order of the examples."""
        return [(split, supervised.example_id) for split, items in self.items_of.items() for supervised, *_ in items]

    def missing(self, answered: Sequence[Sequence[Prediction]]) -> list[ItemBatch]:
        """What is to be asked yet, in batches. Where whole batches of this size were answered, these are the rest of them: all are full but the
        shortest questions' of each split."""
        known = {asked(answer) for batch in answered for answer in batch}
        batches: list[ItemBatch] = []
        for split, items in self.items_of.items():
            left = [item for item in items if (split, item[0].example_id) not in known]
            batches += [(split, [left[i] for i in chosen]) for chosen in length_batches(left, self.batch_size)]
        return batches


def _answer_missing(
    questions: _Questions,
    kept: list[list[Prediction]],
    files: AnswerFiles,
    generation: Any,
    *,
    synced: bool,
    hooks: TrialHooks,
    log: TrialLog | None,
) -> list[list[Prediction]]:
    """Answer what is missing, batch after batch dealt to the ranks; returns all batches, as they are on disk afterwards."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    agreed(hooks.before_write)
    agreed(partial(files.restart, kept))
    missing, done, total = questions.missing(kept), sum(map(len, kept)), len(questions.asked())
    with files.appending(rank) as append:
        for start in range(0, len(missing), world):
            if agreed(hooks.should_stop):
                raise TrialInterrupted(f"stopped with {done} of {total} {questions.mode} answers, which are saved")
            dealt = missing[start : start + world]
            split, items = dealt[rank] if rank < len(dealt) else dealt[0]
            if log:
                log.status("evaluating", split=split, mode=questions.mode, step=done, steps=total)
            if rank < len(dealt):
                append(generation(items, split=split))
            elif synced:  # the weights are sharded: the others need this rank in each of their forward passes
                generation(items, split=split)
            done += sum(len(items) for _, items in dealt)
    if world > 1:
        torch.distributed.barrier()  # every rank has closed its part
    batches = agreed(partial(files.kept, questions.asked()))
    if questions.missing(batches):
        raise OSError(f"{questions.mode} answers that were just written cannot be read back; is the disk failing?")
    return batches


def _weights_name(output: Path) -> str:
    """What tells the evaluated weights from any others."""
    checkpoint = newest_checkpoint(output / "checkpoints")
    return read_commit(checkpoint).files[WEIGHTS_FILE] if checkpoint else "untrained"
