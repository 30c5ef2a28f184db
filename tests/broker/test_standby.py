"""`state.standby` on a real broker: of two members one is killed, the other takes over; `lstmstream verify` judges."""

from __future__ import annotations

from pathlib import Path

from tests.broker.harness import (
    SHORT_SESSION,
    RunningDaemon,
    committed_offsets,
    create_topics,
    end_offsets,
    produce,
    write_config,
)
from tests.broker.test_verify import verify
from tests.models import random_model
from tests.verify.world import events

PARTITIONS = 4
COUNT = 4_000


def test_a_takeover_begins_with_what_was_followed(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    """The survivor reads no more of the state topic than came after its last look."""
    name = topic_prefix
    create_topics(broker, [f"{name}.in", f"{name}.out"], partitions=PARTITIONS)
    config = write_config(
        tmp_path / "c.yaml",
        name=name,
        model=random_model(tmp_path, hidden=8),
        servers=broker,
        kafka={"properties": SHORT_SESSION},
        state={"standby": 1, "checkpoint_interval": "1s"},
        batch={"max_events": 200},
    )
    found = [(key, value, at, sum(key or b"") % PARTITIONS) for key, value, at in events(COUNT, keys=200)]

    def answered() -> bool:
        return committed_offsets(broker, name) == end_offsets(broker, f"{name}.in", partitions=PARTITIONS)

    produce(broker, f"{name}.in", found[: COUNT // 2])
    with RunningDaemon(config, tmp_path / "log1") as first, RunningDaemon(config, tmp_path / "log2") as second:

        def shared() -> bool:
            mine, others = second.partitions(), first.partitions()
            return len(mine) == len(others) == PARTITIONS // 2 and not mine & others

        def followed() -> bool:
            same = second.count("standby_keys") == first.count("state_keys") > 0
            return same and second.count("standby_records_behind") == 0 and answered()

        second.wait(shared, "sharing the partitions")
        second.wait(followed, "all that the first one has is followed")
        lost = first.partitions()
        produce(broker, f"{name}.in", found[COUNT // 2 :])
        first.kill9()
        second.wait(lambda: len(second.partitions()) == PARTITIONS and answered(), "all answered")
        assert second.restores("standby") == len(lost)
        said = [line for line in second.log_lines if line["message"] == "partition restored"]
        taken = [line for line in said if line["from_standby"] is not None]
        assert {line["partition"] for line in taken} == lost
        assert all(line["from_standby"] > 0 for line in taken)
        assert second.count("standby_keys") == 0
        assert second.sigterm() == 0, second.last_words()
    code, summary, errors = verify(config)
    assert (code, summary["result"], summary["events"]) == (0, "right", COUNT), (summary, errors)
