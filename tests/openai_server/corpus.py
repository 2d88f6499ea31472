"""A corpus of any number of call-centre turns without their sound: every example names the same short file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from data.callcentre.dialogues import build_ontology, iter_utterances
from data.manifest import Corpus, write_corpus
from data.records import AnnotatedExample, Example
from openai_server.answering import POISON


def write_text_corpus(root: Path, count: int, *, poisoned: int = 0) -> Corpus:
    """`count` examples of the train split without traces; the first `poisoned` of them never get a right answer from the server."""
    import numpy as np

    from data.audio import encode_flac, to_pcm16

    root.mkdir(parents=True, exist_ok=True)
    sound = to_pcm16(np.sin(np.arange(8_000, dtype=np.float32) / 20) / 4)
    (root / "sound.flac").write_bytes(encode_flac(sound))
    examples = []
    for number, utterance in enumerate(iter_utterances("train", count, 0)):
        example = Example(
            id=utterance.id,
            split="train",
            domain=utterance.domain,
            audio="sound.flac",
            audio_sha256="0" * 64,
            duration_s=0.5,
            transcript=utterance.transcript,
            slots=utterance.slots,
            context=utterance.context,
        )
        if number < poisoned:
            example = replace(example, transcript=f"{example.transcript} {POISON}")
        examples.append(AnnotatedExample(example=example, trace=None))
    return write_corpus(
        root, name="turns", fingerprint="turns-1", ontology=build_ontology(), examples=examples, details={}
    )
