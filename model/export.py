"""A finished trial's last checkpoint -> a folder that another team can use: LoRA in PEFT's form, speech adapter, settings, model card.

    <out>/adapter_config.json, adapter_model.safetensors    LoRA, as peft.PeftModel.from_pretrained reads it
          speech_adapter.safetensors                        the speech adapter, its input's standardisation included
          tokenizer/                                        the foundation's, as the trial used it
          trial.json, ontology.json                         the trial's config.json; the labels it was trained on, with their descriptions
          README.md                                         the model card
          export.json                                       written last: versions, scores, hashes of weights that are not here, sha256 of every file

The frozen foundation and encoder are named by revision and hash, not copied. The same trial gives the same bytes. There is no pickle.
Light: torch is loaded by `write_export` only, so that an export can be looked at and checked in an instant.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from data.atomic import atomic_open, file_sha256, write_json
from data.manifest import read_ontology
from data.records import SAMPLE_RATE, InferenceMode, Ontology, to_json
from data.supervision import SupervisionConfig
from model.configs import (
    AdapterConfig,
    Budget,
    CorpusRef,
    EncoderConfig,
    EvaluationConfig,
    Foundation,
    LoRAConfig,
    OptimConfig,
    TrialConfig,
)
from model.export_card import model_card
from model.foundations import local_folder
from model.whole_folder import whole_folder

FORMAT = 1
INDEX_FILE = "export.json"
TRIAL_FILE = "trial.json"  # not config.json, which other libraries would take for a model's
ONTOLOGY_FILE = "ontology.json"
CARD_FILE = "README.md"
TOKENIZER_FOLDER = "tokenizer"
LORA_FILE, LORA_CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"  # PEFT's names
ADAPTER_FILE = "speech_adapter.safetensors"

Weights = dict[str, NDArray[np.float32]]
_PARTS: Mapping[str, Any] = {
    "foundation": Foundation,
    "supervision": SupervisionConfig,
    "corpus": CorpusRef,
    "budget": Budget,
    "encoder": EncoderConfig,
    "adapter": AdapterConfig,
    "lora": LoRAConfig,
    "optim": OptimConfig,
    "evaluation": EvaluationConfig,
}


@dataclass(frozen=True, kw_only=True)
class TrainedTrial:
    """What of a finished trial is exported."""

    trial: Mapping[str, Any]  # the content of its config.json: trial_id, fingerprint, config
    checkpoints: Path
    ontology: Ontology  # of the corpus that it was trained on
    encoder_sha256: str
    headline_inference_mode: InferenceMode
    scores: Mapping[str, float]
    validation_scores: Mapping[str, float]

    @property
    def config(self) -> TrialConfig:
        """What the trial computed."""
        return config_of(self.trial)


@dataclass(frozen=True, kw_only=True)
class Export:
    """An export whose files are as they were written."""

    folder: Path
    trial_id: str
    config: TrialConfig
    ontology: Ontology
    encoder_sha256: str
    foundation_sha256: Mapping[
        str, str
    ]  # of the weights, where they are files of a folder and no commit says what they are
    headline_inference_mode: InferenceMode

    def check_mode(self, mode: InferenceMode) -> None:
        """Raise ValueError for an inference mode that the trial was not trained in."""
        if mode not in self.config.inference_modes:
            raise ValueError(
                f"--mode: {self.trial_id} was trained under {self.config.mode} supervision and is asked in "
                f"{' or '.join(self.config.inference_modes)}, not {mode}"
            )


def write_export(out: Path, trained: TrainedTrial) -> Export:
    """Write the export of a finished trial to `out`, whole or not at all.

    Raises ValueError when `out` holds something already, or when there is no whole checkpoint of the trial's last step.
    """
    from model.speech_llm import load_tokenizer

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: there is something already; name another folder, or delete it first")
    config = trained.config
    lora, adapter = split_weights(_last_weights(config, trained.checkpoints))
    with whole_folder(out) as folder:
        _write_weights(folder / LORA_FILE, lora)
        write_json(folder / LORA_CONFIG_FILE, peft_config(config, lora))
        _write_weights(folder / ADAPTER_FILE, adapter)
        write_json(folder / TRIAL_FILE, trained.trial)
        domains = {domain: [to_json(label) for label in labels] for domain, labels in trained.ontology.domains.items()}
        write_json(folder / ONTOLOGY_FILE, {"domains": domains})
        tokenizer = load_tokenizer(config.foundation)
        for name in ("is_local", "local_files_only"):  # how it was loaded here, which is nobody's business elsewhere
            tokenizer.init_kwargs.pop(name, None)
        tokenizer.save_pretrained(folder / TOKENIZER_FOLDER)
        index = _index(trained, adapter)
        with atomic_open(folder / CARD_FILE) as stream:
            stream.write(model_card(config, index))
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): file_sha256(path) for path in paths}
        write_json(folder / INDEX_FILE, {**index, "files": files})
    return open_export(out)


def open_export(folder: Path) -> Export:
    """Read an export and check every file's hash; loads no model. Raises ValueError for what is no export, or a damaged one."""
    path = folder / INDEX_FILE
    if not path.is_file():
        raise ValueError(f"{path}: is missing, so this is no finished export; write one with `slotgrid export`")
    index = _read_json(path)
    if index.get("format") != FORMAT:
        raise ValueError(
            f"{path}: format {index.get('format')!r} is not known; this version of slotgrid reads {FORMAT}"
        )
    for name, expected in index["files"].items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name}: is missing; copy the export again")
        if file_sha256(folder / name) != expected:
            raise ValueError(
                f"{folder / name}: differs from what was exported (its sha256 is not the one in {INDEX_FILE}); copy it again"
            )
    return Export(
        folder=folder,
        trial_id=index["trial_id"],
        config=config_of(_read_json(folder / TRIAL_FILE)),
        ontology=read_ontology(folder / ONTOLOGY_FILE),
        encoder_sha256=index["encoder"]["weights_sha256"],
        foundation_sha256=index["foundation"]["weights_sha256"],
        headline_inference_mode=index["headline_inference_mode"],
    )


