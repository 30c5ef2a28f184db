"""Another program in the daemon's consumer group is named: events of the partitions that it takes get no prediction."""

from __future__ import annotations

from typing import Any

import pytest

from lstmstream.serve.daemon import Daemon
from lstmstream.serve.group_check import LOOK_S
from lstmstream.transport.ports import MemberInfo
from tests.serve.memory_world import World


def run(world: World, daemon: Daemon, seconds: float) -> None:
    end_s = world.now_s + seconds
    while world.now_s < end_s:
        world.now_s += 1
        world.step(daemon)


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if "another program is a member" in record.getMessage()]


def test_another_program_that_has_partitions_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    daemon = world.start()
    world.broker.others = [MemberInfo("r-1", "reports", "/10.0.0.7", [1]), MemberInfo("i-1", "idle", "/10.0.0.8", [])]
    run(world, daemon, LOOK_S + 10)
    (said,) = lines(caplog)
    assert (said["client_id"], said["host"], said["partitions"]) == ("reports", "/10.0.0.7", [1])
    assert "consumer group 't'" in said["message"]


@pytest.mark.parametrize("client_id", ["lstmstream-t", "mine"])
def test_peers_are_no_other_programs(client_id: str, caplog: pytest.LogCaptureFixture) -> None:
    world = World(kafka={"bootstrap_servers": "nowhere:1", "properties": {"client.id": "mine"}})
    daemon = world.start()
    world.broker.others = [MemberInfo("p-1", client_id, "/10.0.0.7", [1])]
    run(world, daemon, LOOK_S + 10)
    assert lines(caplog) == []


def test_it_is_looked_for_after_a_rebalance_only(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    daemon = world.start()
    run(world, daemon, LOOK_S + 10)
    asked: list[str] = []
    world.watch = asked.append
    run(world, daemon, LOOK_S)
    assert "group_members" not in asked
    world.start()
    world.broker.others = [MemberInfo("r-1", "reports", "/10.0.0.7", [1])]
    run(world, daemon, LOOK_S)
    assert "group_members" in asked
    assert len(lines(caplog)) == 1


def test_a_broker_that_does_not_say_is_no_failure() -> None:
    world = World()
    daemon = world.start()
    world.produce(b"k", b'{"amount": 1}', partition=0)
    world.settle()
    world.faults.extend(["group_members"] * 3)
    phases: list[str] = []
    world.watch = phases.append
    run(world, daemon, LOOK_S)
    assert "group_members" not in world.faults
    assert "recover" not in phases


def test_the_member_that_the_daemon_was_before_an_outage_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    """It has joined again under another id, and the broker still has the partitions under the one before."""
    world = World()
    daemon = world.start()
    run(world, daemon, 10)
    health, former = world.health[id(daemon)], world.transports[id(daemon)].member_id
    assert health.readyz() == (True, [])

    world.transports[id(daemon)].member_id = -1  # as after an outage
    world.broker.join(-1, 0)
    run(world, daemon, 2 * LOOK_S)
    ready, (reason,) = health.readyz()
    assert not ready
    assert "member that this daemon was before an outage" in reason
    (said,) = [vars(record) for record in caplog.records if "before an outage" in record.getMessage()]
    assert said["partitions"] == [0, 1], "one has come to the present member"

    world.broker.leave(former)
    run(world, daemon, 10)
    assert health.readyz() == (True, [])


def test_a_member_whose_id_comes_back_does_not_wait_for_itself() -> None:
    """A client may name another id while it joins again, and then the one before."""
    world = World()
    daemon = world.start()
    run(world, daemon, 2)
    transport = world.transports[id(daemon)]
    former = transport.member_id
    for other in (-1, former):
        world.broker.leave(transport.member_id)
        transport.member_id = other
        world.broker.join(other, 3)
        run(world, daemon, 10)
    assert world.health[id(daemon)].readyz() == (True, [])


def test_a_peer_with_partitions_is_not_waited_for() -> None:
    world = World()
    daemon = world.start()
    world.broker.others = [MemberInfo("another", "lstmstream-t", "/10.0.0.7", [1])]
    run(world, daemon, 10)
    assert world.health[id(daemon)].readyz() == (True, [])
