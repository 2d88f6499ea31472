"""A foundation's canary: TrialConfig -> `CanaryReport`, in about a minute, before anybody pays for the foundation's trials.

Loads what a trial loads, overfits a handful of training examples, lets the model answer them in every inference mode, saves, loads again. A sound
pipeline learns eight answers by heart whatever the model's talent, so what fails here is the chat template, the end token, the loss mask, the
weights or the checkpoint. Knows neither Ray nor MLflow, like `model.trial`. Writes `report.json`, for people too.
"""

from __future__ import annotations

import gc
import itertools
import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from data.atomic import write_json
from data.batching import Batch, collate, rank_share
from data.records import InferenceMode, Prediction
from data.rendering import render
from data.scoring import Counts, count_example
from data.supervision import supervise
from model.checkpoint_folder import newest_checkpoint
from model.checkpoints import load_trainable, save_checkpoint
from model.configs import Execution, TrialConfig
from model.generate import Item, generate_predictions
from model.hooks import TrialHooks
from model.hub import HubUnreachable
from model.process_group import join_process_group
from model.speech_llm import load_tokenizer
from model.train import build_engine, training_steps
from model.trial import TrialPaths, build_trial_model, open_data
from model.trial_data import TrialData
from model.trial_log import TrialLog

_log = logging.getLogger(__name__)

CANDIDATES = 64
"""Training examples that the few are chosen from: those with the shortest targets, which are learned soonest."""
SPARE_TOKENS = 16
"""An answer may be this much longer than the longest target before it counts as one that does not stop."""
OVERFITTING_S = 300.0
"""Overfitting ends after this time, whatever it reached: minutes more than sharded weights of 70B should need."""
LEARNED_LOSS = 0.01
"""Nats per target token at which overfitting ends early: every answer is known by heart."""

MAX_LOSS_RATIO = 0.8
"""Of the last loss to the first. Pretrained foundations come below 0.01; behind a frozen head of random weights 0.6 is as far as it can fall."""
MIN_SHARE = 0.75
"""Of the answers: that stop, that can be read, that think when asked to, that fill exactly the right slots."""
MAX_RELOADED_DIFFERENCE = 1e-5
REMEDY = "compare the chat template: python experiments/grid.py explain TRIAL"
"""For a person who reads report.json."""


@dataclass(frozen=True, kw_only=True)
class CanaryCheck:
    """One thing that was looked at. It passes where `figure` is on the right side of `threshold`."""

    name: str
    figure: float | None  # None: not measured, for `says` came first
    threshold: float
    passed: bool
    says: str  # figure and threshold in words


@dataclass(frozen=True, kw_only=True)
class CanaryAnswer:
    """One of the answers, for people."""

    mode: InferenceMode
    prompt: str  # as the model reads it
    target: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class CanaryReport:
    """What the canary found."""

    foundation: str
    checks: tuple[CanaryCheck, ...]
    answers: tuple[CanaryAnswer, ...]  # one per inference mode
    steps: int
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def reason(self) -> str:
        """What failed, in one line; empty when it passed."""
        return "; ".join(f"{check.name}: {check.says}" for check in self.checks if not check.passed)


def run_canary(
    config: TrialConfig,
    execution: Execution,
    paths: TrialPaths,
    *,
    hooks: TrialHooks | None = None,
) -> CanaryReport:
    """Overfit `config.budget.batch_size` items for at most `config.budget.steps` steps, check, and write `report.json` into the output folder.

    Collective: every rank calls it. What a broken foundation raises (ValueError, FloatingPointError) is a failed check. HubUnreachable and OSError
    tell of the hub and the storage: they are raised, and there is no report.
    `hooks` as in `model.trial.run_trial`.
    """
    started = time.perf_counter()
    torch.set_num_threads(execution.cpus_per_worker)
    join_process_group(use_gpu=execution.use_gpu)
    canary = _Canary(config, execution, paths, hooks or TrialHooks())
    if canary.rank == 0:
        _remove_checkpoints(paths)  # a killed attempt's, as the report
        (paths.output / "report.json").unlink(missing_ok=True)
    try:
        canary.run()
    except HubUnreachable:
        raise
    except (ValueError, FloatingPointError) as error:
        _log.exception("the canary of %s failed", config.foundation.name)
        says = " ".join(f"{type(error).__name__}: {error}".split())
        canary.checks.append(CanaryCheck(name="runs", figure=None, threshold=0, passed=False, says=says))
    report = CanaryReport(
        foundation=config.foundation.name,
        checks=tuple(canary.checks),
        answers=tuple(canary.answers),
        steps=canary.steps,
        seconds=time.perf_counter() - started,
    )
    if canary.rank == 0:
        _remove_checkpoints(paths)
        verdict = {"passed": report.passed, "reason": report.reason, "remedy": "" if report.passed else REMEDY}
        write_json(paths.output / "report.json", verdict | asdict(report))
    return report


