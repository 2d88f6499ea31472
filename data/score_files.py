"""Files of references and predictions, ours or anyone's -> `Case`s to score. Every defect is a `Finding`; all of them are raised together.

Formats: "slotgrid" (a trial's predictions-<mode>.jsonl, which holds its references; a corpus manifest beside it adds domains
and shows what has no prediction), "slurp" (the SLURP data set's own, see data/score_slurp.py) and "jsonl": a line is
`{"id": "x1", "slots": {"label": "value", "label2": ["v1", "v2"]}}` or `{"id": "x1", "slots": [{"label": "...", "value": "..."}]}`
on both sides, and a reference may have a "domain".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from data.answers import parse_answer
from data.error_taxonomy import Unread, Value
from data.findings import Finding
from data.json_lines import CorpusError, Location, iter_lines, key_name, parse_object, shown
from data.records import Prediction, prediction_from_json
from data.scoring import Counts, count_answer

FileFormat = Literal["slotgrid", "slurp", "jsonl"]
FORMATS: tuple[FileFormat, ...] = get_args(FileFormat)
_TELLS: Mapping[str, FileFormat] = {"output_text": "slotgrid", "entities": "slurp", "slots": "jsonl"}
"""The field of a prediction that only one format has."""

Row = TypeVar("Row")
_JSON_TYPES = {str: "a string", list: "a list", bool: "true or false", int: "a whole number"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One example: what there was to find, and what was written."""

    id: str
    domain: str = ""  # empty where the files do not say
    references: tuple[Value, ...]
    predicted: tuple[Value, ...] = ()
    answered: bool = True  # there is a prediction; without one all references are missed
    unread: Unread | None = None  # why nothing could be taken from the answer
    asked: tuple[str, ...] | None = None  # the labels that were asked for; None: any
    per_answer: Counts = field(default_factory=lambda: Counts(examples=1))
    classes: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)
    """What is right or wrong as a whole, by name: (reference, prediction). SLURP's scenario, action and intent."""


@dataclass(frozen=True, kw_only=True)
class CaseSet:
    """What a pair of files holds."""

    format: FileFormat
    cases: tuple[Case, ...]  # sorted by id: the order of the lines changes nothing
    warnings: tuple[str, ...]  # for people: what was missing or left out
    fold_case: bool = True  # False: predictions are compared as they are written, see `data.scoring.count_values`


class DefectsError(CorpusError):
    """Files that cannot be scored; `findings` has every defect, the message the first."""

    def __init__(self, findings: list[Finding]) -> None:
        super().__init__(f"{findings[0]}" + (f" (and {len(findings) - 1} more)" if findings[1:] else ""))
        self.findings = findings


@dataclass
class RowReader:
    """Reads the rows of files and collects what is wrong with them."""

    findings: list[Finding] = field(default_factory=list)

    def index(self, path: Path, read: Callable[[Location, dict[str, Any]], tuple[str, Row] | None]) -> dict[str, Row]:
        """What `read` makes of every row, by the id it gives; an id that comes again is a defect. Raises DefectsError for an empty file."""
        rows: dict[str, Row] = {}
        lines: dict[str, int | None] = {}
        before = len(self.findings)
        for at, row in self._objects(path):
            found = read(at, row)
            if found is None:
                continue
            key, value = found
            if key in rows:
                problem = f"example {shown(key)} is there already, in line {lines[key]}"
                self.error(at, None, problem, "keep one of the two lines")
            rows[key], lines[key] = value, at.line
        if not rows and len(self.findings) == before:
            self.error(Location(path), None, "holds no rows", "check that it is the right file")
        return rows

    def get(self, at: Location, row: Mapping[str, Any], key: str, kind: type[Row], path: str = "") -> Row | None:
        """The field of a row where it has the right JSON type; a string must not be blank. None, and a finding, where it has not."""
        value = row.get(key)
        right = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
        if right and not (isinstance(value, str) and not value.strip()):
            return value
        problem = "is missing" if key not in row else f"must be {_JSON_TYPES[kind]}, not {shown(value)}"
        self.error(at, f"{path}{key_name(key)}", problem, "write it")
        return None

    def error(self, at: Location, field_name: str | None, problem: str, remedy: str) -> None:
        """Note a defect."""
        self.findings.append(at.error("score-row", field_name, problem, remedy))

    def finish(self) -> None:
        """Raise DefectsError if anything was wrong."""
        if self.findings:
            raise DefectsError(self.findings)

    def _objects(self, path: Path) -> Iterator[tuple[Location, dict[str, Any]]]:
        for at, line in iter_lines(path):
            value, findings = parse_object(at, line)
            self.findings += findings
            if not findings:
                yield at, value


