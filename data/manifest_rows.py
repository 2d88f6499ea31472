"""The grammar of a manifest row: a JSON object -> everything that is wrong with its structure, as `Finding`s.

There are two forms. A corpus row holds every field of `data.records.Example`. A source row is what a lab writes by hand: audio, transcript and
slots are enough, slots may be short, and the audio may be a channel and a part of a file. Every corpus row is a source row too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeGuard

from data.audio_folder import AudioFolder
from data.findings import Finding
from data.json_lines import Location, is_text, key_name, shown
from data.records import SPLITS, Example

ONTOLOGY_FILE = "ontology.json"
HELD_OUT = ("frame", "value", "speaker", "domain")
CORPUS_SLOT = ("label", "spoken", "surface", "canonical")
SHORT_SLOT = ("label", "value")
SPEAKERS = ("agent", "caller")
DEFAULT_DOMAIN = "default"

_EXAMPLE_FIELDS = tuple(field.name for field in fields(Example))


@dataclass(frozen=True, kw_only=True)
class RowForm:
    """Which fields a row has to have and may have, and whether its slots may be short."""

    required: tuple[str, ...]
    known: tuple[str, ...]
    short_slots: bool


CORPUS_ROW = RowForm(
    required=("id", "split", "domain", "audio", "audio_sha256", "duration_s", "transcript", "slots"),
    known=_EXAMPLE_FIELDS,
    short_slots=False,
)
SOURCE_ROW = RowForm(
    required=("audio", "transcript", "slots"),
    known=(*_EXAMPLE_FIELDS, "dialogue", "start_s", "end_s", "channel"),
    short_slots=True,
)

Labels = Mapping[str, frozenset[str]]
"""The label names of every domain."""


def check_row(
    at: Location, row: Mapping[str, Any], form: RowForm, *, labels: Labels | None, audio: AudioFolder
) -> Iterator[Finding]:
    """Every structural defect of one row. `labels` None: there is no ontology yet, any label will do."""
    yield from _check_names(at, row, form)
    for field in ("id", "domain", "audio", "transcript", "dialogue"):
        if field in row:
            yield from check_text(at, field, row[field])
    yield from _check_facts(at, row)
    yield from _check_cut(at, row)
    yield from _check_slots(at, row, form, labels)
    yield from _check_context(at, row)
    if is_text(row.get("audio")) and (problem := audio.problem(row["audio"])):
        yield at.error(problem.kind, "audio", f"{shown(row['audio'])} {problem.problem}", problem.remedy)


def label_names(domains: Mapping[str, Iterable[Any]]) -> Labels:
    """The labels of an ontology's domains as `check_row` takes them."""
    return {domain: frozenset(label.name for label in labels) for domain, labels in domains.items()}


def slot_items(slots: Any) -> Iterator[tuple[str, Any, str]]:
    """(label, value, field) for every value of well-formed slots in any form; a value is a string, or an object of the corpus form."""
    if isinstance(slots, dict):
        for label, values in slots.items():
            for place, value in enumerate(values if isinstance(values, list) else [values]):
                yield label, value, f"slots.{key_name(label)}" + (f"[{place}]" if isinstance(values, list) else "")
    else:
        for place, slot in enumerate(slots):
            yield slot["label"], slot.get("value", slot), f"slots[{place}]"


def check_text(at: Location, field: str, value: Any) -> Iterator[Finding]:
    """`value` is a non-empty string."""
    if not is_text(value):
        kind = f"{_stem(field)}-{'blank' if isinstance(value, str) else 'not-text'}"
        yield at.error(kind, field, "must be a non-empty string", "fill it, or remove the line")


def check_texts(at: Location, field: str, value: Any, names: tuple[str, ...], stem: str) -> Iterator[Finding]:
    """`value` is an object that holds exactly these non-empty strings. `stem` begins the kinds."""
    if not isinstance(value, dict) or len(value) != len(names) or not all(key in value for key in names):
        yield at.error(f"{stem}-shape", field, f"must be an object of {', '.join(names)}", "correct it")
        return
    for key in names:
        if not is_text(value[key]):
            kind = f"{stem}-{key}-{'blank' if isinstance(value[key], str) else 'not-text'}"
            yield at.error(kind, f"{field}.{key}", "must be a non-empty string", "fill it")


