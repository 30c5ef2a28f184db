"""A member without `group.instance.id` dies in a transaction: whoever takes over ends it, long before the broker would.

Its transactions may be open for longer than the tests wait for anything. So what came, came before that.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.broker.answers import Checker, Events, load_events, score_offline
from tests.broker.harness import (
    READY_S,
    SHORT_SESSION,
    RunningDaemon,
    admin,
    committed_offsets,
    create_topics,
    in_transaction,
    produce,
    read_all,
    write_config,
)
from tests.models import random_model

PARTITIONS = 2
EVENTS = 4_000
OPEN_S = 4 * READY_S  # less than the 15 minutes that a broker allows
ENDED = "ended the transaction of a member that is gone"


class Case:
    """A stream, its events and their right answers."""

    def __init__(self, servers: str, name: str, folder: Path) -> None:
        self.servers, self.name, self.folder = servers, name, folder
        properties = {**SHORT_SESSION, "transaction.timeout.ms": round(OPEN_S * 1000)}
        self.config = write_config(
            folder / "c.yaml",
            name=name,
            model=random_model(folder, hidden=4),
            servers=servers,
            kafka={"properties": properties},
            batch={"max_events": 300},
            state={"checkpoint_interval": "1s"},
        )
        self.events: Events = load_events(EVENTS / 1_236_698, partitions=PARTITIONS)
        self.expected = score_offline(self.config, self.events, folder)
        create_topics(servers, [f"{name}.in", f"{name}.out"], partitions=PARTITIONS)

    def send(self, records: Iterable[Any]) -> None:
        produce(self.servers, f"{self.name}.in", records)

    def dying(self, point: str) -> RunningDaemon:
        """One that dies there, in its first batch of events."""
        command = [sys.executable, str(Path(__file__).with_name("dying_daemon.py")), point, "1", str(self.config)]
        return RunningDaemon(self.config, self.folder / "dying.log", command=command)

    def open_ids(self) -> set[str]:
        """The transactional ids of the group with an open transaction."""
        with admin(self.servers) as client:
            found = client.list_transactions(state_filters=["Ongoing"])
        ids = {one.transactional_id for of_broker in found.values() for one in of_broker}
        return {one for one in ids if one.startswith(f"{self.name}.")}

    def output_is_open(self) -> bool:
        with admin(self.servers) as client:
            return in_transaction(client, f"{self.name}.out", partitions=PARTITIONS)

    def check_left_open(self) -> None:
        """What died has left a transaction open that names it, and a reader waits for it."""
        (left_open,) = self.open_ids()
        assert left_open.startswith(f"{self.name}.member:")
        assert self.output_is_open()

    def finish(self, daemon: RunningDaemon) -> None:
        """All is answered once and can be read, and no transaction is open."""
        daemon.wait(lambda: sum(committed_offsets(self.servers, self.name).values()) == len(self.events), "answered")
        checker = Checker(self.events, self.expected, input_topic=f"{self.name}.in", partitions=PARTITIONS)
        checker.take(read_all(self.servers, f"{self.name}.out", partitions=PARTITIONS))
        assert not checker.finish(), checker.report()
        assert daemon.sigterm() == 0, daemon.last_words()
        assert not self.open_ids()


@pytest.fixture
def case(broker: str, topic_prefix: str, tmp_path: Path) -> Case:
    return Case(broker, topic_prefix, tmp_path)


def messages(daemon: RunningDaemon) -> list[str]:
    return [str(line.get("message")) for line in daemon.log_lines]


@pytest.mark.parametrize("point", ["flushed", "offsets_sent"])
def test_the_next_process_does_not_wait_for_what_a_dead_one_has_left_open(case: Case, point: str) -> None:
    """Neither for the group's offsets, which are pending in one of the cases, nor for the end of its records."""
    case.send(case.events.records())
    with case.dying(point) as dying:
        assert dying.wait_end() == -9
    case.check_left_open()
    with RunningDaemon(case.config, case.folder / "next.log") as successor:
        case.finish(successor)
        assert messages(successor).count(ENDED) == 1


def test_another_member_takes_over_and_is_not_fenced_itself(case: Case) -> None:
    records = list(case.events.records())
    case.send(records[: EVENTS // 2])
    with RunningDaemon(case.config, case.folder / "staying.log") as staying:
        answered = sum(1 for _ in records[: EVENTS // 2])
        staying.wait(lambda: sum(committed_offsets(case.servers, case.name).values()) == answered, "first half")
        with case.dying("offsets_sent") as dying:
            staying.wait(lambda: len(staying.partitions()) < PARTITIONS, "sharing its partitions")
            case.send(records[EVENTS // 2 :])
            assert dying.wait_end() == -9
        case.check_left_open()
        case.finish(staying)
        said = messages(staying)
        assert said.count(ENDED) == 1
        assert not [line for line in said if "fenced the producer" in line]