def read_cases(
    predictions: Path,
    references: Path | None = None,
    *,
    file_format: FileFormat | None = None,
    split: str | None = None,
) -> CaseSet:
    """The cases of a pair of files; `file_format` None: recognised by the first prediction.

    `split` is for a trial's own predictions: which split to score (None: test). Raises CorpusError (DefectsError where rows
    are at fault).
    """
    from data.score_slurp import read_slurp

    found = file_format or recognise(predictions)
    if found == "slotgrid":
        return _read_slotgrid(predictions, references, split or "test")
    if split:
        raise CorpusError(
            f"--split: only a trial's own predictions have splits, and {predictions} is of format {found}"
        )
    if references is None:
        raise CorpusError(f"--references: {predictions} is of format {found}, which holds none; name their file")
    return (read_slurp if found == "slurp" else _read_jsonl)(predictions, references)


def recognise(predictions: Path) -> FileFormat:
    """The format of a file of predictions, by its first row. Raises CorpusError."""
    for at, line in iter_lines(predictions):
        value, findings = parse_object(at, line)
        if findings:
            raise DefectsError(findings)
        for tell, file_format in _TELLS.items():
            if tell in value:
                return file_format
        has = ", ".join(key_name(key) for key in value) or "nothing"
        expected = ", ".join(f"{tell} ({file_format})" for tell, file_format in _TELLS.items())
        raise CorpusError(
            f"{predictions}, line 1: has none of the fields {expected}, but {has}; write one of these formats"
        )
    raise CorpusError(f"{predictions}: holds no rows; check that it is the right file")


def join_warnings(predictions: Path, references: Mapping[str, Any], predicted: Mapping[str, Any]) -> tuple[str, ...]:
    """What people are told about ids that only one side has. Raises CorpusError when the two sides share none.

    A reference without a prediction is scored as missed. A prediction without a reference is left out: files that hold more
    than is scored are common (SLURP's published ones do).
    """
    missing, unknown = sorted(references.keys() - predicted.keys()), sorted(predicted.keys() - references.keys())
    if len(unknown) == len(predicted):
        raise CorpusError(
            f"{predictions}: no prediction belongs to a reference (predicted is e.g. {shown(unknown[0])}, the references have "
            f"{shown(missing[0]) if missing else 'nothing to score'}); name the references that were predicted, with the same ids"
        )
    warnings = []
    if missing:
        warnings.append(
            f"{len(missing)} of {len(references)} references have no prediction (first: {missing[0]}); all their values count as missed"
        )
    if unknown:
        warnings.append(
            f"{len(unknown)} of {len(predicted)} predictions have no reference (first: {unknown[0]}) and are left out"
        )
    return tuple(warnings)


def _read_jsonl(predictions: Path, references: Path) -> CaseSet:
    reader = RowReader()

    def read(at: Location, row: dict[str, Any]) -> tuple[str, tuple[tuple[Value, ...], str]] | None:
        key, slots = reader.get(at, row, "id", str), _read_slots(reader, at, row)
        domain = reader.get(at, row, "domain", str) if row.get("domain") is not None else ""
        return None if key is None or slots is None else (key, (slots, domain or ""))

    gold, predicted = reader.index(references, read), reader.index(predictions, read)
    reader.finish()
    cases = tuple(
        Case(
            id=key,
            domain=domain,
            references=slots,
            predicted=predicted[key][0] if key in predicted else (),
            answered=key in predicted,
        )
        for key, (slots, domain) in sorted(gold.items())
    )
    return CaseSet(format="jsonl", cases=cases, warnings=join_warnings(predictions, gold, predicted))


def _read_slots(reader: RowReader, at: Location, row: Mapping[str, Any]) -> tuple[Value, ...] | None:
    """The (label, value) pairs of a row's slots in either form; null, "" and [] are no value. None, and findings, for a defect."""
    slots, before = row.get("slots"), len(reader.findings)
    pairs: list[tuple[Any, Any, str]] = []
    if isinstance(slots, dict):
        for label, values in slots.items():
            for value in values if isinstance(values, list) else [values]:
                pairs.append((label, value, f"slots.{key_name(label)}"))
    elif isinstance(slots, list):
        for place, slot in enumerate(slots):
            if not isinstance(slot, dict) or slot.keys() != {"label", "value"} or not isinstance(slot["label"], str):
                reader.error(at, f"slots[{place}]", "must be an object of label and value", "correct it")
            else:
                pairs.append((slot["label"], slot["value"], f"slots[{place}].value"))
    else:
        problem = "is missing" if "slots" not in row else f"must be an object or a list, not {shown(slots)}"
        reader.error(at, "slots", problem, 'write {"label": "value"}, or {} where there is nothing')
    found = []
    for label, value, place_name in pairs:
        if value is not None and not isinstance(value, str):
            reader.error(at, place_name, f"must be a string, not {shown(value)}", "write it in quotes")
        elif value and value.strip():
            found.append((label, value.strip()))
    return tuple(found) if len(reader.findings) == before else None


