"""What the verbs of an experiment's command line do: each takes a `Request` and returns the exit code."""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from model.configs import TrialConfig
from orchestrator.bucket.drive import drive_bucket, read_bucket_holder
from orchestrator.disk import print_survey, survey_disk, survey_to_json
from orchestrator.experiment import Experiment
from orchestrator.failures import Cause
from orchestrator.hardware import Hardware
from orchestrator.layout import RunFolder, Store
from orchestrator.lease import LeaseHeldError, read_holder
from orchestrator.ledger import read_states
from orchestrator.plan import Plan, make_plan, plan_to_json, print_plan, write_plan
from orchestrator.scales import Scale
from orchestrator.status import print_status, status_to_json

EXIT_DONE, EXIT_FAILED, EXIT_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class Request:
    """One command line, understood."""

    experiment: Experiment
    verb: str
    scale: Scale
    scale_line: str
    store: Store
    seeds: int
    grid: list[TrialConfig]  # the whole declared grid
    trials: list[TrialConfig]  # what --only leaves of it
    tracking_uri: str | None
    rerun_stale: bool
    json: bool
    hardware: Hardware | None  # the GPU type to plan for; None where the trials need none, or it is not known
    again: tuple[str, ...]  # this command without its verb: what a next step is written with
    console: Console
    explained: str | None = None  # the trial that `explain` names
    retry: tuple[Cause, ...] = ()  # failed trials by these causes are run again, too
    disk: bool = False  # status: of the store's space
    repair: bool = False  # doctor: not only look

    @property
    def run(self) -> RunFolder:
        """The run folder."""
        return self.store.runs(self.experiment.name, self.scale.label)

    def command(self, verb: str, *more: str) -> str:
        """The command line for a next step, with the same options."""
        return shlex.join([*self.again[:2], *([verb] if verb != "run" else []), *self.again[2:], *more])


def _plan(request: Request) -> Plan:
    return make_plan(
        request.experiment,
        request.scale,
        request.trials,
        request.store,
        seeds=request.seeds,
        rerun_stale=request.rerun_stale,
        retry=request.retry,
        hardware=request.hardware,
    )


def _say(request: Request, text: str) -> None:
    request.console.print(escape(text), soft_wrap=True)


def _teller(request: Request) -> Callable[[str], None]:
    return partial(request.console.print, soft_wrap=True)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def run_verb(request: Request) -> int:
    """Train and score every trial that is not done, then compare. Again: only what is missing or failed."""
    _say(request, request.scale_line)
    if holder := read_holder(request.run):
        raise LeaseHeldError(
            f"{request.run.lease}: another driver is at work here ({holder.describe()}); wait for it or stop it"
        )
    with drive_bucket(request.store, request.run, request.trials, _teller(request)) as bucket:
        plan = _plan(request)
        plan.check()
        write_plan(plan)
        from orchestrator.run import run_grid

        return run_grid(
            request.experiment,
            request.scale,
            request.trials,
            request.store,
            tracking_uri=request.tracking_uri,
            rerun_stale=request.rerun_stale,
            grid=request.grid,
            retry=request.retry,
            capacities=plan.capacities,
            within=bucket,
        )


def plan_verb(request: Request) -> int:
    """Show what run would do. Nothing is started or written."""
    plan = _plan(request)
    if request.json:
        _print_json(plan_to_json(plan))
    else:
        _say(request, request.scale_line)
        print_plan(plan, request.console)
    if plan.missing or any(capacity.refusal for capacity in plan.capacities.values()):
        plan.check()
    if plan.blocked:
        _say(
            request,
            f"next: {request.command('run', '--rerun-stale')}  (sets the stale trials aside), or undo the change",
        )
    elif plan.to_run:
        more = ["--rerun-stale"] * request.rerun_stale + [
            word for cause in request.retry for word in ("--retry", cause)
        ]
        _say(request, f"next: {request.command('run', *more)}")
    elif retries := _retries(plan):
        _say(request, f"next: {request.command('run', *retries)}  (when the cause is put right)")
    else:
        _say(request, f"next: {request.command('report')}  (every trial is done)")
    return EXIT_DONE


def status_verb(request: Request) -> int:
    """Show how far every trial is. Reads files only, also while another process runs the grid."""
    if request.disk:
        return _disk(request)
    holder = read_holder(request.run) or read_bucket_holder(request.store, request.run)
    plan = _plan(request)
    if request.json:
        _print_json({**status_to_json(plan), "driver": asdict(holder) if holder else None})
        return EXIT_DONE
    _say(request, request.scale_line)
    print_status(plan, request.console, driven=holder is not None)
    counts = Counter(state.state for state in plan.states)
    _say(request, f"{len(plan.states)} trials: {', '.join(f'{count} {state}' for state, count in counts.items())}")
    if holder:
        _say(request, f"driven by {holder.describe()}; next: {request.command('status')}  (again, later)")
    elif counts["done"] == len(plan.states):
        _say(request, f"next: {request.command('report')}")
    elif retries := _retries(plan):
        _say(request, f"nobody is at work; next: {request.command('run', *retries)}  (when the cause is put right)")
    else:
        _say(request, f"nobody is at work; next: {request.command('run')}")
    return EXIT_DONE


