"""`slotgrid export RUN`: a finished trial -> a folder that another team can use, and the proof that it answers as the trial did."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from orchestrator.commands.corpora import SubParsers
from orchestrator.identity import read_config, read_document, trial_id
from orchestrator.layout import RunFolder, Store, TrialFolder
from orchestrator.ledger import read_state
from orchestrator.listening import best_trial
from orchestrator.terminal import open_console
from orchestrator.verbs import EXIT_DONE

if TYPE_CHECKING:
    from model.export import TrainedTrial

EXIT_DIFFERENT = 1
_ROOT = Path(__file__).resolve().parents[2]


def add_command(areas: SubParsers) -> None:
    """The options of `slotgrid export`."""
    parser = areas.add_parser(
        "export",
        help="a finished trial as a folder that others can use",
        description="Write what a trial trained, with settings, scores and a model card, for `slotgrid predict` and PEFT. docs/export.md says more.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder, e.g. runs/grid-tiny")
    parser.add_argument("--trial", metavar="ID", help="which trial (default: the one with the best score)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write; it must not exist")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="answer the evaluation once more from audio, in a fresh process, and compare with the trial's predictions",
    )
    parser.set_defaults(act=export_trial)


def export_trial(options: argparse.Namespace) -> int:
    """`slotgrid export`: the folder, its size, what to do next; with --verify exit code 1 where an answer differs."""
    run = RunFolder(options.run.expanduser().absolute())
    folder = run.trial(options.trial or best_trial(run.path).trial_id)
    store = Store(run.path.parent)
    trained = _finished_trial(folder, store)
    from model.export import write_export

    console = open_console()
    with console.status("exporting"):
        export = write_export(options.out, trained)
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    _say(
        console,
        f"{export.trial_id} -> {options.out} ({size / 1e6:.1f} MB), partial F1 on test {trained.scores['eval/partial_f1']:.3f}",
    )
    if options.verify and not _verify(console, options.out, folder, store):
        return EXIT_DIFFERENT
    _say(console, f"next: slotgrid predict {options.out} --audio FILE --labels LABEL,LABEL")
    return EXIT_DONE


def _finished_trial(folder: TrialFolder, store: Store) -> TrainedTrial:
    """What is there to export. Raises ValueError with the reason when the trial is not finished, or its corpus is gone."""
    from data.manifest import open_corpus
    from model.export import TrainedTrial
    from model.whisper_weights import ENCODER_SHA256, ensure_encoder_weights

    if not folder.config.is_file():
        raise ValueError(f"{folder.path}: no trial of that name; the experiment's `status` lists them")
    config = read_config(folder.config)
    if trial_id(config) != folder.path.name:
        raise ValueError(
            f"{folder.path}: was set aside and holds {trial_id(config)}; export that trial, or move it back"
        )
    state = read_state(folder, config)
    if state.result is None:
        reason = state.failure or "; ".join(state.changed) or f"step {state.last_step} of {config.budget.steps}"
        remedy = "run the experiment until it is done"
        if state.state == "stale":
            remedy = "another version of slotgrid computed it: export it with that one, or run the experiment with --rerun-stale"
        raise ValueError(f"{folder.path}: the trial is {state.state} ({reason}); {remedy}")
    encoder = config.encoder.name
    return TrainedTrial(
        trial=read_document(folder.config, "move the trial's folder away and run again"),
        checkpoints=folder.checkpoints,
        ontology=open_corpus(_corpus_of(folder, store)).ontology,
        encoder_sha256=ENCODER_SHA256.get(encoder) or ensure_encoder_weights(encoder, store.encoders).sha256,
        headline_inference_mode=state.result.headline_inference_mode,
        scores=state.result.scores,
        validation_scores=state.result.validation_scores,
    )


def _corpus_of(folder: TrialFolder, store: Store) -> Path:
    """The corpus that a trial was trained on: made for its scale, or imported under its name."""
    from data.manifest import CORPUS_FILE, corpus_summary

    ref = read_config(folder.config).corpus
    for path in (store.corpus(ref), store.corpora / ref.name):
        if (path / CORPUS_FILE).is_file() and corpus_summary(path)["fingerprint"] == ref.fingerprint:
            return path
    raise ValueError(
        f"{store.corpora}: the corpus {ref.name} ({ref.fingerprint[:12]}) that the trial was trained on is gone; an export needs its ontology"
    )


def _verify(console: Console, out: Path, folder: TrialFolder, store: Store) -> bool:
    """Whether a fresh process writes the trial's predictions files again, letter for letter."""
    from data.manifest import MANIFEST_FILE

    manifest = _corpus_of(folder, store) / MANIFEST_FILE
    same = True
    for mode in read_config(folder.config).inference_modes:
        stored = (folder.path / f"predictions-{mode}.jsonl").read_text(encoding="utf-8").splitlines()
        with tempfile.TemporaryDirectory() as temporary:
            answers = Path(temporary) / "predictions.jsonl"
            command = [sys.executable, "-m", "orchestrator.slotgrid_cli", "predict", str(out.absolute())]
            command += [
                "--manifest",
                str(manifest),
                "--mode",
                mode,
                "--out",
                str(answers),
                "--cache",
                str(store.encoders),
            ]
            search = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
            with console.status(f"answering {len(stored):,} questions again ({mode})"):
                done = subprocess.run(command, env={**os.environ, "PYTHONPATH": search}, capture_output=True, text=True)
            if done.returncode:
                raise ValueError(f"{out}: does not load in a fresh process: {done.stderr.strip()}")
            again = answers.read_text(encoding="utf-8").splitlines()
        differing = sum(one != other for one, other in zip(stored, again, strict=False)) + abs(len(stored) - len(again))
        _say(
            console,
            f"verified, {mode}: {len(stored) - differing} of {len(stored)} answers are the trial's, letter for letter",
        )
        same = same and not differing
    return same


def _say(console: Console, text: str) -> None:
    console.print(escape(text), soft_wrap=True)
