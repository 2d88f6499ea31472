"""A trained tiny foundation -> its folder (fp16 safetensors, tokenizer, model card), and four folders -> family.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from transformers import LlamaForCausalLM

from data.atomic import atomic_open, write_json
from model.configs import FOUNDATION_KINDS, FoundationKind

FAMILY_FILE = "family.json"
_TRAINING: dict[FoundationKind, str] = {
    "base": "Plain call-centre text from random weights: dialogues, forms, records, notes. It has seen no instruction.",
    "instruct": "tiny-base, then chat exchanges: an instruction, labels and a caller's turn as text; the answer is the JSON of the slots.",
    "reasoning": "tiny-base, then sums, word puzzles and small logic with the reasoning in `<think>` tags; one document in eight is plain "
    "call-centre text. It has seen no slot-filling instruction.",
    "hybrid": "tiny-base, then the exchanges of tiny-instruct, half of them with reasoning in `<think>` tags: `enable_thinking` in the chat "
    "template switches it, as do `\\think` and `\\no think` in the prompt.",
}


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a model card says about one training."""

    kind: FoundationKind
    steps: int
    steps_scale: float
    seed: int
    seconds_per_step: float
    text_f1: Mapping[str, float]


def write_foundation(folder: Path, model: LlamaForCausalLM, tokenizer: Any, figures: Figures) -> None:
    """Write one foundation as a Hugging Face model folder; the weights are rounded to fp16."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    config = model.config.to_dict()
    for volatile in ("transformers_version", "_name_or_path"):
        config.pop(volatile, None)
    config |= {"architectures": ["LlamaForCausalLM"], "dtype": "float16"}
    write_json(folder / "config.json", config)
    tensors = {
        name: tensor.to(torch.float16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    with atomic_open(folder / "model.safetensors", "wb") as stream:
        stream.write(save(tensors, metadata={"format": "pt"}))
    with atomic_open(folder / "README.md") as stream:
        stream.write(model_card(figures, count_parameters(model)))


def count_parameters(model: LlamaForCausalLM) -> int:
    """Weights, the tied output embeddings counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def write_family_file(out: Path) -> None:
    """Write family.json over the foundations in a folder: name -> weights hash, parameter count, kind."""
    family = {}
    for kind in FOUNDATION_KINDS:
        weights = out / f"tiny-{kind}" / "model.safetensors"
        content = weights.read_bytes()
        family[f"tiny-{kind}"] = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "parameters": _stored_parameters(content),
            "kind": kind,
        }
    write_json(out / FAMILY_FILE, family)


def _stored_parameters(content: bytes) -> int:
    """Elements of all tensors, from a safetensors file's header."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    total = 0
    for name, entry in header.items():
        if name != "__metadata__":
            count = 1
            for size in entry["shape"]:
                count *= size
            total += count
    return total


def model_card(figures: Figures, parameters: int) -> str:
    """The README.md of one foundation."""
    name = f"tiny-{figures.kind}"
    rows = "\n".join(f"| {measured} | {value:.3f} |" for measured, value in figures.text_f1.items())
    return f"""---
license: apache-2.0
language: en
---
# {name}

A {parameters:,}-parameter Llama-architecture language model for trying slotgrid on a machine without GPU or model hub. It is made by
slotgrid itself, knows a synthetic call centre and nothing else, and is none of the published models whose kind ({figures.kind}) it plays.

- Training: {_TRAINING[figures.kind]}
- Data: text only, written by `data/callcentre` (training split: training frames, training values) and by `model/tiny_texts.py` and
  `model/tiny_lessons.py`; some names and values are invented words. Every document is checked against `held_out_values()`: none says a
  test-only value. No audio, no third-party text.
- {figures.steps} steps of 32 documents, AdamW, {figures.seconds_per_step:.2f} s a step on one CPU core. Weights are stored in fp16.
- Made by: `python experiments/pretrain_tiny.py --out model/tiny_foundations --steps-scale {figures.steps_scale:g} --seed {figures.seed}`
- Licence: Apache-2.0, as the rest of slotgrid.

Slot F1 on validation turns of the synthetic call centre, reading the transcript instead of hearing it:

| measured | F1 |
|---|---|
{rows}
"""
