"""SpeechLLM + split -> Predictions: batched greedy generation with a KV cache, longest prompts together.

A row stops at an end token of the foundation, after `</response>`, or at the token budget, which truncates it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import StoppingCriteria

from data.batching import collate
from data.records import Prediction, Split
from data.rendering import RenderedExample, answer_end
from data.supervision import SupervisedExample
from model.speech_llm import SpeechLLM

Item = tuple[SupervisedExample, RenderedExample, np.ndarray]

CLOSING = "</response>"
CLOSING_TOKENS = 16
"""Tokens that hold the closing tag, however it is cut up: a byte each at worst, and a few to spare."""


class AnswerClosed(StoppingCriteria):
    """Rows that closed their answer before their newest token, which is an end token where the model stops by itself."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        """Generated ids [B, T] -> whether each row is done: [B] bool."""
        tails = self._tokenizer.batch_decode(input_ids[:, -CLOSING_TOKENS - 1 : -1])
        return torch.tensor([CLOSING in tail for tail in tails], device=input_ids.device)


@torch.no_grad()
def generate_predictions(
    model: SpeechLLM,
    tokenizer: Any,
    items: Sequence[Item],
    *,
    kind: str,
    split: Split,
    max_new_tokens: int,
    batch_size: int,
    synced: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Prediction]:
    """Answer every item (supervised, rendered, encoder states) greedily; predictions come back in the items' order.

    `synced`: the weights are sharded over the workers (ZeRO-3), so every worker must take part in every forward pass until the last one has
    finished its rows. All of them then call with the same number of items.
    """
    model.eval()
    ends = _end_tokens(model, tokenizer, kind)
    device = next(model.adapter.parameters()).device
    order = sorted(range(len(items)), key=lambda i: (-_prompt_length(items[i]), items[i][0].example_id))
    predictions: dict[int, Prediction] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = collate(
            [(items[i][0].example_id, items[i][1], items[i][2]) for i in chosen],
            stack_factor=model.adapter.stack_factor,
            pad_id=tokenizer.pad_token_id,
            with_targets=False,
        ).to(device)
        with model.autocast():
            generated = model.llm.generate(  # type: ignore[operator]
                inputs_embeds=model.inputs_embeds(batch),
                attention_mask=batch.attention_mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=ends,
                pad_token_id=tokenizer.pad_token_id,
                stopping_criteria=[AnswerClosed(tokenizer)],
                synced_gpus=synced,
            )
        for i, ids in zip(chosen, generated.tolist(), strict=True):
            predictions[i] = _prediction(items[i][0], ids, tokenizer, ends, split)
        on_progress(len(predictions), len(items))
    return [predictions[i] for i in range(len(items))]


def _prompt_length(item: Item) -> int:
    _, rendered, states = item
    return len(rendered.prefix) + len(states) + len(rendered.suffix)


def _end_tokens(model: SpeechLLM, tokenizer: Any, kind: str) -> list[int]:
    """What ends an answer: the token that is trained to, and those the foundation brought along (Llama 3.1 Instruct has three)."""
    own: Any = model.llm.generation_config.eos_token_id  # type: ignore[union-attr]
    brought = own if isinstance(own, list) else [own]
    return sorted({answer_end(tokenizer, kind), tokenizer.eos_token_id, *brought} - {None})


def _prediction(
    supervised: SupervisedExample, ids: list[int], tokenizer: Any, ends: list[int], split: Split
) -> Prediction:
    """Cut a generated row where its answer ended. `output_tokens` counts the end token where there is one."""
    length = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    text = tokenizer.decode(ids[:length], clean_up_tokenization_spaces=False)
    closed = CLOSING in text
    if closed:
        text = text[: text.index(CLOSING) + len(CLOSING)]
        length = next(n for n in range(length + 1) if CLOSING in tokenizer.decode(ids[max(0, n - CLOSING_TOKENS) : n]))
    ended = ids[length : length + 1] != [] and ids[length] in ends
    return Prediction(
        example_id=supervised.example_id,
        split=split,
        mode=supervised.mode,
        asked_labels=supervised.asked_labels,
        reference=supervised.reference,
        output_text=text,
        output_tokens=length + ended,
        truncated=not (ended or closed),
    )
