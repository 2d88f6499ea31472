r"""The asked labels of each row -> which tokens may come next, so that every answer that ends is a JSON object over these labels.

    direct    {"label": "value", "label2": ["value", "value"]}
    think     <thinking>anything</thinking><response>{...}</response>

The object is as `data.supervision.answer_json` writes it: each asked label once at most, in any order, with a string or a list of two or more
strings. An end token is admitted behind it and nowhere else. Kept out is what the reader (`data.answers`) would take for a tag or for another
object: `</` and `{` in a value, `</response>` and `</think>` in a thought. A row that runs out of its token budget is truncated, as without this.

Token masks come from xgrammar (https://github.com/mlc-ai/xgrammar), an extra of slotgrid. A grammar that lets n labels come in any order, each
once, has 2^n rules; so a row is given another grammar, without the labels it has written, as soon as it has written one more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from transformers import LogitsProcessor

from data.records import InferenceMode
from model.tiny_tokenizer import CONTINUED, GLUED, MARKS

REMEDY = "pip install 'slotgrid[constrained]'"
PACKAGE = "xgrammar"

_VALUES = r"""
value ::= string | "[" string (", " string)+ "]"
string ::= "\"" ("/" | "<"* safe)* "<"* "\""
safe ::= [^"\\</{\x00-\x1f] | "\\" ["\\bfnrt] | "\\u00" [01] [0-9a-f]
"""
_THOUGHT = r"""
root ::= "<thinking>" thought
thought ::= TagDispatch(("</thinking>", response), loop_after_dispatch=false, excludes=("</response>", "</think>"))
response ::= "<response>" object
"""
_STRING = rb'"(?:[^"\\]|\\.)*"'
_VALUE = rb"(?:%s|\[%s(?:, %s)+\])" % (_STRING, _STRING, _STRING)
_FIRST_LABEL = re.compile(rb"(?:<thinking>.*?</thinking><response>)?\{(?P<label>%s): " % _STRING, re.DOTALL)
_NEXT_LABEL = re.compile(rb"%s: %s, (?P<label>%s): " % (_STRING, _VALUE, _STRING), re.DOTALL)
_THINKING_ENDS = b"</thinking>"
_NOT_JSON = b"\0"
"""Begins the bytes of a token that a thought may hold and the object may not."""

Question = tuple[InferenceMode, Sequence[str]]
"""The inference mode and the asked labels of a row."""


class AnswerGrammar:
    """The tokenizer's tokens as bytes, and grammars over them; build it with `answer_grammar`."""

    def __init__(self, tokenizer: Any, vocabulary_size: int, ends: tuple[int, ...]) -> None:
        import xgrammar

        self.tokenizer = tokenizer
        self.ends = list(ends)
        self.tokens = _token_bytes(tokenizer, vocabulary_size)
        info = xgrammar.TokenizerInfo(self.tokens, vocab_size=vocabulary_size, stop_token_ids=self.ends)
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1)
        self.matcher_of = lru_cache(maxsize=4096)(self._compile)

    def written_label(self, label: str) -> bytes:
        """A label in quotes, as the tokenizer writes it. Raises ValueError where it cannot."""
        ids = self.tokenizer(json.dumps(label, ensure_ascii=False)[1:-1], add_special_tokens=False)["input_ids"]
        pieces = [self.tokens[token] for token in ids]
        if not pieces or any(not piece or _NOT_JSON in piece for piece in pieces):
            raise ValueError(
                f"evaluation.constrained: the tokenizer {self.tokenizer.name_or_path} cannot write the label {label!r}; "
                "rename the label, or turn constrained off"
            )
        return b'"%s"' % b"".join(pieces)

    def _compile(self, mode: InferenceMode, written: bytes | None, left: frozenset[bytes]) -> Any:
        """The grammar of the rest of an answer: all of it, or from `written` on, the last label that was, with the labels `left` for later."""
        end = "</response>" if mode == "think" else ""
        more = ' (", " member)*' if left else ""
        rules = [_VALUES]
        if left:
            rules.append(f'member ::= ({" | ".join(map(_literal, sorted(left)))}) ": " value')
        if written is not None:
            rules.append(f'root ::= {_literal(written)} ": " value{more} "}}{end}"')
        else:
            rules.append(
                f'{"object" if mode == "think" else "root"} ::= "{{}}{end}"'
                + f' | "{{" member{more} "}}{end}"' * bool(left)
            )
            rules.append(_THOUGHT * (mode == "think"))
        return self._compiler.compile_grammar("\n".join(rules))


