"""The verb `run`: from the trials that are not done to their results, the report and the mirror; running it again is resuming.

lease -> states -> (nothing left: report, exit) -> disk and devices -> Ray -> corpus, encoder states -> trials -> report -> exit code
"""

from __future__ import annotations

import errno
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from data.callcentre.synthesize import open_finished
from data.manifest import Corpus, open_corpus
from model.configs import EncoderConfig, Execution, TrialConfig
from orchestrator.capacity import Capacity, spread
from orchestrator.corpora import ImportedCorpus, corpus_folder
from orchestrator.disk import check_room, tell_if_full
from orchestrator.experiment import Experiment
from orchestrator.failure_groups import print_failures
from orchestrator.failures import Cause, left_alone
from orchestrator.identity import fingerprint, trial_id, write_config
from orchestrator.layout import RunFolder, Store, TrialFolder, public_uri
from orchestrator.lease import Claim, Lease, hold_lease
from orchestrator.ledger import State, TrialState, move_stale_aside, read_states, set_damaged_aside
from orchestrator.plan import trials_table
from orchestrator.results import HEADLINE
from orchestrator.scales import Scale
from orchestrator.stopping import Stopping
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
    grid: list[TrialConfig] | None = None,
    tracking_uri: str | None,
    rerun_stale: bool,
    retry: Collection[Cause] = (),
    capacities: Mapping[str, Capacity] | None = None,
    within: Lease | None = None,
) -> int:
    """Train, score and compare every trial that is not done. Returns 0 when all are done, 1 when some failed.

    `grid`: what report and mirror are about, where `trials` are a part of it. `retry`: causes by which trials failed that would be left alone.
    `capacities` by trial id, where the trials were planned for the hardware; the others run as the scale declares. `within`: the lease of the
    bucket that the store is a working folder of.

    Raises ValueError for what the user can put right (stale trials, too few devices, no disk space, another driver at work) and
    KeyboardInterrupt when it was stopped by Ctrl-C or SIGTERM, after everything was left in order.
    """
    console = open_console(soft_wrap=True)
    run = store.runs(experiment.name, scale.label)
    grid, capacities = grid or trials, capacities or {}
    with hold_lease(run, within=within) as lease, Stopping(run, console, lost=lease.lost.is_set) as stopping:
        states = _set_stale_aside(run, trials, rerun_stale)
        to_run = [state.trial for state in states if state.state != "done" and not left_alone(state.cause, retry)]
        mirror = _build_mirror(experiment, scale, grid, store, tracking_uri, console, lease)
        if not to_run:
            console.print(_nothing_to_run(states))
            reported = _report(experiment, scale, run, grid, console)
            if not mirror.is_complete():
                mirror.finish(mirror.grid_status())
            return _summarize(run, trials, mirror.uri, console) if reported else EXIT_FAILED
        check_room(scale, to_run, store, run, capacities=capacities)
        corpus = _open_corpus(scale, store)
        mirror.start()
        try:
            _train(scale, to_run, trials, run, store, corpus, lease, stopping, console, capacities)
            lease.check()  # trials may have ended while this process slept and another driver took over
        except BaseException:
            # Ctrl-C above all, but whatever ends the grid: what is finished is reported and no MLflow run is left running.
            lease.check()  # where another driver has taken over, nothing here is ours to write any more
            counts = Counter(state.state for state in read_states(run, trials))
            console.print(f"stopped: {_counted(counts)} of {len(trials)} trials; what is done and saved is kept")
            _report(experiment, scale, run, grid, console)
            mirror.finish("KILLED", patience_s=_INTERRUPTED_PATIENCE_S)
            raise
        reported = _report(experiment, scale, run, grid, console)
        mirror.finish(mirror.grid_status())
        code = _summarize(run, trials, mirror.uri, console)
        return code if reported else EXIT_FAILED


def _nothing_to_run(states: Sequence[TrialState]) -> str:
    left = sorted({state.cause for state in states if state.cause})
    if not left:
        return f"all {len(states)} trials are done; nothing to train"
    options = " ".join(f"--retry {cause}" for cause in left)
    return f"nothing to train: what is not done would fail again; put the cause right and add {options}"


def _build_mirror(
    experiment: Experiment,
    scale: Scale,
    trials: Sequence[TrialConfig],
    store: Store,
    uri: str | None,
    console: Console,
    lease: Lease,
) -> Mirror:
    def warn(message: str) -> None:
        console.print(f"[yellow]warning:[/] {escape(message)}")

    return Mirror(experiment, scale, trials, store, uri=tracking_uri(uri, store), warn=warn, check=lease.check)


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
        move_stale_aside(state.folder, state.changed)
    for state in states:
        set_damaged_aside(state)
    return read_states(run, trials) if stale else states


