"""`lstmstream state delete` over the broker in memory: what it asks for, waits for and prints."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lstmstream.errors import CannotServe, OwnershipLost, TryAgain
from lstmstream.records import RecordBatch
from lstmstream.serve.daemon import Daemon
from lstmstream.serve.erasures import INTERVAL_S
from lstmstream.states import delete
from lstmstream.states.command import get_state
from lstmstream.states.delete import delete_states, read_keys
from lstmstream.transport.ports import MemberInfo
from tests.serve.memory_world import INPUT, PARTITIONS, STATES
from tests.states.world import CONFIG, Opened, append
from tests.verify.world import VerifyWorld


class _Writer:
    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka

    def transact(self, batches: list[RecordBatch], offsets: None, deadline: float) -> None:
        for batch in batches:
            self._kafka.world.broker.append_batch(batch)
        if self._kafka.faults:
            raise self._kafka.faults.pop()

    def close(self, deadline: float) -> None:
        pass


class Kafka(Opened):
    """A broker that the daemon goes on with whenever the command asks something of it."""

    def __init__(self, world: VerifyWorld, daemon: Daemon | None) -> None:
        super().__init__(world.broker, INPUT)
        self.world, self.daemon = world, daemon
        self.faults: list[Exception] = []

    def last_stable_offsets(self, topic: str, partitions: Any) -> dict[int, int]:
        if self.daemon is not None:
            self.world.now_s += INTERVAL_S
            for _ in range(3):
                self.world.step(self.daemon)
        return super().last_stable_offsets(topic, partitions)

    def open_writer(self, transactional_id: str, timeout_s: float) -> _Writer:
        assert transactional_id == "t.state-delete"
        return _Writer(self)

    def members_of(self, group: str, topic: str) -> Sequence[MemberInfo]:
        return [] if self.daemon is None else [MemberInfo("1", "lstmstream-t", "here", [])]


Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def kafka(world: VerifyWorld, monkeypatch: pytest.MonkeyPatch) -> Kafka:
    daemon = world.start(world.onnx_step())
    world.settle()
    opened = Kafka(world, daemon)
    monkeypatch.setattr(delete, "load_config", lambda _path, stage=None: world.config())
    monkeypatch.setattr(delete, "open_kafka_admin", lambda _config: opened)
    monkeypatch.setattr(delete.time, "sleep", lambda _seconds: None)
    return opened


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*keys: str, timeout_s: float = 60.0, as_base64: bool = False) -> tuple[int, dict[str, Any], str]:
        capsys.readouterr()
        code = delete_states(
            CONFIG, keys, keys_from=None, as_base64=as_base64, timeout_s=timeout_s, as_json=True, stage=None
        )
        printed = capsys.readouterr()
        return code, json.loads(printed.out), printed.err

    return run


def test_it_waits_for_the_owners_and_says_where_it_took_effect(kafka: Kafka, run: Run) -> None:
    code, body, said = run("a2", "Zoë")
    assert code == 0
    assert (body["confirmed"], body["unconfirmed_partitions"], body["keys_without_state"]) == (True, [], [])
    assert [(one["key"], one["partition"], one["offset"]) for one in body["erasures"] if one["found"]] == [
        ("a2", 1, 4),
        ("Zoë", 2, 4),
    ]
    assert len(body["erasures"]) == 2 * PARTITIONS
    assert get_state(CONFIG, "a2", as_json=False, stage=None) == 1
    assert "not erased: events in in (kept for ever)" in said
    append(kafka.world, 2)
    kafka.world.settle()
    assert [one["steps"] for one in kafka.world.answers() if one.get("key") == "a2"] == [1, 2, 1]
    assert [one["steps"] for one in kafka.world.answers() if one.get("key") == "b"] == [1, 2, 3]


def test_a_key_without_a_state_is_named(kafka: Kafka, run: Run) -> None:
    code, body, said = run("nobody", "a")
    assert (code, body["confirmed"], body["keys_without_state"]) == (1, True, [{"key": "nobody"}])
    assert "these keys had no state: nobody" in said
    assert kafka.world.erased_at(0)[0][1] == b"a"


def test_keys_that_are_not_text(kafka: Kafka, run: Run) -> None:
    code, body, _ = run("/w==", as_base64=True)
    assert (code, body["erasures"][0]["key_base64"]) == (0, "/w==")


def test_without_a_member_it_says_when_it_takes_effect(kafka: Kafka, run: Run) -> None:
    assert kafka.daemon is not None
    kafka.world.stop(kafka.daemon)
    kafka.daemon = None
    code, body, said = run("a")
    assert (code, body["members"], body["confirmed"], body["erasures"]) == (0, False, False, [])
    assert "erased at the next start" in said
    append(kafka.world, 2)
    kafka.world.serve()
    assert [one["steps"] for one in kafka.world.answers() if one.get("key") == "a"] == [1, 2, 1]


def test_owners_that_do_not_confirm_in_time(kafka: Kafka, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka.world, "step", lambda _daemon: None)
    code, body, said = run("a", timeout_s=0.0)
    assert (code, body["members"], body["unconfirmed_partitions"]) == (1, True, [0, 1, 2])
    assert "have not confirmed it within 0 s. The request stands" in said


@pytest.mark.parametrize("fault", [TryAgain("lost"), OwnershipLost("another run")])
def test_a_write_whose_fate_is_not_known_is_done_again(kafka: Kafka, run: Run, fault: Exception) -> None:
    kafka.faults = [fault]
    code, body, _ = run("a")
    assert (code, [one["found"] for one in body["erasures"]]) == (0, [True, False, False])


def test_lines_for_people(kafka: Kafka, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    options = {"keys_from": None, "as_base64": False, "timeout_s": 60.0, "as_json": False, "stage": None}
    assert delete_states(CONFIG, ["a"], **options) == 0
    assert capsys.readouterr().out.splitlines() == [
        "partition 0  from input offset 4 on  1 state erased",
        "partition 1  from input offset 4 on  0 states erased",
        "partition 2  from input offset 4 on  0 states erased",
    ]


def test_keys_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("b\n\nZoë\na\n")
    assert read_keys(["a"], file, as_base64=False) == [b"a", b"b", "Zoë".encode()]
    with pytest.raises(CannotServe, match=r"--keys-from .*none: cannot be read"):
        read_keys([], tmp_path / "none", as_base64=False)


def test_a_line_of_a_file_is_a_key_whatever_bytes_it_has(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(b"\xef\xbb\xbffirst\r\none\x1ckey\nnext\xe2\x80\xa8line\n\xff\n")
    assert read_keys([], file, as_base64=False) == [b"first", b"one\x1ckey", b"next\xe2\x80\xa8line", b"\xff"]


def test_a_key_of_the_command_line_that_is_not_text() -> None:
    """As Python gives the byte 0xff of an argument."""
    assert read_keys(["\udcff", "Zo\u00eb"], None, as_base64=False) == [b"\xff", "Zo\u00eb".encode()]


def test_a_request_is_no_larger_than_a_topic_takes(kafka: Kafka, run: Run) -> None:
    """By default a topic takes records of 1 MB."""
    code, body, _ = run("a", *(f"{number:03d}" + "x" * 60_000 for number in range(30)))
    assert (code, body["confirmed"], len(body["erasures"])) == (1, True, 31 * PARTITIONS)
    requests = [one for one in kafka.world.state_logs()[0] if one.key and one.key[:1] == b"\x03" and one.value]
    assert max(len(one.value or b"") for one in requests) < 1_000_000


def test_there_is_nothing_to_ask_without_a_state_topic(kafka: Kafka, run: Run) -> None:
    del kafka.world.broker.topics[STATES]
    with pytest.raises(CannotServe, match=r"state\.topic: there is no topic 't\.state'"):
        run("a")