class _Canary:
    """One canary at work: its checks grow as it goes."""

    def __init__(self, config: TrialConfig, execution: Execution, paths: TrialPaths, hooks: TrialHooks) -> None:
        self.config, self.execution, self.paths, self.hooks = config, execution, paths, hooks
        self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.checks: list[CanaryCheck] = []
        self.answers: list[CanaryAnswer] = []
        self.steps = 0

    def run(self) -> None:
        """Every check, in order."""
        self.tokenizer = load_tokenizer(self.config.foundation)
        self.data = open_data(self.config, self.tokenizer, self.paths)
        self.items = choose_items(self.data)
        self.batches = self._micro_batches()
        engine = self._load()
        first, last = self._overfit(engine)
        ratio = last / first
        says = f"{first:.3f} -> {last:.3f} nats per token after {self.steps} of {self.config.budget.steps} steps"
        says += f", at most {MAX_LOSS_RATIO:g} of the first is needed"
        self._check("learns", ratio, MAX_LOSS_RATIO, ratio <= MAX_LOSS_RATIO, says)
        loss, predictions = self._loss(engine), self._answer(engine)
        self._judge(predictions)

        checkpoints = self.paths.output / "checkpoints"
        save_checkpoint(engine, checkpoints, step=self.steps)
        self.hooks.on_checkpoint(self.steps)
        _discard(engine)
        del engine
        gc.collect()
        torch.cuda.empty_cache()
        engine = self._load(newest_checkpoint(checkpoints))
        difference = abs(self._loss(engine) - loss)
        close = difference <= MAX_RELOADED_DIFFERENCE
        self._check(
            "reloaded loss",
            difference,
            MAX_RELOADED_DIFFERENCE,
            close,
            f"differs by {difference:.2g}, at most {MAX_RELOADED_DIFFERENCE:g} allowed",
        )
        pairs = zip(self._answer(engine), predictions, strict=True)
        changed = sum(one.output_text != other.output_text for one, other in pairs)
        self._check("reloaded answers", changed, 0, changed == 0, f"{changed} of {len(predictions)} differ")

    def _load(self, checkpoint: Path | None = None) -> Any:
        """A fresh engine, over the weights of a checkpoint where there is one."""
        model = build_trial_model(self.config, self.execution, self.data)
        if checkpoint:
            load_trainable(model, checkpoint)
        return build_engine(model, self.config.optim, self.execution, batch_size=len(self.items))

    def _micro_batches(self) -> list[Batch]:
        """This worker's share of the one batch that every step trains on."""
        divisor = self.world * self.execution.micro_batches
        tokens = sum(len(rendered.target) for _, rendered, _ in self.items)
        shares = rank_share(
            [(0, index) for index in range(len(self.items))],
            rank=self.rank,
            world=self.world,
            micro_batches=self.execution.micro_batches,
        )
        return [
            collate(
                [(s.example_id, rendered, states) for s, rendered, states in (self.items[index] for _, index in share)],
                stack_factor=self.config.adapter.stack_factor,
                pad_id=self.tokenizer.pad_token_id,
                with_targets=True,
                loss_normalizer=tokens / divisor,
            )
            for share in shares
        ]

    def _overfit(self, engine: Any) -> tuple[float, float]:
        """Train until the answers are known, or steps or time are over; returns the first and the last loss."""
        steps, started = self.config.budget.steps, time.perf_counter()
        log = TrialLog(self.paths.output, steps=steps, fresh=True) if self.rank == 0 else None
        losses = []
        for info in training_steps(
            engine, lambda step: self.batches, first_step=0, steps=steps, optim=self.config.optim
        ):
            losses.append(info.loss)
            if log:
                log.step(info, log=True)
            if info.loss <= LEARNED_LOSS or self._any_rank(time.perf_counter() - started > OVERFITTING_S, engine):
                break
        self.steps = len(losses)
        if log:
            log.close()
        return losses[0], losses[-1]

    def _any_rank(self, said: bool, engine: Any) -> bool:
        """Whether one rank says so, on every rank: clocks differ."""
        if self.world == 1:
            return said
        vote = torch.tensor([float(said)], device=engine.device)
        torch.distributed.all_reduce(vote)
        return bool(vote)

    @torch.no_grad()
    def _loss(self, engine: Any) -> float:
        """The mean loss of this worker's share, without a step."""
        engine.module.eval()
        return math.fsum(float(engine.module(batch.to(engine.device))) for batch in self.batches) / len(self.batches)

    def _answer(self, engine: Any) -> list[Prediction]:
        """Every item's answer; each rank answers all of them, so no rank waits for another."""
        longest = max(len(rendered.target) for _, rendered, _ in self.items)
        return generate_predictions(
            engine.module,
            self.tokenizer,
            self.items,
            kind=self.config.foundation.kind,
            split="train",
            max_new_tokens=longest + SPARE_TOKENS,
            batch_size=self.execution.evaluation_batch_size,
            synced=self.execution.zero_stage == 3,
        )

    def _judge(self, predictions: Sequence[Prediction]) -> None:
        """Check the answers, and show one of each inference mode."""
        counts = [count_example(prediction) for prediction in predictions]
        for name, is_right in _ANSWER_CHECKS.items():
            right = sum(map(is_right, counts))
            share = right / len(counts)
            says = f"{right} of {len(counts)} answers, {math.ceil(MIN_SHARE * len(counts))} needed"
            self._check(name, share, MIN_SHARE, share >= MIN_SHARE, says)
        for mode in self.config.inference_modes:
            place = next(i for i, prediction in enumerate(predictions) if prediction.mode == mode)
            supervised, rendered, _ = self.items[place]
            prompt = " [audio] ".join(self.tokenizer.decode(ids) for ids in (rendered.prefix, rendered.suffix))
            answer = predictions[place].output_text
            self.answers.append(CanaryAnswer(mode=mode, prompt=prompt, target=supervised.target, answer=answer))

    def _check(self, name: str, figure: float, threshold: float, passed: bool, says: str) -> None:
        self.checks.append(CanaryCheck(name=name, figure=figure, threshold=threshold, passed=passed, says=says))


