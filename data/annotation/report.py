"""What an annotator wrote -> traces file, quarantined.jsonl and report.json in its folder, and the corpus switched to the new traces.

`<corpus>/annotations/<annotator>-<fingerprint>/` holds everything of one annotator: annotator.json, ledger.jsonl and batches/ (only where answers
are paid for), traces-<fingerprint>.jsonl, quarantined.jsonl, report.json. All but the ledger follow from it, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from data.annotation.trace_checks import Rejection, check_trace
from data.annotation.trace_requests import TRACE_PROMPT_VERSION, asked_labels, parse_trace
from data.annotation.trace_rules import RULE_ANNOTATOR, RULE_VERSION, rule_answer
from data.annotation.work import Work
from data.atomic import atomic_open, write_json, write_jsonl
from data.manifest import Corpus, attach_traces
from data.records import Example, Split, Trace, to_json

ANNOTATIONS = "annotations"
PARTIAL_FILE = "partial.jsonl"
"""The traces of an annotation that is not finished, for people to look at."""


@dataclass(frozen=True, kw_only=True)
class AnnotationReport:
    """What became of the examples and what it cost, over all runs of one annotator."""

    annotator: Mapping[str, Any]
    server: str = ""  # host that answered last
    splits: tuple[Split, ...]  # asked for in the last run
    examples: int  # of these splits, and what earlier runs annotated of others
    accepted: int
    quarantined: int  # no answer passed the checks
    refused: Mapping[str, str] = field(default_factory=dict)  # example id -> why the server takes no request for it
    unanswered: Mapping[str, str] = field(default_factory=dict)  # example id -> how the server failed again and again
    not_asked: int = 0  # the run ended before
    accepted_at: Mapping[str, int]  # attempt -> examples
    rejections: Mapping[str, int]  # kind of reason -> answers; an answer can have several
    answers: int = 0  # paid ones
    answers_by_way: Mapping[str, int]  # "live", "batch", "found" after their outcome was unknown
    models: Mapping[str, int]  # as the server names them
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: Decimal = Decimal(0)
    of_it_lost_usd: Decimal = Decimal(0)  # for answers that may have been paid and never arrived
    too_dear: bool = False  # the cost limit ended the last run
    attached: bool = False  # the corpus has these traces now

    @property
    def finished(self) -> bool:
        """Whether nothing is left to ask."""
        return not (self.refused or self.unanswered or self.not_asked)


@contextmanager
def annotation_folder(root: Path, name: str, annotator: Mapping[str, Any], fingerprint: str) -> Iterator[Path]:
    """The folder of one annotator below a corpus, locked against a second annotation of the corpus. Raises ValueError when there is one."""
    annotations = root / ANNOTATIONS
    annotations.mkdir(exist_ok=True)
    try:
        with FileLock(annotations / ".lock", timeout=0):
            folder = annotations / f"{name}-{fingerprint[:8]}"
            folder.mkdir(exist_ok=True)
            write_json(folder / "annotator.json", {**annotator, "fingerprint": fingerprint})
            yield folder
    except Timeout:
        raise ValueError(f"{root}: is being annotated by another process; wait for it, or stop it") from None


def selected_examples(corpus: Corpus, splits: Sequence[Split], limit: int | None) -> list[Example]:
    """The examples of some splits in the order of the manifest, the first `limit` of them. Raises ValueError when there are none."""
    if limit is not None and limit < 1:
        raise ValueError(f"--limit: {limit} is too few; give at least 1")
    rows = [row.example for row in corpus.examples if row.example.split in splits]
    if not rows:
        raise ValueError(f"{corpus.root}: has no examples in {', '.join(splits)}; name other splits with --splits")
    return rows[:limit]


def finish_work(
    folder: Path, work: Work, annotator: Mapping[str, Any], server: str, splits: tuple[Split, ...], *, attach: bool
) -> AnnotationReport:
    """Write what the ledger holds, of all splits, and switch the corpus to it when everything was asked and `attach` says so."""
    traces: list[tuple[str, Trace]] = []
    quarantined: list[dict[str, Any]] = []
    accepted_at: Counter[str] = Counter()
    not_asked = 0
    waiting = {example.id for example in work.examples} - work.refused.keys() - work.unanswered.keys()
    for example in (row.example for row in work.corpus.examples):  # all: traces of other splits stay when one is added
        answers, request = work.chain(example)
        if request is not None:
            not_asked += example.id in waiting
        elif answers[-1].reasons:
            quarantined.append(_quarantined(example, answers[-1].reasons, answers[-1].text))
        else:
            traces.append((example.id, parse_trace(answers[-1].text).trace))
            accepted_at[str(answers[-1].attempt)] += 1
    ledger = work.ledger
    report = AnnotationReport(
        annotator=annotator,
        server=server,
        splits=splits,
        examples=len(traces) + len(quarantined) + len(work.refused) + len(work.unanswered) + not_asked,
        accepted=len(traces),
        quarantined=len(quarantined),
        refused=work.refused,
        unanswered=work.unanswered,
        not_asked=not_asked,
        accepted_at=dict(sorted(accepted_at.items())),
        rejections=_count_kinds(answer.reasons for answer in ledger.answers.values()),
        answers=len(ledger.answers),
        answers_by_way=_sorted_counts(answer.how for answer in ledger.answers.values()),
        models=_sorted_counts(answer.model for answer in ledger.answers.values()),
        tokens_in=ledger.tokens_in,
        tokens_out=ledger.tokens_out,
        cost_usd=ledger.spent,
        of_it_lost_usd=ledger.lost,
        too_dear=work.too_dear,
        attached=attach and not (not_asked or work.refused or work.unanswered),
    )
    _write(folder, work.corpus, traces, quarantined, report)
    return report


def annotate_by_rule(
    corpus: Corpus, splits: tuple[Split, ...] = ("train",), *, limit: int | None = None
) -> tuple[Path, AnnotationReport]:
    """Write traces by rule, checked like an LLM's, and attach them to the corpus; with a `limit` they are a sample and not attached.

    Returns the folder of the annotation and the report. Raises ValueError.
    """
    annotator = {"name": RULE_ANNOTATOR, "version": RULE_VERSION, "prompt_version": TRACE_PROMPT_VERSION}
    fingerprint = hashlib.sha256(json.dumps(annotator, sort_keys=True).encode()).hexdigest()
    examples = selected_examples(corpus, splits, limit)
    traces: list[tuple[str, Trace]] = []
    quarantined: list[dict[str, Any]] = []
    reasons: list[Sequence[Rejection]] = []
    with annotation_folder(corpus.root, RULE_ANNOTATOR, annotator, fingerprint) as folder:
        for example in examples:
            answer = rule_answer(example)
            found = check_trace(answer, example, asked_labels(example, corpus.ontology))
            reasons.append(found)
            if found:
                quarantined.append(_quarantined(example, found, json.dumps(to_json(answer.trace), ensure_ascii=False)))
            else:
                traces.append((example.id, answer.trace))
        report = AnnotationReport(
            annotator=annotator,
            splits=splits,
            examples=len(examples),
            accepted=len(traces),
            quarantined=len(quarantined),
            accepted_at={"1": len(traces)},
            rejections=_count_kinds(reasons),
            answers_by_way={},
            models={},
            attached=limit is None,
        )
        _write(folder, corpus, traces, quarantined, report)
    return folder, report


def _write(
    folder: Path,
    corpus: Corpus,
    traces: Sequence[tuple[str, Trace]],
    quarantined: Sequence[Mapping[str, Any]],
    report: AnnotationReport,
) -> None:
    lines = [
        json.dumps({"id": name, "trace": to_json(trace)}, ensure_ascii=False).encode() + b"\n" for name, trace in traces
    ]
    made_from = [report.annotator, hashlib.sha256(b"".join(lines)).hexdigest()]
    fingerprint = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    # A file of its own per content: the one that the corpus has now is whole until corpus.json names its successor.
    path = folder / (f"traces-{fingerprint[:12]}.jsonl" if report.attached else PARTIAL_FILE)
    with atomic_open(path, "wb") as stream:
        stream.writelines(lines)
    write_jsonl(folder / "quarantined.jsonl", quarantined)
    if report.attached:
        attach_traces(
            corpus.root,
            file=path.relative_to(corpus.root),
            fingerprint=fingerprint,
            annotator=report.annotator,
            quarantined=report.quarantined,
        )
        for former in {*folder.glob("traces-*.jsonl"), folder / PARTIAL_FILE} - {path}:
            former.unlink(missing_ok=True)
    amounts = {"cost_usd": format(report.cost_usd, "f"), "of_it_lost_usd": format(report.of_it_lost_usd, "f")}
    write_json(folder / "report.json", {**asdict(report), **amounts})


def _quarantined(example: Example, reasons: Sequence[Rejection], answer: str) -> dict[str, Any]:
    return {"id": example.id, "reasons": [asdict(reason) for reason in reasons], "answer": answer}


def _count_kinds(reasons: Iterable[Sequence[Rejection]]) -> dict[str, int]:
    return _sorted_counts(kind for each in reasons for kind in sorted({reason.kind for reason in each}))


def _sorted_counts(names: Iterable[str]) -> dict[str, int]:
    """How often each occurs, the most frequent first."""
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))
