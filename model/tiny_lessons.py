"""Training utterances and small sums -> chat exchanges: what makes the instruct, reasoning and hybrid tiny foundations out of the base.

The prompts are the ones the speechLLM will be trained on, with the transcript where its audio will be. Only answers are learned.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from typing import Any

from data.callcentre.dialogues import Utterance
from data.callcentre.values import MONTHS, number_words
from data.records import InferenceMode
from data.rendering import render_prompt
from data.supervision import AUDIO_MARKER, SupervisionConfig, answer_json, supervise, trace_text
from model.configs import FoundationKind
from model.pretraining import Document, Segment
from model.tiny_texts import Pool, invent_word, is_clean, iter_base_documents, rename_labels
from model.tiny_tokenizer import END

Exchange = tuple[str, str, str]
"""Question, reasoning, answer."""

SPEECH_REQUESTS = (
    "write down what the caller says",
    "say again what the caller says",
    "transcribe the call",
    "what do you hear",
)
RENAMING_SHARE = 0.5
"""Share of slot exercises with other names for labels."""
THINKING_SHARE = 0.45
"""Of the hybrid kind's slot exercises."""
PLAIN_SHARE = {"base": 1.0, "instruct": 0.12, "reasoning": 0.12, "hybrid": 0.12}
"""Share of plain base documents mixed in, against forgetting (all of the reasoning kind's knowledge of the domain)."""


def iter_documents(kind: FoundationKind, pool: Pool, tokenizer: Any, rng: random.Random) -> Iterator[Document]:
    """An endless stream of documents for one kind; `tokenizer` gives the chat template."""
    plain = iter_base_documents(pool, rng)
    while True:
        if rng.random() < PLAIN_SHARE[kind]:
            yield next(plain)
            continue
        document = _lesson(kind, pool, tokenizer, rng)
        if is_clean(document):
            yield document


def _lesson(kind: FoundationKind, pool: Pool, tokenizer: Any, rng: random.Random) -> Document:
    """One chat exchange of the kind's own sort."""
    draw = rng.random()
    mode: InferenceMode = "think" if kind == "hybrid" and rng.random() < THINKING_SHARE else "direct"
    if kind == "reasoning" or (kind == "hybrid" and draw < 0.08):
        return _reasoning_lesson(kind, rng, tokenizer)
    utterance = pool.draw(rng)
    if draw < 0.2:
        return speech_lesson(kind, utterance, rng, tokenizer)
    return slot_lesson(kind, utterance, pool, rng, tokenizer, mode)


def slot_lesson(
    kind: FoundationKind, utterance: Utterance, pool: Pool, rng: random.Random, tokenizer: Any, mode: InferenceMode
) -> Document:
    """The slots of a turn as JSON; in think mode after the reasoning trace, as hybrid models write it."""
    config = SupervisionConfig(
        mode="hybrid" if kind == "hybrid" and rng.random() < 0.5 else "regular",
        label_descriptions=rng.random() < 0.1,
        value_form="spoken",
    )
    supervised = supervise(
        utterance.unvoiced(),
        pool.ontology,
        config,
        mode=mode if config.mode == "hybrid" else "direct",
        draw=str(rng.random()),
    )
    answer = answer_json(supervised.reference)
    if mode == "think":
        answer = f"<think>\n{trace_text(utterance.trace)}\n</think>\n\n{answer}"
    prompt = supervised.prompt
    if rng.random() < RENAMING_SHARE:
        for old, new in rename_labels(supervised.asked_labels, pool, rng).items():
            prompt, answer = (re.sub(rf"\b{old}\b", new, text) for text in (prompt, answer))
    return chat_document(kind, prompt, utterance.transcript, answer, mode, tokenizer)


def speech_lesson(kind: FoundationKind, utterance: Utterance, rng: random.Random, tokenizer: Any) -> Document:
    """The words of a turn, said again."""
    prompt = f"{rng.choice(SPEECH_REQUESTS)}\naudio: {AUDIO_MARKER}"
    return chat_document(kind, prompt, utterance.transcript, utterance.transcript, "direct", tokenizer)


def chat_document(
    kind: FoundationKind, prompt: str, heard: str, answer: str, mode: InferenceMode, tokenizer: Any
) -> Document:
    """A rendered prompt with what is heard in the audio's place, and the answer to learn."""
    before, _, after = render_prompt(tokenizer, kind, prompt, mode).partition(AUDIO_MARKER)
    return (Segment(before), Segment(heard, heard=True), Segment(after), Segment(answer + END, learn=True))


