"""Experiment, scale and store -> a `Plan`: every trial with its state and what `run` would do with it. Nothing is started."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data.atomic import write_json
from data.records import SPLITS, Split
from model.configs import TrialConfig
from orchestrator.capacity import Capacity, plan_capacity
from orchestrator.capacity_report import capacity_to_json, print_capacities
from orchestrator.corpora import corpus_ref
from orchestrator.experiment import Experiment
from orchestrator.hardware import Hardware
from orchestrator.identity import fingerprint, read_document, trial_id
from orchestrator.layout import RunFolder, Store
from orchestrator.ledger import State, TrialState, read_states
from orchestrator.prerequisites import Prerequisite, find_prerequisites
from orchestrator.scales import Scale

Action = Literal["start", "continue", "retry", "rerun", "skip", "blocked"]
_ACTIONS: dict[State, Action] = {
    "pending": "start",
    "interrupted": "continue",
    "failed": "retry",
    "done": "skip",
    "stale": "blocked",
}
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
    capacities: Mapping[str, Capacity] = field(default_factory=dict)  # by trial id, where the hardware is known
    rerun_stale: bool = False

    @property
    def run(self) -> RunFolder:
        """The run folder."""
        return self.store.runs(self.experiment.name, self.scale.label)

    def action(self, state: TrialState) -> Action:
        """What `run` does with one trial: a stale one is blocked unless `--rerun-stale` sets it aside."""
        return "rerun" if state.state == "stale" and self.rerun_stale else _ACTIONS[state.state]

    @property
    def to_run(self) -> list[TrialState]:
        """The trials that `run` starts or continues."""
        return [state for state in self.states if self.action(state) not in ("skip", "blocked")]

    @property
    def blocked(self) -> list[TrialState]:
        """The stale trials that wait for a decision."""
        return [state for state in self.states if self.action(state) == "blocked"]

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
    hardware: Hardware | None = None,
) -> Plan:
    """Look at the store and plan, with memory and time where the GPU type is known. Raises ValueError when a file of the run folder is damaged."""
    states = tuple(read_states(store.runs(experiment.name, scale.label), trials))
    left = [state.trial for state in states if state.state != "done"]
    foundations, thinking = (
        [trial.foundation for trial in left],
        any("think" in trial.inference_modes for trial in left),
    )
    prerequisites = tuple(find_prerequisites(scale, store, foundations, thinking=thinking)) if left else ()
    return Plan(
        experiment=experiment,
        scale=scale,
        seeds=seeds,
        store=store,
        states=states,
        prerequisites=prerequisites,
        capacities=_capacities(scale, left, hardware) if hardware and scale.execution.use_gpu else {},
        rerun_stale=rerun_stale,
    )


def _capacities(scale: Scale, trials: Sequence[TrialConfig], hardware: Hardware) -> dict[str, Capacity]:
    """What each trial needs of that GPU type. Seeds need the same, so they are computed once."""
    examples: dict[Split, int] = {split: scale.corpus.count(split) for split in SPLITS}
    known: dict[TrialConfig, Capacity] = {}
    capacities = {}
    for trial in trials:
        seedless = replace(trial, seed=0)
        if seedless not in known:
            known[seedless] = plan_capacity(seedless, scale.execution, hardware, examples=examples)
        capacities[trial_id(trial)] = known[seedless]
    return capacities


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The plan for programs."""
    return {
        "experiment": plan.experiment.name,
        "scale": plan.scale.name,
        "corpus": corpus_ref(plan.scale.corpus).name,
        "seeds": plan.seeds,
        "run_folder": str(plan.run.path),
        "prerequisites": [asdict(item) for item in plan.prerequisites],
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
    write_json(plan.run.plan, plan_to_json(plan))


def planned_seeds(run: RunFolder) -> int:
    """The number of seeds that the latest `run` was given, 0 before the first: a grid that has grown stays grown."""
    if not run.plan.is_file():
        return 0
    return int(read_document(run.plan, "delete this file and run again").get("seeds", 0))


def print_plan(plan: Plan, console: Console) -> None:
    """The plan for people: what is shared, the trials, and the sum."""
    console.print(
        f"[bold]{plan.experiment.name}[/] at scale {plan.scale.name}, corpus {corpus_ref(plan.scale.corpus).name}: {escape(str(plan.run.path))}"
    )
    if plan.prerequisites:
        console.print(_prerequisites_table(plan))
    console.print(trials_table(plan.states, {state.id: plan.action(state) for state in plan.states}))
    if plan.capacities:
        print_capacities(plan.capacities, console)
    actions = Counter(plan.action(state) for state in plan.states)
    steps = sum(state.trial.budget.steps - _kept_steps(state) for state in plan.to_run)
    parts = [f"{count} to {action}" for action, count in actions.items() if action not in ("skip", "blocked")]
    parts += [f"{actions['skip']} done"] * bool(actions["skip"])
    parts += [f"{actions['blocked']} blocked (stale)"] * bool(actions["blocked"])
    console.print(
        f"{len(plan.states)} trial{'s' * (len(plan.states) != 1)}: {', '.join(parts)}. About {steps:,} optimizer steps are left."
    )


def _kept_steps(state: TrialState) -> int:
    return state.last_step if state.state in ("interrupted", "failed") else 0


def _prerequisites_table(plan: Plan) -> Table:
    table = Table("shared by the trials", "state", "")
    for item in plan.prerequisites:
        table.add_row(escape(item.name), _coloured(item.state), escape(item.detail))
    return table


def trials_table(states: Sequence[TrialState], notes: dict[str, str]) -> Table:
    """One row per trial; `notes` fills the last column by trial id."""
    table = Table("trial", "kind", "mode", "state", "steps", "examples", "")
    for state in states:
        budget = state.trial.budget
        steps = f"{state.last_step:,} of {budget.steps:,}" if state.last_step else f"{budget.steps:,}"
        why = "; ".join(state.changed) or state.failure
        note = ": ".join(part for part in (notes.get(state.id, ""), why) if part)
        table.add_row(
            state.id,
            state.trial.foundation.kind,
            state.trial.mode,
            _coloured(state.state),
            steps,
            f"{budget.steps * budget.batch_size:,}",
            escape(note),
        )
    return table


def _coloured(word: str) -> str:
    colour = _COLOURS.get(word)
    return f"[{colour}]{word}[/]" if colour else word
