"""Batch -> loss, or Batch -> embeddings to generate from: the speechLLM around any Hugging Face causal LM.

The speech encoder is frozen and runs once, before training (`data.encoder_states`); the LM body is frozen; what trains is the speech
adapter, fully, and LoRA on the LM's linear layers. Everything else a checkpoint could hold is already on disk elsewhere.

What trains is fp32 at every precision: "bf16" stores the frozen LM in bf16 and computes in it by autocast. So the trained weights are their own
master copy, gradients are accumulated in fp32, and an optimizer step, a checkpoint and a resume are the same at every ZeRO stage.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import is_flash_attn_2_available, is_liger_kernel_available
from transformers.utils import logging as transformers_logging

from data.atomic import file_sha256
from data.batching import IGNORE, Batch
from model.adapter import SpeechAdapter
from model.configs import AdapterConfig, Attention, Execution, Foundation, LoRAConfig, Precision
from model.foundations import local_folder
from model.hub import fetch_foundation

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


class SpeechLLM(nn.Module):
    """Speech adapter and causal LM as one module, so that one engine trains both."""

    def __init__(self, llm: nn.Module, adapter: SpeechAdapter, *, precision: Precision) -> None:
        super().__init__()
        self.llm = llm
        self.adapter = adapter
        self.precision = precision

    def autocast(self) -> torch.autocast:
        """The context every forward pass runs in: at "bf16" products of fp32 trained weights are computed in bf16, at "fp32" nothing changes."""
        device = next(self.adapter.parameters()).device
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def inputs_embeds(self, batch: Batch) -> torch.Tensor:
        """Token embeddings with the audio embeddings spliced in: [B, L, D] in the LM's dtype."""
        embeds = self.llm.get_input_embeddings()(batch.input_ids)  # type: ignore[operator]
        audio = self.adapter(batch.states, batch.state_frames, batch.stack_places).to(embeds.dtype)
        spliced: torch.Tensor = embeds.flatten(0, 1).index_copy(0, batch.audio_places, audio)
        return spliced.view_as(embeds)

    def forward(self, batch: Batch) -> torch.Tensor:
        """The batch's summed target cross-entropy over `loss_normalizer`: a scalar in fp32.

        Normalising by the global batch's token count, not the micro-batch's, makes many micro-batches on many workers add up to exactly the
        loss of one big batch.
        """
        with self.autocast():
            output = self.llm(
                inputs_embeds=self.inputs_embeds(batch),
                attention_mask=batch.attention_mask,
                position_ids=position_ids(batch.attention_mask),
                logits_to_keep=batch.target_columns + 1,
                use_cache=False,
            )
        logits = output.logits[:, -batch.target_columns - 1 : -1].float()
        labels = batch.labels[:, -batch.target_columns :]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")
        return loss / batch.loss_normalizer

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """What a checkpoint holds: every parameter that trains, by name, in a fixed order."""
        return {name: parameter for name, parameter in sorted(self.named_parameters()) if parameter.requires_grad}


def position_ids(attention_mask: torch.Tensor) -> torch.Tensor:
    """Positions that start at 0 at each row's first real token, however much padding stands on its left: [B, L]."""
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)


def load_tokenizer(foundation: Foundation) -> Any:
    """The foundation's own tokenizer; a padding token is borrowed from end-of-sequence where it has none."""
    tokenizer = AutoTokenizer.from_pretrained(_folder(foundation), trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_foundation(foundation: Foundation, precision: Precision, attention: Attention = "sdpa") -> Any:
    """The foundation's causal LM, frozen, from safetensors only, without its own sampling settings.

    Raises ValueError when packaged weights are not the pinned ones, or when the attention kernel is not installed.
    """
    if attention == "flash_attention_2" and not is_flash_attn_2_available():
        raise ValueError('execution.attention: flash_attention_2 needs a GPU and the package flash-attn; use "sdpa"')
    folder = _folder(foundation)
    transformers_logging.disable_progress_bar()
    if foundation.family == "tiny":
        _check_weights(folder / "model.safetensors", foundation)
    llm = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=DTYPES[precision],
        attn_implementation=attention,
        trust_remote_code=False,
        use_safetensors=True,
    )
    llm.requires_grad_(False)
    # what a foundation ships for chatting, e.g. a repetition penalty, would shift greedy answers; only its end tokens are kept
    llm.generation_config = GenerationConfig(eos_token_id=llm.generation_config.eos_token_id)
    return llm


