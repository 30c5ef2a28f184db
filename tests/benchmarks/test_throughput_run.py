"""All of `make bench` on a small scale, with its own broker: one variant of the daemon, and a peer that fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks.throughput import __main__ as bench
from benchmarks.throughput import answers, apps, latency
from benchmarks.throughput.apps import App, Job
from benchmarks.throughput.environments import BuildFailed
from benchmarks.throughput.options import parse_options
from lstmstream.dev.broker import DevBroker


def unbuildable(_: Job) -> list[str]:
    raise BuildFailed("no network")


def short_lived(_: Job) -> list[str]:
    return ["sh", "-c", "echo out of luck; exit 3"]


def choose(*extra: App) -> list[App]:
    made = apps.make_apps(apps.Abilities("lstmstream", workers=False, compiled_codec=False), Path())
    return [*apps.choose_apps(made, "lstmstream-exactly-once-kafka-python"), *extra]


@pytest.fixture
def brokers(monkeypatch: pytest.MonkeyPatch) -> list[DevBroker]:
    """Those that a run has started."""
    started: list[DevBroker] = []

    def start(home: Path) -> DevBroker:
        started.append(DevBroker(home))
        return started[-1]

    monkeypatch.setattr(bench, "DevBroker", start)
    return started


def test_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brokers: list[DevBroker], capsys: Any) -> None:
    for module, name, value in (
        (bench, "SHARES_OF_PEAK", (0.01,)),
        (bench, "QUICK_IDLE_S", 1.0),
        (bench, "QUICK_LATENCY_S", 2.0),
        (latency, "SETTLE_S", 0.5),
        (latency, "TAIL_S", 1.0),
    ):
        monkeypatch.setattr(module, name, value)
    arguments = ["--quick", "--events", "150000", "--hidden", "8", "--partitions", "2", "--latency", "200", "--idle"]
    options = parse_options("", [*arguments, "--out", str(tmp_path / "out")])
    failing = [
        App("unbuildable", "Unbuildable", "none", "memory", unbuildable),
        App("short-lived", "Short-lived", "none", "memory", short_lived),
    ]
    daemon = choose()[0]
    assert bench.run(options, choose(*failing), "lstmstream test") == 0
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    [found] = result["throughput"]
    assert (found["app"], found["check"]["problems"], found["check"]["duplicates"]) == (daemon.name, [], 0)
    assert found["check"]["compared"] > 1000
    assert 0.9 < found["check"]["records_per_offset"] < 1  # transactions leave markers
    assert found["events_per_s"] > 0
    assert found["peak_rss_mib"] > 20
    assert [row["wanted_events_per_s"] for row in result["latency"]] == [200, round(0.01 * found["events_per_s"])]
    for row in result["latency"]:
        assert 0 < row["latency_ms"]["p50"] <= row["latency_ms"]["p99.9"] <= row["latency_ms"]["max"]
    assert [row["app"] for row in result["idle"]] == [daemon.name]
    assert result["not_measured"] == [
        "round 1, unbuildable: cannot be built: no network",
        "round 1, short-lived: ended with code 3: out of luck",
    ]
    text = (tmp_path / "out" / "results.md").read_text()
    assert text in capsys.readouterr().out
    assert "| Unbuildable | none | memory | not measured: cannot be built: no network |" in text
    assert ET.parse(tmp_path / "out" / "throughput.svg").getroot().tag.endswith("svg")
    assert [broker.status().running for broker in brokers] == [False]


def test_wrong_answers_are_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brokers: list[DevBroker], capsys: Any
) -> None:
    monkeypatch.setattr(answers, "TOLERANCE", -1.0)
    options = parse_options("", ["--quick", "--events", "150000", "--hidden", "8", "--out", str(tmp_path)])
    assert bench.run(options, choose(), "lstmstream test") == 1
    assert "## Problems" in capsys.readouterr().out
    assert [broker.status().running for broker in brokers] == [False]
