"""kill -9 at each point of a transaction, and a successor: every event answered once, as if nothing had happened."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.broker.answers import Checker, load_events, score_offline
from tests.broker.dying_daemon import POINTS
from tests.broker.harness import RunningDaemon, committed_offsets, create_topics, produce, read_all, write_config
from tests.models import random_model

PARTITIONS = 2
EVENTS = 4_000


# Without an instance id the successor must wait for the session to end: two points of that kind are enough.
CASES = [*((point, "one") for point in POINTS), ("flushed", None), ("committing", None)]


@pytest.mark.parametrize(("point", "instance"), CASES)
def test_a_kill_at_any_point_is_made_good(
    broker: str, topic_prefix: str, tmp_path: Path, point: str, instance: str | None
) -> None:
    name, model = topic_prefix, random_model(tmp_path, hidden=4)
    properties = {"session.timeout.ms": 6000, "heartbeat.interval.ms": 1500}
    if instance is not None:
        properties |= {"group.instance.id": instance}
    config = write_config(
        tmp_path / "c.yaml",
        name=name,
        model=model,
        servers=broker,
        kafka={"properties": properties},
        batch={"max_events": 300},
        state={"checkpoint_interval": "1s"},
    )
    events = load_events(EVENTS / 1_236_698, partitions=PARTITIONS)
    expected = score_offline(config, events, tmp_path)
    create_topics(broker, [f"{name}.in", f"{name}.out"], partitions=PARTITIONS)
    produce(broker, f"{name}.in", events.records())
    for life, count in enumerate((1, 4)):
        dying = [sys.executable, str(Path(__file__).with_name("dying_daemon.py")), point, str(count), str(config)]
        with RunningDaemon(config, tmp_path / f"dying-{life}.log", command=dying) as daemon:
            assert daemon.wait_end() == -9
        done = sum(committed_offsets(broker, name).values())
        assert done < len(events), "nothing was left to do"
    with RunningDaemon(config, tmp_path / "last.log") as daemon:
        daemon.wait(lambda: sum(committed_offsets(broker, name).values()) == len(events), "all answered")
        assert daemon.sigterm() == 0, daemon.last_words()
    checker = Checker(events, expected, input_topic=f"{name}.in", partitions=PARTITIONS)
    checker.take(read_all(broker, f"{name}.out", partitions=PARTITIONS))
    assert not checker.finish(), checker.report()
