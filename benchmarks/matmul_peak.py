"""A device -> the fastest matrix product that it was seen to do, in TFLOP per second: what model FLOPs utilisation is measured against.

The data sheet's peak assumes a clock that a card does not hold under full load; the measured one is what a training step could reach at most.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

# (m, k, n); the last two are an 8B model's MLP on a batch of that many columns
GPU_SHAPES = ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 8192, 8192), (4096, 4096, 14336), (8192, 14336, 4096))
CPU_SHAPES = ((256, 256, 256), (512, 512, 512), (1024, 1024, 1024))


@dataclass(frozen=True)
class MatmulRate:
    """One shape's rate: the median of several runs."""

    shape: tuple[int, int, int]
    tflops: float


def sweep_matmuls(
    device: torch.device, dtype: torch.dtype, *, runs: int = 5, run_seconds: float = 0.3
) -> list[MatmulRate]:
    """Random normal matrices (zeros would run faster than numbers do), each shape `runs` times for about `run_seconds`."""
    torch.manual_seed(0)
    shapes = GPU_SHAPES if device.type == "cuda" else CPU_SHAPES
    return [MatmulRate(shape, _tflops(device, dtype, shape, runs, run_seconds)) for shape in shapes]


def _tflops(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int], runs: int, run_seconds: float
) -> float:
    m, k, n = shape
    left, right = torch.randn(m, k, device=device, dtype=dtype), torch.randn(k, n, device=device, dtype=dtype)
    out = torch.empty(m, n, device=device, dtype=dtype)

    def seconds(repeats: int) -> float:
        _finish(device)
        started = time.perf_counter()
        for _ in range(repeats):
            torch.mm(left, right, out=out)
        _finish(device)
        return time.perf_counter() - started

    seconds(3)  # chooses its kernel
    repeats = max(1, round(run_seconds / (seconds(3) / 3)))
    return statistics.median(2 * m * k * n * repeats / seconds(repeats) / 1e12 for _ in range(runs))


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
