"""The tiny foundations: their tokenizer copies and restores answers, their texts leak nothing, their training repeats, their folders load."""

import hashlib
import json
import random
import re
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.answers import parse_answer
from data.callcentre.dialogues import held_out_values, iter_utterances
from data.records import SPLITS
from data.rendering import render, render_prompt
from data.supervision import AUDIO_MARKER, MODE_TOKENS, SupervisionConfig, answer_json, supervise
from model.configs import FOUNDATION_KINDS
from model.foundations import FOUNDATIONS, TINY_FOLDER
from model.pretraining import Stage, build_model, encode_document, iter_batches, pretrain
from model.tiny_family import Figures, write_family_file, write_foundation
from model.tiny_lessons import iter_documents
from model.tiny_texts import build_pool, iter_base_documents
from model.tiny_tokenizer import JSON_SYNTAX, MAX_SIZE, TAGS, build_tokenizer, count_words


@pytest.fixture(scope="module")
def pool():
    return build_pool(400, seed=5)


@pytest.fixture(scope="module")
def tokenizer(pool):
    counts = Counter()
    for utterance in pool.utterances:
        count_words(utterance.transcript, counts)
    return build_tokenizer(counts, "hybrid")


def shipped(kind):
    return AutoTokenizer.from_pretrained(TINY_FOLDER / f"tiny-{kind}")


