"""Which code, which libraries and which machine made a result: for `result.json` and for the tracker's tags."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

_LIBRARIES = ("torch", "transformers", "peft", "deepspeed", "ray", "numpy")


@cache
def code_revision() -> str:
    """The commit this code was checked out at (with "+dirty" when it was changed since), else the installed package's version."""
    folder = Path(__file__).resolve().parents[1]
    if (folder / ".git").exists():
        head = _git(folder, "rev-parse", "HEAD")
        if head:
            return head + ("+dirty" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    try:
        return f"slotgrid {metadata.version('slotgrid')}"
    except metadata.PackageNotFoundError:
        return "unknown"


def describe_environment() -> dict[str, Any]:
    """Revision, library versions, Python, host and hardware of this process; imports none of the libraries."""
    return {
        "revision": code_revision(),
        "python": platform.python_version(),
        "versions": {name: version for name in _LIBRARIES if (version := _version(name))},
        "host": socket.gethostname(),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "gpu": _gpu_model(),
    }


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str:
    """Git's answer, or "" where git is missing or refuses (a checkout without commits, another owner's folder)."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _gpu_model() -> str | None:
    """The GPUs' names, by nvidia-smi; None where there is none."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return "; ".join(answer.stdout.splitlines()) or None if answer.returncode == 0 else None
