"""A trial -> `Explanation`: what its model will read, what of it is trained, where it stops, what trains, and on how much. Before any training.

Loads a tokenizer and no weights. Shows an example of the trial's corpus, or, before there is one, the first utterance of the generator.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.callcentre.dialogues import build_ontology, iter_utterances
from data.callcentre.synthesize import SyntheticCorpusConfig
from data.manifest import CORPUS_FILE, Corpus, open_corpus
from data.records import SAMPLE_RATE, SPLITS, AnnotatedExample, InferenceMode, Ontology
from data.supervision import supervise
from model.architectures import adapter_parameters, lora_parameters
from model.configs import TrialConfig
from model.foundations import architecture_of, card_of, local_folder
from orchestrator.corpora import GridCorpus, ImportedCorpus, corpus_folder
from orchestrator.corpus_stats import tokenizer_folder
from orchestrator.explanation import (
    AudioLength,
    DataCounts,
    Explanation,
    Mark,
    Rendering,
    Schedule,
    ShownExample,
    ShownToken,
    TrainableParameters,
)
from orchestrator.identity import read_document, trial_id
from orchestrator.layout import Store

ASSUMED_SECONDS = 5.0
"""Of audio, where the example has none yet."""


def explain_trial(trial: TrialConfig, corpus_config: GridCorpus, store: Store) -> Explanation:
    """Explain a trial on the corpus of its grid.

    Raises ValueError for a damaged corpus and for a tokenizer that does not suit the foundation's kind.
    """
    folder = corpus_folder(corpus_config, store)
    corpus = open_corpus(folder) if (folder / CORPUS_FILE).is_file() else None
    annotated, ontology, source = _choose_example(trial, corpus)
    audio = _audio_length(trial, annotated.example.duration_s)
    gaps: list[str] = []
    parameters = rendering = None
    try:
        parameters = count_parameters(trial)
    except ValueError as error:
        gaps.append(str(error))
    if tokenizer_files := _find_tokenizer(trial):
        rendering = _render(trial, tokenizer_files, annotated, ontology, audio)
    else:
        gaps.append(_fetch_tokenizer(trial))
    data = _count_data(trial, corpus_config, corpus)
    return Explanation(
        trial=trial,
        trial_id=trial_id(trial),
        example_id=annotated.example.id,
        example_from=source,
        audio=audio,
        rendering=rendering,
        parameters=parameters,
        data=data,
        schedule=_schedule(trial, sum(data.items.values())),
        gaps=tuple(gaps),
    )


def _choose_example(trial: TrialConfig, corpus: Corpus | None) -> tuple[AnnotatedExample, Ontology, str]:
    """The first training example that has what the trial trains on: a trace where it thinks."""
    thinks = "think" in trial.inference_modes
    if corpus is None:
        utterance = next(iter_utterances("train", 1, seed=0))
        source = "the generator, without audio: no corpus is prepared yet"
        return utterance.unvoiced(), build_ontology(), source
    for annotated in corpus.split("train"):
        if annotated.trace or not thinks:
            return annotated, corpus.ontology, f"the train split of {corpus.root}"
    raise ValueError(
        f"{corpus.root}: no training example has a reasoning trace, which {trial.mode} supervision needs; "
        "write traces with `slotgrid data annotate`"
    )


def _audio_length(trial: TrialConfig, seconds: float) -> AudioLength:
    from data.batching import audio_token_count  # torch
    from model.encoder import encoded_frames

    assumed = seconds <= 0
    seconds = ASSUMED_SECONDS if assumed else seconds
    frames = encoded_frames(round(seconds * SAMPLE_RATE), trial.encoder.padding)
    stack = trial.adapter.stack_factor
    return AudioLength(
        seconds=seconds,
        assumed=assumed,
        encoder_frames=frames,
        stack_factor=stack,
        embeddings=audio_token_count(frames, stack),
    )


def _find_tokenizer(trial: TrialConfig) -> Path | None:
    """The folder of the foundation's tokenizer; None where it is not on this machine."""
    folder = tokenizer_folder(trial.foundation)
    return folder if folder and (folder / "tokenizer_config.json").is_file() else None


def _fetch_tokenizer(trial: TrialConfig) -> str:
    """What to do about a tokenizer that is not there."""
    foundation, card = trial.foundation, card_of(trial.foundation)
    if folder := local_folder(foundation):
        remedy = f"put tokenizer.json and tokenizer_config.json into {folder}"
    else:
        licence = "accept its licence on the hub, log in with `hf auth login`, then " if card and card.gated else ""
        remedy = f"{licence}hf download {foundation.source} --revision {foundation.revision} --include '*.j*'"
    return f"foundation {foundation.name}: its tokenizer is not on this machine, so no prompt can be shown; {remedy}"


