"""Examples + ledger -> what is still to be asked, the verdict on what comes back, and how far it is.

Nothing is remembered beside the ledger: the next request of an example follows from its answers so far, so a restart goes on where a kill cut.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from data.annotation.costs import Estimate, Price
from data.annotation.ledger import Answered, Ledger
from data.annotation.requests import AnnotatorConfig, Answer, Request, make_request
from data.annotation.trace_checks import Rejection, check_trace
from data.annotation.trace_requests import RESPONSE_FORMAT, TraceError, asked_labels, parse_trace, trace_messages
from data.annotation.trace_rules import rule_trace
from data.manifest import Corpus
from data.records import Example, to_json

_CHARACTERS_PER_TOKEN = 4  # of English text, by the rule of thumb that vendors state
_MEASURED = 50  # answers in the ledger from which on they are the better guide
_SAMPLE = 200  # examples whose length is estimated from

How = Literal["live", "found", "batch"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where an annotation stands, over all its runs."""

    done: int  # examples accepted or quarantined
    examples: int
    rejected: int  # answers that did not pass the checks
    tokens_in: int
    tokens_out: int
    cost: Decimal
    waiting: str = ""  # for what, when nothing else moves


class Work:
    """The examples to annotate and their state."""

    def __init__(
        self, config: AnnotatorConfig, corpus: Corpus, examples: Sequence[Example], ledger: Ledger, price: Price
    ) -> None:
        """`examples` are those of the corpus that are wanted; what others of it have in the ledger stays there."""
        self.config, self.corpus, self.examples, self.ledger, self.price = config, corpus, examples, ledger, price
        self.refused: dict[str, str] = {}  # example id: why the server takes no request for it
        self.too_dear = False  # the cost limit ended this run
        self.unanswered: dict[str, str] = {}  # example id: the last of too many failures in this run
        self._annotator = config.fingerprint()
        self._wanted = {example.id for example in examples}
        self._done = len(examples) - sum(1 for _ in self.pending())

    def chain(self, example: Example) -> tuple[list[Answered], Request | None]:
        """The answers for an example so far, and what is to be asked next: nothing when one was accepted or all attempts are used up."""
        asked = asked_labels(example, self.corpus.ontology)
        answers: list[Answered] = []
        reasons: list[str] | None = None
        for attempt in range(1, self.config.max_attempts + 1):
            request = make_request(self._annotator, example.id, attempt, trace_messages(example, asked, reasons))
            answered = self.ledger.answers.get(request.id)
            if answered is None:
                return answers, request
            answers.append(answered)
            if not answered.reasons:
                break
            reasons = [reason.text for reason in answered.reasons]
        return answers, None

    def pending(self, *, selected: bool = True) -> Iterator[tuple[Example, Request]]:
        """What is to be asked next, of the wanted examples or of all of the corpus."""
        for example in self.examples if selected else (row.example for row in self.corpus.examples):
            _, request = self.chain(example)
            if request is not None:
                yield example, request

    def reserve(self, request: Request, *, batched: bool = False) -> Decimal:
        """The most that a request can cost, in dollars."""
        price = self.price.batched() if batched else self.price
        return price.cost(request.max_tokens_in, self.config.max_output_tokens)

    def judge(self, example: Example, request: Request, answer: Answer, how: How) -> Answered:
        """An answer with its cost and the verdict on it, as the ledger keeps it."""
        tokens_in = request.max_tokens_in if answer.tokens_in is None else answer.tokens_in
        tokens_out = self.config.max_output_tokens if answer.tokens_out is None else answer.tokens_out
        price = self.price.batched() if how == "batch" else self.price
        reasons = [answer.problem] if answer.problem else self._check(example, answer.text)
        if example.id in self._wanted and (not reasons or request.attempt == self.config.max_attempts):
            self._done += 1
        return Answered(
            request=request.id,
            example=example.id,
            attempt=request.attempt,
            model=answer.model,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            cost=price.cost(tokens_in, tokens_out),
            how=how,
            text=answer.text,
            reasons=tuple(reasons),
        )

    def progress(self, waiting: str = "") -> Progress:
        """How far it is."""
        ledger = self.ledger
        return Progress(
            done=self._done,
            examples=len(self.examples),
            rejected=ledger.rejected,
            tokens_in=ledger.tokens_in,
            tokens_out=ledger.tokens_out,
            cost=ledger.spent,
            waiting=waiting,
        )

    def estimate(self, *, batched: bool) -> Estimate:
        """What the rest will take if every answer is accepted at once."""
        pending = len(self.examples) - self._done
        answers = len(self.ledger.answers)
        if answers >= _MEASURED:
            each_in, each_out = self.ledger.tokens_in / answers, self.ledger.tokens_out / answers
            how = f"the mean of the {answers:,} answers so far"
        else:
            sample = self.examples[:: max(1, len(self.examples) // _SAMPLE)] or self.examples
            each_in, each_out = self._tokens_by_length(sample)
            how = f"{_CHARACTERS_PER_TOKEN} characters a token, answers twice as wordy as the rule annotator's"
        tokens_in, tokens_out = round(each_in * pending), round(each_out * pending)
        price = self.price.batched() if batched else self.price
        return Estimate(
            requests=pending,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            cost=price.cost(tokens_in, tokens_out),
            spent=self.ledger.spent,
            how=how,
        )

    def _tokens_by_length(self, sample: Sequence[Example]) -> tuple[float, float]:
        asked = wrote = 0
        for example in sample:
            messages = trace_messages(example, asked_labels(example, self.corpus.ontology))
            asked += sum(len(message["content"]) for message in messages) + len(json.dumps(RESPONSE_FORMAT))
            wrote += 2 * len(json.dumps(to_json(rule_trace(example))))
        tokens = _CHARACTERS_PER_TOKEN * max(1, len(sample))
        return asked / tokens, wrote / tokens

    def _check(self, example: Example, text: str) -> list[Rejection]:
        try:
            answer = parse_trace(text)
        except TraceError as error:
            return [Rejection(kind=error.kind, text=str(error))]
        return check_trace(answer, example, asked_labels(example, self.corpus.ontology))