def _train(
    scale: Scale,
    to_run: Sequence[TrialConfig],
    trials: Sequence[TrialConfig],
    run: RunFolder,
    store: Store,
    corpus: Corpus | None,
    lease: Lease,
    stopping: Stopping,
    console: Console,
    capacities: Mapping[str, Capacity],
) -> None:
    """Open Ray, prepare the data, run the trials. Everything of Ray is gone when this returns or raises."""
    from orchestrator.prepare import prepare
    from orchestrator.progress import GridProgress
    from orchestrator.ray_executor import RayExecutor
    from orchestrator.ray_session import open_ray
    from orchestrator.schedule import concurrent_trials, run_trials

    def execution_of(trial: TrialConfig) -> Execution:
        capacity = capacities.get(trial_id(trial))
        execution = capacity.execution if capacity else scale.execution
        return spread(execution, waiting=len(to_run), gpus=int(cluster.gpus))

    console.print("starting Ray ...")
    with open_ray(use_gpu=scale.execution.use_gpu) as cluster, _ray_storage(run, lease) as storage:
        stopping.listen()
        cluster.check_sees(store)
        widest = max((execution_of(trial) for trial in to_run), key=lambda e: e.workers / e.trials_per_gpu)
        concurrent = concurrent_trials(cluster, widest)
        if scale.max_concurrent:
            concurrent = min(concurrent, scale.max_concurrent)
        executor = RayExecutor(in_flight=max(1, int(cluster.cpus_now)))
        prepared = prepare(scale, to_run, store, executor, console, corpus=corpus)
        lease.check()
        orders = _order_trials(scale, to_run, trials, run, execution_of, prepared, lease.claim, storage=storage)
        console.print(f"{len(orders)} trials to run, {min(concurrent, len(orders))} at a time, on {cluster.describe()}")
        before = {first.trial_id: TrialFolder(first.folder) for order in orders for first in order.first}
        if before:
            console.print(f"first what they wait for: {', '.join(before)}")
        ids = [trial_id(trial) for trial in trials]
        with (
            GridProgress(run, ids, console, concurrent=concurrent, before=before) as progress,
            stopping.trials(progress.read),
        ):
            run_trials(orders, concurrent=concurrent, storage=storage)
    if stopping.requested and any(state.state != "done" for state in read_states(run, trials)):
        raise KeyboardInterrupt


@contextmanager
def _ray_storage(run: RunFolder, lease: Lease) -> Iterator[Path]:
    """Where Ray is to write: a folder of this driver alone, that of another one which takes over is not for this one to remove."""
    folder = run.path / "ray"
    shutil.rmtree(folder, ignore_errors=True)  # a killed run's
    try:
        yield folder / lease.holder.token[:8]
    finally:
        with suppress(OSError):
            folder.rmdir()


def _order_trials(
    scale: Scale,
    to_run: Sequence[TrialConfig],
    trials: Sequence[TrialConfig],
    run: RunFolder,
    execution_of: Callable[[TrialConfig], Execution],
    prepared: Mapping[EncoderConfig, PreparedData],
    claim: Claim,
    *,
    storage: Path,
) -> list[TrialOrder]:
    """What the drivers of the trials are told, with the canaries and alignments that they wait for; their folders are made."""
    from orchestrator.alignments import aligned_adapter, order_alignments
    from orchestrator.canaries import order_canaries
    from orchestrator.trial_driver import TrialOrder

    names = [trial.foundation.name for trial in to_run] if scale.canary else []
    canaries = order_canaries(run, trials, execution_of, prepared, names=names, storage=storage)
    alignments = order_alignments(run, to_run, execution_of, prepared, storage=storage)
    orders = []
    for trial in to_run:
        name, folder = trial_id(trial), run.trial(trial_id(trial))
        if not folder.config.exists():
            write_config(folder.config, trial)
        data = prepared[trial.encoder]
        first = (canaries.get(trial.foundation.name), alignments.get(name))
        orders.append(
            TrialOrder(
                trial_id=name,
                folder=folder.path,
                fingerprint=fingerprint(trial),
                execution=execution_of(trial),
                corpus=data.corpus,
                encoder_states=data.encoder_states,
                encoder_key=data.encoder_key,
                ray_storage=storage,
                first=tuple(order for order in first if order),
                aligned_adapter=aligned_adapter(run, trial),
                stop_file=run.stop,
                claim=claim,
            )
        )
    return orders


def _report(
    experiment: Experiment, scale: Scale, run: RunFolder, grid: Sequence[TrialConfig], console: Console
) -> bool:
    """Write the comparison of the grid. False where the disk is full: what the trials computed is not to end in a traceback."""
    from orchestrator.report import write_report  # matplotlib

    try:
        write_report(experiment, scale, run, grid)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        console.print(
            f"[yellow]warning:[/] the report is not written: {escape(str(error))}; free some space, then run again"
        )
        return False
    return True


def _summarize(run: RunFolder, trials: Sequence[TrialConfig], uri: str, console: Console) -> int:
    """Print where every trial stands, why some failed and what to do next; returns the exit code."""
    states = read_states(run, trials)
    notes = {state.id: f"F1 {state.result.scores[HEADLINE]:.3f}" for state in states if state.result is not None}
    console.print(trials_table(states, notes), soft_wrap=False)
    counts = Counter(state.state for state in states)
    console.print(f"{len(states)} trials: {_counted(counts)}")
    print_failures(states, console)
    if full := tell_if_full(run.path):  # even a failure may be missing then: there was no room to write it down
        console.print(f"[red]{escape(full)}[/]")
    console.print(escape(f"report: {run.report_md}"))
    uri = public_uri(uri)
    ui = f"mlflow ui --backend-store-uri {uri}" if "://" in uri and not uri.startswith("http") else uri
    console.print(escape(f"compare in MLflow: {ui}"))
    if counts["done"] == len(states):
        console.print(escape(f"next: read {run.report_md}"))
        return EXIT_DONE
    console.print("next: put right what failed, then run the same command again: only what is not done runs")
    return EXIT_FAILED


def _counted(counts: Mapping[State, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def _open_corpus(scale: Scale, store: Store) -> Corpus | None:
    """The corpus, None where it is still to be made. A damaged one is told now, not after Ray has started."""
    folder = corpus_folder(scale.corpus, store)
    return open_corpus(folder) if isinstance(scale.corpus, ImportedCorpus) else open_finished(folder, scale.corpus)
