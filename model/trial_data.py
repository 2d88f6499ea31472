"""Corpus + encoder states + one trial's configuration -> its training batches and its evaluation items."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data.batching import WINDOW, Batch, audio_token_count, batch_indices, collate, rank_share
from data.encoder_states import StateKey, open_encoder_states
from data.manifest import open_corpus
from data.records import AnnotatedExample, InferenceMode, Split
from data.rendering import RenderedExample, render
from data.supervision import SupervisedExample, inference_mode, supervise
from model.configs import TrialConfig
from model.generate import Item

STATISTICS_EXAMPLES = 256
Hear = Callable[[int, int], int]


class TrialData:
    """What one trial trains and is evaluated on. Everything drawn is a pure function of (seed, step, example)."""

    def __init__(
        self, config: TrialConfig, tokenizer: Any, *, corpus: Path, encoder_states: Path, encoder_key: StateKey
    ) -> None:
        """Open corpus and cache. Raises ValueError when an example has no encoder states."""
        self.config = config
        self.tokenizer = tokenizer
        self.corpus = open_corpus(corpus)
        self.states = open_encoder_states(
            encoder_states, encoder_key, verify=False
        )  # the grid verified every shard once
        self._check_corpus()
        self.train = self._training_examples()
        for annotated in self.corpus.examples:
            if annotated.example.audio_sha256 not in self.states:
                raise ValueError(
                    f"{encoder_states}: no encoder states for {annotated.example.audio}; run the experiment's `run` to prepare them"
                )
        # rendered once for their length, then once more for their batch, a window of batches later at most
        self._rendered = lru_cache(maxsize=2 * WINDOW * config.budget.batch_size)(self._render_training)

    def state_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the encoder states, fp32 [W] each, over the first `STATISTICS_EXAMPLES` of the train split."""
        frames = np.concatenate([self._states(annotated) for annotated in self.train[:STATISTICS_EXAMPLES]]).astype(
            np.float64
        )
        return frames.mean(axis=0).astype(np.float32), np.maximum(frames.std(axis=0), 1e-3).astype(np.float32)

    def micro_batches(self, step: int, *, rank: int, world: int, micro_batches: int) -> list[Batch]:
        """This worker's share of the global batch of one optimizer step.

        Every worker renders the whole global batch: its target tokens are what each micro-batch's loss is divided by, so that the gradient
        is the one of a single big batch.
        """
        pairs = batch_indices(
            items=len(self.train) * len(self.config.inference_modes),
            length_of=self._length,
            batch_size=self.config.budget.batch_size,
            seed=self.config.seed,
            step=step,
        )
        rendered = {pair: self._rendered(pair) for pair in pairs}
        tokens = sum(len(rendered[pair][1].target) for pair in pairs)
        return [
            collate(
                [(*rendered[pair], self._states(self._train_example(pair[1]))) for pair in share],
                stack_factor=self.config.adapter.stack_factor,
                pad_id=self.tokenizer.pad_token_id,
                with_targets=True,
                loss_normalizer=tokens / (world * micro_batches),
            )
            for share in rank_share(pairs, rank=rank, world=world, micro_batches=micro_batches)
        ]

    def evaluation_items(self, split: Split, mode: InferenceMode, *, hear: Hear | None = None) -> list[Item]:
        """Every example of a split, asked in one mode. The draw is named "evaluation": the same questions for every trial and seed.

        `hear` (a control: does a model listen?) maps (position, number of examples) to the position whose audio an example gets.
        """
        examples = self.corpus.split(split)
        items = []
        for position, annotated in enumerate(examples):
            supervised = self._supervise(annotated, mode, "evaluation", with_target=False)
            heard = examples[hear(position, len(examples))] if hear else annotated
            items.append((supervised, self._render(supervised), self._states(heard)))
        return items

    def _check_corpus(self) -> None:
        """The corpus on disk is the one that the trial names: it may have been imported or annotated anew in between."""
        declared, traces = self.config.corpus, self.corpus.traces
        found = replace(declared, fingerprint=self.corpus.fingerprint)
        if declared.traces is not None:
            found = replace(found, traces=traces.fingerprint if traces else None)
        if found != declared:
            raise ValueError(
                f"{self.corpus.root}: is not the corpus that this trial was declared with (fingerprint {found.fingerprint[:12]}, traces "
                f"{str(found.traces)[:12]} instead of {declared.fingerprint[:12]}, {str(declared.traces)[:12]}); run the experiment's `plan`"
            )

    def _training_examples(self) -> tuple[AnnotatedExample, ...]:
        """The train split; for a mode that thinks without the examples that have no trace."""
        train = self.corpus.split("train")
        if "think" in self.config.inference_modes:
            train = tuple(annotated for annotated in train if annotated.trace is not None)
        if not train:
            needed = " example with a reasoning trace; write traces with `slotgrid data annotate`"
            raise ValueError(
                f"{self.corpus.root}: the train split has no{needed if self.corpus.split('train') else ' example'}"
            )
        return train

    def _train_example(self, index: int) -> AnnotatedExample:
        return self.train[index // len(self.config.inference_modes)]

    def _length(self, pair: tuple[int, int]) -> int:
        """The columns a training item takes."""
        rendered = self._rendered(pair)[1]
        frames = self.states.frames(self._train_example(pair[1]).example.audio_sha256)
        audio = audio_token_count(frames, self.config.adapter.stack_factor)
        return len(rendered.prefix) + audio + len(rendered.suffix) + len(rendered.target)

    def _render_training(self, pair: tuple[int, int]) -> tuple[str, RenderedExample]:
        epoch, index = pair
        mode = inference_mode(self.config.supervision, index)
        supervised = self._supervise(self._train_example(index), mode, f"seed{self.config.seed}/epoch{epoch}")
        return supervised.example_id, self._render(supervised)

    def _supervise(
        self, annotated: AnnotatedExample, mode: InferenceMode, draw: str, *, with_target: bool = True
    ) -> SupervisedExample:
        return supervise(
            annotated, self.corpus.ontology, self.config.supervision, mode=mode, draw=draw, with_target=with_target
        )

    def _render(self, supervised: SupervisedExample) -> RenderedExample:
        return render(supervised, self.tokenizer, self.config.foundation.kind)

    def _states(self, annotated: AnnotatedExample) -> Any:
        return self.states[annotated.example.audio_sha256]