def is_seconds(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number, which True is not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e9 if isinstance(value, int) else math.isfinite(value)


def _check_names(at: Location, row: Mapping[str, Any], form: RowForm) -> Iterator[Finding]:
    for field in form.required:
        if field not in row:
            yield at.error(f"{_stem(field)}-absent", field, "is missing", "add it")
    for key in sorted(row.keys() - set(form.known)):
        from rapidfuzz.process import extractOne  # here: sound rows need no guess

        near = extractOne(key, form.known, score_cutoff=60)
        remedy = f"did you mean {near[0]}? The fields are" if near else "remove it; the fields are"
        yield at.error(
            "field-unknown", key_name(key), "is not a field of a manifest row", f"{remedy} {', '.join(form.known)}"
        )


def _check_facts(at: Location, row: Mapping[str, Any]) -> Iterator[Finding]:
    """Split, hash, duration, speaker and what is held out."""
    if "split" in row and row["split"] not in SPLITS:
        yield at.error("split-unknown", "split", f"{shown(row['split'])} is unknown", f"use one of {', '.join(SPLITS)}")
    sha = row.get("audio_sha256", "0" * 64)
    if not (isinstance(sha, str) and len(sha) == 64 and set(sha) <= set("0123456789abcdef")):
        remedy = "compute it with data.audio.pcm_sha256"
        yield at.error("audio-sha256-malformed", "audio_sha256", "must be 64 lower-case hexadecimal digits", remedy)
    if "duration_s" in row:
        duration = row["duration_s"]
        problem = f"{shown(duration)} is not a number of seconds above 0"
        if not is_seconds(duration):
            yield at.error(_number_kind("duration", duration), "duration_s", problem, "measure the file again")
        elif duration <= 0:
            yield at.error("duration-not-positive", "duration_s", problem, "measure the file again")
    if not isinstance(row.get("speaker", ""), str):
        remedy = "write the speaker's id, or an empty string"
        yield at.error("speaker-not-text", "speaker", "must be a string", remedy)
    held_out = row.get("held_out", [])
    if not isinstance(held_out, list | tuple) or any(part not in HELD_OUT for part in held_out):
        yield at.error("held-out-unknown", "held_out", "must be a list", f"use names among {', '.join(HELD_OUT)}")


def _check_cut(at: Location, row: Mapping[str, Any]) -> Iterator[Finding]:
    """Which part of the audio file the row is."""
    for field in ("start_s", "end_s"):
        if field in row and not is_seconds(row[field]):
            problem, stem = f"{shown(row[field])} is not a number of seconds", field.removesuffix("_s")
            yield at.error(_number_kind(stem, row[field]), field, problem, "correct it, or leave the field out")
        elif field in row and row[field] < 0:
            kind = f"{field.removesuffix('_s')}-negative"
            yield at.error(kind, field, f"{row[field]} is before the file begins", "count seconds from its begin")
    start, end = row.get("start_s", 0), row.get("end_s")
    if is_seconds(start) and is_seconds(end) and start >= 0 and end >= 0 and end <= start:
        yield at.error("cut-reversed", "end_s", f"{end} is not after start_s {start}", "correct one of the two")
    channel = row.get("channel", 0)
    if isinstance(channel, bool) or not isinstance(channel, int):
        remedy = "write 0 for the first channel, or leave the field out for a mono file"
        yield at.error("channel-not-a-number", "channel", f"{shown(channel)} is not a channel number", remedy)
    elif channel < 0:
        yield at.error("channel-negative", "channel", f"{shown(channel)} is below 0", "write 0 for the first channel")


def _check_slots(at: Location, row: Mapping[str, Any], form: RowForm, labels: Labels | None) -> Iterator[Finding]:
    """The domain and the slots against the label names of every domain."""
    domain = row.get("domain", DEFAULT_DOMAIN)
    if labels is not None and is_text(domain) and domain not in labels and ("domain" in row or form is SOURCE_ROW):
        problem = f"{shown(domain)} is not in {ONTOLOGY_FILE}"
        yield at.error("domain-unknown", "domain", problem, "add the domain and its labels there")
    known = labels.get(domain) if labels is not None and is_text(domain) else None
    slots = row.get("slots", [])
    if isinstance(slots, dict) and form.short_slots:
        for label, values in slots.items():
            yield from _check_short_slot(at, label, values)
            if known is not None and label.strip():
                yield from _check_label(at, f"slots.{key_name(label)}", label, known, domain)
    elif not isinstance(slots, list | tuple):
        yield at.error("slots-wrong-type", "slots", "must be a list", "write [] where the turn fills no slot")
    else:
        for place, slot in enumerate(slots):
            short = form.short_slots and not (isinstance(slot, dict) and slot.keys() & set(CORPUS_SLOT[1:]))
            yield from check_texts(at, f"slots[{place}]", slot, SHORT_SLOT if short else CORPUS_SLOT, "slot")
            if known is not None and isinstance(slot, dict) and is_text(slot.get("label")):
                yield from _check_label(at, f"slots[{place}].label", slot["label"], known, domain)


def _check_short_slot(at: Location, label: str, values: Any) -> Iterator[Finding]:
    """One entry of `{"label": "value"}` or `{"label": ["value", ...]}`."""
    field = f"slots.{key_name(label)}"
    if not label.strip():
        yield at.error("slot-label-blank", field, "is a blank label", "name the label")
    if values == []:
        yield at.error("slot-values-empty", field, "lists no value", "write the value, or remove the label")
    for place, value in enumerate(values if isinstance(values, list) else [values]):
        if not is_text(value):
            kind = f"slot-value-{'blank' if isinstance(value, str) else 'not-text'}"
            where = f"{field}[{place}]" if isinstance(values, list) else field
            yield at.error(kind, where, f"{shown(value)} must be a non-empty string", "write the value in quotes")


def _check_label(at: Location, field: str, label: str, known: frozenset[str], domain: str) -> Iterator[Finding]:
    if label not in known:
        problem = f"{shown(label)} is not a label of domain {shown(domain)} in {ONTOLOGY_FILE}"
        yield at.error("slot-label-unknown", field, problem, "add it there, or correct it")


def _check_context(at: Location, row: Mapping[str, Any]) -> Iterator[Finding]:
    """The previous turns."""
    context = row.get("context", [])
    if not isinstance(context, list | tuple):
        yield at.error("context-wrong-type", "context", "must be a list", "write [] where there are no previous turns")
        return
    for place, turn in enumerate(context):
        yield from check_texts(at, f"context[{place}]", turn, ("speaker", "text"), "turn")
        speaker = turn.get("speaker") if isinstance(turn, dict) else None
        if is_text(speaker) and speaker not in SPEAKERS:
            problem = f"{shown(speaker)} is unknown"
            yield at.error("turn-speaker-unknown", f"context[{place}].speaker", problem, "use 'agent' or 'caller'")


def _number_kind(stem: str, value: Any) -> str:
    return f"{stem}-not-finite" if isinstance(value, float) else f"{stem}-not-a-number"


def _stem(field: str) -> str:
    return field.replace("_", "-")