def _read_slotgrid(predictions: Path, references: Path | None, split: str) -> CaseSet:
    reader = RowReader()
    rows = reader.index(predictions, lambda at, row: _read_prediction(reader, at, row))
    domains: dict[str, tuple[str, str, tuple[Value, ...]]] = {}
    if references is not None:
        domains = reader.index(references, lambda at, row: _read_manifest_row(reader, at, row))
    reader.finish()
    scored = {key: row for key, row in rows.items() if row.split == split}
    if not scored:
        there = ", ".join(sorted({row.split for row in rows.values()}))
        raise CorpusError(
            f"--split: {predictions} has no predictions of split {split!r}, it has {there}; name one of these"
        )
    cases = [_case_of(row, domains[key][1] if key in domains else "") for key, row in scored.items()]
    warnings: tuple[str, ...] = ()
    if references is not None:
        gold = {key: row for key, row in domains.items() if row[0] == split}
        warnings = join_warnings(predictions, gold, scored)
        cases = [case for case in cases if case.id in gold]
        cases += [
            Case(id=key, domain=domain, references=slots, answered=False)
            for key, (_, domain, slots) in gold.items()
            if key not in scored
        ]
    return CaseSet(format="slotgrid", cases=tuple(sorted(cases, key=lambda case: case.id)), warnings=warnings)


def _read_prediction(reader: RowReader, at: Location, row: dict[str, Any]) -> tuple[str, Prediction] | None:
    before = len(reader.findings)
    for key in ("example_id", "split", "mode"):
        reader.get(at, row, key, str)
    if not isinstance(row.get("output_text"), str):
        reader.error(at, "output_text", "must be a string", "write what the model wrote")
    reader.get(at, row, "output_tokens", int)
    reader.get(at, row, "truncated", bool)
    asked, pairs = reader.get(at, row, "asked_labels", list), reader.get(at, row, "reference", list)
    for place, label in enumerate(asked or ()):
        if not isinstance(label, str):
            reader.error(at, f"asked_labels[{place}]", "must be a string", "correct it")
    for place, pair in enumerate(pairs or ()):
        whole = isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        if not whole or not pair[1].strip() or pair[0] not in (asked or ()):
            problem = "must be [label, value], the label one of asked_labels and the value not blank"
            reader.error(at, f"reference[{place}]", problem, "correct the slots in the manifest and predict again")
    if len(reader.findings) > before:
        return None
    known = {key: row[key] for key in Prediction.__dataclass_fields__ if key in row}
    return row["example_id"], prediction_from_json(known)


def _read_manifest_row(
    reader: RowReader, at: Location, row: dict[str, Any]
) -> tuple[str, tuple[str, str, tuple[Value, ...]]] | None:
    """(id, (split, domain, slots in their surface form)) of a corpus manifest."""
    texts = [reader.get(at, row, key, str) for key in ("id", "split", "domain")]
    slots = []
    for place, slot in enumerate(reader.get(at, row, "slots", list) or ()):
        label, value = (slot.get("label"), slot.get("surface")) if isinstance(slot, dict) else (None, None)
        if not isinstance(label, str) or not isinstance(value, str):
            reader.error(
                at, f"slots[{place}]", "must have a label and a surface", "name the manifest.jsonl of a corpus folder"
            )
            return None
        slots.append((label, value))
    key, split, domain = texts
    return None if key is None or split is None or domain is None else (key, (split, domain, tuple(slots)))


def _case_of(row: Prediction, domain: str) -> Case:
    answer = parse_answer(row.output_text)
    unread: Unread | None = "truncation" if row.truncated else "parse_failure" if answer.parse_failure else None
    return Case(
        id=row.example_id,
        domain=domain,
        references=row.reference,
        predicted=() if unread else answer.slots,
        unread=unread,
        asked=row.asked_labels,
        per_answer=count_answer(row, answer),
    )
