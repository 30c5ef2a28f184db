"""History from a topic: the stretch that was asked for, as the daemon would have read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from harness import create_topics, produce

from lstmstream.errors import CannotServe
from lstmstream.train.history.data import load
from lstmstream.train.history.from_kafka import fetch
from lstmstream.train.history.read import Fields
from lstmstream.train.schema import TrainConfig, judge_training

T0 = 1_700_000_000_000


def config(broker: str, topic: str, folder: Path, **data: Any) -> TrainConfig:
    tree: dict[str, object] = {
        "name": "m",
        "task": "anomaly",
        "data": {"from": "kafka", "topic": topic, **data},
        "kafka": {"bootstrap_servers": broker},
        "features": {"numbers": ["amount"], "categories": ["shop.kind"]},
    }
    return judge_training(tree, folder)


@pytest.fixture
def topic(broker: str, topic_prefix: str) -> str:
    """Two partitions, 50 good records each, of the keys a0 to a9; and three that the daemon would not take."""
    name = f"{topic_prefix}.history"
    create_topics(broker, [name], partitions=2)
    records: list[tuple[bytes | None, bytes | None, int | None, int]] = []
    for number in range(100):
        value = orjson.dumps({"amount": number, "shop": {"kind": f"k{number % 3}"}, "who": f"w{number % 4}"})
        records.append((f"a{number % 10}".encode(), value, T0 + 1000 * number, number % 2))
    bad = (b"no json", b'{"amount": "much"}', None)
    records += [(b"a0", value, T0 + 200_000, 0) for value in bad]
    produce(broker, name, records)
    return name


FIELDS = Fields(key=None, timestamp=None, numbers=("amount",), categories=("shop.kind",))


def test_all_of_it_by_the_records_key_and_time(broker: str, topic: str, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    fields, told = fetch(config(broker, topic, tmp_path), FIELDS, file)
    events = load([file], fields)
    assert sorted(events.keys) == [f"a{number}" for number in range(10)]
    for place, key in enumerate(events.keys):
        rows = slice(events.starts[place], events.starts[place + 1])
        numbers = list(range(int(key[1:]), 100, 10))
        assert events.x[rows, 0].tolist() == numbers
        assert events.timestamp[rows].tolist() == [T0 + 1000 * number for number in numbers]
        assert [events.texts[0][code - 1] for code in events.codes[rows, 0]] == [f"k{n % 3}" for n in numbers]
    assert len(told) == 1
    assert told[0].startswith(
        f"3 of 103 records were left out, as dead letters (first: {topic}[0]@50: the value is not"
    )


def test_by_a_field_and_between_bounds(broker: str, topic: str, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    by_field = Fields(key="who", timestamp=None, numbers=("amount",), categories=())
    start = "2023-11-14T22:13:30Z"  # ten seconds in
    for data, expected in (
        ({"start": start, "end": 40}, [n for n in range(10, 100) if n // 2 < 40]),
        ({"start": 45, "end": "2023-11-14T22:14:55Z"}, list(range(90, 95))),
        ({"start": 10, "end": 11}, [20, 21]),
    ):
        fields, told = fetch(config(broker, topic, tmp_path, key="who", **data), by_field, file)
        events = load([file], fields)
        assert sorted(events.x[:, 0].tolist()) == expected
        assert set(events.keys) <= {"w0", "w1", "w2", "w3"}
        assert told == []


def test_what_cannot_be_read_is_said(broker: str, topic: str, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    with pytest.raises(CannotServe, match=r"data\.topic: there is no topic 'nothing-there'"):
        fetch(config(broker, "nothing-there", tmp_path), FIELDS, file)
    with pytest.raises(CannotServe, match=r"has no event between data\.start and data\.end$"):
        fetch(config(broker, topic, tmp_path, start=5, end=5), FIELDS, file)
    with pytest.raises(CannotServe, match=r"no event between .* that can be read \(first: "):
        fetch(config(broker, topic, tmp_path, start=50), FIELDS, file)
