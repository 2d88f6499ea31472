"""What may befall a file, and every kind of file that a store holds, by who mends it: no kind may appear that no damage was tried on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest


def flipped(content: bytes) -> bytes:
    """The content with one bit changed in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "truncated in the middle": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
    "one bit flipped": flipped,
    "deleted": lambda content: None,
    "replaced by garbage": lambda content: bytes(value * 7 % 256 for value in range(len(content) % 1009)) or b"\xff",
}


def damage(file: Path, how: str) -> bool:
    """Damage a file in one of the ways of `DAMAGES`; whether that made a difference. Other names of the file (hard links) are spared."""
    before = file.read_bytes()
    content = DAMAGES[how](before or b"\n")
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    return content != before


def size_of_case(kind: int, how: str) -> list[pytest.MarkDecorator]:
    """Marks of a test that damages the kind-th kind of file: one way of each kind is tested always, in turn, the others by `make test-full`."""
    turn = list(DAMAGES)[kind % len(DAMAGES)]
    return [pytest.mark.slow] if how == turn else [pytest.mark.slow, pytest.mark.full]


@dataclass(frozen=True)
class Kind:
    """A kind of file: where it lies below the run folder, and whether damage to it may end in an error that names it."""

    path: str
    named: bool = False
    deleted_is_named: bool = True  # where it is `named`


def of_trial(trial: str) -> dict[str, Kind]:
    """What a trial leaves at any time; `trial`: its folder below the run folder."""
    return {
        "config": Kind(f"{trial}/config.json", named=True),
        "metrics": Kind(f"{trial}/metrics.jsonl"),
        "status": Kind(f"{trial}/status.json"),
        "newest weights": Kind(f"{trial}/checkpoints/step-000004/trainable.safetensors"),
        "newest moments": Kind(f"{trial}/checkpoints/step-000004/optimizer.safetensors"),
        "newest random state": Kind(f"{trial}/checkpoints/step-000004/random-0.safetensors"),
        "newest commit": Kind(f"{trial}/checkpoints/step-000004/commit.json"),
        "attempt": Kind(f"{trial}/attempts/1/attempt.json"),
        "token": Kind(f"{trial}/attempts/1/token"),
        "log": Kind(f"{trial}/attempts/1/log"),
        "failure": Kind(f"{trial}/attempts/1/failure.json"),
        "lock of the attempt": Kind(f"{trial}/attempts/1/lock"),
    }


def of_finished(trial: str) -> dict[str, Kind]:
    """What a done trial has beside that."""
    return {
        "result": Kind(f"{trial}/result.json"),
        "predictions": Kind(f"{trial}/predictions-direct.jsonl"),
        "predictions' commit": Kind(f"{trial}/predictions-direct.commit.json"),
    }


def of_half(trial: str) -> dict[str, Kind]:
    """What a trial that is not done has beside that."""
    return {
        "answers so far": Kind(f"{trial}/predictions-direct.part-0.jsonl"),
        "weights before": Kind(f"{trial}/checkpoints/step-000002/trainable.safetensors"),
    }


RUN = {
    "plan": Kind("plan.json", named=True, deleted_is_named=False),
    "lease": Kind("lease.json"),
    "lock of the lease": Kind("lease.lock"),
    "stop": Kind("stop.json"),
}
"""Of a run folder, beside its trials."""

COMMAND = {
    "results": Kind("results.csv"),
    "costs": Kind("costs.csv"),
    "report": Kind("report.md"),
    "heatmap": Kind("heatmap.png"),
    "id of the grid in MLflow": Kind("mlflow_run_id"),
    "key of the grid in MLflow": Kind("mlflow_key"),
    "what the grid has mirrored": Kind("mlflow_mirror.json"),
    "id of the trial in MLflow": Kind("trials/*/mlflow_run_id"),
    "key of the trial in MLflow": Kind("trials/*/mlflow_key"),
    "what the trial has mirrored": Kind("trials/*/mlflow_mirror.json"),
    "report of a canary": Kind("canaries/*/report.json"),
    "copy in MLflow": Kind("../mlartifacts/*/artifacts/result.json"),
    "database of MLflow": Kind("../mlflow.db"),
}
"""What the command itself writes, whatever becomes of the trials."""

PREPARED = {
    "corpus": "corpus/corpus.json",
    "manifest": "corpus/manifest.jsonl",
    "ontology": "corpus/ontology.json",
    "traces": "corpus/traces.jsonl",
    "what was synthesized": "corpus/synthesis.json",
    "what was voiced": "corpus/voiced/train-00000.jsonl",
    "recording": "corpus/audio/train/train-000000.flac",
    "lock of the corpus": "corpus/.lock",
    "encoder weights": "whisper-base-random.safetensors",
    "hash of the encoder weights": "whisper-base-random.json",
    "manifest of the states": "states/*/manifest.json",
    "shard of the states": "states/*/*.arrow",
    "what a shard holds": "states/*/[0-9a-f]*[0-9a-f].json",
    "lock of the states": "states/*/.lock",
}
"""What trials share, below a folder with a corpus, an encoder and its states."""


def iter_unknown(store: Path, run: str) -> Iterator[str]:
    """The files of a store, one of whose run folders is called `run`, that are of no kind above."""
    trial = {**of_trial("trials/*"), **of_finished("trials/*"), **of_half("trials/*")}
    known = {f"{run}/{kind.path}" for kind in (RUN | COMMAND | trial).values()} | {"mlflow.db", "mlartifacts/*"}
    known |= {
        pattern.replace("/1/", "/*/").replace("step-000004", "step-*").replace("-direct.", "-*.").replace("-0.", "-*.")
        for pattern in known
    }
    corpora, states, encoders = "prepared/corpora/*", "prepared/encoder_states", "prepared/encoders/"
    for pattern in PREPARED.values():
        name = pattern.replace("train/train-000000", "*").replace("train-00000", "*")
        known.add(name.replace("corpus/", f"{corpora}/", 1).replace("states/", f"{states}/", 1))
    known |= {f"{encoders}*.json", f"{encoders}*.safetensors"}
    for path in sorted(store.rglob("*")):
        name = path.relative_to(store).as_posix()
        if path.is_file() and not any(fnmatchcase(name, pattern) for pattern in known):
            yield name
