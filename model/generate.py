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
    constrained: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Prediction]:
    """Answer every item (supervised, rendered, encoder states) greedily; predictions come back in the items' order.

    For `synced` and `constrained` see `answer_batch`.
    """
    predictions: dict[int, Prediction] = {}
    for chosen in length_batches(items, batch_size):
        answers = answer_batch(
            model,
            tokenizer,
            [items[i] for i in chosen],
            kind=kind,
            split=split,
            max_new_tokens=max_new_tokens,
            synced=synced,
            constrained=constrained,
        )
        predictions.update(zip(chosen, answers, strict=True))
        on_progress(len(predictions), len(items))
    return [predictions[i] for i in range(len(items))]


def length_batches(items: Sequence[Item], batch_size: int) -> list[list[int]]:
    """Places of the items in batches: the longest prompts first, those of one length by id; all full but the last."""
    order = sorted(range(len(items)), key=lambda i: (-_prompt_length(items[i]), items[i][0].example_id))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


@torch.no_grad()
def answer_batch(
    model: SpeechLLM,
    tokenizer: Any,
    items: Sequence[Item],
    *,
    kind: str,
    split: Split,
    max_new_tokens: int,
    synced: bool = False,
    constrained: bool = False,
) -> list[Prediction]:
    """Answer some items together, greedily, in one call of the LM's `generate`.

    `synced`: the weights are sharded over the workers (ZeRO-3), so every worker must take part in every forward pass until the last one has
    finished its rows. All of them then call as often. `constrained`: only tokens that `model.constrained` admits; raises ValueError as it does.
    """
    model.eval()
    ends = _end_tokens(model, tokenizer, kind)
    batch = collate(
        [(supervised.example_id, rendered, states) for supervised, rendered, states in items],
        stack_factor=model.adapter.stack_factor,
        pad_id=tokenizer.pad_token_id,
        with_targets=False,
    ).to(next(model.adapter.parameters()).device)
    with model.autocast():
        generated = model.llm.generate(  # type: ignore[operator]
            inputs_embeds=model.inputs_embeds(batch),
            attention_mask=batch.attention_mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
            logits_processor=[_admitted(model, tokenizer, ends, items)] if constrained else [],
            stopping_criteria=[AnswerClosed(tokenizer)],
            synced_gpus=synced,
        )
    return [
        _prediction(supervised, ids, tokenizer, ends, split)
        for (supervised, *_), ids in zip(items, generated.tolist(), strict=True)
    ]


def _admitted(model: SpeechLLM, tokenizer: Any, ends: Sequence[int], items: Sequence[Item]) -> Any:
    from model.constrained import AdmittedAnswers, answer_grammar  # here: its library is an extra

    llm: Any = model.llm
    grammar = answer_grammar(tokenizer, llm.config.vocab_size, tuple(ends))
    return AdmittedAnswers(grammar, [(supervised.mode, supervised.asked_labels) for supervised, *_ in items])


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