def build_speech_llm(
    foundation: Foundation,
    *,
    state_mean: torch.Tensor,
    state_std: torch.Tensor,
    adapter: AdapterConfig,
    lora: LoRAConfig,
    precision: Precision,
    seed: int,
    execution: Execution | None = None,
) -> SpeechLLM:
    """Load the foundation, add LoRA and a fresh adapter, both fp32. The seed decides every initial weight of both.

    `state_mean` and `state_std` [W] are those of the encoder states to come (`model.trial_data.TrialData.state_statistics`). `execution`
    chooses kernels and checkpointing, which change speed and memory. Raises ValueError when its kernels are not installed.
    """
    execution = execution or Execution()
    llm = load_foundation(foundation, precision, execution.attention)
    if execution.liger_kernels:
        _apply_liger_kernels(llm)
    model = wrap_llm(
        llm, state_mean=state_mean, state_std=state_std, adapter=adapter, lora=lora, precision=precision, seed=seed
    )
    if execution.gradient_checkpointing:
        llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def wrap_llm(
    llm: Any,
    *,
    state_mean: torch.Tensor,
    state_std: torch.Tensor,
    adapter: AdapterConfig,
    lora: LoRAConfig,
    precision: Precision,
    seed: int,
) -> SpeechLLM:
    """A frozen causal LM, already in memory, with LoRA (put into it, in place) and a fresh adapter around it."""
    torch.manual_seed(seed)  # before LoRA and adapter: their initial weights are part of a seed's meaning
    peft_llm = get_peft_model(
        llm,
        LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
            bias="none",
            task_type="CAUSAL_LM",
        ),
        autocast_adapter_dtype=True,  # LoRA in fp32 on a bf16 LM
    )
    for module in peft_llm.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False  # autocast does it, once; PEFT would first copy every input to fp32
    embedding = llm.get_input_embeddings().weight
    speech_adapter = SpeechAdapter(
        adapter,
        state_mean=state_mean,
        state_std=state_std,
        embedding_width=embedding.shape[1],
        embedding_rms=float(embedding.detach().float().square().mean().sqrt()),
    )
    return SpeechLLM(peft_llm, speech_adapter, precision=precision)


def _apply_liger_kernels(llm: Any) -> None:
    """Fused norms, rotary embedding and SwiGLU. The loss keeps its own form: it needs the logits of the targets' columns alone."""
    if not is_liger_kernel_available():
        raise ValueError(
            "execution.liger_kernels: needs a GPU and the package liger-kernel; install it or turn this off"
        )
    from transformers.integrations.liger import apply_liger_kernel

    apply_liger_kernel(llm, {"fused_linear_cross_entropy": False})


def _folder(foundation: Foundation) -> Path:
    """Where the foundation's files lie, downloaded first if need be. Raises ValueError when they cannot be had."""
    folder = local_folder(foundation) or fetch_foundation(foundation)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"foundation {foundation.name}: no model in {folder}; make it with `python experiments/pretrain_tiny.py`"
        )
    return folder


def _check_weights(path: Path, foundation: Foundation) -> None:
    found = file_sha256(path)
    if found != foundation.revision:
        raise ValueError(
            f"{path}: sha256 is {found[:12]}, but {foundation.name} is pinned to {foundation.revision[:12]}; restore the file or pretrain anew"
        )
