"""Dimensions -> the two models to compare, on random weights: our speechLLM, and the same one as a plain loop would write it."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.training_workload import Size
from model.adapter import SpeechAdapter
from model.architectures import Architecture
from model.configs import Attention, Precision
from model.speech_llm import DTYPES, SpeechLLM, wrap_llm
from orchestrator.workload import ENCODER_WIDTH

_STATISTICS = {"state_mean": torch.zeros(ENCODER_WIDTH), "state_std": torch.ones(ENCODER_WIDTH)}  # of the random states


def random_llm(
    architecture: Architecture, *, precision: Precision, attention: Attention, device: torch.device, seed: int
) -> Any:
    """A frozen causal LM of these dimensions, its weights drawn on the device: no file, no download."""
    fields = {name: value for name, value in vars(architecture).items() if name not in ("output_bias", "model_type")}
    config = AutoConfig.for_model(architecture.model_type, **fields, max_position_embeddings=32_768)
    torch.manual_seed(seed)
    with device:
        llm = AutoModelForCausalLM.from_config(config, dtype=DTYPES[precision], attn_implementation=attention)
    llm.requires_grad_(False)
    assert llm.num_parameters() == architecture.parameters.total
    return llm


def prepare_llm(llm: Any, *, liger: bool, fused_loss: bool, gradient_checkpointing: bool) -> None:
    """The switches that both loops share, in place. Liger's fused loss needs the labels inside the LM, which only the plain model puts there."""
    if liger:
        from transformers.integrations.liger import apply_liger_kernel

        apply_liger_kernel(llm, {"fused_linear_cross_entropy": fused_loss})
    if gradient_checkpointing:
        llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def build_ours(llm: Any, size: Size, *, precision: Precision, seed: int) -> SpeechLLM:
    """What a trial trains."""
    return wrap_llm(llm, **_STATISTICS, adapter=size.adapter, lora=size.lora, precision=precision, seed=seed)


class PlainSpeechLLM(nn.Module):
    """The same model as one would write it for `transformers.Trainer`: tensors in, the causal LM's own loss out."""

    def __init__(self, llm: nn.Module, adapter: SpeechAdapter) -> None:
        super().__init__()
        self.llm = llm
        self.adapter = adapter
        self.first_loss: torch.Tensor | None = None

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        audio_places: torch.Tensor,
        labels: torch.Tensor,
        states: torch.Tensor,
        state_frames: torch.Tensor,
        stack_places: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The tensors of a `data.batching.Batch` -> {"loss": mean over its target tokens}. Logits stay inside: Trainer would copy them to fp32."""
        embeds = self.llm.get_input_embeddings()(input_ids)  # type: ignore[operator]
        audio = self.adapter(states, state_frames, stack_places).to(embeds.dtype)
        embeds = embeds.flatten(0, 1).index_copy(0, audio_places, audio).view_as(embeds)
        output = self.llm(inputs_embeds=embeds, attention_mask=attention_mask, labels=labels, use_cache=False)
        if self.first_loss is None:
            self.first_loss = output.loss.detach()
        return {"loss": output.loss}


def build_plain(llm: Any, size: Size, *, seed: int) -> PlainSpeechLLM:
    """PEFT's LoRA at its defaults and the same adapter, from the same random numbers as ours."""
    torch.manual_seed(seed)
    lora = LoraConfig(
        r=size.lora.r,
        lora_alpha=size.lora.alpha,
        lora_dropout=size.lora.dropout,
        target_modules=size.lora.target_modules,
        task_type="CAUSAL_LM",
    )
    peft_llm = get_peft_model(llm, lora)
    embedding = llm.get_input_embeddings().weight
    adapter = SpeechAdapter(
        size.adapter,
        **_STATISTICS,
        embedding_width=embedding.shape[1],
        embedding_rms=float(embedding.detach().float().square().mean().sqrt()),
    )
    return PlainSpeechLLM(peft_llm, adapter)
