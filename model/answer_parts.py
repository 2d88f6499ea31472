"""Answers <-> files: each rank's `predictions-<mode>.part-<rank>.jsonl` while they are generated, then `predictions-<mode>.jsonl`, whole.

A line of a part is one batch of answers, with the model that gave them and a checksum: it is on disk before the next batch begins, and a line that
a kill cut off or that a disk changed costs its own batch alone. `predictions-<mode>.commit.json`, sealed and written after the predictions, holds
their sha256 and the model: predictions without it, or that differ from it, are none.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from data.atomic import (
    atomic_open,
    file_sha256,
    iter_whole_lines,
    read_sealed_json,
    write_jsonl,
    write_sealed_json,
)
from data.checked_lines import checked_line, parse_checked_line
from data.records import InferenceMode, Prediction, Split, prediction_from_json, to_json

Asked = tuple[Split, str]
"""What names an answer within its inference mode: the split and the example's id."""

_log = logging.getLogger(__name__)


def asked(prediction: Prediction) -> Asked:
    """What the prediction answers."""
    return prediction.split, prediction.example_id


class AnswerFiles:
    """The answers of one inference mode in a trial's output folder. `model` names the weights: the answers of others do not count."""

    def __init__(self, folder: Path, mode: InferenceMode, *, model: str) -> None:
        self._folder, self._name, self._model = folder, f"predictions-{mode}", model
        self._whole = folder / f"{self._name}.jsonl"
        self._commit = folder / f"{self._name}.commit.json"

    def committed(self, questions: Sequence[Asked]) -> list[Prediction] | None:
        """The whole predictions, None when there are none or when they are not this model's, one per question in their order, to the byte."""
        if not self._whole.exists():
            return None
        try:
            if read_sealed_json(self._commit) != self._commitment():
                raise ValueError(f"{self._whole}: differs from what was written, or is of other weights")
            predictions = [prediction_from_json(row) for row in iter_whole_lines(self._whole)]
        except (ValueError, TypeError, KeyError, FileNotFoundError) as error:
            _log.warning("%s; what the parts do not hold is generated again", error)
            return None
        return predictions if [asked(prediction) for prediction in predictions] == list(questions) else None

    def kept(self, questions: Collection[Asked]) -> list[list[Prediction]]:
        """The batches in all parts, whichever ranks of whichever attempt wrote them.

        A last line that a kill cut off is passed over, and with a warning any other that is damaged.
        """
        batches, seen, open_questions = [], set[Asked](), set(questions)
        for path in sorted(self._folder.glob(f"{self._name}.part-*.jsonl")):
            for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
                found = _checked(line)
                if found is None:
                    _log.warning("%s, line %d: is damaged; its answers are generated again", path, number)
                    continue
                model, batch = found
                answers = set(map(asked, batch))
                if model == self._model and answers <= open_questions and not answers & seen:
                    batches.append(batch)
                    seen |= answers
        return batches

    def restart(self, kept: Sequence[Sequence[Prediction]]) -> None:
        """Put what is kept into a new first part, then remove the others: a worker of an earlier attempt appends to files that are gone."""
        first = self._part(0)
        with atomic_open(first) as stream:
            stream.writelines(self._line(batch) for batch in kept)
        self._remove_parts(but=first)

    @contextmanager
    def appending(self, rank: int) -> Iterator[Callable[[Sequence[Prediction]], None]]:
        """A function that puts a batch into the rank's part; when it returns, the batch is on disk."""
        with self._part(rank).open("a", encoding="utf-8") as stream:

            def append(batch: Sequence[Prediction]) -> None:
                stream.write(self._line(batch))
                stream.flush()
                os.fsync(stream.fileno())

            yield append

    def commit(self, predictions: Sequence[Prediction]) -> None:
        """Write the predictions, whole or not at all, then what vouches for them; then the parts go."""
        write_jsonl(self._whole, map(to_json, predictions))
        write_sealed_json(self._commit, self._commitment())
        self._remove_parts()

    def _commitment(self) -> dict[str, str]:
        return {"model": self._model, "predictions_sha256": file_sha256(self._whole)}

    def _part(self, rank: int) -> Path:
        return self._folder / f"{self._name}.part-{rank}.jsonl"

    def _remove_parts(self, but: Path | None = None) -> None:
        for path in self._folder.glob(f"{self._name}.part-*.jsonl"):
            if path != but:
                path.unlink(missing_ok=True)

    def _line(self, batch: Sequence[Prediction]) -> str:
        return checked_line({"model": self._model, "predictions": [to_json(prediction) for prediction in batch]})


def _checked(line: bytes) -> tuple[str, list[Prediction]] | None:
    """The model and the batch of a line, None when any byte of it was changed."""
    row = parse_checked_line(line)
    if row is None:
        return None
    try:
        return row["model"], [prediction_from_json(prediction) for prediction in row["predictions"]]
    except (TypeError, KeyError):  # whole, but of another version of this code
        return None
