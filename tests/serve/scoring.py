"""The `lstmstream score` command for tests, and events that JSONL, CSV and Parquet can hold."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from lstmstream.cli import main
from tests.serve.helpers import DATA
from tests.serve.reference import Answer, Event, Reference

MODEL = str(DATA / "small.onnx")
BASE_MS = 1_767_609_067_123


def rows(count: int) -> list[dict[str, Any]]:
    """Typed columns that CSV and Parquet can hold too; some cells are empty."""
    return [
        {
            "id": f"00{i % 7}",
            "at": datetime.fromtimestamp((BASE_MS + 1_500 * i) / 1000, UTC).isoformat(timespec="milliseconds"),
            "amount": None if i % 5 == 0 else i / 8,
            "merchant.risk": i * 0.1,
            "channel": [None, "web", "app", "7"][i % 4],
            "device.id": str(i % 3),
            "note": 'a, "b"\n' if i % 2 else "ü",
        }
        for i in range(count)
    ]


def nested(row: dict[str, Any]) -> dict[str, Any]:
    event: dict[str, Any] = {}
    for name, value in row.items():
        if value is not None:
            outer, _, last = name.rpartition(".")
            (event.setdefault(outer, {}) if outer else event)[last] = value
    return event


def write_jsonl(path: Path, data: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(json.dumps(nested(row)).encode() + b"\n" for row in data))
    return path


def expected(data: list[dict[str, Any]]) -> bytes:
    """The predictions of the reference implementation for rows with key `id` and time `at`."""
    reference = Reference(Path(MODEL), key="id", timestamp="at")
    answers = []
    for i, row in enumerate(data):
        answer = reference.answer(Event(0, i, -1, None, json.dumps(nested(row)).encode()))
        assert isinstance(answer, Answer)
        answers.append(answer.value)
    return b"\n".join(answers)


def run(reference: object, *arguments: object) -> int:
    """The exit code of the command; with a model, neither key nor time unless they are named."""
    options = list(map(str, arguments))
    if not str(reference).endswith(".yaml"):
        options += [f"--no-{name}" for name in ("key", "timestamp") if f"--{name}" not in options]
    return run_as_is(reference, *options)


def run_as_is(*arguments: object) -> int:
    """The exit code of the command."""
    command = ["lstmstream", "score", *map(str, arguments)]
    with mock.patch.object(sys, "argv", command), pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def without_source(text: bytes) -> list[bytes]:
    return [
        line[: line.index(b'"source"')] + line[line.index(b"}", line.index(b'"source"')) :]
        for line in text.splitlines()
    ]
