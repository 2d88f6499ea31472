"""A corpus folder is read back as it was written, and every defect in it is named by file, line, field and remedy."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.atomic import write_jsonl
from data.json_lines import CorpusError
from data.manifest import Corpus, attach_traces, corpus_summary, open_corpus, write_corpus
from data.records import (
    AnnotatedExample,
    Example,
    Justification,
    Label,
    Mention,
    Ontology,
    SlotValue,
    Trace,
    Turn,
    to_json,
)

ONTOLOGY = Ontology(
    domains={
        "travel": (Label(name="city", description="where to", values=("Denver", "Rome")),),
        "bank": (Label(name="amount", description="how much"),),
    }
)


def row(number: int, split: Any = "train") -> AnnotatedExample:
    example = Example(
        id=f"call-{number}",
        split=split,
        domain="travel",
        audio=f"audio/call-{number}.flac",
        audio_sha256=f"{number:064x}",
        duration_s=1.5,
        transcript="i go to denver",
        slots=(SlotValue(label="city", spoken="denver", surface="Denver", canonical="Denver"),),
        context=(Turn(speaker="agent", text="where to"),),
        speaker="speaker-01",
        held_out=("speaker",),
    )
    mentions = (Mention(label="city", text="denver"),)
    because = (Justification(label="city", value="denver", because="the caller says to before it"),)
    trace = Trace(transcription="i go to denver", mentions=mentions, justifications=because)
    return AnnotatedExample(example=example, trace=trace if number != 2 else None)


def write(root: Path) -> Corpus:
    (root / "audio").mkdir(parents=True)
    rows = [row(1), row(2), row(3, "test")]
    for item in rows:
        (root / item.example.audio).write_bytes(b"fLaC")
    return write_corpus(
        root, name="calls", fingerprint="f00", ontology=ONTOLOGY, examples=rows, details={"made": "here"}
    )


def edit(root: Path, file: str, change: Callable[[dict[str, Any]], object], line: int = 2) -> None:
    """Change one line of a JSON-lines file, as a person with an editor would, and forget the hashes."""
    lines = (root / file).read_text(encoding="utf-8").splitlines()
    value = json.loads(lines[line - 1])
    change(value)
    lines[line - 1] = json.dumps(value)
    (root / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    forget_hashes(root)


def forget_hashes(root: Path) -> None:
    summary = json.loads((root / "corpus.json").read_text())
    summary.pop("files", None)
    (root / "corpus.json").write_text(json.dumps(summary))


def test_round_trip(tmp_path: Path) -> None:
    written = write(tmp_path / "calls")
    corpus = open_corpus(tmp_path / "calls")
    assert corpus == written
    assert corpus.examples == (row(1), row(2), row(3, "test"))
    assert [item.example.id for item in corpus.split("train")] == ["call-1", "call-2"]
    assert corpus.ontology == ONTOLOGY and corpus.fingerprint == "f00"
    assert corpus.audio_path(row(1).example).read_bytes() == b"fLaC"
    with pytest.raises(
        CorpusError, match="split 'dev' is unknown; use one of train, validation, test, test_frame, test_domain"
    ):
        corpus.split("dev")  # type: ignore[arg-type]


def put(field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda line: line.__setitem__(field, value)


ROW_DEFECTS: dict[str, tuple[Callable[[dict[str, Any]], object], str, str]] = {
    "missing field": (lambda line: line.pop("domain"), "domain", "is missing"),
    "unknown field": (put("transcription", "x"), "transcription", "is not a field"),
    "number as id": (put("id", 7), "id", "non-empty string"),
    "duplicate id": (put("id", "call-1"), "id", "stands on line 1 too"),
    "unknown split": (put("split", "dev"), "split", "'dev' is unknown; use one of train"),
    "list as split": (put("split", ["train"]), "split", "is unknown"),
    "empty transcript": (put("transcript", "  "), "transcript", "non-empty string"),
    "unknown domain": (put("domain", "insurance"), "domain", "'insurance' is not in ontology.json"),
    "text as duration": (put("duration_s", "1.5"), "duration_s", "not a number of seconds"),
    "true as duration": (put("duration_s", True), "duration_s", "not a number of seconds"),
    "NaN duration": (put("duration_s", float("nan")), "duration_s", "not a number of seconds"),
    "no duration": (put("duration_s", 0), "duration_s", "not a number of seconds"),
    "short hash": (put("audio_sha256", "abc"), "audio_sha256", "64 lower-case hexadecimal"),
    "slots as object": (put("slots", {"city": "denver"}), "slots", "must be a list"),
    "slot without canonical": (
        lambda line: line["slots"][0].pop("canonical"),
        "slots[0]",
        "must be an object of label",
    ),
    "empty slot value": (lambda line: line["slots"][0].update(spoken=""), "slots[0].spoken", "non-empty string"),
    "label of another domain": (
        lambda line: line["slots"][0].update(label="amount"),
        "slots[0].label",
        "'amount' is not a label",
    ),
    "unknown turn": (lambda line: line["context"][0].update(speaker="bot"), "context[0].speaker", "'bot' is unknown"),
    "context as text": (put("context", "where to"), "context", "must be a list"),
    "unknown held out": (put("held_out", ["accent"]), "held_out", "names among frame, value, speaker, domain"),
    "speaker as number": (put("speaker", 3), "speaker", "must be a string"),
    "absolute audio": (put("audio", "/data/call-2.flac"), "audio", "absolute path; write it relative"),
    "windows audio": (put("audio", "C:\\calls\\call-2.flac"), "audio", "absolute path"),
    "audio above the root": (put("audio", "audio/../../call-2.flac"), "audio", "leaves the corpus folder"),
    "missing audio": (put("audio", "audio/call-9.flac"), "audio", "does not exist; restore"),
    "folder as audio": (put("audio", "audio"), "audio", "is a folder"),
}


@pytest.mark.parametrize("name", ROW_DEFECTS)
def test_row_defects_name_line_field_and_remedy(tmp_path: Path, name: str) -> None:
    write(tmp_path / "calls")
    change, field, problem = ROW_DEFECTS[name]
    edit(tmp_path / "calls", "manifest.jsonl", change)
    with pytest.raises(CorpusError) as caught:
        open_corpus(tmp_path / "calls")
    message = str(caught.value)
    assert f"{tmp_path / 'calls' / 'manifest.jsonl'}, line 2, field {field}: " in message
    assert problem in message and "; " in message and "\n" not in message


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"id": "call-2", "tr\n', "line 2: is not valid JSON"),
        (b"\n", "line 2: is not valid JSON"),
        (b"[1, 2]\n", "line 2: must be a JSON object"),
        (b'{"id": "caf\xe9"}\n', "line 2: is not UTF-8 (byte 12)"),
    ],
)
def test_unreadable_lines_are_named(tmp_path: Path, line: bytes, problem: str) -> None:
    write(tmp_path)
    path = tmp_path / "manifest.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + line + lines[2])
    with pytest.raises(CorpusError, match=r"manifest\.jsonl") as caught:
        open_corpus(tmp_path)
    assert problem in str(caught.value)


@pytest.mark.parametrize("link", ["file", "folder"])
def test_links_must_not_lead_out_of_the_corpus(tmp_path: Path, link: str) -> None:
    root, outside = tmp_path / "calls", tmp_path / "outside"
    write(root)
    outside.mkdir()
    (outside / "call-2.flac").write_bytes(b"fLaC")
    if link == "file":
        (root / "audio/call-2.flac").unlink()
        (root / "audio/call-2.flac").symlink_to(outside / "call-2.flac")
    else:
        (root / "more").symlink_to(outside)
        edit(root, "manifest.jsonl", put("audio", "more/call-2.flac"))
    with pytest.raises(CorpusError, match=r"line 2, field audio: .* leaves the corpus folder through a link"):
        open_corpus(root)


def test_an_empty_audio_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "audio/call-3.flac").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"line 3, field audio: 'audio/call-3.flac' is an empty file"):
        open_corpus(tmp_path)


TRACE_DEFECTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "unknown id": (put("id", "call-9"), "line 2, field id: 'call-9' is not in manifest.jsonl"),
    "twice": (put("id", "call-1"), "line 2, field id: 'call-1' has a trace already"),
    "text as trace": (put("trace", "I hear"), "line 2, field trace.transcription"),
    "mention without text": (lambda line: line["trace"]["mentions"][0].pop("text"), "line 2, field trace.mentions[0]"),
}


@pytest.mark.parametrize("name", TRACE_DEFECTS)
def test_trace_defects(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    change, problem = TRACE_DEFECTS[name]
    edit(tmp_path, "traces.jsonl", change)
    with pytest.raises(CorpusError) as caught:
        open_corpus(tmp_path)
    assert f"traces.jsonl, {problem}" in str(caught.value)


def test_ontology_defects(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "ontology.json").write_text('{"domains": {"travel": [{"name": "city"}]}}')
    with pytest.raises(
        CorpusError, match=r"ontology.json, field domains.travel\[0\]: must be an object of name, descrip"
    ):
        open_corpus(tmp_path)


def test_a_corpus_without_traces_is_read(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "traces.jsonl").unlink()
    with pytest.raises(CorpusError, match=r"traces.jsonl: changed since corpus.json was written"):
        open_corpus(tmp_path)
    forget_hashes(tmp_path)
    assert all(item.trace is None for item in open_corpus(tmp_path).examples)


def test_values_of_labels_may_be_left_out(tmp_path: Path) -> None:
    write(tmp_path)
    forget_hashes(tmp_path)
    path = tmp_path / "ontology.json"
    ontology = json.loads(path.read_text())
    del ontology["domains"]["travel"][0]["values"]
    path.write_text(json.dumps(ontology))
    assert open_corpus(tmp_path).ontology.labels()["city"].values == ()
    ontology["domains"]["travel"][0]["values"] = ["Denver", 3]
    path.write_text(json.dumps(ontology))
    with pytest.raises(CorpusError, match=r"field domains.travel\[0\].values: must be a list of texts"):
        open_corpus(tmp_path)


def write_traces(root: Path, file: str, *, id: str = "call-3", because: str = "another reason") -> Path:
    trace = row(1).trace
    assert trace
    changed = replace(trace, justifications=(Justification(label="city", value="denver", because=because),))
    write_jsonl(root / file, [{"id": id, "trace": to_json(changed)}])
    return root / file


def test_traces_are_attached_and_replaced(tmp_path: Path) -> None:
    written = write(tmp_path)
    assert written.traces is None and corpus_summary(tmp_path)["traces"] is None
    old = (tmp_path / "traces.jsonl").read_bytes()
    file = write_traces(tmp_path, "annotations/first/traces.jsonl")
    annotator = {"model": "gpt-4o", "prompt_version": 1}
    attached = attach_traces(tmp_path, file=file, fingerprint="7ace", annotator=annotator, quarantined=2)
    corpus = open_corpus(tmp_path)
    assert corpus == attached and corpus.fingerprint == "f00"
    assert corpus.traces and corpus.traces.file == "annotations/first/traces.jsonl" and corpus.traces.count == 1
    assert [item.trace is None for item in corpus.examples] == [True, True, False]
    assert (tmp_path / "traces.jsonl").read_bytes() == old
    second = write_traces(tmp_path, "annotations/second/traces.jsonl", because="a better reason")
    relative = second.relative_to(tmp_path)
    attach_traces(tmp_path, file=relative, fingerprint="7acf", annotator=annotator, quarantined=0)
    summary = corpus_summary(tmp_path)
    assert summary["traces"]["file"] == relative.as_posix() and summary["made"] == "here"
    assert set(summary["files"]) == {"manifest.jsonl", "ontology.json", relative.as_posix()}
    trace = open_corpus(tmp_path).examples[2].trace
    assert trace and trace.justifications[0].because == "a better reason"
    write_traces(tmp_path, relative.as_posix(), because="a changed reason")
    with pytest.raises(CorpusError, match=r"second/traces.jsonl: changed since corpus.json was written"):
        open_corpus(tmp_path)


def test_traces_that_do_not_fit_are_not_attached(tmp_path: Path) -> None:
    root = tmp_path / "calls"
    write(root)
    before = (root / "corpus.json").read_bytes()
    outside = write_traces(tmp_path, "traces.jsonl")
    missing, foreign = Path("annotations/no.jsonl"), write_traces(root, "annotations/x.jsonl", id="call-9")
    for file, problem in (
        (outside, "is no file below"),
        (Path("../traces.jsonl"), "is no file below"),
        (missing, "is no file below"),
        (foreign, "'call-9' is not in manifest.jsonl"),
    ):
        with pytest.raises(CorpusError, match=problem):
            attach_traces(root, file=file, fingerprint="7ace", annotator={}, quarantined=0)
    assert (root / "corpus.json").read_bytes() == before and open_corpus(root).traces is None


def test_a_damaged_summary_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    ref = {"file": "", "fingerprint": "7ace", "annotator": {}, "count": 1, "quarantined": 0}
    summary = json.loads((tmp_path / "corpus.json").read_text())
    for key, value, problem in (
        ("name", "", "field name: must be a non-empty string"),
        ("files", [], "field files: must be an object"),
        ("traces", {"file": "traces.jsonl"}, "field traces: must be an object of annotator, count"),
        ("traces", {**ref, "file": "../traces.jsonl"}, "field traces.file: '../traces.jsonl' leaves the corpus folder"),
    ):
        (tmp_path / "corpus.json").write_text(json.dumps({**summary, key: value}))
        with pytest.raises(CorpusError, match=f"corpus.json, {problem}"):
            corpus_summary(tmp_path)


def test_an_unfinished_corpus_is_not_opened(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "corpus.json").unlink()
    with pytest.raises(CorpusError, match=r"corpus\.json: is missing, so this is no finished corpus"):
        open_corpus(tmp_path)


def test_a_manifest_edited_under_its_fingerprint_is_noticed(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "manifest.jsonl"
    path.write_text(path.read_text().replace("i go to denver", "i go to boston"))
    with pytest.raises(CorpusError, match=r"manifest.jsonl: changed since corpus.json was written"):
        open_corpus(tmp_path)


def test_a_defect_leaves_the_corpus_unfinished(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"line 1, field audio: .* does not exist"):
        write_corpus(tmp_path, name="calls", fingerprint="f00", ontology=ONTOLOGY, examples=[row(1)], details={})
    assert not (tmp_path / "corpus.json").exists()


def test_declaring_a_corpus_loads_no_numerics() -> None:
    code = "import sys, data.manifest, data.callcentre.synthesize; print({'numpy', 'soundfile', 'torch'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
