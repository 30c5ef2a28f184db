"""`lstmstream dev reports`: labels come when they are known, in order, and no stage sees one before."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from lstmstream.cli import app
from lstmstream.dev.reports import Reports, write_reports
from lstmstream.errors import CannotServe

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY_MS = 86_400_000
WANTED = Reports("terminal", "time", "fraud", "reported", 7 * DAY_MS)


def event(number: int, day: float, fraud: int | None, terminal: str = "a") -> dict[str, Any]:
    time = (START + timedelta(days=day)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    label = {} if fraud is None else {"fraud": fraud}
    return {"id": number, "time": time, "terminal": terminal, "customer": "c", "amount": 5.0, **label}


def jsonl(folder: Path, events: list[dict[str, Any]]) -> Path:
    path = folder / "history.jsonl"
    path.write_bytes(b"".join(orjson.dumps(one) + b"\n" for one in events))
    return path


def stream(history: Path, reports: Reports = WANTED) -> list[dict[str, Any]]:
    out = io.BytesIO()
    counted = write_reports(history, reports, out)
    lines = [orjson.loads(line) for line in out.getvalue().splitlines()]
    is_report = [line.get("kind") == "report" for line in lines]
    assert counted == (is_report.count(False), is_report.count(True))
    return lines


def test_a_report_comes_before_an_event_of_the_moment_its_label_is_known_and_not_after_the_last(tmp_path: Path) -> None:
    events = [event(1, 0, 1), event(2, 1, None, "b"), event(3, 6.999, 0), event(4, 7, 0, "b"), event(5, 8.5, None)]
    lines = stream(jsonl(tmp_path, events))
    assert [line.get("id", line.get("reported")) for line in lines] == [1, 2, 3, 1, 4, 5]
    assert lines[3] == {"kind": "report", "terminal": "a", "time": "2026-01-08T00:00:00Z", "reported": 1}
    assert [line for line in lines if "id" in line] == events


def test_a_table_gives_the_same_stream(tmp_path: Path) -> None:
    events = [event(number, number / 2, number % 3 == 0, f"t{number % 4}") for number in range(60)]
    table = tmp_path / "history.parquet"
    pl.DataFrame(events).with_columns(pl.col("time").str.to_datetime(time_zone="UTC")).write_parquet(table)
    seen = [{name: value for name, value in line.items() if name != "time"} for line in stream(jsonl(tmp_path, events))]
    assert [{name: value for name, value in line.items() if name != "time"} for line in stream(table)] == seen
    assert sum("reported" in line for line in seen) == 46  # of days 0 to 22.5; the last event is of day 29.5


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([event(1, 1, 0), event(2, 0, 0)], "row 1: 2026-01-01T00:00:00Z is before the row above it"),
        ([event(1, 1, 0) | {"time": "soon"}], "--timestamp"),
        ([event(1, 1, 0) | {"terminal": None}], "--key"),
        ([event(1, 1, 0) | {"reported": 1}], "another name with --field"),
        ([event(1, 1, 0) | {"kind": "card"}], "has a field 'kind', which only reports may have; rename it"),
    ],
)
def test_a_history_that_would_give_a_wrong_stream_is_refused(
    tmp_path: Path, events: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(CannotServe, match=said):
        stream(jsonl(tmp_path, events))


def test_the_label_in_a_report_cannot_have_the_name_of_the_label_in_events() -> None:
    with pytest.raises(CannotServe, match="before they are known"):
        Reports("terminal", "time", "fraud", "fraud", DAY_MS)


def test_what_the_first_stage_adds_is_made_of_labels_that_were_known(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    events = [
        event(number, number / 10, int(random.random() < 0.3), str(random.choice(["a", "b", "c"])))
        for number in range(400)
    ]
    source, settings = tmp_path / "stream.jsonl", tmp_path / "fraud.yaml"
    enriched, out = tmp_path / "enriched.jsonl", tmp_path / "out.jsonl"
    add = {"risk": "prediction[reported.mean_30d]", "run": "prediction[reported.run]"}
    stage = {
        "name": "terminal",
        "model": "builtin:history:reported",
        "input": {"topic": "t", "key": "terminal", "timestamp": "time"}
        | {"silent": {"field": "kind", "equals": "report"}},
        "output": {"topic": "p", "events": {"topic": "by-customer", "key": "customer", "add": add}},
    }
    tree = {"name": "fraud", "kafka": {"bootstrap_servers": "127.0.0.1:9092"}, **stage}
    settings.write_text(yaml.safe_dump(tree), encoding="utf-8")
    command = ["dev", "reports", str(jsonl(tmp_path, events)), "--label", "fraud", "--delay", "7d"]
    command += ["--key", "terminal", "--timestamp", "time", "--out", str(source)]
    for words in (
        command,
        ["score", str(settings), str(source), "--events", str(enriched), "--out", str(out)],
    ):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
    made = [orjson.loads(line) for line in enriched.read_bytes().splitlines()]
    assert [one["id"] for one in made] == list(range(400))
    for number, one in enumerate(made):
        known = [
            (e["fraud"], number / 10 - at / 10)
            for at, e in enumerate(events[: max(0, number - 69)])
            if e["terminal"] == one["terminal"]
        ]
        run = 0
        for fraud, _ in known:
            run = run + 1 if fraud else 0
        weights = np.exp([-(age - 7) / 30 for _, age in known])
        risk = float(weights @ [fraud for fraud, _ in known] / weights.sum()) if known else 0.0
        assert (one["run"], one["fraud"]) == (run, events[number]["fraud"])
        assert one["risk"] == pytest.approx(risk, abs=1e-5)


def test_the_history_is_not_overwritten(tmp_path: Path) -> None:
    history = jsonl(tmp_path, [event(1, 0, 1)])
    before = history.read_bytes()
    words = ["dev", "reports", str(history), "--label", "fraud", "--delay", "7d", "--key", "terminal"]
    done = CliRunner().invoke(app, [*words, "--timestamp", "time", "--out", str(history)])
    assert (done.exit_code, isinstance(done.exception, CannotServe)) == (1, True)
    assert history.read_bytes() == before