@pytest.mark.parametrize("kind", FOUNDATION_KINDS)
def test_the_shipped_folder_is_the_registered_foundation(kind):
    foundation = FOUNDATIONS[f"tiny-{kind}"]
    weights = (TINY_FOLDER / f"tiny-{kind}" / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == foundation.revision
    assert len(weights) < 4_000_000
    model = AutoModelForCausalLM.from_pretrained(TINY_FOLDER / f"tiny-{kind}", dtype=torch.float32)
    assert sum(parameter.numel() for parameter in model.parameters()) == foundation.parameters
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (shipped(kind).chat_template is None) == (kind == "base")
    assert f"tiny-{kind}" in (TINY_FOLDER / f"tiny-{kind}" / "README.md").read_text()


def test_the_shipped_tokenizer_restores_every_target(pool):
    tokenizer = shipped("instruct")
    config = SupervisionConfig(mode="hybrid", label_descriptions=False, value_form="spoken")
    for split in SPLITS:
        for utterance in iter_utterances(split, 200, seed=3):
            for mode in ("direct", "think"):
                target = supervise(utterance.unvoiced(), pool.ontology, config, mode=mode, draw="x").target
                ids = tokenizer(target)["input_ids"]
                assert tokenizer.unk_token_id not in ids
                assert tokenizer.decode(ids) == target.lower()
                assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == target.lower()
                parsed = parse_answer(tokenizer.decode([*ids, tokenizer.eos_token_id]))
                assert parsed.slots == tuple((slot.label, slot.spoken) for slot in utterance.slots)


def test_answer_syntax_is_one_token_each(tokenizer):
    for text in (*TAGS, *JSON_SYNTAX, *MODE_TOKENS.values(), "\n"):
        assert len(tokenizer(text)["input_ids"]) == 1, text
    assert len(tokenizer) <= MAX_SIZE
    answer = answer_json((("city", "new york"), ("city", "denver"), ("plan_name", "gold")))
    assert tokenizer.decode(tokenizer(answer)["input_ids"]) == answer


def test_a_word_is_the_same_tokens_wherever_it_stands(tokenizer):
    for word in ("chicago", "o'zqxbaum", "customer"):
        ids = tokenizer(word)["input_ids"]
        for text in (
            f"to {word} now",
            f'{{"{word}": "{word}"}}',
            f"\n{word}\n",
            f"<think>{word}</think>",
            f'said "{word}".',
            word.upper(),
        ):
            found = tokenizer(text)["input_ids"]
            assert any(found[i : i + len(ids)] == ids for i in range(len(found))), text


@pytest.mark.parametrize("kind", FOUNDATION_KINDS)
def test_halves_around_the_audio_tokenize_as_the_whole(kind, pool):
    tokenizer = shipped(kind)
    for utterance in pool.utterances[:40]:
        for mode in ("direct", "think"):
            config = SupervisionConfig(mode="hybrid", label_descriptions=False, value_form="spoken")
            supervised = supervise(utterance.unvoiced(), pool.ontology, config, mode=mode, draw="x")
            rendered = render(supervised, tokenizer, kind)
            whole = tokenizer(render_prompt(tokenizer, kind, supervised.prompt, mode), add_special_tokens=False)[
                "input_ids"
            ]
            assert whole == [*rendered.prefix, tokenizer.convert_tokens_to_ids(AUDIO_MARKER), *rendered.suffix]
            assert rendered.target[-1] == tokenizer.eos_token_id
            assert whole.count(tokenizer.bos_token_id) == (kind == "base")


def test_only_the_hybrid_template_switches_thinking(pool):
    for kind in ("instruct", "reasoning", "hybrid"):
        tokenizer = shipped(kind)
        thinking, direct = (render_prompt(tokenizer, kind, "hello", mode) for mode in ("think", "direct"))
        assert (thinking != direct) == (kind == "hybrid")
        assert ("</think>" in direct) == (kind == "hybrid")


@pytest.mark.parametrize("kind", FOUNDATION_KINDS)
def test_no_document_says_a_held_out_value(kind, pool, tokenizer):
    finder = held_out_values()
    secret = [phrase for phrase in finder.phrases() if phrase in ("boston", "new orleans", "platinum", "sunday")]
    assert len(secret) == 4
    for document in islice(iter_documents(kind, pool, tokenizer, random.Random(1)), 400):
        for segment in document:
            words = re.sub(r"[^a-z' ]+", " | ", segment.text.lower())
            assert not finder.find(words)
            assert not any(f" {phrase} " in f" {words} " for phrase in secret)


def test_base_text_holds_every_answer_token_and_no_prompt(pool, tokenizer):
    texts = [
        "".join(segment.text for segment in document)
        for document in islice(iter_base_documents(pool, random.Random(2)), 3000)
    ]
    seen = {token for text in texts for token in tokenizer(text)["input_ids"]}
    for token in (*TAGS, *(syntax for syntax in JSON_SYNTAX), *MODE_TOKENS.values()):
        assert tokenizer.convert_tokens_to_ids(token) in seen, token
    assert not any("labels:" in text or "### instruction" in text for text in texts)


def test_only_answers_are_learned_and_only_audio_is_disturbed(pool, tokenizer):
    checked = 0
    for document in islice(iter_documents("hybrid", pool, tokenizer, random.Random(3)), 100):
        encoded = encode_document(document, tokenizer, random.Random(4))
        assert len(encoded.ids) == len(encoded.learn) == len(encoded.blur)
        assert not any(learn and blur for learn, blur in zip(encoded.learn, encoded.blur, strict=True))
        answers = [segment.text for segment in document if segment.learn]
        if len(answers) == 1 and document[0].text.startswith("<|user|>"):
            learned = [token for token, learn in zip(encoded.ids, encoded.learn, strict=True) if learn]
            assert learned[-1] == tokenizer.eos_token_id
            assert tokenizer.decode(learned[:-1]) == answers[0].removesuffix("<|end|>").lower()
            checked += 1
    assert checked > 50


def test_batches_keep_every_document(pool, tokenizer):
    rng = random.Random(5)
    documents = [encode_document(d, tokenizer, rng) for d in islice(iter_base_documents(pool, rng), 100)]
    batches = list(iter_batches(iter(documents), 8, rng))
    assert sorted(id(d) for batch in batches for d in batch) == sorted(map(id, documents))
    padding = sum(max(len(d.ids) for d in batch) - len(d.ids) for batch in batches for d in batch)
    assert padding < 0.25 * sum(len(d.ids) for d in documents)


def test_training_learns_and_repeats_exactly(pool, tokenizer, tmp_path):
    def run():
        model = build_model(tokenizer, width=32, layers=1, mlp_width=32, seed=1)
        stage = Stage(name="t", steps=25, learning_rate=5e-3, batch_size=8)
        return model, [
            s.loss for s in pretrain(model, lambda rng: iter_base_documents(pool, rng), tokenizer, stage, seed=2)
        ]

    model, losses = run()
    again, losses_again = run()
    assert losses == losses_again
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert losses[-1] < losses[0] - 1

    for kind in FOUNDATION_KINDS:
        figures = Figures(
            kind=kind, steps=25, steps_scale=1.0, seed=0, seconds_per_step=0.1, text_f1={"direct, exact F1": 0.5}
        )
        write_foundation(tmp_path / f"tiny-{kind}", model, tokenizer, figures)
    write_family_file(tmp_path)
    family = json.loads(Path(tmp_path / "family.json").read_text())
    assert list(family) == [f"tiny-{kind}" for kind in FOUNDATION_KINDS]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny-base", dtype=torch.float32)
    assert family["tiny-base"]["parameters"] == sum(p.numel() for p in loaded.parameters())
    ids = torch.tensor([tokenizer("hello my name is")["input_ids"]])
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, model(ids).logits, atol=2e-2)


@pytest.mark.slow
def test_the_recipe_writes_a_family_that_loads(tmp_path):
    command = [sys.executable, "experiments/pretrain_tiny.py", "--out", str(tmp_path), "--steps-scale", "0.002"]
    result = subprocess.run(command, cwd=TINY_FOLDER.parents[1], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for name in json.loads((tmp_path / "family.json").read_text()):
        assert name in result.stdout
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert model.config.vocab_size == len(tokenizer)
        assert "--steps-scale 0.002" in (tmp_path / name / "README.md").read_text()
