"""The verb `run`: from the trials that are not done to their results, the report and the mirror; running it again is resuming.

lease -> states -> (nothing left: report, exit) -> disk and devices -> Ray -> corpus, encoder states -> trials -> report -> exit code
"""

from __future__ import annotations

import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from data.callcentre.synthesize import open_finished
from data.manifest import open_corpus
from model.configs import EncoderConfig, Execution, TrialConfig
from orchestrator.corpora import ImportedCorpus, corpus_folder
from orchestrator.experiment import Experiment
from orchestrator.identity import fingerprint, trial_id, write_config
from orchestrator.layout import RunFolder, Store, TrialFolder, public_uri
from orchestrator.ledger import Lease, TrialState, hold_lease, move_stale_aside, read_states
from orchestrator.plan import trials_table
from orchestrator.results import HEADLINE
from orchestrator.scales import Scale
from orchestrator.terminal import open_console
from orchestrator.tracking import Mirror, tracking_uri
from orchestrator.verbs import EXIT_DONE, EXIT_FAILED

if TYPE_CHECKING:
    from orchestrator.prepare import PreparedData
    from orchestrator.trial_driver import TrialOrder

_INTERRUPTED_PATIENCE_S = 10.0


def run_grid(
    experiment: Experiment,
    scale: Scale,
    trials: list[TrialConfig],
    store: Store,
    *,
    tracking_uri: str | None,
    rerun_stale: bool,
    executions: Mapping[str, Execution] | None = None,
) -> int:
    """Train, score and compare every trial that is not done. Returns 0 when all are done, 1 when some failed.

    `executions` by trial id, where they were planned for the hardware; the others run as the scale declares.

    Raises ValueError for what the user can put right (stale trials, too few devices, no disk space, another driver at work) and
    KeyboardInterrupt when it was stopped by Ctrl-C or SIGTERM, after everything was left in order.
    """
    console = open_console(soft_wrap=True)
    run = store.runs(experiment.name, scale.label)
    with hold_lease(run) as lease, _sigterm_interrupts():
        states = _set_stale_aside(run, trials, rerun_stale)
        to_run = [state.trial for state in states if state.state != "done"]
        mirror = _build_mirror(experiment, scale, trials, store, tracking_uri, console)
        if not to_run:
            console.print(f"all {len(trials)} trials are done; nothing to train")
            _report(experiment, scale, run, trials)
            if not mirror.is_complete():
                mirror.finish("FINISHED")
            return _summarize(run, trials, mirror.uri, console)
        _check_disk(scale, to_run, store)
        _check_corpus(scale, store)
        mirror.start()
        try:
            _train(scale, to_run, trials, run, store, lease, console, executions or {})
        except BaseException:
            # Ctrl-C above all, but whatever ends the grid: what is finished is reported and no MLflow run is left running.
            console.print("stopping: what is finished is kept")
            _report(experiment, scale, run, trials)
            mirror.finish("KILLED", patience_s=_INTERRUPTED_PATIENCE_S)
            raise
        _report(experiment, scale, run, trials)
        all_done = all(state.state == "done" for state in read_states(run, trials))
        mirror.finish("FINISHED" if all_done else "FAILED")
        return _summarize(run, trials, mirror.uri, console)


def _build_mirror(
    experiment: Experiment, scale: Scale, trials: Sequence[TrialConfig], store: Store, uri: str | None, console: Console
) -> Mirror:
    def warn(message: str) -> None:
        console.print(f"[yellow]warning:[/] {escape(message)}")

    return Mirror(experiment, scale, trials, store, uri=tracking_uri(uri, store), warn=warn)


def _set_stale_aside(run: RunFolder, trials: Sequence[TrialConfig], rerun_stale: bool) -> list[TrialState]:
    """The states, without stale ones: they are moved aside where the user asked for it, else a ValueError."""
    states = read_states(run, trials)
    stale = [state for state in states if state.state == "stale"]
    if stale and not rerun_stale:
        raise ValueError(
            f"{stale[0].folder.path}: computed from another configuration ({stale[0].changed[0]}); "
            "run with --rerun-stale to set it aside and train anew, or undo the change"
        )
    for state in stale:
        move_stale_aside(state.folder)
    return read_states(run, trials) if stale else states


def _train(
    scale: Scale,
    to_run: Sequence[TrialConfig],
    trials: Sequence[TrialConfig],
    run: RunFolder,
    store: Store,
    lease: Lease,
    console: Console,
    executions: Mapping[str, Execution],
) -> None:
    """Open Ray, prepare the data, run the trials. Everything of Ray is gone when this returns or raises."""
    from orchestrator.canaries import order_canaries
    from orchestrator.prepare import prepare
    from orchestrator.progress import GridProgress
    from orchestrator.ray_executor import RayExecutor
    from orchestrator.ray_session import open_ray
    from orchestrator.schedule import concurrent_trials, run_trials

    def execution_of(trial: TrialConfig) -> Execution:
        return executions.get(trial_id(trial), scale.execution)

    console.print("starting Ray ...")
    with open_ray(use_gpu=scale.execution.use_gpu) as cluster, _sigterm_interrupts():
        widest = max((execution_of(trial) for trial in to_run), key=lambda execution: execution.workers)
        concurrent = concurrent_trials(cluster, widest)
        if scale.max_concurrent:
            concurrent = min(concurrent, scale.max_concurrent)
        prepared = prepare(scale, to_run, store, RayExecutor(in_flight=max(1, int(cluster.cpus_now))), console)
        lease.check()
        storage = run.path / "ray"
        names = [trial.foundation.name for trial in to_run] if scale.canary else []
        canaries = order_canaries(run, trials, execution_of, prepared, names=names, storage=storage)
        orders = _order_trials(to_run, run, execution_of, prepared, canaries, storage=storage)
        console.print(f"{len(orders)} trials to run, {min(concurrent, len(orders))} at a time, on {cluster.describe()}")
        if canaries:
            console.print(f"first a canary of each foundation, about a minute: {', '.join(canaries)}")
        ids, folders = [trial_id(trial) for trial in trials], [TrialFolder(order.folder) for order in canaries.values()]
        with GridProgress(run, ids, console, concurrent=concurrent, canaries=folders):
            run_trials(orders, concurrent=concurrent, storage=storage)


