"""A GGUF file is read as llama.cpp writes it: metadata of every type, plain and quantized tensors."""

import struct

import numpy as np
import pytest

from model.gguf import BLOCK, read_gguf


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf(tensors: list[tuple[str, tuple[int, ...], int, bytes]]) -> bytes:
    """A version-3 file with a number, a text and a list of texts, and tensors of (name, shape, type, content)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 3)
    head += text("layers") + struct.pack("<II", 4, 30)
    head += text("name") + struct.pack("<I", 8) + text("Smöl")
    head += text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")
    content = b""
    for name, shape, kind, values in tensors:
        head += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        head += struct.pack("<IQ", kind, len(content))
        content += values + bytes(-len(values) % 32)
    return head + bytes(-len(head) % 32) + content


def test_metadata_and_every_tensor_type() -> None:
    plain = np.arange(6, dtype="<f4")
    low, high = np.arange(16) % 16, (np.arange(16) * 3) % 16
    q4 = struct.pack("<ee", 0.5, -2.0) + bytes((low | high << 4).astype(np.uint8))
    steps = np.arange(-16, 16, dtype=np.int8)
    q8 = b"".join(struct.pack("<e", scale) + steps.tobytes() for scale in (0.25, 2.0))
    found = read_gguf(
        gguf([("plain", (2, 3), 0, plain.tobytes()), ("q4", (1, BLOCK), 3, q4), ("q8", (2, BLOCK), 8, q8)])
    )
    assert found.metadata == {"layers": 30, "name": "Smöl", "tokens": ["a", "b"]}
    assert found.tensors["plain"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found.tensors["q4"].tolist() == [(np.concatenate([low, high]) * 0.5 - 2.0).tolist()]
    assert found.tensors["q8"].tolist() == [(steps * 0.25).tolist(), (steps * 2.0).tolist()]
    assert {tensor.dtype for tensor in found.tensors.values()} == {np.dtype(np.float32)}


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="does not begin with GGUF"):
        read_gguf(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ValueError, match="tensor q6 is of type 14"):
        read_gguf(gguf([("q6", (1, 256), 14, bytes(210))]))
    with pytest.raises(ValueError, match="version 1 is not known"):
        read_gguf(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
