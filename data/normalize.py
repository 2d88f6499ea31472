"""Slot values as people write them -> the token sequences that the metric compares."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, lru_cache

ADDED_RULES = (r"\bkinda\b", r"\bsorta\b", r"\bdunno\b", r"\bcause\b")
"""Replacements that the `whisper-normalizer` package adds to OpenAI's normaliser. Without them the two agree."""

_ENDLESS = re.compile(r"\d{1000}")
"""More digits than the normaliser can make a number of (it fails an assertion at 4,300); such a value keeps its own words."""


@cache
def build_normalizer() -> Callable[[str], str]:
    """OpenAI's `whisper.normalizers.EnglishTextNormalizer`, from a package that loads no torch.

    Source: https://github.com/openai/whisper/tree/main/whisper/normalizers (Radford et al. 2022, appendix C).
    """
    from whisper_normalizer.english import EnglishTextNormalizer  # here, so that declaring a grid does not pay for it

    normalizer = EnglishTextNormalizer()
    for rule in ADDED_RULES:
        normalizer.replacers.pop(rule, None)
    return normalizer


@lru_cache(maxsize=1 << 16)
def normalize_value(text: str) -> tuple[str, ...]:
    """The tokens of a value: "March the Third" -> ("march", "the", "3rd").

    Empty only for blank text: a value of which the normaliser leaves nothing ("uh", "(none)") keeps its own words in
    lower case, so that it can never be found inside every other value.
    """
    normalized = "" if _ENDLESS.search(text) else build_normalizer()(text)
    return tuple(normalized.split()) or tuple(text.casefold().split())
