"""SupervisedExample + tokenizer + foundation kind -> token ids around the audio, and the target's ids.

The target is the same text for every kind, so that scores compare. What it follows is the form that the foundation was trained on:

    base        `BASE_PROMPT`, delimiters of our own
    instruct    its chat template's generation prompt
    reasoning   the same, without the `<think>` that the template opens; to answer directly, an empty closed block in its place
    hybrid      the same, `enable_thinking` on or off as the inference mode says; off writes an empty closed block

So the family's own `<think>` is never open where a target begins: a `<thinking>` of ours inside it would open two blocks, and a direct answer
inside it would be a thought. A model that thinks writes our `<thinking>` where its family writes `<think>`; one that answers directly answers
behind an empty block, which Qwen3's template writes itself and R1's does not know. `docs/foundations.md` shows every family.

The target ends with the token that ends an answer in the foundation's own format, and it is trained, so that every kind learns to stop.
Texts of a corpus are words only: a `<|im_end|>` that a caller says is no control token. Prompts never depend on the calendar.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from data.records import InferenceMode
from data.supervision import AUDIO_MARKER, SupervisedExample

BASE_PROMPT = "### instruction\n{prompt}\n### answer\n"
EMPTY_THINKING = "<think>\n\n</think>\n\n"
"""A thinking block that is over before it began, as Qwen3's template writes it."""
_OPEN_THINKING = re.compile(r"<think>\s*\Z")
_BRACKETED = re.compile(r"<.+>|\[.+\]")
_FIXED_DATE = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro %}{{ '' }}"
"""Put before a template that asks for today's date. Llama 3.1's own template says this date, whatever the day."""
_PROBE = "the answer of the assistant"
_CUT = "\ufdd0"
"""Where a text is cut and tokenized apart: a code point that Unicode reserves for a program's own use, in no text of anybody."""


@dataclass(frozen=True, kw_only=True)
class RenderedExample:
    """The token ids of one item: [prefix][audio embeddings][suffix][target]."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    target: tuple[int, ...]  # ends with `answer_end`


def render(supervised: SupervisedExample, tokenizer: Any, kind: str) -> RenderedExample:
    """Tokenize one item; prefix, suffix and target apart, as the model meets them.

    `tokenizer` is a Hugging Face fast tokenizer. Raises ValueError where the tokenizer does not suit the kind.
    """
    if _CUT in supervised.prompt or _CUT in supervised.target:
        raise ValueError(f"example {supervised.example_id}: its text holds U+FDD0, which is no character; remove it")
    control = _control_tokens(tokenizer)
    said_before, marker, said_after = supervised.prompt.rpartition(AUDIO_MARKER)
    assert marker, f"{supervised.example_id}: the prompt must hold the audio"
    prompt = _cut_apart(said_before, control) + marker + _cut_apart(said_after, control)
    parts = render_prompt(tokenizer, kind, prompt, supervised.mode).split(AUDIO_MARKER)
    if len(parts) != 2:
        raise ValueError(
            f"tokenizer {tokenizer.name_or_path}: its chat template writes the user's text {len(parts) - 1} times, not once"
        )
    return RenderedExample(
        prefix=_ids(tokenizer, parts[0]),
        suffix=_ids(tokenizer, parts[1]),
        target=(*_ids(tokenizer, _cut_apart(supervised.target, control)), answer_end(tokenizer, kind)),
    )


def render_prompt(tokenizer: Any, kind: str, prompt: str, mode: InferenceMode) -> str:
    """The prompt as the foundation reads it, `AUDIO_MARKER` still inside.

    `tokenizer` is a Hugging Face tokenizer; `enable_thinking` reaches hybrid templates alone (Qwen3's own switch). Raises ValueError when a
    chat foundation's tokenizer has no chat template, or a hybrid one's does not know the switch.
    """
    if kind == "base":
        return (tokenizer.bos_token or "") + BASE_PROMPT.format(prompt=prompt)
    template = _template(tokenizer, kind)
    options = {"enable_thinking": mode == "think"} if kind == "hybrid" else {}
    if kind == "hybrid":
        _check_switch(tokenizer, template)
    text = _fill_template(tokenizer, template, {"user": prompt}, add_generation_prompt=True, **options)
    opened = _OPEN_THINKING.search(text)
    return text[: opened.start()] + EMPTY_THINKING * (mode == "direct") if opened else text


def answer_end(tokenizer: Any, kind: str) -> int:
    """The token that ends every target and at which generation stops.

    Chat kinds: the added token that the template writes after an answer (`<|im_end|>`, `<|eot_id|>`), which the tokenizer's end-of-sequence
    token need not be. Base, and a template that writes none: end-of-sequence. Raises ValueError where there is neither.
    """
    end = None if kind == "base" else _written_end(tokenizer, _template(tokenizer, kind))
    if end is None and tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer {tokenizer.name_or_path}: no end-of-sequence token, so no answer could ever end")
    return int(tokenizer.eos_token_id if end is None else end)


@lru_cache(maxsize=32)
def _written_end(tokenizer: Any, template: str) -> int | None:
    """The added token that the template writes right after an answer."""
    text = _fill_template(tokenizer, template, {"user": "question", "assistant": _PROBE})
    after = _ids(tokenizer, text.rpartition(_PROBE)[2].lstrip())
    return after[0] if after and after[0] in tokenizer.added_tokens_decoder else None


@lru_cache(maxsize=32)
def _check_switch(tokenizer: Any, template: str) -> None:
    """Raise ValueError for a template that writes the same prompt whether the model may think or not."""
    on, off = (
        _fill_template(tokenizer, template, {"user": "question"}, add_generation_prompt=True, enable_thinking=value)
        for value in (True, False)
    )
    if on == off:
        raise ValueError(
            f"tokenizer {tokenizer.name_or_path}: its chat template does not know enable_thinking, which a foundation of kind 'hybrid' needs; "
            "declare the foundation as instruct or reasoning"
        )


def _fill_template(tokenizer: Any, template: str, messages: dict[str, str], **options: Any) -> str:
    """A chat template, filled with one message per role, in the order given."""
    if "strftime_now" in template:
        template = _FIXED_DATE + template
    conversation = [{"role": role, "content": content} for role, content in messages.items()]
    text: str = tokenizer.apply_chat_template(conversation, chat_template=template, tokenize=False, **options)
    return text


def _template(tokenizer: Any, kind: str) -> str:
    if not tokenizer.chat_template:
        raise ValueError(
            f"tokenizer {tokenizer.name_or_path}: no chat template, which a foundation of kind {kind!r} needs"
        )
    template: str = tokenizer.get_chat_template()
    return template


@lru_cache(maxsize=32)
def _control_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Matches the first character of what the tokenizer would read as a control token: its special tokens, added ones in brackets
    (R1's `<think>` and `<｜User｜>` are not special), and `AUDIO_MARKER`."""
    texts = {
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or _BRACKETED.fullmatch(token.content)
    }
    longest_first = sorted({*texts, AUDIO_MARKER}, key=lambda text: (-len(text), text))
    return re.compile(f"(?={'|'.join(map(re.escape, longest_first))}).", re.DOTALL)


def _cut_apart(text: str, control: re.Pattern[str]) -> str:
    """The text, cut after the first character of what would be a control token."""
    return control.sub(lambda found: found[0] + _CUT, text)


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(
        token for piece in text.split(_CUT) for token in tokenizer(piece, add_special_tokens=False)["input_ids"]
    )
