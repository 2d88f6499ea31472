"""Turns a store folder into the paths of everything below it: prepared data, run folders, trial folders, attempts.

    <store>/prepared/{corpora,encoder_states,encoders}      shared by every experiment and scale
    <store>/<experiment>-<scale>/                           one run folder
        plan.json lease.json stop.json results.csv costs.csv report.md heatmap.png
        trials/<trial_id>/config.json result.json metrics.jsonl status.json checkpoints/ predictions-<mode>.jsonl
        trials/<trial_id>/attempts/<n>/{log,failure.json,...}
        canaries/<foundation>/report.json and what a trial leaves
        alignments/<foundation>.seed<n>/{adapter.safetensors,alignment.json} and what a trial leaves

A store in a bucket has a working folder with this layout on the machine that drives it (`orchestrator.bucket`).
Nothing here reads or creates a file; only attempts are listed.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from model.configs import CorpusRef

DEFAULT_STORE = Path("runs")
_SECRET = re.compile("key|token|secret|passw|sig", re.IGNORECASE)
"""In the name of a URI's query parameter."""


@dataclass(frozen=True)
class AttemptFolder:
    """One try of a trial."""

    path: Path

    @property
    def number(self) -> int:
        """1 for the first attempt."""
        return int(self.path.name)

    @property
    def log(self) -> Path:
        """Everything the attempt's worker printed."""
        return self.path / "log"

    @property
    def failure(self) -> Path:
        """Why it failed (`orchestrator.results.Failure`); absent while it runs, when it was killed, and when it ended well."""
        return self.path / "failure.json"


@dataclass(frozen=True)
class TrialFolder:
    """Everything one trial leaves."""

    path: Path

    @property
    def config(self) -> Path:
        """The trial's identity: its `TrialConfig` and fingerprint."""
        return self.path / "config.json"

    @property
    def result(self) -> Path:
        """The trial's `TrialResult`, written last: the trial is done when it exists."""
        return self.path / "result.json"

    @property
    def metrics(self) -> Path:
        """The training curves, one row a line."""
        return self.path / "metrics.jsonl"

    @property
    def status(self) -> Path:
        """Where the trial stands right now; for progress displays only."""
        return self.path / "status.json"

    @property
    def mlflow_run_id(self) -> Path:
        """The id of the MLflow run that mirrors this trial, over all its attempts."""
        return self.path / "mlflow_run_id"

    @property
    def attempts(self) -> Path:
        """The folder of the attempts, `1`, `2`, ..."""
        return self.path / "attempts"

    @property
    def checkpoints(self) -> Path:
        """The folder of the trainer's checkpoints."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """Of an alignment stage: the adapter that it trained."""
        return self.path / "adapter.safetensors"

    @property
    def alignment(self) -> Path:
        """Of an alignment stage: what it gained, and the adapter's hash."""
        return self.path / "alignment.json"

    def attempt(self, number: int) -> AttemptFolder:
        """The folder of one attempt; it need not exist."""
        return AttemptFolder(self.attempts / str(number))

    def latest_attempt(self) -> AttemptFolder | None:
        """The attempt with the highest number on disk."""
        if not self.attempts.is_dir():
            return None
        numbers = [int(entry.name) for entry in self.attempts.iterdir() if entry.name.isdigit()]
        return self.attempt(max(numbers)) if numbers else None


