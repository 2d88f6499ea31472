"""Make the tiny foundation family: four small LMs, pretrained on generated text only, in four folders with model cards.

    python experiments/pretrain_tiny.py --out model/tiny_foundations

The base is trained first; instruct, reasoning and hybrid branch from it. On one core and one thread the same seed gives the same weights.
"""

from __future__ import annotations

import copy
import random
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import LlamaForCausalLM

from data.callcentre.dialogues import Utterance, iter_utterances
from model.configs import FOUNDATION_KINDS, FoundationKind
from model.pretraining import Stage, build_model, pretrain
from model.tiny_evaluation import measure_text_slots, tune_on_slots
from model.tiny_family import Figures, write_family_file, write_foundation
from model.tiny_lessons import iter_documents
from model.tiny_texts import Pool, build_pool, iter_base_documents
from model.tiny_tokenizer import build_tokenizer, count_words

POOL_SIZE = 40_000
VALIDATION_SIZE = 200
PROBE_STEPS = 100
VOCABULARY_SAMPLE = 4_000  # documents of each kind
STAGES: dict[FoundationKind, Stage] = {
    "base": Stage(name="base", steps=1600, learning_rate=2e-3),
    "instruct": Stage(name="instruct", steps=1300, learning_rate=1.5e-3),
    "reasoning": Stage(name="reasoning", steps=900, learning_rate=1.5e-3),
    "hybrid": Stage(name="hybrid", steps=1500, learning_rate=1.5e-3),
}

app = typer.Typer(add_completion=False)
console = Console()


def build_tokenizers(pool: Pool, seed: int, documents: int = VOCABULARY_SAMPLE) -> dict[FoundationKind, Any]:
    """One tokenizer per kind, all with the vocabulary of a sample of every kind's documents. Invented words are too rare to get in."""
    counts: Counter[str] = Counter()
    chat = build_tokenizer({}, "hybrid")
    for kind in FOUNDATION_KINDS:
        for document in islice(iter_documents(kind, pool, chat, random.Random(f"vocabulary/{kind}/{seed}")), documents):
            count_words(" ".join(segment.text for segment in document), counts)
    return {kind: build_tokenizer(counts, kind, min_count=max(1, documents // 500)) for kind in FOUNDATION_KINDS}


def train_stage(
    model: LlamaForCausalLM,
    kind: FoundationKind,
    pool: Pool,
    tokenizer: Any,
    steps_scale: float,
    seed: int,
    progress: Progress,
) -> float:
    """Train one stage in place; returns its mean seconds per step."""
    stage = STAGES[kind]
    stage = Stage(name=stage.name, steps=max(1, round(stage.steps * steps_scale)), learning_rate=stage.learning_rate)
    task = progress.add_task(f"tiny-{kind}", total=stage.steps, loss=float("nan"))
    seconds, loss = 0.0, float("nan")

    def documents(rng: random.Random) -> Any:
        return iter_base_documents(pool, rng) if kind == "base" else iter_documents(kind, pool, tokenizer, rng)

    for info in pretrain(model, documents, tokenizer, stage, seed=seed):
        seconds += info.seconds
        loss = info.loss if info.step == 1 else 0.98 * loss + 0.02 * info.loss
        progress.update(task, completed=info.step, loss=loss)
        if not console.is_terminal and (info.step % 250 == 0 or info.step == stage.steps):
            console.print(
                f"tiny-{kind} step {info.step}/{stage.steps} loss {loss:.3f} {seconds / info.step:.2f} s/step"
            )
    return seconds / stage.steps


def measure(
    model: LlamaForCausalLM,
    tokenizer: Any,
    kind: FoundationKind,
    pool: Pool,
    validation: list[Utterance],
    seed: int,
    steps_scale: float,
) -> dict[str, float]:
    """The text figures of the model card: exact and partial F1 on validation transcripts."""
    if kind in ("base", "reasoning"):
        steps = max(1, round(PROBE_STEPS * min(1.0, steps_scale)))
        tuned = tune_on_slots(model, tokenizer, kind, pool, steps=steps, seed=seed)
        scores = {f"after {steps} tuning steps": measure_text_slots(tuned, tokenizer, kind, validation)}
    else:
        scores = {"direct": measure_text_slots(model, tokenizer, kind, validation)}
        if kind == "hybrid":
            scores["think"] = measure_text_slots(model, tokenizer, kind, validation, mode="think")
    return {
        f"{name}, {rule} F1": value
        for name, found in scores.items()
        for rule, value in (("exact", found.exact_f1), ("partial", found.partial_f1))
    }


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="folder that gets one folder per foundation and family.json")],
    steps_scale: Annotated[float, typer.Option(help="multiplies the steps of every stage")] = 1.0,
    seed: Annotated[int, typer.Option(help="decides texts, initial weights and order")] = 0,
) -> None:
    """Pretrain tiny-base, then branch tiny-instruct, tiny-reasoning and tiny-hybrid from it."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    started = time.perf_counter()
    pool = build_pool(max(500, round(POOL_SIZE * min(1.0, steps_scale))), seed + 1)
    validation = list(iter_utterances("validation", max(10, round(VALIDATION_SIZE * min(1.0, steps_scale))), seed))
    tokenizers = build_tokenizers(pool, seed, documents=max(200, round(VOCABULARY_SAMPLE * min(1.0, steps_scale))))
    base = build_model(tokenizers["base"], seed=seed)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        for kind in FOUNDATION_KINDS:
            model = base if kind == "base" else copy.deepcopy(base)
            seconds = train_stage(model, kind, pool, tokenizers[kind], steps_scale, seed, progress)
            figures = measure(model, tokenizers[kind], kind, pool, validation, seed, steps_scale)
            write_foundation(
                out / f"tiny-{kind}",
                model,
                tokenizers[kind],
                Figures(
                    kind=kind,
                    steps=max(1, round(STAGES[kind].steps * steps_scale)),
                    steps_scale=steps_scale,
                    seed=seed,
                    seconds_per_step=seconds,
                    text_f1=figures,
                ),
            )
            console.print(f"tiny-{kind}: " + "; ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    write_family_file(out)
    console.print(f"{out}: four foundations in {(time.perf_counter() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    app()
