"""A corpus -> `CorpusStats`: what is in each split, how long things are, which labels and values it has, and how many tokens its targets cost.

Reads no audio and downloads nothing. Tokens are counted with the tokenizers of the foundations that are on this machine.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.manifest import Corpus
from data.records import SAMPLE_RATE, SPLITS, AnnotatedExample, Example, SlotValue, Split
from data.rendering import render
from data.supervision import SupervisionConfig, supervise
from model.configs import AdapterConfig, EncoderConfig, Foundation
from model.foundations import FOUNDATIONS, local_folder

SAMPLE = 500  # examples whose tokens are counted
_DRAW = "stats"


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How a number is distributed."""

    count: int
    mean: float
    least: float
    p05: float
    p25: float
    median: float
    p75: float
    p95: float
    most: float


@dataclass(frozen=True, kw_only=True)
class SplitStats:
    """One split that has examples."""

    split: Split
    examples: int
    hours: float
    speakers: int  # known ones; 0 where the corpus names none
    train_speakers: int | None  # of them that the train split has too; None for the train split itself
    domains: Mapping[str, int]  # examples per domain, the largest first
    with_trace: int
    duration_s: Spread
    transcript_words: Spread
    audio_tokens: Spread  # embeddings that the speech adapter makes of the audio, as configured by default
    context_turns: Mapping[int, int]  # examples per number of previous turns
    slots_per_example: Mapping[int, int]
    slots: int
    values: int  # distinct (label, value), values compared in canonical form without case
    unseen_values: int | None  # of them never in the train split; None for the train split itself
    unseen_slots: int | None  # slots that are filled with such a value


@dataclass(frozen=True, kw_only=True)
class LabelStats:
    """One label over all domains and splits."""

    label: str
    count: int  # slots it fills
    values: int  # distinct values
    domains: tuple[str, ...]  # whose ontology has it


@dataclass(frozen=True, kw_only=True)
class TokenStats:
    """The lengths of prompts and targets for one foundation, over the sample; all three None where its tokenizer is not on this machine."""

    foundation: str
    prompt: Spread | None  # around the audio, without its embeddings
    direct_target: Spread | None  # the answer, end-of-sequence token included
    think_target: Spread | None  # reasoning trace and answer; None too where no example of the sample has a trace


@dataclass(frozen=True, kw_only=True)
class CorpusStats:
    """Everything that `slotgrid data stats` tells."""

    name: str
    fingerprint: str
    examples: int
    hours: float
    with_trace: int
    splits: tuple[SplitStats, ...]
    labels: tuple[LabelStats, ...]  # of the ontology, the most frequent first, unused ones at the end
    train_value_counts: Mapping[
        int, int
    ]  # how often a distinct value is said in train -> how many values are said so often
    sample: int  # examples whose tokens were counted
    tokens: tuple[TokenStats, ...]


def measure_corpus(
    corpus: Corpus, *, sample: int = SAMPLE, foundations: Iterable[Foundation] = FOUNDATIONS.values()
) -> CorpusStats:
    """Count everything in a corpus. Tokens are counted for `sample` examples, drawn from all splits, the same ones on every call."""
    rows = {split: corpus.split(split) for split in SPLITS}
    train_values = Counter(_value(slot) for row in rows["train"] for slot in row.example.slots)
    chosen = sorted(random.Random(0).sample(range(len(corpus.examples)), min(sample, len(corpus.examples))))
    return CorpusStats(
        name=corpus.name,
        fingerprint=corpus.fingerprint,
        examples=len(corpus.examples),
        hours=_hours(corpus.examples),
        with_trace=_with_trace(corpus.examples),
        splits=tuple(
            _measure_split(split, rows[split], train_values, _speakers(rows["train"]))
            for split in SPLITS
            if rows[split]
        ),
        labels=_measure_labels(corpus),
        train_value_counts=dict(sorted(Counter(train_values.values()).items())),
        sample=len(chosen),
        tokens=tuple(
            _count_tokens(corpus, [corpus.examples[place] for place in chosen], foundation)
            for foundation in foundations
        ),
    )


def measure_spread(numbers: Sequence[float]) -> Spread:
    """The distribution of at least one number; quantiles are interpolated linearly."""
    import numpy as np

    quantiles = np.quantile(np.asarray(numbers, dtype=np.float64), (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1))
    least, p05, p25, median, p75, p95, most = (round(float(value), 3) for value in quantiles)
    mean = round(sum(numbers) / len(numbers), 3)
    return Spread(
        count=len(numbers), mean=mean, least=least, p05=p05, p25=p25, median=median, p75=p75, p95=p95, most=most
    )


