"""TrialConfig -> trained weights by plain PyTorch: no DeepSpeed, no PEFT, no padding, no batches.

An independent reading of what a trial computes: LoRA written by hand around the loaded LM, the adapter written as formulas, one forward pass per
example, `torch.optim.AdamW`. It shares with the trial only what is data: which examples a step holds, their token ids and their states.
"""

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from data.batching import batch_indices
from data.encoder_states import open_encoder_states
from data.manifest import open_corpus
from data.records import INFERENCE_MODES
from data.rendering import RenderedExample, render
from data.supervision import supervise
from model.configs import TrialConfig
from model.speech_llm import load_tokenizer
from model.trial import TrialPaths

Weights = dict[str, torch.Tensor]
ItemOf = Callable[[tuple[int, int]], tuple[RenderedExample, torch.Tensor]]


def train_plainly(config: TrialConfig, paths: TrialPaths, start: Weights) -> tuple[Weights, list[float]]:
    """Train from the weights `start`, named as in a checkpoint; returns the final ones and the loss of every step."""
    weights = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
    llm = AutoModelForCausalLM.from_pretrained(config.foundation.source, dtype=torch.float32).requires_grad_(False)
    _put_lora(llm, weights, scale=config.lora.alpha / config.lora.r)
    item_of, items = _items(config, paths)
    peaks = {"adapter": config.optim.adapter_learning_rate, "llm": config.optim.lora_learning_rate}
    optimizer = torch.optim.AdamW(
        [{"params": [w for name, w in weights.items() if name.startswith(part)]} for part in peaks],
        betas=(config.optim.beta1, config.optim.beta2),
        weight_decay=config.optim.weight_decay,
    )
    losses = []
    for step in range(config.budget.steps):
        pairs = batch_indices(
            items=items,
            length_of=lambda pair: _length(item_of(pair), config.adapter.stack_factor),
            batch_size=config.budget.batch_size,
            seed=config.seed,
            step=step,
        )
        tokens = sum(len(item_of(pair)[0].target) for pair in pairs)
        losses.append(0.0)
        for pair in pairs:
            loss = _loss(llm, weights, *item_of(pair), stack_factor=config.adapter.stack_factor) / tokens
            loss.backward()
            losses[-1] += loss.item()
        torch.nn.utils.clip_grad_norm_(weights.values(), config.optim.max_grad_norm)
        for group, peak in zip(optimizer.param_groups, peaks.values(), strict=True):
            group["lr"] = peak * _schedule(step, config)
        optimizer.step()
        optimizer.zero_grad()
    return {name: weight.detach() for name, weight in weights.items()}, losses


class HandLoRA(nn.Module):
    """y = W x + scale B A x."""

    def __init__(self, linear: nn.Linear, a: torch.Tensor, b: torch.Tensor, scale: float) -> None:
        super().__init__()
        self.linear, self.a, self.b, self.scale = linear, a, b, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.scale * (x @ self.a.T @ self.b.T)


def _put_lora(llm: nn.Module, weights: Weights, *, scale: float) -> None:
    found = [(name, module) for name, module in llm.named_modules() if isinstance(module, nn.Linear)]
    for name, linear in found:
        a = weights.get(f"llm.base_model.model.{name}.lora_A.default.weight")
        b = weights.get(f"llm.base_model.model.{name}.lora_B.default.weight")
        if a is None or b is None:
            assert name == "lm_head", f"{name} has no LoRA"
            continue
        parent, _, child = name.rpartition(".")
        setattr(llm.get_submodule(parent), child, HandLoRA(linear, a, b, scale))


def _items(config: TrialConfig, paths: TrialPaths) -> tuple[ItemOf, int]:
    corpus, tokenizer = open_corpus(paths.corpus), load_tokenizer(config.foundation)
    states = open_encoder_states(paths.encoder_states, paths.encoder_key)
    modes, train = INFERENCE_MODES[config.mode], corpus.split("train")

    @cache
    def item_of(pair: tuple[int, int]) -> tuple[RenderedExample, torch.Tensor]:
        epoch, index = pair
        annotated = train[index // len(modes)]
        supervised = supervise(
            annotated,
            corpus.ontology,
            config.supervision,
            mode=modes[index % len(modes)],
            draw=f"seed{config.seed}/epoch{epoch}",
        )
        heard = torch.tensor(states[annotated.example.audio_sha256]).float()
        return render(supervised, tokenizer, config.foundation.kind), heard

    return item_of, len(train) * len(modes)


def _length(item: tuple[RenderedExample, torch.Tensor], stack_factor: int) -> int:
    rendered, states = item
    return len(rendered.prefix) + math.ceil(len(states) / stack_factor) + len(rendered.suffix) + len(rendered.target)


def _loss(
    llm: nn.Module, weights: Weights, rendered: RenderedExample, states: torch.Tensor, *, stack_factor: int
) -> torch.Tensor:
    """The summed cross-entropy of one example's target."""
    embed = llm.get_input_embeddings()  # type: ignore[operator]
    before, after = (embed(torch.tensor(ids)) for ids in (rendered.prefix, rendered.suffix + rendered.target))
    heard = _adapt(weights, states, stack_factor)
    logits = llm(inputs_embeds=torch.cat([before, heard, after])[None]).logits[0]
    count = len(rendered.target)
    return functional.cross_entropy(logits[-count - 1 : -1], torch.tensor(rendered.target), reduction="sum")


def _adapt(weights: Weights, states: torch.Tensor, stack_factor: int) -> torch.Tensor:
    w = {name.removeprefix("adapter."): value for name, value in weights.items() if name.startswith("adapter.")}
    standard = states * w["state_scale"] + w["state_shift"]
    missing = -len(states) % stack_factor
    stacked = torch.cat([standard, torch.zeros(missing, standard.shape[1])]).reshape(-1, stack_factor * states.shape[1])
    hidden = functional.gelu(stacked @ w["up.weight"].T + w["up.bias"])
    out = hidden @ w["down.weight"].T + w["down.bias"]
    return out / (out.square().mean(dim=1, keepdim=True) + torch.finfo(out.dtype).eps).sqrt() * w["norm.weight"]


def _schedule(step: int, config: TrialConfig) -> float:
    """Of the peak learning rate: a line up over the warmup's steps, then half a cosine down."""
    warmup = max(1, round(config.budget.steps * config.optim.warmup_fraction))
    if step < warmup:
        return (step + 1) / warmup
    final, done = config.optim.final_fraction, (step - warmup) / max(1, config.budget.steps - warmup)
    return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2
