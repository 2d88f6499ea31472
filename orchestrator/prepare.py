"""A scale's declaration -> what its trials read: the corpus, the encoder's weights and the encoder's states, each made once and kept.

Every stage asks the store first and computes only what is missing, so preparing a prepared grid takes a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from data.callcentre.synthesize import synthesize
from data.encoder_states import AudioItem, StateKey, write_encoder_states
from data.executors import Executor
from data.manifest import Corpus, open_corpus
from model.configs import EncoderConfig, TrialConfig
from orchestrator.corpora import ImportedCorpus, corpus_folder, corpus_ref
from orchestrator.layout import Store
from orchestrator.progress import stage_progress
from orchestrator.scales import Scale


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """Where the trials of one encoder find their data."""

    corpus: Path
    encoder_states: Path
    encoder_key: StateKey


def prepare(
    scale: Scale,
    trials: Sequence[TrialConfig],
    store: Store,
    executor: Executor,
    console: Console,
    *,
    corpus: Corpus | None = None,
) -> dict[EncoderConfig, PreparedData]:
    """Make what is missing, with progress on the console, and return it for every encoder that the trials use.

    `corpus`: the scale's, where it is finished and somebody has opened it.
    Raises ValueError when a trial asks for a corpus that this scale does not have, OSError when the disk is full.
    """
    ref = corpus_ref(scale.corpus)
    for trial in trials:
        if trial.corpus not in (ref, replace(ref, traces=None)):
            raise ValueError(
                f"corpus: a trial asks for {trial.corpus.name} ({trial.corpus.fingerprint[:12]}), scale {scale.label} has "
                f"{ref.name} ({ref.fingerprint[:12]}); declare trials with scale.trial(...)"
            )
    corpus = corpus or _corpus(scale, store, executor, console)
    encoders = dict.fromkeys(trial.encoder for trial in trials)
    return {encoder: _encode(encoder, corpus, store, executor, console) for encoder in encoders}


def _corpus(scale: Scale, store: Store, executor: Executor, console: Console) -> Corpus:
    folder = corpus_folder(scale.corpus, store)
    if isinstance(scale.corpus, ImportedCorpus):
        return open_corpus(folder)
    with stage_progress(console, f"voicing {scale.corpus.examples:,} utterances") as on_progress:
        return synthesize(folder, config=scale.corpus, executor=executor, on_progress=on_progress)


def _encode(encoder: EncoderConfig, corpus: Corpus, store: Store, executor: Executor, console: Console) -> PreparedData:
    from model.encoder import encode_factory, state_key  # torch: only where something may have to be computed
    from model.whisper_weights import ensure_encoder_weights

    weights = ensure_encoder_weights(encoder.name, store.encoders)
    key = state_key(encoder, weights.sha256)
    items = [
        AudioItem(audio_sha256=annotated.example.audio_sha256, path=corpus.audio_path(annotated.example))
        for annotated in corpus.examples
    ]
    with stage_progress(console, f"encoding {len(items):,} audio files with {encoder.name}") as on_progress:
        write_encoder_states(
            store.encoder_states,
            key=key,
            items=items,
            build_encode=encode_factory(encoder, weights.path),
            executor=executor,
            on_progress=on_progress,
        )
    return PreparedData(corpus=corpus.root, encoder_states=store.encoder_states, encoder_key=key)