def _render(
    trial: TrialConfig, folder: Path, annotated: AnnotatedExample, ontology: Ontology, audio: AudioLength
) -> Rendering:
    from transformers import AutoTokenizer

    from data.rendering import answer_end

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)

    def named(token_id: int) -> tuple[str, int]:
        return _decode(tokenizer, [token_id]), token_id

    roles = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    trained = answer_end(tokenizer, trial.foundation.kind)
    ends = [trained, *sorted({tokenizer.eos_token_id, *_own_ends(folder)} - {trained, None})]
    return Rendering(
        special_tokens={role: named(token_id) for role, token_id in roles.items() if token_id is not None},
        stops_at=tuple(named(token_id) for token_id in ends),
        examples=tuple(
            _show(trial, tokenizer, annotated, ontology, audio, mode=mode) for mode in trial.inference_modes
        ),
    )


def _own_ends(folder: Path) -> list[int]:
    """The end tokens that the foundation's generation_config.json names: Llama 3.1 Instruct has three."""
    path = folder / "generation_config.json"
    ends = read_document(path, "download it again").get("eos_token_id", []) if path.is_file() else []
    return [ends] if isinstance(ends, int) else list(ends)


def _show(
    trial: TrialConfig,
    tokenizer: Any,
    annotated: AnnotatedExample,
    ontology: Ontology,
    audio: AudioLength,
    *,
    mode: InferenceMode,
) -> ShownExample:
    from data.rendering import render

    supervised = supervise(annotated, ontology, trial.supervision, mode=mode, draw=f"seed{trial.seed}/epoch0")
    rendered = render(supervised, tokenizer, trial.foundation.kind)
    heard = f"{audio.embeddings} audio embeddings"
    parts: tuple[tuple[Mark, tuple[int, ...]], ...] = (
        ("masked", rendered.prefix),
        ("audio", ()),
        ("masked", rendered.suffix),
        ("trained", rendered.target),
    )

    def tokens() -> Iterator[ShownToken]:
        for mark, ids in parts:
            if mark == "audio":
                yield ShownToken(mark=mark, text=heard, id=None)
            for token_id in ids:
                yield ShownToken(mark=mark, text=_decode(tokenizer, [token_id]), id=token_id)

    return ShownExample(
        mode=mode,
        columns={
            "masked": len(rendered.prefix) + len(rendered.suffix),
            "audio": audio.embeddings,
            "trained": len(rendered.target),
        },
        tokens=tuple(tokens()),
        text=tuple((mark, heard if mark == "audio" else _decode(tokenizer, ids)) for mark, ids in parts),
        max_new_tokens=trial.evaluation.max_new_tokens(mode),
    )


def _decode(tokenizer: Any, ids: Any) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def count_parameters(trial: TrialConfig) -> TrainableParameters:
    """The parameters that train, by part, from the foundation's dimensions. Raises ValueError where these are not known."""
    from model.encoder import ENCODER_WIDTH

    architecture, lora = architecture_of(trial.foundation), trial.lora
    adapter = adapter_parameters(trial.adapter, encoder_width=ENCODER_WIDTH, hidden_size=architecture.hidden_size)
    total = adapter + lora_parameters(architecture, lora)
    layers = architecture.num_hidden_layers
    parts = {
        f"LoRA {name}": layers * lora.r * (width_in + width_out)
        for name, (width_in, width_out) in architecture.linear_shapes.items()
    }
    assert adapter + sum(parts.values()) == total
    return TrainableParameters(
        parts={"speech adapter": adapter, **parts}, trained=total, frozen=architecture.parameters.total
    )


def _count_data(trial: TrialConfig, config: GridCorpus, corpus: Corpus | None) -> DataCounts:
    """From the corpus itself, or from what the generator will make, which writes a trace for every example."""
    if corpus is None:
        assert isinstance(config, SyntheticCorpusConfig | ImportedCorpus)
        splits = {split: config.count(split) for split in SPLITS}
        with_trace = splits["train"]
    else:
        splits = {split: len(corpus.split(split)) for split in SPLITS}
        with_trace = sum(row.trace is not None for row in corpus.split("train"))
    used = with_trace if "think" in trial.inference_modes else splits["train"]
    return DataCounts(
        prepared=corpus is not None,
        splits={split: count for split, count in splits.items() if count},
        train_with_trace=with_trace,
        items={mode: used for mode in trial.inference_modes},
    )


def _schedule(trial: TrialConfig, items: int) -> Schedule:
    optim, budget = trial.optim, trial.budget
    peaks = {"speech adapter": optim.adapter_learning_rate, "LoRA": optim.lora_learning_rate}
    return Schedule(
        steps=budget.steps,
        batch_size=budget.batch_size,
        passes=round(budget.steps * budget.batch_size / items, 2) if items else 0.0,
        warmup_steps=max(1, round(budget.steps * optim.warmup_fraction)),
        learning_rates={group: (peak, peak * optim.final_fraction) for group, peak in peaks.items()},
        max_grad_norm=optim.max_grad_norm,
        precision=optim.precision,
    )
