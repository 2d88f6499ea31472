"""The foundation LLMs a grid can name, and a card for each: the paper's five, their larger and smaller kin, and our own tiny family.

Light: no torch here, the registry is read when a grid is declared. `model.speech_llm` loads what an entry names. To add a foundation, add one
row to its family below, or one `_card(...)` to `CARDS`; dimensions are those of the model's config.json, the revision is the hub's commit.
A `Foundation` is part of every trial's identity; what does not decide a result (licence, dimensions, size on disk) stands beside it on the card.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model.architectures import Architecture, ModelType
from model.configs import Foundation, FoundationKind

TINY_FOLDER = Path(__file__).parent / "tiny_foundations"
_PACKAGE = "package:"

Thinking = Literal["none", "opened", "switched"]
"""What the chat template does about thinking: nothing; it ends every prompt with an opened <think>; its `enable_thinking` (and /think, /no_think
in the text) decides."""


@dataclass(frozen=True, kw_only=True)
class FoundationCard:
    """What is published about a foundation on the hub, beside what identifies it."""

    foundation: Foundation
    architecture: Architecture
    licence: str  # the hub's name for it
    gated: bool = False  # the hub asks for an accepted licence and a token
    thinking: Thinking = "none"
    answer_end: str  # the token that ends an answer in its own format
    stored_parameters: int  # in its safetensors; more than it has where a tied head is stored twice

    @property
    def download_bytes(self) -> int:
        """Size of its weights on the hub, all of which are bf16."""
        return 2 * self.stored_parameters


def _dimensions(
    model_type: ModelType,
    hidden: int,
    layers: int,
    heads: int,
    key_value_heads: int,
    inner: int,
    vocabulary: int,
    *,
    head_dim: int | None = None,
    tied: bool = False,
) -> Architecture:
    return Architecture(
        model_type=model_type,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim or hidden // heads,
        intermediate_size=inner,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        attention_bias=model_type == "qwen2",
    )


def _card(
    name: str,
    kind: FoundationKind,
    source: str,
    revision: str,
    architecture: Architecture,
    *,
    family: str,
    licence: str,
    answer_end: str,
    gated: bool = False,
    thinking: Thinking = "none",
    head_stored_twice: bool = False,
) -> FoundationCard:
    parameters = architecture.parameters
    return FoundationCard(
        foundation=Foundation(
            name=name, kind=kind, source=source, revision=revision, family=family, parameters=parameters.total
        ),
        architecture=architecture,
        licence=licence,
        gated=gated,
        thinking=thinking,
        answer_end=answer_end,
        stored_parameters=parameters.total + head_stored_twice * parameters.embedding,
    )


_LLAMA_8B = _dimensions("llama", 4096, 32, 32, 8, 14_336, 128_256)
_LLAMA_70B = _dimensions("llama", 8192, 80, 64, 8, 28_672, 128_256)
_QWEN2_5_1_5B = _dimensions("qwen2", 1536, 28, 12, 2, 8960, 151_936)
_QWEN2_5_7B = _dimensions("qwen2", 3584, 28, 28, 4, 18_944, 152_064)
_QWEN2_5_14B = _dimensions("qwen2", 5120, 48, 40, 8, 13_824, 152_064)
_QWEN2_5_32B = _dimensions("qwen2", 5120, 64, 40, 8, 27_648, 152_064)


def _llama_3_1() -> Iterator[FoundationCard]:
    rows: tuple[tuple[str, FoundationKind, str, Architecture], ...] = (
        ("8B", "base", "d04e592bb4f6aa9cfee91e2e20afa771667e1d4b", _LLAMA_8B),
        ("8B", "instruct", "0e9e39f249a16976918f6564b8830bc894c89659", _LLAMA_8B),
        ("70B", "base", "349b2ddb53ce8f2849a6c168a81980ab25258dac", _LLAMA_70B),
        ("70B", "instruct", "1605565b47bb9346c5515c34102e054115b4f98b", _LLAMA_70B),
    )
    for size, kind, revision, architecture in rows:
        source = f"Llama-3.1-{size}" + "-Instruct" * (kind == "instruct")
        yield _card(
            source.lower(),
            kind,
            f"meta-llama/{source}",
            revision,
            architecture,
            family="llama-3.1",
            licence="llama3.1",
            gated=True,
            answer_end="<|eot_id|>" if kind == "instruct" else "<|end_of_text|>",
        )


def _r1_distill() -> Iterator[FoundationCard]:
    for student, revision, architecture in (
        ("Llama-8B", "6a6f4aa4197940add57724a7707d069478df56b1", _LLAMA_8B),
        ("Qwen-1.5B", "ad9f0ae0864d7fbcd1cd905e3c6c5b069cc8b562", _QWEN2_5_1_5B),
        ("Qwen-7B", "916b56a44061fd5cd7d6a8fb632557ed4f724f60", _QWEN2_5_7B),
        ("Qwen-14B", "1df8507178afcc1bef68cd8c393f61a886323761", _QWEN2_5_14B),
        ("Qwen-32B", "711ad2ea6aa40cfca18895e8aca02ab92df1a746", _QWEN2_5_32B),
    ):
        yield _card(
            f"r1-distill-{student.lower()}",
            "reasoning",
            f"deepseek-ai/DeepSeek-R1-Distill-{student}",
            revision,
            architecture,
            family="llama-3.1" if architecture.model_type == "llama" else "qwen2.5",
            licence="mit",
            thinking="opened",
            answer_end="<｜end▁of▁sentence｜>",
        )


def _qwen3() -> Iterator[FoundationCard]:
    for size, revision, hidden, layers, heads, inner, tied, head_stored_twice in (
        ("0.6B", "c1899de289a04d12100db370d81485cdf75e47ca", 1024, 28, 16, 3072, True, True),
        ("1.7B", "70d244cc86ccca08cf5af4e1e306ecf908b1ad5e", 2048, 28, 16, 6144, True, True),
        ("4B", "1cfa9a7208912126459214e8b04321603b3df60c", 2560, 36, 32, 9728, True, False),
        ("8B", "b968826d9c46dd6066d109eabc6255188de91218", 4096, 36, 32, 12_288, False, False),
        ("14B", "40c069824f4251a91eefaf281ebe4c544efd3e18", 5120, 40, 40, 17_408, False, False),
        ("32B", "9216db5781bf21249d130ec9da846c4624c16137", 5120, 64, 64, 25_600, False, False),
    ):
        yield _card(
            f"qwen3-{size.lower()}",
            "hybrid",
            f"Qwen/Qwen3-{size}",
            revision,
            _dimensions("qwen3", hidden, layers, heads, 8, inner, 151_936, head_dim=128, tied=tied),
            family="qwen3",
            licence="apache-2.0",
            thinking="switched",
            answer_end="<|im_end|>",
            head_stored_twice=head_stored_twice,
        )


_SMOLLM2_135M = _dimensions("llama", 576, 30, 9, 3, 1536, 49_152, tied=True)
_SMOLLM2_360M = _dimensions("llama", 960, 32, 15, 5, 2560, 49_152, tied=True)
_SMOLLM2_1_7B = _dimensions("llama", 2048, 24, 32, 32, 8192, 49_152, tied=True)


def _smollm2() -> Iterator[FoundationCard]:
    rows: tuple[tuple[str, FoundationKind, str, Architecture], ...] = (
        ("135M", "base", "93efa2f097d58c2a74874c7e644dbc9b0cee75a2", _SMOLLM2_135M),
        ("135M", "instruct", "12fd25f77366fa6b3b4b768ec3050bf629380bac", _SMOLLM2_135M),
        ("360M", "base", "f8027fd0eaeea54caa13c31d31b9fdc459c38b49", _SMOLLM2_360M),
        ("360M", "instruct", "a10cc1512eabd3dde888204e902eca88bddb4951", _SMOLLM2_360M),
        ("1.7B", "base", "effd688a12921b4cc83e3312b6feb579f70f9c71", _SMOLLM2_1_7B),
        ("1.7B", "instruct", "31b70e2e869a7173562077fd711b654946d38674", _SMOLLM2_1_7B),
    )
    for size, kind, revision, architecture in rows:
        source = f"SmolLM2-{size}" + "-Instruct" * (kind == "instruct")
        yield _card(
            source.lower(),
            kind,
            f"HuggingFaceTB/{source}",
            revision,
            architecture,
            family="smollm2",
            licence="apache-2.0",
            answer_end="<|im_end|>" if kind == "instruct" else "<|endoftext|>",
        )


CARDS: dict[str, FoundationCard] = {
    card.foundation.name: card for card in [*_llama_3_1(), *_r1_distill(), *_qwen3(), *_smollm2()]
}


def _tiny_family() -> list[Foundation]:
    """The packaged family as `experiments/pretrain_tiny.py` left it: each revision is the sha256 of the weights."""
    family = json.loads((TINY_FOLDER / "family.json").read_text(encoding="utf-8"))
    return [
        Foundation(
            name=name,
            kind=entry["kind"],
            source=f"{_PACKAGE}{name}",
            revision=entry["sha256"],
            family="tiny",
            parameters=entry["parameters"],
        )
        for name, entry in family.items()
    ]


FOUNDATIONS: dict[str, Foundation] = {
    foundation.name: foundation for foundation in [*_tiny_family(), *(card.foundation for card in CARDS.values())]
}


def local_folder(foundation: Foundation) -> Path | None:
    """The folder of a packaged or local foundation, None for one that lives on the hub."""
    if foundation.source.startswith(_PACKAGE):
        return TINY_FOLDER / foundation.source.removeprefix(_PACKAGE)
    path = Path(foundation.source)
    return path if path.is_dir() else None


def card_of(foundation: Foundation) -> FoundationCard | None:
    """The card of a foundation on the hub, whatever an experiment calls it; None where the registry has none."""
    return next((card for card in CARDS.values() if card.foundation.source == foundation.source), None)


def is_pinned(foundation: Foundation) -> bool:
    """Whether the revision fixes the weights: a commit of the hub, or the sha256 of packaged weights. A branch, tag or local folder may change."""
    if foundation.source.startswith(_PACKAGE):
        return True
    return local_folder(foundation) is None and re.fullmatch("[0-9a-f]{40}", foundation.revision) is not None


def architecture_of(foundation: Foundation) -> Architecture:
    """The foundation's dimensions: its card's, or those in its folder's config.json. Raises ValueError when neither is there."""
    if card := card_of(foundation):
        return card.architecture
    folder = local_folder(foundation)
    if folder is None:
        remedy = "add a card for it to model/foundations.py, or name a local folder as its source"
        raise ValueError(f"foundation {foundation.name}: the dimensions of {foundation.source} are not known; {remedy}")
    path = folder / "config.json"
    try:
        return Architecture.from_config(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"foundation {foundation.name}: {path} is missing; is this a model's folder?") from None
    except ValueError as error:
        raise ValueError(f"foundation {foundation.name}: {path}: {error}") from None
