"""Encoder states -> audio embeddings: 8 frames stacked into one vector, then a 2-layer MLP into the foundation's embedding space.

The paper says "2-layer MLP, 8x downsampling"; stacking (not a strided convolution), the hidden width, GELU and the two norms are our choice.
"""

from __future__ import annotations

import torch
from torch import nn

from data.batching import audio_token_count
from model.configs import AdapterConfig


class SpeechAdapter(nn.Module):
    """The only part of a speechLLM that is trained from scratch."""

    def __init__(
        self, config: AdapterConfig, *, encoder_width: int, embedding_width: int, embedding_rms: float
    ) -> None:
        """`embedding_rms` is the root mean square of the foundation's token embeddings: audio embeddings start at the same size."""
        super().__init__()
        self.stack_factor = config.stack_factor
        self.norm_in = nn.LayerNorm(encoder_width * config.stack_factor)
        self.up = nn.Linear(encoder_width * config.stack_factor, config.hidden_width)
        self.down = nn.Linear(config.hidden_width, embedding_width)
        self.norm_out = nn.RMSNorm(embedding_width)
        with torch.no_grad():
            self.norm_out.weight.fill_(embedding_rms)

    def forward(self, states: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        """States [B, F, W] and frames [B] -> embeddings [A, D], A = sum of `audio_token_count(frames)`, row by row."""
        batch, longest, width = states.shape
        count = audio_token_count(longest, self.stack_factor)
        padded = nn.functional.pad(states, (0, 0, 0, count * self.stack_factor - longest))
        stacked = padded.reshape(batch, count, width * self.stack_factor)
        counts = -(-frames // self.stack_factor)
        kept = torch.arange(count, device=states.device)[None, :] < counts[:, None]
        stacked = stacked[kept].to(self.up.weight.dtype)
        embeddings: torch.Tensor = self.norm_out(self.down(nn.functional.gelu(self.up(self.norm_in(stacked)))))
        return embeddings