def audio_tokens(example: Example) -> int:
    """How many embeddings the default encoder and adapter make of an example's audio: 6.25 a second (Whisper's 50 frames, stacked by 8)."""
    from data.batching import audio_token_count  # here and below: torch takes seconds to import
    from model.encoder import encoded_frames

    frames = encoded_frames(round(example.duration_s * SAMPLE_RATE), EncoderConfig().padding)
    return audio_token_count(frames, AdapterConfig().stack_factor)


def _measure_split(
    split: Split, rows: Sequence[AnnotatedExample], train_values: Mapping[Any, int], train_speakers: Set[str]
) -> SplitStats:
    examples = [row.example for row in rows]
    values = Counter(_value(slot) for example in examples for slot in example.slots)
    unseen = None if split == "train" else [value for value in values if value not in train_values]
    return SplitStats(
        split=split,
        examples=len(rows),
        hours=_hours(rows),
        speakers=len(_speakers(rows)),
        train_speakers=None if split == "train" else len(_speakers(rows) & train_speakers),
        domains=dict(Counter(example.domain for example in examples).most_common()),
        with_trace=_with_trace(rows),
        duration_s=measure_spread([example.duration_s for example in examples]),
        transcript_words=measure_spread([len(example.transcript.split()) for example in examples]),
        audio_tokens=measure_spread([audio_tokens(example) for example in examples]),
        context_turns=dict(sorted(Counter(len(example.context) for example in examples).items())),
        slots_per_example=dict(sorted(Counter(len(example.slots) for example in examples).items())),
        slots=sum(values.values()),
        values=len(values),
        unseen_values=None if unseen is None else len(unseen),
        unseen_slots=None if unseen is None else sum(values[value] for value in unseen),
    )


def _measure_labels(corpus: Corpus) -> tuple[LabelStats, ...]:
    values: dict[str, Counter[str]] = {name: Counter() for name in corpus.ontology.labels()}
    for row in corpus.examples:
        for slot in row.example.slots:
            values[slot.label][_value(slot)[1]] += 1
    domains: dict[str, list[str]] = {name: [] for name in values}
    for domain, labels in corpus.ontology.domains.items():
        for label in labels:
            domains[label.name].append(domain)
    stats = [
        LabelStats(label=name, count=sum(seen.values()), values=len(seen), domains=tuple(domains[name]))
        for name, seen in values.items()
    ]
    return tuple(sorted(stats, key=lambda label: (-label.count, label.label)))


def _count_tokens(corpus: Corpus, rows: Sequence[AnnotatedExample], foundation: Foundation) -> TokenStats:
    """Prompt and targets as hybrid supervision writes them: it holds both inference modes, and the targets are those of the other modes."""
    folder = tokenizer_folder(foundation)
    if folder is None:
        return TokenStats(foundation=foundation.name, prompt=None, direct_target=None, think_target=None)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    config = SupervisionConfig(mode="hybrid")
    prompts, targets = [], {"direct": list[int](), "think": list[int]()}
    for row in rows:
        for mode in ("direct", "think") if row.trace else ("direct",):
            supervised = supervise(row, corpus.ontology, config, mode=mode, draw=_DRAW)
            rendered = render(supervised, tokenizer, foundation.kind)
            targets[mode].append(len(rendered.target))
            if mode == "direct":
                prompts.append(len(rendered.prefix) + len(rendered.suffix))
    return TokenStats(
        foundation=foundation.name,
        prompt=measure_spread(prompts),
        direct_target=measure_spread(targets["direct"]),
        think_target=measure_spread(targets["think"]) if targets["think"] else None,
    )


def tokenizer_folder(foundation: Foundation) -> Path | None:
    """Where the foundation's tokenizer lies: in the package, in a folder, in the hub's cache; None where it would have to be downloaded."""
    if folder := local_folder(foundation):
        return folder
    from huggingface_hub import try_to_load_from_cache

    files = [
        try_to_load_from_cache(foundation.source, file, revision=foundation.revision)
        for file in ("tokenizer_config.json", "tokenizer.json")
    ]
    return Path(files[0]).parent if all(isinstance(file, str) for file in files) else None  # type: ignore[arg-type]


def _value(slot: SlotValue) -> tuple[str, str]:
    return slot.label, slot.canonical.casefold()


def _speakers(rows: Sequence[AnnotatedExample]) -> Set[str]:
    return {row.example.speaker for row in rows} - {""}


def _hours(rows: Sequence[AnnotatedExample]) -> float:
    return round(sum(row.example.duration_s for row in rows) / 3600, 4)


def _with_trace(rows: Sequence[AnnotatedExample]) -> int:
    return sum(row.trace is not None for row in rows)
