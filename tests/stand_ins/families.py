"""What tells the paper's foundation families apart on the hub: special tokens, chat template, end tokens, dimensions' names.

Written anew after the published configurations (Qwen3 and SmolLM2: Apache-2.0, DeepSeek-R1-Distill: MIT, Llama 3.1: community licence): the
templates render what the families' own render for system, user and assistant messages; tools are left out.
"""

from dataclasses import dataclass, field
from typing import Any

QWEN3_TEMPLATE = """\
{%- set ns = namespace(query=messages | length - 1) -%}
{%- for message in messages -%}{%- if message.role == 'user' -%}{%- set ns.query = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for message in messages -%}
    {%- set content = message.content -%}
    {%- if message.role == 'assistant' -%}
        {%- set thought = message.reasoning_content or '' -%}
        {%- if '</think>' in content -%}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
        {%- endif -%}
        {%- if loop.index0 > ns.query and (loop.last or thought) -%}
            {%- set content = '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') -%}
        {%- endif -%}
    {%- endif -%}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
    {%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}"""

LLAMA_TEMPLATE = """\
{{- bos_token -}}
{%- set ns = namespace(system='') -%}
{%- if messages[0].role == 'system' -%}
    {%- set ns.system = messages[0].content | trim -%}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\nToday Date: ' -}}
{{- (date_string if date_string is defined else '26 Jul 2024') + '\\n\\n' + ns.system + '<|eot_id|>' -}}
{%- for message in messages -%}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"""

R1_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages if message.role == 'system' -%}{{- message.content -}}{%- endfor -%}
{%- for message in messages -%}
    {%- if message.role == 'user' -%}{{- '<｜User｜>' + message.content -}}{%- endif -%}
    {%- if message.role == 'assistant' -%}
        {{- '<｜Assistant｜>' + message.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<｜Assistant｜><think>\\n' -}}{%- endif -%}"""

QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_WORDS = QWEN_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family's published settings."""

    model_type: str
    tokenizer_class: str
    words: str | None  # the regular expression that cuts text before byte-pair merges; None: each digit, then GPT-2's
    special_tokens: tuple[str, ...]  # in the order of their ids, after the merged vocabulary
    plain_tokens: tuple[str, ...] = ()  # added tokens that count as text (the hub's "special": false)
    bos_token: str | None
    eos_token: str
    pad_token: str | None
    begins: bool  # tokenizing text puts `bos_token` in front
    chat_template: str | None
    end_tokens: tuple[str, ...]  # of generation_config.json
    sampling: dict[str, float] = field(default_factory=dict)  # of generation_config.json
    settings: dict[str, Any] = field(default_factory=dict)  # more lines of tokenizer_config.json
    tied: bool = False


def _llama(**changes: object) -> Family:
    fields: dict[str, object] = {
        "model_type": "llama",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "words": LLAMA_WORDS,
        "special_tokens": (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|finetune_right_pad_id|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eom_id|>",
            "<|eot_id|>",
            "<|python_tag|>",
        ),
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|end_of_text|>",
        "pad_token": None,
        "begins": True,
        "chat_template": None,
        "end_tokens": ("<|end_of_text|>",),
        "sampling": {"temperature": 0.6, "top_p": 0.9},
    }
    return Family(**{**fields, **changes})  # type: ignore[arg-type]


FAMILIES: dict[str, Family] = {
    "qwen3": Family(
        model_type="qwen3",
        tokenizer_class="Qwen2Tokenizer",
        words=QWEN_WORDS,
        special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        plain_tokens=("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        begins=False,
        chat_template=QWEN3_TEMPLATE,
        end_tokens=("<|im_end|>", "<|endoftext|>"),
        sampling={"temperature": 0.6, "top_p": 0.95, "top_k": 20},
        tied=True,
    ),
    "llama-3.1": _llama(),
    "llama-3.1-instruct": _llama(
        eos_token="<|eot_id|>",
        chat_template=LLAMA_TEMPLATE,
        end_tokens=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    ),
    "r1": _llama(
        tokenizer_class="LlamaTokenizerFast",
        special_tokens=(
            "<｜begin▁of▁sentence｜>",
            "<｜end▁of▁sentence｜>",
            "<｜User｜>",
            "<｜Assistant｜>",
            "<｜▁pad▁｜>",
        ),
        plain_tokens=("<think>", "</think>"),
        bos_token="<｜begin▁of▁sentence｜>",
        eos_token="<｜end▁of▁sentence｜>",
        pad_token="<｜end▁of▁sentence｜>",
        chat_template=R1_TEMPLATE,
        end_tokens=("<｜end▁of▁sentence｜>",),
        sampling={"temperature": 0.6, "top_p": 0.95},
    ),
    "r1-qwen": Family(  # Qwen2.5's vocabulary with new names for seven of its control tokens; here the roles count as text
        model_type="qwen2",
        tokenizer_class="LlamaTokenizerFast",
        words=QWEN_WORDS,
        special_tokens=("<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"),
        plain_tokens=("<｜User｜>", "<｜Assistant｜>", "<|EOT|>", "<think>", "</think>", "<tool_call>", "</tool_call>"),
        bos_token="<｜begin▁of▁sentence｜>",
        eos_token="<｜end▁of▁sentence｜>",
        pad_token="<｜end▁of▁sentence｜>",
        begins=True,
        chat_template=R1_TEMPLATE,
        end_tokens=("<｜end▁of▁sentence｜>",),
        sampling={"temperature": 0.6, "top_p": 0.95},
        settings={"add_bos_token": True, "add_eos_token": False, "unk_token": None},
    ),
    "smollm2": Family(
        model_type="llama",
        tokenizer_class="GPT2Tokenizer",
        words=None,
        special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>"),
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token=None,
        begins=False,
        chat_template=None,
        end_tokens=("<|endoftext|>",),
        settings={"add_prefix_space": False, "unk_token": "<|endoftext|>"},
        tied=True,
    ),
}
