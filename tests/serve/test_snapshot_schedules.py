"""Any schedule of the real loop with snapshots every second or so, some of them damaged: see test_schedules.py."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from lstmstream.serve import snapshots
from tests.serve.memory_world import STATES
from tests.serve.schedule_world import ScheduleWorld
from tests.serve.test_schedules import DAEMON, Schedules, schedule_settings

FOUND: Counter[str] = Counter()  # restores by source, in all schedules


class WithSnapshots(Schedules):
    """The same rules, and what can happen to files."""

    def make_world(self, **named: Any) -> ScheduleWorld:
        self.folder = Path(tempfile.mkdtemp(prefix="lstmstream-test-"))
        named["state"]["dir"] = str(self.folder)
        return ScheduleWorld(**named)

    @rule(number=DAEMON, rounds=st.integers(5, 30))
    @precondition(Schedules.some)
    def let_it_write(self, number: int, rounds: int) -> None:
        for _ in range(rounds):
            if self.world.daemons:
                self.world.now_s += 0.5
                self.world.step(self.chosen(number))
        for daemon in self.world.daemons:
            for source in ("snapshot", "topic"):
                FOUND[source] += int(self.world.metric(daemon, "restores_total", source=source))

    @rule(number=st.integers(0, 20), at=st.integers(0, 10_000), cut=st.booleans())
    def damage(self, number: int, at: int, cut: bool) -> None:
        files = sorted((self.folder / STATES).glob("*.snapshot"))
        if files:
            path = files[number % len(files)]
            content = bytearray(path.read_bytes())
            if content:
                content[at % len(content)] ^= 1
                path.write_bytes(content[: at % len(content)] if cut else content)

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            if hasattr(self, "folder"):
                shutil.rmtree(self.folder, ignore_errors=True)


class WithSnapshotsAtLeastOnce(WithSnapshots):
    """The same where predictions may be repeated."""

    delivery = "at_least_once"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("machine", [WithSnapshots, WithSnapshotsAtLeastOnce])
def test_any_schedule_with_snapshots(machine: type[WithSnapshots], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "LOOK_INTERVAL_S", 0.5)
    monkeypatch.setattr(snapshots, "MAX_AGE_S", 1.0)
    FOUND.clear()
    run_state_machine_as_test(machine, settings=schedule_settings(15))
    assert FOUND["snapshot"] > 0
