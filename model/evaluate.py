"""A trained SpeechLLM -> the predictions of every split and inference mode, on disk as `predictions-<inference mode>.jsonl`."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data.atomic import iter_whole_lines, write_jsonl
from data.records import InferenceMode, Prediction, Split, prediction_from_json, to_json
from model.configs import Execution, TrialConfig
from model.generate import Item, generate_predictions
from model.hooks import TrialHooks, TrialInterrupted
from model.process_group import agreed
from model.speech_llm import SpeechLLM
from model.trial_data import TrialData
from model.trial_log import TrialLog

_log = logging.getLogger(__name__)


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
    """Generate what is not on disk yet, each rank its share; one file per inference mode, written whole by rank 0."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    everything: list[Prediction] = []
    for mode in config.inference_modes:
        path = output / f"predictions-{mode}.jsonl"
        items_of = {split: trial_data.evaluation_items(split, mode) for split in config.evaluation.splits}
        stored = agreed(partial(_stored_predictions, path, items_of))
        if stored is not None:
            everything += stored
            continue
        answered: list[Prediction] = []
        for split, items in items_of.items():
            places = range(
                rank, -(-len(items) // world) * world, world
            )  # as many on every rank: the last ones answer a first one again

            def on_progress(done: int, total: int, split: Split = split, mode: InferenceMode = mode) -> None:
                if log:
                    log.status("evaluating", split=split, mode=mode, step=done, steps=total)

            mine = generate_predictions(
                model,
                tokenizer,
                [items[place % len(items)] for place in places],
                kind=config.foundation.kind,
                split=split,
                max_new_tokens=config.evaluation.max_new_tokens(mode),
                batch_size=execution.evaluation_batch_size,
                synced=execution.zero_stage == 3,
                on_progress=on_progress,
            )
            answered += _gathered(mine, len(items), world)
            if agreed(hooks.should_stop):
                raise TrialInterrupted(f"stopped while {mode} answers were generated")
        agreed(hooks.before_write)
        if rank == 0:
            write_jsonl(path, map(to_json, answered))
        everything += answered
    return everything


def _stored_predictions(path: Path, items_of: dict[Split, list[Item]]) -> list[Prediction] | None:
    """What an earlier attempt generated, None when there is nothing or when it is not one prediction per item."""
    if not path.exists():
        return None
    expected = [(split, supervised.example_id) for split, items in items_of.items() for supervised, *_ in items]
    try:
        stored = [prediction_from_json(row) for row in iter_whole_lines(path)]
    except (ValueError, TypeError, KeyError) as error:
        _log.warning("%s: is damaged (%s); generated again", path, error)
        return None
    if [(prediction.split, prediction.example_id) for prediction in stored] != expected:
        _log.warning("%s: does not hold one prediction per example; generated again", path)
        return None
    return stored


def _gathered(mine: list[Prediction], count: int, world: int) -> list[Prediction]:
    """Every rank's answers in the order of the items, of which rank r answered r, r + world, ..."""
    shares: list[list[Prediction]] = [mine] * world
    if world > 1:
        torch.distributed.all_gather_object(shares, mine)
    return [shares[place % world][place // world] for place in range(count)]
