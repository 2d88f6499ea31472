"""An export is all that another team needs: it loads in a fresh process, in PEFT too, and answers as the trial did, to the letter."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from corpus_samples.synthetic import REF
from data.manifest import open_corpus
from data.records import INFERENCE_MODES
from data.supervision import INSTRUCTIONS, SupervisionConfig, supervise
from model.checkpoint_folder import newest_checkpoint
from model.configs import AdapterConfig, Budget, EncoderConfig, EvaluationConfig, Execution, OptimConfig, TrialConfig
from model.export import open_export
from model.exported import load_export
from model.foundations import FOUNDATIONS
from model.questions import request_prompt
from model.speech_llm import load_foundation
from model.trial import run_trial
from orchestrator.identity import fingerprint, trial_id, write_config
from orchestrator.layout import Store, TrialFolder
from orchestrator.results import Failure, TrialResult, write_failure, write_result
from orchestrator.slotgrid_cli import main

ROOT = Path(__file__).parents[2]
CONFIG = TrialConfig(
    foundation=FOUNDATIONS["tiny-hybrid"],
    supervision=SupervisionConfig(mode="hybrid", value_form="spoken"),
    corpus=REF,
    budget=Budget(steps=6, batch_size=4),
    encoder=EncoderConfig(name="whisper-base-random"),
    adapter=AdapterConfig(hidden_width=64),
    optim=OptimConfig(precision="fp32", lora_learning_rate=1e-3),
    evaluation=EvaluationConfig(max_new_tokens_direct=24, max_new_tokens_think=40),
)


@pytest.fixture(scope="module")
def trial(corpus_root: Path, trial_paths: Callable, tmp_path_factory: pytest.TempPathFactory) -> TrialFolder:
    """A finished trial in a store, as a grid leaves it."""
    store = Store(tmp_path_factory.mktemp("store"))
    folder = store.runs("grid", "smoke").trial(trial_id(CONFIG))
    store.corpora.mkdir(parents=True)
    store.corpus(REF).symlink_to(corpus_root)
    write_config(folder.config, CONFIG)
    outcome = run_trial(CONFIG, Execution(), trial_paths(folder.path))
    assert outcome is not None
    result = TrialResult(
        trial_id=trial_id(CONFIG),
        fingerprint=fingerprint(CONFIG),
        foundation=CONFIG.foundation.name,
        kind=CONFIG.foundation.kind,
        mode=CONFIG.mode,
        seed=CONFIG.seed,
        headline_inference_mode=outcome.headline_inference_mode,
        scores=outcome.scores,
        validation_scores=outcome.validation_scores,
    )
    write_result(folder, result)
    return folder


def run_of(trial: TrialFolder) -> Path:
    return trial.path.parents[1]


@pytest.fixture(scope="module")
def export(trial: TrialFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given") / "export"
    assert main(["export", str(run_of(trial)), "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def writable(trial: TrialFolder, tmp_path: Path) -> TrialFolder:
    """A copy of the trial that a test may damage."""
    (tmp_path / "store" / "prepared").mkdir(parents=True)
    shutil.copytree(run_of(trial).parent / "prepared", tmp_path / "store" / "prepared", dirs_exist_ok=True)
    copied = tmp_path / "store" / "grid-smoke" / "trials" / trial.path.name
    shutil.copytree(trial.path, copied)
    return TrialFolder(copied)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    return error


def test_a_fresh_process_gives_the_trials_answers_to_the_letter(
    writable: TrialFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One stored answer is changed, so that the comparison is seen to compare."""
    stored = writable.path / "predictions-direct.jsonl"
    first, *rest = stored.read_text().splitlines(keepends=True)
    row = json.loads(first)
    stored.write_text(json.dumps({**row, "output_text": row["output_text"] + "."}) + "\n" + "".join(rest))
    out = tmp_path / "out"
    assert main(["export", str(run_of(writable)), "--trial", writable.path.name, "--out", str(out), "--verify"]) == 1
    told = capsys.readouterr().out
    assert "direct: 9 of 10 answers are" in told and "think: 10 of 10 answers are" in told


