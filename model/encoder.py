"""Turns a waveform into the frozen Whisper-base encoder's states: float32 [samples] at 16 kHz -> float16 [frames, 512].

The only home of `whisper`. It and torch take seconds to import, so they are imported where an encoder is built:
counting frames (50 a second) and naming cache keys stays light enough for planning.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data.encoder_states import Encode, StateKey
from data.records import SAMPLE_RATE
from model.configs import EncoderConfig, Padding
from model.whisper_weights import load_encoder_weights

if TYPE_CHECKING:
    from torch import Tensor
    from whisper.model import AudioEncoder

ENCODER_WIDTH = 512
FRAMES_PER_SECOND = 50
WINDOW_SAMPLES = 30 * SAMPLE_RATE  # the longest audio Whisper's positional table covers
HEAD_WIDTH = 64  # of every Whisper size
HOP_SAMPLES = 160  # one log_mel frame; the second convolution halves them
FRAME_SAMPLES = SAMPLE_RATE // FRAMES_PER_SECOND
SHORTEST_SAMPLES = 400  # one Fourier window; shorter audio is padded to it with zeros


def encoded_frames(samples: int, padding: Padding) -> int:
    """How many frames `WhisperEncoder.encode` gives for this many samples; at least 1."""
    windows = [WINDOW_SAMPLES] * (samples // WINDOW_SAMPLES)
    if samples % WINDOW_SAMPLES:
        windows.append(samples % WINDOW_SAMPLES)
    return sum(_window_frames(window, padding) for window in windows)


def _window_frames(samples: int, padding: Padding) -> int:
    if padding == "30s":
        return -(-samples // FRAME_SAMPLES)
    log_mel_frames = max(samples, SHORTEST_SAMPLES) // HOP_SAMPLES
    return (log_mel_frames + 1) // 2


def state_key(config: EncoderConfig, weights_sha256: str) -> StateKey:
    """What the states of `config` are cached under: everything that decides them except the audio."""
    return StateKey(
        encoder_name=config.name, weights_sha256=weights_sha256, padding=config.padding, width=ENCODER_WIDTH
    )


class WhisperEncoder:
    """The frozen encoder on the CPU or on `device`; build it with `build_encoder`."""

    def __init__(self, encoder: AudioEncoder, log_mel: Callable[..., Tensor], padding: Padding) -> None:
        self._encoder = encoder
        self._log_mel = log_mel
        self.padding = padding

    def encode(self, waveform: NDArray[np.float32]) -> NDArray[np.float16]:
        """float32 [samples], mono, 16 kHz, in [-1, 1] -> float16 [encoded_frames(samples), 512]; computed in fp32.

        Padding "none": the states of the audio alone (the positional table is cut to its length). Padding "30s": the
        audio is followed by zeros up to 30 s, as Whisper was trained, and only the frames that cover audio are kept
        (one per started 20 ms). Either way, audio over 30 s is encoded in consecutive windows of 30 s that do not see
        each other. Raises ValueError when the waveform is empty or not mono.
        """
        if waveform.ndim != 1 or waveform.size == 0:
            raise ValueError(f"waveform: shape {waveform.shape} is not [samples], at least one; pass mono audio")
        waveform = np.ascontiguousarray(waveform, dtype=np.float32)
        windows = [waveform[start : start + WINDOW_SAMPLES] for start in range(0, waveform.size, WINDOW_SAMPLES)]
        states = np.concatenate([self._encode_window(window) for window in windows])
        assert states.shape == (encoded_frames(waveform.size, self.padding), ENCODER_WIDTH)
        return states

    def _encode_window(self, window: NDArray[np.float32]) -> NDArray[np.float16]:
        import torch
        from torch.nn import functional as F

        encoder = self._encoder
        shortest = WINDOW_SAMPLES if self.padding == "30s" else SHORTEST_SAMPLES
        padded = np.pad(window, (0, max(0, shortest - window.size)))
        with torch.inference_mode():
            log_mel = self._log_mel(torch.tensor(padded, device=encoder.positional_embedding.device))
            hidden = F.gelu(encoder.conv1(log_mel[None]))
            hidden = F.gelu(encoder.conv2(hidden)).permute(0, 2, 1)
            # AudioEncoder.forward insists on 1,500 frames; this is its body with the positional table cut instead.
            hidden = hidden + encoder.positional_embedding[: hidden.shape[1]]
            for block in encoder.blocks:
                hidden = block(hidden)
            states: NDArray[np.float16] = encoder.ln_post(hidden)[0].to(torch.float16).cpu().numpy()
        return states[: _window_frames(window.size, self.padding)]


def build_encoder(config: EncoderConfig, weights_path: Path, device: str = "cpu") -> WhisperEncoder:
    """The frozen encoder from weights that `ensure_encoder_weights` made; their hash is verified.

    Raises ValueError when the file does not hold the weights of `config.name`, or when they are damaged.
    """
    import torch
    from whisper.audio import log_mel_spectrogram
    from whisper.model import AudioEncoder

    if weights_path.stem != config.name:
        raise ValueError(
            f"{weights_path}: is not encoder.name {config.name!r}; pass the path from ensure_encoder_weights"
        )
    tensors = load_encoder_weights(weights_path)
    positions, width = tensors["positional_embedding"].shape
    blocks = len({match[1] for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))})
    n_mels = tensors["conv1.weight"].shape[1]
    encoder = AudioEncoder(n_mels, positions, width, width // HEAD_WIDTH, blocks)
    encoder.load_state_dict({name: torch.from_numpy(tensor.astype(np.float32)) for name, tensor in tensors.items()})
    encoder.eval().requires_grad_(False).to(device)
    return WhisperEncoder(encoder, functools.partial(log_mel_spectrogram, n_mels=n_mels), config.padding)


def encode_factory(config: EncoderConfig, weights_path: Path) -> Callable[[], Encode]:
    """A picklable factory for `write_encoder_states`: each worker process builds its own encoder with it."""
    return functools.partial(_build_encode, config, str(weights_path))


def _build_encode(config: EncoderConfig, weights_path: str) -> Encode:
    encoder = build_encoder(config, Path(weights_path))

    def encode(waveform: NDArray[np.float32]) -> NDArray[np.float16]:
        with _one_thread():
            return encoder.encode(waveform)

    return encode


@contextmanager
def _one_thread() -> Iterator[None]:
    """Tasks are parallel already. The count is put back: a serial executor shares this process with other work."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
