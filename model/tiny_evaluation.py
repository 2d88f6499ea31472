"""A text foundation + validation turns -> how well it fills slots when it reads the transcript instead of hearing it.

Instruct and hybrid kinds are asked as they stand. Base and reasoning kinds have never seen the question: a copy is fine-tuned for some
steps on it first, linear layers only, as LoRA would reach them.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import LlamaForCausalLM

from data.callcentre.dialogues import Utterance, build_ontology
from data.records import InferenceMode, Prediction
from data.rendering import render
from data.scoring import Score, score
from data.supervision import SupervisionConfig, supervise
from model.configs import FoundationKind
from model.pretraining import Document, Stage, pretrain
from model.tiny_lessons import slot_lesson
from model.tiny_texts import Pool, is_clean

DIRECT_TOKENS, THINK_TOKENS = 64, 224


@torch.no_grad()
def measure_text_slots(
    model: LlamaForCausalLM,
    tokenizer: Any,
    kind: FoundationKind,
    utterances: Sequence[Utterance],
    *,
    mode: InferenceMode = "direct",
    batch_size: int = 50,
) -> Score:
    """Slot scores on transcripts, greedy decoding; think mode is asked by the foundation's own switch."""
    config = SupervisionConfig(mode="regular", label_descriptions=False, value_form="spoken")
    ontology = build_ontology()
    predictions = []
    for start in range(0, len(utterances), batch_size):
        chosen = utterances[start : start + batch_size]
        supervised = [supervise(u.unvoiced(), ontology, config, mode=mode, draw="evaluation") for u in chosen]
        prompts = []
        for item, utterance in zip(supervised, chosen, strict=True):
            rendered = render(item, tokenizer, kind)
            heard = tokenizer(utterance.transcript, add_special_tokens=False)["input_ids"]
            prompts.append([*rendered.prefix, *heard, *rendered.suffix])
        answers = _generate(model, tokenizer, prompts, DIRECT_TOKENS if mode == "direct" else THINK_TOKENS)
        for item, ids in zip(supervised, answers, strict=True):
            ended = tokenizer.eos_token_id in ids
            ids = ids[: ids.index(tokenizer.eos_token_id)] if ended else ids
            predictions.append(
                Prediction(
                    example_id=item.example_id,
                    split="validation",
                    mode=mode,
                    asked_labels=item.asked_labels,
                    reference=item.reference,
                    output_text=tokenizer.decode(ids),
                    output_tokens=len(ids) + ended,
                    truncated=not ended,
                )
            )
    return score(predictions)


def _generate(
    model: LlamaForCausalLM, tokenizer: Any, prompts: Sequence[list[int]], max_new_tokens: int
) -> list[list[int]]:
    """Greedy answers, token ids without the prompts."""
    length = max(map(len, prompts))
    ids = torch.tensor([[tokenizer.pad_token_id] * (length - len(prompt)) + prompt for prompt in prompts])
    attention = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output = model.generate(
        input_ids=ids,
        attention_mask=attention,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    answers: list[list[int]] = output[:, length:].tolist()
    return answers


def tune_on_slots(
    model: LlamaForCausalLM, tokenizer: Any, kind: FoundationKind, pool: Pool, *, steps: int, seed: int
) -> LlamaForCausalLM:
    """A copy of the model whose linear layers were trained on `steps` batches of slot prompts; its embeddings stay as they are."""
    tuned = copy.deepcopy(model)
    tuned.get_input_embeddings().requires_grad_(False)

    def lessons(rng: random.Random) -> Iterator[Document]:
        while True:
            lesson = slot_lesson(kind, pool.draw(rng), pool, rng, tokenizer, "direct")
            if is_clean(lesson):
                yield lesson

    for _ in pretrain(
        tuned, lessons, tokenizer, Stage(name=f"probe/{kind}", steps=steps, learning_rate=1e-3), seed=seed
    ):
        pass
    return tuned
