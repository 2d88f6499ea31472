"""A real pretrained LLM without a hub: SmolLM2-135M-Instruct from a package trains on the CPU, and its export answers as the trial did."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from model.smollm2_package import PIP_REMEDY, ensure_smollm2, packaged_gguf

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(packaged_gguf() is None, reason=f"the package with SmolLM2 is not installed: {PIP_REMEDY}"),
]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory):
    return ensure_smollm2(tmp_path_factory.mktemp("foundations"))


@pytest.fixture(scope="module")
def whisper_paths(corpus_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """`TrialPaths` over the small corpus with states of the real Whisper-base, in the places of a store."""
    from corpus_samples.synthetic import REF
    from data.encoder_states import AudioItem, write_encoder_states
    from data.executors import SerialExecutor
    from data.manifest import open_corpus
    from model.configs import EncoderConfig
    from model.encoder import encode_factory, state_key
    from model.trial import TrialPaths
    from model.whisper_weights import ensure_encoder_weights
    from orchestrator.layout import Store

    store = Store(tmp_path_factory.mktemp("store"))
    store.corpora.mkdir(parents=True)
    store.corpus(REF).symlink_to(corpus_root)
    corpus = open_corpus(corpus_root)
    weights = ensure_encoder_weights("whisper-base", store.encoders)
    key = state_key(EncoderConfig(), weights.sha256)
    items = [AudioItem(audio_sha256=e.example.audio_sha256, path=corpus.audio_path(e.example)) for e in corpus.examples]
    write_encoder_states(
        store.encoder_states,
        key=key,
        items=items,
        build_encode=encode_factory(EncoderConfig(), weights.path),
        executor=SerialExecutor(),
    )
    return lambda trial: (
        store.runs("grid", "smoke").trial(trial),
        TrialPaths(
            corpus=store.corpus(REF),
            encoder_states=store.encoder_states,
            encoder_key=key,
            output=store.runs("grid", "smoke").trial(trial).path,
        ),
    )


def test_the_conversion_is_a_model_that_speaks_english(smollm2) -> None:
    import torch

    from model.speech_llm import load_foundation, load_tokenizer

    tokenizer, llm = load_tokenizer(smollm2), load_foundation(smollm2, "fp32")
    assert sum(parameter.numel() for parameter in llm.parameters()) == smollm2.parameters
    text = "The call is on 19 March at 7:45, isn't it?\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        answer = llm.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.timeout(600)
def test_a_trial_learns_and_its_export_gives_its_answers(
    smollm2, whisper_paths: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from corpus_samples.synthetic import REF
    from data.supervision import SupervisionConfig
    from model.configs import Budget, EvaluationConfig, Execution, OptimConfig, TrialConfig
    from model.trial import run_trial
    from orchestrator.identity import fingerprint, trial_id, write_config
    from orchestrator.results import TrialResult, write_result
    from orchestrator.slotgrid_cli import main

    config = TrialConfig(
        foundation=smollm2,
        supervision=SupervisionConfig(mode="regular", label_descriptions=False, max_context_turns=0),
        corpus=REF,
        budget=Budget(steps=12, batch_size=4),
        optim=OptimConfig(precision="fp32", lora_learning_rate=1e-3),
        evaluation=EvaluationConfig(splits=("validation", "test"), max_new_tokens_direct=24),
    )
    folder, paths = whisper_paths(trial_id(config))
    write_config(folder.config, config)
    outcome = run_trial(config, Execution(checkpoint_every=12), paths)
    assert outcome is not None
    losses = [
        row["metrics"]["train/loss"]
        for row in map(json.loads, folder.metrics.read_text().splitlines())
        if "train/loss" in row["metrics"]
    ]
    assert losses[-1] < 0.6 * losses[0]  # 2.45 -> 1.00 when this was written
    write_result(
        folder,
        TrialResult(
            trial_id=trial_id(config),
            fingerprint=fingerprint(config),
            foundation=smollm2.name,
            kind=smollm2.kind,
            mode=config.mode,
            seed=config.seed,
            headline_inference_mode=outcome.headline_inference_mode,
            scores=outcome.scores,
            validation_scores=outcome.validation_scores,
        ),
    )

    out = tmp_path / "export"
    assert main(["export", str(folder.path.parents[1]), "--out", str(out), "--verify"]) == 0
    assert "direct: 8 of 8 answers are the trial's, letter for letter" in capsys.readouterr().out
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    assert size < 100e6, "LoRA and speech adapter; the foundation (269 MB) is named, not copied"


def test_a_damaged_conversion_is_refused(smollm2, tmp_path: Path) -> None:
    source = Path(smollm2.source)
    damaged = tmp_path / source.name
    damaged.mkdir()
    content = bytearray((source / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors: wrong hash"):
        ensure_smollm2(tmp_path)