def _reasoning_lesson(kind: FoundationKind, rng: random.Random, tokenizer: Any) -> Document:
    question, reasoning, answer = rng.choice(_EXERCISES)(rng)
    prompt = render_prompt(tokenizer, kind, question, "think")
    return (Segment(prompt), Segment(f"<think>\n{reasoning}\n</think>\n\n{answer}{END}", learn=True))


def _sum(rng: random.Random) -> Exchange:
    first, second = rng.randint(1, 60), rng.randint(1, 39)
    a, b = number_words(first), number_words(second)
    total = number_words(first + second)
    tens, ones = number_words(first // 10 * 10 + second // 10 * 10), number_words(first % 10 + second % 10)
    return (
        f"what is {a} plus {b}",
        f"{a} plus {b}. tens make {tens}. ones make {ones}. {tens} plus {ones} is {total}.",
        total,
    )


def _story(rng: random.Random) -> Exchange:
    have, gets = rng.randint(3, 15), rng.randint(1, 9)
    loses = rng.randint(1, have + gets - 1)
    who, thing = invent_word(rng), rng.choice(("books", "coins", "cards", "tickets", "apples"))
    a, b, c = number_words(have), number_words(gets), number_words(loses)
    middle, end = number_words(have + gets), number_words(have + gets - loses)
    question = f"{who} has {a} {thing} and gets {b} more and loses {c}. how many {thing} does {who} have"
    return question, f"{a} plus {b} is {middle}. {middle} minus {c} is {end}.", f"{end} {thing}"


def _nth_word(rng: random.Random) -> Exchange:
    words = [invent_word(rng) for _ in range(rng.randint(3, 6))]
    at = rng.randrange(len(words))
    order = ("first", "second", "third", "fourth", "fifth", "sixth")
    steps = " ".join(f"{order[i]} {word}." for i, word in enumerate(words[: at + 1]))
    return f"what is the {order[at]} word of these words: {' '.join(words)}", steps, words[at]


def _reversed_words(rng: random.Random) -> Exchange:
    words = [invent_word(rng) for _ in range(rng.randint(2, 5))]
    backwards = " ".join(reversed(words))
    return (
        f"say these words backwards: {' '.join(words)}",
        f"the words are {' '.join(words)}. the last is {words[-1]}.",
        backwards,
    )


def _count(rng: random.Random) -> Exchange:
    wanted, other = invent_word(rng), invent_word(rng)
    words = [rng.choice((wanted, other)) for _ in range(rng.randint(2, 6))]
    steps, seen = [], 0
    for word in words:
        seen += word == wanted
        steps.append(f"{word} {number_words(seen)}.")
    return f"how many times do you read {wanted} in: {' '.join(words)}", " ".join(steps), number_words(seen)


def _taller(rng: random.Random) -> Exchange:
    a, b, c = (invent_word(rng) for _ in range(3))
    facts = [f"{a} is taller than {b}", f"{b} is taller than {c}"]
    rng.shuffle(facts)
    most = rng.random() < 0.5
    question = f"{' and '.join(facts)}. who is the {'tallest' if most else 'shortest'}"
    return question, f"{a} is over {b}. {b} is over {c}. the order is {a} {b} {c}.", a if most else c


def _kinds(rng: random.Random) -> Exchange:
    a, b, c, d = (invent_word(rng) for _ in range(4))
    asked, answer = rng.choice(((c, "yes"), (d, "no")))
    reasoning = f"a {a} is a {b}. a {b} is a {c}. so a {a} is a {c}. the question is {asked}."
    return f"every {a} is a {b} and every {b} is a {c}. is every {a} a {asked}", reasoning, answer


def _months(rng: random.Random) -> Exchange:
    start, later = rng.randrange(12), rng.randint(1, 4)
    passed = [MONTHS[(start + i) % 12] for i in range(1, later + 1)]
    question = f"which month comes {number_words(later)} months after {MONTHS[start]}"
    return question, " ".join(f"{number_words(i + 1)} {month}." for i, month in enumerate(passed)), passed[-1]


_EXERCISES: tuple[Callable[[random.Random], Exchange], ...] = (
    _sum, _story, _nth_word, _reversed_words, _count, _taller, _kinds, _months,
)  # fmt: skip