def test_the_same_trial_gives_the_same_bytes(export: Path, trial: TrialFolder, tmp_path: Path) -> None:
    assert main(["export", str(run_of(trial)), "--out", str(tmp_path / "again")]) == 0
    names = sorted(path.relative_to(export).as_posix() for path in export.rglob("*") if path.is_file())
    assert names == sorted([*json.loads((export / "export.json").read_text())["files"], "export.json"])
    assert all((export / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)
    assert {Path(name).suffix for name in names} <= {".json", ".safetensors", ".md", ".jinja"}


def test_a_corpus_gives_the_trials_predictions_file(
    export: Path, trial: TrialFolder, corpus_root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    ask = [
        "predict",
        str(export),
        "--manifest",
        str(corpus_root / "manifest.jsonl"),
        "--cache",
        str(tmp_path / "cache"),
    ]
    assert main([*ask, "--mode", "direct", "--out", str(out)]) == 0
    assert out.read_bytes() == (trial.path / "predictions-direct.jsonl").read_bytes()
    assert main([*ask, "--mode", "direct", "--split", "test_domain", "--out", str(out)]) == 0
    assert [json.loads(line)["split"] for line in out.read_text().splitlines()] == ["test_domain"]


def test_peft_loads_the_lora_as_it_was_trained(export: Path, trial: TrialFolder) -> None:
    from peft import PeftModel

    checkpoint = newest_checkpoint(trial.checkpoints)
    assert checkpoint is not None
    trained = load_file(checkpoint / "trainable.safetensors")
    llm = PeftModel.from_pretrained(load_foundation(CONFIG.foundation, "fp32"), str(export))
    loaded = {f"llm.{name}": value for name, value in llm.state_dict().items() if "lora_" in name}
    assert loaded.keys() == {name for name in trained if "lora_" in name}
    assert all(torch.equal(value, trained[name]) for name, value in loaded.items())
    assert llm.peft_config["default"].lora_alpha == CONFIG.lora.alpha
    adapter = load_file(export / "speech_adapter.safetensors")
    assert all(torch.equal(value, trained[f"adapter.{name}"]) for name, value in adapter.items())
    assert len(adapter) + len(loaded) == len(trained)


def test_the_export_tells_versions_budgets_scores_and_limits(export: Path, trial: TrialFolder) -> None:
    index = json.loads((export / "export.json").read_text())
    result = json.loads(trial.result.read_text())
    assert (index["prompt_version"], index["metric_version"]) == (CONFIG.supervision.prompt_version, 2)
    assert index["inference_modes"] == {"direct": {"max_new_tokens": 24}, "think": {"max_new_tokens": 40}}
    assert index["scores"] == result["scores"]
    assert index["encoder"]["padding"] == "none" and len(index["encoder"]["weights_sha256"]) == 64
    assert (export / "trial.json").read_bytes() == trial.config.read_bytes()
    card = (export / "README.md").read_text()
    assert {"## Trained on", "## Scores", "## How to load it", "## Limits", "## Licences"} <= set(card.splitlines())
    assert f"**{result['scores']['eval/partial_f1']:.4f}**" in card and "metric version 2" in card


def test_one_file_and_a_list_give_slots_that_score_reads(
    export: Path, corpus_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = open_corpus(corpus_root).split("test")[0].example
    audio, label = corpus_root / example.audio, example.slots[0].label
    ask = ["predict", str(export), "--mode", "direct", "--cache", str(tmp_path)]
    assert main([*ask, "--audio", str(audio), "--labels", label]) == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert row["id"] == audio.stem and isinstance(row["slots"], dict) and row["answer"]

    samples, rate = soundfile.read(audio)
    soundfile.write(tmp_path / "call.wav", np.repeat(samples, 2), rate * 2)
    lines = [
        {"id": "a", "audio": "call.wav", "labels": [label], "context": [{"speaker": "agent", "text": "which one"}]},
        {"id": "b", "audio": "call.wav"},
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    answers = tmp_path / "answers.jsonl"
    assert main([*ask, "--manifest", str(tmp_path / "list.jsonl"), "--labels", label, "--out", str(answers)]) == 0
    assert [json.loads(line)["id"] for line in answers.read_text().splitlines()] == ["a", "b"]
    gold = [{"id": "a", "slots": {label: "x"}}, {"id": "b", "slots": {label: "y"}}]
    (tmp_path / "gold.jsonl").write_text("".join(json.dumps(line) + "\n" for line in gold))
    capsys.readouterr()
    assert main(["score", "--predictions", str(answers), "--references", str(tmp_path / "gold.jsonl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answered"] == 2


@pytest.mark.parametrize("mode", ["regular", "reasoning", "hybrid"])
@pytest.mark.parametrize("described", [True, False])
def test_a_request_is_worded_as_in_training(corpus_root: Path, mode, described: bool) -> None:
    corpus = open_corpus(corpus_root)
    config = SupervisionConfig(mode=mode, label_descriptions=described, max_context_turns=2)
    labels = corpus.ontology.labels()
    for annotated in corpus.examples:
        for inference_mode in INFERENCE_MODES[config.mode]:
            drawn = supervise(annotated, corpus.ontology, config, mode=inference_mode, draw="x", with_target=False)
            asked = [labels[name] for name in drawn.asked_labels]
            prompts = {
                request_prompt(asked, annotated.example.context[start:], config, inference_mode, instruction)
                for start in range(len(annotated.example.context) + 1)
                for instruction in INSTRUCTIONS
            }
            assert drawn.prompt in prompts


def test_a_trial_that_is_not_finished_is_refused_with_the_reason(
    writable: TrialFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ("export", run_of(writable), "--trial", writable.path.name, "--out", tmp_path / "out")
    newest = newest_checkpoint(writable.checkpoints)
    assert newest is not None
    (newest / "commit.json").rename(tmp_path / "commit.json")
    assert "no whole checkpoint of the last step, 6" in refused(capsys, *ask)
    writable.result.unlink()
    assert "is interrupted (step 6 of 6)" in refused(capsys, *ask)
    attempt = writable.attempt(1)
    attempt.path.mkdir(parents=True)
    write_failure(attempt, Failure(cause="out-of-memory", error="OutOfMemoryError", message="8 GB"))
    assert "is failed (out-of-memory: 8 GB)" in refused(capsys, *ask)
    assert "no trial of that name" in refused(capsys, *ask[:3], "nobody.regular.seed0", *ask[4:])
    assert not (tmp_path / "out").exists()


def test_an_export_never_overwrites(export: Path, trial: TrialFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is something already" in refused(capsys, "export", run_of(trial), "--out", export)


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "speech_adapter.safetensors", "trial.json", "tokenizer/tokenizer.json"]
)
def test_a_damaged_export_is_refused(export: Path, tmp_path: Path, name: str) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(export, damaged)
    content = bytearray((damaged / name).read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: differs from what was exported"):
        open_export(damaged)
    (damaged / name).unlink()
    with pytest.raises(ValueError, match=f"{name}: is missing"):
        open_export(damaged)


def test_wrong_questions_are_told_before_a_model_is_loaded(
    export: Path, corpus_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audio = next((corpus_root / "audio").rglob("*.flac"))
    ask = ("predict", export, "--audio", audio)
    assert "--labels" in refused(capsys, *ask)
    assert "'shoe size' is not in the ontology" in refused(capsys, *ask, "--labels", "shoe size")
    assert "--split" in refused(capsys, *ask, "--labels", "a", "--split", "test")
    assert "no such audio file" in refused(capsys, "predict", export, "--audio", "no.wav", "--labels", "a")
    assert "is missing, so this is no finished export" in refused(capsys, "predict", tmp_path, "--audio", "a")
    for line, told in (
        ({"labels": ["a"]}, "line 1, field audio"),
        ({"audio": "a.wav"}, "line 1, field labels"),
        ({"audio": "a.wav", "labels": ["a"], "label": "b"}, "line 1, field label:"),
        ({"audio": "a.wav", "labels": ["a"], "context": ["hello"]}, "line 1, field context"),
    ):
        (tmp_path / "list.jsonl").write_text(json.dumps(line) + "\n")
        assert told in refused(capsys, "predict", export, "--manifest", tmp_path / "list.jsonl")


def test_a_mode_of_another_supervision_and_another_foundation_are_refused(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    regular = replace(CONFIG, supervision=SupervisionConfig(mode="regular"))
    with pytest.raises(ValueError, match="asked in direct, not think"):
        replace(open_export(export), config=regular).check_mode("think")
    other = ROOT / "model" / "tiny_foundations" / "tiny-base"
    with pytest.raises(ValueError, match="does not hold the weights that"):
        load_export(export, cache=tmp_path, foundation=other)
