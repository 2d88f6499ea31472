"""Experiment, scale and store -> a `Plan`: every trial with its state and what `run` would do with it. Nothing is started."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data.atomic import read_sealed_json, write_sealed_json
from data.records import SPLITS, Split
from model.configs import TrialConfig
from orchestrator.alignments import alignment_folder, read_alignments
from orchestrator.capacity import Capacity, plan_capacities
from orchestrator.capacity_report import capacity_to_json, print_capacities
from orchestrator.corpora import corpus_ref
from orchestrator.experiment import Experiment
from orchestrator.failures import Cause, left_alone
from orchestrator.hardware import Hardware
from orchestrator.identity import fingerprint, trial_id
from orchestrator.layout import RunFolder, Store
from orchestrator.ledger import State, TrialState, read_states
from orchestrator.prerequisites import Prerequisite, find_prerequisites
from orchestrator.scales import Scale

Action = Literal["start", "continue", "retry", "leave", "rerun", "skip", "blocked"]
_ACTIONS: dict[State, Action] = {
    "pending": "start",
    "interrupted": "continue",
    "failed": "retry",
    "done": "skip",
    "stale": "blocked",
}
_NOT_RUN: tuple[Action, ...] = ("skip", "leave", "blocked")
_COLOURS = {
    "done": "green",
    "failed": "red",
    "stale": "magenta",
    "interrupted": "yellow",
    "ready": "green",
    "missing": "red",
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `run` would do."""

    experiment: Experiment
    scale: Scale
    seeds: int
    store: Store
    states: tuple[TrialState, ...]
    prerequisites: tuple[Prerequisite, ...]
    alignments: Mapping[str, TrialState] = field(default_factory=dict)  # what trials start from, by folder name
    capacities: Mapping[str, Capacity] = field(default_factory=dict)  # by trial id, where the hardware is known
    rerun_stale: bool = False
    retry: Collection[Cause] = ()

    @property
    def run(self) -> RunFolder:
        """The run folder."""
        return self.store.runs(self.experiment.name, self.scale.label)

    def action(self, state: TrialState) -> Action:
        """What `run` does with one trial: a stale one is blocked unless `--rerun-stale` sets it aside, one that would fail again is left alone."""
        if left_alone(state.cause, self.retry):
            return "leave"
        return "rerun" if state.state == "stale" and self.rerun_stale else _ACTIONS[state.state]

    @property
    def to_run(self) -> list[TrialState]:
        """The trials that `run` starts or continues."""
        return [state for state in self.states if self.action(state) not in _NOT_RUN]

    @property
    def blocked(self) -> list[TrialState]:
        """The stale trials that wait for a decision."""
        return [state for state in self.states if self.action(state) == "blocked"]

    def sharers(self, name: str) -> list[TrialState]:
        """The trials that start from an alignment."""
        return [s for s in self.states if s.trial.alignment and alignment_folder(self.run, s.trial).path.name == name]

    def alignment_action(self, name: str) -> Action:
        """What `run` does with an alignment: nothing where none of its trials is to run; else a stale one is set aside, a failed one tried again."""
        if all(self.action(state) in _NOT_RUN for state in self.sharers(name)):
            return "skip"
        state = self.alignments[name].state
        return "rerun" if state == "stale" else _ACTIONS[state]

    @property
    def steps_left(self) -> int:
        """Optimizer steps that `run` trains: the trials' and their alignments'."""
        alignments = [state for name, state in self.alignments.items() if self.alignment_action(name) != "skip"]
        return sum(state.trial.budget.steps - _kept_steps(state) for state in [*self.to_run, *alignments])

    @property
    def missing(self) -> list[Prerequisite]:
        """What the user must provide first."""
        return [item for item in self.prerequisites if item.state == "missing"]

    def check(self) -> None:
        """Raise ValueError, one line, for what keeps `run` from starting: trials that do not fit, something missing, stale trials."""
        if refused := [(name, capacity.refusal) for name, capacity in self.capacities.items() if capacity.refusal]:
            name, refusal = refused[0]
            hardware = self.capacities[name].workload.hardware.name
            raise ValueError(
                f"{len(refused)} trial(s) do not fit {hardware}, e.g. {name}: {refusal}; leave them out with --only, or use larger GPUs"
            )
        if self.missing:
            raise ValueError("; ".join(f"{item.name}: {item.detail}" for item in self.missing))
        if self.blocked:
            first = self.blocked[0]
            raise ValueError(
                f"{len(self.blocked)} trial(s) on disk were computed from another configuration, e.g. {first.id}: {first.changed[0]}; "
                "`plan` shows all changes; run with --rerun-stale to set the old ones aside and train anew, or undo the change"
            )


def make_plan(
    experiment: Experiment,
    scale: Scale,
    trials: Sequence[TrialConfig],
    store: Store,
    *,
    seeds: int,
    rerun_stale: bool = False,
    retry: Collection[Cause] = (),
    hardware: Hardware | None = None,
) -> Plan:
    """Look at the store and plan, with memory and time where the GPU type is known. Raises ValueError when a file of the run folder is damaged."""
    run = store.runs(experiment.name, scale.label)
    states = tuple(read_states(run, trials))
    left = [state.trial for state in states if state.state != "done"]
    foundations, thinking = (
        [trial.foundation for trial in left],
        any("think" in trial.inference_modes for trial in left),
    )
    constrained = any(trial.evaluation.constrained for trial in left)
    needed = find_prerequisites(scale, store, foundations, thinking=thinking, constrained=constrained) if left else []
    return Plan(
        experiment=experiment,
        scale=scale,
        seeds=seeds,
        store=store,
        states=states,
        prerequisites=tuple(needed),
        alignments=read_alignments(run, trials),
        capacities=_capacities(scale, left, hardware) if hardware and scale.execution.use_gpu else {},
        rerun_stale=rerun_stale,
        retry=retry,
    )


