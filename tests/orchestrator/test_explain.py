"""`explain TRIAL`: what a user sees of a trial before anything is prepared or trained."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data.manifest import open_corpus
from model.configs import Foundation, TrialConfig
from model.foundations import FOUNDATIONS
from orchestrator.cli import main
from orchestrator.experiment import Experiment
from orchestrator.scales import Scale


def experiment(*foundations: Foundation) -> Experiment:
    def declare(scale: Scale, seeds: int) -> list[TrialConfig]:
        chosen = foundations or scale.foundations
        return [scale.trial(foundation=foundation, mode=mode, seed=0) for foundation in chosen for mode in scale.modes]

    return Experiment(name="grid", hypothesis="It explains itself.", declare=declare)


@pytest.fixture
def explain(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Run `explain` on a store of the test's own: exit code, standard output, standard error. Nothing may be written."""

    def explain(*arguments: str, foundations: tuple[Foundation, ...] = ()) -> tuple[int, str, str]:
        store = tmp_path / "store"
        code = main(experiment(*foundations), ["explain", *arguments, "--scale", "smoke", "--store", str(store)])
        assert not store.exists(), "explaining wrote something"
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return explain


def test_a_trial_is_explained_before_anything_is_prepared(explain: Callable) -> None:
    code, out, _ = explain("tiny-hybrid.hybrid.seed0")
    lines = [line.rstrip() for line in out.splitlines()]
    assert code == 0
    assert "of the generator, without audio: no corpus is prepared yet" in lines[1]
    assert lines[2] == (
        "audio: 5.00 s, assumed until there is audio -> 250 encoder frames -> 32 embeddings (8 frames each)"
    )
    assert lines[4].startswith("stops at: <|end|> (2), which is trained")
    direct = lines[lines.index(next(line for line in lines if line.startswith("direct: "))) :]
    assert "  A | 32 audio embeddings" in direct and "  M | </think>↵" in direct
    targets = [line for line in lines if line.startswith("  T | ")]
    assert len(targets) == 2 and all(line.endswith("<|end|>") for line in targets)
    assert targets[0].startswith('  T | {"') and targets[1].startswith("  T | <thinking>i hear: ")
    assert any(line.startswith("data (to be made): train 40, ") for line in lines)
    assert any(line.startswith("schedule: 12 steps of 4 examples, 0.6 passes; ") for line in lines)


def test_on_a_corpus_an_example_of_its_own_is_shown(explain: Callable, corpus_root: Path) -> None:
    code, out, _ = explain("tiny-instruct.hybrid.seed0", "--json", "--corpus", str(corpus_root))
    shown = json.loads(out)
    first = open_corpus(corpus_root).split("train")[0].example
    assert code == 0
    assert (shown["example_id"], shown["data"]["prepared"], shown["gaps"]) == (first.id, True, [])
    assert shown["audio"]["seconds"] == first.duration_s and not shown["audio"]["assumed"]
    direct, think = shown["rendering"]["examples"]
    assert (direct["mode"], think["mode"]) == ("direct", "think")
    assert first.transcript in "".join(token["text"] + " " for token in think["tokens"] if token["mark"] == "trained")
    assert think["columns"]["audio"] == shown["audio"]["embeddings"] == -(-shown["audio"]["encoder_frames"] // 8)
    marks = [token["mark"] for token in think["tokens"]]
    assert marks.count("audio") == 1 and marks.count("trained") == think["columns"]["trained"]
    assert shown["data"]["train_with_trace"] == shown["data"]["splits"]["train"] == 10


def test_the_parameter_table_is_what_trains(explain: Callable) -> None:
    import torch

    from model.configs import AdapterConfig, LoRAConfig
    from model.speech_llm import build_speech_llm

    _, out, _ = explain("tiny-instruct.regular.seed0", "--json")
    table = json.loads(out)["parameters"]
    model = build_speech_llm(
        FOUNDATIONS["tiny-instruct"],
        state_mean=torch.zeros(512),
        state_std=torch.ones(512),
        adapter=AdapterConfig(hidden_width=512),
        lora=LoRAConfig(),
        precision="fp32",
        seed=0,
    )
    sizes = {name: parameter.numel() for name, parameter in model.trainable_parameters().items()}
    assert table["trained"] == sum(sizes.values())
    assert table["parts"]["speech adapter"] == sum(size for name, size in sizes.items() if name.startswith("adapter."))
    assert table["parts"]["LoRA q_proj"] == sum(size for name, size in sizes.items() if "q_proj" in name)
    assert table["frozen"] == FOUNDATIONS["tiny-instruct"].parameters


def test_a_local_checkpoint_shows_its_own_format_and_every_end(explain: Callable, tmp_path: Path) -> None:
    from stand_ins.hub import write_stand_in

    llama = write_stand_in(tmp_path / "llama", "llama-3.1-instruct")
    code, out, _ = explain(f"{llama.name}.hybrid.seed0", foundations=(llama,))
    assert code == 0
    assert "  M | Today Date: 26 Jul 2024↵\n" in out
    assert "stops at: <|eot_id|> (" in out and "also at <|end_of_text|> (" in out and "<|eom_id|> (" in out
    assert out.count("<|eot_id|>\n") == 2, "each target ends with it"
    _, out, _ = explain(f"{llama.name}.hybrid.seed0", "--json", foundations=(llama,))
    (end, number), *others = json.loads(out)["rendering"]["stops_at"]
    assert end == "<|eot_id|>" and len(others) == 2
    assert all(example["tokens"][-1]["id"] == number for example in json.loads(out)["rendering"]["examples"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ((), "error: explain: name a trial, e.g. tiny-instruct.regular.seed0; `plan` lists them\n"),
        (
            ("tiny-hybrd.hybrid",),
            "error: explain: there is no trial 'tiny-hybrd.hybrid'; the nearest are tiny-hybrid.hybrid.seed0, ",
        ),
    ],
)
def test_an_unknown_trial_is_answered_with_the_nearest(explain: Callable, name: tuple[str, ...], message: str) -> None:
    code, out, err = explain(*name)
    assert (code, out) == (2, "") and err.startswith(message) and err.count("\n") == 1


def test_what_cannot_be_shown_is_told_after_the_rest(explain: Callable) -> None:
    nobody = Foundation(
        name="nobody", kind="instruct", source="nobody/nothing", revision="main", family="none", parameters=1
    )
    code, out, err = explain("nobody.regular.seed0", foundations=(nobody,))
    assert code == 2 and "schedule: 12 steps" in out
    assert "the dimensions of nobody/nothing are not known; add a card for it" in err
    assert "hf download nobody/nothing --revision main --include '*.j*'" in err and err.count("\n") == 1
    code, out, _ = explain("nobody.regular.seed0", "--json", foundations=(nobody,))
    assert code == 2 and json.loads(out)["rendering"] is None and len(json.loads(out)["gaps"]) == 2


def test_a_target_longer_than_the_budget_is_pointed_out(explain: Callable, tmp_path: Path) -> None:
    """A reasoning answer that is cut scores nothing and looks like a bad model."""
    from stand_ins.hub import write_stand_in

    qwen = write_stand_in(tmp_path / "qwen", "qwen3")
    _, out, _ = explain(f"{qwen.name}.hybrid.seed0", foundations=(qwen,))
    assert "this target is longer than the budget: evaluation would cut such an answer" in out
