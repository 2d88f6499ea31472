"""What a finished model is asked: a corpus split as the evaluation asks it, or somebody's own audio and labels -> `Question`s."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.manifest import Corpus
from data.records import InferenceMode, Label, Ontology, Split, Turn
from data.supervision import INSTRUCTIONS, SupervisedExample, SupervisionConfig, prompt_text, supervise


@dataclass(frozen=True, kw_only=True)
class Question:
    """One audio file and the prompt that goes with it."""

    supervised: SupervisedExample
    audio: Path


@dataclass(frozen=True, kw_only=True)
class Request:
    """What somebody wants to know of an audio file."""

    id: str
    audio: Path
    labels: tuple[str, ...]
    context: tuple[Turn, ...] = ()  # the turns before, oldest first


def corpus_questions(corpus: Corpus, split: Split, config: SupervisionConfig, mode: InferenceMode) -> list[Question]:
    """Every example of a split, in its order, with the labels, context and wording that the evaluation of every trial draws."""
    return [
        Question(
            # the draw of `TrialData.evaluation_items`
            supervised=supervise(annotated, corpus.ontology, config, mode=mode, draw="evaluation", with_target=False),
            audio=corpus.audio_path(annotated.example),
        )
        for annotated in corpus.split(split)
    ]


def request_question(request: Request, ontology: Ontology, config: SupervisionConfig, mode: InferenceMode) -> Question:
    """Ask for all labels of a request, in its order, in the first wording. Raises ValueError for labels that the ontology lacks."""
    known = ontology.labels()
    if unknown := [name for name in request.labels if name not in known]:
        raise ValueError(
            f"request {request.id}: label {unknown[0]!r} is not in the ontology, which describes {len(known)} labels "
            f"({', '.join(list(known)[:5])}, ...); give one that describes it with --ontology"
        )
    if not request.labels or len(set(request.labels)) < len(request.labels):
        raise ValueError(f"request {request.id}: labels: name at least one, and each once")
    prompt = request_prompt([known[name] for name in request.labels], request.context, config, mode)
    supervised = SupervisedExample(
        example_id=request.id, mode=mode, prompt=prompt, target="", asked_labels=request.labels, reference=()
    )
    return Question(supervised=supervised, audio=request.audio)


def request_prompt(
    labels: Sequence[Label],
    context: Sequence[Turn],
    config: SupervisionConfig,
    mode: InferenceMode,
    instruction: str = INSTRUCTIONS[0],
) -> str:
    """The prompt that `data.supervision.supervise` writes, without its draws: the last turns that the trial could be shown, all labels."""
    kept = context[len(context) - min(config.max_context_turns, len(context)) :]
    return prompt_text(labels, kept, config, mode, instruction)
