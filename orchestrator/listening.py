"""A finished trial -> does it listen, or guess from the prompt? Its test score beside two controls, computed from its last checkpoint.

untrained: the same speechLLM before its first step. shuffled: the trained model, each test utterance heard with another one's audio (same
prompts, same references). A model that listens loses most of its score when the audio is shuffled.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.atomic import write_json
from orchestrator.identity import read_config
from orchestrator.layout import Store, TrialFolder
from orchestrator.results import HEADLINE, TrialResult, read_result


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Partial-match F1 on the test split, in the trial's headline inference mode."""

    trial_id: str
    trained: float
    untrained: float
    shuffled: float

    @property
    def lost(self) -> float:
        """The share of the trained score that goes when the audio is shuffled."""
        return 1 - self.shuffled / self.trained if self.trained else 0.0


def best_trial(run: Path) -> TrialResult:
    """The finished trial with the highest headline score of a run folder. Raises ValueError when none is finished."""
    results = [read_result(TrialFolder(path.parent)) for path in sorted(run.glob("trials/*/result.json"))]
    if not results:
        raise ValueError(f"{run}: no finished trial here; run the experiment first")
    return max(results, key=lambda result: result.scores[HEADLINE])


def check_listening(run: Path, trial_id: str | None = None) -> Listening:
    """Score one trial's controls (the best trial's when none is named) and write `listening.json` into its folder.

    Raises ValueError when the trial is not finished, or when its checkpoint or prepared data are gone.
    """
    from model.configs import Execution
    from model.encoder import state_key
    from model.trial import TrialPaths, score_checkpoint
    from model.whisper_weights import ensure_encoder_weights

    folder = TrialFolder(run / "trials" / trial_id) if trial_id else None
    if folder and not folder.result.exists():
        raise ValueError(f"{folder.path}: no finished trial of that name; `status` lists them")
    result = read_result(folder) if folder else best_trial(run)
    folder = folder or TrialFolder(run / "trials" / result.trial_id)
    config, store = read_config(folder.config), Store(run.absolute().parent)
    weights = ensure_encoder_weights(config.encoder.name, store.encoders)
    paths = TrialPaths(
        corpus=store.corpus(config.corpus),
        encoder_states=store.encoder_states,
        encoder_key=state_key(config.encoder, weights.sha256),
        output=folder.path,
    )
    scored = partial(score_checkpoint, config, Execution(), paths, mode=result.headline_inference_mode)
    listening = Listening(
        trial_id=result.trial_id,
        trained=scored().partial_f1,
        untrained=scored(trained=False).partial_f1,
        shuffled=scored(hear=lambda position, count: (position + count // 2) % count).partial_f1,
    )
    write_json(folder.path / "listening.json", {**vars(listening), "lost": listening.lost})
    return listening
