"""What `lstmstream score` says and its exit code: refused rows, unseen fields, key and time, order, progress."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import polars as pl
import pytest

from lstmstream.errors import CannotServe
from lstmstream.history.fields import Fields
from lstmstream.history.read import read_chunks
from lstmstream.row_progress import RowProgress
from lstmstream.serve import score
from tests.serve.scoring import BASE_MS, MODEL, run, run_as_is

DEMO = "builtin:demo"  # its card names key and time: customer, time
FIELDS = ("customer", "time", "amount", "distance_km", "merchant", "entry")


def events(count: int = 30) -> list[dict[str, Any]]:
    return [
        {
            "customer": f"c{i % 3}",
            "time": BASE_MS + i * 1000,
            "amount": i * 1.5,
            "distance_km": 2.0,
            "merchant": "fuel",
            "entry": "chip",
        }
        for i in range(count)
    ]


def write(path: Path, data: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        pl.DataFrame(data).write_csv(path)
    elif path.suffix == ".parquet":
        pl.DataFrame(data).write_parquet(path)
    elif path.suffix == ".feather":
        pl.DataFrame(data).write_ipc(path)
    else:
        path.write_text("".join(json.dumps(event) + "\n" for event in data))
    return path


def answers(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_bytes().splitlines()]
    for answer in found:
        del answer["source"]
    return found


def renamed(data: list[dict[str, Any]], old: str, new: str) -> list[dict[str, Any]]:
    return [{new if name == old else name: value for name, value in event.items()} for event in data]


KINDS = ["jsonl", "csv", "parquet", "feather"]


@pytest.mark.parametrize("kind", KINDS)
def test_key_and_time_are_the_cards_unless_they_are_named(tmp_path: Path, kind: str, capfd: Any) -> None:
    out, named = tmp_path / "out", tmp_path / "named"
    data = write(tmp_path / f"x.{kind}", events())
    assert run_as_is(DEMO, data, "--out", out) == 0
    assert run_as_is(DEMO, data, "--out", named, "--key", "customer", "--timestamp", "time") == 0
    assert capfd.readouterr().err == ""
    assert out.read_bytes() == named.read_bytes()
    assert {answer["key"] for answer in answers(out)} == {"c0", "c1", "c2"}
    assert answers(out)[0]["timestamp"] == "2026-01-05T10:31:07.123Z"
    other = write(tmp_path / f"y.{kind}", renamed(events(), "customer", "id"))
    assert run_as_is(DEMO, other, "--out", named, "--key", "id") == 0
    assert answers(named) == answers(out)


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ((45383.5, 45384), "all times of 'time' lie before 1971 (latest: 1970-01-01T12:36:24Z); numbers are read"),
        (("2026-01-05", "9999-12-31"), "the latest time of 'time' is 9999-12-31T00:00:00Z, more than a year from now"),
        (("2026-01-05", "2026-01-06"), None),
    ],
)
def test_times_that_are_a_mistake_are_named(
    tmp_path: Path, capfd: Any, times: tuple[Any, Any], said: str | None
) -> None:
    data = [{**event, "time": time} for event, time in zip(events(2), times, strict=True)]
    assert run_as_is(DEMO, write(tmp_path / "x.csv", data), "--out", tmp_path / "out") == 0
    found = capfd.readouterr().err
    assert found == "" if said is None else f"x.csv: {said}" in found


def config_of(folder: Path, model: str, extra: str = "") -> Path:
    path = folder / "c.yaml"
    path.write_text(
        f"name: t\nmodel: {model}\nkafka: {{bootstrap_servers: 'localhost:9092'}}\n"
        f"input: {{topic: in{extra}}}\noutput: {{topic: out}}\n"
    )
    return path


def test_the_config_comes_before_the_card_and_the_card_before_the_record(tmp_path: Path) -> None:
    data, out = write(tmp_path / "x.jsonl", events()), tmp_path / "out"
    for extra, key in ((", key: merchant", "fuel"), ("", "c0")):
        assert run_as_is(config_of(tmp_path, DEMO, extra), data, "--out", out) == 0
        assert answers(out)[0]["key"] == key
    assert run_as_is(config_of(tmp_path, DEMO, ", key: merchant"), data, "--out", out, "--no-key") == 0
    assert {answer["key"] for answer in answers(out)} == {None}
    assert answers(out)[-1]["steps"] == 30


@pytest.mark.parametrize("reference", ["model", "config"])
def test_without_any_key_or_time_it_refuses(tmp_path: Path, capfd: Any, reference: str) -> None:
    model = MODEL if reference == "model" else str(config_of(tmp_path, MODEL))
    data, out = write(tmp_path / "x.jsonl", events()), tmp_path / "out"
    assert run_as_is(model, data, "--out", out) == 2
    first, second = capfd.readouterr().err.splitlines()
    assert "neither the config nor the model's card names the key" in first
    assert "give --key COLUMN, or --no-key if all events belong to one key" in first
    assert "give --timestamp COLUMN, or --no-timestamp to use the time of reading" in second
    assert not out.exists()
    assert run_as_is(model, data, "--out", out, "--no-key") == 2
    assert run_as_is(model, data, "--out", out, "--no-key", "--no-timestamp") == 0
    assert run_as_is(model, data, "--out", out, "--key", "customer", "--timestamp", "time") == 0
    assert run_as_is(model, data, "--out", out, "--key", "customer", "--no-key", "--no-timestamp") == 2
    assert "--key and --no-key contradict each other" in capfd.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("change", [" {}", "{} ", str.capitalize, str.upper, None])
def test_a_field_that_no_row_has_is_named(
    tmp_path: Path, capfd: Any, kind: str, field: str, change: str | Callable[[str], str] | None
) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"precious")
    new = "something" if change is None else change.format(field) if isinstance(change, str) else change(field)
    data = write(tmp_path / f"x.{kind}", renamed(events(), field, new))
    code = run_as_is(DEMO, data, "--out", out)
    said = capfd.readouterr().err
    assert f"lstmstream: {data}: no field {field!r}; the fields are " in said
    assert (f"did you mean {new!r}?" in said) == (change is not None)
    if kind == "jsonl":
        unanswered = field in {"customer", "time"}
        assert code == (1 if unanswered else 0)
        assert (f"{data}: none of 30 rows could be scored" in said) == unanswered
    else:
        assert code == 2
        assert out.read_bytes() == b"precious"


@pytest.mark.parametrize("kind", KINDS)
def test_an_included_field_that_no_row_has_is_said_and_no_fault(tmp_path: Path, capfd: Any, kind: str) -> None:
    config, out = config_of(tmp_path, DEMO), tmp_path / "out"
    config.write_text(config.read_text().replace("{topic: out}", "{topic: out, include: [merchant, Entry]}"))
    data = write(tmp_path / f"x.{kind}", events())
    assert run_as_is(config, data, "--out", out) == 0
    (line,) = capfd.readouterr().err.splitlines()
    assert f"{data}: no field 'Entry'; the fields are 'customer'" in line
    assert "did you mean 'entry'?" in line
    assert answers(out)[0]["event"] == {"merchant": "fuel"}


def test_several_fields_that_are_not_there_are_one_line(tmp_path: Path, capfd: Any) -> None:
    data = write(tmp_path / "x.csv", renamed(renamed(events(), "amount", "Amount"), "merchant", "shop"))
    assert run_as_is(DEMO, data) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "no fields 'amount', 'merchant'; the fields are 'customer', 'time', 'Amount'" in line
    assert "'amount': did you mean 'Amount'?" in line


def test_one_row_with_the_field_is_enough_for_json_lines(tmp_path: Path, capfd: Any) -> None:
    data = events()
    for event in data[:-1]:
        del event["amount"]
    assert run_as_is(DEMO, write(tmp_path / "x.jsonl", data), "--out", tmp_path / "out") == 0
    assert capfd.readouterr().err == ""


def test_a_field_that_the_first_rows_lack_is_named_before_the_end(tmp_path: Path, capfd: Any) -> None:
    data = renamed(events(10_000), "amount", "Amount")
    path = write(tmp_path / "x.jsonl", data)
    assert run_as_is(DEMO, path, "--out", tmp_path / "out") == 0
    first, last = capfd.readouterr().err.splitlines()
    assert first.endswith("(first 4,096 rows)")
    assert last.endswith("(10,000 rows)")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [True, False])
def test_where_no_row_could_be_answered_the_exit_code_is_1(tmp_path: Path, capfd: Any, kind: str, kept: bool) -> None:
    data = write(tmp_path / f"x.{kind}", [{**event, "time": "some day"} for event in events()])
    letters = tmp_path / "letters"
    options = ("--dead-letters", letters) if kept else ()
    assert run_as_is(DEMO, data, "--out", tmp_path / "out", *options) == 1
    said = capfd.readouterr().err.splitlines()
    assert f"{data}: none of 30 rows could be scored: field 'time' is not an ISO 8601 time" in said[-1]
    assert f"(30 rows, the first is row 0{', line 2' if kind == 'csv' else ''})" in said[-1]
    assert ("--dead-letters FILE keeps them" in said[-1]) == (not kept)
    assert len(said) == (1 if kept else 2)
    if kept:
        assert len(letters.read_bytes().splitlines()) == 30


def test_refused_rows_are_few_lines_however_many_they_are(tmp_path: Path, capfd: Any) -> None:
    data = events(20_000)
    for i, event in enumerate(data):
        if i % 2:
            event["amount"] = f"text {i}"
        if i % 10 == 0:
            event["customer"] = None
        if i % 100 == 2:
            event["time"] = "x"
    assert run_as_is(DEMO, write(tmp_path / "x.jsonl", data), "--out", tmp_path / "out") == 0
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 4
    assert "row 0: field 'customer', the key, is missing" in said[0]
    assert "12,200 of 20,000 rows are dead letters: field 'amount' is a string, not a number (10,000 rows" in said[-1]
    assert len((tmp_path / "out").read_bytes().splitlines()) == 7_800


@pytest.mark.parametrize("kind", KINDS)
def test_features_without_any_value_are_named(tmp_path: Path, capfd: Any, kind: str) -> None:
    data = [{**event, "amount": None if i else 1.0, "distance_km": None} for i, event in enumerate(events())]
    data = [{**event, "merchant": "FUEL", "entry": "x" if i else "chip"} for i, event in enumerate(data)]
    path = write(tmp_path / f"x.{kind}", data)
    assert run_as_is(DEMO, path, "--out", tmp_path / "out") == 0
    empty, unknown = capfd.readouterr().err.splitlines()
    assert empty.endswith(
        f"{path}: no row has a value of 'distance_km': in all 30 it is empty or null, and was scored as missing"
    )
    assert (
        f"{path}: no row has a value of 'merchant' that the model knows (30 rows with other values, 0 without any);"
        " it knows 'clothes', 'electronics', 'fuel', 'grocery', 'online', 'restaurant'" in unknown
    )


def test_refused_rows_do_not_count_for_features_without_values(tmp_path: Path, capfd: Any) -> None:
    data = [{**event, "amount": None, "time": event["time"] if i else "soon"} for i, event in enumerate(events())]
    assert run_as_is(DEMO, write(tmp_path / "x.jsonl", data), "--out", tmp_path / "out") == 0
    assert "no row has a value of 'amount': in all 29 it is empty or null" in capfd.readouterr().err


@pytest.mark.parametrize(
    "table",
    [
        {"data": events(2)},
        {name: [event[name] for event in events(2)] for name in FIELDS},
        {name: {str(i): event[name] for i, event in enumerate(events(2))} for name in FIELDS},
        [list(event.values()) for event in events(2)],
    ],
    ids=["wrapped", "columns", "pandas", "arrays"],
)
def test_a_table_in_one_json_value_is_told_how_to_be_written(tmp_path: Path, capfd: Any, table: Any) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(table))
    assert run_as_is(DEMO, path, "--out", tmp_path / "out") == 1
    *_, last = capfd.readouterr().err.splitlines()
    assert "to_json(orient='records', lines=True)" in last
    with pytest.raises(CannotServe, match="orient='records', lines=True"):
        list(read_chunks([path], Fields("customer", "time", ("amount",), ())))


@pytest.mark.parametrize("change", [{"amount": "1.5"}, {"time": "soon"}])
def test_a_single_bad_event_is_no_table(tmp_path: Path, capfd: Any, change: dict[str, Any]) -> None:
    assert run_as_is(DEMO, write(tmp_path / "x.jsonl", [{**events(1)[0], **change}])) == 1
    assert "orient=" not in capfd.readouterr().err


@pytest.mark.parametrize("content", ['{"amount":Infinity}\n', "[1]\n[2]\n", "soon\n"])
def test_fields_are_not_missed_where_no_row_is_an_object(tmp_path: Path, capfd: Any, content: str) -> None:
    (tmp_path / "x.jsonl").write_text(content)
    assert run_as_is(DEMO, tmp_path / "x.jsonl", "--out", tmp_path / "out") == 1
    assert "no field" not in capfd.readouterr().err


def test_fields_beside_an_infinite_number_are_seen(tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps({**events(1)[0], "z": 0}).replace('"z": 0', '"z": 1e400'))
    assert run_as_is(DEMO, tmp_path / "x.jsonl", "--out", tmp_path / "out") == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ("s3://bucket/x.parquet", "is a URL, and score reads local files; download it, or pipe it into -"),
        ("https://host/x.jsonl", "is a URL"),
        ("x*.jsonl", "no such file; score reads one file: for several, pipe them into -"),
    ],
)
def test_what_is_no_local_file_is_named(capfd: Any, data: str, what: str) -> None:
    assert run_as_is(DEMO, data) == 2
    assert f"{data}: {what}" in capfd.readouterr().err


@pytest.mark.parametrize("option", ["key", "timestamp"])
def test_an_empty_name_of_a_column_is_refused(tmp_path: Path, capfd: Any, option: str) -> None:
    path = write(tmp_path / "x.jsonl", events())
    assert run_as_is(DEMO, path, f"--{option}", "") == 2
    assert f"--{option} is empty; name a column, or give --no-{option}" in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["csv", "parquet", "feather", "jsonl"])
def test_a_file_without_rows_is_said_and_no_fault(tmp_path: Path, capfd: Any, kind: str) -> None:
    path, out = tmp_path / f"x.{kind}", tmp_path / "out"
    if kind == "jsonl":
        path.touch()
    else:
        write(path, events(1))
        frame = {"csv": pl.read_csv, "parquet": pl.read_parquet, "feather": pl.read_ipc}[kind](path).clear()
        {"csv": frame.write_csv, "parquet": frame.write_parquet, "feather": frame.write_ipc}[kind](path)
    assert run_as_is(DEMO, path, "--out", out) == 0
    assert capfd.readouterr().err == f"lstmstream: {path}: has no events\n"
    assert out.read_bytes() == b""


def test_rows_out_of_order_are_counted_once(tmp_path: Path, capfd: Any) -> None:
    data = events()
    path = write(tmp_path / "x.jsonl", [*data[10:], *data[:10]])
    assert run_as_is(DEMO, path, "--out", tmp_path / "out") == 0
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"lstmstream: {path}: 10 rows are older than an earlier row of their key; they were ")
    assert run_as_is(config_of(tmp_path, DEMO, ", late: drop"), path, "--out", tmp_path / "out") == 0
    assert "they became dead letters (input.late: drop)" in capfd.readouterr().err


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "as it is": bytes,
    "gzip": gzip.compress,
    "BOM": lambda text: b"\xef\xbb\xbf" + text,
    "UTF-16": lambda text: text.decode().encode("utf-16"),
    "array": lambda text: b"[" + b",".join(text.splitlines()) + b"]",
    "CR": lambda text: text.replace(b"\n", b"\r"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", ["file", "pipe"])
def test_any_form_gives_the_same_answers(tmp_path: Path, form: str, way: str) -> None:
    plain, out, expected = write(tmp_path / "x.jsonl", events()), tmp_path / "out", tmp_path / "expected"
    assert run_as_is(DEMO, plain, "--out", expected) == 0
    content = FORMS[form](plain.read_bytes())
    data = tmp_path / "y.jsonl"
    if way == "pipe":
        os.mkfifo(data)
    writer = Thread(target=data.write_bytes, args=(content,))
    writer.start()
    if way == "file":
        writer.join()
    assert run_as_is(DEMO, data, "--out", out) == 0
    writer.join(120)
    assert answers(out) == answers(expected)


def test_answers_to_a_slow_pipe_come_as_its_lines_do(tmp_path: Path) -> None:
    """The writer sends the next event only when it has the answer to the one before."""
    with subprocess.Popen(
        [sys.executable, "-m", "lstmstream", "score", DEMO, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for i, event in enumerate(events(6)):
            process.stdin.write(json.dumps(event).encode() + b"\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["steps"] == i // 3 + 1
        process.stdin.close()
        assert process.wait(120) == 0


def test_a_reader_that_has_seen_enough_ends_it_quietly(tmp_path: Path) -> None:
    data = write(tmp_path / "x.jsonl", events(20_000))
    with subprocess.Popen(
        [sys.executable, "-m", "lstmstream", "score", DEMO, str(data)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(120) == 1
        assert process.stderr.read() == b""


def test_progress_is_a_line_every_few_seconds_and_nothing_for_short_runs(
    monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    now = [100.0]
    monkeypatch.setattr("lstmstream.row_progress.time.monotonic", lambda: now[0])
    progress = RowProgress("x.jsonl", terminal=False)
    for second in range(1, 12):
        now[0] += 1
        progress.update(second * 1000, second / 20)
    progress.update(12_000, None)
    progress.close()
    found = capfd.readouterr()
    assert found.out == ""
    assert found.err.splitlines() == [
        "lstmstream: x.jsonl: 5,000 rows, 1,000 rows/s, 25%, about 15 s left",
        "lstmstream: x.jsonl: 10,000 rows, 1,000 rows/s, 50%, about 10 s left",
    ]


@pytest.mark.parametrize("done", [0.5, None])
def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch, capfd: Any, done: float | None) -> None:
    monkeypatch.setattr("lstmstream.row_progress._BAR_AFTER_S", 0.0)
    monkeypatch.setattr("lstmstream.row_progress._BAR_INTERVAL_S", 0.0)
    progress = RowProgress("x.jsonl", terminal=True)
    progress.update(1234, done)
    progress.close()
    found = capfd.readouterr()
    assert found.out == ""
    assert "1,234 rows" in found.err
    assert "rows/s" in found.err


def test_the_progress_of_a_run_goes_by_bytes_or_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, float | None]] = []
    monkeypatch.setattr(RowProgress, "update", lambda _, rows, done: seen.append((rows, done)))
    monkeypatch.setattr(score, "BATCH_EVENTS", 10)
    for kind, last in (("jsonl", 1.0), ("parquet", 1.0), ("csv", None)):
        seen.clear()
        assert run(DEMO, write(tmp_path / f"x.{kind}", events()), "--out", tmp_path / "out") == 0
        assert seen[-1] == (30, last)
