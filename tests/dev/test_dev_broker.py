"""The development broker: a real one is started, hurt, and started again."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import NewTopic
from typer.testing import CliRunner

from lstmstream.dev import broker as broker_module
from lstmstream.dev import kafka_jars
from lstmstream.dev.broker import DevBroker, default_home
from lstmstream.dev.commands import app
from lstmstream.errors import CannotServe

pytestmark = pytest.mark.broker


@pytest.fixture
def development(tmp_path: Path) -> Iterator[DevBroker]:
    # A path with a space and letters beyond ASCII: Java's property files need both to be escaped.
    development = DevBroker(tmp_path / "a b é" / "broker")
    yield development
    development.kill()


def create_topic(servers: str, name: str) -> None:
    with KafkaAdminClient(bootstrap_servers=servers) as admin:
        admin.create_topics([NewTopic(name, 1, 1)])


def write(servers: str, topic: str, value: bytes, *, commit: bool) -> None:
    producer = KafkaProducer(bootstrap_servers=servers, transactional_id=f"{topic}-writer")
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(topic, value).get(20)
    if commit:
        producer.commit_transaction()
    else:
        producer.abort_transaction()
    producer.close()


def read_committed(servers: str, topic: str) -> list[bytes]:
    with_end = {"bootstrap_servers": servers, "auto_offset_reset": "earliest", "isolation_level": "read_committed"}
    consumer = KafkaConsumer(topic, group_id=None, consumer_timeout_ms=4_000, **with_end)
    try:
        return [record.value for record in consumer]
    finally:
        consumer.close()


def test_a_broker_lives_dies_and_remembers(development: DevBroker) -> None:
    servers = development.up(port=0, timeout_s=120)
    assert servers == development.status().bootstrap_servers
    pid = development.status().pid
    assert development.up(port=0) == servers
    assert development.status().pid == pid, "a broker that runs is not started again"

    create_topic(servers, "t")
    write(servers, "t", b"kept", commit=True)
    write(servers, "t", b"aborted", commit=False)
    assert read_committed(servers, "t") == [b"kept"]

    assert development.kill()
    assert not development.kill()
    assert not development.status().running
    assert development.restart() == servers, "the same port, or clients would not find it again"
    assert read_committed(servers, "t") == [b"kept"]

    assert development.down()
    assert not development.down()
    assert development.home.is_dir(), "data stay without wipe"
    neighbour = development.home.parent / "neighbour"
    neighbour.touch()
    assert not development.down(wipe=True)
    assert list(development.home.parent.iterdir()) == [neighbour]


def test_a_stopped_broker_has_ended(development: DevBroker) -> None:
    servers = development.up(port=0)
    pid = development.status().pid
    assert development.down(wipe=True)
    assert not Path(f"/proc/{pid}").exists()
    assert not development.home.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(servers.partition(":")[2])), timeout=30)


def test_two_that_start_one_home_get_one_broker(development: DevBroker) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: DevBroker(development.home).up(port=0), range(2))
    assert first == second


def test_a_home_that_another_process_claims_meanwhile_is_no_other_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = DevBroker(tmp_path / "home")
    real = Path.iterdir

    def claimed_just_now(folder: Path) -> Iterator[Path]:
        broker._marker.touch()
        return iter(list(real(folder)))

    monkeypatch.setattr(Path, "iterdir", claimed_just_now)
    broker._claim_home()
    assert broker._marker.exists()


def test_topics_keep_events_of_years_ago_and_are_not_made_by_accident(broker: str, topic_prefix: str) -> None:
    producer = KafkaProducer(bootstrap_servers=broker, max_block_ms=2_000)
    try:
        with pytest.raises(Exception, match="metadata"):
            producer.send(topic_prefix, b"x").get(5)
    finally:
        producer.close()
    settings = subprocess.check_output(
        [sys.executable, "-c", "import lstmstream.dev.broker as b; print(b._server_properties(b.Path('/x'), 1, 2))"],
        text=True,
    )
    assert "\nlog.retention.ms=-1\n" in settings


def test_a_pid_that_was_given_to_somebody_else_is_left_alone(development: DevBroker) -> None:
    development._claim_home()
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        process = {"pid": stranger.pid, "birth": "another boot/1", "port": 1, "controller_port": 2}
        development._pid_file.write_text(json.dumps(process))
        assert not development.status().running
        assert not development.kill()
        assert not development.down()
        assert not development.down(wipe=True)
        assert stranger.poll() is None
        # and with the right birth it would have been ended: the check is what protected it
        development._claim_home()
        birth = broker_module._birth(stranger.pid)
        assert birth is not None
        development._pid_file.write_text(json.dumps(process | {"birth": birth}))
        assert development.kill()
        assert stranger.wait(60) == -signal.SIGKILL
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "null"])
def test_a_broken_pid_file_is_no_broker(development: DevBroker, content: str) -> None:
    development._claim_home()
    development._pid_file.write_text(content)
    assert not development.status().running
    assert not development.down()


def test_folders_of_others_are_neither_used_nor_removed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("x")
    with pytest.raises(CannotServe, match="not empty"):
        DevBroker(tmp_path).up(port=0)
    with pytest.raises(CannotServe, match="remove it by hand"):
        DevBroker(tmp_path).down(wipe=True)
    assert precious.read_text() == "x"


def one_line(problem: pytest.ExceptionInfo[CannotServe]) -> str:
    text = str(problem.value)
    assert "\n" not in text
    assert "apt-get install openjdk-17-jre-headless maven" in text
    assert "docker compose up -d kafka" in text
    assert "--bootstrap-servers 127.0.0.1:9092" in text
    return text


def test_without_java_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(CannotServe) as problem:
        DevBroker(tmp_path / "home").up(port=0)
    assert "`java` is not on PATH" in one_line(problem)
    assert not (tmp_path / "home").exists()


def test_an_old_java_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_402\"' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(CannotServe) as problem:
        DevBroker(tmp_path / "home").up(port=0)
    assert "1.8.0_402" in one_line(problem)


def test_without_maven_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CannotServe) as problem:
        kafka_jars.fetch_jars()
    assert "`mvn` is not on PATH" in one_line(problem)


def test_a_download_that_fails_leaves_no_half_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    maven = tmp_path / "bin" / "mvn"
    maven.parent.mkdir()
    maven.write_text('#!/bin/sh\nfor last; do :; done\nmkdir "${last#*=}"\necho "[ERROR] no route to host"\nexit 1\n')
    maven.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{maven.parent}:/usr/bin:/bin")
    with pytest.raises(CannotServe, match="no route to host"):
        kafka_jars.fetch_jars()
    assert [path.name for path in (tmp_path / "cache" / "lstmstream").iterdir()] == ["kafka.lock"]


def test_a_port_in_use_is_named(development: DevBroker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotServe, match=f"port {port} .* --port"):
            development.up(port)
    assert not development.status().running


def test_a_broker_that_dies_at_start_is_quoted(development: DevBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    properties = broker_module._server_properties

    def broken(data: Path, port: int, controller_port: int) -> str:
        return properties(data, port, controller_port) + "num.network.threads=none\n"

    development._claim_home()
    development._data.mkdir()
    (development._data / "meta.properties").touch()  # so that not the formatting fails but the start
    monkeypatch.setattr(broker_module, "_server_properties", broken)
    with pytest.raises(CannotServe, match=r"exited during its start[\s\S]*num\.network\.threads"):
        development.up(port=0)
    assert not development.status().running


def test_the_commands_say_what_happened(development: DevBroker) -> None:
    home = ["--home", str(development.home)]
    run = CliRunner().invoke
    assert "not running" in run(app, ["status", *home]).stdout
    up = run(app, ["up", "--port", "0", *home])
    assert up.exit_code == 0, up.output
    servers = up.stdout.strip()
    assert run(app, ["up", *home]).stdout.strip() == servers
    assert json.loads(run(app, ["status", "--json", *home]).stdout)["bootstrap_servers"] == servers
    assert run(app, ["topic", "one", "two", "--partitions", "3", *home]).stdout.splitlines() == [
        "Topic one has 3 partitions.",
        "Topic two has 3 partitions.",
    ]
    assert run(app, ["topic", "one", "three", *home]).stdout.splitlines() == [
        "Topic one has 3 partitions.",  # as it was
        "Topic three has 1 partition.",
    ]
    with pytest.raises(CannotServe, match=r"^Topic name is invalid: 'a b' contains"):
        development.create_topics(["a b"], 1)
    assert "stopped" in run(app, ["down", "--wipe", *home]).stdout
    with pytest.raises(CannotServe, match="not running: start it with `lstmstream dev up`"):
        development.create_topics(["one"], 1)
    assert not development.home.exists()


def test_the_default_home_follows_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_home() == tmp_path / "lstmstream" / "dev-broker"
