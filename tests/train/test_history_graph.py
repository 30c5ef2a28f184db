"""The graph of `builtin:history` beside its formulas written once more, event by event, in float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import orjson
import pytest
import yaml

from lstmstream.errors import CannotServe
from lstmstream.model import load_model
from lstmstream.serve.score import score_file
from lstmstream.train.history_graph import STATISTICS, WINDOWS_S, history_model

T0_S = 1_700_000_000
REPORT = {"kind": "report"}


def expected(events: list[tuple[float, float | None]]) -> list[list[float]]:
    """The statistics before each event of one key; an event is its time in seconds and its value."""
    rows = []
    values: list[tuple[float, float]] = []
    run, began = 0, 0.0
    for at, value in events:
        shares = [[(math.exp((then - at) / window), v) for then, v in values] for window in WINDOWS_S.values()]
        counts = [sum(share for share, _ in one) for one in shares]
        means = [sum(s * v for s, v in one) / n if n > 1e-6 else 0.0 for one, n in zip(shares, counts, strict=True)]
        rows.append([*counts, *means, run, at - began if run else 0.0])
        if value is not None:
            values.append((at, value))
            began = at if value and not run else began
            run = run + 1 if value else 0
    return rows


def some_events(seed: int) -> list[tuple[float, float | None]]:
    random = np.random.default_rng(seed)
    times = T0_S + np.cumsum(np.round(random.exponential(40_000, 200)))
    values = [None if random.random() < 0.3 else float(random.choice([0, 1, 1, 2.5])) for _ in times]
    return list(zip(times.tolist(), values, strict=True))


def scored(folder: Path, config: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    data, out = folder / "data.jsonl", folder / "out.jsonl"
    data.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    assert score_file(config, str(data), out=str(out), key="k", timestamp="t", dead_letters=None) == 0
    return [orjson.loads(line) for line in out.read_bytes().splitlines()]


def test_statistics_of_two_fields_are_those_of_the_formulas(tmp_path: Path) -> None:
    keys = {f"k{seed}": (some_events(seed), some_events(seed + 50)) for seed in range(5)}
    rows = []
    for key, (first, second) in keys.items():
        for (at, a), (_, b) in zip(first, second, strict=True):
            rows.append((at, {"k": key, "t": at, "a": a, "b": b}))
    rows.sort(key=lambda row: row[0])
    found = scored(tmp_path, "builtin:history:a,b", [row for _, row in rows])
    for key, (first, second) in keys.items():
        times = [at for at, _ in first]
        wanted = np.hstack([expected(first), expected([(at, b) for at, (_, b) in zip(times, second, strict=True)])])
        got = np.array([one["prediction"] for one in found if one["key"] == key])
        np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-4)
        assert [one["score"] for one in found if one["key"] == key] == np.maximum(got[:, 7], got[:, 17]).tolist()
    assert not any(one["alert"] for one in found)


def test_a_long_silence_leaves_nothing_and_nothing_overflows(tmp_path: Path) -> None:
    year_s = 366 * 86_400
    rows = [{"k": "k", "t": T0_S, "a": 3e38}, {"k": "k", "t": T0_S + 1, "a": -3e38}, {"k": "k", "t": T0_S + 3 * year_s}]
    *_, last = scored(tmp_path, "builtin:history:a", [*rows, {"k": "k", "t": T0_S + 3 * year_s + 1, "a": 1}])
    np.testing.assert_allclose(last["prediction"][:8], 0.0, atol=1e-9)
    assert last["prediction"][8] == 2.0


def test_the_shipped_file_is_what_the_code_makes() -> None:
    content, card = history_model()
    shipped = load_model("builtin:history:value")
    assert shipped.card.prediction_names == tuple(f"value.{name}" for name in STATISTICS)
    assert shipped.card.state.size == card.state.size
    made, there = (onnx.load_model_from_string(one).graph for one in (content, shipped.content))
    assert made.node == there.node
    assert made.initializer == there.initializer


def test_a_stage_adds_statistics_by_name(tmp_path: Path) -> None:
    """Feedback events of a terminal, and purchases there: the share of frauds that is known by then."""
    config = {
        "name": "terminals",
        "model": "builtin:history:fraud",
        "kafka": {"bootstrap_servers": "a:1"},
        "input": {"topic": "in", "silent": {"field": "kind", "equals": "report"}},
        "output": {
            "topic": "out",
            "events": {"topic": "next", "add": {"risk": "prediction[fraud.mean_30d]", "run": "prediction[fraud.run]"}},
        },
    }
    path, events = tmp_path / "c.yaml", tmp_path / "events.jsonl"
    path.write_text(yaml.safe_dump(config))
    rows = [{"k": "t", "t": T0_S, "amount": 5}]
    rows += [{"k": "t", "t": T0_S + 60 * n, **REPORT, "fraud": int(n != 2)} for n in (1, 2, 3, 4)]
    rows += [{"k": "t", "t": T0_S + 300, "amount": 7.5}]
    data = tmp_path / "data.jsonl"
    data.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    options: dict[str, Any] = {"out": str(tmp_path / "o"), "key": "k", "timestamp": "t", "dead_letters": None}
    assert score_file(str(path), str(data), events=events, **options) == 0
    first, second = map(orjson.loads, events.read_bytes().splitlines())
    assert (first["risk"], first["run"]) == (0.0, 0.0)
    assert second["risk"] == pytest.approx(0.75, abs=1e-3)
    assert (second["run"], second["amount"]) == (2.0, 7.5)

    config["output"]["events"]["add"]["risk"] = "prediction[fraud.mean_2d]"  # type: ignore[index]
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(
        CannotServe, match=r"add\.risk: is prediction\[fraud\.mean_2d\].*names are fraud\.count_1h, fraud"
    ):
        score_file(str(path), str(data), **options)
