"""Where an annotation runs and whom it tells: the server's address, the key from the environment, pace, price and limit, a listener.

Nothing here decides what is answered, so nothing here enters a fingerprint.
"""

from __future__ import annotations

import email.utils
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from urllib.parse import urlsplit

from data.annotation.costs import Estimate, Price
from data.annotation.live import OnProgress, Pace

KEY_VARIABLE = "OPENAI_API_KEY"
DEFAULT_URL = "https://api.openai.com/v1"


def read_key() -> str:
    """The API key of the environment. Raises ValueError that says both remedies when there is none."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key:
        raise ValueError(
            f"{KEY_VARIABLE} is not set; export a key (any word for a server that wants none), or use --annotator rule, which needs none"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError(f"{KEY_VARIABLE} holds characters that no key has; copy it again")
    return key


def check_url(url: str) -> str:
    """The address of a server. Raises ValueError, without repeating the address, when it carries a password or is none."""
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"--base-url: must not hold credentials or parameters; put the key into {KEY_VARIABLE}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"--base-url: {url!r} is no address; give one like {DEFAULT_URL}")
    return url.rstrip("/")


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where and how an annotation runs; nothing of it decides what is answered."""

    url: str = DEFAULT_URL  # without credentials
    stored: bool = True  # the server keeps the answers, so that none is paid for twice
    batched: bool = False
    pace: Pace = field(default_factory=Pace)
    price: Price
    max_cost: Decimal | None = None  # dollars, over all runs

    def __post_init__(self) -> None:
        check_url(self.url)
        if self.max_cost is not None and not (self.max_cost.is_finite() and self.max_cost > 0):
            raise ValueError(f"--max-cost: {self.max_cost} is no amount of dollars above 0")

    @property
    def host(self) -> str:
        """The server's name, as reports may show it."""
        return urlsplit(self.url).hostname or ""


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Whom an annotation tells what happens."""

    confirm: Callable[[Estimate], bool] = lambda estimate: True  # before anything is sent; False ends it
    on_progress: OnProgress = lambda progress: None
    on_note: Callable[[str], None] = lambda line: None


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a server asks to wait: `retry-after-ms`, `retry-after` in seconds or as a date."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            return max(0.0, float(headers[name]) / unit)
        except (KeyError, ValueError):
            continue
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError):
        return None
