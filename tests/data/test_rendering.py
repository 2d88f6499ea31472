"""What every kind of foundation is shown, what of it is trained and where it stops: token by token, and trap by trap.

`WRITE_RENDERINGS=1 pytest tests/data/test_rendering.py` writes the golden files in `tests/data/renderings` anew. The files of the tiny family
must never change: its packaged weights were trained on exactly these tokens.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data.batching import IGNORE, collate
from data.records import (
    INFERENCE_MODES,
    SUPERVISION_MODES,
    AnnotatedExample,
    Example,
    Justification,
    Label,
    Mention,
    Ontology,
    SlotValue,
    Trace,
    Turn,
)
from data.rendering import render
from data.supervision import SupervisionConfig, supervise
from model.foundations import TINY_FOLDER

GOLDEN = Path(__file__).parent / "renderings"
TINY = {f"tiny-{kind}": kind for kind in ("base", "instruct", "reasoning", "hybrid")}
FRAMES, STACK = 93, 8  # 1.86 s of audio, 12 embeddings

ONTOLOGY = Ontology(
    domains={
        "travel": tuple(
            Label(name=name, description=text)
            for name, text in (("city", "where to"), ("date", "when to leave"), ("seat", "which seat"))
        )
    }
)
EXAMPLE = AnnotatedExample(
    example=Example(
        id="train-0",
        split="train",
        domain="travel",
        audio="audio/a.flac",
        audio_sha256="0" * 64,
        duration_s=FRAMES / 50,
        transcript="to new york on march third",
        slots=(
            SlotValue(label="city", spoken="new york", surface="New York", canonical="new-york"),
            SlotValue(label="date", spoken="march third", surface="March 3rd", canonical="--03-03"),
        ),
        context=(Turn(speaker="agent", text="where would you like to go"),),
    ),
    trace=Trace(
        transcription="to new york on march third",
        mentions=(Mention(label="city", text="new york"), Mention(label="date", text="march third")),
        justifications=(
            Justification(label="city", value="new york", because="the caller says to before it"),
            Justification(label="date", value="march third", because="the caller says on before it"),
        ),
    ),
)


def load(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def golden_text(name: str, tokenizer, kind: str) -> str:
    """Every supervision and inference mode of one example, one line per token, with the mask that training uses."""
    lines = [
        f"{name} ({kind}). Written by: WRITE_RENDERINGS=1 pytest tests/data/test_rendering.py",
        "place  M masked, A audio, T trained  token id  text",
    ]
    for supervision in SUPERVISION_MODES:
        config = SupervisionConfig(mode=supervision)
        for mode in INFERENCE_MODES[supervision]:
            supervised = supervise(EXAMPLE, ONTOLOGY, config, mode=mode, draw="golden")
            rendered = render(supervised, tokenizer, kind)
            lines += ["", f"== {supervision} supervision, {mode}", *token_lines(rendered, tokenizer)]
    return "\n".join(lines) + "\n"


def token_lines(rendered, tokenizer) -> Iterator[str]:
    """As `collate` lays an item out: the labels it gives are what the loss sees."""
    states = np.zeros((FRAMES, 4), dtype=np.float16)
    pad = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    batch = collate([("x", rendered, states)], stack_factor=STACK, pad_id=pad, with_targets=True)
    ids, labels, audio = batch.input_ids[0].tolist(), batch.labels[0].tolist(), batch.audio_mask[0].tolist()
    first = audio.index(True)
    for place, (token, label) in enumerate(zip(ids, labels, strict=True)):
        if audio[place]:
            if place == first:
                yield f"{place:5d}  A         {sum(audio)} audio embeddings"
            continue
        assert label in (IGNORE, token)
        yield f"{place:5d}  {'M' if label == IGNORE else 'T'}  {token:6d}  {tokenizer.decode([token])!r}"


def check_golden(name: str, text: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("WRITE_RENDERINGS") == "1":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{path.name} changed; see this file's docstring"


@pytest.mark.parametrize("name", TINY)
def test_the_tiny_family_is_rendered_as_its_weights_were_trained(name: str) -> None:
    check_golden(name, golden_text(name, load(TINY_FOLDER / name), TINY[name]))
