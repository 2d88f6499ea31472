"""Command line -> verb: what `python experiments/<name>.py [run|plan|status|report|explain TRIAL|doctor]` does, the same for every experiment file.

Exit codes: 0 all trials done (or the verb did its work); 1 some trial failed (doctor: something is to be done); 2 usage, configuration or data
error, told in one line; 3 interrupted, with the command that resumes.
"""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from orchestrator.bucket.drive import refresh
from orchestrator.bucket.objects import BucketError
from orchestrator.corpora import describe_corpus, find_corpus
from orchestrator.experiment import Experiment
from orchestrator.failures import CAUSES
from orchestrator.grid import AXES, check_trials, select_trials
from orchestrator.hardware import HARDWARE, Hardware, find_hardware, gpu_query, one_type
from orchestrator.layout import DEFAULT_STORE, open_store, public_uri
from orchestrator.plan import planned_seeds
from orchestrator.scales import AUTO, SCALES, choose_scale
from orchestrator.terminal import open_console
from orchestrator.verbs import EXIT_ERROR, EXIT_INTERRUPTED, VERBS, Request

_DEBUG = "SLOTGRID_DEBUG"
_PLANNING = ("plan", "run")
_USERS_OS_ERRORS = {
    errno.ENOSPC: "free some space and run the same command again, it goes on where it stopped",
    errno.EDQUOT: "free some of your quota and run the same command again, it goes on where it stopped",
    errno.ENOENT: "check the path",
    errno.EACCES: "check the permissions, or choose another folder (--store, --out)",
    errno.EPERM: "check the permissions, or choose another folder (--store, --out)",
    errno.EROFS: "choose another folder (--store, --out)",
    errno.ENOTDIR: "check the path",
}
"""Errors of the machine that the user can put right, and how; any other OSError is shown with its traceback."""


_ONLY_WITH = {"rerun_stale": ("run", "plan"), "retry": ("run", "plan"), "disk": ("status",), "repair": ("doctor",)}


def main(experiment: Experiment, argv: Sequence[str] | None = None) -> int:
    """Do what the command line asks for and return the exit code. Never raises for a user's error, see the module's docstring."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        request = _understand(experiment, arguments)
        return VERBS[request.verb](request)
    except KeyboardInterrupt:
        sys.stderr.write(f"\ninterrupted; to resume: {shlex.join(['python', sys.argv[0], *arguments])}\n")
        return EXIT_INTERRUPTED
    except (ValueError, OSError) as error:
        return report_error(error)


def report_error(error: ValueError | OSError) -> int:
    """Tell a user's error in one line on stderr and return exit code 2; raise again what no user can put right."""
    ours = isinstance(error, BucketError) or (isinstance(error, FileNotFoundError) and error.errno is None)
    if isinstance(error, OSError) and not ours:
        if error.errno not in _USERS_OS_ERRORS:
            raise error
        where = f"{error.filename}: " if error.filename else ""
        message = f"{where}{error.strerror}; {_USERS_OS_ERRORS[error.errno]}"
    else:
        message = str(error)
    if os.environ.get(_DEBUG) == "1":
        traceback.print_exception(error)
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    return EXIT_ERROR


def _hardware(named: str | None) -> Hardware | None:
    """The GPU type to plan for: the one that is named, else that of the cluster that RAY_ADDRESS names, else this machine's."""
    if named:
        return find_hardware(named)
    if (address := os.environ.get("RAY_ADDRESS", "").strip()) not in ("", "local"):
        from orchestrator.ray_session import cluster_accelerators

        return one_type(cluster_accelerators(address))
    return one_type(gpu_query("name"))


class OneLineParser(argparse.ArgumentParser):
    """argparse that leaves the telling of errors to `main`."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and exiting."""
        raise ValueError(f"{message}; --help lists the options")