def _capacities(scale: Scale, trials: Sequence[TrialConfig], hardware: Hardware) -> dict[str, Capacity]:
    """What each trial needs of that GPU type."""
    examples: dict[Split, int] = {split: scale.corpus.count(split) for split in SPLITS}
    found = plan_capacities(trials, scale.execution, hardware, examples=examples)
    return {trial_id(trial): capacity for trial, capacity in found.items()}


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The plan for programs."""
    return {
        "experiment": plan.experiment.name,
        "scale": plan.scale.name,
        "corpus": corpus_ref(plan.scale.corpus).name,
        "seeds": plan.seeds,
        "run_folder": str(plan.run.path),
        "prerequisites": [asdict(item) for item in plan.prerequisites],
        "alignments": [
            {
                "name": name,
                "foundation": state.trial.foundation.name,
                "seed": state.trial.seed,
                "state": state.state,
                "action": plan.alignment_action(name),
                "changed": list(state.changed),
                "failure": state.failure,
                "cause": state.cause,
                "last_step": state.last_step,
                "steps": state.trial.budget.steps,
                "trials": [trial.id for trial in plan.sharers(name)],
            }
            for name, state in plan.alignments.items()
        ],
        "steps_left": plan.steps_left,
        "trials": [
            {
                "trial_id": state.id,
                "fingerprint": fingerprint(state.trial),
                "foundation": state.trial.foundation.name,
                "kind": state.trial.foundation.kind,
                "mode": state.trial.mode,
                "seed": state.trial.seed,
                "state": state.state,
                "action": plan.action(state),
                "changed": list(state.changed),
                "failure": state.failure,
                "note": state.note,
                "last_step": state.last_step,
                "steps": state.trial.budget.steps,
                "examples": state.trial.budget.steps * state.trial.budget.batch_size,
                "capacity": capacity_to_json(plan.capacities[state.id]) if state.id in plan.capacities else None,
            }
            for state in plan.states
        ],
    }


def write_plan(plan: Plan) -> None:
    """Write `plan.json` into the run folder."""
    write_sealed_json(plan.run.plan, plan_to_json(plan))


def planned_seeds(run: RunFolder) -> int:
    """The number of seeds that the latest `run` was given, 0 before the first: a grid that has grown stays grown."""
    try:
        return int(read_sealed_json(run.plan)["seeds"])
    except FileNotFoundError:
        return 0
    except ValueError as error:
        raise ValueError(
            f"{error}; delete it and run again, with --seeds where the grid had more than it declares"
        ) from error


def print_plan(plan: Plan, console: Console) -> None:
    """The plan for people: what is shared, the trials, and the sum."""
    console.print(
        f"[bold]{plan.experiment.name}[/] at scale {plan.scale.name}, corpus {corpus_ref(plan.scale.corpus).name}: {escape(str(plan.run.path))}"
    )
    if plan.prerequisites:
        console.print(_prerequisites_table(plan))
    if plan.alignments:
        console.print(_alignments_table(plan))
    console.print(trials_table(plan.states, {state.id: plan.action(state) for state in plan.states}))
    if plan.capacities:
        aligned = [name for name in plan.alignments if plan.alignment_action(name) == "skip"]
        print_capacities(plan.capacities, console, aligned=aligned)
    actions = Counter(plan.action(state) for state in plan.states)
    parts = [f"{count} to {action}" for action, count in actions.items() if action not in ("skip", "leave", "blocked")]
    parts += [f"{actions['skip']} done"] * bool(actions["skip"])
    parts += [f"{actions['leave']} left alone (failed; see --retry)"] * bool(actions["leave"])
    parts += [f"{actions['blocked']} blocked (stale)"] * bool(actions["blocked"])
    console.print(
        f"{len(plan.states)} trial{'s' * (len(plan.states) != 1)}: {', '.join(parts)}. About {plan.steps_left:,} optimizer steps are left."
    )


def _kept_steps(state: TrialState) -> int:
    return state.last_step if state.state in ("interrupted", "failed") else 0


def _prerequisites_table(plan: Plan) -> Table:
    table = Table("shared by the trials", "state", "")
    for item in plan.prerequisites:
        table.add_row(escape(item.name), coloured(item.state), escape(item.detail))
    return table


def _alignments_table(plan: Plan) -> Table:
    table = Table("alignment", "state", "steps", "trials", "")
    for name, state in plan.alignments.items():
        action = plan.alignment_action(name)
        note = ": ".join(part for part in (action, "; ".join(state.changed) or state.failure) if part)
        table.add_row(name, coloured(state.state), _steps(state), str(len(plan.sharers(name))), escape(note))
    return table


def trials_table(states: Sequence[TrialState], notes: dict[str, str]) -> Table:
    """One row per trial; `notes` fills the last column by trial id."""
    table = Table("trial", "kind", "mode", "state", "steps", "examples", "")
    for state in states:
        budget = state.trial.budget
        why = "; ".join(state.changed) or state.failure or state.note
        note = ": ".join(part for part in (notes.get(state.id, ""), why) if part)
        table.add_row(
            state.id,
            state.trial.foundation.kind,
            state.trial.mode,
            coloured(state.state),
            _steps(state),
            f"{budget.steps * budget.batch_size:,}",
            escape(note),
        )
    return table


def _steps(state: TrialState) -> str:
    steps = f"{state.trial.budget.steps:,}"
    return f"{state.last_step:,} of {steps}" if state.last_step else steps


def coloured(word: str) -> str:
    """A state or readiness in its colour, as rich markup."""
    colour = _COLOURS.get(word)
    return f"[{colour}]{word}[/]" if colour else word
