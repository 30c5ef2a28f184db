"""Each kind of fault, planted into what a sound daemon has written or into the daemon itself, is found by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime as ort
import orjson
import pytest

from lstmstream.errors import CannotServe
from lstmstream.model import load_model
from lstmstream.serve.daemon import Daemon
from lstmstream.serve.scorer import Scorer
from lstmstream.transport import memory
from lstmstream.transport.memory import LogRecord
from lstmstream.transport.partitioner import murmur2
from lstmstream.verify.published import differences
from lstmstream.verify.run import Verification
from lstmstream.verify.topics import Limits
from tests.models import MAGIC, poisoned_model, random_model
from tests.verify.world import (
    ALERTS,
    INPUT,
    LETTERS,
    NOW_MS,
    OUTPUT,
    VerifyWorld,
    events,
    failing_model,
    fill,
)

COUNT = 240


def made(folder: Path, **settings: Any) -> VerifyWorld:
    path = poisoned_model(folder, categories={"channel": ["web", "7"], "shop": 5})
    settings.setdefault("output", {"threshold": 0.6, "include": ["note", "amount"]})
    world = VerifyWorld(path, batch={"max_events": 10}, **settings)
    found = events(COUNT)
    for at in (20, 90, 91):
        found[at] = (found[at][0], b'{"amount": %r}' % MAGIC, found[at][2])
    fill(world, found)
    return world


@pytest.fixture
def world(tmp_path: Path) -> VerifyWorld:
    """Everything answered, by a daemon that has stopped."""
    sound = made(tmp_path)
    sound.serve()
    return sound


def kinds(done: Verification) -> dict[str, int]:
    assert done.exit_code == (1 if len(done.comparison.findings) else 0)
    return {kind: count for kind, count in done.comparison.findings.counts.items() if count}


def fields(done: Verification) -> set[str | None]:
    return {finding.field for finding in done.comparison.findings.kept}


def altered(record: LogRecord, **members: Any) -> LogRecord:
    """A prediction with other members, its text as it was."""
    value = record.value or b""
    for name, member in members.items():
        old = json.dumps(json.loads(value)[name], ensure_ascii=False).encode()
        assert old in value
        value = value.replace(b'"%b":%b' % (name.encode(), old), b'"%b":%b' % (name.encode(), member), 1)
    return record._replace(value=value)


def first_with(log: list[LogRecord], **members: Any) -> int:
    return next(row for row, record in enumerate(log) if members.items() <= json.loads(record.value or b"{}").items())


# -- a sound daemon


@pytest.mark.parametrize("late", ["apply", "score", "drop"])
@pytest.mark.parametrize("ttl", [None, "1h"])
@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_a_sound_daemon_passes(tmp_path: Path, late: str, ttl: str | None, delivery: str) -> None:
    world = made(tmp_path, input={"topic": INPUT, "late": late}, state={"ttl": ttl}, delivery=delivery)
    world.serve()
    done = world.verify()
    assert kinds(done) == {}
    summary = done.summary()
    assert summary["events"] == COUNT == summary["predictions"] + summary["dead_letters"]
    stages = {dict(record.headers)["lstmstream.stage"] for p in range(3) for record in world.log(LETTERS, p)}
    assert {b"validate", b"decode", b"step"} <= stages
    assert (b"late" in stages) == (late == "drop")
    assert 20 < summary["alerts"] < summary["predictions"]


def test_reasons_are_recomputed(tmp_path: Path) -> None:
    world = made(tmp_path, output={"threshold": 0.6, "reasons": 2})
    world.serve()
    done = world.verify()
    assert kinds(done) == {}
    assert done.summary()["alerts"] > 20
    log = world.log(OUTPUT, 1)
    rows = [row for row, record in enumerate(log) if len(json.loads(record.value or b"").get("reasons", ())) == 2][:3]
    for row, change in zip(rows, (larger_by_a_little, with_another_name, without_the_second), strict=True):
        value = log[row].value or b""
        reasons = json.loads(value)["reasons"]
        old = orjson.dumps(reasons)
        change(reasons)
        assert old in value
        log[row] = log[row]._replace(value=value.replace(old, orjson.dumps(reasons)))
    done = world.verify()
    assert (kinds(done), fields(done)) == ({"wrong": 3}, {"reasons"})
    assert kinds(world.verify(tolerance=1e-4)) == {"wrong": 2}


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
@pytest.mark.parametrize("runtime", ["CUDAExecutionProvider", "CPUExecutionProvider"])
def test_the_last_bits_count_where_no_gpu_can_have_answered(
    world: VerifyWorld, device: str, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [runtime])
    may_be_gpu = device == "cuda" or (device == "auto" and runtime == "CUDAExecutionProvider")
    world.settings["device"] = {"device": device}
    assert world.verify().tolerance == (1e-5 if may_be_gpu else 0.0)


def larger_by_a_little(reasons: list[dict[str, Any]]) -> None:
    reasons[0]["size"] += 1e-4


def with_another_name(reasons: list[dict[str, Any]]) -> None:
    reasons[0]["feature"] = "note"


def without_the_second(reasons: list[dict[str, Any]]) -> None:
    del reasons[1]


def test_alerts_without_the_reasons_that_they_should_have(world: VerifyWorld) -> None:
    config = world.config(output={**world.settings["output"], "reasons": 2})
    done = world.verify(config=config)
    assert fields(done) == {"reasons"}
    assert kinds(done)["wrong"] == 2 * world.verify().summary()["alerts"]  # of the prediction and of its alert


@pytest.mark.parametrize(
    ("wanted", "there", "near"),
    [
        ({"a": 0.5, "b": 0.2}, {"a": 0.51, "b": 0.2}, True),
        ({"a": 0.5, "b": 0.2}, {"a": 0.53, "b": 0.2}, False),
        ({"a": 0.5, "b": 0.49}, {"b": 0.5, "a": 0.49}, True),  # another order
        ({"a": 0.5, "b": 0.2}, {"a": 0.5, "c": 0.21}, True),  # of two that are nearly as large, the other one
        ({"a": 0.5, "b": 0.2}, {"a": 0.5, "c": 0.3}, False),
        ({"a": 0.5, "b": 0.2}, {"a": 0.5}, False),
        ({"a": 0.5, "b": 0.01}, {"a": 0.5}, True),
        ({"a": 0.5}, {"a": 0.5, "b": 0.2}, False),
        ({}, {"a": 0.015}, True),
        ({}, None, False),
        ({"a": 0.5}, 7, False),
    ],
)
def test_sizes_of_reasons_that_are_tolerated(wanted: Any, there: Any, near: bool) -> None:
    def record(reasons: Any) -> bytes:
        value: dict[str, Any] = {"score": 0.9, "alert": True}
        if isinstance(reasons, dict):
            reasons = [{"feature": name, "size": size} for name, size in reasons.items()]
        if reasons is not None:
            value["reasons"] = reasons
        return json.dumps(value).encode()

    found = list(differences(record(wanted), record(there), 0.01))
    assert [name for name, _, _ in found] == ([] if near else ["reasons"])


@pytest.mark.parametrize("reasons", [0, 2])
def test_daemons_that_are_killed_and_stopped_pass(tmp_path: Path, reasons: int) -> None:
    world = made(tmp_path, output={"threshold": 0.6, "include": ["note", "amount"], "reasons": reasons})
    first, second = world.start(world.onnx_step()), world.start(world.onnx_step())
    for _ in range(12):
        world.step(first)
        world.step(second)
    world.faults += ["commit", "committed", "begin"]
    for _ in range(12):
        world.step(second)
        world.step(first)
    world.kill(first)
    world.settle()
    assert world.stop(second) == 0
    assert kinds(world.verify()) == {}


def test_fields_for_key_time_and_record_key_pass(tmp_path: Path) -> None:
    path = random_model(tmp_path, categories={"channel": 3})
    world = VerifyWorld(
        path, input={"topic": INPUT, "key": "id", "timestamp": "at.ms", "late": "score"}, output={"include": ["at"]}
    )
    for number in range(60):
        value: dict[str, Any] = {"id": number % 5, "amount": number, "channel": number % 2 == 0}
        value["at"] = {"ms": NOW_MS + (number * 37 % 50) * 1000}
        if number % 11 == 0:
            value["at"] = {"ms": "2023-11-14T22:14:00.5Z"} if number % 2 else None
        world.broker.append(INPUT, number % 2, None, json.dumps(value).encode(), NOW_MS)
    world.serve()
    done = world.verify()
    assert kinds(done) == {}
    assert done.summary()["dead_letters"] == 3


def test_a_state_that_fails_again_and_again_starts_over(tmp_path: Path) -> None:
    """The model of this test divides by 3 - state, which counts the events of the key."""
    world = VerifyWorld(failing_model(tmp_path), state={"reset_after_failures": 2})
    for number in range(60):
        world.broker.append(INPUT, 0, b"k%d" % (number % 4), b"{}", NOW_MS + number)
    world.serve()
    done = world.verify()
    assert kinds(done) == {}
    assert (done.summary()["dead_letters"], done.summary()["predictions"]) == (24, 36)


def test_predictions_that_are_placed_by_a_key_of_their_own_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "crc32", lambda key: murmur2(key) & 0x7FFFFFFF if key else 0)
    world = made(tmp_path, output={"key": "shop", "threshold": 0.6})
    world.serve()
    assert kinds(world.verify()) == {}
    log = world.log(OUTPUT, 0)
    world.broker.append(OUTPUT, 1, *_columns(log.pop(3)))
    done = world.verify()
    assert "record partition" in fields(done)


def test_a_record_that_is_too_large_passes_without_its_value_only(tmp_path: Path) -> None:
    world = made(tmp_path, input={"topic": INPUT, "max_bytes": 200})
    world.broker.append(INPUT, 1, b"k", b'{"amount": 1, "note": "%b"}' % (b"x" * 300), NOW_MS)
    world.serve()
    assert kinds(world.verify()) == {}
    log = world.log(LETTERS, 1)
    assert log[-1].value is None
    log[-1] = log[-1]._replace(value=b"x")
    log[0] = log[0]._replace(value=None)
    assert (kinds(world.verify()), fields(world.verify())) == ({"wrong": 2}, {"value"})


# -- planted in the output


def test_a_missing_prediction(world: VerifyWorld) -> None:
    """Offsets first, and a crash before the records; a record that is skipped."""
    lost = json.loads(world.log(OUTPUT, 1).pop(5).value or b"")["source"]
    done = world.verify()
    assert kinds(done) == {"missing": 1} or kinds(done) == {"missing": 1, "wrong": 1}
    finding = done.comparison.findings.kept[-1]
    assert (finding.record, finding.partition, finding.offset) == ("prediction", 1, lost["offset"])


def test_a_missing_dead_letter(world: VerifyWorld) -> None:
    world.log(LETTERS, 2).pop()
    done = world.verify()
    assert kinds(done) == {"missing": 1}
    assert done.comparison.findings.kept[0].record == "dead letter"


def test_a_missing_alert_and_one_too_many(world: VerifyWorld) -> None:
    world.log(ALERTS, 0).pop()
    plain = world.log(OUTPUT, 1)[first_with(world.log(OUTPUT, 1), alert=False)]
    world.broker.append(ALERTS, 1, plain.key, plain.value, plain.timestamp_ms, plain.headers)
    done = world.verify()
    assert kinds(done) == {"missing": 1, "wrong": 1}
    assert {finding.record for finding in done.comparison.findings.kept} == {"alert"}


def test_a_duplicate_window(world: VerifyWorld) -> None:
    """A batch that a zombie has published once more."""
    for record in world.log(OUTPUT, 2)[10:15]:
        world.broker.append(OUTPUT, 2, *_columns(record))
    done = world.verify()
    assert kinds(done) == {"duplicate": 5}
    finding = done.comparison.findings.kept[0]
    assert finding.record_offset == len(world.log(OUTPUT, 2)) - 5


def test_at_least_once_may_repeat_what_it_has_published_but_not_differently(tmp_path: Path) -> None:
    world = made(tmp_path, delivery="at_least_once")
    world.serve()
    for record in world.log(OUTPUT, 2)[10:15]:
        world.broker.append(OUTPUT, 2, *_columns(record))
    done = world.verify()
    assert kinds(done) == {}
    assert done.summary()["repeated"] == 5
    world.broker.append(OUTPUT, 2, *_columns(altered(world.log(OUTPUT, 2)[3], steps=b"99")))
    assert kinds(world.verify()) == {"wrong": 1}


def test_predictions_of_a_key_out_of_order(world: VerifyWorld) -> None:
    log = world.log(OUTPUT, 0)
    key = log[0].key
    second = next(row for row, record in enumerate(log) if row and record.key == key)
    log[0], log[second] = log[second], log[0]
    world.number_again(OUTPUT, 0)
    assert kinds(world.verify()) == {"out_of_order": 1}


def test_records_ahead_of_the_offsets(world: VerifyWorld) -> None:
    """A transaction whose offsets never came."""
    world.broker.offsets[1] -= 3
    done = world.verify()
    assert done.exit_code == 1
    assert set(kinds(done)) == {"ahead"}
    assert {finding.partition for finding in done.comparison.findings.kept} == {1}


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("steps", b"77"),
        ("score", b"0.123"),
        ("alert", b"true"),
        ("version", b'"0"'),
        ("timestamp", b'"2020-01-01T00:00:00.000Z"'),
    ],
)
def test_a_wrong_member(world: VerifyWorld, member: str, value: bytes) -> None:
    log = world.log(OUTPUT, 0)
    row = first_with(log, alert=False)
    log[row] = altered(log[row], **{member: value})
    done = world.verify()
    if member == "version":
        assert done.exit_code == 2
        assert "answered by model test-model version 0" in done.comparison.unjudged
        return
    assert (kinds(done), fields(done)) == ({"wrong": 1}, {member})
    finding = done.comparison.findings.kept[0]
    assert finding.found == json.loads(value)
    assert finding.expected != finding.found
    assert (finding.topic, finding.record_partition, finding.record_offset) == (OUTPUT, 0, row)


def test_the_smallest_difference_of_a_score_is_found_unless_it_is_tolerated(world: VerifyWorld) -> None:
    log = world.log(OUTPUT, 0)
    row = first_with(log, alert=False)
    score = json.loads(log[row].value or b"")["score"]
    log[row] = altered(log[row], score=repr(score + 1e-7).encode())
    assert fields(world.verify()) == {"score"}
    assert kinds(world.verify(tolerance=1e-5)) == {}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"headers": [("traceparent", b"another")]}, "headers"),
        ({"key": b"another"}, "record key"),
        ({"timestamp_ms": NOW_MS - 1}, "record timestamp"),
    ],
)
@pytest.mark.parametrize("topic", [OUTPUT, ALERTS])
def test_a_wrong_part_of_the_record(world: VerifyWorld, topic: str, change: dict[str, Any], field: str) -> None:
    world.log(topic, 1)[2] = world.log(topic, 1)[2]._replace(**change)
    done = world.verify()
    assert (kinds(done), fields(done)) == ({"wrong": 1}, {field})


def test_a_prediction_in_another_partition(world: VerifyWorld) -> None:
    record = world.log(OUTPUT, 1).pop()
    world.broker.append(OUTPUT, 0, *_columns(record))
    done = world.verify()
    assert (kinds(done), fields(done)) == ({"wrong": 1}, {"record partition"})


def test_a_dead_letter_of_the_wrong_stage_value_or_headers(world: VerifyWorld) -> None:
    log = world.log(LETTERS, 0)
    log[0] = log[0]._replace(value=b"another")
    headers = [(name, b"late" if name == "lstmstream.stage" else value) for name, value in log[1].headers]
    log[1] = log[1]._replace(headers=headers)
    log[2] = log[2]._replace(headers=[("more", b"1"), *log[2].headers])
    done = world.verify()
    assert (kinds(done), fields(done)) == ({"wrong": 3}, {"value", "stage", "headers"})


@pytest.mark.parametrize("reduced", [False, True])
def test_a_dead_letter_in_place_of_what_a_topic_refused(world: VerifyWorld, *, reduced: bool) -> None:
    """It stands in place of prediction and alert, perhaps with less than the event had."""
    row = first_with(world.log(OUTPUT, 1), alert=True)
    refused = world.log(OUTPUT, 1).pop(row)
    alerts = world.log(ALERTS, 1)
    alerts[:] = [record for record in alerts if record.value != refused.value]
    source = json.loads(refused.value or b"")["source"]
    event = world.log(INPUT, 1)[source["offset"]]
    about = {"topic": INPUT, "partition": "1", "offset": str(source["offset"])}
    own = [("__streams.errors.exception", b"x"), ("__streams.errors.message", b"y")]
    own += [(f"__streams.errors.{name}", text.encode()) for name, text in about.items()]
    own.append(("lstmstream.stage", b"publish"))
    if reduced:
        own.append(("lstmstream.timestamp", b"%d" % event.timestamp_ms))
        made_key = b"in-1-%d" % source["offset"]
        world.broker.append(LETTERS, 1, made_key, None, NOW_MS + 10**9, own)
    else:
        headers = [*event.headers, *own]
        world.broker.append(LETTERS, 1, event.key, event.value, event.timestamp_ms, headers)
    assert kinds(world.verify()) == {}
    letters = world.log(LETTERS, 1)
    letters[-1] = letters[-1]._replace(key=b"another")
    assert (kinds(world.verify()), fields(world.verify())) == ({"wrong": 1}, {"record key"})


def test_a_prediction_and_a_dead_letter_of_one_event(world: VerifyWorld) -> None:
    letter, prediction = world.log(LETTERS, 0)[0], world.log(OUTPUT, 0)[0]
    source = json.loads(prediction.value or b"")["source"]
    headers = dict(letter.headers) | {"__streams.errors.offset": b"%d" % source["offset"]}
    world.broker.append(LETTERS, 0, letter.key, letter.value, letter.timestamp_ms, list(headers.items()))
    assert kinds(world.verify()) == {"duplicate": 1}


def test_a_prediction_of_no_event(world: VerifyWorld) -> None:
    gap = world.log(INPUT, 0)[4].offset
    del world.log(INPUT, 0)[4]
    done = world.verify()
    assert any(
        finding.offset == gap and "no event at this offset" in finding.detail
        for finding in done.comparison.findings.kept
    )


def test_records_of_others_in_the_topics_are_counted_and_left_out(world: VerifyWorld) -> None:
    world.broker.append(OUTPUT, 0, b"k", b'{"other": 1}')
    world.broker.append(OUTPUT, 0, b"k", b'{"source":{"topic":"elsewhere","partition":0,"offset":1}}')
    world.broker.append(LETTERS, 0, b"k", None)
    done = world.verify()
    assert (kinds(done), done.summary()["others"]) == ({}, 3)


def _columns(record: LogRecord) -> tuple[Any, ...]:
    return record.key, record.value, record.timestamp_ms, record.headers


# -- planted in the daemon


def _keep_after_rollback(patch: pytest.MonkeyPatch) -> None:
    """A batch whose transaction was aborted leaves its states behind."""
    patch.setattr(Scorer, "rollback", lambda self: self.commit())


def test_states_that_are_kept_after_an_abort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = made(tmp_path)
    _keep_after_rollback(monkeypatch)
    daemon = world.start(world.onnx_step())
    for _ in range(8):
        world.step(daemon)
    world.faults.append("begin")
    world.settle()
    done = world.verify()
    assert set(kinds(done)) == {"wrong"}
    assert {"steps", "score"} <= fields(done)


def test_an_old_state_written_over_a_newer_one(tmp_path: Path) -> None:
    """As an idle owner does whose checkpoint is not fenced, after its successor has gone on."""
    world = made(tmp_path)
    world.serve()
    old = {p: [record for record in world.log("t.state", p) if (record.key or b"")[:1] != b"\0"] for p in range(3)}
    fill(world, events(COUNT, seed=2))
    world.serve()
    assert kinds(world.verify()) == {}
    for partition, records in old.items():
        for record in records:
            world.broker.append("t.state", partition, *_columns(record))
    fill(world, events(COUNT, seed=3))
    world.serve()
    done = world.verify()
    assert set(kinds(done)) <= {"wrong", "missing"}
    assert {"steps", "score"} <= fields(done)


def test_another_policy_for_late_events(tmp_path: Path) -> None:
    """The daemon scores late events without keeping them, though the configuration says that it applies them."""
    world = made(tmp_path)
    world.serve(input={"topic": INPUT, "late": "score"})
    with pytest.raises(CannotServe, match="not answered with this model and these settings"):
        world.verify()
    _pretend(world, '"late":"score"', '"late":"apply"')
    done = world.verify()
    assert {"steps", "score"} <= fields(done)


def test_states_that_outlive_a_change_of_the_model(tmp_path: Path) -> None:
    """A second model goes on with the states of the first."""
    world = made(tmp_path)
    world.serve()
    other = tmp_path / "other"
    other.mkdir()
    old = world.model.card.fingerprint
    world.model = load_model(poisoned_model(other, categories={"channel": ["web", "7"], "shop": 5}, seed=5))
    with pytest.raises(CannotServe, match="not answered with this model"):
        world.verify()
    _pretend(world, old, world.model.card.fingerprint)
    assert {"score", "prediction"} <= fields(world.verify())


def _pretend(world: VerifyWorld, old: str, new: str) -> None:
    """Change the floor records, so that they name other settings."""
    for partition in range(3):
        log = world.log("t.state", partition)
        log[:] = [
            record._replace(value=(record.value or b"").replace(old.encode(), new.encode()))
            if (record.key or b"")[:1] == b"\0"
            else record
            for record in log
        ]


# -- what cannot be judged


def test_events_that_are_gone(world: VerifyWorld) -> None:
    """Keys whose first events are gone are left out, and those that began later are judged."""
    world.broker.truncate(INPUT, 1, before=30)
    for amount in (3, 4):
        world.broker.append(INPUT, 1, b"new", b'{"amount": %d}' % amount, NOW_MS)
    world.serve()
    done = world.verify()
    assert (done.exit_code, len(done.comparison.findings)) == (2, 0)
    only_last = Limits(first=world.log(INPUT, 1)[-1].offset)
    assert world.verify(limits=only_last).exit_code == 0
    assert done.summary()["unjudged"][0]["partition"] == 1
    assert done.summary()["unjudged"][0]["from"] >= 30
    last = world.log(OUTPUT, 1)[-1]
    assert last.key == b"new"
    world.log(OUTPUT, 1)[-1] = altered(last, score=b"0.5")
    assert fields(world.verify()) == fields(world.verify(limits=only_last)) == {"score"}


def test_outputs_that_are_gone(world: VerifyWorld) -> None:
    world.broker.truncate(OUTPUT, 1, before=12)
    done = world.verify()
    assert (done.exit_code, len(done.comparison.findings)) == (2, 0)
    assert done.summary()["unjudged"][0]["partition"] == 1
    del world.log(OUTPUT, 1)[5]
    assert kinds(world.verify()) == {"missing": 1}


def test_another_model_in_between(tmp_path: Path) -> None:
    """Before the reset nothing is compared, but each event must have been answered once all the same."""
    world = made(tmp_path)
    world.serve(input={"topic": INPUT, "late": "drop"})
    resets = [world.broker.offsets[partition] for partition in range(3)]
    fill(world, events(100, seed=3))
    world.settings["on_model_change"] = "reset"
    world.serve()
    done = world.verify()
    assert (done.exit_code, len(done.comparison.findings)) == (2, 0)
    assert [one["to"] for one in done.summary()["unjudged"]] == resets
    whole = world.verify(limits=Limits(first=max(resets)))
    assert (whole.exit_code, whole.summary()["not_judged"]) == (0, 0)
    world.log(OUTPUT, 0).pop(3)
    assert kinds(world.verify()) == {"missing": 1}


def test_states_that_were_rebuilt_from_what_another_model_has_answered(tmp_path: Path) -> None:
    """Its own answers are compared, with the state of all events before them. The old one's floor is a little old."""
    world = made(tmp_path)
    daemon = world.start(world.onnx_step(), input={"topic": INPUT, "late": "drop"})
    world.settle()
    world.kill(daemon)
    rebuilt = [world.broker.offsets[partition] for partition in range(3)]
    fill(world, events(100, seed=3))
    world.settings["on_model_change"] = "replay"
    world.serve()
    done = world.verify()
    assert (done.exit_code, len(done.comparison.findings)) == (2, 0)
    assert all(one["to"] <= rebuilt[one["partition"]] for one in done.summary()["unjudged"])
    log = world.log(OUTPUT, 0)
    log[-1] = altered(log[-1], steps=b"999")
    assert kinds(world.verify()) == {"wrong": 1}


