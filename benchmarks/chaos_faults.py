"""A seed -> an endless schedule of faults, and what striking means: which process is killed and when, what is done to files and clocks.

Half of the moments are aimed (while a trial trains, while it saves a checkpoint, while it evaluates, when all trials are done and the grid is being
closed), because a smoke trial trains for two seconds in a run of a minute; the other half fall anywhere.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.chaos_accounting import Look
from data.atomic import read_sealed_json, write_sealed_json
from orchestrator.layout import RunFolder

Victim = Literal[
    "worker", "driver", "controller", "head", "raylet", "gcs", "machine", "mlflow", "second driver", "clock"
]
"""What a fault strikes. machine: every process of the run at once. The last two are no kills."""
Moment = Literal["anytime", "training", "saving", "evaluating", "closing"]
KILLS = ("worker", "driver", "controller", "head", "raylet", "gcs", "machine", "mlflow")

_DELAY_S: dict[Moment, float] = {"anytime": 45.0, "training": 1.5, "saving": 0.0, "evaluating": 0.7, "closing": 3.0}
"""A fault strikes up to this long after its moment has come; anytime: after the fault before it, or the start of the run."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One planned fault. `then` is done to the dead run's files before it is started again."""

    victim: Victim
    moment: Moment
    delay_s: float = 0.0
    then: Literal["", "damage", "clock"] = ""

    @property
    def is_kill(self) -> bool:
        """Whether it counts as one of the kills."""
        return self.victim in KILLS


DECK: tuple[tuple[Victim, Moment, Literal["", "damage", "clock"]], ...] = (
    ("worker", "training", ""),
    ("worker", "training", ""),
    ("worker", "saving", ""),
    ("worker", "saving", ""),
    ("worker", "evaluating", ""),
    ("worker", "anytime", ""),
    ("driver", "training", ""),
    ("driver", "anytime", ""),
    ("controller", "training", ""),
    ("controller", "anytime", ""),
    ("head", "saving", ""),
    ("head", "training", ""),
    ("head", "anytime", ""),
    ("head", "closing", ""),
    ("raylet", "training", ""),
    ("raylet", "anytime", ""),
    ("gcs", "training", ""),
    ("gcs", "anytime", ""),
    ("machine", "training", "damage"),
    ("machine", "saving", "damage"),
    ("machine", "closing", "damage"),
    ("machine", "evaluating", "clock"),
    ("machine", "anytime", ""),
    ("mlflow", "anytime", ""),
    ("mlflow", "training", ""),
    ("second driver", "training", ""),
    ("clock", "training", ""),
)
"""Dealt shuffled and then again: 100 kills strike every victim at every moment several times."""


def schedule(seed: int) -> Iterator[Fault]:
    """The faults of a seed, without end."""
    rng = random.Random(f"faults {seed}")
    while True:
        for victim, moment, then in rng.sample(DECK, len(DECK)):
            yield Fault(victim=victim, moment=moment, delay_s=rng.uniform(0, _DELAY_S[moment]), then=then)


def moment_has_come(moment: Moment, looks: Mapping[str, Look]) -> bool:
    """Whether the trials, by id, are where the fault waits for them."""
    if moment == "anytime":
        return True
    if moment == "closing":
        return bool(looks) and all(now.done for now in looks.values())
    return any(_is_at(moment, now) for now in looks.values() if not now.done)


def _is_at(moment: Moment, now: Look) -> bool:
    return now.saving if moment == "saving" else now.phase == moment


def trials_at(moment: Moment, looks: Mapping[str, Look]) -> list[str]:
    """The trials that a fault aims at; empty: any."""
    return [name for name, now in looks.items() if not now.done and _is_at(moment, now)]


def jump_clock(run: RunFolder, rng: random.Random) -> str:
    """Leave the run folder as a jump of the machine's clock would: every stamp in it is of another time. Returns what was done."""
    seconds = rng.choice([-1, 1]) * rng.choice([3_600.0, 86_400.0, 400 * 86_400.0])
    for path in run.path.rglob("*"):
        try:
            stamps = path.stat()
            os.utime(path, (stamps.st_atime + seconds, stamps.st_mtime + seconds))
        except FileNotFoundError:  # of a run that is alive
            continue
    _shift_lease(run.lease, seconds)
    return f"the clock jumped by {seconds / 3600:+,.0f} hours"


def _shift_lease(path: Path, seconds: float) -> None:
    try:
        lease = read_sealed_json(path)
    except FileNotFoundError:  # its driver has just ended
        return
    write_sealed_json(
        path, {name: value + seconds if name in ("since", "heartbeat") else value for name, value in lease.items()}
    )


def _truncate(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))] if content else b"")


def _empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def _flip_a_bit(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _delete(path: Path, rng: random.Random) -> None:
    path.unlink()


def _replace_by_garbage(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(path.stat().st_size or 1))


Damage = Callable[[Path, random.Random], None]
DAMAGES: dict[str, Damage] = {
    "cut off": _truncate,
    "emptied": _empty,
    "one bit flipped": _flip_a_bit,
    "deleted": _delete,
    "replaced by garbage": _replace_by_garbage,
}
HEALED = (
    "checkpoints/step-*/*",
    "metrics.jsonl",
    "status.json",
    "result.json",
    "predictions-*",
    "attempts/*/attempt.json",
    "attempts/*/token",
    "attempts/*/log",
)
"""Files of a trial that the next run heals by itself, whatever was done to them. Damage to `config.json` or `plan.json` it may name instead."""


@dataclass(frozen=True, kw_only=True)
class Damaged:
    """A file that was damaged on purpose, and what its healing may cost."""

    trial: str
    what: str
    newest_checkpoint: bool  # the one before it is the best there is now
    metrics: bool  # a row that is gone is trained again, from whatever checkpoint lies before it


def _heals(path: Path) -> bool:
    """Not the metrics of a trial that is done: they are named with a remedy, the trial is not trained again by itself."""
    done = path.name == "metrics.jsonl" and path.with_name("result.json").exists()
    return path.stat().st_size > 0 and not done


def damage_a_file(run: RunFolder, looks: Mapping[str, Look], rng: random.Random) -> Damaged | None:
    """Damage one of a trial's files that the next run must heal. None when there is none yet."""
    kinds = {kind: [path for path in sorted(run.trials.glob(f"*/{kind}")) if _heals(path)] for kind in HEALED}
    kinds = {kind: files for kind, files in kinds.items() if files}
    if not kinds:
        return None
    path = rng.choice(kinds[rng.choice(sorted(kinds))])
    how = rng.choice(sorted(DAMAGES))
    DAMAGES[how](path, rng)
    name, *inside = path.relative_to(run.trials).parts
    newest = inside[:2] == ["checkpoints", f"step-{looks[name].committed:06d}"]
    return Damaged(
        trial=name,
        what=f"{'/'.join([name, *inside])} {how}",
        newest_checkpoint=newest,
        metrics=inside[0] == "metrics.jsonl",
    )
