"""SLURP's references (test.jsonl) and a file of predictions for them -> `Case`s to score, as the official script reads the two.

A prediction is `{"file": ..., "scenario": ..., "action": ..., "entities": [{"type": ..., "filler": ...}]}`; predictions from gold
transcripts name the sentence instead, as "slurp_id". References may also be in the form of predictions. Reference fillers are
put in lower case, predicted ones are not. Source: https://github.com/pswietojanski/slurp, scripts/evaluation/util.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.error_taxonomy import Value
from data.json_lines import Location, iter_lines, parse_object, shown
from data.score_files import Case, CaseSet, RowReader, join_warnings


@dataclass(frozen=True)
class _Labelled:
    """A sentence or recording with its labels, true or predicted."""

    scenario: str
    action: str
    entities: tuple[Value, ...]

    @property
    def classes(self) -> dict[str, str]:
        """What is right or wrong as a whole. The intent is built: the field of that name contradicts the other two at times."""
        return {"scenario": self.scenario, "action": self.action, "intent": f"{self.scenario}_{self.action}"}


def read_slurp(predictions: Path, references: Path) -> CaseSet:
    """The cases of the two files: one per recording, or per sentence where the predictions are keyed by slurp_id. Raises CorpusError."""
    reader = RowReader()
    key = _key_of(predictions)
    predicted = reader.index(predictions, lambda at, row: _read_labelled(reader, at, row, key))
    sentences = reader.index(references, lambda at, row: _read_reference(reader, at, row, key))
    gold = {one: labelled for keys, labelled in sentences.values() for one in keys}
    reader.finish()
    warnings = join_warnings(predictions, gold, predicted)
    cases = tuple(_case(one, labelled, predicted.get(one)) for one, labelled in sorted(gold.items()))
    return CaseSet(format="slurp", cases=cases, warnings=warnings, fold_case=False)


def _key_of(predictions: Path) -> str:
    """What the predictions are keyed by: "file", or "slurp_id" when the first row has no file."""
    at, line = next(iter_lines(predictions), (Location(predictions), b"{}"))
    return "slurp_id" if "file" not in (row := parse_object(at, line)[0]) and "slurp_id" in row else "file"


def _case(key: str, gold: _Labelled, found: _Labelled | None) -> Case:
    written = found.classes if found else dict.fromkeys(gold.classes)
    return Case(
        id=key,
        domain=gold.scenario,
        references=tuple((label, filler.lower()) for label, filler in gold.entities),
        predicted=found.entities if found else (),
        answered=found is not None,
        classes={name: (value, written[name]) for name, value in gold.classes.items()},
    )


def _read_reference(
    reader: RowReader, at: Location, row: dict[str, Any], key: str
) -> tuple[str, tuple[list[str], _Labelled]] | None:
    """(id of the row, (keys of what can be predicted for it, its labels)) of a sentence as released, or of a row like a prediction."""
    if "tokens" not in row:
        found = _read_labelled(reader, at, row, key, gold=True)
        return found and (found[0], ([found[0]], found[1]))
    scenario, action = reader.get(at, row, "scenario", str), reader.get(at, row, "action", str)
    sentence = _id_of(reader, at, row, "slurp_id")
    words = [reader.get(at, token, "surface", str, f"tokens[{i}].") for i, token in _objects(reader, at, row, "tokens")]
    entities = []
    for place, entity in _objects(reader, at, row, "entities"):
        label = reader.get(at, entity, "type", str, f"entities[{place}].")
        span = entity.get("span")
        if not isinstance(span, list) or not span or not all(type(i) is int and 0 <= i < len(words) for i in span):
            problem = f"must be a list of token numbers below {len(words)}, not {shown(span)}"
            reader.error(at, f"entities[{place}].span", problem, "take the line from the SLURP release")
        elif label:
            entities.append((label, " ".join(words[i] or "" for i in span)))
    keys = [sentence] if key == "slurp_id" else []
    if key == "file":
        keys = [reader.get(at, r, "file", str, f"recordings[{i}].") for i, r in _objects(reader, at, row, "recordings")]
    if sentence is None or scenario is None or action is None:
        return None
    return sentence, ([one for one in keys if one], _Labelled(scenario, action, tuple(entities)))


def _read_labelled(
    reader: RowReader, at: Location, row: dict[str, Any], key: str, *, gold: bool = False
) -> tuple[str, _Labelled] | None:
    """A row in the form of a prediction. A predicted filler may be blank (it is then all wrong), a true one may not."""
    one = _id_of(reader, at, row, key)
    scenario, action = reader.get(at, row, "scenario", str), reader.get(at, row, "action", str)
    entities = []
    for place, entity in _objects(reader, at, row, "entities"):
        label, filler = reader.get(at, entity, "type", str, f"entities[{place}]."), entity.get("filler")
        if not isinstance(filler, str) or (gold and not filler.strip()):
            problem = f"must be a string{' with a word' if gold else ''}, not {shown(filler)}"
            reader.error(at, f"entities[{place}].filler", problem, "write the words of the entity")
        elif label:
            entities.append((label, filler))
    if one is None or scenario is None or action is None:
        return None
    return one, _Labelled(scenario, action, tuple(entities))


def _id_of(reader: RowReader, at: Location, row: Mapping[str, Any], key: str) -> str | None:
    """The id of a row; a slurp_id may be a number."""
    value = row.get(key)
    return str(value) if key == "slurp_id" and type(value) is int else reader.get(at, row, key, str)


def _objects(reader: RowReader, at: Location, row: Mapping[str, Any], key: str) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a list with their places; anything else in it is a finding."""
    found = []
    for place, value in enumerate(reader.get(at, row, key, list) or ()):
        if isinstance(value, dict):
            found.append((place, value))
        else:
            reader.error(at, f"{key}[{place}]", f"must be an object, not {shown(value)}", "correct it")
    return found
