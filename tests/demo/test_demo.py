"""`lstmstream demo` as a person starts it: it ends by itself, or when asked, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka.admin import KafkaAdminClient

COMMAND = [sys.executable, "-m", "lstmstream", "demo"]
MARK = "LSTMSTREAM_DEMO_TEST"


class Started:
    """A demo in a folder of its own; its children are known by a variable that they inherit."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self.mark, self.folder = uuid.uuid4().hex, folder
        self.output = folder / "output"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*COMMAND, *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, MARK: self.mark, "TMPDIR": str(folder), "TERM": "dumb", **environment},
                start_new_session=True,
            )

    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def wait_for(self, pattern: str, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.text()):
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.1)

    def end(self, seconds: float = 120) -> int:
        return self.process.wait(seconds)

    def left(self) -> dict[int, str]:
        """Its processes that run: number and command line."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes():
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if command:  # a zombie has none
                        found[int(folder.name)] = command
            except OSError:
                continue
        return found

    def files(self) -> list[str]:
        return [path.name for path in self.folder.iterdir() if path.name.startswith("lstmstream-demo-")]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="demo-test-") as name:
        yield Path(name)


@pytest.fixture
def clean(folder: Path) -> Iterator[list[Started]]:
    """Demos put in here are ended with the test, whatever became of them."""
    started: list[Started] = []
    yield started
    for demo in started:
        for number in demo.left():
            os.kill(number, signal.SIGKILL)
        demo.process.wait(60)


def test_it_ends_by_itself_with_a_summary(broker: str, folder: Path, clean: list[Started]) -> None:
    demo = Started(folder, "--events", "2000", "--bootstrap-servers", broker)
    clean.append(demo)
    code = demo.end()
    text = demo.text()
    assert code == 0, text
    assert "2,000 events: 2,000 predictions, 0 dead letters, 0 duplicates" in text
    assert "every event has exactly one prediction" in text
    assert re.search(r"first prediction \d+\.\d s after the start", text)
    assert re.search(r"throughput [\d,]+ events/s, latency p50 [\d,]+ ms, p99 [\d,]+ ms", text)
    for kind in ("large", "terminal", "leaked"):
        assert re.search(rf"{kind} +\d+ of \d+ found", text)
    assert "/metrics" in text
    assert not demo.left()
    assert not demo.files()
    with KafkaAdminClient(bootstrap_servers=broker) as admin:
        assert not [topic for topic in admin.list_topics() if topic.startswith("demo-")]


def test_sensors_without_training(broker: str, folder: Path, clean: list[Started]) -> None:
    demo = Started(folder, "--scenario", "sensors", "--events", "1500", "--bootstrap-servers", broker)
    clean.append(demo)
    assert demo.end() == 0, demo.text()
    assert "1,500 events: 1,500 predictions, 0 dead letters, 0 duplicates" in demo.text()
    for kind in ("knock", "leak", "overheating"):
        assert re.search(rf"{kind} +0 of 0 found", demo.text())


def test_forecasts(broker: str, folder: Path, clean: list[Started]) -> None:
    demo = Started(folder, "--scenario", "forecast", "--events", "20000", "--bootstrap-servers", broker)
    clean.append(demo)
    assert demo.end() == 0, demo.text()
    assert "20,000 events: 20,000 predictions, 0 dead letters, 0 duplicates" in demo.text()
    found = re.search(r"19,800 forecasts: forecasts off by ([\d.]+) kW, the last value by ([\d.]+)", demo.text())
    assert found, demo.text()
    assert float(found[1]) < 0.8 * float(found[2])


@pytest.mark.broker
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_mid_stream_leaves_nothing_behind(number: int, folder: Path, clean: list[Started]) -> None:
    demo = Started(folder, "--rate", "500")
    clean.append(demo)
    demo.wait_for(r"[1-9]\d* of \d+ events scored")
    assert len(demo.left()) >= 3, "demo, daemon and broker should run"
    demo.process.send_signal(number)
    code = demo.end(60)
    text = demo.text()
    assert code == 0, text
    assert re.search(r"\d+ events: \d+ predictions, 0 dead letters, 0 duplicates", text), text
    assert "exited with code" not in text
    assert not demo.left()
    assert not demo.files()


@pytest.mark.broker
@pytest.mark.parametrize("seconds", [0.5, 3.0])
def test_a_signal_during_the_start_leaves_nothing_behind(seconds: float, folder: Path, clean: list[Started]) -> None:
    demo = Started(folder, "--events", "500")
    clean.append(demo)
    demo.wait_for("starting Kafka")
    time.sleep(seconds)
    demo.process.send_signal(signal.SIGINT)
    assert demo.end(60) == 0, demo.text()
    assert not demo.left()
    assert not demo.files()


def test_a_daemon_that_dies_is_reported_with_its_log(broker: str, folder: Path, clean: list[Started]) -> None:
    demo = Started(folder, "--rate", "500", "--bootstrap-servers", broker)
    clean.append(demo)
    demo.wait_for(r"[1-9]\d* of \d+ events scored")
    (daemon,) = [number for number, command in demo.left().items() if " lstmstream run " in command]
    os.kill(daemon, signal.SIGKILL)
    assert demo.end(60) == 1
    assert "the daemon exited with code -9" in demo.text()
    assert not demo.left()
    assert not demo.files()


@pytest.mark.broker
def test_a_broker_that_dies_is_reported(folder: Path, clean: list[Started]) -> None:
    demo = Started(folder, "--rate", "500")
    clean.append(demo)
    demo.wait_for(r"[1-9]\d* of \d+ events scored")
    (broker,) = [number for number, command in demo.left().items() if " kafka.Kafka " in command]
    os.kill(broker, signal.SIGKILL)
    assert demo.end(100) == 1, demo.text()
    assert "Kafka exited" in demo.text()
    assert not demo.left()
    assert not demo.files()


def test_without_java_it_says_what_to_install(folder: Path, clean: list[Started]) -> None:
    demo = Started(folder, "--events", "10", PATH="/nonexistent", JAVA_HOME="")
    clean.append(demo)
    assert demo.end(60) == 2, demo.text()
    assert "java" in demo.text().lower()
    assert "Traceback" not in demo.text()
    assert not demo.files()


def test_a_broker_that_is_not_there_is_named(folder: Path, clean: list[Started]) -> None:
    demo = Started(folder, "--events", "10", "--bootstrap-servers", "127.0.0.1:9")
    clean.append(demo)
    assert demo.end(90) == 2, demo.text()
    assert "127.0.0.1:9" in demo.text()
    assert "Traceback" not in demo.text()
    assert not demo.files()
