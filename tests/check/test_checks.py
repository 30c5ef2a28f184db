"""`lstmstream check` over the broker in memory: each line that it can say, and its exit code."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from lstmstream.check import checks, command
from lstmstream.check.checks import TopicChecks, check_packages
from lstmstream.check.results import Status
from lstmstream.errors import TryAgain
from lstmstream.transport.partitioner import partition_of
from lstmstream.transport.patient_broker import PatientBroker
from tests.models import random_model
from tests.serve.memory_world import INPUT, LETTERS, OUTPUT, PARTITIONS, STATES
from tests.verify.world import VerifyTransport, VerifyWorld

NOW_S = 1_700_000_000.0
EVENT = b'{"amount": 1, "note": "n"}'


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VerifyWorld:
    """An input without records, and the other topics missing. It is 2023."""
    monkeypatch.setattr("lstmstream.check.checks.time.time", lambda: NOW_S)
    return VerifyWorld(random_model(tmp_path), output={"include": ["note"]})


def produce(world: VerifyWorld, key: bytes | None, value: bytes, *, at: int | None = None, late_s: float = 0.0) -> None:
    partition = partition_of(key, PARTITIONS) if at is None else at
    world.broker.append(INPUT, partition, key, value, int((NOW_S - 1 + late_s) * 1000), [])


def found(world: VerifyWorld, records: int = 1000) -> dict[str, list[tuple[Status, str]]]:
    """The lines by the name of their check."""
    broker = PatientBroker(VerifyTransport(world.broker, INPUT))
    lines: dict[str, list[tuple[Status, str]]] = {}
    for line in TopicChecks(broker, world.config(), world.onnx_step(), records=records).run():
        lines.setdefault(line.name, []).append((line.status, line.text))
    return lines


def test_a_sound_topic_passes_each_check(world: VerifyWorld) -> None:
    for number in range(30):
        produce(world, b"k%d" % number, EVENT)
    lines = found(world)
    assert set(lines) == {
        "timeouts", "topics", "topic settings", "message sizes", "group", "keys", "clock", "records", "fields"
    }  # fmt: skip
    assert {status for said in lines.values() for status, _ in said} == {Status.OK}
    assert lines["records"][0][1].startswith("30 records give 30 predictions, ")
    assert found(world, records=6)["records"][0][1].startswith("6 records give 6 ")
    assert [name for name in (OUTPUT, LETTERS, STATES) if name in world.broker.topics] == [], "nothing was created"


def test_an_input_without_records(world: VerifyWorld) -> None:
    assert found(world)["records"] == [
        (Status.WARNING, "in has no records to look at; check again once there are some")
    ]


def test_topics_that_are_missing(world: VerifyWorld) -> None:
    assert found(world)["topics"][1][1] == "the daemon creates 'alerts', 'out', 't.dead-letter', 't.state' at its start"
    world.settings["create_topics"] = False
    assert found(world)["topics"][1][0] is Status.FAILED
    del world.broker.topics[INPUT]
    lines = found(world)
    assert set(lines) == {"timeouts", "topics"}
    assert [status for status, _ in lines["topics"]] == [Status.FAILED]
    assert "input.topic: topic 'in' does not exist" in lines["topics"][0][1]


def test_settings_and_partitions_of_topics(world: VerifyWorld) -> None:
    world.broker.create(STATES, PARTITIONS + 1, {"cleanup.policy": "delete"})
    said = found(world)["topic settings"]
    assert [status for status, _ in said] == [Status.FAILED, Status.FAILED]
    assert "has 4 partitions and the input" in said[0][1]
    assert "cleanup.policy=delete" in said[1][1]


def test_the_groups_offsets(world: VerifyWorld) -> None:
    for _ in range(9):
        produce(world, b"k", EVENT)
    world.serve()
    produce(world, b"k", EVENT)
    assert found(world)["group"] == [(Status.OK, "t is 1 record behind the end of the input")]
    world.broker.truncate(INPUT, partition_of(b"k", PARTITIONS), before=10)
    (said,) = found(world)["group"]
    assert said[0] is Status.FAILED
    assert "is 9, and the topic has 10 to 10: events were deleted" in said[1]


def test_states_of_another_model_or_of_other_settings(world: VerifyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(9):
        produce(world, b"k%d" % number, EVENT)
    assert "states" not in found(world)
    world.serve()
    assert found(world)["states"] == [(Status.OK, "the states in t.state belong to this model with these settings")]
    world.settings["input"] = {"topic": INPUT, "late": "drop"}
    (said,) = found(world)["states"]
    assert said[0] is Status.FAILED
    assert "its states belong to model " in said[1]
    assert "late apply" in said[1].partition("but this is")[0]
    assert "late drop" in said[1].partition("but this is")[2]
    monkeypatch.setattr("lstmstream.check.state_owner.LOOKED_AT", PARTITIONS)
    (said,) = found(world)["states"]
    assert said[0] is Status.WARNING, "the topic has more than was looked at"
    world.settings["on_model_change"] = "reset"
    assert [status for status, _ in found(world)["states"]] == [Status.OK]
    assert "this one's are empty at its start" in found(world)["states"][0][1]


def test_a_key_of_almost_that_name(world: VerifyWorld) -> None:
    world.settings["input"] = {"topic": INPUT, "key": "Note"}
    produce(world, b"k", EVENT)
    (said, _) = found(world)["records"]
    assert said == (
        Status.FAILED,
        "1 of 1 becomes a dead letter: field 'Note', the key, is missing (first: in[2]@0); did you mean 'note'?",
    )


def test_records_without_a_key(world: VerifyWorld) -> None:
    produce(world, b"k", EVENT)
    produce(world, None, EVENT)
    status, text = found(world)["keys"][0]
    assert status is Status.FAILED
    assert text.startswith("1 of 2 records without a key share one state per partition; give the records a key, or")


def test_keys_in_several_partitions_and_another_partitioner(world: VerifyWorld) -> None:
    for number in range(20):
        key = b"k%d" % number
        produce(world, key, EVENT, at=(partition_of(key, PARTITIONS) + 1) % PARTITIONS)
    assert found(world)["keys"] == [
        (Status.OK, "the producers use a partitioner of their own (0% lie where murmur2 says)")
    ]
    produce(world, b"k7", EVENT)
    (said,) = found(world)["keys"]
    assert said[0] is Status.FAILED
    assert "records of 1 of 20 keys lie in several partitions, such as k7" in said[1]


def test_a_clock_that_is_ahead(world: VerifyWorld) -> None:
    produce(world, b"k", EVENT, late_s=3601.0)
    assert found(world)["clock"][0][0] is Status.WARNING
    assert "the newest record is 3,600 s in the future" in found(world)["clock"][0][1]


def test_events_that_become_dead_letters(world: VerifyWorld) -> None:
    for amount in (b'"x"', b'"y"', b"true"):
        produce(world, b"k", b'{"amount": %s, "note": 1}' % amount)
    said = found(world)["records"]
    assert [status for status, _ in said] == [Status.WARNING, Status.WARNING, Status.FAILED]
    assert "2 of 3 become dead letters: field 'amount' is a string" in said[0][1]
    assert said[2][1].startswith("3 records give 0 predictions")
    produce(world, b"k", EVENT)
    assert found(world)["records"][-1][0] is Status.OK


def test_fields_that_no_event_has(world: VerifyWorld) -> None:
    produce(world, b"k", b'{"Amount": 1}')
    said = found(world)["fields"]
    assert said[0] == (Status.FAILED, "the model reads 'amount', and none of 1 event has it; did you mean 'Amount'?")
    assert said[1] == (Status.WARNING, "output.include or output.key names 'note', and none of the events has it")


def test_two_runtimes_in_one_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = check_packages()
    assert line.status is Status.OK
    monkeypatch.setattr(checks.metadata, "version", lambda _name: "1.0")
    lines = list(check_packages())
    assert lines[0].status is Status.FAILED
    assert "onnxruntime 1.0 and onnxruntime-gpu 1.0" in lines[0].text
    assert metadata is checks.metadata


class Opened(VerifyTransport):
    """As the command opens and closes it."""

    def close(self, timeout_s: float) -> None:
        """Nothing is open."""


def run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any], *, as_json: bool = True
) -> tuple[int, Any]:
    path = tmp_path / "stream.yaml"
    path.write_text(yaml.safe_dump(settings))
    code = command.check(path, records=10, as_json=as_json)
    out = capsys.readouterr().out
    return code, json.loads(out) if as_json else out


def test_the_command_goes_on_as_far_as_it_can(
    world: VerifyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = Opened(world.broker, INPUT)
    monkeypatch.setattr(command, "open_kafka_admin", lambda _config: opened)
    sections = {"kafka": {"bootstrap_servers": "a:1"}, "input": {"topic": INPUT}, "output": {"topic": OUTPUT}}
    settings = {"name": "t", "model": str(tmp_path / "none.onnx"), **sections}
    code, report = run(tmp_path, capsys, {**settings, "batch": {"max_events": 0}})
    assert (code, [line["check"] for line in report["checks"]]) == (1, ["packages", "configuration"])
    assert "batch.max_events" in report["checks"][1]["text"]
    code, report = run(tmp_path, capsys, settings)
    states = {line["check"]: line["status"] for line in report["checks"]}
    assert (code, report["ok"], states["model"], states["broker"], states["topics"]) == (1, False, "failed", "ok", "ok")

    settings["model"] = "builtin:demo"
    code, report = run(tmp_path, capsys, settings)
    assert (code, report["ok"]) == (0, True), report
    code, text = run(tmp_path, capsys, settings, as_json=False)
    assert (code, text.splitlines()[2].startswith("✓ model: card-fraud ")) == (0, True)

    def away() -> None:
        raise TryAgain("connection refused")

    monkeypatch.setattr(opened, "connect", away)
    code, report = run(tmp_path, capsys, settings)
    assert (code, report["checks"][-1]["text"]) == (1, "a:1: connection refused")


def test_colours_are_for_terminals(
    world: VerifyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"name": "t", "model": "builtin:demo", "kafka": {}, "input": {}, "output": {}}
    _, plain = run(tmp_path, capsys, settings, as_json=False)
    assert "\x1b" not in plain
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    _, coloured = run(tmp_path, capsys, settings, as_json=False)
    assert "\x1b[31m✗\x1b[0m configuration: " in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert run(tmp_path, capsys, settings, as_json=False)[1] == plain