def _order_trials(
    to_run: Sequence[TrialConfig],
    run: RunFolder,
    execution_of: Callable[[TrialConfig], Execution],
    prepared: Mapping[EncoderConfig, PreparedData],
    canaries: Mapping[str, TrialOrder],
    *,
    storage: Path,
) -> list[TrialOrder]:
    """What the drivers of the trials are told; the trials' folders are made. `canaries`: by foundation."""
    from orchestrator.trial_driver import TrialOrder

    orders = []
    for trial in to_run:
        folder = run.trial(trial_id(trial))
        if not folder.config.exists():
            write_config(folder.config, trial)
        data = prepared[trial.encoder]
        orders.append(
            TrialOrder(
                trial_id=trial_id(trial),
                folder=folder.path,
                fingerprint=fingerprint(trial),
                execution=execution_of(trial),
                corpus=data.corpus,
                encoder_states=data.encoder_states,
                encoder_key=data.encoder_key,
                ray_storage=storage,
                canary=canaries.get(trial.foundation.name),
            )
        )
    return orders


def _report(experiment: Experiment, scale: Scale, run: RunFolder, trials: Sequence[TrialConfig]) -> None:
    from orchestrator.report import write_report  # matplotlib

    write_report(experiment, scale, run, trials)


def _summarize(run: RunFolder, trials: Sequence[TrialConfig], uri: str, console: Console) -> int:
    """Print where every trial stands and what to do next; returns the exit code."""
    states = read_states(run, trials)
    notes = {state.id: f"F1 {state.result.scores[HEADLINE]:.3f}" for state in states if state.result is not None}
    console.print(trials_table(states, notes), soft_wrap=False)
    counts = Counter(state.state for state in states)
    console.print(f"{len(states)} trials: " + ", ".join(f"{count} {state}" for state, count in counts.items()))
    for state in states:
        if state.state == "failed" and (attempt := state.folder.latest_attempt()):
            console.print(escape(f"  {state.id} failed: see {attempt.log}"))
    console.print(escape(f"report: {run.report_md}"))
    uri = public_uri(uri)
    ui = f"mlflow ui --backend-store-uri {uri}" if "://" in uri and not uri.startswith("http") else uri
    console.print(escape(f"compare in MLflow: {ui}"))
    if counts["done"] == len(states):
        console.print(escape(f"next: read {run.report_md}"))
        return EXIT_DONE
    console.print("next: put right what failed, then run the same command again: only what is not done runs")
    return EXIT_FAILED


def _check_corpus(scale: Scale, store: Store) -> None:
    """A damaged corpus is told now, not after Ray has started."""
    folder = corpus_folder(scale.corpus, store)
    if isinstance(scale.corpus, ImportedCorpus):
        open_corpus(folder)
    else:
        open_finished(folder, scale.corpus)


def _check_disk(scale: Scale, to_run: Sequence[TrialConfig], store: Store) -> None:
    """Raise ValueError when the store's disk cannot hold what the run will write."""
    store.root.mkdir(parents=True, exist_ok=True)
    need, free = _bytes_to_write(scale, to_run, store), shutil.disk_usage(store.root).free
    if free < need:
        raise ValueError(
            f"{store.root}: {free / 1e9:.1f} GB free and about {need / 1e9:.1f} GB needed; free some space or choose another --store"
        )


def _bytes_to_write(scale: Scale, to_run: Sequence[TrialConfig], store: Store) -> float:
    """A rough sum: audio and encoder states that are not there yet, and three checkpoints of each trial (two kept, one being written)."""
    prepared = scale.corpus.examples * 0.2e6 if isinstance(scale.corpus, ImportedCorpus) else 0.0
    if not (corpus_folder(scale.corpus, store) / "corpus.json").exists():
        prepared = scale.corpus.examples * 0.3e6  # about 0.08 MB of audio and 0.2 MB of encoder states
    checkpoints = 0.0
    for trial in to_run:
        lora = min(trial.foundation.parameters, 0.01 * trial.foundation.parameters * trial.lora.r / 32 + 1e6)
        adapter = trial.adapter.hidden_width * (512 * trial.adapter.stack_factor + 4096)
        checkpoints += 3 * 12 * (lora + adapter)  # fp32 weights and two AdamW moments
    return prepared + checkpoints + 0.1e9


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM (a batch system's or a container's stop) ends the block like Ctrl-C. Only the main thread may set handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