def test_another_model_before_and_after_which_this_one_was_in_use(tmp_path: Path) -> None:
    """What the other one has answered is left out where it differs; before and behind it everything is compared."""
    world = made(tmp_path, on_model_change="reset")
    world.serve()
    first = dict(world.broker.offsets)
    fill(world, events(COUNT, seed=2))
    world.serve(input={"topic": INPUT, "late": "drop"})
    second = dict(world.broker.offsets)
    fill(world, events(COUNT, seed=3))
    world.serve()
    done = world.verify()
    assert (done.exit_code, len(done.comparison.findings)) == (2, 0)
    for one in done.summary()["unjudged"]:
        assert first[one["partition"]] <= one["from"] < one["to"] <= second[one["partition"]]
    log = world.log(OUTPUT, 0)
    for row in (0, -1):
        log[row] = altered(log[row], steps=b"999")
    assert kinds(world.verify()) == {"wrong": 2}


def test_a_record_that_names_its_model_is_judged_wherever_others_have_answered(tmp_path: Path) -> None:
    """Model 1, model 2, model 1: a wrong answer of either is found, as each record says whose it is."""
    world = made(tmp_path, on_model_change="replay")
    one = world.model
    other = tmp_path / "other"
    other.mkdir()
    two = load_model(poisoned_model(other, version="2", categories={"channel": ["web", "7"], "shop": 5}, seed=5))
    for seed, model in enumerate((one, two, one), start=11):
        world.model = model
        world.serve()
        fill(world, events(COUNT, seed=seed))
    log = world.log(OUTPUT, 0)
    for model in (one, two):
        world.model = model
        done = world.verify()
        assert (done.exit_code, len(done.comparison.findings)) == (2, 0)
        row = next(
            row for row, record in enumerate(log) if b'"version":"%s"' % model.card.version.encode() in record.value
        )
        sound, log[row] = log[row], altered(log[row], steps=b"999")
        assert kinds(world.verify()) == {"wrong": 1}
        log[row] = sound


