"""Encoder states -> audio embeddings: 8 frames stacked into one vector, then a 2-layer MLP into the foundation's embedding space.

The paper says "2-layer MLP, 8x downsampling"; stacking (not a strided convolution), the hidden width, GELU, the standardised input and the
normalised output are our choice. Whisper's states have a few dimensions ten times as wide as the others: standardising them (a trained
affine map that starts at the training split's mean and spread) made the tiny models hear clearly sooner than a layer norm.
"""

from __future__ import annotations

import torch
from torch import nn

from data.batching import audio_token_count
from model.configs import AdapterConfig


class SpeechAdapter(nn.Module):
    """The only part of a speechLLM that is trained from scratch."""

    def __init__(
        self,
        config: AdapterConfig,
        *,
        state_mean: torch.Tensor,
        state_std: torch.Tensor,
        embedding_width: int,
        embedding_rms: float,
    ) -> None:
        """Mean and standard deviation of the encoder states are [W]; `embedding_rms` is the root mean square of the foundation's token
        embeddings: audio embeddings start at the same size."""
        super().__init__()
        self.stack_factor = config.stack_factor
        self.state_scale = nn.Parameter(1 / state_std)
        self.state_shift = nn.Parameter(-state_mean / state_std)
        self.up = nn.Linear(len(state_mean) * config.stack_factor, config.hidden_width)
        self.down = nn.Linear(config.hidden_width, embedding_width)
        self.norm = nn.RMSNorm(embedding_width)
        with torch.no_grad():
            self.norm.weight.fill_(embedding_rms)

    def forward(self, states: torch.Tensor, frames: torch.Tensor, stacks: torch.Tensor) -> torch.Tensor:
        """States [B, F, W], frames [B] and the stacks [A] that hold a frame (`Batch.stack_places`) -> embeddings [A, D], row by row.

        The stacks are named by the batch, which knows them on the host: to find them here, the host would have to wait for the GPU.
        """
        batch, longest, width = states.shape
        states = states.to(self.up.weight.dtype) * self.state_scale + self.state_shift
        inside = torch.arange(longest, device=states.device)[None, :] < frames[:, None]
        states = (
            states * inside[..., None]
        )  # past an example's end the standardised input is zero, whatever the batch's padding
        count = audio_token_count(longest, self.stack_factor)
        padded = nn.functional.pad(states, (0, 0, 0, count * self.stack_factor - longest))
        stacked = padded.reshape(batch * count, width * self.stack_factor).index_select(0, stacks)
        projected = self.down(nn.functional.gelu(self.up(stacked)))
        embeddings: torch.Tensor = self.norm(projected.float())  # the norm's weight is fp32, under autocast too
        return embeddings
