"""What makes two trials the same: fingerprints, ids, and the exact way through JSON and back."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from data.supervision import SupervisionConfig
from model.configs import (
    AdapterConfig,
    Budget,
    CorpusRef,
    EncoderConfig,
    EvaluationConfig,
    Foundation,
    LoRAConfig,
    OptimConfig,
    TrialConfig,
)
from orchestrator.identity import (
    changed_fields,
    config_from_json,
    config_to_json,
    fingerprint,
    json_fingerprint,
    read_config,
    trial_id,
    write_config,
)

ROOT = Path(__file__).parents[2]
TRIAL = TrialConfig(
    foundation=Foundation(
        name="qwen3-4b",
        kind="hybrid",
        source="Qwen/Qwen3-4B",
        revision="main",
        family="qwen3",
        parameters=4_022_468_096,
    ),
    supervision=SupervisionConfig(mode="hybrid", max_context_turns=3, max_distractors=5, prompt_version=1),
    corpus=CorpusRef(name="calls", fingerprint="0123"),
    budget=Budget(steps=100, batch_size=8),
    seed=3,
    encoder=EncoderConfig(name="whisper-base", padding="none"),
    adapter=AdapterConfig(stack_factor=8, hidden_width=2048),
    lora=LoRAConfig(r=32, alpha=128, dropout=0.0, target_modules="all-linear"),
    optim=OptimConfig(lora_learning_rate=1e-4, adapter_learning_rate=1e-3, weight_decay=0.01, precision="bf16"),
    evaluation=EvaluationConfig(max_new_tokens_direct=128, max_new_tokens_think=512, splits=("validation", "test")),
    metric_version=1,
)


def test_the_id_is_readable() -> None:
    assert trial_id(TRIAL) == "qwen3-4b.hybrid.seed3"


def test_an_id_never_leaves_its_folder() -> None:
    with pytest.raises(ValueError, match=r"foundation\.name: '\.\./x'"):
        trial_id(replace(TRIAL, foundation=replace(TRIAL.foundation, name="../x")))


def test_the_canonical_form_is_pinned() -> None:
    """Another value here would make every finished trial on every disk stale."""
    config = {"b": 1e-4, "a": [1, "ü"], "c": {"z": None, "y": True}}
    assert json_fingerprint(config) == "4eeabc501918442a5d8718a64731ac7b0388fc68e04ff949976fe22fa7bdec9a"


def test_a_fingerprint_is_the_same_in_another_process(tmp_path: Path) -> None:
    write_config(tmp_path / "config.json", TRIAL)
    code = (
        "import sys; from pathlib import Path; from orchestrator.identity import fingerprint, read_config; "
        "print(fingerprint(read_config(Path(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "config.json")]
    run = subprocess.run(
        command, cwd=ROOT, env={"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert run.stdout.strip() == fingerprint(TRIAL), run.stderr


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 4},
        {"budget": Budget(steps=101, batch_size=8)},
        {"optim": OptimConfig(lora_learning_rate=1.0000000001e-4)},
        {"evaluation": EvaluationConfig(max_new_tokens_think=511)},
        {"metric_version": 2},
        {"corpus": CorpusRef(name="calls", fingerprint="4567")},
        {"corpus": CorpusRef(name="calls", fingerprint="0123", traces="89")},
    ],
)
def test_everything_computed_enters_the_fingerprint(change: dict) -> None:
    assert fingerprint(replace(TRIAL, **change)) != fingerprint(TRIAL)


def test_the_way_to_json_and_back_is_exact(tmp_path: Path) -> None:
    write_config(tmp_path / "config.json", TRIAL)
    assert read_config(tmp_path / "config.json") == TRIAL
    assert config_from_json(json.loads(json.dumps(config_to_json(TRIAL)))) == TRIAL


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("optim", "precision"), "fp8", r"config\.optim\.precision: 'fp8'"),
        (("budget", "steps"), "100", r"config\.budget\.steps: '100' is not int"),
        (("budget", "steps"), True, r"config\.budget\.steps: True is not int"),
        (("budget", "steps"), -1, r"config\.budget: budget\.steps: must not be negative"),
        (("evaluation", "splits"), ["train", "nowhere"], r"config\.evaluation\.splits\[1\]: 'nowhere'"),
        (("lora", "rank"), 3, r"config\.lora\.rank: unknown field"),
        (("foundation",), None, r"config\.foundation: an object is expected"),
    ],
)
def test_a_damaged_config_names_its_field(path: tuple[str, ...], value: object, message: str) -> None:
    config = config_to_json(TRIAL)
    inner = config
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        config_from_json(config)


def test_a_missing_field_is_named() -> None:
    config = config_to_json(TRIAL)
    del config["foundation"]["revision"]
    with pytest.raises(ValueError, match=r"config\.foundation\.revision: missing field"):
        config_from_json(config)


def test_changed_fields_tell_old_and_new() -> None:
    old = config_to_json(TRIAL)
    old["optim"]["warmup_steps"] = 10  # an older version's field
    del old["lora"]["dropout"]
    new = replace(TRIAL, budget=Budget(steps=200, batch_size=8))
    assert changed_fields(old, new) == [
        "budget.steps: 100 -> 200",
        "lora.dropout: absent -> 0.0",
        "optim.warmup_steps: 10 -> absent",
    ]


def test_a_config_file_that_is_no_json_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"config": {\n oops')
    with pytest.raises(ValueError, match=r"config\.json: line 2: not JSON"):
        read_config(path)
