"""Constrained decoding: whatever the weights say, an answer that ends is the JSON object that the reader expects, over the asked labels."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data.answers import parse_answer
from data.rendering import answer_end, render
from data.supervision import AUDIO_MARKER, SupervisedExample
from model.configs import AdapterConfig, LoRAConfig
from model.constrained import AdmittedAnswers, answer_grammar
from model.foundations import FOUNDATIONS
from model.generate import Item, generate_predictions
from model.speech_llm import SpeechLLM, load_foundation, load_tokenizer, wrap_llm
from orchestrator.layout import Store
from orchestrator.prerequisites import find_prerequisites
from orchestrator.scales import SCALES
from stand_ins.hub import VOCABULARY, write_stand_in

TINY = "tiny-hybrid"
LABELS = ("date", "card_number", "amount", "city", "name", "due_date", "account", "time", "street", "year", "month")
QUESTIONS = [
    ("direct", ("date",)),
    ("think", ("date", "due_date")),
    ("direct", ("name", "amount", "city")),
    ("think", LABELS),
    ("direct", LABELS),
    ("direct", ()),
]


def tokenizer_of(family: str, folder: Path):
    return load_tokenizer(FOUNDATIONS[TINY] if family == TINY else write_stand_in(folder, family))


def written_by_chance(tokenizer, kind: str, *, seed: int, steps: int = 90) -> list[tuple[str, bool]]:
    """(text, whether it ended) of each question: its tokens drawn by chance among the admitted ones, but for a given thought.

    What closes and separates is likelier, so that some answers end and hold more than one value.
    """
    end = answer_end(tokenizer, kind)
    grammar = answer_grammar(tokenizer, VOCABULARY, (end,))
    admitted = AdmittedAnswers(grammar, QUESTIONS)
    generator = torch.Generator().manual_seed(seed)
    closing = torch.tensor([any(mark in text for mark in (b'"', b"]", b"}")) for text in grammar.tokens])
    parting = torch.tensor([b"," in text for text in grammar.tokens])
    liking = 3.0 * closing + 3.0 * parting
    liking = torch.nn.functional.pad(liking, (0, VOCABULARY - len(liking)))
    thought = tokenizer('<thinking>I hear: "two {"</thinking>', add_special_tokens=False)["input_ids"]
    ids = torch.zeros((len(QUESTIONS), 0), dtype=torch.long)
    ended = torch.zeros(len(QUESTIONS), dtype=torch.bool)
    for step in range(steps):
        chance = -torch.empty((len(QUESTIONS), VOCABULARY)).exponential_(generator=generator).log()
        scores = admitted(ids, liking + chance)
        chosen = torch.where(ended, tokenizer.pad_token_id, scores.argmax(dim=1))
        for row, (mode, _) in enumerate(QUESTIONS):
            if mode == "think" and step < len(thought):
                assert scores[row, thought[step]] > -torch.inf, "a thought is free"
                chosen[row] = thought[step]
        assert ended.logical_or(scores.max(dim=1).values > -torch.inf).all(), "there is always a way on"
        ids = torch.cat([ids, chosen[:, None]], dim=1)
        ended |= chosen == end
    rows = [row[: row.index(end)] if end in row else row for row in ids.tolist()]
    texts = [tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in rows]
    return list(zip(texts, ended.tolist(), strict=True))


def check_answer(text: str, mode: str, labels: tuple[str, ...]) -> dict[str, str | list[str]]:
    """An answer that ended is in the trained form to the letter."""
    if mode == "think":
        assert text.startswith("<thinking>") and text.endswith("</response>")
        text = text[text.index("</thinking><response>") + len("</thinking><response>") : -len("</response>")]
    answer = json.loads(text)
    assert json.dumps(answer, ensure_ascii=False) == text, "written as the targets are; so no label twice"
    assert answer.keys() <= set(labels)
    for value in answer.values():
        assert isinstance(value, str) or (len(value) >= 2 and all(isinstance(part, str) for part in value))
    return answer


@pytest.mark.parametrize(
    ("family", "kind"), [("qwen3", "hybrid"), ("llama-3.1", "base"), ("r1", "reasoning"), (TINY, "hybrid")]
)
def test_every_answer_that_ends_is_an_object_over_the_asked_labels(family: str, kind: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(family, tmp_path)
    answers = []
    for seed in range(4):
        for (mode, labels), (text, ended) in zip(QUESTIONS, written_by_chance(tokenizer, kind, seed=seed), strict=True):
            if ended:
                answers.append(check_answer(text, mode, labels))
                parsed = parse_answer(text)
                assert not parsed.parse_failure and parsed.closed and not parsed.repaired
    assert len(answers) > 12
    assert max(map(len, answers)) > 2
    assert any(isinstance(value, list) for answer in answers for value in answer.values())


@pytest.mark.parametrize(
    ("family", "before", "forbidden"),
    [
        ("qwen3", "<thinking>I hear", "<|im_end|>"),
        ("qwen3", "<thinking>I hear", "</think>"),  # one token
        ("llama-3.1", "<thinking>I hear</think", ">"),
        ("llama-3.1", "<thinking>I hear</response", ">"),
        ("llama-3.1", "<thinking>I hear</thinking>", "<|end_of_text|>"),
        ("llama-3.1", "<thinking>I hear</thinking>", "I"),
        (TINY, "<thinking>i hear", "</response>"),
        (TINY, "<thinking>i hear", "<|end|>"),
    ],
)
def test_a_thought_ends_with_its_own_tag_and_the_response(
    family: str, before: str, forbidden: str, tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(family, tmp_path)
    grammar = answer_grammar(tokenizer, VOCABULARY, (tokenizer.eos_token_id,))
    admitted = AdmittedAnswers(grammar, [("think", ("date",))])
    ids = torch.tensor([tokenizer(before, add_special_tokens=False)["input_ids"]])
    for length in range(ids.shape[1] + 1):
        scores = admitted(ids[:, :length], torch.zeros(1, VOCABULARY))
    (token,) = tokenizer(forbidden, add_special_tokens=False)["input_ids"]
    assert scores[0, token] == -torch.inf and scores.max() == 0


def small_model(family: str, folder: Path) -> tuple[SpeechLLM, object]:
    """An untrained speechLLM around the tiny foundation, which knows the form, or a stand-in, which knows nothing."""
    foundation = FOUNDATIONS[TINY] if family == TINY else write_stand_in(folder, family)
    model = wrap_llm(
        load_foundation(foundation, "fp32"),
        state_mean=torch.zeros(3),
        state_std=torch.ones(3),
        adapter=AdapterConfig(hidden_width=4),
        lora=LoRAConfig(r=2, alpha=4),
        precision="fp32",
        seed=0,
    )
    return model, load_tokenizer(foundation)


def items(tokenizer, kind: str, modes: tuple[str, ...]) -> list[Item]:
    questions = [(mode, labels) for mode, labels in QUESTIONS if mode in modes]
    found = []
    for number, (mode, labels) in enumerate(questions):
        supervised = SupervisedExample(
            example_id=f"e{number}",
            mode=mode,
            prompt=f"fill the slots\nlabels: {', '.join(labels)}\naudio: {AUDIO_MARKER}",
            target="",
            asked_labels=labels,
            reference=(),
        )
        found.append((supervised, render(supervised, tokenizer, kind), np.ones((9 + number, 3), dtype=np.float16)))
    return found


@pytest.mark.parametrize("family", ["qwen3", TINY])
def test_generation_writes_only_what_is_admitted(family: str, tmp_path: Path) -> None:
    model, tokenizer = small_model(family, tmp_path)
    asked = items(tokenizer, "hybrid", ("direct", "think"))
    found = {}
    for constrained in (False, True):
        found[constrained] = generate_predictions(
            model,
            tokenizer,
            asked,
            kind="hybrid",
            split="test",
            max_new_tokens=48,
            batch_size=4,
            constrained=constrained,
        )
    assert any(parse_answer(p.output_text).parse_failure for p in found[False]), "these weights need it"
    ended = [prediction for prediction in found[True] if not prediction.truncated]
    assert ended, "at least where nothing is asked"
    for prediction in ended:
        check_answer(prediction.output_text, prediction.mode, prediction.asked_labels)
    for prediction in found[True]:
        begin = "{" if prediction.mode == "direct" else "<thinking>"
        assert prediction.output_text.startswith(begin)
        assert prediction.truncated == (prediction.output_tokens == 48 and prediction not in ended)


def test_a_label_that_the_tokenizer_cannot_write_is_told(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(TINY, tmp_path)
    grammar = answer_grammar(tokenizer, VOCABULARY, (tokenizer.eos_token_id,))
    with pytest.raises(ValueError, match="cannot write the label 'größe'; rename the label, or turn constrained off"):
        AdmittedAnswers(grammar, [("direct", ("größe",))])


def test_a_missing_package_is_told_by_the_plan_and_by_the_trial(tmp_path: Path, monkeypatch) -> None:
    tokenizer = tokenizer_of(TINY, tmp_path)
    monkeypatch.setitem(sys.modules, "xgrammar", None)  # as where it is not installed
    with pytest.raises(ValueError, match=r"needs the package xgrammar; pip install 'slotgrid\[constrained\]'"):
        answer_grammar(tokenizer, VOCABULARY + 1, (tokenizer.eos_token_id,))

    def missing(*, constrained: bool) -> list[str]:
        found = find_prerequisites(SCALES["smoke"], Store(tmp_path), [], thinking=False, constrained=constrained)
        return [item.detail for item in found if item.state == "missing"]

    new = [detail for detail in missing(constrained=True) if detail not in missing(constrained=False)]
    assert new == ["evaluation.constrained needs it: pip install 'slotgrid[constrained]'"]
