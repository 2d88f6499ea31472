"""Tokens -> US dollars: the price list, what an answer cost, the most that a request can cost, and an estimate before anything is sent."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

MILLION = Decimal(1_000_000)
PRICES_AS_OF = "2026-04, OpenAI's public price list (standard processing, uncached input)"


@dataclass(frozen=True, kw_only=True)
class Price:
    """US dollars per million tokens. Cached input is cheaper with some servers; it is counted in full here, so costs are never too low."""

    tokens_in: Decimal
    tokens_out: Decimal

    def __post_init__(self) -> None:
        if not (
            self.tokens_in.is_finite() and self.tokens_out.is_finite() and min(self.tokens_in, self.tokens_out) >= 0
        ):
            raise ValueError(f"price {self.tokens_in} {self.tokens_out}: give dollars per million tokens, from 0 up")

    def cost(self, tokens_in: int, tokens_out: int) -> Decimal:
        """Exact dollars."""
        return (self.tokens_in * tokens_in + self.tokens_out * tokens_out) / MILLION

    def batched(self) -> Price:
        """Through the Batch API: half."""
        return Price(tokens_in=self.tokens_in / 2, tokens_out=self.tokens_out / 2)


def _price(tokens_in: str, tokens_out: str) -> Price:
    return Price(tokens_in=Decimal(tokens_in), tokens_out=Decimal(tokens_out))


PRICES: dict[str, Price] = {
    "gpt-4o": _price("2.50", "10.00"),
    "gpt-4o-2024-05-13": _price("5.00", "15.00"),
    "gpt-4o-mini": _price("0.15", "0.60"),
    "gpt-4.1": _price("2.00", "8.00"),
    "gpt-4.1-mini": _price("0.40", "1.60"),
    "gpt-4.1-nano": _price("0.10", "0.40"),
    "gpt-5": _price("1.25", "10.00"),
    "gpt-5-mini": _price("0.25", "2.00"),
    "gpt-5-nano": _price("0.05", "0.40"),
    "o3": _price("2.00", "8.00"),
    "o4-mini": _price("1.10", "4.40"),
}
"""As of `PRICES_AS_OF`; `--price IN OUT` overrules it."""


def list_price(model: str) -> Price | None:
    """The listed price of a model or of its dated snapshot ("gpt-4o-2024-08-06"); None for a model that is not listed."""
    return PRICES.get(model) or PRICES.get(re.sub(r"-\d{4}-\d\d-\d\d$", "", model))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What the rest of an annotation will take, if every answer is accepted at once."""

    requests: int
    tokens_in: int
    tokens_out: int
    cost: Decimal
    spent: Decimal  # so far
    how: str  # it was estimated


def dollars(amount: Decimal) -> str:
    """For people: cents, or what is left below a cent."""
    return f"${amount:,.2f}" if amount >= 1 or not amount else f"${amount:.4f}"
