"""SIGTERM while the broker is away: states are handed over if it comes back in time, else one line says so."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kafka.errors import KafkaError

from lstmstream.dev.broker import DevBroker
from lstmstream.serve.state_records import FLOOR, unpack_floor
from tests.broker.harness import RunningDaemon, committed_offsets, create_topics, produce, read_all, write_config
from tests.broker.proxy import Api, KafkaProxy
from tests.models import random_model

NOW_MS = 1_700_000_000_000
SHUTDOWN_S = 10.0
PATIENT_S = 60.0  # where the broker comes back, and the states are to be handed over however busy the machine is
SLACK_S = 20.0  # for a busy machine; tests/serve/test_shutdown.py has the limit to the second, by a clock of its own
EVENTS = 200
OUTAGES: dict[str, tuple[Callable[[KafkaProxy], None], Callable[[KafkaProxy], None]]] = {
    "down": (KafkaProxy.down, KafkaProxy.up),
    "stalled": (KafkaProxy.stall, KafkaProxy.resume),
}


def configured(tmp_path: Path, name: str, servers: str, shutdown_s: float = SHUTDOWN_S) -> Path:
    """States are written at the end only."""
    config = write_config(
        tmp_path / "c.yaml",
        name=name,
        model=random_model(tmp_path, hidden=4),
        servers=servers,
        state={"checkpoint_interval": "1h"},
    )
    config.write_text(f"shutdown_timeout: {shutdown_s:g}s\n" + config.read_text())
    return config


def fill(broker: str, name: str) -> None:
    records = [(b"k%d" % (i % 5), b'{"amount": %d}' % i, NOW_MS + i * 1000, 0) for i in range(EVENTS)]
    produce(broker, f"{name}.in", records)


def wait_answered(daemon: RunningDaemon, broker: str, name: str) -> None:
    """Until all events are answered."""

    def answered() -> bool:
        with contextlib.suppress(KafkaError):  # a new broker's group coordinator takes a moment
            return committed_offsets(broker, name).get(0) == EVENTS
        return False

    daemon.wait(answered, "all committed")


def said(daemon: RunningDaemon, *, level: str = "error") -> list[Any]:
    return [line["message"] for line in daemon.log_lines if line.get("level") == level]


def stop(daemon: RunningDaemon, *, wanted: int, limit_s: float = SHUTDOWN_S) -> None:
    """It ends in time, and with one line that says why if it is not 0."""
    code = daemon.sigterm(limit_s + SLACK_S)
    assert code == wanted, daemon.last_words(40)
    assert "Traceback" not in daemon.log_file.read_text()
    errors = said(daemon)
    if wanted == 0:
        assert errors == []
    else:
        assert len(errors) == 1, errors
        assert "shutdown_timeout" in errors[0]
    assert len(said(daemon, level="warning")) < 40, "a line a try, not a flood"


def floor(broker: str, name: str) -> int:
    found = [record.value for record in read_all(broker, f"{name}.state", partitions=1) if record.key[:1] == FLOOR]
    return unpack_floor(found[-1]).offset


def phase(daemon: RunningDaemon) -> str:
    phases = [line["now"] for line in daemon.log_lines if line.get("message") == "phase"]
    return phases[-1] if phases else "starting"


@pytest.mark.parametrize(
    ("outage", "when", "back_after_s"),
    [
        ("down", "running", None),
        ("down", "recovering", None),
        ("down", "recovering", 3.0),
        ("stalled", "running", None),
        ("stalled", "running", 3.0),
    ],
)
def test_a_stop_with_states_to_hand_over(
    broker: str, topic_prefix: str, tmp_path: Path, outage: str, when: str, back_after_s: float | None
) -> None:
    """Right after the broker has gone, or once the daemon tries to reach it again."""
    name = topic_prefix
    create_topics(broker, [f"{name}.in"], partitions=1)
    fill(broker, name)
    begin, end = OUTAGES[outage]
    with KafkaProxy(broker) as proxy:
        limit_s = SHUTDOWN_S if back_after_s is None else PATIENT_S
        config = configured(tmp_path, name, proxy.servers, limit_s)
        with RunningDaemon(config, tmp_path / "log") as daemon:
            wait_answered(daemon, broker, name)
            begin(proxy)
            if when == "recovering":
                daemon.wait(lambda: phase(daemon) == "recovering", "aware of it")
            if back_after_s is not None:
                threading.Timer(back_after_s, end, [proxy]).start()
            stop(daemon, wanted=1 if back_after_s is None else 0, limit_s=limit_s)
    assert floor(broker, name) == (0 if back_after_s is None else EVENTS)


@pytest.mark.parametrize(
    ("mute", "outage"),
    [(None, "down"), (None, "stalled"), (Api.JOIN_GROUP, "down"), (Api.OFFSET_FETCH, "stalled")],
)
def test_a_stop_with_nothing_to_hand_over(
    broker: str, topic_prefix: str, tmp_path: Path, mute: Api | None, outage: str
) -> None:
    """While it starts, joins or restores: it leaves with 0, for nothing is lost."""
    name = topic_prefix
    create_topics(broker, [f"{name}.in"], partitions=1)
    with KafkaProxy(broker) as proxy:
        config = configured(tmp_path, name, proxy.servers)
        if mute is None:
            OUTAGES[outage][0](proxy)
        else:
            fault = proxy.swallow(mute, client=f"lstmstream-{name}")
        with RunningDaemon(config, tmp_path / "log") as daemon:
            daemon.wait(lambda: daemon.port is not None, "listening")
            if mute is None:
                time.sleep(1)
            else:
                daemon.wait(lambda: bool(fault.struck), "waiting for the broker")
                OUTAGES[outage][0](proxy)
            stop(daemon, wanted=0)


def test_a_broker_that_dies_while_states_are_handed_over(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    """The last transaction's end never arrives, and then nothing does."""
    name = topic_prefix
    create_topics(broker, [f"{name}.in"], partitions=1)
    fill(broker, name)
    with KafkaProxy(broker) as proxy:
        config = configured(tmp_path, name, proxy.servers)
        with RunningDaemon(config, tmp_path / "log") as daemon:
            wait_answered(daemon, broker, name)
            fault = proxy.cut(Api.END_TXN, client=f"lstmstream-{name}")

            def away() -> None:
                while not fault.struck:
                    time.sleep(0.01)
                proxy.down()

            threading.Thread(target=away, daemon=True).start()
            stop(daemon, wanted=1)
            assert fault.struck
    assert floor(broker, name) == 0


