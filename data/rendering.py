"""SupervisedExample + tokenizer + foundation kind -> token ids around the audio, and the target's ids.

Base models get plain delimiters of our own; every other kind gets its tokenizer's chat template. The audio stands between `prefix` and
`suffix`; the target ends with the tokenizer's end-of-sequence token, which is trained, so that every kind learns to stop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data.records import InferenceMode
from data.supervision import AUDIO_MARKER, SupervisedExample

BASE_PROMPT = "### instruction\n{prompt}\n### answer\n"


@dataclass(frozen=True, kw_only=True)
class RenderedExample:
    """The token ids of one item: [prefix][audio embeddings][suffix][target]."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    target: tuple[int, ...]  # ends with the end-of-sequence token


def render_prompt(tokenizer: Any, kind: str, prompt: str, mode: InferenceMode) -> str:
    """The prompt as the foundation reads it, `AUDIO_MARKER` still inside.

    `tokenizer` is a Hugging Face tokenizer; `enable_thinking` reaches hybrid templates alone (Qwen3's own switch).
    Raises ValueError when a chat foundation's tokenizer has no chat template.
    """
    if kind == "base":
        return (tokenizer.bos_token or "") + BASE_PROMPT.format(prompt=prompt)
    if not tokenizer.chat_template:
        raise ValueError(
            f"tokenizer {tokenizer.name_or_path}: no chat template, which a foundation of kind {kind!r} needs"
        )
    options = {"enable_thinking": mode == "think"} if kind == "hybrid" else {}
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False, **options
    )
    return text


def render(supervised: SupervisedExample, tokenizer: Any, kind: str) -> RenderedExample:
    """Tokenize one item. The prompt's two halves are tokenized apart, as the model meets them."""
    before, marker, after = render_prompt(tokenizer, kind, supervised.prompt, supervised.mode).partition(AUDIO_MARKER)
    assert marker and AUDIO_MARKER not in after, f"{supervised.example_id}: the prompt must hold the audio exactly once"
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer {tokenizer.name_or_path}: no end-of-sequence token, so no answer could ever end")
    return RenderedExample(
        prefix=_ids(tokenizer, before),
        suffix=_ids(tokenizer, after),
        target=(*_ids(tokenizer, supervised.target), tokenizer.eos_token_id),
    )


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
