"""`state.dir` on a real broker: killed and started again with snapshots, and judged by `lstmstream verify`."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.broker.harness import RunningDaemon, committed_offsets, create_topics, end_offsets, produce, write_config
from tests.broker.test_verify import verify
from tests.models import random_model
from tests.verify.world import events

PARTITIONS = 3
COUNT = 3_000


def with_frequent_snapshots(config: Path, log: Path) -> RunningDaemon:
    """A daemon that looks for what is new each second."""
    command = [sys.executable, "-m", "tests.broker.snapshotting_daemon", "run", str(config)]
    return RunningDaemon(config, log, command=command)


def test_states_from_snapshots_give_the_right_answers(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    """Killed while it writes them; then with all of them; then with a flipped byte in each."""
    name, folder = topic_prefix, tmp_path / "snapshots"
    create_topics(broker, [f"{name}.in", f"{name}.out"], partitions=PARTITIONS)
    config = write_config(
        tmp_path / "c.yaml",
        name=name,
        model=random_model(tmp_path, hidden=8),
        servers=broker,
        state={"dir": str(folder), "checkpoint_interval": "1s"},
        batch={"max_events": 200},
    )
    found = [(key, value, at, sum(key or b"") % PARTITIONS) for key, value, at in events(COUNT, keys=50)]

    def files() -> list[Path]:
        return list((folder / f"{name}.state").glob("*.snapshot"))

    def of_all() -> bool:
        return {path.name.split("-")[0] for path in files()} == set(map(str, range(PARTITIONS)))

    def answered() -> bool:
        return committed_offsets(broker, name) == end_offsets(broker, f"{name}.in", partitions=PARTITIONS)

    def restored(daemon: RunningDaemon) -> bool:
        return daemon.restores("snapshot") + daemon.restores("topic") == PARTITIONS

    produce(broker, f"{name}.in", found[: COUNT // 3])
    with with_frequent_snapshots(config, tmp_path / "log1") as daemon:
        daemon.wait(of_all, "a snapshot of each partition")
        assert daemon.restores("topic") == PARTITIONS
        produce(broker, f"{name}.in", found[COUNT // 3 : 2 * COUNT // 3])
        before = len([line for line in daemon.log_lines if line.get("message") == "snapshot written"])
        daemon.wait(
            lambda: len([line for line in daemon.log_lines if line.get("message") == "snapshot written"]) > before,
            "one more snapshot",
        )
        daemon.kill9()
    with with_frequent_snapshots(config, tmp_path / "log2") as daemon:
        daemon.wait(lambda: restored(daemon) and answered(), "all answered")
        assert (daemon.restores("snapshot"), daemon.restores("topic")) == (PARTITIONS, 0)
        assert daemon.sigterm() == 0, daemon.last_words()
    for path in files():
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    produce(broker, f"{name}.in", found[2 * COUNT // 3 :])
    with with_frequent_snapshots(config, tmp_path / "log3") as daemon:
        daemon.wait(lambda: restored(daemon) and answered(), "all answered")
        assert (daemon.restores("snapshot"), daemon.restores("topic")) == (0, PARTITIONS)
        assert any("is damaged" in line.get("message", "") for line in daemon.log_lines)
        daemon.wait(of_all, "a snapshot of each partition")
        assert daemon.sigterm() == 0, daemon.last_words()
    code, summary, errors = verify(config)
    assert (code, summary["result"], summary["events"]) == (0, "right", COUNT), (summary, errors)
