"""Loading a foundation: a node needs its weights once, however many workers it has."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = Path(__file__).parents[2]
LOAD = """
import sys
from model.configs import Foundation
from model.speech_llm import load_foundation

def own_bytes():
    fields = dict(line.split(":") for line in open("/proc/self/status"))
    return int(fields["RssAnon"].split()[0]) * 1024

def load(folder, precision):
    return load_foundation(Foundation(name="r", kind="base", source=folder, revision="", family="r", parameters=0), precision)

small, large = sys.argv[1:]
load(small, "bf16")  # imports what loading takes
for precision in ("bf16", "fp32"):
    before = own_bytes()
    llm = load(large, precision)
    print(own_bytes() - before)
"""


def test_workers_in_bf16_share_the_weights_of_a_published_foundation(tmp_path: Path) -> None:
    """The memory of one process besides the pages of the file: those are the same for all processes that map it."""
    if not Path("/proc/self/status").exists():
        pytest.skip("a process's own memory is read from Linux's /proc")
    sizes = {}
    for name, vocabulary in (("small", 64), ("large", 160_000)):
        config = AutoConfig.for_model(
            "llama",
            hidden_size=256,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=512,
            vocab_size=vocabulary,
        )
        llm = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        llm.save_pretrained(tmp_path / name)
        sizes[name] = 2 * llm.num_parameters()
    command = [sys.executable, "-c", LOAD, str(tmp_path / "small"), str(tmp_path / "large")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    bf16, fp32 = (int(line) for line in done.stdout.split()[-2:])
    assert sizes["large"] > 150e6
    assert bf16 < 0.1 * sizes["large"], "mapped from the file"
    assert fp32 > 1.9 * sizes["large"], "converted, so each worker has its own: as `Capacity.host_bytes` counts"