@lru_cache(maxsize=2)
def answer_grammar(tokenizer: Any, vocabulary_size: int, ends: tuple[int, ...]) -> AnswerGrammar:
    """Grammars for a Hugging Face tokenizer under an LM head of `vocabulary_size` rows, which may be more than the tokenizer has tokens.

    `ends`: the tokens that end an answer. Raises ValueError when xgrammar is not installed.
    """
    if find_spec(PACKAGE) is None:
        raise ValueError(f"evaluation.constrained: needs the package {PACKAGE}; {REMEDY}")
    return AnswerGrammar(tokenizer, vocabulary_size, ends)


class AdmittedAnswers(LogitsProcessor):
    """Takes the probability of every token that a row's grammar does not admit. For one call of `generate`, whose ids begin with the answers."""

    def __init__(self, grammar: AnswerGrammar, questions: Sequence[Question]) -> None:
        self._ends = grammar.ends
        self._rows = [_Row(grammar, *question) for question in questions]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Generated ids [B, T] and the scores of the next token [B, V] -> the scores, -inf where a token is not admitted."""
        import xgrammar

        masks = xgrammar.allocate_token_bitmask(len(self._rows), scores.shape[1])
        for number, row in enumerate(self._rows):
            if input_ids.shape[1]:
                row.accept(int(input_ids[number, -1]))
            if not row.matcher.is_terminated():
                row.matcher.fill_next_token_bitmask(masks, number)
        xgrammar.apply_token_bitmask_inplace(scores, masks.to(scores.device))
        thinking = torch.tensor([row.thinking for row in self._rows], device=scores.device)
        for end in self._ends:
            scores[:, end].masked_fill_(thinking, -torch.inf)
        return scores


class _Row:
    """One answer while it is written: its text from the last label on, and the grammar of what may follow."""

    def __init__(self, grammar: AnswerGrammar, mode: InferenceMode, labels: Sequence[str]) -> None:
        self._grammar, self._mode = grammar, mode
        self._left = frozenset(map(grammar.written_label, labels))
        self._text, self._next_label = b"", _FIRST_LABEL
        self.matcher = self._matcher(None)

    @property
    def thinking(self) -> bool:
        """Whether a thought is open, which an end token must not end."""
        return self._mode == "think" and self._next_label is _FIRST_LABEL and _THINKING_ENDS not in self._text

    def accept(self, token: int) -> None:
        """Take note of the token that was chosen; padding behind an answer that has ended is passed over."""
        if self.matcher.is_terminated():
            return
        accepted = self.matcher.accept_token(token)
        assert accepted, f"token {token} behind {self._text!r} was not admitted"
        self._text += self._grammar.tokens[token]
        if not self.thinking and (found := self._next_label.match(self._text)):
            self._text, self._next_label = self._text[found.start("label") :], _NEXT_LABEL
            self._left -= {found["label"]}
            self.matcher = self._matcher(found["label"])
            accepted = self.matcher.accept_string(self._text)
            assert accepted, f"{self._text!r} does not begin with a label and its value"

    def _matcher(self, written: bytes | None) -> Any:
        import xgrammar

        return xgrammar.GrammarMatcher(self._grammar.matcher_of(self._mode, written, self._left))


def _literal(text: bytes) -> str:
    return json.dumps(text.decode(), ensure_ascii=False)


def _token_bytes(tokenizer: Any, vocabulary_size: int) -> list[bytes]:
    """What each token writes; nothing for control tokens, which no answer holds."""
    import xgrammar

    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    if CONTINUED + "a" in vocabulary:
        tokens = [b""] * len(vocabulary)
        for text, number in vocabulary.items():
            tokens[number] = _tiny_token(text)
    else:
        tokens = list(xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocabulary_size).decoded_vocab)
    for number, token in tokenizer.added_tokens_decoder.items():
        if token.special:
            tokens[number] = b""
    return tokens


def _tiny_token(text: str) -> bytes:
    """What a token of the tiny foundations writes behind a word. JSON's marks are written by the tokens that hold answer syntax, by no others."""
    if text.startswith(CONTINUED):
        return text.removeprefix(CONTINUED).encode()
    if text in (*GLUED, *MARKS):
        return text.encode()
    return _NOT_JSON * bool(set(text) & set('"{}[]\\')) + f" {text}".encode()
