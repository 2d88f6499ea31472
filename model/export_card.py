"""A trial's config and the index of its export -> the model card: what it is, what it was trained on, scores, how to load it, limits, licences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.records import InferenceMode
from model.configs import Foundation, TrialConfig
from model.foundations import card_of, local_folder

_PURPOSES: Mapping[InferenceMode, str] = {
    "direct": "answers with the slots at once",
    "think": "writes a reasoning trace first, then the slots",
}

_CARD = """\
---
library_name: peft
{base_model}language: en
tags: [speech, slot-filling, lora]
---
# {trial_id}

A **speechLLM for slot filling**: it hears one turn of a call and fills the slots that it is asked for. Trained by slotgrid; this folder holds
what was trained (LoRA and speech adapter, fp32), not the two frozen models that it stands on.

| part | what |
|---|---|
| speech encoder, frozen | {encoder}, padding `{padding}`, audio mono at {sample_rate} Hz |
| speech adapter, trained | {stack_factor} frames stacked, then a 2-layer MLP ({hidden_width} wide) |
| foundation LLM, frozen | {foundation} ({kind}) |
| LoRA, trained | r={r}, alpha={alpha}, on {target_modules} |

## Trained on

Corpus `{corpus}` (fingerprint `{corpus_fingerprint}`), {mode} supervision, {steps} steps of {batch_size} examples, seed {seed}, {precision}.
Asked and answered in the {value_form} form of values, prompt version {prompt_version}. `trial.json` has every setting.

## Scores

Partial-match F1 on the test split, metric version {metric_version}: **{headline_score:.4f}** (asked in `{headline}`, which did better on
validation). Scores of two metric versions, or of two corpora, do not compare.

{scores}

## How to load it

With slotgrid, from audio to slots:

```
slotgrid predict THIS_FOLDER --audio call.wav --labels {labels}
```

{modes}

LoRA alone, with PEFT, which gives a causal LM that expects audio embeddings in its prompt:

```python
llm = AutoModelForCausalLM.from_pretrained({pretrained})
llm = PeftModel.from_pretrained(llm, "THIS_FOLDER")
```

`speech_adapter.safetensors` makes those embeddings of encoder states [frames, {state_width}]: `x = states * state_scale + state_shift`; zeros up to
a multiple of {stack_factor} frames; {stack_factor} frames side by side; `y = down(gelu(up(x)))`; `norm.weight * y / rms(y)`.
`export.json` has shapes, versions, token budgets and the sha256 of every file.

## Limits

- It knows the language, the lines and the accents of its corpus, and utterances of up to 30 s. It was measured on that corpus alone.
- A label that it never saw is asked for by name and description; expect lower scores there.
- It can write a value that nobody said. Do not act on an answer that somebody did not confirm.

## Licences

- {encoder}: MIT (OpenAI).
- {name}: {licence}. It covers the LoRA weights too as far as it covers derivatives.
- The corpus has a licence of its own, which may cover what was trained on it.
"""


def model_card(config: TrialConfig, index: Mapping[str, Any]) -> str:
    """The README.md of an export. `index`: the content of export.json."""
    foundation, headline = config.foundation, index["headline_inference_mode"]
    hub = local_folder(foundation) is None
    rows = [f"| {name} | {value:.4f} |" for name, value in sorted(index["scores"].items())]
    modes = [
        f"- `--mode {mode}`: {_PURPOSES[mode]}, up to {budget['max_new_tokens']} tokens{' (the default)' * (mode == headline)}"
        for mode, budget in index["inference_modes"].items()
    ]
    return _CARD.format(
        base_model=f"base_model: {foundation.source}\n" if hub else "",
        trial_id=index["trial_id"],
        encoder=config.encoder.name,
        padding=config.encoder.padding,
        sample_rate=index["encoder"]["sample_rate"],
        **index["speech_adapter"],
        foundation=_described(foundation, index["foundation"]["weights_sha256"]),
        pretrained=f'"{foundation.source}", revision="{foundation.revision}"' if hub else '"FOUNDATION_FOLDER"',
        name=foundation.name,
        kind=foundation.kind,
        licence=_licence(foundation),
        r=config.lora.r,
        alpha=config.lora.alpha,
        target_modules=config.lora.target_modules,
        corpus=config.corpus.name,
        corpus_fingerprint=config.corpus.fingerprint[:12],
        mode=config.mode,
        steps=config.budget.steps,
        batch_size=config.budget.batch_size,
        seed=config.seed,
        precision=config.optim.precision,
        value_form=config.supervision.value_form,
        prompt_version=index["prompt_version"],
        metric_version=index["metric_version"],
        headline=headline,
        headline_score=index["scores"]["eval/partial_f1"],
        scores="\n".join(["| score | value |", "|---|---|", *rows]),
        modes="\n".join(modes),
        labels="LABEL,LABEL",
    )


def _described(foundation: Foundation, weights_sha256: Mapping[str, str]) -> str:
    if not weights_sha256:
        return f"{foundation.source}, revision `{foundation.revision}`"
    hashes = ", ".join(f"{name} `{sha256[:12]}`" for name, sha256 in weights_sha256.items())
    return f"{foundation.name}, a folder whose weights have sha256 {hashes}"


def _licence(foundation: Foundation) -> str:
    if card := card_of(foundation):
        gated = ", and the hub asks you to accept it" if card.gated else ""
        return f"{card.licence}, as the hub names it{gated}"
    if foundation.family == "tiny":
        return "Apache-2.0, a part of slotgrid"
    return "the licence that its publisher gives it"
