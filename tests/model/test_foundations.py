"""The registry: sizes as published, revisions that fix the weights, and dimensions for whatever a grid may name."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from model.foundations import CARDS, FOUNDATIONS, architecture_of, card_of, is_pinned, local_folder

PUBLISHED = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-8b-instruct": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-70b-instruct": 70_553_706_496,
    "r1-distill-llama-8b": 8_030_261_248,
    "r1-distill-qwen-1.5b": 1_777_088_000,
    "r1-distill-qwen-7b": 7_615_616_512,
    "r1-distill-qwen-14b": 14_770_033_664,
    "r1-distill-qwen-32b": 32_763_876_352,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "smollm2-135m": 134_515_008,
    "smollm2-135m-instruct": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-360m-instruct": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "smollm2-1.7b-instruct": 1_711_376_384,
}
"""Parameters as the models' own pages and files give them (a tied head once)."""


def test_every_foundation_of_the_hub_has_the_published_size() -> None:
    assert {name: card.foundation.parameters for name, card in CARDS.items()} == PUBLISHED


def test_every_foundation_is_pinned_and_known_by_its_name() -> None:
    assert all(name == foundation.name and is_pinned(foundation) for name, foundation in FOUNDATIONS.items())
    assert len({card.foundation.revision for card in CARDS.values()}) == len(CARDS)
    assert all(re.fullmatch("[0-9a-f]{40}", card.foundation.revision) for card in CARDS.values())


def test_a_branch_is_not_a_pin() -> None:
    assert not is_pinned(replace(FOUNDATIONS["qwen3-4b"], revision="main"))


def test_a_head_that_is_stored_twice_is_downloaded_twice() -> None:
    """The index files of Qwen3 0.6B and 1.7B list the tied head: 1.5 GB and 4.06 GB."""
    assert CARDS["qwen3-0.6b"].download_bytes == 2 * 751_632_384
    assert CARDS["qwen3-1.7b"].download_bytes == 4_063_479_808
    assert CARDS["qwen3-4b"].download_bytes == 2 * PUBLISHED["qwen3-4b"]


def test_what_differs_between_the_kinds_of_a_family() -> None:
    assert CARDS["llama-3.1-8b"].gated and not CARDS["r1-distill-llama-8b"].gated
    ends = {name: CARDS[name].answer_end for name in ("llama-3.1-8b", "llama-3.1-8b-instruct", "smollm2-135m")}
    assert list(ends.values()) == ["<|end_of_text|>", "<|eot_id|>", "<|endoftext|>"]
    thinking = {card.foundation.kind: card.thinking for card in CARDS.values()}
    assert thinking == {"base": "none", "instruct": "none", "reasoning": "opened", "hybrid": "switched"}


def test_another_name_for_a_hub_model_finds_its_card() -> None:
    renamed = replace(FOUNDATIONS["qwen3-8b"], name="mine")
    assert card_of(renamed) is CARDS["qwen3-8b"]
    assert card_of(FOUNDATIONS["tiny-base"]) is None


def test_a_packaged_foundation_is_counted_from_its_folder() -> None:
    tiny = FOUNDATIONS["tiny-hybrid"]
    assert architecture_of(tiny).parameters.total == tiny.parameters


def test_a_local_folder_is_counted_from_its_config(tmp_path: Path) -> None:
    folder = local_folder(FOUNDATIONS["tiny-base"])
    assert folder is not None
    (tmp_path / "config.json").write_text((folder / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    local = replace(FOUNDATIONS["qwen3-8b"], source=str(tmp_path), revision="")
    assert architecture_of(local) == architecture_of(FOUNDATIONS["tiny-base"])
    assert not is_pinned(local)


def test_dimensions_that_cannot_be_known_name_the_foundation_and_the_remedy(tmp_path: Path) -> None:
    unknown = replace(FOUNDATIONS["qwen3-8b"], name="mine", source="somebody/some-model")
    with pytest.raises(ValueError, match="foundation mine: the dimensions of somebody/some-model are not known; add a"):
        architecture_of(unknown)
    with pytest.raises(ValueError, match=r"foundation mine: .*config\.json is missing"):
        architecture_of(replace(unknown, source=str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"foundation mine: .*field model_type: 'mamba' is not one of"):
        architecture_of(replace(unknown, source=str(tmp_path)))
