"""Where a generated answer ends: at an end token, after `</response>`, or cut off at the token budget."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from data.records import Prediction
from data.rendering import RenderedExample
from data.supervision import SupervisedExample
from model.adapter import SpeechAdapter
from model.configs import AdapterConfig
from model.generate import generate_predictions
from model.speech_llm import SpeechLLM, load_foundation, load_tokenizer
from stand_ins.hub import write_stand_in


def reciting_model(script: list[int], vocabulary: int, ends: list[int]) -> SpeechLLM:
    """A causal LM that answers any token of `script`, which holds none twice, with the next one, and the last one with itself."""
    assert len(set(script)) == len(script)
    width = len(script) + len(script) % 2
    config = AutoConfig.for_model(
        "llama", vocab_size=vocabulary, hidden_size=width, num_hidden_layers=1, num_attention_heads=1
    )
    llm = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for module in (
            "model.layers.0.self_attn.o_proj",
            "model.layers.0.mlp.down_proj",
            "model.embed_tokens",
            "lm_head",
        ):
            llm.get_submodule(module).weight.zero_()
        for place, (token, following) in enumerate(zip(script, [*script[1:], script[-1]], strict=True)):
            llm.model.embed_tokens.weight[token, place] = 1
            llm.lm_head.weight[following, place] = 1
    llm.generation_config.eos_token_id = ends
    adapter = SpeechAdapter(
        AdapterConfig(hidden_width=4),
        state_mean=torch.zeros(3),
        state_std=torch.ones(3),
        embedding_width=width,
        embedding_rms=1.0,
    )
    return SpeechLLM(llm, adapter, precision="fp32")


def item(number: int, start: int) -> tuple[SupervisedExample, RenderedExample, np.ndarray]:
    """A question whose prompt ends with the token `start`, after as much audio as its number says."""
    supervised = SupervisedExample(
        example_id=f"e{number}", mode="think", prompt="", target="", asked_labels=(), reference=()
    )
    rendered = RenderedExample(prefix=(start,), suffix=(start,), target=())
    return supervised, rendered, np.zeros((8 * (number + 1), 3), dtype=np.float16)


@pytest.fixture
def recite(tmp_path: Path):
    """Predictions of a model that recites a text, asked once from its beginning and once from its fourth token on."""
    foundation = write_stand_in(tmp_path, "llama-3.1-instruct")
    tokenizer, llm = load_tokenizer(foundation), load_foundation(foundation, "fp32")

    def predictions(
        text: str, *, max_new_tokens: int = 20, forward_passes: list[Any] | None = None
    ) -> list[Prediction]:
        script = tokenizer("Q" + text, add_special_tokens=False)["input_ids"]
        model = reciting_model(script, llm.config.vocab_size, llm.generation_config.eos_token_id)
        if forward_passes is not None:
            model.llm.register_forward_hook(lambda *call: forward_passes.append(call))
        return generate_predictions(
            model,
            tokenizer,
            [item(0, script[0]), item(1, script[3])],
            kind="instruct",
            split="test",
            max_new_tokens=max_new_tokens,
            batch_size=2,
        )

    return predictions


@pytest.mark.parametrize("end", ["<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"])
def test_an_answer_ends_at_each_end_token_of_its_family(recite, end: str) -> None:
    whole, rest = recite("yes, of 42" + end)
    assert (whole.example_id, whole.output_text, whole.truncated) == ("e0", "yes, of 42", False)
    assert whole.output_text.endswith(rest.output_text) and not rest.truncated
    assert whole.output_tokens == rest.output_tokens + 3


def test_an_end_token_after_the_closing_tag_is_part_of_the_answer(recite) -> None:
    whole, _ = recite("bdfg42</response><|eot_id|>")
    open_ended, _ = recite("bdfg42</response>xyzkjq")
    assert whole.output_text == open_ended.output_text == "bdfg42</response>"
    assert whole.output_tokens == open_ended.output_tokens + 1
    assert not whole.truncated and not open_ended.truncated


def test_generation_stops_when_every_row_has_closed_its_answer(recite) -> None:
    passes: list[Any] = []
    whole, _ = recite("bdfg42</response>xyzkjq", max_new_tokens=200, forward_passes=passes)
    assert len(passes) == whole.output_tokens + 1


def test_an_answer_is_truncated_only_when_neither_came(recite) -> None:
    whole, rest = recite("xyzkjqvw", max_new_tokens=5)
    assert whole.truncated and rest.truncated
    assert whole.output_tokens == rest.output_tokens == 5
    length = recite("bdfg42</response>xyzkjq")[0].output_tokens
    closed, _ = recite("bdfg42</response>xyzkjq", max_new_tokens=length)
    assert closed.output_tokens == length and not closed.truncated, "closed with the last token of the budget"


def test_a_foundations_own_sampling_settings_are_left_out(tmp_path: Path) -> None:
    foundation = write_stand_in(tmp_path, "qwen3")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 4], "repetition_penalty": 1.5, "top_k": 20}')
    kept = load_foundation(foundation, "fp32").generation_config
    assert kept.eos_token_id == [3, 4]
    assert kept.repetition_penalty is None and kept.top_k is None
