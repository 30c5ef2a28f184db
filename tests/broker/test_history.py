"""History from a topic: the stretch that was asked for, as the daemon would have read it."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from lstmstream.config.schema import Kafka
from lstmstream.errors import CannotServe
from lstmstream.history.events import load_events
from lstmstream.history.fields import Fields
from lstmstream.history.topics import TopicRange, fetch_topic
from tests.broker.harness import create_topics, produce

T0 = 1_700_000_000_000


def fetch(
    broker: str, topic: str, fields: Fields, file: Path, start: str | int = "earliest", end: str | int = "latest"
) -> tuple[Fields, list[str]]:
    kafka = Kafka.model_validate({"bootstrap_servers": broker})
    return fetch_topic(kafka, TopicRange(topic, start, end), fields, file, folder=file.parent)


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
    fields, warnings = fetch(broker, topic, FIELDS, file)
    events = load_events([file], fields)
    assert sorted(events.keys) == [f"a{number}" for number in range(10)]
    for place, key in enumerate(events.keys):
        rows = slice(events.starts[place], events.starts[place + 1])
        numbers = list(range(int(key[1:]), 100, 10))
        assert events.x[rows, 0].tolist() == numbers
        assert events.timestamp[rows].tolist() == [T0 + 1000 * number for number in numbers]
        assert [events.texts[0][code - 1] for code in events.codes[rows, 0]] == [f"k{n % 3}" for n in numbers]
    assert len(warnings) == 1
    assert warnings[0].startswith(
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
        fields, warnings = fetch(broker, topic, by_field, file, **data)
        events = load_events([file], fields)
        assert sorted(events.x[:, 0].tolist()) == expected
        assert set(events.keys) <= {"w0", "w1", "w2", "w3"}
        assert warnings == []


def test_a_topic_that_cannot_be_read_is_named(broker: str, topic: str, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    with pytest.raises(CannotServe, match=r"data\.topic: there is no topic 'nothing-there'"):
        fetch(broker, "nothing-there", FIELDS, file)
    with pytest.raises(CannotServe, match=r"has no event between data\.start and data\.end$"):
        fetch(broker, topic, FIELDS, file, 5, 5)
    with pytest.raises(CannotServe, match=r"no event between .* that can be read \(first: "):
        fetch(broker, topic, FIELDS, file, 50)
