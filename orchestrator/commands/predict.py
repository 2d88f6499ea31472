"""`slotgrid predict EXPORT`: from audio to slots, for one file, for a list of one's own, or for a corpus as the evaluation asks it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from data.records import SPLITS, InferenceMode, Prediction, Split, Turn
from orchestrator.commands.corpora import SubParsers
from orchestrator.terminal import open_console
from orchestrator.verbs import EXIT_DONE

if TYPE_CHECKING:
    from data.json_lines import Location
    from model.export import Export
    from model.exported import ExportedModel
    from model.questions import Request

DEFAULT_CACHE = "~/.cache/slotgrid"
_ROW_FIELDS = {"id", "audio", "labels", "context"}


def add_command(areas: SubParsers) -> None:
    """The options of `slotgrid predict`."""
    parser = areas.add_parser(
        "predict",
        help="from audio to slots, with an exported trial",
        description=(
            "Answer with an export. --audio: one file. --manifest: your own JSON lines of {audio, labels, id, context}, or the manifest.jsonl "
            "of a slotgrid corpus, which is asked as the evaluation of a trial asks it. docs/export.md says more."
        ),
        allow_abbrev=False,
    )
    parser.add_argument("export", type=Path, metavar="EXPORT", help="what `slotgrid export` wrote")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--audio", type=Path, metavar="FILE", help="one audio file; needs --labels")
    asked.add_argument("--manifest", type=Path, metavar="FILE", help="many audio files; paths are below its folder")
    parser.add_argument("--labels", metavar="A,B,C", help="what to ask for, where a line does not say")
    parser.add_argument("--ontology", type=Path, metavar="FILE", help="descriptions of labels (default: the export's)")
    parser.add_argument("--split", choices=SPLITS, help="of a corpus (default: those that the trial was evaluated on)")
    parser.add_argument(
        "--mode", choices=("direct", "think"), help="how it is asked (default: the export's headline mode)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON lines (default: standard output)")
    parser.add_argument(
        "--foundation", type=Path, metavar="DIR", help="where the foundation lies, if it is a folder and has moved"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=os.environ.get("SLOTGRID_CACHE", DEFAULT_CACHE),
        metavar="DIR",
        help=f"where encoder weights are kept (default: SLOTGRID_CACHE, else {DEFAULT_CACHE})",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        metavar="K",
        help="CPU threads (default: 1, which gives a trial's very answers)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=64, metavar="N", help="answers at a time (default: 64, as in a trial)"
    )
    parser.set_defaults(act=predict)


def predict(options: argparse.Namespace) -> int:
    """`slotgrid predict`: one JSON line per answer. What is wrong with the command or the list is told before a model is loaded."""
    for name in ("threads", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')}: {getattr(options, name)} is too few; give at least 1")
    from model.export import open_export

    export = open_export(options.export)
    mode: InferenceMode = options.mode or export.headline_inference_mode
    export.check_mode(mode)
    answer = _questions(options, export, mode)

    import torch

    from data.atomic import write_jsonl
    from model.exported import load_export

    torch.set_num_threads(options.threads)
    console = open_console()
    with console.status(f"loading {export.trial_id}"):
        model = load_export(options.export, cache=options.cache.expanduser(), foundation=options.foundation)
    with console.status("answering"):
        rows = answer(model)
    if options.out:
        write_jsonl(options.out, rows)
        console.print(escape(f"{len(rows)} answers ({mode}) -> {options.out}"), soft_wrap=True)
    else:
        sys.stdout.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return EXIT_DONE


Answer = Callable[["ExportedModel"], list[dict[str, Any]]]


def _questions(options: argparse.Namespace, export: Export, mode: InferenceMode) -> Answer:
    """What the command line asks, ready for a model. Raises ValueError for a list or an option that cannot be used."""
    from data.manifest import CORPUS_FILE, MANIFEST_FILE

    manifest: Path | None = options.manifest
    if manifest and manifest.name == MANIFEST_FILE and (manifest.parent / CORPUS_FILE).is_file():
        return _ask_corpus(options, export, mode)
    if options.split:
        raise ValueError(f"--split: only a corpus has splits, and {manifest or options.audio} is none; leave it out")
    return _ask_requests(options, export, mode)


def _ask_corpus(options: argparse.Namespace, export: Export, mode: InferenceMode) -> Answer:
    """The trial's own evaluation, on any corpus: lines as in predictions-<mode>.jsonl, which `slotgrid score` reads."""
    from data.manifest import open_corpus
    from data.records import to_json
    from model.questions import corpus_questions

    if options.labels or options.ontology:
        raise ValueError("--labels, --ontology: a corpus says itself what is asked; leave them out")
    corpus = open_corpus(options.manifest.parent)
    splits: Sequence[Split] = (options.split,) if options.split else export.config.evaluation.splits
    asked = {split: corpus_questions(corpus, split, export.config.supervision, mode) for split in splits}
    if not any(asked.values()):
        raise ValueError(
            f"{options.manifest}: no example in {', '.join(splits)}; name a split that has some with --split"
        )

    def answer(model: ExportedModel) -> list[dict[str, Any]]:
        return [
            to_json(prediction)
            for split, questions in asked.items()
            for prediction in model.predict(questions, mode=mode, split=split, batch_size=options.batch_size)
        ]

    return answer