def _parser(experiment: Experiment) -> OneLineParser:
    parser = OneLineParser(
        prog=f"python {sys.argv[0]}",
        description=experiment.hypothesis,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = "; ".join(f"{verb}: {(act.__doc__ or '').split('.')[0].lower()}" for verb, act in VERBS.items())
    parser.add_argument("verb", nargs="?", default="run", metavar="|".join(VERBS), help=f"{verbs} (default: run)")
    parser.add_argument("trial", nargs="?", metavar="TRIAL", help="explain: the trial's id, as `plan` lists it")
    scales = "; ".join(f"{scale.name}: {scale.summary}" for scale in SCALES.values())
    parser.add_argument("--scale", default=AUTO, help=f"auto (default): what fits this machine; {scales}")
    parser.add_argument(
        "--store",
        default=os.environ.get("SLOTGRID_STORE", str(DEFAULT_STORE)),
        metavar="PATH|URI",
        help="folder of everything (default: SLOTGRID_STORE, else ./runs), or a bucket as its home: s3://bucket/prefix, gs:// or abfs://; "
        "one machine at a time works on it, in a folder below SLOTGRID_CACHE (default: ~/.cache/slotgrid)",
    )
    parser.add_argument(
        "--corpus",
        metavar="CORPUS",
        help="an imported corpus, by its name in the store or its folder (default: the synthetic one of the scale)",
    )
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow server or database (default: one in the store)")
    only = f"only these cells; axes: {', '.join(AXES)}; several values of one axis are alternatives"
    parser.add_argument(
        "--hardware",
        metavar="TYPE",
        help=f"plan memory and time for this type of GPU: {', '.join(HARDWARE)} "
        "(default: the GPUs of the cluster at RAY_ADDRESS, else of this machine)",
    )
    parser.add_argument("--only", nargs="+", action="extend", default=[], metavar="AXIS=VALUE", help=only)
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="seeds 0..N-1 (default: the scale's, or what the run has grown to)"
    )
    parser.add_argument(
        "--retry",
        action="append",
        default=[],
        choices=CAUSES,
        metavar="CAUSE",
        help=f"run: also trials that failed by this cause and would be left alone; one of {', '.join(CAUSES)}; may be repeated",
    )
    parser.add_argument("--disk", action="store_true", help="status: what takes the store's space, and what can go")
    parser.add_argument("--repair", action="store_true", help="doctor: put right what it finds")
    parser.add_argument("--json", action="store_true", help="all verbs but run: JSON on standard output")
    parser.add_argument(
        "--rerun-stale", action="store_true", help="set trials of another configuration aside and run them anew"
    )
    return parser


def _understand(experiment: Experiment, arguments: Sequence[str]) -> Request:
    """Parse and check everything before any work. Raises ValueError."""
    parser = _parser(experiment)
    options, extra = parser.parse_known_args(arguments)
    if options.verb not in VERBS:
        raise ValueError(f"there is no verb {options.verb!r}; the verbs are {', '.join(VERBS)}")
    if extra:
        raise ValueError(f"unrecognized arguments: {' '.join(extra)}; --help lists the options")
    if options.trial is not None and options.verb != "explain":
        raise ValueError(f"unrecognized arguments: {options.trial}; --help lists the options")
    if options.json and options.verb == "run":
        raise ValueError("--json: run prints its progress; use it with plan, status, report, explain or doctor")
    for option, verbs in _ONLY_WITH.items():
        if getattr(options, option) and options.verb not in verbs:
            raise ValueError(
                f"--{option.replace('_', '-')}: {options.verb} takes no such option; {' and '.join(verbs)} do{'es' * (len(verbs) == 1)}"
            )
    if options.seeds is not None and options.seeds < 1:
        raise ValueError(f"--seeds: {options.seeds} is too few; give at least 1")
    scale, scale_line = choose_scale(options.scale)
    if options.hardware and not scale.execution.use_gpu:
        raise ValueError(f"--hardware: scale {scale.name} uses no GPU; --scale small or --scale paper do")
    store = open_store(options.store, buckets=True)
    if options.corpus is not None:
        scale = scale.on(describe_corpus(find_corpus(options.corpus, store)))
        scale_line += f"; corpus: {options.corpus}"
    refresh(store, store.runs(experiment.name, scale.label))
    seeds = options.seeds or max(scale.seeds, planned_seeds(store.runs(experiment.name, scale.label)))
    grid = check_trials(experiment.declare(scale, seeds))
    return Request(
        experiment=experiment,
        verb=options.verb,
        scale=scale,
        scale_line=scale_line,
        store=store,
        seeds=seeds,
        grid=grid,
        trials=select_trials(grid, options.only),
        tracking_uri=options.tracking_uri,
        rerun_stale=options.rerun_stale,
        json=options.json,
        hardware=_hardware(options.hardware) if scale.execution.use_gpu and options.verb in _PLANNING else None,
        again=("python", sys.argv[0], *_given(options, parser)),
        console=open_console(file=sys.stderr if options.json else None),
        explained=options.trial,
        retry=tuple(options.retry),
        disk=options.disk,
        repair=options.repair,
    )


def _given(options: argparse.Namespace, parser: OneLineParser) -> list[str]:
    """The options that a next step repeats: those that differ from their defaults."""
    words: list[str] = []
    for name in ("scale", "corpus", "store", "tracking_uri", "seeds", "hardware"):
        value = getattr(options, name)
        if value != parser.get_default(name):
            # a store's URI has no password, but may name a container before an @
            words += [f"--{name.replace('_', '-')}", str(value) if name == "store" else public_uri(str(value))]
    return words + (["--only", *options.only] if options.only else [])
