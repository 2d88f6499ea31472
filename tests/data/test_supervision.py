"""Prompts, targets and draws: what the model is asked and trained to answer."""

import json

import pytest

from data.answers import parse_answer
from data.records import (
    AnnotatedExample,
    Example,
    InferenceMode,
    Justification,
    Label,
    Mention,
    Ontology,
    SlotValue,
    Trace,
    Turn,
)
from data.supervision import AUDIO_MARKER, INSTRUCTIONS, MODE_TOKENS, SupervisionConfig, answer_json, supervise

ONTOLOGY = Ontology(
    domains={
        "travel": tuple(Label(name=name, description=f"the {name}") for name in ("city", "date", "airline", "seat")),
        "bank": tuple(Label(name=name, description=f"the {name}") for name in ("amount", "card", "branch")),
    }
)


def _example(index: int = 0, trace: bool = True) -> AnnotatedExample:
    slots = (
        SlotValue(label="city", spoken="new york", surface="New York", canonical="new-york"),
        SlotValue(label="date", spoken="march third", surface="March 3rd", canonical="--03-03"),
    )
    example = Example(
        id=f"train-{index}",
        split="train",
        domain="travel",
        audio="audio/a.flac",
        audio_sha256="0" * 64,
        duration_s=3.0,
        transcript="to new york on march third",
        slots=slots,
        context=tuple(Turn(speaker="agent", text=f"turn {i}") for i in range(3)),
    )
    written = Trace(
        transcription=example.transcript,
        mentions=(Mention(label="city", text="new york"), Mention(label="date", text="march third")),
        justifications=(Justification(label="city", value="new york", because="the caller says to before it"),),
    )
    return AnnotatedExample(example=example, trace=written if trace else None)


def test_the_same_draw_gives_the_same_words_and_another_draw_others() -> None:
    config = SupervisionConfig(mode="regular")
    first = supervise(_example(), ONTOLOGY, config, mode="direct", draw="seed0/epoch0")
    again = supervise(_example(), ONTOLOGY, config, mode="direct", draw="seed0/epoch0")
    assert first == again
    prompts = {supervise(_example(), ONTOLOGY, config, mode="direct", draw=f"seed0/epoch{e}").prompt for e in range(20)}
    assert len(prompts) > 10


def test_everything_the_paper_draws_varies_within_its_bounds() -> None:
    config = SupervisionConfig(mode="regular")
    drawn = [supervise(_example(i), ONTOLOGY, config, mode="direct", draw="x") for i in range(400)]
    assert {len(d.asked_labels) - 2 for d in drawn} == {1, 2, 3, 4, 5}
    assert {d.prompt.count("agent: turn") for d in drawn} == {0, 1, 2, 3}
    assert {d.prompt.split("\n")[0] for d in drawn} == set(INSTRUCTIONS)
    for d in drawn:
        assert len(set(d.asked_labels)) == len(d.asked_labels)
        assert {"city", "date"} <= set(d.asked_labels)
        assert d.prompt.count(AUDIO_MARKER) == 1


def test_context_is_the_newest_turns_in_order() -> None:
    config = SupervisionConfig(mode="regular")
    for i in range(50):
        prompt = supervise(_example(i), ONTOLOGY, config, mode="direct", draw="x").prompt
        turns = [line for line in prompt.split("\n") if line.startswith("agent:")]
        assert turns == [f"agent: turn {n}" for n in range(3)][3 - len(turns) :]


def test_modes_share_the_draw_and_only_hybrid_prompts_carry_a_switch() -> None:
    hybrid = SupervisionConfig(mode="hybrid")
    direct, think = (supervise(_example(), ONTOLOGY, hybrid, mode=mode, draw="x") for mode in ("direct", "think"))
    assert direct.prompt.removesuffix(MODE_TOKENS["direct"]) == think.prompt.removesuffix(MODE_TOKENS["think"])
    for mode_name, mode in (("regular", "direct"), ("reasoning", "think")):
        plain = supervise(_example(), ONTOLOGY, SupervisionConfig(mode=mode_name), mode=mode, draw="x")
        assert not any(plain.prompt.endswith(token) for token in MODE_TOKENS.values())


@pytest.mark.parametrize("mode", ["direct", "think"])
@pytest.mark.parametrize("form", ["spoken", "surface", "canonical"])
def test_a_perfect_target_parses_back_to_the_reference(mode: InferenceMode, form: str) -> None:
    config = SupervisionConfig(mode="hybrid", value_form=form)
    supervised = supervise(_example(), ONTOLOGY, config, mode=mode, draw="x")
    answer = parse_answer(supervised.target)
    assert answer.slots == supervised.reference
    assert answer.thought == (mode == "think")
    assert not answer.parse_failure


def test_the_trace_is_written_in_the_papers_three_steps() -> None:
    target = supervise(
        _example(), ONTOLOGY, SupervisionConfig(mode="reasoning", value_form="spoken"), mode="think", draw="x"
    ).target
    heard = target.index("<thinking>I hear: to new york on march third.")
    mention = target.index("city: new york.")
    justification = target.index("city is new york because the caller says to before it.")
    assert heard < mention < justification < target.index("</thinking><response>{") < target.index("</response>")


def test_a_label_with_two_values_holds_a_list() -> None:
    assert json.loads(answer_json((("city", "rome"), ("date", "today"), ("city", "oslo")))) == {
        "city": ["rome", "oslo"],
        "date": "today",
    }


def test_thinking_without_a_trace_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"train-0: no reasoning trace.*slotgrid data annotate"):
        supervise(_example(trace=False), ONTOLOGY, SupervisionConfig(mode="reasoning"), mode="think", draw="x")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mode": "regula"}, "supervision.mode"),
        ({"mode": "regular", "value_form": "written"}, "supervision.value_form"),
        ({"mode": "regular", "max_distractors": 0}, "max_distractors"),
        ({"mode": "regular", "prompt_version": 99}, "prompt_version"),
    ],
)
def test_a_wrong_setting_is_named(fields: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SupervisionConfig(**fields)


def test_a_justified_value_is_written_as_the_answer_writes_it() -> None:
    target = supervise(_example(), ONTOLOGY, SupervisionConfig(mode="reasoning"), mode="think", draw="x").target
    assert "city: new york." in target
    assert "city is New York because" in target and '"city": "New York"' in target