def _ask_requests(options: argparse.Namespace, export: Export, mode: InferenceMode) -> Answer:
    """One file, or somebody's own list: lines of id and slots, which `slotgrid score` reads too."""
    from data.audio import AudioFile
    from data.manifest import read_ontology
    from model.questions import Request, request_question

    labels = tuple(label.strip() for label in options.labels.split(",")) if options.labels else ()
    if options.audio:
        if not labels:
            raise ValueError(
                "--labels: say what to ask for, e.g. --labels " + ",".join(list(export.ontology.labels())[:2])
            )
        requests = [Request(id=options.audio.stem, audio=options.audio, labels=labels)]
    else:
        requests = list(_read_requests(options.manifest, labels))
    for request in requests:
        AudioFile(request.audio).close()  # a file that is not there is told before a model is loaded
    ontology = read_ontology(options.ontology) if options.ontology else export.ontology
    questions = [request_question(request, ontology, export.config.supervision, mode) for request in requests]

    def answer(model: ExportedModel) -> list[dict[str, Any]]:
        return [_slots_row(p) for p in model.predict(questions, mode=mode, batch_size=options.batch_size)]

    return answer


def _slots_row(prediction: Prediction) -> dict[str, Any]:
    from data.answers import parse_answer

    answer = parse_answer(prediction.output_text)
    slots: dict[str, list[str]] = {}
    for label, value in answer.slots:
        slots.setdefault(label, []).append(value)
    return {
        "id": prediction.example_id,
        "slots": slots,
        "parse_failure": answer.parse_failure,
        "truncated": prediction.truncated,
        "answer": prediction.output_text,
    }


def _read_requests(path: Path, labels: tuple[str, ...]) -> Iterator[Request]:
    """One request a line. Raises CorpusError that names line, field and remedy."""
    from data.json_lines import iter_objects, raise_first, shown
    from model.questions import Request

    ids: set[str] = set()
    for at, row in iter_objects(path):
        raise_first(_defects(at, row, labels))
        name = row.get("id", row["audio"])
        if name in ids:
            raise_first([at.error("id-duplicate", "id", f"{shown(name)} is given twice", "give every line its own id")])
        ids.add(name)
        yield Request(
            id=name,
            audio=path.parent / row["audio"],
            labels=tuple(row.get("labels", labels)),
            context=tuple(Turn(**turn) for turn in row.get("context", ())),
        )
    if not ids:
        raise ValueError(f"{path}: holds no lines; write one {{audio, labels}} for each audio file")


def _defects(at: Location, row: Mapping[str, Any], labels: tuple[str, ...]) -> Iterator[Any]:
    from data.json_lines import is_text

    for field in sorted(row.keys() - _ROW_FIELDS):
        remedy = f"a line has {', '.join(sorted(_ROW_FIELDS))}; a corpus is asked by its own manifest.jsonl"
        yield at.error("field-unknown", field, "is not known", remedy)
    if not is_text(row.get("audio")):
        yield at.error("audio-not-text", "audio", "must be a path", "name the audio file, below the list's folder")
    if "id" in row and not is_text(row["id"]):
        yield at.error("id-not-text", "id", "must be a non-empty string", "fill it, or leave it out")
    wanted = row.get("labels", list(labels))
    if not isinstance(wanted, list) or not wanted or not all(map(is_text, wanted)):
        yield at.error(
            "labels-wrong", "labels", "must be a non-empty list of names", "name what to ask for, or give --labels"
        )
    context = row.get("context", [])
    known = {"speaker", "text"}
    if not isinstance(context, list) or not all(
        isinstance(turn, dict) and turn.keys() == known and all(map(is_text, turn.values())) for turn in context
    ):
        yield at.error("context-wrong", "context", "must be a list of {speaker, text}", "correct it, or leave it out")
