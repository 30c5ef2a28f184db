"""`lstmstream dev send`: the events of a file are in the topic with their keys, in order, as the daemon reads them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient

from lstmstream.cli import main
from lstmstream.dev import send
from lstmstream.dev.send import FileFields, send_file
from lstmstream.errors import CannotServe
from lstmstream.formats.csv_form import FROM_FILE
from lstmstream.transport.partitioner import partition_of

READINGS = """\
Machine;Time;Temperature (°C);Pressure [bar];Zip;Code;Phone;Note
M00;2026-03-02T00:00:00+01:00;59,71;4,19;1020;007;+4912345678;a
M01;2026-03-02T00:02:00+01:00;62,03;;1030;12;+4912345679;"x; y"

M00;2026-03-02T00:01:00+01:00;7;0,5;1020;13;+4912345670;1
"""


def sent(
    monkeypatch: pytest.MonkeyPatch, path: Path, fields: FileFields, **options: Any
) -> list[tuple[bytes | None, dict[str, Any]]]:
    """What would be sent, without a broker."""
    found: list[tuple[bytes | None, dict[str, Any]]] = []

    def take(servers: str, topic: str, events: Any, **_: Any) -> int:
        found.extend((key, json.loads(value)) for key, value in events)
        return len(found)

    monkeypatch.setattr(send, "send_all", take)
    assert send_file(path, "t", "nowhere", fields, **({"csv": FROM_FILE} | options)) == len(found)
    return found


def run(*arguments: str) -> int:
    with mock.patch.object(sys, "argv", ["lstmstream", "dev", "send", *arguments]), pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_table_is_sent_by_time_with_numbers_as_numbers_and_codes_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path = tmp_path / "readings.csv"
    path.write_text(READINGS)
    found = sent(monkeypatch, path, FileFields("Machine", "Time", ("Zip",)))
    assert [key for key, _ in found] == [b"M00", b"M00", b"M01"]
    assert [event["Temperature (°C)"] for _, event in found] == [59.71, 7, 62.03]
    assert [event.get("Pressure [bar]") for _, event in found] == [4.19, 0.5, None]
    assert found[0][1] == {
        "Machine": "M00", "Time": "2026-03-02T00:00:00+01:00", "Temperature (°C)": 59.71, "Pressure [bar]": 4.19,
        "Zip": "1020", "Code": "007", "Phone": "+4912345678", "Note": "a",
    }  # fmt: skip
    said = capsys.readouterr().err
    assert "is separated by ';'" in said
    assert "has decimal commas" in said
    assert "is not in order of 'Time': 2 events came to another place" in said
    assert [event["Zip"] for _, event in sent(monkeypatch, path, FileFields("Machine", "Time"))] == [1020, 1020, 1030]


def test_a_column_with_a_few_other_texts_keeps_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path = tmp_path / "x.csv"
    path.write_text("k,n,m\n" + "a,1.5,x\n" * 39 + "a,NA,2\n")
    found = sent(monkeypatch, path, FileFields("k"))
    assert [event["n"] for _, event in found] == [1.5] * 39 + ["NA"]
    assert found[-1][1]["m"] == "2"
    assert "column 'n' has numbers and 1 cell of other text" in capsys.readouterr().err


def test_json_lines_are_sent_as_they_are_and_events_of_one_time_stay_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path = tmp_path / "x.jsonl"
    rows = [
        {"u": {"k": 7.0}, "t": 20, "n": 0},
        {"u": {"k": 7}, "t": 10, "n": 1},
        {"u": {"k": 1.5}, "t": 20, "n": 2},
        {"t": 10, "n": 3},
        {"u": {"k": "z"}, "t": "soon", "n": 4},
        {"u": {"k": "z"}, "t": 20, "n": 5},
    ]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    found = sent(monkeypatch, path, FileFields("u.k", "t"))
    assert [(key, event["n"]) for key, event in found] == [
        (b"7", 1), (None, 3), (b"z", 4), (b"7", 0), (None, 2), (b"z", 5),
    ]  # fmt: skip
    said = capsys.readouterr().err
    assert "2 events were sent without a key; the first: row 2: field 'u.k' is a number that is not whole" in said
    assert (
        "1 event was sent without a time, after the one before it in the file; the first: row 4: field 't' is not"
        in said
    )
    assert [event["n"] for _, event in sent(monkeypatch, path, FileFields(None))] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ((), "give either --key FIELD, or --no-key if all events belong to one key"),
        (("--key", "k", "--no-key"), "give either --key FIELD, or --no-key"),
        (("--key", "K"), "no field 'K'; the fields are 'k', 'n'; did you mean 'k'?"),
        (("--key", "k", "--timestamp", "when"), "no field 'when'"),
    ],
)
def test_what_cannot_be_sent_is_exit_2(tmp_path: Path, capsys: Any, arguments: tuple[str, ...], what: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text("k,n\na,1\n")
    assert run(str(path), "--topic", "t", "--bootstrap-servers", "127.0.0.1:1", *arguments) == 2
    assert what in capsys.readouterr().err


def test_a_key_that_no_event_has_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"k":1}\n{"k":2}\n')
    with pytest.raises(CannotServe, match="no event has the field 'key', the key; correct --key"):
        sent(monkeypatch, path, FileFields("key"))
    path.write_text("\n\n")
    with pytest.raises(CannotServe, match="has no events"):
        sent(monkeypatch, path, FileFields("key"))


def test_on_a_broker_each_key_is_in_its_partition_in_order(
    broker: str, topic_prefix: str, tmp_path: Path, capsys: Any
) -> None:
    topic, path = f"{topic_prefix}.readings", tmp_path / "x.csv"
    admin = KafkaAdminClient(bootstrap_servers=broker)
    admin.create_topics({topic: {"num_partitions": 3}}, wait_for_metadata=True)
    admin.close()
    path.write_text("k;t;n\n" + "".join(f"key{row % 11};{1000 - row};{row},5\n" for row in range(400)))
    assert run(str(path), "--topic", topic, "--key", "k", "--timestamp", "t", "--bootstrap-servers", broker) == 0
    assert capsys.readouterr().err.endswith(f"400 events were written to topic {topic}.\n")
    consumer = KafkaConsumer(bootstrap_servers=broker, auto_offset_reset="earliest", enable_auto_commit=False)
    consumer.assign([TopicPartition(topic, number) for number in range(3)])
    found: list[Any] = []
    while len(found) < 400:
        found += [record for records in consumer.poll(timeout_ms=1000).values() for record in records]
    consumer.close()
    assert {record.partition for record in found} == {0, 1, 2}
    assert all(record.partition == partition_of(record.key, 3) for record in found)
    for number in range(3):
        values = [json.loads(record.value)["n"] for record in found if record.partition == number]
        assert values == sorted(values, reverse=True)
    assert sorted(json.loads(record.value)["n"] for record in found) == [row + 0.5 for row in range(400)]
    assert run(str(path), "--topic", f"{topic}.not", "--key", "k", "--bootstrap-servers", broker) == 1
    assert "does the topic exist?" in capsys.readouterr().err


def test_a_column_without_a_name_is_left_out_and_a_missing_time_is_called_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """As pandas writes a data frame, with a total at the end."""
    path = tmp_path / "x.csv"
    path.write_text(",k,t,n\n0,a,2026-01-01,1.5\n1,Total,,1.5\n")
    found = sent(monkeypatch, path, FileFields("k", "t"))
    assert [event for _, event in found] == [{"k": "a", "t": "2026-01-01", "n": 1.5}, {"k": "Total", "n": 1.5}]
    said = capsys.readouterr().err
    assert "the column without a name is left out; give it a name to send it" in said
    assert "row 1: field 't', the timestamp, is missing" in said
