"""The call centre's domain files become `Domain` records: labels with values and questions, frames with templates.

`domains/<name>.json` holds one domain; `shared.json` what all of them use (names, cities, greetings, answers, fillers).
Every mistake in a file is a ValueError that names file, field and remedy. Template text is spoken text: lower-case
letters, apostrophes, spaces, `{slot}` and `<macro>`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Literal

from data.callcentre.values import KINDS, Kind
from data.records import Label, Ontology

SLOT = re.compile(r"\{(\w+)\}")
MACRO = re.compile(r"<(\w+)>")
SPOKEN = re.compile(r"[a-z']+( [a-z']+)*")
MAX_SLOTS = 4


@dataclass(frozen=True, kw_only=True)
class LabelSpec:
    """One label of a domain and how callers and agents speak about it."""

    name: str
    description: str
    kind: Kind
    noun: str  # what a trace calls such a value: "date"
    length: int  # digits, for kind "digits"
    proper: bool  # listed values are names, written with capitals
    values: tuple[str, ...]  # listed values that training may use
    held_out_values: tuple[str, ...]  # listed values that only the test split may use
    ask: tuple[str, ...]  # agent questions
    says: tuple[str, ...]  # templates of a caller's statement, with this slot only
    answers: str  # how callers answer: one of ANSWER_GROUPS

    @property
    def identifies(self) -> bool:
        """Whether the value says who or which case it is: what callers tell unasked, before or after a request."""
        return self.kind in ("person", "phone", "digits")


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One intent: templates that fill 1-4 slots. An `answer` frame fills the one slot that the agent just asked for."""

    id: str
    kind: Literal["request", "answer"]
    templates: tuple[str, ...]
    held_out: bool
    own: bool  # written for this domain, not one of the shared ways to answer
    asks: tuple[str, ...]  # labels that the agent may ask for next


@dataclass(frozen=True, kw_only=True)
class Domain:
    """One call-centre domain; a held-out one appears in the `test_domain` split only."""

    name: str
    held_out: bool
    labels: Mapping[str, LabelSpec]
    frames: tuple[Frame, ...]


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What all domains use."""

    file: str
    first_names: tuple[str, ...]
    last_names: tuple[str, ...]
    lists: Mapping[str, Mapping[str, Sequence[str]]]
    labels: Mapping[str, Mapping[str, Any]]
    macros: Mapping[str, tuple[str, ...]]
    phrases: Mapping[
        str, tuple[str, ...]
    ]  # fillers, openings, closings, repairs, greetings, remarks, prompts, acknowledgements
    answers: Mapping[str, tuple[str, ...]]  # by ANSWER_GROUPS
    held_out_answers: Mapping[str, tuple[str, ...]]


PHRASES = ("fillers", "openings", "closings", "repairs", "greetings", "remarks", "prompts", "acknowledgements")
ANSWER_GROUPS = ("any", "number", "person", "date", "thing")
ANSWER_GROUP: Mapping[Kind, str] = {"person": "person", "date": "date", "phone": "number", "digits": "number"}
"""How callers answer with a value of a kind; "any" for the others. A label may choose another: "thing" says "the"."""


def _field(raw: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
    """`raw[name]`, which must be there, of the right type and not empty."""
    value = raw.get(name)
    if not isinstance(value, kind) or value in ("", [], {}):
        raise ValueError(f"{where}: field '{name}' is missing or is no {kind.__name__}; add it")
    return value


def _spoken(text: Any, where: str) -> str:
    """A template or phrase, checked to be spoken text once its slots and macros are taken out."""
    if not isinstance(text, str):
        raise ValueError(f"{where}: {text!r} is no text; write a string")
    bare = MACRO.sub("x", SLOT.sub("x", text))
    if not SPOKEN.fullmatch(bare):
        raise ValueError(
            f"{where}: {text!r} must be lower-case words with single spaces, no digits or punctuation; spell it out"
        )
    return text


def _texts(raw: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    """An optional list of spoken texts."""
    return tuple(_spoken(text, f"{where}, field '{name}'") for text in raw.get(name, ()))


def _read_json(source: Traversable) -> dict[str, Any]:
    try:
        raw = json.loads(source.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{source.name}, line {error.lineno}: not JSON ({error.msg}); correct the file") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{source.name}: the file must hold one JSON object; wrap it in braces")
    return raw


@cache
def load_shared() -> Shared:
    """What all domains use, from `shared.json`."""
    source = files("data.callcentre") / "shared.json"
    raw, where = _read_json(source), source.name
    groups = {
        key: {group: _texts(raw[key], group, f"{where}, field '{key}'") for group in ANSWER_GROUPS}
        for key in ("answers", "held_out_answers")
    }
    return Shared(
        file=where,
        first_names=_texts(raw, "first_names", where),
        last_names=_texts(raw, "last_names", where),
        lists=_field(raw, "lists", dict, where),
        labels=_field(raw, "labels", dict, where),
        macros={name: _texts(raw["macros"], name, where) for name in _field(raw, "macros", dict, where)},
        phrases={name: _texts(raw, name, where) for name in PHRASES},
        answers=groups["answers"],
        held_out_answers=groups["held_out_answers"],
    )


def _read_label(name: str, raw: Any, shared: Shared, file: str) -> LabelSpec:
    """One entry of a domain's `labels`: its own description, or "shared" for one that `shared.json` describes."""
    where = f"{file}: label '{name}'"
    if raw == "shared":
        if name not in shared.labels:
            raise ValueError(f"{where}: {shared.file} has no such label; describe it here")
        raw = shared.labels[name]
    if not isinstance(raw, dict):
        raise ValueError(f'{where}: must be an object or "shared"; correct it')
    kind = _field(raw, "kind", str, where)
    if kind not in KINDS:
        raise ValueError(f"{where}, field 'kind': {kind!r} is unknown; use one of {', '.join(KINDS)}")
    listed: Mapping[str, Any] = raw
    if "list" in raw:
        if raw["list"] not in shared.lists:
            known = ", ".join(shared.lists)
            raise ValueError(f"{where}, field 'list': {shared.file} has no list {raw['list']!r}; use one of {known}")
        listed = shared.lists[raw["list"]]
    if kind == "list":
        _field(listed, "values", list, where)
    if kind == "digits":
        _field(raw, "length", int, where)
    for text in raw.get("says", ()):
        if SLOT.findall(text) != [name]:
            raise ValueError(f"{where}, field 'says': {text!r} must fill {{{name}}} once and nothing else; correct it")
    answers = raw.get("answers", ANSWER_GROUP.get(kind, "any"))
    if answers not in ANSWER_GROUPS:
        raise ValueError(f"{where}, field 'answers': {answers!r} is unknown; use one of {', '.join(ANSWER_GROUPS)}")
    return LabelSpec(
        name=name,
        description=_field(raw, "description", str, where),
        kind=kind,
        noun=_field(raw, "noun", str, where),
        length=raw.get("length", 0),
        proper=bool(raw.get("proper", False)),
        values=_texts(listed, "values", where),
        held_out_values=_texts(listed, "held_out", where) if kind == "list" else (),
        ask=tuple(_texts({"ask": _field(raw, "ask", list, where)}, "ask", where)),
        says=_texts(raw, "says", where),
        answers=answers,
    )


