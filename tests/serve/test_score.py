"""`lstmstream score`: one engine, whatever the file; the bytes are the daemon's apart from `source`."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lstmstream.records import RecordBatch
from lstmstream.serve import score, score_chain
from lstmstream.serve.engine import Engine, Result
from lstmstream.serve.factory import make_engine
from lstmstream.serve.state import StateStore
from tests.file_limit import limited_files
from tests.serve.helpers import batch, engine
from tests.serve.reference import Event
from tests.serve.scoring import BASE_MS, MODEL, expected, rows, run, without_source, write_jsonl

WHOLE = b'{"amount":1,"merchant":{"risk":0},"channel":"web","device":{"id":"1"}}'


def test_batches_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is committed before the next, so that a long file needs no more memory than a short one."""
    made: list[Engine] = []
    in_flight: list[int] = []

    def watched(*arguments: Any, **named: Any) -> Engine:
        made.append(make_engine(*arguments, **named))
        process = made[0].process

        def counted(records: RecordBatch) -> Result:
            in_flight.append(states().in_flight)
            return process(records)

        monkeypatch.setattr(made[0], "process", counted)
        return made[0]

    def states() -> StateStore:
        return made[0].scorer.states

    monkeypatch.setattr(score_chain, "make_engine", watched)
    monkeypatch.setattr(score, "BATCH_EVENTS", 10)
    data = tmp_path / "x.jsonl"
    data.write_text('{"amount":1}\n' * 35)
    assert run(MODEL, data, "--out", tmp_path / "out") == 0
    assert (in_flight, states().in_flight) == ([0] * 4, 0)


def test_a_file_and_stdin_and_the_engine_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any
) -> None:
    data = rows(300)
    monkeypatch.setattr(score, "BATCH_EVENTS", 64)
    path, out = write_jsonl(tmp_path / "events.jsonl", data), tmp_path / "out"
    assert run(MODEL, path, "--key", "id", "--timestamp", "at", "--out", out) == 0
    sources = [json.loads(line)["source"] for line in out.read_bytes().splitlines()]
    assert sources == [{"file": str(path), "row": i} for i in range(len(data))]
    assert without_source(out.read_bytes()) == without_source(expected(data))
    capfdbinary.readouterr()
    stdin = io.TextIOWrapper(io.BytesIO(path.read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert run(MODEL, "-", "--key", "id", "--timestamp", "at") == 0
    found = capfdbinary.readouterr().out
    assert found.replace(b'"file":"-"', b'"file":"%b"' % str(path).encode()) == out.read_bytes()


@pytest.mark.parametrize("name", ["x.csv", "x.parquet", "X.CSV"])
def test_a_table_without_polars_is_exit_2_and_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, name: str
) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    path, out = tmp_path / name, tmp_path / "out"
    path.write_text("id,amount\na,1\n")
    assert run(MODEL, path, "--out", out) == 2
    assert capfd.readouterr().err == (
        f"lstmstream: {path}: reading CSV or Parquet needs polars; in a clone of lstmstream, run: pip"
        " install '.[tables]',"
        " or convert the file to JSONL\n"
    )
    assert not out.exists()


def test_dead_letters_go_to_their_file(tmp_path: Path, capfd: Any) -> None:
    lines = [WHOLE, b"{", b"\xff", b'{"amount":"x"}', b"", b'{"amount":2}\r', b" "]
    data, out, letters = tmp_path / "in.jsonl", tmp_path / "out", tmp_path / "letters"
    data.write_bytes(b"\n".join(lines))
    assert run(MODEL, data, "--out", out, "--dead-letters", letters) == 0
    assert [json.loads(line)["source"]["row"] for line in out.read_bytes().splitlines()] == [0, 4]
    found = [json.loads(line) for line in letters.read_bytes().splitlines()]
    assert [(one["lstmstream.stage"], one["__streams.errors.offset"]) for one in found] == [
        ("decode", "1"),
        ("decode", "2"),
        ("validate", "3"),
    ]
    assert [one.get("value") for one in found] == ["{", None, '{"amount":"x"}']
    assert found[1]["value_base64"] == "/w=="
    assert found[0]["__streams.errors.topic"] == str(data)
    said = capfd.readouterr().err
    assert said.startswith(f"lstmstream: {data}: 3 of 5 rows are dead letters: ")
    assert said.endswith(f"; they are in {letters}\n")
    assert run(MODEL, data, "--out", out) == 0
    said = capfd.readouterr().err
    assert "row 1" in said
    assert "3 of 5 rows are dead letters" in said


def test_a_missing_file_is_said_before_anything_is_overwritten(tmp_path: Path, capfd: Any) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"precious")
    assert run(MODEL, tmp_path / "no.jsonl", "--out", out) == 2
    assert "no.jsonl: no such file" in capfd.readouterr().err
    assert out.read_bytes() == b"precious"
    assert run(tmp_path / "no.onnx", tmp_path / "no.jsonl") == 2


def test_an_empty_file_gives_nothing(tmp_path: Path) -> None:
    empty, out = tmp_path / "x.jsonl", tmp_path / "out"
    empty.touch()
    assert run(MODEL, empty, "--out", out) == 0
    assert out.read_bytes() == b""


