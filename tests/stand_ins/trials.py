"""Family name -> a trial of a few steps on its stand-in, in the supervision mode that asks the most of it."""

from pathlib import Path
from typing import Any

import torch
from corpus_samples.synthetic import REF
from safetensors.torch import load_file

from data.records import SupervisionMode
from data.supervision import SupervisionConfig
from model.checkpoints import newest_checkpoint
from model.configs import AdapterConfig, Budget, EvaluationConfig, LoRAConfig, OptimConfig, TrialConfig
from stand_ins.hub import write_stand_in

MODES: dict[str, SupervisionMode] = {
    "qwen3": "hybrid",
    "llama-3.1": "regular",
    "llama-3.1-instruct": "reasoning",
    "r1": "reasoning",
}


def small_trial(family: str, folder: Path, **changes: Any) -> TrialConfig:
    """A trial on the stand-in of a family, whose checkpoint is written into `folder`. `changes` are fields of `TrialConfig`."""
    fields: dict[str, Any] = {
        "foundation": write_stand_in(folder / family, family),
        "supervision": SupervisionConfig(mode=MODES[family], label_descriptions=False, value_form="spoken"),
        "corpus": REF,
        "budget": Budget(steps=4, batch_size=4),
        "adapter": AdapterConfig(hidden_width=64),
        "lora": LoRAConfig(r=8, alpha=16),
        "optim": OptimConfig(precision="fp32", lora_learning_rate=2e-4, adapter_learning_rate=2e-4),
        "evaluation": EvaluationConfig(max_new_tokens_direct=4, max_new_tokens_think=6),
    }
    return TrialConfig(**{**fields, **changes})


def trained_weights(output: Path) -> dict[str, torch.Tensor]:
    """The weights of a trial's newest checkpoint."""
    newest = newest_checkpoint(output / "checkpoints")
    assert newest is not None
    return {name: value.clone() for name, value in load_file(newest / "trainable.safetensors").items()}


def greatest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The greatest difference between two checkpoints' weights."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)
