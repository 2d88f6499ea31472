"""The foundation LLMs a grid can name: the paper's five, and our own tiny family for machines without GPU or hub.

Light: no torch here, the registry is read when a grid is declared. `model.speech_llm` loads what an entry names.
"""

from __future__ import annotations

import json
from pathlib import Path

from model.configs import Foundation, FoundationKind

TINY_FOLDER = Path(__file__).parent / "tiny_foundations"
_PACKAGE = "package:"


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


def _hub(name: str, kind: FoundationKind, source: str, family: str, parameters: int) -> Foundation:
    return Foundation(name=name, kind=kind, source=source, revision="main", family=family, parameters=parameters)


FOUNDATIONS: dict[str, Foundation] = {
    foundation.name: foundation
    for foundation in [
        *_tiny_family(),
        _hub("llama-3.1-8b", "base", "meta-llama/Llama-3.1-8B", "llama-3.1", 8_030_261_248),
        _hub("llama-3.1-8b-instruct", "instruct", "meta-llama/Llama-3.1-8B-Instruct", "llama-3.1", 8_030_261_248),
        _hub(
            "r1-distill-llama-8b", "reasoning", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "llama-3.1", 8_030_261_248
        ),
        _hub("qwen3-4b", "hybrid", "Qwen/Qwen3-4B", "qwen3", 4_022_468_096),
        _hub("qwen3-0.6b", "hybrid", "Qwen/Qwen3-0.6B", "qwen3", 596_049_920),
    ]
}


def local_folder(foundation: Foundation) -> Path | None:
    """The folder of a packaged or local foundation, None for one that lives on the hub."""
    if foundation.source.startswith(_PACKAGE):
        return TINY_FOLDER / foundation.source.removeprefix(_PACKAGE)
    path = Path(foundation.source)
    return path if path.is_dir() else None
