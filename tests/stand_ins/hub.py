"""Family name -> a checkpoint folder in the hub's format: config, weights, tokenizer, chat template and generation settings.

The weights are random, seeded and small (about 0.3 million parameters); the vocabulary is padded past the tokenizer's, as the published ones are.
The ordinary code loads the folder: `Foundation(source=<folder>)`.
"""

import json
from pathlib import Path
from typing import Any

from model.configs import Foundation, FoundationKind
from stand_ins.families import FAMILIES, Family

KINDS: dict[str, FoundationKind] = {
    "qwen3": "hybrid",
    "llama-3.1": "base",
    "llama-3.1-instruct": "instruct",
    "r1": "reasoning",
    "r1-qwen": "reasoning",
    "smollm2": "base",
}
VOCABULARY = 2048
MERGES = 700
SENTENCES = (
    "i would like to book a table for two at seven in the evening please",
    "could you transfer fifty pounds from my savings account to my current account",
    "### instruction\nlisten to the caller and extract the values of these labels\nlabels: name, date, time; audio: ### answer\n",
    '<thinking>I hear: my card number ends in four two. card_number: four two.</thinking><response>{"card_number": "42"}</response>',
    "fill the slots from what the caller says, which of these labels does the caller give a value for? Agent: hello, how can I help you today?",
    'the value is "monday the 3rd of June 2024" because the caller says so; {"date": "monday", "amount": ["12.50", "7"]}',
)


def write_stand_in(folder: Path, family: str, *, seed: int = 0) -> Foundation:
    """Write the checkpoint of one of `KINDS` into `folder` and name it as a grid would."""
    published = FAMILIES[family]
    folder.mkdir(parents=True, exist_ok=True)
    ids = _write_tokenizer(folder, published)
    parameters = _write_model(folder, published, ids, seed)
    return Foundation(
        name=f"stand-in-{family}",
        kind=KINDS[family],
        source=str(folder),
        revision="local",
        family=family.removesuffix("-instruct"),
        parameters=parameters,
    )


def _write_tokenizer(folder: Path, family: Family) -> dict[str, int]:
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    if family.model_type.startswith("qwen"):
        tokenizer.normalizer = normalizers.NFC()
    if family.words is None:
        first: pre_tokenizers.PreTokenizer = pre_tokenizers.Digits(individual_digits=True)
    else:
        first = pre_tokenizers.Split(Regex(family.words), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=family.words is None)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + MERGES, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in family.special_tokens])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in family.plain_tokens])
    ids = {token: tokenizer.token_to_id(token) for token in (*family.special_tokens, *family.plain_tokens)}
    byte_level = processors.ByteLevel(trim_offsets=False)
    if family.begins:
        assert family.bos_token
        begin = processors.TemplateProcessing(
            single=f"{family.bos_token} $A", special_tokens=[(family.bos_token, ids[family.bos_token])]
        )
        tokenizer.post_processor = processors.Sequence([byte_level, begin])
    else:
        tokenizer.post_processor = byte_level
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {
        "added_tokens_decoder": {
            str(number): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": token in family.special_tokens,
            }
            for token, number in ids.items()
        },
        "bos_token": family.bos_token,
        "clean_up_tokenization_spaces": family.tokenizer_class == "PreTrainedTokenizerFast",
        "eos_token": family.eos_token,
        "model_max_length": 131_072,
        "pad_token": family.pad_token,
        "tokenizer_class": family.tokenizer_class,
    }
    if family.chat_template:
        settings["chat_template"] = family.chat_template
    named = {key: value for key, value in settings.items() if value is not None}
    _write_json(folder / "tokenizer_config.json", named | family.settings)
    return ids


def _write_model(folder: Path, family: Family, ids: dict[str, int], seed: int) -> int:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        family.model_type,
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=4096,
        initializer_range=0.05,
        tie_word_embeddings=family.tied,
        bos_token_id=ids.get(family.bos_token or ""),
        eos_token_id=ids[family.end_tokens[0]],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        llm = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    llm.save_pretrained(folder)
    ends = [ids[token] for token in family.end_tokens]
    generation = {"do_sample": True, "eos_token_id": ends if len(ends) > 1 else ends[0], **family.sampling}
    _write_json(folder / "generation_config.json", generation)
    return sum(parameter.numel() for parameter in llm.parameters())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
