"""`lstmstream score --shard`: the shards together are the whole, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lstmstream.serve import score
from lstmstream.transport.partitioner import partition_of
from tests.serve.helpers import DATA
from tests.serve.scoring import BASE_MS, MODEL, nested, rows, run

KEY_AND_TIME = ("--key", "id", "--timestamp", "at")


def events(count: int) -> list[bytes]:
    """Rows of many keys, in all the forms of a key, and rows that become dead letters for several reasons."""
    lines = []
    for i, row in enumerate(rows(count)):
        row["id"] = [f"key-{i % 23}", i % 19, f"ü{i % 5}"][i % 3]
        lines.append(json.dumps(nested(row)).encode())
        if i % 29 == 0:
            row["amount"] = "much"  # the key can be read: it belongs to its shard
            lines.append(json.dumps(nested(row)).encode())
            lines += [b"{", b'{"at":1}', b'{"id":null,"amount":1}', b"[1]"]
    return lines


def write(path: Path, lines: list[bytes]) -> Path:
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def by_row(*files: Path) -> list[bytes]:
    """The lines of predictions, in the order of the rows."""
    lines = [line for file in files for line in file.read_bytes().splitlines()]
    return sorted(lines, key=lambda line: int(json.loads(line)["source"]["row"]))


@pytest.mark.parametrize("count", [1, 3, 16])
def test_the_shards_together_are_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(score, "BATCH_EVENTS", 64)
    data = write(tmp_path / "x.jsonl", events(600))
    whole, dead = tmp_path / "whole", tmp_path / "dead"
    assert run(MODEL, data, *KEY_AND_TIME, "--out", whole, "--dead-letters", dead) == 0
    outs, letters = [], []
    for number in range(1, count + 1):
        outs.append(tmp_path / f"out-{number}")
        letters.append(tmp_path / f"dead-{number}")
        files = ("--out", outs[-1], "--dead-letters", letters[-1])
        run(MODEL, data, *KEY_AND_TIME, *files, "--shard", f"{number}/{count}")
        for line in outs[-1].read_bytes().splitlines():
            assert partition_of(json.loads(line)["key"].encode(), count) == number - 1
    assert by_row(*outs) == whole.read_bytes().splitlines()
    assert len(dead.read_bytes().splitlines()) > 50
    assert sorted(line for file in letters for line in file.read_bytes().splitlines()) == sorted(
        dead.read_bytes().splitlines()
    )
    assert count == 1 or sum(bool(out.read_bytes()) for out in outs) > 1


def test_it_says_how_many_rows_there_are(tmp_path: Path, capfd: Any) -> None:
    keys = [b"k%d" % i for i in range(9)]
    data = write(tmp_path / "x.jsonl", [b'{"id":"%b","amount":1}' % key for key in keys])
    told = []
    for number in (1, 2):
        assert run(MODEL, data, "--key", "id", "--shard", f"{number}/2", "--out", tmp_path / "out") == 0
        told.append(capfd.readouterr().err)
    of_first = sum(partition_of(key, 2) == 0 for key in keys)
    assert 0 < of_first < 9
    assert f"lstmstream: {data}: {of_first} of 9 rows are in shard 1/2\n" in told[0]
    assert f"lstmstream: {data}: {9 - of_first} of 9 rows are in shard 2/2\n" in told[1]


@pytest.mark.parametrize("text", ["0/4", "5/4", "3", "3/", "a/b", "1/0", "-1/4", "1/4/2", "", "\uff11/2"])
def test_a_shard_that_cannot_be_is_exit_2(tmp_path: Path, capfd: Any, text: str) -> None:
    data = write(tmp_path / "x.jsonl", [b'{"id":"a","amount":1}'])
    assert run(MODEL, data, "--key", "id", "--shard", text, "--out", tmp_path / "out") == 2
    assert "is not NUMBER/COUNT" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_events_of_one_key_cannot_be_split(tmp_path: Path, capfd: Any) -> None:
    data = write(tmp_path / "x.jsonl", [b'{"id":"a","amount":1}'])
    assert run(MODEL, data, "--no-key", "--shard", "1/2", "--out", tmp_path / "out") == 2
    assert "all events belong to one key" in capfd.readouterr().err


def test_stages_with_another_key_cannot_be_split_and_with_the_same_key_are(tmp_path: Path, capfd: Any) -> None:
    config = tmp_path / "chain.yaml"
    text = (
        "name: chain\nkafka: {bootstrap_servers: 'localhost:9092'}\n"
        "stages:\n"
        f"  - {{name: one, model: {MODEL}, input: {{topic: in, key: id, timestamp: at}}, output: {{topic: a,"
        " events: {topic: enriched, key: KEY, add: {first: score}}}}\n"
        f"  - {{name: two, model: {DATA / 'small.onnx'}, input: {{topic: enriched, key: KEY, timestamp: at}},"
        " output: {topic: b}}\n"
    )
    lines = [
        b'{"id":"k%d","shop":"s%d","at":%d,"amount":%d}' % (i % 7, i % 3, BASE_MS + 1000 * i, i) for i in range(200)
    ]
    data, whole = write(tmp_path / "x.jsonl", lines), tmp_path / "whole"
    config.write_text(text.replace("KEY", "shop"))
    assert run(config, data, "--shard", "1/2", "--out", whole) == 2
    assert "a later stage has another key (shop) than the first (id)" in capfd.readouterr().err
    config.write_text(text.replace("KEY", "id"))
    assert run(config, data, "--out", whole) == 0
    outs = [tmp_path / f"out-{number}" for number in (1, 2)]
    for number, out in enumerate(outs, 1):
        assert run(config, data, "--shard", f"{number}/2", "--out", out) == 0
        assert out.read_bytes()
    assert by_row(*outs) == whole.read_bytes().splitlines()
