"""Turns Whisper in CTranslate2's format (faster-whisper's `model.bin`) into tensors by openai-whisper's names."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[Any]]

_ATTENTION = {
    "self_attention/linear_0": ("attn", ("query", "key", "value")),
    "self_attention/linear_1": ("attn", ("out",)),
    "attention/linear_0": ("cross_attn", ("query",)),
    "attention/linear_1": ("cross_attn", ("key", "value")),
    "attention/linear_2": ("cross_attn", ("out",)),
}
_LAYER = {
    "self_attention/layer_norm": "attn_ln",
    "attention/layer_norm": "cross_attn_ln",
    "ffn/layer_norm": "mlp_ln",
    "ffn/linear_0": "mlp.0",
    "ffn/linear_1": "mlp.2",
}
_OUTSIDE = {
    "encoder/conv1": "encoder.conv1",
    "encoder/conv2": "encoder.conv2",
    "encoder/layer_norm": "encoder.ln_post",
    "decoder/layer_norm": "decoder.ln",
    "decoder/embeddings": "decoder.token_embedding",
}
_SUFFIX = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}


def convert_ctranslate2(model: bytes) -> Tensors:
    """A Whisper `model.bin` -> every tensor of openai-whisper's `Whisper`, by its names, in the stored precision.

    Fused projections are split by rows: query, key, value (self-attention) and key, value (cross-attention).
    openai-whisper has no key bias; CTranslate2 stores zeros for it, which is asserted.
    Raises ValueError when the file holds another kind of model.
    """
    converted: Tensors = {}
    for name, tensor in _iter_ctranslate2(model):
        target = _whisper_name(name)
        if target is None:
            continue
        prefix, parts, suffix = target
        for part, rows in zip(parts, np.split(tensor, len(parts)), strict=True):
            if part == "key" and suffix == "bias":
                assert not rows.any(), f"{name}: the key bias should be zero"
            else:
                converted[".".join(filter(None, (prefix, part, suffix)))] = rows
    return converted


def _whisper_name(name: str) -> tuple[str, tuple[str, ...], str] | None:
    """CTranslate2 name -> (prefix, parts its rows split into, suffix) of openai-whisper; None for what is no weight."""
    module, _, leaf = name.rpartition("/")
    if leaf == "encodings":
        return f"{module.split('/')[0]}.positional_embedding", ("",), ""
    if leaf not in _SUFFIX:
        return None
    if module in _OUTSIDE:
        return _OUTSIDE[module], ("",), _SUFFIX[leaf]
    match = re.fullmatch(r"(encoder|decoder)/layer_(\d+)/(.+)", module)
    if match is None:
        raise ValueError(f"CTranslate2 model: tensor {name!r} is not one of Whisper's; use a faster-whisper model.bin")
    block = f"{match[1]}.blocks.{match[2]}"
    if match[3] in _ATTENTION:
        attention, parts = _ATTENTION[match[3]]
        return f"{block}.{attention}", parts, _SUFFIX[leaf]
    return f"{block}.{_LAYER[match[3]]}", ("",), _SUFFIX[leaf]


def _iter_ctranslate2(model: bytes) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield (name, read-only array) of every tensor in CTranslate2's binary format, version 6."""
    dtypes = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}
    offset = 0

    def take(layout: str) -> int:
        nonlocal offset
        (value,) = struct.unpack_from("<" + layout, model, offset)
        offset += struct.calcsize("<" + layout)
        return int(value)

    def take_string() -> str:
        nonlocal offset
        length = take("H")  # the closing NUL is counted
        offset += length
        return model[offset - length : offset - 1].decode()

    take("I"), take_string(), take("I")  # format version, "WhisperSpec", its revision
    for _ in range(take("I")):
        name = take_string()
        shape = [take("I") for _ in range(take("B"))]
        dtype, size = dtypes[take("B")], take("I")
        yield name, np.frombuffer(model, dtype, size // np.dtype(dtype).itemsize, offset).reshape(shape)
        offset += size
