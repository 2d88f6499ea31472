"""`slotgrid score`: the tables, the files it writes, and what a defective file is told."""

import argparse
import json

import pytest

from orchestrator.commands.score import add_command

REFERENCES = [
    {"id": "1", "domain": "travel", "slots": {"city": "Paris", "date": "march third"}},
    {"id": "2", "domain": "retail", "slots": {"item": "red [bold]shoes"}},
]
PREDICTIONS = [{"id": "1", "slots": {"city": "Rome", "date": "March 3rd"}}]


@pytest.fixture
def slotgrid(tmp_path, monkeypatch):
    """Run the command in a folder that holds references.jsonl and predictions.jsonl."""
    monkeypatch.chdir(tmp_path)
    for name, rows in (("references", REFERENCES), ("predictions", PREDICTIONS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def run(*arguments):
        parser = argparse.ArgumentParser()
        add_command(parser.add_subparsers())
        options = parser.parse_args(["score", *arguments])
        return options.act(options)

    return run


FILES = ("--predictions", "predictions.jsonl", "--references", "references.jsonl")


def test_prints_scores_breakdowns_and_what_is_next(slotgrid, capsys):
    assert slotgrid(*FILES) == 0
    out = capsys.readouterr().out
    assert "warning: 1 of 2 references have no prediction (first: 2)" in out
    assert "2 examples, 1 answered; format jsonl, metric version 2" in out
    for word in ("partial_f1", "slu_f1", "city", "retail", "wrong value", "missed"):
        assert word in out
    assert "parse_failure_rate" not in out
    assert out.splitlines()[-1].startswith("next: add --out DIR")


def test_writes_the_same_bytes_again(slotgrid, tmp_path, capsys):
    assert slotgrid(*FILES, "--out", "one") == slotgrid(*FILES, "--out", "two", "--format", "jsonl") == 0
    assert "next: look at two/errors.jsonl" in capsys.readouterr().out
    for name in ("scores.json", "errors.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    errors = [json.loads(line) for line in (tmp_path / "one" / "errors.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(error["id"], error["kind"]) for error in errors] == [("1", "wrong_value"), ("2", "missed")]


def test_json_is_the_scores_file_and_nothing_else(slotgrid, tmp_path, capsys):
    assert slotgrid(*FILES, "--json", "--out", "out") == 0
    out = capsys.readouterr().out
    assert out == (tmp_path / "out" / "scores.json").read_text(encoding="utf-8")
    sheet = json.loads(out)
    assert (sheet["scores"]["exact_f1"], sheet["metric_version"]) == (2 / 5, 2)


def test_tells_every_defect_in_a_line_and_writes_nothing(slotgrid, tmp_path, capsys):
    (tmp_path / "predictions.jsonl").write_text('{"id": "1", "slots": 1}\n' + '{"slots": {}}\n' * 30, encoding="utf-8")
    assert slotgrid(*FILES, "--out", "out") == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("predictions.jsonl, line 1, field slots: must be an object or a list, not 1; write")
    assert lines[1] == "predictions.jsonl, line 2, field id: is missing; write it"
    assert lines[-2:] == ["and 11 more", "nothing was scored: 31 defects"]
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_one_line(slotgrid):
    with pytest.raises(ValueError, match=r"nowhere\.jsonl: is missing"):
        slotgrid("--predictions", "nowhere.jsonl")
