"""An export -> a model that answers: audio files and prompts -> `Prediction`s, in a process that never saw the trial's run folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from data.audio import read_audio
from data.encoder_states import Encode
from data.records import InferenceMode, Prediction, Split
from data.rendering import render
from model.configs import Foundation
from model.encoder import ENCODER_WIDTH, encode_factory
from model.export import TOKENIZER_FOLDER, Export, joined_weights, open_export, weights_sha256
from model.foundations import local_folder
from model.generate import generate_predictions
from model.questions import Question
from model.speech_llm import SpeechLLM, build_speech_llm
from model.whisper_weights import ensure_encoder_weights


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """A loaded export; build it with `load_export`."""

    export: Export
    model: SpeechLLM
    tokenizer: Any
    encode: Encode

    def predict(
        self,
        questions: Sequence[Question],
        *,
        mode: InferenceMode,
        split: Split = "test",
        batch_size: int,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Prediction]:
        """Hear and answer every question, in their order. The questions are asked in `mode` already; `split` is noted in the predictions.

        The same questions in the same batches give, on the same kind of machine, the answers of the trial's own evaluation. Raises
        ValueError for a mode that the model was not trained in, and AudioError for audio that cannot be used.
        """
        config = self.export.config
        self.export.check_mode(mode)
        items = [
            (
                question.supervised,
                render(question.supervised, self.tokenizer, config.foundation.kind),
                self.encode(read_audio(question.audio)),
            )
            for question in questions
        ]
        return generate_predictions(
            self.model,
            self.tokenizer,
            items,
            kind=config.foundation.kind,
            split=split,
            max_new_tokens=config.evaluation.max_new_tokens(mode),
            batch_size=batch_size,
            constrained=config.evaluation.constrained,
            on_progress=on_progress,
        )


def load_export(folder: Path, *, cache: Path, foundation: Path | None = None) -> ExportedModel:
    """Check every file of an export, and load it with its foundation and encoder, on a GPU where there is one.

    `cache`: where encoder weights are kept. `foundation`: where the foundation lies, for one that is a folder and lies elsewhere than at
    training. Raises ValueError when a file is damaged, or when foundation or encoder are not those that the trial was trained on.
    """
    export = open_export(folder)
    config = export.config
    weights = ensure_encoder_weights(config.encoder.name, cache)
    if weights.sha256 != export.encoder_sha256:
        raise ValueError(
            f"{weights.path}: is another {config.encoder.name} than the trial's ({weights.sha256[:12]} instead of {export.encoder_sha256[:12]})"
        )
    model = build_speech_llm(
        _located(export, foundation),
        state_mean=torch.zeros(ENCODER_WIDTH),  # as everything that is built here, overwritten by the export's weights
        state_std=torch.ones(ENCODER_WIDTH),
        adapter=config.adapter,
        lora=config.lora,
        precision=config.optim.precision,
        seed=config.seed,
    )
    _load_weights(model, folder)
    return ExportedModel(
        export=export,
        model=model.to("cuda" if torch.cuda.is_available() else "cpu").eval(),
        tokenizer=AutoTokenizer.from_pretrained(folder / TOKENIZER_FOLDER, trust_remote_code=False),
        encode=encode_factory(config.encoder, weights.path)(),
    )


def _located(export: Export, folder: Path | None) -> Foundation:
    """The foundation where it lies on this machine, its weights checked where they are files of a folder."""
    foundation = export.config.foundation
    if not export.foundation_sha256:
        if folder is not None:
            raise ValueError(f"--foundation: {foundation.source} is on the model hub; leave the option out")
        return foundation
    if folder is not None:
        foundation = replace(foundation, source=str(folder))
    if local_folder(foundation) is None:
        raise ValueError(
            f"foundation {foundation.name}: {foundation.source} is no folder here; name the model's folder with --foundation"
        )
    if weights_sha256(foundation) != dict(export.foundation_sha256):
        raise ValueError(
            f"foundation {foundation.name}: {local_folder(foundation)} does not hold the weights that {export.trial_id} was trained on"
        )
    return foundation


def _load_weights(model: SpeechLLM, folder: Path) -> None:
    weights, parameters = joined_weights(folder), model.trainable_parameters()
    if wrong := sorted(parameters.keys() ^ weights.keys()):
        raise ValueError(
            f"{folder}: its tensors are not this model's, e.g. {wrong[0]}; another version of slotgrid wrote it"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(weights[name]))
