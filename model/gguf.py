"""Turns a GGUF file (llama.cpp's container) into its metadata and its tensors as float32, quantized ones (Q4_1, Q8_0) included.

The format is described in ggml's docs/gguf.md; the blocks of a quantized row in ggml's ggml-common.h.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_F32, _Q4_1, _Q8_0 = 0, 3, 8
BLOCK = 32
"""Values that share a scale."""
_Q4_1_BLOCK = np.dtype([("scale", "<f2"), ("least", "<f2"), ("halves", "u1", (BLOCK // 2,))])
_Q8_0_BLOCK = np.dtype([("scale", "<f2"), ("values", "i1", (BLOCK,))])


@dataclass(frozen=True, kw_only=True)
class GGUF:
    """A file's content."""

    metadata: dict[str, Any]
    tensors: dict[str, NDArray[np.float32]]  # by GGUF's names, shaped as in torch: [rows, columns]


class _Reader:
    """The values of a file, one after another."""

    def __init__(self, content: bytes) -> None:
        self.content, self.offset = content, 0

    def scalar(self, layout: str) -> Any:
        (value,) = struct.unpack_from("<" + layout, self.content, self.offset)
        self.offset += struct.calcsize("<" + layout)
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        self.offset += length
        return self.content[self.offset - length : self.offset].decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item = self.scalar("I")
            return [self.value(item) for _ in range(self.scalar("Q"))]
        return self.scalar(_SCALARS[kind])


def read_gguf(content: bytes) -> GGUF:
    """The metadata and tensors of a whole file. Raises ValueError when it is no GGUF, or quantized in a way that is not known here."""
    if content[:4] != b"GGUF":
        raise ValueError("GGUF: the file does not begin with GGUF; give a model in llama.cpp's format")
    reader = _Reader(content)
    reader.offset = 4
    version, tensor_count, entries = (reader.scalar(layout) for layout in "IQQ")
    if version not in (2, 3):
        raise ValueError(f"GGUF: version {version} is not known; convert the model to version 3")
    metadata = {}
    for _ in range(entries):
        key = reader.string()
        metadata[key] = reader.value(reader.scalar("I"))
    places = []
    for _ in range(tensor_count):
        name = reader.string()
        shape = [reader.scalar("Q") for _ in range(reader.scalar("I"))][::-1]  # GGUF counts columns first
        places.append((name, shape, reader.scalar("I"), reader.scalar("Q")))
    alignment = metadata.get("general.alignment", 32)
    start = -(-reader.offset // alignment) * alignment
    tensors = {name: _tensor(content, start + at, shape, kind, name) for name, shape, kind, at in places}
    return GGUF(metadata=metadata, tensors=tensors)


def _tensor(content: bytes, at: int, shape: list[int], kind: int, name: str) -> NDArray[np.float32]:
    count = math.prod(shape)
    if kind == _F32:
        values = np.frombuffer(content, "<f4", count, at).copy()
    elif kind == _Q4_1:
        blocks = np.frombuffer(content, _Q4_1_BLOCK, count // BLOCK, at)
        halves = blocks["halves"]  # byte i holds value i in its low half, value i + 16 in its high half
        steps = np.concatenate([halves & 0x0F, halves >> 4], axis=1)
        values = steps * _column(blocks["scale"]) + _column(blocks["least"])
    elif kind == _Q8_0:
        blocks = np.frombuffer(content, _Q8_0_BLOCK, count // BLOCK, at)
        values = blocks["values"] * _column(blocks["scale"])
    else:
        raise ValueError(f"GGUF: tensor {name} is of type {kind}; F32, Q4_1 and Q8_0 are known")
    return values.reshape(shape)


def _column(scales: NDArray[np.float16]) -> NDArray[np.float32]:
    """One scale a block, to be spread over its values."""
    return scales.astype(np.float32)[:, None]