def test_a_broker_that_is_killed_or_stopped(tmp_path: Path) -> None:
    """The same with the broker's own process: killed while the daemon stops, then stopped by SIGSTOP."""
    own = DevBroker(tmp_path / "broker")
    servers = own.up(port=0)
    port = int(servers.rpartition(":")[2])
    pid = 0
    try:
        for name, wanted in (("killed", 1), ("thawed", 0)):
            create_topics(servers, [f"{name}.in"], partitions=1)
            fill(servers, name)
            folder = tmp_path / name
            folder.mkdir()
            limit_s = SHUTDOWN_S if wanted else PATIENT_S
            with RunningDaemon(configured(folder, name, servers, limit_s), folder / "log") as daemon:
                wait_answered(daemon, servers, name)
                if name == "killed":
                    own.kill()
                else:
                    pid = own.status().pid or 0
                    own._last().ends(signal.SIGSTOP, 0)  # type: ignore[union-attr]
                    threading.Timer(4, own._last().ends, [signal.SIGCONT, 0]).start()  # type: ignore[union-attr]
                stop(daemon, wanted=wanted, limit_s=limit_s)
            own.up(port=port)
            assert floor(servers, name) == (0 if wanted else EVENTS)
    finally:
        if pid:
            own._last().ends(signal.SIGCONT, 0)  # type: ignore[union-attr]
        own.down(wipe=True)


@pytest.mark.parametrize("call", ["connect", "describe", "poll", "read", "commit", "close"])
def test_a_call_that_spins_for_ever_does_not_make_it_deaf(
    broker: str, topic_prefix: str, tmp_path: Path, call: str
) -> None:
    """A library that burns a core and never returns: the process ends in time, and says which client it was."""
    name = topic_prefix
    create_topics(broker, [f"{name}.in"], partitions=1)
    config = configured(tmp_path, name, broker)
    if call in {"read", "commit"}:
        fill(broker, name)
    if call == "read":  # there are states to be read back
        with RunningDaemon(config, tmp_path / "before") as daemon:
            wait_answered(daemon, broker, name)
    command = [sys.executable, str(Path(__file__).with_name("spinning_daemon.py")), call, str(config)]
    spins = config.with_suffix(".spins")
    with RunningDaemon(config, tmp_path / "log", command=command) as daemon:
        daemon.wait(daemon.ready if call == "close" else spins.exists, "spinning")
        code = daemon.sigterm(SHUTDOWN_S + SLACK_S)
        assert code in {0, 1}, daemon.last_words(40)
        log = daemon.log_file.read_text()
        assert "Traceback" not in log
        client = {"connect": "admin", "describe": "admin", "read": "reader-0", "commit": "transactional-producer"}
        assert client.get(call, "consumer") in log, log[-2000:]
        assert spins.exists()