def _retries(plan: Plan) -> list[str]:
    """The options with which `run` tries failed trials again that it would leave alone."""
    causes = sorted({str(state.cause) for state in plan.states if plan.action(state) == "leave"})
    return [word for cause in causes for word in ("--retry", cause)]


def _disk(request: Request) -> int:
    survey = survey_disk(request.scale, request.store, request.run, read_states(request.run, request.grid))
    if request.json:
        _print_json(survey_to_json(survey))
        return EXIT_DONE
    print_survey(survey, request.console)
    _say(request, f"next: {request.command('status')}")
    return EXIT_DONE


def report_verb(request: Request) -> int:
    """Write the comparison of what is done so far. The whole grid is compared, whatever --only says."""
    from orchestrator.report import compare, write_report

    files = write_report(request.experiment, request.scale, request.run, request.grid)
    comparison = compare(read_states(request.run, request.grid))
    if request.json:
        cells = [cell for _, row in comparison.rows for cell in row if cell.states]
        _print_json(
            {
                "files": [str(path) for path in files],
                "cells": [
                    {
                        "foundation": cell.foundation.name,
                        "kind": cell.foundation.kind,
                        "mode": cell.mode,
                        "state": cell.state,
                        "partial_f1": cell.mean,
                        "seeds_done": len(cell.scores),
                    }
                    for cell in cells
                ],
            }
        )
        return EXIT_DONE
    _say(request, request.scale_line)
    table = Table("partial-match F1", *comparison.modes)
    for label, row in comparison.rows:
        table.add_row(label, *(cell.text for cell in row))
    request.console.print(table)
    _say(request, "written: " + ", ".join(str(path) for path in files))
    done = all(state.state == "done" for state in read_states(request.run, request.grid))
    _say(request, f"next: read {files[0]}" if done else f"next: {request.command('run')}  (not every trial is done)")
    return EXIT_DONE


def explain_verb(request: Request) -> int:
    """Show what one trial's model reads, what of it is trained and where it stops. Nothing is started or written."""
    from orchestrator.explain import explain_trial
    from orchestrator.explain_report import explanation_to_json, find_trial, print_explanation

    trial = find_trial(request.grid, request.explained)
    explanation = explain_trial(trial, request.scale.corpus, request.store)
    if request.json:
        _print_json(explanation_to_json(explanation))
    else:
        print_explanation(explanation, request.console)
    if explanation.gaps:
        raise ValueError("; ".join(explanation.gaps))
    if not request.json:
        _say(request, f"next: {request.command('plan')}")
    return EXIT_DONE


def doctor_verb(request: Request) -> int:
    """Find what is damaged, left over or missing in the run folder and in MLflow. Nothing is changed without --repair."""
    from orchestrator.doctor import examination_to_json, examine, print_examination, repair
    from orchestrator.tracking import tracking_uri

    uri = tracking_uri(request.tracking_uri, request.store)
    about = (request.experiment, request.scale, request.grid, request.store, uri)
    if not request.json:
        _say(request, request.scale_line)
    if request.repair:
        with drive_bucket(request.store, request.run, request.trials, _teller(request)):
            outcome = repair(*about)
        found, left = outcome.found, outcome.left
    else:
        if holder := read_bucket_holder(request.store, request.run):
            raise LeaseHeldError(
                f"{request.store.remote}: a driver is at work here ({holder.describe()}); doctor looks at what nobody changes meanwhile"
            )
        found = left = examine(*about)
    if request.json:
        _print_json({"found": examination_to_json(found), "left": examination_to_json(left)})
        return EXIT_FAILED if left else EXIT_DONE
    print_examination(found, request.console, repaired=request.repair)
    if request.repair and left:
        _say(request, "left to do:")
        print_examination(left, request.console)
    if not left:
        _say(request, f"next: {request.command('status')}")
    elif request.repair:
        _say(request, "next: do what the table says")
    else:
        _say(request, f"next: {request.command('doctor', '--repair')}")
    return EXIT_FAILED if left else EXIT_DONE


VERBS: dict[str, Callable[[Request], int]] = {
    "run": run_verb,
    "plan": plan_verb,
    "status": status_verb,
    "report": report_verb,
    "explain": explain_verb,
    "doctor": doctor_verb,
}
