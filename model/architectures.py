"""A model's config.json -> `Architecture`: its dimensions, and how many parameters each part has, without weights and without torch.

The three model types that the registry needs (llama, which SmolLM2 also is, qwen2 and qwen3) are one block: RMS norm, grouped-query attention with
rotary positions, RMS norm, gated MLP. They differ in biases and in norms on queries and keys. Field names are config.json's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from model.configs import AdapterConfig, LoRAConfig

ModelType = Literal["llama", "qwen2", "qwen3"]
ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """Parameters by part of the model."""

    embedding: int
    attention: int
    mlp: int
    norms: int
    head: int  # 0 where it is the embedding

    @property
    def total(self) -> int:
        """All of them."""
        return self.embedding + self.attention + self.mlp + self.norms + self.head

    @property
    def blocks(self) -> int:
        """What every token passes through: all but the embedding and the head."""
        return self.attention + self.mlp + self.norms


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The dimensions of a causal LM."""

    model_type: ModelType
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool = False
    attention_bias: bool = False  # on queries, keys and values
    output_bias: bool = False  # on the attention's output projection
    mlp_bias: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Architecture:
        """Read a config.json as published. Raises ValueError that names the field."""
        model_type = config.get("model_type")
        if model_type not in get_args(ModelType):
            raise ValueError(
                f"config.json, field model_type: {model_type!r} is not one of {', '.join(get_args(ModelType))}"
            )

        def size(field: str, default: int | None = None) -> int:
            value = default if config.get(field) is None else config[field]
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"config.json, field {field}: {value!r} is not a positive whole number")
            return value

        hidden, heads = size("hidden_size"), size("num_attention_heads")
        bias = model_type == "qwen2" or bool(config.get("attention_bias", False))
        return cls(
            model_type=cast(ModelType, model_type),
            hidden_size=hidden,
            num_hidden_layers=size("num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=size("num_key_value_heads", heads),
            head_dim=size("head_dim", 128 if model_type == "qwen3" else hidden // heads),
            intermediate_size=size("intermediate_size"),
            vocab_size=size("vocab_size"),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            attention_bias=bias,
            output_bias=bias and model_type != "qwen2",
            mlp_bias=model_type == "llama" and bool(config.get("mlp_bias", False)),
        )

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalised, head by head."""
        return self.model_type == "qwen3"

    @property
    def query_width(self) -> int:
        """All query heads side by side."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_width(self) -> int:
        """All key heads side by side; the values are as wide."""
        return self.num_key_value_heads * self.head_dim

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(in, out) of every linear layer of one block."""
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (hidden, self.query_width),
            "k_proj": (hidden, self.key_value_width),
            "v_proj": (hidden, self.key_value_width),
            "o_proj": (self.query_width, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }

    @property
    def parameters(self) -> ParameterCounts:
        """Exact parameter counts; a tied head counts once, as the embedding."""
        shapes, layers, hidden = self.linear_shapes, self.num_hidden_layers, self.hidden_size
        weights = {name: width_in * width_out for name, (width_in, width_out) in shapes.items()}
        attention = sum(weights[name] for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
        attention += self.attention_bias * (self.query_width + 2 * self.key_value_width) + self.output_bias * hidden
        mlp = sum(weights[name] for name in ("gate_proj", "up_proj", "down_proj"))
        mlp += self.mlp_bias * (2 * self.intermediate_size + hidden)
        embedding = self.vocab_size * hidden
        return ParameterCounts(
            embedding=embedding,
            attention=layers * attention,
            mlp=layers * mlp,
            norms=layers * (2 * hidden + self.qk_norm * 2 * self.head_dim) + hidden,
            head=0 if self.tie_word_embeddings else embedding,
        )


def lora_parameters(architecture: Architecture, lora: LoRAConfig) -> int:
    """LoRA's parameters: A [r, in] and B [out, r] on every linear layer of every block; the head has none.

    Raises ValueError for other target modules than "all-linear": which layers PEFT would match is known only when the model is there.
    """
    if lora.target_modules != ALL_LINEAR:
        raise ValueError(
            f"lora.target_modules: only {ALL_LINEAR!r} can be counted before the model is loaded, not {lora.target_modules!r}"
        )
    widths = sum(width_in + width_out for width_in, width_out in architecture.linear_shapes.values())
    return architecture.num_hidden_layers * lora.r * widths


def adapter_parameters(adapter: AdapterConfig, *, encoder_width: int, hidden_size: int) -> int:
    """The speech adapter's parameters: input scale and shift, two linear layers with bias, output norm (`model.adapter.SpeechAdapter`)."""
    up = encoder_width * adapter.stack_factor * adapter.hidden_width + adapter.hidden_width
    down = adapter.hidden_width * hidden_size + hidden_size
    return 2 * encoder_width + up + down + hidden_size
