"""What is in a corpus: counts that can be checked by hand, a sheet that can be looked at, and the command around them."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from data.annotation.trace_rules import rule_trace
from data.manifest import Corpus, open_corpus
from data.readers.source import plain_slot
from data.records import AnnotatedExample, Example, Label, Ontology, Split, Turn
from model.configs import Foundation
from model.foundations import FOUNDATIONS
from orchestrator.commands.stats import add_command
from orchestrator.corpus_sheet import draw_sheet
from orchestrator.corpus_stats import Spread, audio_tokens, measure_corpus, measure_spread

TINY = [foundation for foundation in FOUNDATIONS.values() if foundation.name == "tiny-hybrid"]
LABELS = tuple(Label(name=name, description=f"the {name}") for name in ("city", "day", "never_filled"))


def example(
    number: int, split: Split, transcript: str, *slots: tuple[str, str], seconds: float = 2.0, turns: int = 0
) -> Example:
    return Example(
        id=f"call-{number}",
        split=split,
        domain="travel" if number % 2 else "rail",
        audio="audio/a.flac",
        audio_sha256="0" * 64,
        duration_s=seconds,
        transcript=transcript,
        slots=tuple(plain_slot(label, value) for label, value in slots),
        context=(Turn(speaker="agent", text="where to"),) * turns,
        speaker=f"voice-{number % 2}" if split == "train" else "",
    )


def corpus(*examples: Example, traces: bool = True) -> Corpus:
    rows = tuple(AnnotatedExample(example=row, trace=rule_trace(row) if traces else None) for row in examples)
    ontology = Ontology(domains={"travel": LABELS, "rail": LABELS[:2]})
    return Corpus(root=Path("corpus"), name="calls", fingerprint="f00", ontology=ontology, examples=rows)


SMALL = corpus(
    example(1, "train", "to denver on monday", ("city", "denver"), ("day", "monday"), seconds=1.0, turns=2),
    example(2, "train", "denver please", ("city", "Denver"), seconds=3.0),
    example(3, "train", "hello", seconds=5.0),
    example(4, "test", "denver or york", ("city", "denver"), ("city", "york"), seconds=3600.0),
    example(5, "test", "york", ("city", "york"), turns=1),
)


def test_what_is_counted_by_hand() -> None:
    stats = measure_corpus(SMALL, foundations=[])
    assert (stats.examples, stats.with_trace, stats.sample, stats.tokens) == (5, 5, 5, ())
    train, test = stats.splits
    assert (train.split, train.examples, train.speakers, dict(train.domains)) == (
        "train",
        3,
        2,
        {"travel": 2, "rail": 1},
    )
    assert train.duration_s == Spread(
        count=3, mean=3.0, least=1.0, p05=1.2, p25=2.0, median=3.0, p75=4.0, p95=4.8, most=5.0
    )
    assert (train.slots, train.values, train.unseen_values, train.unseen_slots) == (3, 2, None, None)
    assert (train.context_turns, train.slots_per_example) == ({0: 2, 2: 1}, {0: 1, 1: 1, 2: 1})
    assert (test.speakers, test.hours) == (0, 1.0006)
    assert (train.train_speakers, test.train_speakers) == (None, 0)
    assert (test.slots, test.values, test.unseen_values, test.unseen_slots) == (3, 2, 1, 2)
    assert stats.train_value_counts == {1: 1, 2: 1}, "monday once, denver twice whatever its case"
    assert [(label.label, label.count, label.values, label.domains) for label in stats.labels] == [
        ("city", 5, 2, ("travel", "rail")),
        ("day", 1, 1, ("travel", "rail")),
        ("never_filled", 0, 0, ("travel",)),
    ]


def test_audio_tokens_are_those_that_the_adapter_makes() -> None:
    assert audio_tokens(example(1, "train", "a", seconds=8.0)) == 50  # 6.25 a second
    assert audio_tokens(example(1, "train", "a", seconds=0.02)) == 1


def test_spread_interpolates() -> None:
    assert measure_spread([4]) == Spread(
        count=1, mean=4.0, least=4.0, p05=4.0, p25=4.0, median=4.0, p75=4.0, p95=4.0, most=4.0
    )
    assert measure_spread([1, 2, 3, 10]).median == 2.5


def test_tokens_are_those_of_the_targets_that_are_trained(corpus_root: Path) -> None:
    from data.rendering import render
    from data.supervision import SupervisionConfig, supervise
    from model.speech_llm import load_tokenizer

    spoken = open_corpus(corpus_root)
    (tokens,) = measure_corpus(spoken, foundations=TINY).tokens
    tokenizer, config = load_tokenizer(TINY[0]), SupervisionConfig(mode="reasoning")
    lengths = [
        len(render(supervise(row, spoken.ontology, config, mode="think", draw="any"), tokenizer, "hybrid").target)
        for row in spoken.examples
    ]
    assert tokens.think_target == measure_spread(lengths)
    assert tokens.direct_target and tokens.prompt and tokens.think_target
    assert tokens.direct_target.most < tokens.think_target.least
    few = measure_corpus(spoken, sample=3, foundations=TINY)
    assert few.sample == 3 and few.tokens[0].prompt and few.tokens[0].prompt.count == 3
    assert few == measure_corpus(spoken, sample=3, foundations=TINY)


def test_a_tokenizer_that_is_not_here_is_said_and_not_downloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    absent = Foundation(
        name="far", kind="base", source="nobody/far", revision="main", family="far", parameters=1_000_000
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    near, far = measure_corpus(SMALL, foundations=[*TINY, absent]).tokens
    assert near.direct_target and far.foundation == "far"
    assert far.prompt is far.direct_target is far.think_target is None


def test_a_corpus_without_traces_has_answers_only() -> None:
    stats = measure_corpus(corpus(*(row.example for row in SMALL.examples), traces=False), foundations=TINY)
    assert stats.with_trace == 0 and stats.tokens[0].direct_target and stats.tokens[0].think_target is None


@pytest.mark.parametrize(
    "odd",
    [
        SMALL,
        corpus(example(1, "test", "hello"), traces=False),  # no train split, no slot, no label filled
        corpus(
            *(example(n, "train", "a $5 b", *[("city", f"v{i}") for i in range(n)], seconds=2.0) for n in range(12))
        ),
    ],
    ids=["small", "nothing", "many slots, one duration"],
)
def test_the_sheet_can_be_drawn_of_any_corpus(odd: Corpus, tmp_path: Path) -> None:
    from matplotlib.image import imread

    stats = measure_corpus(odd, foundations=TINY)
    draw_sheet(tmp_path / "stats.png", odd, stats)
    height, width, _ = imread(tmp_path / "stats.png").shape
    assert width > 1500 and height > 1000


def call(*arguments: str) -> int:
    """The command as `slotgrid data` has it."""
    parser = argparse.ArgumentParser()
    add_command(parser.add_subparsers(required=True))
    options = parser.parse_args(["stats", *arguments])
    code: int = options.act(options)
    return code


def test_the_command_prints_tables_and_writes_both_files(
    corpus_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(str(corpus_root), "--out", str(tmp_path / "look"), "--sample", "4") == 0
    out = capsys.readouterr().out
    assert "test_domain" in out and "audio tokens" in out and "tokens of 4 examples" in out
    assert "not here, so not counted: " in out
    assert f"next: look at {tmp_path / 'look' / 'stats.png'}" in out.splitlines()[-1]
    stats = json.loads((tmp_path / "look" / "stats.json").read_text())
    assert stats["examples"] == len(open_corpus(corpus_root).examples) and stats["sample"] == 4
    sheet = (tmp_path / "look" / "stats.png").read_bytes()
    assert call(str(corpus_root), "--out", str(tmp_path / "look"), "--sample", "4", "--json") == 0
    assert json.loads(capsys.readouterr().out) == stats
    assert (tmp_path / "look" / "stats.png").read_bytes() == sheet, "the same corpus, the same picture"


def test_the_command_refuses_a_sample_of_nothing(corpus_root: Path) -> None:
    with pytest.raises(ValueError, match="--sample: 0 is too few; give at least 1"):
        call(str(corpus_root), "--sample", "0")


def test_importing_the_command_stays_light() -> None:
    heavy = {"torch", "transformers", "matplotlib", "numpy", "pyarrow", "huggingface_hub", "openai"}
    code = f"import sys, orchestrator.commands.stats; print(sorted({heavy!r} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