def config_of(trial: Mapping[str, Any]) -> TrialConfig:
    """The config in the content of a trial's config.json. Raises ValueError when another version of slotgrid wrote it."""
    fields = dict(trial["config"])
    try:
        for name, part in _PARTS.items():
            # JSON has lists where the configs have tuples
            values = {key: tuple(value) if isinstance(value, list) else value for key, value in fields[name].items()}
            fields[name] = part(**values)
        return TrialConfig(**fields)
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"trial {trial.get('trial_id')}: its config was written by another version of slotgrid ({error})"
        ) from error


def split_weights(trained: Weights) -> tuple[Weights, Weights]:
    """A checkpoint's weights by our names -> LoRA by PEFT's names, and the speech adapter by its own."""
    adapter = {name.removeprefix("adapter."): value for name, value in trained.items() if name.startswith("adapter.")}
    lora = {
        name.removeprefix("llm.").replace(".default.", "."): value
        for name, value in trained.items()
        if not name.startswith("adapter.")
    }
    return lora, adapter


def joined_weights(folder: Path) -> Weights:
    """The weights of an export by the names of `SpeechLLM.trainable_parameters`: the inverse of `split_weights`."""
    lora, adapter = load_file(folder / LORA_FILE), load_file(folder / ADAPTER_FILE)
    joined = {f"adapter.{name}": value for name, value in adapter.items()}
    joined |= {"llm." + re.sub(r"\.(lora_[AB])\.", r".\1.default.", name): value for name, value in lora.items()}
    return joined


def peft_config(config: TrialConfig, lora: Weights) -> dict[str, Any]:
    """PEFT's adapter_config.json. Fields that are not here have PEFT's defaults."""
    on_hub = local_folder(config.foundation) is None
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.foundation.source if on_hub else config.foundation.name,
        "revision": config.foundation.revision if on_hub else None,
        "r": config.lora.r,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": config.lora.dropout,
        "target_modules": sorted({name.split(".lora_")[0].rpartition(".")[2] for name in lora}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def weights_sha256(foundation: Foundation) -> dict[str, str]:
    """The hash of every weights file of a foundation in a folder; empty for one on the hub, whose commit says it."""
    folder = local_folder(foundation)
    return {path.name: file_sha256(path) for path in sorted(folder.glob("*.safetensors"))} if folder else {}


def _last_weights(config: TrialConfig, checkpoints: Path) -> Weights:
    from model.checkpoint_folder import newest_checkpoint

    checkpoint = newest_checkpoint(checkpoints)
    step = _read_json(checkpoint / "commit.json")["step"] if checkpoint else None
    if checkpoint is None or step != config.budget.steps:
        found = "none" if step is None else f"the last whole one is of step {step}"
        raise ValueError(
            f"{checkpoints}: no whole checkpoint of the last step, {config.budget.steps} ({found}); delete the trial's result.json and run the "
            "experiment again"
        )
    return load_file(checkpoint / "trainable.safetensors")


def _index(trained: TrainedTrial, adapter: Weights) -> dict[str, Any]:
    """What export.json says, except for the hashes of the files."""
    config = trained.config
    foundation = config.foundation
    return {
        "format": FORMAT,
        "trial_id": trained.trial["trial_id"],
        "fingerprint": trained.trial["fingerprint"],
        "foundation": {
            "name": foundation.name,
            "source": foundation.source,  # of a folder the path at training
            "revision": foundation.revision,
            "weights_sha256": weights_sha256(foundation),
        },
        "encoder": {
            "name": config.encoder.name,
            "padding": config.encoder.padding,
            "sample_rate": SAMPLE_RATE,
            "weights_sha256": trained.encoder_sha256,
        },
        "speech_adapter": {
            "stack_factor": config.adapter.stack_factor,
            "state_width": len(adapter["state_scale"]),
            "hidden_width": config.adapter.hidden_width,
            "embedding_width": len(adapter["norm.weight"]),
        },
        "prompt_version": config.supervision.prompt_version,
        "metric_version": config.metric_version,
        "inference_modes": {
            mode: {"max_new_tokens": config.evaluation.max_new_tokens(mode)} for mode in config.inference_modes
        },
        "headline_inference_mode": trained.headline_inference_mode,
        "scores": dict(trained.scores),
        "validation_scores": dict(trained.validation_scores),
    }


def _write_weights(path: Path, weights: Weights) -> None:
    with atomic_open(path, "wb") as stream:
        stream.write(save(dict(sorted(weights.items())), metadata={"format": "pt"}))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is damaged ({error}); copy it again") from error
    assert isinstance(value, dict), path
    return value
