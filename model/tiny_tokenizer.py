"""Word counts -> the tokenizer of the tiny foundations: whole words, a few word pieces, and every answer-syntax string as one token.

A word is the same tokens wherever it stands (after a space, a quote, a bracket, a line break), so that copying a value from the prompt into
an answer is copying tokens. Spaces are no tokens: decoding puts them back, one between words, none inside the answer syntax. Everything is
lower case. The result is a plain Hugging Face fast tokenizer, loaded without any code of ours.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data.supervision import AUDIO_MARKER, MODE_TOKENS
from model.configs import FoundationKind

PAD, BOS, END, UNKNOWN = "<|pad|>", "<|bos|>", "<|end|>", "<|unk|>"
SPECIAL = (PAD, BOS, END, UNKNOWN, "<|user|>", "<|assistant|>", AUDIO_MARKER)
TAGS = ("<thinking>", "</thinking>", "<response>", "</response>", "<think>", "</think>")
JSON_SYNTAX = ("{}", '{"', '": ["', '": "', '"], "', '"]}', '", "', '"}')
"""What json.dumps writes around the labels and values of an answer."""
GLUED = (*TAGS, *JSON_SYNTAX, "\n")
"""Tokens with no space on either side when decoded."""
MARKS = (".", ",", ":", ";", "?", "!", ")", "%", "'", "_")
"""Tokens with no space on their left; a label's second word is one token with its underscore."""
OTHER_MARKS = (' "', '"', "(", "-", "+", "=", "/", "<", ">", "$", "#", "###", "{", "}", "[", "]")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"
CONTINUED = "##"
MAX_SIZE = 1500
_OPEN_QUOTE = "\x01"
"""Stands for an opening quotation mark while decoding, so that the rule for closing ones passes it by."""

_CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_SWITCH = "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
"""An empty thinking block answers at once: how Qwen3 switches its thinking off."""


def build_tokenizer(
    word_counts: Mapping[str, int], kind: FoundationKind, *, min_count: int = 1, pieces: int = 260
) -> PreTrainedTokenizerFast:
    """The tokenizer of one kind: the same vocabulary for every kind, a chat template for all but base.

    `word_counts` holds lower-case words; those counted at least `min_count` times become whole tokens, the most frequent first, as far as
    `MAX_SIZE` tokens allow; the rest fall apart into at most `pieces` frequent word pieces and single letters.
    """
    fixed = [*SPECIAL, *TAGS, *JSON_SYNTAX, *MODE_TOKENS.values(), "\n", *MARKS, *OTHER_MARKS, *DIGITS, *LETTERS]
    fixed += [CONTINUED + letter for letter in LETTERS + "'"] + _frequent_pieces(word_counts, pieces)
    words = [word for word, n in sorted(word_counts.items(), key=lambda item: (-item[1], item[0])) if n >= min_count]
    vocabulary = list(dict.fromkeys([*fixed, *words]))[:MAX_SIZE]

    tokenizer = Tokenizer(
        models.WordPiece(
            {token: i for i, token in enumerate(vocabulary)}, unk_token=UNKNOWN, continuing_subword_prefix=CONTINUED
        )
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_token_pattern()), behavior="removed", invert=True)
    tokenizer.decoder = _decoder()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[*SPECIAL[4:]],
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
        padding_side="left",
    )
    if kind != "base":
        fast.chat_template = _CHAT + (_SWITCH if kind == "hybrid" else "")
    return fast


def count_words(text: str, counts: Counter[str]) -> None:
    """Count each word of a text once, tags and special tokens left out."""
    counts.update(set(re.findall(r"_?[a-z][a-z']*", re.sub(r"<[^<>]*>", " ", text.lower()))))


def _frequent_pieces(word_counts: Mapping[str, int], count: int) -> list[str]:
    """Word beginnings and continuations of 2 or 3 letters that many different words share: half of each."""
    starts: Counter[str] = Counter()
    inner: Counter[str] = Counter()
    for word in word_counts:
        if word.isalpha():
            starts.update({word[:2], word[:3]} - {word})
            inner.update({CONTINUED + word[i : i + n] for n in (2, 3) for i in range(1, len(word) - n + 1)})
    return [
        piece
        for pieces in (starts, inner)
        for piece, _ in sorted(pieces.items(), key=lambda item: (-item[1], item[0]))[: count // 2]
    ]


def _token_pattern() -> str:
    """What a token's text may be, longest syntax first; whitespace other than line breaks matches nothing and is dropped."""
    syntax = sorted([*TAGS, *JSON_SYNTAX, *MODE_TOKENS.values(), "###"], key=len, reverse=True)
    return "|".join([*map(re.escape, syntax), ' "(?=[a-z])', "\n", "_?[a-z][a-z']*", r"\d", r"[^\s]"])


def _decoder() -> decoders.Decoder:
    """Tokens joined by single spaces, then the spaces around the syntax taken out again."""
    glued = sorted(GLUED, key=len, reverse=True)
    return decoders.Sequence(
        [
            decoders.WordPiece(prefix=CONTINUED, cleanup=False),
            decoders.Fuse(),
            *(decoders.Replace(Regex(f" ?{re.escape(token)} ?"), token) for token in glued),
            *(decoders.Replace(f" {mark}", mark) for mark in MARKS),
            decoders.Replace('  " ', f" {_OPEN_QUOTE}"),
            decoders.Replace(Regex(r'(?<=\w) "(?=[ .,;)<\n]|$)'), '"'),
            decoders.Replace(_OPEN_QUOTE, '"'),
            decoders.Replace("( ", "("),
        ]
    )
