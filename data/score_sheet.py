"""`Case`s -> the score sheet: scores, breakdown per label and per domain, and what became of every value. JSON-ready, the same for the same cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from data.error_taxonomy import ERRORS, Outcome, classify_values, count_outcomes
from data.score_files import Case, CaseSet
from data.scoring import METRIC_VERSION, Counts, count_values, score_counts
from data.slu_f1 import PrecisionRecallF1, SluCounts

_OF_ANSWERS = ("parse_failure_rate", "repair_rate", "truncation_rate", "mode_obedience", "output_tokens")
"""The rates that only a trial's own predictions, which hold what the model wrote, can have."""


def build_sheet(case_set: CaseSet) -> dict[str, Any]:
    """The score sheet of some cases: at least one."""
    counted = [(case, _count(case, case_set.fold_case)) for case in case_set.cases]
    domains = _count_domains(counted)
    scores = _scores(sum(domains.values(), start=Counts()))
    if case_set.format != "slotgrid":
        scores = {name: value for name, value in scores.items() if name not in _OF_ANSWERS}
    for name in case_set.cases[0].classes:
        right = sum(case.classes[name][0] == case.classes[name][1] for case in case_set.cases)
        scores[f"{name}_accuracy"] = right / len(case_set.cases)
    sheet: dict[str, Any] = {
        "format": case_set.format,
        "metric_version": METRIC_VERSION,
        "examples": len(case_set.cases),
        "answered": sum(case.answered for case in case_set.cases),
        "warnings": list(case_set.warnings),
        "scores": scores,
        "outcomes": count_outcomes(outcome for case in case_set.cases for outcome in _classify(case)),
        "per_label": _per_label(counted),
        "per_domain": {} if domains.keys() == {""} else {name: _domain_row(found) for name, found in domains.items()},
    }
    if case_set.format == "slurp":
        sheet["official_script"] = _official([pair for pair in counted if pair[0].answered])
    return sheet


def iter_errors(case_set: CaseSet) -> Iterator[dict[str, Any]]:
    """One row per error: example, kind, and the (label, value) that was to find and that was written."""
    for case in case_set.cases:
        for outcome in _classify(case):
            if outcome.kind in ERRORS:
                yield {"id": case.id, "domain": case.domain, **asdict(outcome)}


def _count(case: Case, fold_case: bool) -> dict[str, Counts]:
    return count_values(case.references, case.predicted, asked=case.asked, fold_case=fold_case)


def _classify(case: Case) -> list[Outcome]:
    return classify_values(case.references, case.predicted, unread=case.unread)


def _scores(counts: Counts) -> dict[str, float]:
    scores = score_counts(counts).metrics()
    return {**scores, "slu_word_f1": counts.slu.word.f1, "slu_char_f1": counts.slu.char.f1}


def _row(counts: Counts) -> dict[str, float]:
    """The short form of a breakdown."""
    found = score_counts(counts)
    return {
        "references": counts.references,
        "predicted": counts.predicted,
        "partial_f1": found.partial_f1,
        "exact_f1": found.exact_f1,
        "slu_f1": found.slu_f1,
    }


def _per_label(counted: Sequence[tuple[Case, dict[str, Counts]]]) -> dict[str, dict[str, float]]:
    """Every label that has a reference or a predicted value, invented ones too: the rows add up."""
    totals: dict[str, Counts] = {}
    for _, counts in counted:
        for label, found in counts.items():
            totals[label] = totals.get(label, Counts(examples=1)) + found
    return {label: _row(found) for label, found in sorted(totals.items()) if found.references + found.predicted}


def _count_domains(counted: Sequence[tuple[Case, dict[str, Counts]]]) -> dict[str, Counts]:
    """Everything counted, by domain; "" where the files name none."""
    totals: dict[str, Counts] = {}
    for case, counts in counted:
        totals[case.domain] = sum(counts.values(), start=totals.get(case.domain, Counts()) + case.per_answer)
    return dict(sorted(totals.items()))


def _domain_row(counts: Counts) -> dict[str, float]:
    return {"examples": counts.examples, **_row(counts)}


def _official(counted: Sequence[tuple[Case, dict[str, Counts]]]) -> dict[str, Any]:
    """What SLURP's own script prints: over the answered cases only. Its F1 of scenario, action and intent is their accuracy."""
    slu = sum((found.slu for _, counts in counted for found in counts.values()), start=SluCounts())
    shared = sum((Counter(case.references) & Counter(case.predicted)).total() for case, _ in counted)
    accuracies = {
        name: sum(case.classes[name][0] == case.classes[name][1] for case, _ in counted) / len(counted)
        for name in ("scenario", "action", "intent")
    }
    entities = PrecisionRecallF1(
        precision=shared / slu.predicted if slu.predicted else 0.0,
        recall=shared / slu.references if slu.references else 0.0,
        f1=2 * shared / (slu.predicted + slu.references) if slu.predicted + slu.references else 0.0,
    )
    parts = {"entities": entities, "word": slu.word, "char": slu.char, "slu": slu.slu}
    return {"examples": len(counted), **accuracies, **{name: asdict(part) for name, part in parts.items()}}
