"""A GPU type's name -> what the planner needs to know of it: memory, peak arithmetic, memory bandwidth and the link between GPUs.

Memory is what the driver reports for the card, a little less than its name says; the rest is from the makers' data sheets (dense, no sparsity).
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace

from model.configs import Precision


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One type of GPU, and how many of it are there."""

    name: str
    memory_gib: float
    bf16_tflops: float  # dense matrix products
    fp32_tflops: float
    memory_gb_per_s: float
    link_gb_per_s: float  # to the other GPUs of its node, one direction
    count: int | None = None  # None: nobody has looked

    def tflops(self, precision: Precision) -> float:
        """The peak in a trial's precision."""
        return self.bf16_tflops if precision == "bf16" else self.fp32_tflops


def _type(name: str, memory_gib: float, bf16: float, fp32: float, memory: float, link: float) -> Hardware:
    return Hardware(
        name=name,
        memory_gib=memory_gib,
        bf16_tflops=bf16,
        fp32_tflops=fp32,
        memory_gb_per_s=memory,
        link_gb_per_s=link,
    )


HARDWARE: dict[str, Hardware] = {
    hardware.name: hardware
    for hardware in (
        _type("h100-80g", 79.6, 989, 67, 3350, 450),  # SXM, NVLink
        _type("h200-141g", 140.4, 989, 67, 4800, 450),  # SXM, NVLink
        _type("a100-80g", 79.3, 312, 19.5, 2039, 300),  # SXM, NVLink
        _type("a100-40g", 39.5, 312, 19.5, 1555, 300),  # SXM, NVLink
        _type("l40s-48g", 45.0, 362, 91.6, 864, 32),  # PCIe 4
        _type("a10g-24g", 22.5, 70, 31.5, 600, 32),  # PCIe 4
        _type("rtx4090-24g", 24.0, 165, 82.6, 1008, 32),  # PCIe 4
    )
}


def find_hardware(name: str) -> Hardware:
    """The GPU type of that name. Raises ValueError that lists the known ones."""
    if name not in HARDWARE:
        raise ValueError(f"--hardware: {name!r} is not one of {', '.join(HARDWARE)}")
    return HARDWARE[name]


def gpu_query(field: str) -> list[str]:
    """One value for each NVIDIA GPU of this machine, as its driver names the field; empty where there is no driver that answers."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (FileNotFoundError, PermissionError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.splitlines() if line.strip()]


def one_type(names: Sequence[str]) -> Hardware | None:
    """The one type that GPUs of these names are, with their number; None without any, with several types, and for a type that is not in the list."""
    found = {hardware_called(name) for name in names}
    hardware = found.pop() if len(found) == 1 else None
    return replace(hardware, count=len(names)) if hardware else None


def hardware_called(driver_name: str) -> Hardware | None:
    """A GPU as its driver calls it ("NVIDIA A100-SXM4-80GB") or Ray ("H100").

    None when no type has its letters, or two have (an A100 that does not say its size).
    """
    name = driver_name.lower().replace(" ", "")
    models = [hardware for hardware in HARDWARE.values() if hardware.name.split("-")[0] in name]
    sized = [hardware for hardware in models if f"{hardware.name.split('-')[1].removesuffix('g')}gb" in name]
    matching = sized or models
    return matching[0] if len(matching) == 1 else None