def _remove_checkpoints(paths: TrialPaths) -> None:
    shutil.rmtree(paths.output / "checkpoints", ignore_errors=True)


def _discard(engine: Any) -> None:
    """Give the memory of an engine back: two LLMs need not fit a device."""
    parameters = list(engine.module.parameters())
    engine.destroy()
    for parameter in parameters:
        shard = getattr(parameter, "ds_tensor", None)  # under ZeRO-3, whose hooks keep the module itself alive
        if shard is not None:
            shard.data = shard.new_empty(0)


_ANSWER_CHECKS: dict[str, Callable[[Counts], bool]] = {
    "stops by itself": lambda counts: not counts.truncated,
    "can be read": lambda counts: not counts.parse_failures and not counts.truncated,
    "obeys the inference mode": lambda counts: counts.obedient == 1,
    "fills the right slots": lambda counts: counts.exact_true_positives == counts.predicted == counts.references,
}


def choose_items(trial_data: TrialData) -> list[Item]:
    """As many items as the batch holds: the training examples with slots and the shortest targets, each in every inference mode."""
    config = trial_data.config

    def items_of(place: int) -> list[Item]:
        annotated = trial_data.train[place]
        supervised = [
            supervise(annotated, trial_data.corpus.ontology, config.supervision, mode=mode, draw="canary")
            for mode in config.inference_modes
        ]
        states = trial_data.states[annotated.example.audio_sha256]
        return [(s, render(s, trial_data.tokenizer, config.foundation.kind), states) for s in supervised]

    candidates = [items_of(place) for place in range(min(CANDIDATES, len(trial_data.train)))]
    candidates.sort(key=lambda items: (not items[0][0].reference, sum(len(item[1].target) for item in items)))
    every = itertools.cycle(candidates[: config.budget.batch_size // len(config.inference_modes)])
    return list(itertools.islice(itertools.chain.from_iterable(every), config.budget.batch_size))
