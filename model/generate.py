"""SpeechLLM + split -> Predictions: batched greedy generation, longest prompts together, until end-of-sequence or the token budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from data.batching import collate
from data.records import Prediction, Split
from data.rendering import RenderedExample
from data.supervision import SupervisedExample
from model.speech_llm import SpeechLLM

Item = tuple[SupervisedExample, RenderedExample, np.ndarray]


@torch.no_grad()
def generate_predictions(
    model: SpeechLLM,
    tokenizer: Any,
    items: Sequence[Item],
    *,
    split: Split,
    max_new_tokens: int,
    batch_size: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Prediction]:
    """Answer every item (supervised, rendered, encoder states) greedily; predictions come back in the items' order."""
    model.eval()
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
        generated = model.llm.generate(  # type: ignore[operator]
            inputs_embeds=model.inputs_embeds(batch),
            attention_mask=batch.attention_mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        for i, ids in zip(chosen, generated.tolist(), strict=True):
            predictions[i] = _prediction(items[i][0], ids, tokenizer, split)
        on_progress(len(predictions), len(items))
    return [predictions[i] for i in range(len(items))]


def _prompt_length(item: Item) -> int:
    _, rendered, states = item
    return len(rendered.prefix) + len(states) + len(rendered.suffix)


def _prediction(supervised: SupervisedExample, ids: list[int], tokenizer: Any, split: Split) -> Prediction:
    ended = tokenizer.eos_token_id in ids
    answer = ids[: ids.index(tokenizer.eos_token_id)] if ended else ids
    return Prediction(
        example_id=supervised.example_id,
        split=split,
        mode=supervised.mode,
        asked_labels=supervised.asked_labels,
        reference=supervised.reference,
        output_text=tokenizer.decode(answer),
        output_tokens=len(answer) + ended,
        truncated=not ended,
    )