def test_a_group_that_began_at_the_end_of_the_input(tmp_path: Path) -> None:
    world = made(tmp_path, input={"topic": INPUT, "start": "latest"})
    daemon = world.start(world.onnx_step())
    for _ in range(5):
        world.step(daemon)
    fill(world, events(50, seed=2))
    world.settle()
    assert world.stop(daemon) == 0
    done = world.verify()
    assert (kinds(done), done.summary()["events"]) == ({}, 50)


def test_no_offsets_and_no_topics(tmp_path: Path) -> None:
    world = made(tmp_path)
    with pytest.raises(CannotServe, match="there is no topic 'out'"):
        world.verify()
    for topic in (OUTPUT, ALERTS, LETTERS, "t.state"):
        world.broker.create(topic, 3)
    with pytest.raises(CannotServe, match="no committed offset"):
        world.verify()


# -- a part of it


def test_a_sample_judges_whole_keys_and_misses_nothing_of_the_others(world: VerifyWorld) -> None:
    done = world.verify(sample=0.4)
    assert (kinds(done), done.summary()["events"]) == ({}, COUNT)
    log = world.log(OUTPUT, 1)
    log[:] = [altered(record, steps=b"999") for record in log]
    wrong = {
        json.loads(log[f.record_offset or 0].value or b"").get("key")
        for f in world.verify(sample=0.4).comparison.findings.kept
    }
    everything = world.verify()
    assert 0 < len(wrong) < 3 or wrong
    assert len(everything.comparison.findings) == len(log)
    log.pop(0)
    assert world.verify(sample=0.01).comparison.findings.counts["missing"] == 1


