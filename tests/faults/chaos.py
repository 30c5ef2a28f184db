"""Random faults for as long as you like: python -m tests.faults.chaos --minutes 10 --seed 1 --workers 3.

Daemons of one group serve a steady stream of events, hostile ones among them, on a broker of their own. Daemons are
killed, frozen and stopped; the broker is killed, stopped and frozen. At the end `lstmstream verify` must find every
event answered once, with the right answer. The seed gives the faults and the events; the moments are the machine's.

Exit codes: 0 all is right, 1 findings, 2 vacuous: no fault struck, or none struck inside a transaction.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

from lstmstream.dev.broker import DevBroker
from tests.broker import harness
from tests.faults.fleet import Fleet, Worker, with_model
from tests.faults.judge import tombstones
from tests.faults.load import HOT_KEY, KEYS
from tests.faults.trial import Trial

PARTITIONS = 12
NAME = "chaos"
OF_DAEMONS = {"kill9": 5, "freeze": 3, "sigterm": 3}  # kind to weight
OF_BROKER = {"broker_kill9": 1, "broker_restart": 1, "broker_freeze": 1}
ERASURES = {"erase": 3}
CHANGES = {"change_model": 3}
# By which keys lose their states: the least recently seen ones, those that have expired for good, or all of a model
# that another one replaces, whose states are rebuilt.
RULES: dict[str, dict[str, Any]] = {
    "max-keys": {"state": {"max_keys": 5}},
    "expiry": {"input": {"max_lateness": "1m"}, "state": {"ttl": "1h"}},
    "model-change": {"on_model_change": "replay", "state": {"replay": "1d"}},
}
ERASE_S = 60.0
ERASED_KEYS = 10  # at once
HOT_ERASURES_FROM = 0.8  # of the shares that choose a key
NOT_STARTED = 2  # exit code
GAP_S = (2.0, 8.0)  # between faults: shorter, and the group is never at rest for a moment
FREEZE_S = (3.0, 30.0)
BROKER_FREEZE_S = (3.0, 15.0)
BROKER_AWAY_S = (0.0, 10.0)
POWER_S = 120.0


@dataclass
class Outcome:
    """What a run has found."""

    struck: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    aborted: int = 0
    erasures: Counter[int] = field(default_factory=Counter)  # by exit code
    sent: int = 0
    silence: str = "unknown"
    counted: float = 0.0  # events, by /metrics of all lives
    summaries: list[dict[str, Any]] = field(default_factory=list)  # of each model

    @property
    def exit_code(self) -> int:
        """0 all is right, 1 findings, 2 vacuous."""
        if self.findings:
            return 1
        return 0 if self.struck and self.aborted else 2

    def lines(self) -> Iterator[str]:
        """For a person."""
        yield "faults: " + (", ".join(f"{kind} {count}" for kind, count in sorted(self.struck.items())) or "none")
        shown = ("events", "predictions", "alerts", "dead_letters", "not_judged", "result", "counts", "seconds")
        for summary in self.summaries:
            yield f"verify: {', '.join(f'{key} {summary.get(key)}' for key in shown)}"
        yield f"sent: {self.sent}; records of aborted transactions: {self.aborted}"
        yield f"counted by /metrics of all lives: {self.counted:.0f}"
        yield f"longest silence: {self.silence}"
        if self.erasures:
            yield f"erasures by exit code: {dict(sorted(self.erasures.items()))}"
        yield from (f"note: {note}" for note in self.notes)
        yield from (f"finding: {finding}" for finding in self.findings)
        yield {0: "All is right.", 1: "There are findings.", 2: "Vacuous: no fault struck inside a transaction."}[
            self.exit_code
        ]


class Faults:
    """Chooses faults by a seed and lets them strike, several at a time, but one at a time on each process."""

    def __init__(
        self, seed: int, trial: Trial, fleet: Fleet, broker: DevBroker, outcome: Outcome, *, kinds: dict[str, int]
    ) -> None:
        self._source, self._config, self._models = random.Random(seed), trial.config, deque(trial.models)
        self._servers = trial.servers
        self._rollout: list[Worker] = []  # that still have to be started again
        self._fleet, self._broker, self._outcome, self._kinds = fleet, broker, outcome, kinds
        self._threads: list[Thread] = []
        self._broker_busy = False
        self._broker_struck = 0.0  # when it was last seen away
        self._erasing = False

    def strike(self, seconds: float) -> None:
        """Faults at random for so long; ended daemons are started again. All faults are over at the return.

        At the end some that cannot miss, since a seed may have begun with such that do little.
        """
        deadline = time.monotonic() + seconds
        try:
            if CHANGES.keys() & self._kinds.keys():
                self._change_model()  # however short the run is, each model has answered something
            while time.monotonic() < deadline:
                gap_end = time.monotonic() + self._source.uniform(*GAP_S)
                while time.monotonic() < min(gap_end, deadline):
                    self._fleet.look()
                    self._roll_out()
                    time.sleep(0.05)
                self._choose()
        finally:
            self._wait()
        if ERASURES.keys() & self._kinds.keys():
            self._begin("erase", self._erase, "erase", self._source.random())
        if seconds:
            self._cut_power()
        self._wait()

    def _wait(self) -> None:
        """Until the faults that have begun are over."""
        for thread in self._threads:
            thread.join(120)

    def _choose(self) -> None:
        (kind,) = self._source.choices(list(self._kinds), list(self._kinds.values()))
        number, share = self._source.random(), self._source.random()  # drawn for every kind: the seed gives the rest
        if kind in OF_BROKER:
            if not self._broker_busy:
                self._broker_busy = True
                self._begin(kind, self._strike_broker, kind, share)
            return
        if kind in CHANGES:
            if not self._rollout:
                self._change_model()
            return
        if kind in ERASURES:
            if not self._erasing:
                self._erasing = True
                self._begin(kind, self._erase, kind, share)
            return
        idle = self._fleet.idle()
        if idle:
            worker = idle[int(number * len(idle))]
            worker.busy = True
            self._begin(kind, self._strike_worker, kind, worker, share)

    def _cut_power(self) -> None:
        """All daemons die at once, at a moment when a transaction is open."""
        print(f"{time.strftime('%H:%M:%S')} cut_power", flush=True)
        self._outcome.struck["cut_power"] += 1
        workers, deadline = self._fleet.workers, time.monotonic() + POWER_S
        with harness.admin(self._servers) as client:
            while True:
                self._fleet.look()
                for worker in workers:
                    worker.daemon.freeze()
                time.sleep(0.02)  # what they sent last arrives
                if harness.in_transaction(client, f"{NAME}.out", partitions=PARTITIONS):
                    break
                for worker in workers:
                    worker.daemon.thaw()
                assert time.monotonic() < deadline, f"no transaction was seen open within {POWER_S:g} s"
                time.sleep(self._source.uniform(0.005, 0.05))
        for worker in workers:
            worker.daemon.kill9()
        for worker in workers:
            worker.start_again()

    def _change_model(self) -> None:
        """The configuration names the next model from now on: for who is struck, and for the others by a rollout."""
        self._models.rotate(-1)
        print(f"{time.strftime('%H:%M:%S')} change_model {self._models[0].name}", flush=True)
        self._outcome.struck["change_model"] += 1
        with_model(self._config, self._models[0], to=self._config)
        self._rollout = list(self._fleet.workers)
        for worker in self._rollout:
            worker.use(self._models[0])

    def _roll_out(self) -> None:
        """Starts the next daemon again, if nobody strikes it; the group has two models meanwhile."""
        if self._rollout and not self._rollout[0].busy:
            worker = self._rollout.pop(0)
            worker.busy = True
            kind = self._source.choice(["kill9", "sigterm"])
            self._begin(kind, self._strike_worker, kind, worker, 0.0)

    def _begin(self, kind: str, strike: Any, *args: Any) -> None:
        print(f"{time.strftime('%H:%M:%S')} {kind} {' '.join(_shown(arg) for arg in args[1:])}", flush=True)
        self._outcome.struck[kind] += 1
        thread = Thread(target=self._guarded, args=(strike, *args), name=kind, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _guarded(self, strike: Any, *args: Any) -> None:
        try:
            strike(*args)
        except Exception as error:
            self._outcome.findings.append(f"{args[0]}: {error}")

    def _strike_worker(self, kind: str, worker: Worker, share: float) -> None:
        try:
            if kind == "kill9":
                worker.kill9()
            elif kind == "freeze":
                worker.freeze(_between(FREEZE_S, share))
            elif (code := worker.stop_and_start()) != 0:
                text = f"worker {worker.number} stopped with code {code} on SIGTERM"
                away = self._broker_busy or time.monotonic() - self._broker_struck < harness.EXIT_S
                (self._outcome.notes if away and code == 1 else self._outcome.findings).append(text)
        finally:
            worker.busy = False

    def _strike_broker(self, kind: str, share: float) -> None:
        try:
            if kind == "broker_freeze":
                pid = self._broker.status().pid
                assert pid is not None, "the broker has ended by itself"
                os.kill(pid, signal.SIGSTOP)
                try:
                    time.sleep(_between(BROKER_FREEZE_S, share))
                finally:
                    os.kill(pid, signal.SIGCONT)
                return
            (self._broker.kill if kind == "broker_kill9" else self._broker.down)()
            time.sleep(_between(BROKER_AWAY_S, share))
            self._broker.up(port=0)  # that of last time
        finally:
            self._broker_struck = time.monotonic()
            self._broker_busy = False

    def _erase(self, _kind: str, share: float) -> None:
        """`lstmstream state delete` on the live group; what was erased is in the log, so `verify` knows it."""
        first = int(share * KEYS)
        keys = [f"k{(first + number) % KEYS}" for number in range(ERASED_KEYS)]
        if share > HOT_ERASURES_FROM:
            keys.append(HOT_KEY.decode())
        try:
            command = [sys.executable, "-m", "lstmstream", "state", "delete", str(self._config), *keys]
            done = subprocess.run(
                [*command, "--timeout", f"{ERASE_S:.0f}s"], capture_output=True, text=True, timeout=300, check=False
            )
            self._outcome.erasures[done.returncode] += 1
            away = self._broker_busy or time.monotonic() - self._broker_struck < harness.EXIT_S
            if done.returncode not in {0, 1} and not (away and done.returncode == NOT_STARTED):
                self._outcome.findings.append(f"erasure of {keys}: exit code {done.returncode}: {done.stderr[-400:]}")
        finally:
            self._erasing = False


def _between(bounds: tuple[float, float], share: float) -> float:
    return bounds[0] + share * (bounds[1] - bounds[0])


def _shown(argument: Any) -> str:
    return f"worker {argument.number}" if isinstance(argument, Worker) else f"{argument:.2f}"


def run(
    folder: Path,
    *,
    seconds: float,
    seed: int,
    workers: int,
    rate: float,
    broker_faults: bool = True,
    keep: bool = False,
    snapshots: bool = False,
    standby: int = 0,
    rule: str | None = None,
) -> Outcome:
    """One run in a folder of its own, on the client that `harness.CLIENT` names. `keep`: the broker's data stay.

    `snapshots`: local ones, every second or two, in one folder for all daemons. `standby`: `state.standby`. With a
    `rule` of RULES keys lose their states by it, and others by erasures; and two models answer in turn, if that is it.
    """
    outcome = Outcome()
    broker = DevBroker(folder / "broker")
    servers = broker.up(port=0)
    kinds = {**OF_DAEMONS, **(OF_BROKER if broker_faults else {}), **({} if rule is None else ERASURES)}
    changing = rule == "model-change"
    kinds |= CHANGES if changing else {}
    sections: dict[str, Any] = {"input": {"late": "drop"}, "state": {"ttl": "1h", "checkpoint_interval": "1s"}}
    for section, options in RULES[rule].items() if rule is not None else ():
        sections[section] = {**sections[section], **options} if isinstance(options, dict) else options
    if snapshots:
        sections["state"]["dir"] = str(folder / "snapshots")
    if standby:
        sections["state"]["standby"] = standby
    models = 2 if changing else 1
    trial = Trial(servers, NAME, folder, partitions=PARTITIONS, rate=rate, seed=seed, models=models, **sections)
    program = "tests.broker.snapshotting_daemon" if snapshots else "lstmstream"
    try:
        with trial, Fleet(trial.config, workers, program=program) as fleet:
            fleet.wait_ready()
            trial.begin()
            fleet.wait(lambda: trial.load.written > 0, "given events")
            Faults(seed, trial, fleet, broker, outcome, kinds=kinds).strike(seconds)
            trial.settle(fleet.wait)
            outcome.findings += fleet.stop()
            for end in fleet.ends():
                # A member that was fenced leaves with 1; its supervisor starts it again.
                (outcome.notes if " code 1:" in end else outcome.findings).append(end)
        outcome.findings += trial.judge()
        outcome.sent, outcome.summaries, outcome.aborted = trial.load.sent, trial.summaries, trial.aborted()
        outcome.counted = fleet.counted()
        if not 0 < outcome.counted <= trial.summary["events"]:
            outcome.findings.append(f"/metrics counted {outcome.counted:.0f} of {trial.summary['events']} events")
        outcome.silence = trial.readers.longest_silence()
        if snapshots or standby:
            outcome.notes.append(restored_from(folder))
        if rule is not None:
            count = tombstones(servers, f"{NAME}.state", partitions=PARTITIONS)
            outcome.notes.append(f"tombstones in the state topic: {count}")
            if not count:
                outcome.findings.append("no key has lost its state")
    except AssertionError as error:
        outcome.findings.append(str(error))
    finally:
        if (pid := broker.status().pid) is not None:
            os.kill(pid, signal.SIGCONT)
        broker.down(wipe=not outcome.findings and not keep)
    return outcome


def restored_from(folder: Path) -> str:
    """Where states came from, and how often snapshots and standbys were not used, by the logs of all lives."""
    found: Counter[str] = Counter()
    for log in folder.glob("worker-*.log"):
        for line in log.read_bytes().splitlines():
            found["written"] += b'"snapshot written"' in line
            found["refused"] += b"is not used: " in line
            if b'"partition restored"' in line:
                taken = b'"from_standby": null' not in line
                source = "topic" if b'"from_snapshot": null' in line else "snapshot"
                found["standby" if taken else source] += 1
    return f"snapshots and restores: {dict(found)}"


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos", description="Random faults, then verify.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--client", choices=["kafka-python", "confluent"], default="confluent")
    parser.add_argument("--keep", action="store_true", help="leave the logs even if all is right")
    parser.add_argument("--snapshots", action="store_true", help="with state.dir, and a snapshot every second or two")
    parser.add_argument("--standby", type=int, default=0, help="state.standby: members that each one follows")
    parser.add_argument("--rule", choices=RULES, help="by which keys lose their states; some are erased")
    parser.add_argument("--rate", type=float, default=1000.0, help="events a second")
    given = parser.parse_args()
    harness.CLIENT = given.client
    folder = Path(tempfile.mkdtemp(prefix="lstmstream-chaos-"))
    print(f"client {given.client}, seed {given.seed}, folder {folder}", flush=True)
    seconds, workers = given.minutes * 60, given.workers
    outcome = run(
        folder,
        seconds=seconds,
        seed=given.seed,
        workers=workers,
        rate=given.rate,
        keep=given.keep,
        snapshots=given.snapshots,
        standby=given.standby,
        rule=given.rule,
    )
    print("\n".join(outcome.lines()), flush=True)
    if outcome.findings or given.keep:
        print(f"logs and the broker's data are left in {folder}")
    else:
        shutil.rmtree(folder)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
