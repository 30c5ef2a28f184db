"""`output.events`: each event with a prediction once more, with outputs of the model added, for a next stage."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any
from zlib import crc32

import orjson
import pytest
import yaml

from lstmstream import CannotServe
from lstmstream.serve.score import score_file
from lstmstream.testing import TestDriver
from tests.serve.helpers import DATA

ADD = {"risk": "prediction[0]", "first": "score", "seen": "steps", "odd": "alert"}
CONFIG: dict[str, Any] = {
    "name": "t",
    "model": str(DATA / "small.onnx"),
    "input": {"topic": "in", "key": "terminal", "silent": {"field": "kind", "equals": "report"}},
    "output": {"topic": "out", "alerts_topic": "alerts", "events": {"topic": "next", "key": "customer", "add": ADD}},
}

pytestmark = pytest.mark.usefixtures("either_codec")


def test_the_event_comes_out_with_all_its_fields_and_the_added_ones() -> None:
    texts = [
        b'{"terminal":"t1","customer":"c1","amount":1.50,"note":{"a":[1e400]},"big":123456789012345678901234567890}',
        b'\xef\xbb\xbf {"terminal":"t1","customer":17.0,"text":"}"} \n',
    ]
    with TestDriver(CONFIG, partitions=5) as driver:
        for at, text in enumerate(texts):
            driver.pipe(text, key="t1", timestamp=1_767_225_600_000 + at, headers={"trace": b"7"})
        log = [record for part in driver._broker.topics["next"].logs for record in part]
        predictions = driver.read_predictions()
        partitions = {p: [r.key for r in part] for p, part in enumerate(driver._broker.topics["next"].logs) if part}
        for record, text in zip(sorted(log, key=lambda one: one.timestamp_ms), texts, strict=True):
            prediction = next(one for one in predictions if one.timestamp_ms == record.timestamp_ms).value
            added = {
                "risk": prediction["prediction"][0], "first": prediction["score"],
                "seen": prediction["steps"], "odd": prediction["alert"],
            }  # fmt: skip
            assert record.value == text.rstrip()[:-1] + b"," + orjson.dumps(added)[1:]
            assert record.headers == [("trace", b"7")]
        by_key = {key: p for p, keys in partitions.items() for key in keys}
        assert by_key == {key: crc32(key) % 5 for key in (b"c1", b"17")}  # as the broker in memory hashes keys


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ({"terminal": "t", "customer": "c", "risk": 1}, "has a field 'risk' already"),
        ({"terminal": "t", "customer": "c", "seen": None}, "has a field 'seen' already"),
        ({"terminal": "t"}, "output.events.key: field 'customer'"),
        ({"terminal": "t", "customer": 1.5}, "output.events.key: field 'customer'"),
    ],
)
def test_an_event_that_cannot_go_on_is_a_dead_letter_and_its_state_has_it(event: dict[str, Any], reason: str) -> None:
    with TestDriver(CONFIG) as driver:
        driver.pipe(event)
        driver.pipe({"terminal": "t", "customer": "c"})
        (letter,) = driver.read_dead_letters()
        assert letter.stage == "publish"
        assert reason in letter.message
        assert [one.value["steps"] for one in driver.read_predictions()] == [2]
        assert [one.value["seen"] for one in driver.read_events()] == [2]
        driver.crash()
        driver.restart()
        driver.pipe({"terminal": "t", "customer": "c"})
        assert [one.value["seen"] for one in driver.read_events()] == [3]


def test_silent_events_and_dead_letters_do_not_go_on() -> None:
    with TestDriver(CONFIG) as driver:
        driver.pipe({"terminal": "t", "customer": "c", "kind": "report"})
        driver.pipe({"terminal": "t", "customer": "c", "amount": "x"})
        assert driver.read_events() == []


@pytest.mark.parametrize("point", ["commit", "committed", "begin"])
def test_the_events_are_in_the_transaction(point: str) -> None:
    with TestDriver(CONFIG) as driver:
        driver.pipe({"terminal": "t", "customer": "c"})
        driver.crash_at(point)
        driver.pipe({"terminal": "t", "customer": "c"})
        driver.restart()
        driver.pipe({"terminal": "t", "customer": "c"})
        assert [one.value["seen"] for one in driver.read_events()] == [1, 2, 3]
        assert [one.value["steps"] for one in driver.read_predictions()] == [1, 2, 3]


def test_without_a_key_field_they_keep_key_and_partition() -> None:
    output = {"topic": "out", "events": {"topic": "next"}}
    with TestDriver({**CONFIG, "input": {"topic": "in"}, "output": output}, partitions=3) as driver:
        driver.pipe(b"{}", key="k", partition=2)
        driver.pipe(b"{}", partition=1)
        assert [(one.key, one.partition, one.value) for one in driver.read_events()] == [(None, 1, {}), ("k", 2, {})]


def test_an_output_that_the_model_does_not_have_is_refused() -> None:
    output = {"topic": "out", "events": {"topic": "next", "add": {"risk": "prediction[3]"}}}
    with pytest.raises(CannotServe, match=r"output\.events\.add\.risk: is prediction\[3\], and the predictions of"):
        TestDriver({**CONFIG, "output": output})


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ({"key": "a"}, "output.events.topic: is missing"),
        ({"topic": "out"}, "is the same topic as output.topic"),
        ({"topic": "next", "add": {"a.b": "score"}}, "contains a dot"),
        ({"topic": "next", "add": {"a": "scores"}}, "is not an output of the model"),
    ],
)
def test_what_cannot_be_is_refused_by_its_path(events: dict[str, Any], message: str) -> None:
    with pytest.raises(CannotServe, match=message):
        TestDriver({**CONFIG, "output": {"topic": "out", "events": deepcopy(events)}})


def test_score_writes_the_same_events(tmp_path: Path) -> None:
    rows = [{"terminal": f"t{i % 2}", "customer": f"c{i % 3}", "amount": i, "extra": [i]} for i in range(9)]
    data, out = tmp_path / "rows.jsonl", tmp_path / "events.jsonl"
    data.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    config = tmp_path / "t.yaml"
    config.write_text(
        yaml.safe_dump({**CONFIG, "kafka": {"bootstrap_servers": "x:1"}}, sort_keys=False), encoding="utf-8"
    )
    answered = tmp_path / "out.jsonl"
    assert score_file(str(config), str(data), out=str(answered), key=None, timestamp=None, dead_letters=None,
                      events=out, no_timestamp=True) == 0  # fmt: skip
    with TestDriver({**CONFIG, "output": {**CONFIG["output"], "events": {"topic": "next", "add": ADD}}}) as driver:
        driver.pipe_all(rows)
        streamed = [record.value for record in driver._broker.topics["next"].logs[0]]
    assert [line[: line.index(b',"risk"')] for line in out.read_bytes().splitlines()] == [
        (value or b"")[: (value or b"").index(b',"risk"')] for value in streamed
    ]
