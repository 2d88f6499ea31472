"""The turns before a caller's turn: what was asked and said earlier becomes 0-3 previous turns, oldest first."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from itertools import cycle

from data.callcentre.grammar import SLOT, Domain, LabelSpec, Shared
from data.callcentre.values import Value
from data.callcentre.wording import expand_macros, fill_template, spoken_text
from data.records import Turn

LONGEST_REQUEST = 12
"""Words of an earlier request; a longer one is replaced by a remark."""

REQUEST_TURNS = (0, 1, 2, 3, 3)
ANSWER_TURNS = (1, 2, 3, 3)
"""How many previous turns a request and an answer have, drawn evenly from these."""

SPEAKERS = ("agent", "caller", "agent")

DrawValue = Callable[[LabelSpec], Value]


def build_context(
    domain: Domain, used: Collection[str], asked: str | None, draw: DrawValue, rng: random.Random, shared: Shared
) -> tuple[Turn, ...]:
    """The previous turns of a turn that fills the labels `used`, none of which was told before.

    `asked` is the label that the agent asks for last, None when the caller speaks unasked.
    """
    turns = rng.choice(ANSWER_TURNS if asked else REQUEST_TURNS)
    if turns == 0:
        return ()
    if asked:
        question = rng.choice(domain.labels[asked].ask)
        if rng.random() < 0.5:
            question = f"{rng.choice(shared.phrases['acknowledgements'])} {question}"
        earlier = _earlier_request(domain, used, asked, draw, rng, shared)
    else:
        question = rng.choice(shared.phrases["greetings" if turns == 1 else "prompts"])
        earlier = _earlier_statement(domain, used, draw, rng, shared)
    texts = (rng.choice(shared.phrases["greetings"]), earlier, question)
    history = [
        Turn(speaker="caller" if speaker == "caller" else "agent", text=text)
        for speaker, text in zip(cycle(SPEAKERS), texts, strict=False)
    ]
    return tuple(history[-turns:])


def _earlier_request(
    domain: Domain, used: Collection[str], asked: str, draw: DrawValue, rng: random.Random, shared: Shared
) -> str:
    """What the caller wanted, such that the agent now asks for `asked`: a training request without any of `used`."""
    fitting = [
        template
        for frame in domain.frames
        if frame.kind == "request" and not frame.held_out and asked in frame.asks
        for template in frame.templates
        if not set(SLOT.findall(template)) & set(used)
    ]
    if fitting:
        request = _say(expand_macros(rng.choice(fitting), rng, shared), domain, draw)
        if len(request.split()) <= LONGEST_REQUEST:
            return request
    return rng.choice(shared.phrases["remarks"])


def _earlier_statement(
    domain: Domain, used: Collection[str], draw: DrawValue, rng: random.Random, shared: Shared
) -> str:
    """What a caller says before the request: who it is, or just that help is needed."""
    says = [
        text for label in domain.labels.values() if label.identifies and label.name not in used for text in label.says
    ]
    if not says or rng.random() < 0.3:
        return rng.choice(shared.phrases["remarks"])
    return f"{rng.choice(('hi', 'hello', 'yes hi'))} {_say(rng.choice(says), domain, draw)}"


def _say(template: str, domain: Domain, draw: DrawValue) -> str:
    values = {name: draw(domain.labels[name]) for name in SLOT.findall(template)}
    return spoken_text(fill_template(template, values, domain.labels))
