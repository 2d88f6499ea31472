"""Parameters counted from a config.json are those of the model that transformers, PEFT and our adapter build."""

from dataclasses import asdict, replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from model.adapter import SpeechAdapter
from model.architectures import Architecture, adapter_parameters, lora_parameters
from model.configs import AdapterConfig, LoRAConfig
from model.foundations import CARDS, FOUNDATIONS, architecture_of

ARCHITECTURES = {card.architecture: card.foundation.name for card in CARDS.values()}
TINY = architecture_of(FOUNDATIONS["tiny-base"])
SMALL = {
    "llama": replace(TINY, num_key_value_heads=2, attention_bias=True, output_bias=True, mlp_bias=True),
    "qwen2": replace(TINY, model_type="qwen2", num_key_value_heads=1, attention_bias=True),
    "qwen3": replace(TINY, model_type="qwen3", head_dim=48, tie_word_embeddings=False),
}


def build(architecture: Architecture) -> torch.nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**asdict(architecture)))


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *SMALL.values()], ids=[*ARCHITECTURES.values(), *SMALL])
def test_every_part_is_counted_as_transformers_builds_it(architecture: Architecture) -> None:
    model, counts = build(architecture), architecture.parameters
    assert count(model) == counts.total
    assert count(model.model.embed_tokens) == counts.embedding
    assert sum(count(block.self_attn) - qk_norms(block) for block in model.model.layers) == counts.attention
    assert sum(count(block.mlp) for block in model.model.layers) == counts.mlp


def qk_norms(block: torch.nn.Module) -> int:
    return sum(count(norm) for name in ("q_norm", "k_norm") if (norm := getattr(block.self_attn, name, None)))


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *SMALL.values()], ids=[*ARCHITECTURES.values(), *SMALL])
def test_a_config_file_gives_the_architecture_back(architecture: Architecture) -> None:
    config = AutoConfig.for_model(**asdict(architecture)).to_dict()
    assert Architecture.from_config(config) == architecture


def test_fields_that_a_config_leaves_out_have_the_library_s_meaning() -> None:
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config |= {"intermediate_size": 96, "vocab_size": 100, "num_key_value_heads": None}
    architecture = Architecture.from_config(config)
    assert (architecture.num_key_value_heads, architecture.head_dim) == (4, 16)
    assert not architecture.tie_word_embeddings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "field model_type: 'gpt2' is not one of llama, qwen2, qwen3"),
        ({"hidden_size": "64"}, "field hidden_size: '64' is not a positive whole number"),
        ({"vocab_size": None}, "field vocab_size: None is not a positive whole number"),
    ],
)
def test_a_config_that_cannot_be_counted_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Architecture.from_config({**asdict(TINY), **change})


@pytest.mark.parametrize("architecture", SMALL.values(), ids=SMALL)
def test_lora_is_counted_as_peft_adds_it(architecture: Architecture) -> None:
    lora = LoRAConfig(r=5, alpha=8)
    model = get_peft_model(
        build(architecture),
        LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=lora.target_modules, task_type="CAUSAL_LM"),
    )
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert lora_parameters(architecture, lora) == trainable


def test_other_lora_targets_are_not_guessed() -> None:
    with pytest.raises(ValueError, match=r"lora\.target_modules: only 'all-linear' can be counted"):
        lora_parameters(TINY, LoRAConfig(target_modules=".*q_proj"))


def test_the_adapter_is_counted_as_it_is_built() -> None:
    config = AdapterConfig(stack_factor=3, hidden_width=10)
    adapter = SpeechAdapter(
        config, state_mean=torch.zeros(7), state_std=torch.ones(7), embedding_width=11, embedding_rms=1.0
    )
    assert adapter_parameters(config, encoder_width=7, hidden_size=11) == count(adapter)