def _read_frame(raw: Mapping[str, Any], labels: Mapping[str, LabelSpec], shared: Shared, where: str) -> Frame:
    """One entry of a domain's `frames`."""
    name = _field(raw, "id", str, where)
    templates = tuple(_spoken(text, f"{where}, field 'templates'") for text in _field(raw, "templates", list, where))
    for text in templates:
        wrong = f"{where}, field 'templates': {text!r}"
        slots = SLOT.findall(text)
        for slot in slots:
            if slot not in labels:
                raise ValueError(f"{wrong} fills unknown slot '{slot}'; add it to 'labels' or correct it")
        if not 1 <= len(slots) <= MAX_SLOTS or len(set(slots)) < len(slots):
            raise ValueError(f"{wrong} must fill 1 to {MAX_SLOTS} different slots; correct it")
        for macro in MACRO.findall(text):
            if macro not in shared.macros:
                raise ValueError(f"{wrong} uses unknown macro '{macro}'; use one of {', '.join(shared.macros)}")
    for label in raw.get("then", ()):
        if label not in labels:
            raise ValueError(f"{where}, field 'then': unknown label '{label}'; add it to 'labels' or correct it")
    asks = tuple(raw.get("then", ()))
    return Frame(
        id=name, kind="request", templates=templates, held_out=bool(raw.get("held_out", False)), own=True, asks=asks
    )


def _answer_frames(label: LabelSpec, shared: Shared) -> list[Frame]:
    """The ways to answer when the agent asks for a label: one frame for training, one for test only."""
    return [
        Frame(
            id=f"answer_{label.name}{'_held_out' if held_out else ''}",
            kind="answer",
            templates=tuple(text.replace("x}", f"{label.name}}}") for text in answers[label.answers]),
            held_out=held_out,
            own=False,
            asks=(),
        )
        for held_out, answers in ((False, shared.answers), (True, shared.held_out_answers))
    ]


def read_domain(source: Traversable, shared: Shared) -> Domain:
    """One domain file. Raises ValueError with file, field and remedy for the first thing that is wrong in it."""
    raw, file = _read_json(source), source.name
    labels = {name: _read_label(name, label, shared, file) for name, label in _field(raw, "labels", dict, file).items()}
    frames = [
        _read_frame(frame, labels, shared, f"{file}: frames[{index}]")
        for index, frame in enumerate(_field(raw, "frames", list, file))
    ]
    frames += [frame for label in labels.values() for frame in _answer_frames(label, shared)]
    ids = [frame.id for frame in frames]
    for name in ids:
        if ids.count(name) > 1:
            raise ValueError(f"{file}: frame id '{name}' occurs twice; rename one")
    return Domain(
        name=_field(raw, "name", str, file),
        held_out=bool(raw.get("held_out", False)),
        labels=labels,
        frames=tuple(frames),
    )


@cache
def load_domains() -> tuple[Domain, ...]:
    """Every domain of the package, by name. Raises ValueError (file, field, remedy) when a file is wrong."""
    folder = files("data.callcentre") / "domains"
    sources = [source for source in folder.iterdir() if source.name.endswith(".json")]
    domains = [read_domain(source, load_shared()) for source in sorted(sources, key=lambda source: source.name)]
    check_held_out_apart(domains)
    return tuple(domains)


def check_held_out_apart(domains: Sequence[Domain]) -> None:
    """Raise ValueError when a value that one label holds out is a training value of another: training would say it."""
    trained = {
        value: (domain, label) for domain in domains for label in domain.labels.values() for value in label.values
    }
    for domain in domains:
        for label in domain.labels.values():
            for value in label.held_out_values:
                if value in trained:
                    where, other = trained[value]
                    raise ValueError(
                        f"{domain.name}.json: label '{label.name}' holds out {value!r}, which label '{other.name}' of "
                        f"{where.name}.json trains on; remove one of them"
                    )


def build_ontology() -> Ontology:
    """The slot labels of every domain, with their descriptions."""
    return Ontology(
        domains={
            domain.name: tuple(
                Label(name=label.name, description=label.description) for label in domain.labels.values()
            )
            for domain in load_domains()
        }
    )
