"""`lstmstream dead-letter` over the broker in memory: what it finds, prints and writes, and that nothing goes twice."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from lstmstream.dead_letter import command, replay
from lstmstream.dead_letter.command import list_letters, make_filter, parse_settings, replay_letters, show_letter
from lstmstream.dead_letter.letters import Filter, Place, letters_of
from lstmstream.dead_letter.replay import Replay, set_fields
from lstmstream.errors import BadRecord, CannotServe, OwnershipLost, RecordRefused, TryAgain
from lstmstream.records import RecordBatch
from lstmstream.transport.memory import LogRecord
from lstmstream.transport.patient_broker import PatientBroker
from tests.models import random_model
from tests.serve.memory_world import INPUT, LETTERS, OUTPUT, PARTITIONS, World
from tests.verify.world import NOW_MS, VerifyTransport, VerifyWorld

NOTES = f"{LETTERS}.replayed"
BAD: Sequence[tuple[bytes | None, bytes | None, int]] = [  # key, value, partition
    (b"a", b'{"amount": "much", "id": 12345678901234567890123}', 0),
    (b"b", b"no json", 1),
    (None, b'{"amount": [1]}', 2),
    (b"\xff", b'{"amount": true}', 1),
    (b"c", None, 0),
]
CONFIG = Path("c.yaml")


class Opened(VerifyTransport):
    """As the command opens and closes it; its transactions may fail, before they are written or after."""

    def __init__(self, world: World) -> None:
        super().__init__(world.broker, INPUT)
        self.faults: list[str] = []
        self.refused: tuple[bytes, ...] = ()  # how the values begin that the broker refuses
        self.transactions: list[list[RecordBatch]] = []

    def open_writer(self, transactional_id: str, timeout_s: float) -> Opened:
        assert transactional_id == "t.dead-letter"
        return self

    def transact(self, batches: list[RecordBatch], offsets: None, deadline: float) -> None:
        fault = self.faults.pop(0) if self.faults else ""
        if any((value or b"").startswith(self.refused) for value in batches[0].values):
            raise RecordRefused("the record is too large", topic=INPUT, too_large=True)
        if fault == "fenced":
            raise OwnershipLost("by another producer")
        if fault != "before":
            self.transactions.append(batches)
            for batch in batches:
                self._broker.append_batch(batch)
        if fault:
            raise TryAgain("the broker is away")

    def close(self, timeout_s: float) -> None:
        """Nothing is open."""


@pytest.fixture
def world(tmp_path: Path) -> VerifyWorld:
    made = VerifyWorld(random_model(tmp_path), input={"topic": INPUT, "max_bytes": "10MB"})
    for number, (key, value, partition) in enumerate(BAD):
        made.broker.append(INPUT, partition, key, value, NOW_MS + 1000 * number, [("trace", b"t1")])
        made.broker.append(INPUT, partition, b"good", b'{"amount": 1}', NOW_MS + 1000 * number, [])
    made.serve()
    return made


@pytest.fixture
def kafka(world: VerifyWorld, monkeypatch: pytest.MonkeyPatch) -> Opened:
    config, opened = world.config(), Opened(world)
    monkeypatch.setattr(command, "load_config", lambda _path, stage=None: config)
    monkeypatch.setattr(command, "open_kafka_admin", lambda _config: opened)
    monkeypatch.setattr(replay, "RETRY_S", 0.0)
    return opened


def listed(capsys: pytest.CaptureFixture[str], filter_: Filter = Filter(), limit: int = 100) -> list[dict[str, Any]]:  # noqa: B008 - immutable
    capsys.readouterr()
    assert list_letters(CONFIG, filter_, limit=limit, as_json=True) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def values(world: VerifyWorld, topic: str = INPUT) -> list[LogRecord]:
    return [record for partition in range(PARTITIONS) for record in world.log(topic, partition)]


def replay_all(**options: Any) -> int:
    return replay_letters(CONFIG, options.pop("filter_", Filter()), everything=True, **options)


@pytest.mark.usefixtures("kafka")
def test_what_list_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert list_letters(CONFIG, Filter(), limit=2, as_json=False) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 2
    assert printed.err == "5 dead letters: 3 validate, 2 decode; 0 of them replayed; the last 2 are shown (--limit)\n"
    assert re.match(r"2@0 +2023-11-14T22:13:22Z  validate  field 'amount' is an array", printed.out.splitlines()[1])


@pytest.mark.usefixtures("kafka")
def test_each_filter_takes_those_that_it_names(capsys: pytest.CaptureFixture[str]) -> None:
    def found(**options: Any) -> list[str]:
        nothing: dict[str, Any] = dict.fromkeys(("stage", "reason", "key", "since", "until"))
        of = listed(capsys, make_filter(**(nothing | options)))
        return [f"{one['partition']}@{one['offset']}" for one in of]

    assert found(stage="decode") == ["0@1", "1@0"]
    assert found(reason="NOT UTF-8 json") == ["1@0"]
    assert found(key="a") == ["0@0"]
    assert found(key="/w==") == ["1@1"], "a key that is not UTF-8 is named by its base64"
    assert found(since="2023-11-14T22:13:22Z") == ["0@1", "1@1", "2@0"]
    assert found(until="2023-11-14T22:13:22Z") == ["0@0", "1@0"]
    assert found(places=["2@0", "0@0", "0@99"]) == ["0@0", "2@0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": "lost"}, "--stage lost: there is no such stage; they are decode, validate, late, step, publish"),
        ({"since": "tomorrow"}, "--from tomorrow: is not an ISO 8601 time"),
        ({"reason": ""}, "--reason: is empty, which any reason contains"),
        ({"since": "2026-01-02", "until": "2026-01-01"}, "--from 2026-01-02: must be before --to 2026-01-01"),
        ({"places": ["0:7"]}, "'0:7' is not a dead letter; name it by partition and offset, as in 0@17"),
        ({"places": ["-1@7"]}, "'-1@7' is not a dead letter"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    nothing: dict[str, Any] = dict.fromkeys(("stage", "reason", "key", "since", "until"))
    with pytest.raises(CannotServe, match=re.escape(message)):
        make_filter(**(nothing | options))


@pytest.mark.usefixtures("kafka")
def test_show_prints_all_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert show_letter(CONFIG, "0@0", as_json=False) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^event +in\[0\]@0$", printed, re.MULTILINE)
    assert re.search(r"^header trace +t1$", printed, re.MULTILINE)
    assert re.search(r"^reason +field 'amount' is a string", printed, re.MULTILINE)
    assert '"amount": "much"' in printed
    with pytest.raises(CannotServe, match=r"has no dead letter 0@7"):
        show_letter(CONFIG, "0@7", as_json=False)


def test_a_hostile_dead_letter_is_escaped(
    kafka: Opened, world: VerifyWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = b"\x1b[2J\r\nlstmstream: all is well"
    world.broker.append(INPUT, 0, hostile, b"{" + hostile, NOW_MS, [("\x1b[31m", hostile)])
    world.serve()
    list_letters(CONFIG, Filter(), limit=9, as_json=False)
    show_letter(CONFIG, "0@2", as_json=False)
    printed = capsys.readouterr()
    assert "all is well" in printed.out
    assert "\x1b" not in printed.out + printed.err
    assert not any(line.startswith("lstmstream: all") for line in printed.out.splitlines())


def test_replayed_events_are_answered_and_none_is_replayed_twice(
    kafka: Opened, world: VerifyWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {topic: len(values(world, topic)) for topic in (INPUT, OUTPUT, LETTERS)}
    assert replay_all(filter_=make_filter_of("validate"), settings=["amount=2.5"]) == 0
    assert "3 events were written to in" in capsys.readouterr().err
    again = values(world)[-1]
    assert again.value == b'{"amount":2.5}'
    first = world.log(INPUT, 0)[-1]
    assert first.value == b'{"amount":2.5,"id":12345678901234567890123}', "the other fields are as they were"
    assert (first.key, first.timestamp_ms) == (b"a", NOW_MS)
    assert first.headers == [("trace", b"t1"), ("lstmstream.dead_letter", b"0@0")]
    assert len(values(world)) == before[INPUT] + 3
    world.serve()
    assert len(values(world, OUTPUT)) == before[OUTPUT] + 3
    assert len(values(world, LETTERS)) == before[LETTERS]
    assert world.verify().exit_code == 0

    assert [one["replayed"] for one in listed(capsys)] == [True, False, False, True, True]
    capsys.readouterr()
    assert replay_all(filter_=make_filter_of("validate")) == 0
    assert len(values(world)) == before[INPUT] + 3, "they are not written once more"
    assert "0 events were written to in; 3 were replayed before" in capsys.readouterr().err
    replay_all(filter_=make_filter_of("validate"), dry_run=True)
    assert "0 dead letters would be replayed; 3 were replayed before" in capsys.readouterr().err


def test_a_place_without_a_dead_letter_is_named(
    kafka: Opened, world: VerifyWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    places = Filter(places=frozenset(map(Place.parse, ["0@0", "0@99"])))
    for dry_run in (True, False, False):
        assert replay_all(filter_=places, dry_run=dry_run) == 1
        said = capsys.readouterr().err
        assert "0@99: is not there, or the other options leave it out\n" in said
        assert "0@0" not in said
    assert "0 events were written to in; 1 was replayed before" in said
    assert replay_all(filter_=places._replace(places=frozenset([Place(0, 99)]))) == 1
    assert "0 events were written to in; no dead letter is meant" in capsys.readouterr().err
    assert replay_all(filter_=places, as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["missing"] == ["0@99"]
    assert replay_all(filter_=places._replace(places=frozenset([Place(0, 0)]))) == 0


def make_filter_of(stage: str) -> Filter:
    return Filter(stage=stage)


def test_what_cannot_be_replayed_is_said_and_the_others_go(
    kafka: Opened, world: VerifyWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(values(world))
    assert replay_all(settings=["amount=1"]) == 1
    errors = capsys.readouterr().err
    assert "0@1: not replayed: it has no value" in errors
    assert "1@0: not replayed: the value is not UTF-8 JSON" in errors
    assert "3 events were written to in; 2 could not be replayed" in errors
    assert len(values(world)) == before + 3


def test_an_event_that_fails_again_is_another_dead_letter(kafka: Opened, world: VerifyWorld) -> None:
    assert replay_all(filter_=Filter(key="b")) == 0
    world.serve()
    assert replay_all(filter_=Filter(key="b")) == 0, "and that one was not replayed before"
    assert [len(batches[0]) for batches in kafka.transactions] == [1, 1]
    letter = world.log(LETTERS, 1)[-1]
    assert letter.headers[0] == ("trace", b"t1")
    assert letter.headers[1] == ("lstmstream.dead_letter", b"1@0"), "the daemon's headers of before are gone"


@pytest.mark.parametrize("faults", [["before"], ["after"], ["before", "after", "before"], ["after", "after"]])
def test_a_transaction_whose_outcome_is_not_known_is_looked_for(
    kafka: Opened,
    world: VerifyWorld,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    faults: list[str],
) -> None:
    monkeypatch.setattr(replay, "MAX_LETTERS", 2)
    kafka.faults = list(faults)
    before = len(values(world))
    assert replay_all() == 1
    assert "4 events were written to in; 1 could not be replayed" in capsys.readouterr().err
    assert len(values(world)) == before + 4
    assert sum(len(batches[0]) for batches in kafka.transactions) == 4


@pytest.mark.parametrize("at_once", [2, 500])
def test_an_event_that_the_broker_refuses_does_not_hold_up_the_others(
    kafka: Opened,
    world: VerifyWorld,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    at_once: int,
) -> None:
    """Such as one that `--set` or `--edit` has made too large."""
    monkeypatch.setattr(replay, "MAX_LETTERS", at_once)
    kafka.refused = (b"no json", b'{"amount": [1]}')
    before = len(values(world))
    config, admin = world.config(), PatientBroker(kafka)
    outcome = Replay(kafka, admin, config, limit_s=1e-9).run(Filter())
    assert {str(letter.place): why for letter, why in outcome.refused} == {
        "0@1": "it has no value",
        "1@0": "the record is too large",
        "2@0": "the record is too large",
    }
    assert {str(letter.place) for letter in outcome.replayed} == {"0@0", "1@1"}
    assert len(values(world)) == before + 2


def test_a_second_replay_stops_the_first(kafka: Opened) -> None:
    kafka.faults = ["fenced"]
    with pytest.raises(CannotServe, match=r"another replay of t\.dead-letter has begun; this one stops"):
        replay_all()


def test_a_broker_that_stays_away(kafka: Opened, world: VerifyWorld) -> None:
    kafka.faults = ["before"] * 100
    with pytest.raises(CannotServe, match="nothing could be replayed for 0 s: the broker is away"):
        Replay(kafka, PatientBroker(kafka), world.config(), limit_s=0.0).run(Filter())


def test_a_topic_that_was_made_again_has_no_replayed_letters(
    kafka: Opened, world: VerifyWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay_all() == 1
    del world.broker.topics[LETTERS]
    world.broker.append(INPUT, 0, b"a", b"worse", NOW_MS, [])
    world.serve()
    assert [(one["offset"], one["replayed"]) for one in listed(capsys)][:1] == [(0, False)]


def test_a_dry_run_writes_nothing(kafka: Opened, world: VerifyWorld, capsys: pytest.CaptureFixture[str]) -> None:
    before = len(values(world))
    assert replay_all(settings=["amount=3"], dry_run=True) == 1, "as without --dry-run"
    printed = capsys.readouterr()
    assert "3 dead letters would be replayed; 2 could not be" in printed.err
    assert '{"amount":3}' in printed.out
    assert "would not be replayed: the value is not UTF-8 JSON" in printed.out
    assert replay_all(dry_run=True) == 1
    printed = capsys.readouterr()
    assert "4 dead letters would be replayed; 1 could not be" in printed.err
    assert "would not be replayed: it has no value" in printed.out
    assert (len(values(world)), NOTES in world.broker.topics) == (before, False)


def test_an_event_whose_key_is_set_goes_to_the_partition_of_that_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = VerifyWorld(random_model(tmp_path), input={"topic": INPUT, "key": "card"})
    world.broker.append(INPUT, 0, None, b'{"amount": 1}', NOW_MS, [])
    world.broker.append(INPUT, 0, b"7", b'{"amount": "x", "card": 7}', NOW_MS, [])
    world.serve()
    config, opened = world.config(), Opened(world)
    monkeypatch.setattr(command, "load_config", lambda _path, stage=None: config)
    monkeypatch.setattr(command, "open_kafka_admin", lambda _config: opened)
    assert replay_letters(CONFIG, Filter(), everything=True, settings=["card=7", "amount=1"]) == 0
    batch = opened.transactions[0][0]
    assert batch.keys == [b"7", b"7"]
    assert batch.partitions.tolist() == [-1, 0], "murmur2 of the key; and where the key was there, the event's own"


def test_without_a_choice_nothing_is_replayed(kafka: Opened) -> None:
    with pytest.raises(CannotServe, match="say which dead letters"):
        replay_letters(CONFIG, Filter(), everything=False)
    with pytest.raises(CannotServe, match="--set and --edit cannot be used together"):
        replay_letters(CONFIG, Filter(), everything=True, settings=["a=1"], edit=True)
    assert not kafka.transactions


def test_create_topics_false_names_the_topic_that_is_missing(
    kafka: Opened, world: VerifyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = world.config().model_copy(update={"create_topics": False})
    monkeypatch.setattr(command, "load_config", lambda _path, stage=None: config)
    with pytest.raises(
        CannotServe, match=r"topic 't\.dead-letter\.replayed' does not exist, and create_topics is false"
    ):
        replay_all()


def test_an_editor_changes_the_value(
    kafka: Opened, world: VerifyWorld, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "editor.py"
    script.write_text("import sys; open(sys.argv[1], 'w').write('{\"amount\": 9}\\n')")
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", f"{sys.executable} {script}")
    assert replay_all(filter_=Filter(key="b"), edit=True) == 0
    assert world.log(INPUT, 1)[-1].value == b'{"amount": 9}'
    monkeypatch.setenv("EDITOR", f"{sys.executable} -c exit(3)")
    assert replay_all(filter_=Filter(key="a"), edit=True) == 1


def test_an_event_is_edited_once_however_often_its_transaction_fails(
    kafka: Opened, world: VerifyWorld, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script, log = tmp_path / "editor.py", tmp_path / "log"
    script.write_text(f"import sys; open({str(log)!r}, 'a').write('x'); open(sys.argv[1], 'w').write('{{}}')")
    monkeypatch.setenv("VISUAL", f"{sys.executable} {script}")
    kafka.faults = ["before", "before"]
    assert replay_all(filter_=Filter(key="b"), edit=True) == 0
    assert world.log(INPUT, 1)[-1].value == b"{}"
    assert log.read_text() == "x"


@pytest.mark.parametrize("editor", ["no-such-editor --wait", "vi 'unclosed"])
def test_an_editor_that_cannot_be_started(kafka: Opened, monkeypatch: pytest.MonkeyPatch, editor: str) -> None:
    monkeypatch.setenv("VISUAL", editor)
    with pytest.raises(CannotServe, match=r"--edit: .* cannot be started \(.*\); set EDITOR to another editor"):
        replay_all(edit=True)
    assert not kafka.transactions


@pytest.mark.parametrize("left", ["open(sys.argv[1], 'w')", "os.remove(sys.argv[1])"])
def test_an_editor_that_leaves_nothing(
    kafka: Opened, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], left: str
) -> None:
    monkeypatch.setenv("VISUAL", f'{sys.executable} -c "import os, sys; {left}"')
    assert replay_all(filter_=Filter(key="b"), edit=True) == 1
    assert "1@0: not replayed: the editor has left nothing" in capsys.readouterr().err
    assert not kafka.transactions


def test_an_event_of_a_partition_that_is_not_there_any_more(
    kafka: Opened, world: VerifyWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    """The topic was made again, with fewer of them."""
    del world.broker.topics[INPUT]
    world.broker.create(INPUT, 1, {})
    assert replay_all(filter_=Filter(stage="validate")) == 1
    said = capsys.readouterr().err
    assert "2@0: not replayed: its partition 2 does not exist in 'in' any more" in said
    assert "1 event was written to in; 2 could not be replayed" in said


def test_what_others_have_written_to_the_notes_is_passed_over(kafka: Opened, world: VerifyWorld) -> None:
    world.broker.create(NOTES, 1, {"cleanup.policy": "compact"})
    for key in (b"text", None, b"[1]", b"5", b'["t",0,0]'):
        world.broker.append(NOTES, 0, key, b"", NOW_MS, [])
    assert replay_all(filter_=Filter(key="a")) == 0
    assert len(kafka.transactions) == 1


@pytest.mark.parametrize(
    ("document", "settings", "expected"),
    [
        ({"a": {"b": 1}}, {"a.b": 2}, {"a": {"b": 2}}),
        ({"a.b": 1, "a": {"b": 5}}, {"a.b": 2}, {"a.b": 2, "a": {"b": 5}}),
        ({"a": {"b.c": 1}}, {"a.b.c": 2}, {"a": {"b.c": 2}}),
        ({"a": {}}, {"a.b": None}, {"a": {"b": None}}),
        ({"x": 1}, {"a.b": "t"}, {"x": 1, "a.b": "t"}),
        ({"a": {"c": {"d": 1}}}, {"a.c.d": 2, "a.c.e": 3}, {"a": {"c": {"d": 2, "e": 3}}}),
        ({"a": [1]}, {"a.b": 2}, {"a": [1], "a.b": 2}),
        ({"x": 1}, {"y": [1, {"z": 2}]}, {"x": 1, "y": [1, {"z": 2}]}),
    ],
)
def test_where_a_field_is_set(document: Mapping[str, Any], settings: Mapping[str, Any], expected: object) -> None:
    batch = RecordBatch.to_write(LETTERS, *([[0]] * 2), [None], [orjson.dumps(document)], [letter_headers()])  # type: ignore[arg-type]
    letter = next(letters_of(batch, set()))
    assert orjson.loads(set_fields(settings)(letter)) == expected


def letter_headers() -> list[tuple[str, bytes]]:
    names = ("exception", "message", "topic", "partition", "offset")
    return [*((f"__streams.errors.{name}", b"1") for name in names), ("lstmstream.stage", b"validate")]


def test_settings_are_json_or_text() -> None:
    given = ["a=1", "b=text", 'c="1"', "d=", "e=x=y", "f=null"]
    assert parse_settings(given) == {"a": 1, "b": "text", "c": "1", "d": "", "e": "x=y", "f": None}
    for wrong in ("a", "=1"):
        with pytest.raises(CannotServe, match="is not FIELD=VALUE"):
            parse_settings([wrong])
    with pytest.raises(CannotServe, match="--set a=2: a was given another value before"):
        parse_settings(["a=1", "a=2"])
    assert orjson.dumps(parse_settings(["id=12345678901234567890123"])) == b'{"id":12345678901234567890123}'


def test_a_value_that_is_no_object_has_no_fields_to_set() -> None:
    batch = RecordBatch.to_write(LETTERS, *([[0]] * 2), [None], [b"[1]"], [letter_headers()])  # type: ignore[arg-type]
    with pytest.raises(BadRecord, match="the value is a JSON array"):
        set_fields({"a": 1})(next(letters_of(batch, set())))
