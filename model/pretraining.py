"""Text documents -> a trained small Llama: the pretraining loop of the tiny foundations, plain torch on one core.

A document is a run of segments; the loss is taken on the learned ones. A heard segment stands where the speechLLM will have audio
embeddings: its words are drawn out and blurred, so that the foundation meets something like 6 embeddings a second of speech.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from data.supervision import AUDIO_MARKER

CHUNK_BATCHES = 32
"""So many batches are cut from documents sorted by length: little padding, and still a random order of batches."""
BLUR_SHARE = 0.6
"""Share of heard segments that are disturbed; the others are read as they stand."""


@dataclass(frozen=True)
class Segment:
    """A piece of a document."""

    text: str
    learn: bool = False
    heard: bool = False


Document = tuple[Segment, ...]


@dataclass(frozen=True)
class EncodedDocument:
    """Token ids with, at each position, whether it is learned and how strongly its embedding is blurred (in embedding rms)."""

    ids: list[int]
    learn: list[bool]
    blur: list[float]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the recipe: AdamW with linear warmup and cosine decay over length-bucketed batches."""

    name: str
    steps: int
    learning_rate: float
    batch_size: int = 32
    warmup_fraction: float = 0.05
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0


@dataclass(frozen=True, kw_only=True)
class PretrainStep:
    """What one optimizer step did."""

    step: int  # counts finished steps
    loss: float  # nats per learned token
    tokens: int
    seconds: float


def build_model(
    tokenizer: Any, *, width: int = 128, layers: int = 4, mlp_width: int = 336, seed: int
) -> LlamaForCausalLM:
    """A Llama with random weights from `seed`, input and output embeddings tied: about a million parameters."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=mlp_width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.05,
        )
    )


def encode_document(document: Document, tokenizer: Any, rng: random.Random) -> EncodedDocument:
    """Tokenize a document segment by segment and disturb what is heard."""
    ids: list[int] = []
    learn: list[bool] = []
    blur: list[float] = []
    silence = tokenizer.convert_tokens_to_ids(AUDIO_MARKER)
    for segment in document:
        tokens = tokenizer.backend_tokenizer.encode(segment.text, add_special_tokens=False).ids
        strength = 0.0
        if segment.heard and rng.random() < BLUR_SHARE:
            strength = rng.uniform(0.0, 0.8)
            tokens = _stretched(tokens, silence, len(tokenizer), rng)
        ids += tokens
        learn += [segment.learn] * len(tokens)
        blur += [strength] * len(tokens)
    return EncodedDocument(ids, learn, blur)


def _stretched(tokens: Sequence[int], silence: int, vocabulary: int, rng: random.Random) -> list[int]:
    """Silence around each token, sometimes a stray token: a spoken word lasts for about 2 embeddings and is clear in one of them.

    The word itself is not repeated: "two" said twice must stay apart from "two" said slowly.
    """
    stretched: list[int] = []
    for token in tokens:
        stretched += [silence] * rng.choice((0, 0, 0, 1, 1, 2)) + [token] + [silence] * rng.choice((0, 0, 1))
        if rng.random() < 0.03:
            stretched.append(rng.randrange(vocabulary))
    return stretched


def iter_batches(
    documents: Iterator[EncodedDocument], batch_size: int, rng: random.Random
) -> Iterator[list[EncodedDocument]]:
    """Batches of documents of about the same length, in random order, for as long as there are documents."""
    while chunk := list(islice(documents, batch_size * CHUNK_BATCHES)):
        chunk.sort(key=lambda document: len(document.ids))
        batches = [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
        rng.shuffle(batches)
        yield from batches


def document_loss(
    model: LlamaForCausalLM, batch: Sequence[EncodedDocument], generator: torch.Generator
) -> torch.Tensor:
    """Mean cross-entropy over the learned tokens of a batch: a scalar. Padding stands on the right, behind the causal mask."""
    length = max(len(document.ids) for document in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    learn = torch.zeros(len(batch), length, dtype=torch.bool)
    blur = torch.zeros(len(batch), length)
    for row, document in enumerate(batch):
        count = len(document.ids)
        ids[row, :count] = torch.tensor(document.ids)
        learn[row, :count] = torch.tensor(document.learn)
        blur[row, :count] = torch.tensor(document.blur)
    embeds = model.get_input_embeddings()(ids)
    if blur.any():
        rms = embeds.detach().square().mean().sqrt()
        embeds = embeds + torch.randn(embeds.shape, generator=generator) * rms * blur[..., None]
    hidden = model.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    wanted = learn[:, 1:]
    return nn.functional.cross_entropy(model.lm_head(hidden[:, :-1][wanted]), ids[:, 1:][wanted])


def pretrain(
    model: LlamaForCausalLM,
    documents: Callable[[random.Random], Iterator[Document]],
    tokenizer: Any,
    stage: Stage,
    *,
    seed: int,
) -> Iterator[PretrainStep]:
    """Train `model` in place, yielding after every step; the result is a function of the seed alone on one thread.

    `documents` makes an endless stream from a random source.
    """
    rng = random.Random(f"{stage.name}/{seed}")
    generator = torch.Generator().manual_seed(rng.getrandbits(31))
    encoded = (
        encode_document(document, tokenizer, rng) for document in documents(random.Random(f"text/{stage.name}/{seed}"))
    )
    decayed = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim > 1]
    plain = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": stage.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=stage.learning_rate,
        betas=(0.9, 0.98),
    )
    model.train()
    for step, batch in enumerate(islice(iter_batches(encoded, stage.batch_size, rng), stage.steps)):
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * _schedule(step, stage)
        loss = document_loss(model, batch, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), stage.max_grad_norm)
        optimizer.step()
        yield PretrainStep(
            step=step + 1,
            loss=loss.item(),
            tokens=sum(len(document.ids) for document in batch),
            seconds=time.perf_counter() - started,
        )
    model.eval()


def _schedule(step: int, stage: Stage) -> float:
    """Linear warmup, then a cosine down to nothing."""
    warmup = max(1, round(stage.steps * stage.warmup_fraction))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, stage.steps - warmup)))
