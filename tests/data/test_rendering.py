"""What every kind of foundation is shown, what of it is trained and where it stops: token by token, and trap by trap.

`WRITE_RENDERINGS=1 pytest tests/data/test_rendering.py` writes the golden files in `tests/data/renderings` anew. The files of the tiny family
must never change: its packaged weights were trained on exactly these tokens.
"""

import copy
import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.answers import parse_answer
from data.batching import IGNORE, collate
from data.callcentre.dialogues import build_ontology, iter_utterances
from data.records import (
    INFERENCE_MODES,
    SUPERVISION_MODES,
    AnnotatedExample,
    Example,
    Justification,
    Label,
    Mention,
    Ontology,
    SlotValue,
    Trace,
    Turn,
)
from data.rendering import EMPTY_THINKING, RenderedExample, answer_end, render, render_prompt
from data.supervision import AUDIO_MARKER, MODE_TOKENS, SupervisionConfig, supervise
from model.foundations import CARDS, FOUNDATIONS, TINY_FOLDER
from stand_ins.families import FAMILIES
from stand_ins.hub import KINDS, write_stand_in

GOLDEN = Path(__file__).parent / "renderings"
REGISTERED = {  # stand-in -> a foundation of the registry that behaves like it
    "qwen3": "qwen3-4b",
    "llama-3.1": "llama-3.1-8b",
    "llama-3.1-instruct": "llama-3.1-8b-instruct",
    "r1": "r1-distill-llama-8b",
    "r1-qwen": "r1-distill-qwen-1.5b",
    "smollm2": "smollm2-135m",
    "smollm2-instruct": "smollm2-135m-instruct",
}
SMOLLM2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TINY = {f"tiny-{kind}": kind for kind in ("base", "instruct", "reasoning", "hybrid")}
TINY_DIGESTS = {
    "tiny-base": "6062d022e763f79f",
    "tiny-instruct": "d44c6b3216befb6e",
    "tiny-reasoning": "d44c6b3216befb6e",
    "tiny-hybrid": "b7f650e95fbd8178",
}
FRAMES, STACK = 93, 8  # 1.86 s of audio, 12 embeddings

DRAW = "golden 0"  # one with a previous turn

ONTOLOGY = Ontology(
    domains={
        "travel": tuple(
            Label(name=name, description=text)
            for name, text in (("city", "where to"), ("date", "when to leave"), ("seat", "which seat"))
        )
    }
)
EXAMPLE = AnnotatedExample(
    example=Example(
        id="train-0",
        split="train",
        domain="travel",
        audio="audio/a.flac",
        audio_sha256="0" * 64,
        duration_s=FRAMES / 50,
        transcript="to new york on march third",
        slots=(
            SlotValue(label="city", spoken="new york", surface="New York", canonical="new-york"),
            SlotValue(label="date", spoken="march third", surface="March 3rd", canonical="--03-03"),
        ),
        context=(Turn(speaker="agent", text="where would you like to go"),),
    ),
    trace=Trace(
        transcription="to new york on march third",
        mentions=(Mention(label="city", text="new york"), Mention(label="date", text="march third")),
        justifications=(
            Justification(label="city", value="new york", because="the caller says to before it"),
            Justification(label="date", value="march third", because="the caller says on before it"),
        ),
    ),
)


