"""Log lines: one event, one line, whatever text is in it, and never the reason the daemon dies."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstmstream import logs

FAKE = "a\r\nlevel=ERROR fake"
HOSTILE = [
    FAKE,
    "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "one\u2028two\u2029three\x85four",
    "\ud800 alone",
    "\x00\x7f\x9b",
    "right\u202eleft",
    '"}\n{"level": "error',
]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root, kafka = logging.getLogger(), logging.getLogger("kafka")
    before = (root.level, list(root.handlers), kafka.level)
    yield
    logging.captureWarnings(capture=False)
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    kafka.setLevel(before[2])


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no")


def fail(text: str) -> None:
    raise ValueError(text)


def events(stream: io.StringIO) -> list[dict[str, Any]]:
    text = stream.getvalue()
    assert text.isascii()
    assert text.endswith("\n")
    assert len(text.splitlines()) == text.count("\n")  # splitlines knows every line separator there is
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_one_json_line(text: str) -> None:
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    try:
        fail(text)
    except ValueError:
        logging.getLogger(text).exception("got %s", text, extra={text: text, "topic": text, "level": text, "n": 3})
    (event,) = events(stream)
    shown = text.encode("utf-8", "backslashreplace").decode()
    assert event["level"] == "error"
    assert event["message"] == f"got {shown}"
    assert event["topic"] == event["extra_level"] == event[shown] == shown
    assert event["n"] == 3
    assert event["exception"].startswith("Traceback")
    assert event["exception"].endswith(f"ValueError: {shown}")
    assert event["ts"].endswith("Z")
    assert len(event["ts"]) == len("2026-01-05T10:31:07.123Z")
    json.dumps(event, ensure_ascii=False).encode()  # valid UTF-8 all through


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_one_console_line(text: str) -> None:
    stream = io.StringIO()
    logs.configure("info", "console", stream)
    try:
        fail(text)
    except ValueError:
        logging.getLogger(text).exception("got %s", text, extra={text: text, "topic": text})
    first, *rest = stream.getvalue().splitlines()
    assert " ERROR " in first
    assert rest
    for line in (first, *rest):
        assert line.isprintable()
    assert all(line.startswith("    | ") for line in rest)


@given(st.text(), st.binary(), st.sampled_from(["json", "console"]))
def test_any_text_is_one_line(text: str, blob: bytes, form: logs.Format) -> None:
    stream = io.StringIO()
    logs.configure("info", form, stream)
    logging.getLogger("x").info("%s %s", text, blob, extra={"key": text, "blob": blob})
    (line,) = stream.getvalue().splitlines()
    assert line.isprintable()
    if form == "json":
        json.loads(line)


def test_long_text_is_cut() -> None:
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    try:
        fail("x" * 10_000_000 + "the end")
    except ValueError:
        logging.getLogger("x").exception("y" * 10_000_000, extra={"z": "z" * 10_000_000})
    (event,) = events(stream)
    assert len(stream.getvalue()) < 40_000
    assert event["exception"].endswith("the end")


def test_what_cannot_be_printed_is_no_reason_to_stop() -> None:
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    root = logging.getLogger()
    root.handlers[:] = [handler for handler in root.handlers if isinstance(handler, logs._Handler)]  # pytest's fails
    log = logging.getLogger("x")
    log.info("%s", Unprintable(), extra={"field": Unprintable()})
    log.info("%d", "no number")
    log.info("numbers", extra={"nan": float("nan"), "big": 10**5000, "none": None, "yes": True, "count": np.int64(3)})
    assert len(events(stream)) == 3
    assert events(stream)[2]["none"] is None
    assert events(stream)[2]["nan"] == "nan"
    assert events(stream)[2]["big"] == "<int that cannot be printed>"
    assert events(stream)[2]["yes"] is True
    assert events(stream)[2]["count"] == 3


def test_warnings_become_events() -> None:
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=False)
        logging.captureWarnings(capture=True)
        warnings.warn(FAKE, stacklevel=1)
    (event,) = events(stream)
    assert event["logger"] == "py.warnings"


@pytest.mark.parametrize(
    ("level", "heard"),
    [
        ("debug", ["info", "warning", "error", "critical"]),
        ("info", ["critical"]),
        ("warning", ["critical"]),
        ("error", ["critical"]),
    ],
)
def test_kafka_is_quiet_and_never_tells_keys_and_values(level: logs.Level, heard: list[str]) -> None:
    """The library prints records at DEBUG, even where one of its loggers has been opened up by itself."""
    stream = io.StringIO()
    logs.configure(level, "json", stream)
    for name in ("debug", "info", "warning", "error", "critical"):
        getattr(logging.getLogger("kafka.producer"), name)("canary")
    opened = logging.getLogger("kafka.conn")
    opened.setLevel(logging.DEBUG)
    opened.debug("canary")
    opened.setLevel(logging.NOTSET)
    assert [event["level"] for event in events(stream)] == heard


@pytest.mark.parametrize("form", ["json", "console"])
def test_fields_of_the_process_are_in_every_line(form: logs.Format) -> None:
    stream = io.StringIO()
    logs.configure("info", form, stream, fields={"worker": 3})
    logging.getLogger("a").info("one", extra={"other": 1})
    logging.getLogger("kafka").critical("two")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    if form == "json":
        assert [json.loads(line)["worker"] for line in lines] == [3, 3]
        assert json.loads(lines[0])["other"] == 1
    else:
        assert all("worker=3" in line for line in lines)


def test_configuring_again_replaces() -> None:
    first, second = io.StringIO(), io.StringIO()
    logs.configure("info", "json", first)
    logs.configure("error", "console", second)
    logging.getLogger("x").info("one")
    logging.getLogger("x").error("two")
    assert first.getvalue() == ""
    assert second.getvalue().count("\n") == 1


def test_a_closed_stream_stops_nothing() -> None:
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    stream.close()
    logging.getLogger("x").info("lost")
    logs.configure("info", "json", io.StringIO())


@pytest.mark.parametrize("how", ["pipe", "full", "closed"])
def test_a_dead_standard_error_neither_stops_the_process_nor_changes_its_exit_code(how: str) -> None:
    program = (
        "import logging, os, sys, time\n"
        "from lstmstream import logs\n"
        "logs.configure('info', 'json')\n"
        "for _ in range(100): logging.getLogger('x').info('y' * 1000)\n"
        "print('done')\n"
    )
    command = {
        "pipe": '{ exec "$0" -c "$1" 2>&3 3>&-; } 3> >(exec true)',
        "full": 'exec "$0" -c "$1" 2>/dev/full',
        "closed": 'exec "$0" -c "$1" 2>&-',
    }[how]
    if how == "pipe":
        program = program.replace("logs.configure", "time.sleep(0.5); logs.configure")
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, program], stdout=subprocess.PIPE, timeout=180, check=False
    )
    assert done.stdout == b"done\n"
    assert done.returncode == 0


def test_safe_escapes_and_cuts() -> None:
    assert logs.escape_untrusted(FAKE) == "a\\r\\nlevel=ERROR fake"
    assert logs.escape_untrusted("x" * 1000).startswith("x" * 200 + "…")
    assert logs.escape_untrusted("\x00" * 1000, 20).startswith("\\x00" * 5 + "…")
    assert logs.escape_untrusted(b"\xff\n") == "\\xff\\n"
    assert logs.escape_untrusted("grün") == "grün"
    assert logs.escape_untrusted(Unprintable()) == "<Unprintable that cannot be printed>"


@given(st.text() | st.binary(), st.integers(0, 50))
def test_safe_is_printable_and_bounded(text: str | bytes, limit: int) -> None:
    shown = logs.escape_untrusted(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit + 30


def test_lists_and_objects_are_json_not_text() -> None:
    record = logging.makeLogRecord(
        {"name": "n", "msg": "x", "partitions": [0, 1], "stages": {"decode": 2}, "many": [0] * 2000}
    )
    event = json.loads(logs.JsonFormatter().format(record))
    assert (event["partitions"], event["stages"]) == ([0, 1], {"decode": 2})
    assert isinstance(event["many"], str)
    hostile = logging.makeLogRecord({"name": "n", "msg": "x", "names": ["a\r\nb", "\ud800"]})
    line = logs.JsonFormatter().format(hostile)
    assert "\n" not in line
    assert json.loads(line)["names"] == ["a\r\nb", "\\ud800"]


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_status_stays_below_the_lines_of_a_terminal_with_the_format_for_people(form: logs.Format) -> None:
    leader, follower = os.openpty()
    with os.fdopen(leader, "rb", buffering=0) as screen, os.fdopen(follower, "w", encoding="utf-8") as terminal:
        logs.configure("info", form, terminal)
        logs.show_status("half")
        logging.getLogger("x").info("a line")
        logs.show_status("done")
        logs.show_status("")
        logging.getLogger("x").info("the end")
        written = b""
        while b"the end" not in written or not written.endswith(b"\n"):  # a read may give a part
            written += screen.read(10_000)
    shown = written.decode().replace("\r\n", "\n")
    clear = "\r\x1b[K"
    if form == "json":
        assert clear not in shown
        assert len(shown.splitlines()) == 2
        return
    first, rest = shown.split("\n", 1)
    assert first.startswith(f"{clear}half{clear}")
    assert first.endswith("x a line")
    assert rest.startswith(f"half{clear}done{clear}")
    assert rest.endswith("x the end\n")


def test_a_status_is_for_terminals_only() -> None:
    stream = io.StringIO()
    logs.configure("info", "console", stream)
    logs.show_status("half")
    assert stream.getvalue() == ""
    stream.close()
    logs.configure("info", "console", stream)  # of a process whose standard error is closed
    logs.show_status("half")