def test_no_output_may_be_a_file_that_is_read_or_the_other_output(tmp_path: Path, capfd: Any) -> None:
    data, model, config = tmp_path / "x.jsonl", tmp_path / "m.onnx", tmp_path / "c.yaml"
    model.write_bytes(Path(MODEL).read_bytes())
    config.write_text(
        "name: t\nmodel: m.onnx\nkafka: {bootstrap_servers: 'localhost:9092'}\n"
        "input: {topic: in}\noutput: {topic: out}\n"
    )
    data.write_text('{"amount":1}\n')
    (tmp_path / "link").symlink_to(data)
    (tmp_path / "hard").hardlink_to(data)
    (tmp_path / "folder").mkdir()
    before = {path: path.read_bytes() for path in (data, model, config)}
    for output in (data, tmp_path / "link", tmp_path / "hard", tmp_path / "folder" / ".." / "x.jsonl", model, config):
        for option in ("--out", "--dead-letters"):
            assert run(config, data, option, output) == 2
            what = {"m.onnx": "the model", "c.yaml": "the config"}.get(output.name, "the data")
            message = f"{option} {output}: is also the file of {what}; name another file"
            assert message in capfd.readouterr().err
            assert {path: path.read_bytes() for path in before} == before
    new = tmp_path / "new"
    assert run(model, data, "--out", new, "--dead-letters", tmp_path / "folder" / ".." / "new") == 2
    assert "is also the file of --out" in capfd.readouterr().err
    assert not new.exists()
    assert run(model, data, "--out", "/dev/null", "--dead-letters", "/dev/null") == 0


def test_standard_input_and_output_are_files_too(tmp_path: Path) -> None:
    data, other = tmp_path / "x.jsonl", tmp_path / "other.jsonl"
    for path in (data, other):
        path.write_text('{"amount":1}\n')
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    for arguments, redirected in (
        (["-", "--out", str(data)], "stdin"),
        ([str(data)], "stdout"),
        ([str(other), "--dead-letters", str(data)], "stdout"),
    ):
        with data.open("rb" if redirected == "stdin" else "ab") as file:
            done = subprocess.run(
                [sys.executable, "-m", "lstmstream", "score", MODEL, *arguments],
                **{**streams, redirected: file},
                stderr=subprocess.PIPE,
                timeout=180,
                check=False,
            )
        assert done.returncode == 2, done.stderr
        assert b"is also the file of" in done.stderr
        assert data.read_text() == '{"amount":1}\n'


def test_a_config_names_key_time_and_fields_and_the_options_come_first(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        f"name: t\nmodel: {MODEL}\nkafka: {{bootstrap_servers: 'localhost:9092'}}\n"
        "input: {topic: in, key: id, timestamp: at, late: score}\nstate: {ttl: 5s}\n"
        "output: {topic: out, alerts_topic: al, include: [note, device.id]}\n"
    )
    path, out = tmp_path / "x.jsonl", tmp_path / "out"
    times = [0, 5_000, 10_001, 9_000, 20_000]
    lines = [
        json.dumps(
            {"id": "a", "who": i % 2, "at": BASE_MS + ms, "amount": i, "note": i, "device": {"id": "x"}}
        ).encode()
        for i, ms in enumerate(times)
    ]
    path.write_bytes(b"\n".join(lines))
    events = [Event(0, i, -1, None, line) for i, line in enumerate(lines)]
    for options, key in (((), "id"), (("--key", "who"), "who")):
        assert run(config, path, "--out", out, *options) == 0
        made = engine(
            "small", alerts=None, key=key, timestamp="at", ttl_ms=5_000, late="score", include=["note", "device.id"]
        )
        answers = [value or b"" for value in made.process(batch(events)).outputs.predictions.values]
        assert without_source(out.read_bytes()) == without_source(b"\n".join(answers))
        steps = [json.loads(line)["steps"] for line in out.read_bytes().splitlines()]
        assert steps == ([1, 2, 1, 1, 1] if key == "id" else [1, 1, 1, 2, 1])


@pytest.mark.parametrize("option", ["--out", "--dead-letters"])
def test_a_full_disk_names_its_file(tmp_path: Path, capfd: Any, option: str) -> None:
    data = tmp_path / "in.jsonl"
    data.write_bytes(b"{\n" * 3 + WHOLE)
    assert run(MODEL, data, option, "/dev/full") == 1
    assert "lstmstream: /dev/full: No space left on device; free space on its disk" in capfd.readouterr().err


@pytest.mark.parametrize("option", ["--out", "--dead-letters"])
def test_a_part_of_the_answers_does_not_look_like_all_of_them(tmp_path: Path, capfd: Any, option: str) -> None:
    data, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    data.write_bytes((WHOLE + b"\n" if option == "--out" else b'{"amount":[]}\n') * 5_000 + WHOLE)
    out.write_bytes(b"of before\n")
    with limited_files(100_000):
        assert run(MODEL, data, option, out) == 1
    said = capfd.readouterr().err
    assert f"lstmstream: {out}.part: File too large; a limit (ulimit -f) or the file system allows no larger" in said
    assert out.read_bytes() == b"of before\n"
    assert run(MODEL, data, option, out) == 0
    assert out.stat().st_size > 100_000
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl"}


def test_the_part_of_an_output_is_not_the_data_either(tmp_path: Path, capfd: Any) -> None:
    data = tmp_path / "out.jsonl.part"
    data.write_bytes(WHOLE)
    assert run(MODEL, data, "--out", tmp_path / "out.jsonl") == 2
    assert "is also the file of the data; name another file" in capfd.readouterr().err
    assert data.read_bytes() == WHOLE


@pytest.mark.parametrize("option", ["--out", "--dead-letters"])
def test_a_folder_that_is_not_there_is_exit_2(tmp_path: Path, capfd: Any, option: str) -> None:
    data, file = tmp_path / "in.jsonl", tmp_path / "none" / "file"
    data.write_bytes(WHOLE)
    assert run(MODEL, data, option, file) == 2
    assert f"{option} {file}: No such file or directory; name another file" in capfd.readouterr().err