def load(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def golden_text(name: str, tokenizer, kind: str) -> str:
    """Every supervision and inference mode of one example, one line per token, with the mask that training uses."""
    lines = [
        f"{name} ({kind}). Written by: WRITE_RENDERINGS=1 pytest tests/data/test_rendering.py",
        "place  M masked, A audio, T trained  token id  text",
    ]
    for supervision in SUPERVISION_MODES:
        config = SupervisionConfig(mode=supervision)
        for mode in INFERENCE_MODES[supervision]:
            supervised = supervise(EXAMPLE, ONTOLOGY, config, mode=mode, draw=DRAW)
            rendered = render(supervised, tokenizer, kind)
            lines += ["", f"== {supervision} supervision, {mode}", *token_lines(rendered, tokenizer)]
    return "\n".join(lines) + "\n"


def token_lines(rendered, tokenizer) -> Iterator[str]:
    """As `collate` lays an item out: the labels it gives are what the loss sees."""
    states = np.zeros((FRAMES, 4), dtype=np.float16)
    pad = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    batch = collate([("x", rendered, states)], stack_factor=STACK, pad_id=pad, with_targets=True)
    ids, labels, audio = batch.input_ids[0].tolist(), batch.labels[0].tolist(), batch.audio_places.tolist()
    for place, (token, label) in enumerate(zip(ids, labels, strict=True)):
        if place in audio:
            if place == audio[0]:
                yield f"{place:5d}  A         {len(audio)} audio embeddings"
            continue
        assert label in (IGNORE, token)
        yield f"{place:5d}  {'M' if label == IGNORE else 'T'}  {token:6d}  {tokenizer.decode([token])!r}"


def tiny_digest(name: str) -> str:
    """sha256 over the token ids of 40 utterances in every supervision and inference mode."""
    tokenizer, ontology, digest = load(TINY_FOLDER / name), build_ontology(), hashlib.sha256()
    for utterance in iter_utterances("train", 40, seed=0):
        annotated = AnnotatedExample(
            example=replace(EXAMPLE.example, id=utterance.id, slots=utterance.slots, context=utterance.context),
            trace=utterance.trace,
        )
        for supervision in SUPERVISION_MODES:
            config = SupervisionConfig(mode=supervision, label_descriptions=False, value_form="spoken")
            for mode in INFERENCE_MODES[supervision]:
                rendered = render(supervise(annotated, ontology, config, mode=mode, draw=DRAW), tokenizer, TINY[name])
                digest.update(repr((rendered.prefix, rendered.suffix, rendered.target)).encode())
    return digest.hexdigest()[:16]


def check_golden(name: str, text: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("WRITE_RENDERINGS") == "1":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{path.name} changed; see this file's docstring"


@pytest.mark.parametrize("name", TINY)
def test_the_tiny_family_is_rendered_as_its_weights_were_trained(name: str) -> None:
    check_golden(name, golden_text(name, load(TINY_FOLDER / name), TINY[name]))
    assert tiny_digest(name) == TINY_DIGESTS[name]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Stand-in name -> (tokenizer, kind). SmolLM2's is made of Qwen3's, whose control tokens it shares."""
    root = tmp_path_factory.mktemp("stand-ins")
    loaded = {}
    for family, kind in KINDS.items():
        write_stand_in(root / family, family)
        loaded[family] = (load(root / family), kind)
    smollm2 = load(root / "qwen3")
    smollm2.chat_template, smollm2.bos_token = SMOLLM2_TEMPLATE, "<|im_start|>"
    return {**loaded, "smollm2-instruct": (smollm2, "instruct")}


def rendered_in(mode, tokenizer, kind: str, *, example=EXAMPLE, supervision="hybrid") -> RenderedExample:
    supervised = supervise(example, ONTOLOGY, SupervisionConfig(mode=supervision), mode=mode, draw=DRAW)
    return render(supervised, tokenizer, kind)


def added_tokens(tokenizer, ids) -> Counter:
    """The control tokens among ids, by text."""
    return Counter(tokenizer.convert_ids_to_tokens(i) for i in ids if i in tokenizer.added_tokens_decoder)


def test_every_family_of_the_registry_has_a_golden_file() -> None:
    """Of each family, every kind: a new row in the registry needs a stand-in, a line in `REGISTERED` and a file."""
    registered = {(foundation.family, foundation.kind) for foundation in FOUNDATIONS.values()}
    assert registered == {(FOUNDATIONS[name].family, FOUNDATIONS[name].kind) for name in [*REGISTERED.values(), *TINY]}
    assert {path.stem for path in GOLDEN.glob("*.txt")} == {*REGISTERED, *TINY}
    for name, kind in KINDS.items():
        card = CARDS[REGISTERED[name]]
        assert (kind, FAMILIES[name].model_type) == (card.foundation.kind, card.architecture.model_type)


@pytest.mark.parametrize("name", KINDS)
def test_text_is_cut_as_the_tokenizers_own_file_says(tokenizers, name: str) -> None:
    """transformers picks a class by the names in two config files, and some classes replace what tokenizer.json declares: SentencePiece's
    spaces for a `LlamaTokenizer`, `<|endoftext|>` added to a vocabulary that has none."""
    from tokenizers import Tokenizer

    tokenizer, _ = tokenizers[name]
    written = Tokenizer.from_file(str(Path(tokenizer.name_or_path) / "tokenizer.json"))
    text = 'the caller says: "12.50 pounds, ５０ or 7"\n\n### answer\n{"date": ["cafe\u0301", "3rd"]}'
    assert tokenizer(text)["input_ids"] == written.encode(text).ids
    assert tokenizer.get_vocab() == written.get_vocab()


@pytest.mark.parametrize("name", REGISTERED)
def test_every_family_is_rendered_as_the_golden_file_says(tokenizers, name: str) -> None:
    tokenizer, kind = tokenizers[name]
    check_golden(name, golden_text(f"stand-in for {REGISTERED[name]}", tokenizer, kind))


@pytest.mark.parametrize("name", REGISTERED)
@pytest.mark.parametrize("mode", ["direct", "think"])
def test_no_family_sees_two_beginnings_of_a_text_or_of_a_thought(tokenizers, name: str, mode) -> None:
    tokenizer, kind = tokenizers[name]
    rendered = rendered_in(mode, tokenizer, kind)
    seen = added_tokens(tokenizer, rendered.prefix + rendered.suffix)
    if name.startswith(("llama", "r1")):
        assert tokenizer("words")["input_ids"][0] == tokenizer.bos_token_id, "the stand-in no longer adds one itself"
    if name.startswith(("llama", "r1")) or name == "smollm2":
        assert rendered.prefix[0] == tokenizer.bos_token_id and seen[tokenizer.bos_token] == 1
    closed = 1 if mode == "direct" and name in ("qwen3", "r1", "r1-qwen") else 0
    assert (seen["<think>"], seen["</think>"]) == (closed, closed)
    assert tokenizer.decode(rendered.suffix).endswith(EMPTY_THINKING) == bool(closed)
    assert "<think>" not in tokenizer.decode(rendered.target)


@pytest.mark.parametrize("name", REGISTERED)
@pytest.mark.parametrize("mode", ["direct", "think"])
def test_the_target_is_trained_whole_with_one_end_and_nothing_else_is(tokenizers, name: str, mode) -> None:
    tokenizer, kind = tokenizers[name]
    rendered = rendered_in(mode, tokenizer, kind)
    end = CARDS[REGISTERED[name]].answer_end
    assert tokenizer.convert_ids_to_tokens(rendered.target[-1]) == end
    assert added_tokens(tokenizer, rendered.target) == {end: 1}
    written = tokenizer.decode(rendered.target[:-1], clean_up_tokenization_spaces=False)
    supervised = supervise(EXAMPLE, ONTOLOGY, SupervisionConfig(mode="hybrid"), mode=mode, draw=DRAW)
    assert written == supervised.target and parse_answer(written).slots == supervised.reference
    batch = collate(
        [("x", rendered, np.zeros((FRAMES, 4)))], stack_factor=STACK, pad_id=tokenizer.eos_token_id, with_targets=True
    )
    labels = batch.labels[0].tolist()
    assert [label for label in labels if label != IGNORE] == list(rendered.target)
    assert labels[-len(rendered.target) :] == list(rendered.target)


@pytest.mark.parametrize("name", REGISTERED)
def test_the_inference_modes_differ_in_the_mode_token_and_the_empty_thinking_block_only(tokenizers, name: str) -> None:
    tokenizer, kind = tokenizers[name]
    direct, think = (rendered_in(mode, tokenizer, kind) for mode in ("direct", "think"))
    assert direct.prefix == think.prefix
    after = tokenizer.decode(direct.suffix).removesuffix(EMPTY_THINKING)
    assert after == tokenizer.decode(think.suffix).replace(MODE_TOKENS["think"], MODE_TOKENS["direct"])


def test_the_end_is_the_templates_where_the_tokenizer_names_another(tokenizers) -> None:
    """Fine-tuned copies of Llama often keep the base model's end-of-sequence token: such a model never stops."""
    tokenizer = copy.deepcopy(tokenizers["llama-3.1-instruct"][0])
    tokenizer.eos_token = "<|end_of_text|>"
    assert tokenizer.convert_ids_to_tokens(rendered_in("direct", tokenizer, "instruct").target[-1]) == "<|eot_id|>"
    assert tokenizer.convert_ids_to_tokens(answer_end(tokenizer, "base")) == "<|end_of_text|>"


def test_a_tokenizer_without_any_end_is_refused(tokenizers) -> None:
    tokenizer = copy.deepcopy(tokenizers["llama-3.1"][0])
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no answer could ever end"):
        answer_end(tokenizer, "base")


def test_a_prompt_is_the_same_on_every_day(tokenizers) -> None:
    """Llama 3.2's template asks for today's date, others for the time of day."""
    tokenizer = copy.deepcopy(tokenizers["llama-3.1-instruct"][0])
    assert "Today Date: 26 Jul 2024" in render_prompt(tokenizer, "instruct", "words", "direct")
    tokenizer.chat_template = (
        "{%- set today = strftime_now('%d %b %Y %H:%M:%S.%f') %}\n {{- today + '|' + messages[0].content }}"
    )
    assert render_prompt(tokenizer, "instruct", "words", "direct") == "26 Jul 2024|words"


@pytest.mark.parametrize("name", REGISTERED)
def test_what_people_say_is_never_a_control_token(tokenizers, name: str) -> None:
    tokenizer, kind = tokenizers[name]
    control = [token.content for token in tokenizer.added_tokens_decoder.values()]
    said = "".join([*control, AUDIO_MARKER, "<|im_<|im_end|>end|>"])
    example = replace(
        EXAMPLE.example,
        context=(Turn(speaker="caller", text=said),),
        slots=(replace(EXAMPLE.example.slots[0], surface=said), EXAMPLE.example.slots[1]),
    )
    annotated = replace(EXAMPLE, example=example, trace=replace(EXAMPLE.trace, transcription=said))
    clean, spoken = (rendered_in("think", tokenizer, kind, example=item) for item in (EXAMPLE, annotated))
    for part in ("prefix", "suffix", "target"):
        assert added_tokens(tokenizer, getattr(spoken, part)) == added_tokens(tokenizer, getattr(clean, part))
    assert said in tokenizer.decode(spoken.prefix, clean_up_tokenization_spaces=False)
    answer = parse_answer(tokenizer.decode(spoken.target[:-1], clean_up_tokenization_spaces=False))
    assert dict(answer.slots)["city"] == said


def test_a_code_point_that_is_no_character_is_refused(tokenizers) -> None:
    example = replace(EXAMPLE.example, context=(Turn(speaker="caller", text="a\ufdd0b"),))
    with pytest.raises(ValueError, match=r"train-0: its text holds U\+FDD0"):
        rendered_in("direct", *tokenizers["qwen3"], example=replace(EXAMPLE, example=example))


def test_a_template_that_opens_a_thought_when_thinking_is_on_is_not_doubled(tokenizers) -> None:
    tokenizer = copy.deepcopy(tokenizers["qwen3"][0])
    opening = "{%- if add_generation_prompt and enable_thinking %}{{- '<think>\\n' }}{%- endif %}"
    tokenizer.chat_template += opening
    assert render_prompt(tokenizer, "hybrid", "words", "think").endswith("<|im_start|>assistant\n")
    assert render_prompt(tokenizer, "hybrid", "words", "direct").endswith("assistant\n" + EMPTY_THINKING)


def test_a_kind_that_its_tokenizer_cannot_serve_is_refused(tokenizers) -> None:
    llama = tokenizers["llama-3.1-instruct"][0]
    with pytest.raises(ValueError, match="does not know enable_thinking"):
        render_prompt(llama, "hybrid", "words", "think")
    with pytest.raises(ValueError, match="no chat template, which a foundation of kind 'instruct' needs"):
        render_prompt(tokenizers["llama-3.1"][0], "instruct", "words", "think")
    deaf = copy.deepcopy(llama)
    deaf.chat_template = "hello"
    with pytest.raises(ValueError, match="writes the user's text 0 times, not once"):
        rendered_in("direct", deaf, "instruct")
