"""Any schedule of the real loop whose members follow each other: see test_schedules.py."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from lstmstream.serve import standby
from tests.serve.schedule_world import ScheduleWorld
from tests.serve.test_schedules import DAEMON, Schedules, schedule_settings

FOUND: Counter[str] = Counter()  # restores by source, in all schedules


class WithStandbys(Schedules):
    """The same rules, and time in which members follow each other."""

    def make_world(self, **named: Any) -> ScheduleWorld:
        named["state"]["standby"] = 1
        return ScheduleWorld(**named)

    @rule(number=DAEMON, rounds=st.integers(5, 30))
    @precondition(Schedules.some)
    def let_it_follow(self, number: int, rounds: int) -> None:
        for _ in range(rounds):
            if self.world.daemons:
                self.world.now_s += 0.5
                self.world.step(self.chosen(number))
        for daemon in self.world.daemons:
            for source in ("standby", "topic"):
                FOUND[source] += int(self.world.metric(daemon, "restores_total", source=source))


class WithStandbysAtLeastOnce(WithStandbys):
    """The same where predictions may be repeated."""

    delivery = "at_least_once"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("machine", [WithStandbys, WithStandbysAtLeastOnce])
def test_any_schedule_with_standbys(machine: type[WithStandbys], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby, "NEWS_INTERVAL_S", 0.5)
    monkeypatch.setattr(standby, "UNSETTLED_INTERVAL_S", 0.5)
    monkeypatch.setattr(standby, "MEMBERS_INTERVAL_S", 2.0)
    monkeypatch.setattr(standby, "RETRY_S", 2.0)
    FOUND.clear()
    run_state_machine_as_test(machine, settings=schedule_settings(15))
    assert FOUND["standby"] > 0