@dataclass(frozen=True)
class RunFolder:
    """One experiment at one scale."""

    path: Path

    @property
    def plan(self) -> Path:
        """What the latest `run` set out to do."""
        return self.path / "plan.json"

    @property
    def lease(self) -> Path:
        """Who drives this folder at the moment."""
        return self.path / "lease.json"

    @property
    def stop(self) -> Path:
        """Present while a run is stopping: its trials save and end, and no new one begins. The next run removes it."""
        return self.path / "stop.json"

    @property
    def results_csv(self) -> Path:
        """One row per trial; the same bytes for the same results."""
        return self.path / "results.csv"

    @property
    def costs_csv(self) -> Path:
        """What each trial took; differs from run to run."""
        return self.path / "costs.csv"

    @property
    def report_md(self) -> Path:
        """The comparison, to be read by people."""
        return self.path / "report.md"

    @property
    def heatmap(self) -> Path:
        """The comparison as a picture."""
        return self.path / "heatmap.png"

    @property
    def mlflow_run_id(self) -> Path:
        """The id of the parent MLflow run."""
        return self.path / "mlflow_run_id"

    @property
    def trials(self) -> Path:
        """The folder of the trials."""
        return self.path / "trials"

    def trial(self, trial_id: str) -> TrialFolder:
        """The folder of one trial; it need not exist."""
        return TrialFolder(self.trials / trial_id)

    def canary(self, foundation: str) -> TrialFolder:
        """The folder of a foundation's canary; it need not exist."""
        return TrialFolder(self.path / "canaries" / foundation)

    def alignment(self, foundation: str, seed: int) -> TrialFolder:
        """The folder of the alignment that a foundation's trials of one seed share; it need not exist."""
        return TrialFolder(self.path / "alignments" / f"{foundation}.seed{seed}")


@dataclass(frozen=True)
class Store:
    """The folder that everything lies in, absolute: workers on other machines are given its path."""

    root: Path
    remote: str | None = None  # the URI of the bucket that `root` is a working folder of

    @property
    def corpora(self) -> Path:
        """Corpora, one folder each."""
        return self.root / "prepared" / "corpora"

    @property
    def encoder_states(self) -> Path:
        """The frozen encoder's states, shared by every trial."""
        return self.root / "prepared" / "encoder_states"

    @property
    def encoders(self) -> Path:
        """Encoder weights."""
        return self.root / "prepared" / "encoders"

    @property
    def mlflow_uri(self) -> str:
        """The tracking URI that is used when none is given."""
        return f"sqlite:///{self.root / 'mlflow.db'}"

    @property
    def mlflow_artifacts(self) -> Path:
        """MLflow's artifact folder beside that database."""
        return self.root / "mlartifacts"

    def corpus(self, corpus: CorpusRef) -> Path:
        """The folder of one corpus: another fingerprint is another folder."""
        return self.corpora / f"{corpus.name}-{corpus.fingerprint[:12]}"

    def runs(self, experiment: str, scale: str) -> RunFolder:
        """The run folder of an experiment at a scale."""
        return RunFolder(self.root / f"{experiment}-{scale}")


def public_uri(uri: str) -> str:
    """An address as it may be printed or written down: without user name and password."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def open_store(location: str | Path = DEFAULT_STORE, *, buckets: bool = False) -> Store:
    """The store at a folder path or, where `buckets` says that this command can, at the URI of an object store.

    Raises ValueError for what is neither: a file, a URI without a bucket, with credentials in it, or where a folder is needed.
    """
    if "://" in str(location):
        if not buckets:
            raise ValueError(
                f"--store: {public_uri(str(location))} is a URI; this command works on a folder, only experiments keep their store in a bucket"
            )
        return _open_bucket_store(str(location))
    root = Path(location).expanduser().absolute()
    if root.exists() and not root.is_dir():
        raise ValueError(f"--store: {root} is a file; give a folder")
    return Store(root)


def _open_bucket_store(uri: str) -> Store:
    """The working folder of a bucket: `<cache>/stores/<last part of the prefix>-<hash of the URI>`."""
    parts = urlsplit(uri)
    named = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if _SECRET.search(name)]
    if named or parts.password is not None or (parts.scheme == "s3" and parts.username is not None):
        raise ValueError(
            "--store: the URI holds credentials, which would be written to logs and files; leave them out and set them in the environment "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; GOOGLE_APPLICATION_CREDENTIALS; AZURE_STORAGE_KEY)"
        )
    path = PurePosixPath(parts.path.strip("/"))
    if ".." in path.parts or not (parts.netloc or parts.scheme == "file") or not (parts.netloc + str(path)).strip("."):
        raise ValueError(f"--store: {uri} names no bucket; give e.g. s3://bucket/prefix")
    identity = urlunsplit(parts._replace(query="", fragment="")).rstrip("/")
    cache = Path(os.environ.get("SLOTGRID_CACHE", "~/.cache/slotgrid")).expanduser().absolute()
    name = f"{path.name or parts.netloc}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    return Store(cache / "stores" / name, remote=uri)
