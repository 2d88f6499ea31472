"""Dimensions and sizes of a batch -> bytes of GPU memory by part, for a training step and for generation.

The formulas count what autograd keeps and what the kernels need at the widest moment, tensor by tensor, for the block that `model.architectures`
describes under torch's fused attention (SDPA), frozen weights with LoRA on every linear layer, and `model.speech_llm.SpeechLLM.forward`.
The bookkeeping is that of Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models" (sections 4.1 and 5), redone for
this block; the ZeRO shares are those of Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models".
Symbols: p bytes of the precision, D hidden width, A all query heads, K all key heads, I inner width of the MLP, r LoRA's rank, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.architectures import Architecture
from model.configs import AdapterConfig, Execution, LoRAConfig, Precision

GIB = 2**30
BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2}

DEVICE_CONTEXT = int(1.5 * GIB)
"""CUDA context, cuBLAS workspaces and NCCL buffers: an assumption."""
REDUCE_BUCKET = 500_000_000
"""The most fp32 gradients that DeepSpeed's buffer holds under ZeRO 1 to 3 (`model.train`)."""
LIVE_PARAMETERS = 1_000_000_000
"""Gathered parameters that ZeRO-3 (default `stage3_max_live_parameters`) keeps on each GPU at a time."""


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """The padded sizes of one micro-batch."""

    rows: int
    columns: int
    target_columns: int
    audio_columns: int


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Bytes on one GPU at the widest moment, by part."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        """All parts."""
        return sum(self.parts.values())

    @property
    def largest(self) -> str:
        """The part to look at first."""
        return max(self.parts, key=lambda name: self.parts[name])


def saved_bytes_per_token(
    architecture: Architecture, lora: LoRAConfig, execution: Execution, *, precision: Precision, columns: int
) -> int:
    """What one block keeps of one token for the backward pass.

    norms      2 x (4 D + 4)               each keeps its input and the reciprocal root mean square in fp32 (Liger: its input as it came, p D)
    qk norms   4 (A + K) + 4 per head      Qwen3: the same, head by head
    attention  4 p A + 4 per head          query, key, value (key and value repeated to all query heads: SDPA with a mask) and output; log-sum-exp
               + p x columns               the boolean mask turned into one that is added, in every block
               2 p (A + K) + 4 per head    FlashAttention: neither repeats nor a mask
               + (p + 4) heads x columns   eager: in place of mask and log-sum-exp, the probabilities in fp32 and, if p is 2, once more in bf16
    inputs     2 p D                       what LoRA's A sees before the attention and before the MLP (frozen weights keep no input)
    MLP        4 p I                       gate, its SiLU, up, and their product (Liger: not the SiLU)
    LoRA       7 p r                       what LoRA's B sees in the seven linear layers
    dropout    (p + 1) x inputs of all seven, in place of the two shared inputs, where LoRA has dropout
    """
    a, p, liger = architecture, BYTES[precision], execution.liger_kernels
    heads = a.num_attention_heads
    norms = 2 * ((p if liger else 4) * a.hidden_size + 4)
    qk_norms = a.qk_norm * (
        (p if liger else 4) * (a.query_width + a.key_value_width) + 4 * (heads + a.num_key_value_heads)
    )
    attention = {
        "sdpa": 4 * p * a.query_width + 4 * heads + p * columns,
        "flash_attention_2": 2 * p * (a.query_width + a.key_value_width) + 4 * heads,
        "eager": 4 * p * a.query_width + (4 + (p if p < 4 else 0)) * heads * columns,
    }[execution.attention]
    dropped = sum(width for width, _ in a.linear_shapes.values()) * (p + 1)
    inputs = dropped if lora.dropout else 2 * p * a.hidden_size
    mlp = (3 if liger else 4) * p * a.intermediate_size
    return norms + qk_norms + attention + inputs + mlp + 7 * p * lora.r


def activation_parts(
    architecture: Architecture,
    lora: LoRAConfig,
    adapter: AdapterConfig,
    execution: Execution,
    shape: BatchShape,
    *,
    encoder_width: int,
    precision: Precision,
) -> dict[str, int]:
    """Parts "activations" and "logits" at the widest moment of a training step.

    Kept to the end of the forward pass: every block's tokens (with gradient checkpointing: its input, p D), the last norm (4 D + 4), and the
    adapter's (per audio embedding two copies of the stacked states, two hidden vectors before and after GELU, two outputs, all in fp32).
    On top comes the wider of two moments. The loss: 12 V per row and target column, three fp32 tensors (log-probabilities, the gradient for them
    and the gradient for the logits). One block's backward pass: 3 p I + 4 p D per token of gradients; with checkpointing also what the block keeps,
    computed anew. In bf16 on a CPU a third moment can be wider, the head's product: `_head_copies`.
    """
    a, p = architecture, BYTES[precision]
    tokens = shape.rows * shape.columns
    block = saved_bytes_per_token(a, lora, execution, precision=precision, columns=shape.columns)
    kept = p * a.hidden_size if execution.gradient_checkpointing else block
    recomputed = block if execution.gradient_checkpointing else 0
    states = encoder_width * adapter.stack_factor
    heard = shape.rows * shape.audio_columns * 2 * 4 * (states + adapter.hidden_width + a.hidden_size)
    base = tokens * (a.num_hidden_layers * kept + 4 * a.hidden_size + 4) + heard
    backward = tokens * (recomputed + 3 * p * a.intermediate_size + 4 * p * a.hidden_size)
    logits = shape.rows * (shape.target_columns + 1) * 12 * a.vocab_size
    if precision == "bf16" and not execution.use_gpu:
        logits = max(logits, _head_copies(a, shape))
    return {"activations": base + max(0, backward - logits), "logits": logits}


def _head_copies(architecture: Architecture, shape: BatchShape) -> int:
    """The head's product in bf16 on a CPU: a copy of the head for each row, 2 V D, beside the row's logits, 2 V per target column.

    The head sees the last columns of each row, a slice that is no one matrix, so torch (`matmul`) takes a batched product with the head repeated by
    a stride of 0, and oneDNN's product (`mkldnn_matmul`, CPUs with AVX-512) writes the repetition out. cuBLAS and the fp32 product read it in place.
    """
    return shape.rows * 2 * architecture.vocab_size * (architecture.hidden_size + shape.target_columns + 1)


def resident_parts(*, frozen: int, trainable: int, execution: Execution, precision: Precision) -> dict[str, int]:
    """Parts that stay for the whole run: the frozen LM; LoRA and adapter in fp32, and bf16 copies of them by autocast; AdamW's two fp32 moments.

    Under ZeRO the trained weights have a flat fp32 copy, sharded like the moments. Stage 3 shards all weights and holds up to `LIVE_PARAMETERS`
    gathered ones.
    """
    p, world = BYTES[precision], execution.workers
    sharded_weights = world if execution.zero_stage >= 3 else 1
    sharded_states = world if execution.zero_stage >= 1 else 1
    gathered = min(frozen, LIVE_PARAMETERS) if sharded_weights > 1 else 0
    return {
        "frozen weights": p * (frozen // sharded_weights + gathered),
        "LoRA and adapter": 4 * trainable // sharded_weights,
        "autocast copies": 2 * trainable if precision == "bf16" else 0,
        "ZeRO's copy": 4 * trainable // sharded_states if execution.zero_stage else 0,
        "AdamW moments": 8 * trainable // sharded_states,
    }


def training_memory(
    architecture: Architecture,
    lora: LoRAConfig,
    adapter: AdapterConfig,
    execution: Execution,
    shape: BatchShape,
    *,
    trainable: int,
    encoder_width: int,
    precision: Precision,
    context: int = DEVICE_CONTEXT,
) -> MemoryUse:
    """One training step on one GPU.

    The optimizer's own step (a fp32 temporary, and a flat gradient under ZeRO) comes when the activations are gone.
    """
    activations = activation_parts(
        architecture, lora, adapter, execution, shape, encoder_width=encoder_width, precision=precision
    )
    zero, world = execution.zero_stage, execution.workers
    step = 4 * trainable * (2 if zero else 1) // (world if zero else 1)
    activations["activations"] += max(0, step - sum(activations.values()))
    frozen = architecture.parameters.total
    return MemoryUse(
        parts={
            **resident_parts(frozen=frozen, trainable=trainable, execution=execution, precision=precision),
            "gradients": 4 * trainable // (world if zero >= 2 else 1),
            "ZeRO buffer": 4 * min(trainable, REDUCE_BUCKET) if zero else 0,
            **activations,
            "device context": context,
        }
    )


def evaluation_memory(
    architecture: Architecture,
    execution: Execution,
    *,
    trainable: int,
    prompt_columns: int,
    new_tokens: int,
    precision: Precision,
    context: int = DEVICE_CONTEXT,
) -> MemoryUse:
    """Greedy generation beside the engine, at its widest: the longest prompts read at once, or the last token with a full cache.

    KV cache: 2 p K per token and block, one block more while it grows by copying. Reading a prompt: 3 p I + 4 p D + 8 D per token, one
    block at a time.
    """
    a, p, rows = architecture, BYTES[precision], execution.evaluation_batch_size
    cache = rows * (prompt_columns + new_tokens) * 2 * p * a.key_value_width * (a.num_hidden_layers + 1)
    reading = rows * prompt_columns * (3 * p * a.intermediate_size + (4 * p + 8) * a.hidden_size)
    return MemoryUse(
        parts={
            **resident_parts(frozen=a.parameters.total, trainable=trainable, execution=execution, precision=precision),
            "KV cache": cache,
            "prompt activations": reading,
            "logits": rows * a.vocab_size * (p + 4),
            "device context": context,
        }
    )
