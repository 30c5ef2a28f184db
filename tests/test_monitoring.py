"""Rules, dashboard and runbook: they are valid, agree with each other, and name metrics that exist."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, Metric

from lstmstream.serve.metrics import Metrics
from lstmstream.workers.metrics import MergedMetrics, worker_metrics
from tests.prometheus import (
    CONFIG,
    DASHBOARD,
    HISTOGRAM_ENDS,
    METRIC,
    RECORDED,
    ROOT,
    RULES,
    alerts,
    find_prometheus,
    panels,
    queries,
    rules,
)

RULES_TESTS = [RULES.with_name("rules_test.yml"), RULES.with_name("rules_day_test.yml")]
RUNBOOK = ROOT / "docs" / "runbook.md"
ALERTS = [rule["alert"] for rule in alerts()]


def series(families: Iterable[Metric]) -> Iterator[str]:
    for family in families:
        if family.type == "counter":
            yield f"{family.name}_total"
        elif family.type == "histogram":
            yield from (f"{family.name}{end}" for end in HISTOGRAM_ENDS)
        else:
            yield family.name


def named(text: str) -> set[str]:
    return set(METRIC.findall(text))


# -- rules -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [("check", "config", CONFIG), ("check", "rules", RULES), ("test", "rules", *RULES_TESTS)],
    ids=["config", "rules", "tests of the rules"],
)
def test_promtool_accepts(arguments: tuple[str | Path, ...]) -> None:
    done = subprocess.run(
        [find_prometheus("promtool"), *map(str, arguments)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("rule", alerts(), ids=ALERTS)
def test_an_alert_says_what_how_bad_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    file, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert ROOT / file == RUNBOOK
    assert anchor == rule["alert"].lower()


def test_the_runbook_has_an_entry_for_each_alert_and_for_no_other() -> None:
    entries = re.findall(r"^## (\w+)$", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE)
    assert entries == sorted(set(entries), key=entries.index)
    assert set(entries) == set(ALERTS)


def test_each_alert_is_seen_to_fire_and_not_to_fire_in_the_tests_of_promtool() -> None:
    tests = [test for path in RULES_TESTS for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]]
    cases = [case for test in tests for case in test.get("alert_rule_test", [])]
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == set(ALERTS)
    early = {rule["alert"] for rule in alerts() if "for" in rule}
    assert early <= {case["alertname"] for case in cases if not case.get("exp_alerts")}


def test_each_alert_is_made_to_fire_by_a_fault_in_the_long_tests() -> None:
    text = (ROOT / "tests" / "faults" / "test_alerts.py").read_text(encoding="utf-8")
    assert set(ALERTS) == set(re.findall(r"\bLstmstream[A-Z]\w+", text))


# -- the dashboard -----------------------------------------------------------------------------------------------------


def test_the_dashboard_is_about_all_that_is_promised() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    rows = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    assert rows == ["Health", "Flow", "Latency", "Lag", "State", "Model", "Errors"]
    assert dashboard["uid"] == "lstmstream"
    assert {"job", "instance", "topic"} <= {variable["name"] for variable in dashboard["templating"]["list"]}


def test_panels_have_their_own_number_place_and_explanation() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]


def test_every_query_is_about_the_chosen_job() -> None:
    for panel in panels():
        for target in panel["targets"]:
            selectors = re.findall(r"\w+\{([^}]*)\}", target["expr"])
            assert selectors, panel["title"]
            assert all(re.search(r'job=~?"\$job', selector) for selector in selectors), panel["title"]


def test_the_dashboard_shows_every_metric_of_a_daemon() -> None:
    asked = named(json.dumps(json.loads(DASHBOARD.read_text(encoding="utf-8"))))
    shown = {re.sub(rf"({'|'.join(HISTOGRAM_ENDS)})$", "", name) for name in asked}
    families = [f for f in Metrics(CollectorRegistry()).registry.collect() if f.name.startswith("lstmstream_")]
    assert {f"{f.name}_total" if f.type == "counter" else f.name for f in families} <= shown


def test_the_dashboard_shows_the_time_per_event_and_stage() -> None:
    (panel,) = [panel for panel in panels() if "stage" in panel["title"]]
    (query,) = queries(panel)
    assert query.startswith("sum by (stage) (rate(lstmstream_stage_seconds_sum{")
    assert "rate(lstmstream_events_total{" in query
    assert panel["targets"][0]["legendFormat"] == "{{stage}}"
    assert panel["fieldConfig"]["defaults"]["unit"] == "s"


# -- names -------------------------------------------------------------------------------------------------------------

FILES = sorted(path for path in (ROOT / "deploy").rglob("*") if path.suffix in {".yml", ".yaml", ".json", ".tpl"})


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "deploy")))
def test_every_metric_that_a_file_names_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    exported = {*series(Metrics(CollectorRegistry()).registry.collect()), *series(worker_metrics((), MergedMetrics()))}
    assert named(text) <= exported
    assert set(RECORDED.findall(text)) <= {rule["record"] for rule in rules() if "record" in rule}
