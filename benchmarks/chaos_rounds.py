"""One grid from nothing to its end under faults: started again whenever it ended badly, watched all the time, compared with the undisturbed one.

What is expected of it is written here: every exception to it is a `breach`, one line.
"""

from __future__ import annotations

import shutil
import time

from benchmarks.chaos_accounting import Look, Loss, TrialWatch, differences, look
from benchmarks.chaos_faults import Fault, damage_a_file, jump_clock, moment_has_come, trials_at
from benchmarks.chaos_mlflow import check_mirror
from benchmarks.chaos_processes import Session, kill, title, trial_of_worker
from benchmarks.chaos_state import EXPERIMENT, Chaos, Strike, grid_command
from data.atomic import read_sealed_json
from orchestrator.layout import RunFolder, Store
from orchestrator.scales import SMOKE

ORPHANS_GONE_WITHIN_S = 90.0
_SECOND_DRIVER_ANSWERS_WITHIN_S = 90.0
_LOOK_EVERY_S = 0.05
_VICTIM_AGAIN_S = 0.3
_FRESH_DATA_EVERY = 4
"""Every fourth round prepares its corpus and encoder states itself, under faults."""


class Round:
    """One grid under faults, in a store of its own."""

    def __init__(self, chaos: Chaos, number: int) -> None:
        self._chaos, self._number = chaos, number
        self._store = Store(chaos.folder / f"round-{number:02d}")
        self._run: RunFolder = self._store.runs(EXPERIMENT, SMOKE.label)
        names = sorted(path.name for path in chaos.reference.runs(EXPERIMENT, SMOKE.label).trials.iterdir())
        interval, steps = SMOKE.execution.checkpoint_every, SMOKE.budget.steps
        self._watches = {name: TrialWatch(interval=interval, steps=steps) for name in names}
        self._sessions: list[Session] = []
        self._armed: float | None = None  # when the pending fault strikes
        self._alive = time.monotonic()  # the last sign of life
        self._log_size = 0
        self._server_back: float | None = None  # when a killed MLflow server is started again

    def play(self) -> None:
        """From nothing to the checked end. Whatever ends it early, Ctrl-C above all, leaves no process behind."""
        try:
            self._play()
        except BaseException:
            for session in self._sessions:
                session.kill()
            raise

    def _play(self) -> None:
        chaos = self._chaos
        if self._number % _FRESH_DATA_EVERY:
            shutil.copytree(chaos.reference.root / "prepared", self._store.root / "prepared")
        undisturbed_failures = 0
        while (code := self._start_and_watch()) != 0:
            struck = [strike for strike in chaos.strikes if strike.at >= self._sessions[-1].started]
            for strike in struck[-1:]:
                strike.ended_s = time.monotonic() - strike.at
            if not struck:
                chaos.breach(
                    f"round {self._number}: a run that nobody disturbed ended with {code}; {self._last_words()}"
                )
                undisturbed_failures += 1
                if undisturbed_failures == 3:
                    break
            for strike in struck:
                self._do_then(strike)
        else:
            self._recover_all()
            self._check_end()
        self._end_sessions()

    @property
    def _looks(self) -> dict[str, Look]:
        return {name: watch.last for name, watch in self._watches.items()}

    def _start_and_watch(self) -> int:
        chaos = self._chaos
        chaos.starts += 1
        log = chaos.folder / f"round-{self._number:02d}.log"
        session = Session(grid_command(self._store, chaos.server.uri), cwd=chaos.folder, log=log)
        self._sessions.append(session)
        self._armed, self._alive = None, time.monotonic()
        while (code := session.returncode) is None:
            self._look()
            self._strike_when_due(session)
            silence = time.monotonic() - self._alive
            chaos.silence_s_most = max(chaos.silence_s_most, silence)
            if silence > chaos.hang_s:
                chaos.breach(f"round {self._number}: no sign of life for {silence:.0f} s; {self._last_words()}")
                session.kill()
            pending = chaos.pending
            time.sleep(0.005 if pending and pending.moment == "saving" else _LOOK_EVERY_S)
        self._look()
        return code

    def _look(self) -> None:
        """Take in where every trial stands."""
        chaos, now = self._chaos, time.monotonic()
        if self._server_back is not None and now >= self._server_back:
            chaos.server.start()
            self._server_back = None
        said = self._news()
        for name, watch in self._watches.items():
            before, seen = watch.last, look(self._run.trial(name))
            if loss := watch.see(seen):
                self._account(name, watch, loss)
            if seen != before:
                self._alive = now
                self._note_recovery(name, seen)
        if said:
            self._alive = now

    def _news(self) -> bool:
        """Whether the run has said anything since the last look but that its trials are waiting still."""
        log = self._sessions[-1].log
        if log.stat().st_size == self._log_size:
            return False
        with log.open("rb") as stream:
            stream.seek(self._log_size)
            new = stream.read()
        self._log_size += len(new)
        return any(not line.endswith((b"  waiting", b"  starting")) for line in new.splitlines())

    def _account(self, name: str, watch: TrialWatch, loss: Loss) -> None:
        self._chaos.losses.append(loss)
        if breach := loss.breach(watch.interval):
            self._chaos.breach(f"round {self._number}, {name}, attempt {loss.attempt}: {breach}")
        for strike in reversed(self._chaos.strikes):
            if strike.round == self._number and strike.fault.is_kill and strike.fault.victim != "mlflow":
                strike.redone[name] = strike.redone.get(name, 0) + loss.redone
                break

    def _note_recovery(self, name: str, seen: Look) -> None:
        if seen.phase in ("training", "evaluating") or seen.done:
            for strike in self._unrecovered()[-1:]:
                if seen.attempt > strike.attempts[name]:
                    strike.recovered_s = time.monotonic() - strike.at

    def _unrecovered(self) -> list[Strike]:
        mine = [strike for strike in self._chaos.strikes if strike.round == self._number]
        return [strike for strike in mine[-1:] if strike.fault.is_kill and strike.recovered_s is None]

    def _recover_all(self) -> None:
        for strike in self._unrecovered():
            strike.recovered_s = time.monotonic() - strike.at

    def _strike_when_due(self, session: Session) -> None:
        fault = self._chaos.next_fault()
        if fault is None:
            return
        if self._armed is None and moment_has_come(fault.moment, self._looks):
            self._armed = time.monotonic() + fault.delay_s
        if self._armed is None or time.monotonic() < self._armed:
            return
        # Where there is no such process, not yet or no more, it is looked for again.
        self._armed = None if self._strike(fault, session) else time.monotonic() + _VICTIM_AGAIN_S

    def _strike(self, fault: Fault, session: Session) -> bool:
        """Do it and note it. False when the victim is not there."""
        chaos = self._chaos
        victims = self._victims(fault, session)
        if not victims:
            return False
        at, looks = time.monotonic(), self._looks
        strike = Strike(
            number=chaos.killed + fault.is_kill,
            round=self._number,
            fault=fault,
            at=at,
            trials={name: now.describe(SMOKE.budget.steps) for name, now in looks.items()},
            what="",
            attempts={name: now.attempt for name, now in looks.items()},
        )
        if fault.victim == "machine":
            session.kill()
        elif fault.victim == "mlflow":
            chaos.server.kill()
            self._server_back = at + chaos.rng.uniform(2, 20)
        elif fault.victim == "clock":
            strike.what = jump_clock(self._run, chaos.rng)
        elif fault.victim == "second driver":
            strike.what = self._second_driver(session)
        else:
            kill(victims[0])
        strike.what = strike.what or f"kill -9 {victims[0]}"
        chaos.strikes.append(strike)
        chaos.pending = None
        where = ", ".join(strike.trials.values())
        chaos.on_event(f"{fault.victim} ({fault.moment}): {strike.what}; round {self._number}; {where}")
        return True

    def _victims(self, fault: Fault, session: Session) -> list[int]:
        """The processes that are struck, the first one first; not empty where none is needed."""
        if fault.victim in ("clock", "second driver"):
            return [session.pid] if self._holder() == session.pid else []
        if fault.victim == "mlflow":
            return [self._chaos.server.pid] if self._chaos.server.pid else []
        if fault.victim == "machine":
            return [session.pid]
        found = session.find(fault.victim)
        if fault.victim == "worker":
            aimed = set(trials_at(fault.moment, self._looks))
            found = [pid for pid in found if trial_of_worker(pid, self._run.trials) in aimed] or found
        return self._chaos.rng.sample(found, len(found))

    def _holder(self) -> int | None:
        """The process that the lease names: a driver that has just been started may not have taken a dead one's over yet."""
        try:
            return int(read_sealed_json(self._run.lease)["pid"])
        except FileNotFoundError:
            return None

    def _second_driver(self, first: Session) -> str:
        """Start the same command beside the one that runs: it must refuse with exit code 2 and leave the lease alone."""
        chaos, log = self._chaos, self._chaos.folder / f"round-{self._number:02d}-second.log"
        token = _token(self._run)
        second = Session(grid_command(self._store, chaos.server.uri), cwd=chaos.folder, log=log)
        deadline = second.started + _SECOND_DRIVER_ANSWERS_WITHIN_S
        while second.returncode is None and time.monotonic() < deadline:
            self._look()
            time.sleep(_LOOK_EVERY_S)
        code, seconds = second.returncode, time.monotonic() - second.started
        second.kill()
        if first.returncode is not None:
            return "the first driver ended meanwhile"
        if code != 2 or "another driver is at work" not in log.read_text(errors="replace"):
            chaos.breach(f"round {self._number}: a second driver ended with {code} after {seconds:.0f} s; see {log}")
        if _token(self._run) != token:
            chaos.breach(f"round {self._number}: a second driver changed the lease")
        return f"refused with exit code {code} after {seconds:.0f} s"

    def _do_then(self, strike: Strike) -> None:
        """What is done to the files of the dead run."""
        chaos = self._chaos
        if strike.fault.then == "clock":
            strike.what += "; " + jump_clock(self._run, chaos.rng)
        elif strike.fault.then == "damage" and (damaged := damage_a_file(self._run, self._looks, chaos.rng)):
            strike.what += f"; {damaged.what}"
            watch = self._watches[damaged.trial]
            watch.damaged = True
            watch.excused += watch.steps if damaged.metrics else watch.interval if damaged.newest_checkpoint else 0
            chaos.on_event(f"damaged: {damaged.what}")

    def _check_end(self) -> None:
        """Compare everything with MLflow and with the undisturbed run. Where MLflow is not whole, the same command is run once more before."""
        chaos = self._chaos
        chaos.server.wait()
        self._server_back = None
        mirror = check_mirror(chaos.server.uri, EXPERIMENT, self._run)
        if mirror.breaches:
            chaos.mirrored_late += 1
            self._do("run")
            mirror = check_mirror(chaos.server.uri, EXPERIMENT, self._run)
        chaos.mirror.add(mirror)
        self._do("doctor", "--repair")
        for line in mirror.breaches + differences(chaos.reference.runs(EXPERIMENT, SMOKE.label), self._run):
            chaos.breach(f"round {self._number}: {line}")
        for name, watch in self._watches.items():
            if watch.answers_lost:
                chaos.breach(f"round {self._number}, {name}: {watch.answers_lost} answers were thrown away")

    def _do(self, *words: str) -> None:
        """A verb on the finished grid, that must end well."""
        chaos, log = self._chaos, self._sessions[-1].log.with_suffix(f".{words[0]}.log")
        session = Session(grid_command(self._store, chaos.server.uri, *words), cwd=chaos.folder, log=log)
        code = session.wait(300)
        session.kill()
        if code != 0:
            chaos.breach(f"round {self._number}: {' '.join(words)} on the finished grid ended with {code}; see {log}")

    def _end_sessions(self) -> None:
        """What killed runs left must end by itself."""
        deadline = time.monotonic() + ORPHANS_GONE_WITHIN_S
        while (left := [session for session in self._sessions if session.members()]) and time.monotonic() < deadline:
            time.sleep(0.5)
        for session in left:
            titles = ", ".join(title(pid) for pid in session.members())
            self._chaos.breach(f"round {self._number}: processes of a killed run live on: {titles}")
            session.kill()

    def _last_words(self) -> str:
        log = self._sessions[-1].log
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return f"{lines[-1][:300] if lines else 'no output'} (see {log})"


def _token(run: RunFolder) -> str:
    return str(read_sealed_json(run.lease)["token"])