def test_from_and_to(world: VerifyWorld) -> None:
    log = world.log(OUTPUT, 0)
    at = json.loads(log[10].value or b"")["source"]["offset"]
    log[10] = altered(log[10], steps=b"999")
    assert kinds(world.verify(limits=Limits(first=at))) == {"wrong": 1}
    assert kinds(world.verify(limits=Limits(first=at + 1))) == {}
    assert kinds(world.verify(limits=Limits(last=at))) == {}
    done = world.verify(limits=Limits(first=at, last=at + 1))
    assert (kinds(done), done.summary()["events"]) == ({"wrong": 1}, 3)
    moment = world.log(INPUT, 0)[at].timestamp_ms
    assert kinds(world.verify(limits=Limits(first=moment, first_is_time=True))) == {"wrong": 1}


# -- a group that goes on


def followed(tmp_path: Path) -> tuple[VerifyWorld, Daemon, Verification]:
    """A daemon that has not answered everything yet, and the verification that follows it."""
    world = made(tmp_path)
    daemon = world.start(world.onnx_step())
    for _ in range(10):
        world.step(daemon)
    return world, daemon, world.verification()


def test_rounds_judge_what_has_come_since(tmp_path: Path) -> None:
    world, daemon, following = followed(tmp_path)
    counts = []
    for _ in range(6):
        following.round()
        counts.append(following.comparison.counts["events"])
        for _ in range(5):
            world.step(daemon)
    world.settle()
    following.round()
    assert kinds(following) == {}
    assert following.comparison.counts["events"] == COUNT
    assert len(set(counts)) > 2
    again = world.log(OUTPUT, 1)[2]
    world.broker.append(OUTPUT, 1, *_columns(again))
    following.round()
    assert kinds(following) == {"duplicate": 1}


def test_what_is_published_while_it_reads_is_not_ahead(tmp_path: Path) -> None:
    """Predictions of a transaction that ends between its looks at the offsets wait for the next round."""
    world, daemon, following = followed(tmp_path)
    ends = following._output_ends

    def later() -> dict[tuple[str, int], int]:
        for _ in range(5):
            world.step(daemon)
        return ends()

    following._output_ends = later  # type: ignore[method-assign]
    following.round()
    world.settle()
    following.round()
    assert kinds(following) == {}
    assert following.comparison.counts["events"] == COUNT
