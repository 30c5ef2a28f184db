"""The report as a file: it is complete, loads nothing from the network, and has the numbers it was given."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmstream.evaluation.descriptions import format_number
from lstmstream.evaluation.metrics import Evaluated, compute_metrics
from lstmstream.formats.timestamps import format_iso
from lstmstream.train.progress import summary_lines
from lstmstream.train.report import plots
from lstmstream.train.report.alerts import candidate_thresholds, threshold_section
from lstmstream.train.report.render import plots_of, render, write_report
from lstmstream.train.report.report import Report
from lstmstream.train.report.summary import split_facts, summarize
from tests.evaluated import DAY, evaluated
from tests.train.sample_reports import MAKERS, report

VOID = {"meta", "br", "link", "img", "input", "hr"}
EVIL = "</script><b>&\"'<!-- http://evil.example/x.js -->"


class Page(HTMLParser):
    """Elements with their attributes, and their text; the nesting must be right."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []  # outside of scripts and styles
        self.raw: list[tuple[str, str]] = []  # of scripts and styles
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in {"script", "style"}:
            self.raw.append((self.open[-1], data))
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def data(self) -> Any:
        return json.loads(next(text for kind, text in self.raw if text.startswith("[{") or text == "[]"))


@cache
def sample(task: str) -> Report:
    return report(task)


@pytest.mark.parametrize("task", sorted(MAKERS))
def test_nothing_comes_from_elsewhere(task: str) -> None:
    page = Page(render(sample(task)))
    for tag, attributes in page.elements:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "form"}
        assert not {"src", "srcset", "action", "style"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("href", "#").startswith("#")
    for kind, text in page.raw:
        addresses = set(re.findall(r"https?://[^\s\"')]+", text))
        assert addresses <= {"https://github.com/leeoniya/uPlot"}  # its banner, a comment
        if kind == "style":
            assert "url(" not in text
            assert "@import" not in text
        else:
            assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|import)\s*\(", text)


@pytest.mark.parametrize("task", ["binary", "forecast"])
def test_the_policy_allows_what_is_there_and_nothing_else(task: str) -> None:
    page = Page(render(sample(task)))
    policies = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    policy = policies[0]
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    for kind, text in page.raw:
        if text.startswith("[{"):  # data, which no browser runs
            continue
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        allowed = re.search(rf"{kind}-src ([^;]*)", policy)
        assert allowed is not None
        assert f"'sha256-{digest}'" in allowed.group(1)
    assert len(page.raw) == 2 + 3
    assert "Permission is hereby granted, free of charge" in page.text


def test_names_are_escaped_wherever_they_stand() -> None:
    whole = sample("classes")
    names = (EVIL, *whole.validation.names[1:])
    field = replace(whole.summary.fields[0], name=EVIL, kind="category", top=((EVIL, 0.5),), distinct=2)
    evil = replace(
        whole,
        name=EVIL,
        version=EVIL,
        config=EVIL,
        cell=EVIL,
        keys=[EVIL] * len(whole.keys),
        warnings=[EVIL],
        threshold_rule=EVIL,
        threshold=0.5,
        facts={EVIL: EVIL},
        validation=replace(whole.validation, names=names),
        test=replace(whole.evaluated, names=names),
        metrics={"test": {f"recall[{EVIL}]": {"value": 0.5, "low": 0.4, "high": 0.6}}},
        baselines={EVIL: whole.baselines["logistic regression"]},
        comparison=replace(whole.comparison, text=EVIL, answer=EVIL),
        summary=replace(whole.summary, fields=(field,)),
        splits=[replace(whole.splits[0], name=EVIL)],
    )
    before, page = Page(render(replace(whole, warnings=["one"]))), Page(render(evil))
    assert {tag for tag, _ in page.elements} < {tag for tag, _ in before.elements}
    assert "b" not in {tag for tag, _ in page.elements}  # only tiles have one, and none is left of these metrics
    assert sum(tag == "script" for tag, _ in page.elements) == 3
    assert page.text.count(EVIL) >= 14
    forecast = sample("forecast")
    evil = replace(forecast, keys=[EVIL] * len(forecast.keys), cell=EVIL)
    assert EVIL in Page(render(evil)).data()[0]["choice"]
    assert Page(render(evil)).text.count(EVIL) > 12  # every choice of the selector


@pytest.mark.parametrize("task", sorted(MAKERS))
def test_the_numbers_are_the_metrics(task: str) -> None:
    whole = sample(task)
    page = Page(render(whole))
    for one in whole.metrics["test"].values():
        assert format_number(one["value"]) in page.text
        if np.isfinite(one["low"]):
            assert f"{format_number(one['low'])} to {format_number(one['high'])}" in page.text
    assert whole.comparison.text in page.text
    assert f"{whole.summary.rows:,} events of 60 keys" in page.text
    for judged_baseline in whole.baselines.values():
        for name, value in compute_metrics(judged_baseline).items():
            if name in whole.metrics["test"] and not name.startswith("score_"):
                assert format_number(value) in page.text


def test_the_report_says_what_a_baseline_learned_from() -> None:
    note = "The logistic regression learned from 1,000 of 20,000 events."
    assert note in Page(render(replace(sample("binary"), baseline_notes=[note]))).text


def test_the_best_baseline_is_drawn_beside_the_model() -> None:
    whole = sample("anomaly")
    for name in ("last value", "EWMA deviation", "nearest centroid"):
        chosen = replace(whole, comparison=replace(whole.comparison, baseline=name))
        (curve,) = [plot for plot in Page(render(chosen)).data() if plot["id"] == "pr"]
        assert name in str(curve)


def test_sections_by_task() -> None:
    ids = {task: [plot["id"] for plot in Page(render(sample(task))).data()] for task in MAKERS}
    assert set(ids["binary"]) == {"scores", "pr", "roc", "alerts", "calibration", "loss", "metric"}
    assert set(ids["classes"]) == {"calibration", "loss"}
    assert set(ids["forecast"]) == {"forecast", "horizon", "loss"}
    assert set(ids["anomaly"]) == {"time", "forecast", "scores", "pr", "roc", "alerts", "loss"}
    assert set(ids["unlabelled"]) == {"time", "forecast", "scores", "loss"}
    for task in MAKERS:
        page = Page(render(sample(task)))
        figures = {a["data-plot"] for tag, a in page.elements if tag == "figure"}
        assert figures == set(ids[task])
        assert ("threshold" in [a.get("id") for _, a in page.elements]) == (task in {"binary", "anomaly", "unlabelled"})
    assert "Confusion matrix" in Page(render(sample("classes"))).text


def test_the_comparison_comes_first() -> None:
    whole = sample("binary")
    text = Page(render(whole)).text
    assert text.index("Is the LSTM worth it? Yes.") < text.index("Warnings") < text.index("Results")
    no = replace(whole, comparison=replace(whole.comparison, better=False, answer="No"))
    assert 'class="card comparison no"' in render(no)


def test_without_a_test_split_and_without_training() -> None:
    whole = sample("binary")
    small = replace(whole, test=None, history=[], chosen_epoch=0, warnings=[], facts={}, baselines={})
    page = Page(render(small))
    assert "On the validation split" in page.text
    assert "There is no test split" in page.text
    assert [a.get("id") for tag, a in page.elements if tag == "section"] == [
        "results", "plots", "threshold", "events", "data", "config",
    ]  # fmt: skip


def test_the_threshold_table_holds_the_chosen_one() -> None:
    whole = sample("binary")
    assert whole.threshold is not None
    page = render(whole)
    row = re.search(
        r'<tr class="chosen"><td>([^<]*) \(chosen(?:, best F1)?\)</td><td>(\d+)</td><td>([^<]*)</td><td>([^<]*)</td>'
        r"<td>([^<]*)</td>",
        page,
    )
    assert row is not None
    values = compute_metrics(whole.evaluated, whole.threshold)
    assert row.group(1) == format_number(whole.threshold)
    assert int(row.group(2)) == round(values["alert_share"] * len(whole.evaluated))
    assert row.group(3) == format_number(values["alerts_per_day"])
    low, high = (float(end.replace(",", "")) for end in row.group(4).split(" to "))
    assert low < values["alerts_per_day"] < high
    assert row.group(5) == format_number(values["precision"])
    assert whole.threshold_rule in Page(page).text


def test_the_part_of_the_stream_and_labels_of_keys_are_explained() -> None:
    whole = sample("binary")
    for text in ("of the stream in its time", "recall is the fraction of positive keys", "the last events of"):
        assert text not in Page(render(whole)).text
    last = whole.evaluated.sequence != np.append(whole.evaluated.sequence[1:], -1)
    test = replace(whole.evaluated, per="sequence", stream_share=0.25, label=np.where(last, whole.evaluated.label, -1))
    text = Page(render(replace(whole, test=test))).text
    assert "That split is 25.0% of the stream in its time; alerts per day are those of the whole stream." in text
    assert "recall is the fraction of positive keys with an alert at any event" in text
    assert f"the other metrics the last events of {last.sum()} keys" in text


@pytest.mark.parametrize("task", ["binary", "anomaly", "unlabelled"])
def test_the_threshold_table_has_no_gaps(task: str) -> None:
    whole = sample(task)
    chosen = float(np.float32(whole.threshold or 0))
    candidates = candidate_thresholds(whole.validation, whole.evaluated, [chosen])
    assert chosen in candidates
    assert gaps(candidates, whole.validation, whole.evaluated) == []
    assert len(candidates) < 30


def test_the_threshold_table_has_no_gaps_where_the_evaluated_split_is_another() -> None:
    """Its scores are higher, so that a step of a few alerts on the validation split is one of many here."""
    rng = np.random.default_rng(1)
    validation, test = evaluated(rng.random(4_000) ** 3), evaluated(rng.random(9_000) ** 1.5)
    for always in ([], [0.5], [2.0, 0.999, 0.0001]):
        candidates = candidate_thresholds(validation, test, always)
        assert set(np.array(always, np.float32).tolist()) <= set(candidates)
        assert gaps(candidates, validation, test) == []
        assert len(candidates) < 40


def test_few_rows_are_enough_for_many_events() -> None:
    scores = np.random.default_rng(0).permutation(300_000).astype(np.float32) / 300_000
    candidates = candidate_thresholds(evaluated(scores), evaluated(scores), [])
    assert gaps(candidates, evaluated(scores), evaluated(scores)) == []
    assert len(candidates) == pytest.approx(np.log(90_000) / np.log(1.35), abs=3)  # 90,000: the lowest threshold's


def test_equal_scores_have_no_threshold_between_them() -> None:
    same = evaluated(np.full(50, 0.25, np.float32))
    assert candidate_thresholds(same, same, []) == []
    assert candidate_thresholds(same, same, [0.25, 0.5]) == [0.5, 0.25]


def gaps(candidates: list[float], validation: Evaluated, test: Evaluated) -> list[tuple[float, float]]:
    """Neighbours too far apart although the validation split has a score between them."""
    assert candidates == sorted(set(candidates), reverse=True)
    known = np.sort(validation.score)
    found = []
    for high, low in pairwise(candidates):
        fewer, more = (int((test.score >= np.float32(one)).sum()) for one in (high, low))
        between = np.searchsorted(known, np.float32(high)) - np.searchsorted(known, np.float32(low), side="right")
        if more > max(1.35 * fewer, fewer + 1) and between > 0:
            found.append((high, low))
    return found


def test_columns_that_would_be_empty_are_left_out_of_the_threshold_table() -> None:
    heads = {"labels": ["precision", "recall", "F1"], "times": ["alerts per day", "95 % interval"]}

    def shown(report: Report) -> set[str]:
        section = threshold_section(report)
        assert "<td>-</td>" not in section
        return {what for what, names in heads.items() if all(f">{name}</th>" in section for name in names)}

    labelled, unlabelled = sample("anomaly"), sample("unlabelled")
    assert shown(labelled) == {"labels", "times"}
    assert shown(unlabelled) == {"times"}
    assert unlabelled.test is not None
    untimed = replace(unlabelled.test, timestamp=np.zeros_like(unlabelled.test.timestamp), timed=False)
    assert shown(replace(unlabelled, test=untimed)) == set()


def test_the_best_f1_is_marked() -> None:
    whole = sample("binary")
    page = render(replace(whole, threshold=0.5, threshold_rule="Threshold 0.5 was set by threshold.value."))
    (row,) = re.findall(r"<tr><td>([^<]*) \(best F1\)</td>", page)
    assert row == format_number(whole.threshold or 0)  # the sample's own rule is f1
    assert "best F1" not in render(sample("unlabelled"))


def test_the_highest_scores_can_be_looked_up() -> None:
    whole = sample("anomaly")
    evaluated = whole.evaluated
    page = Page(render(whole))
    assert "Highest scores" in page.text
    section = render(whole).split('<section id="events">')[1].split("</section>")[0]
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(<td>.*?)</tr>", section)]
    assert len(rows) == 20
    highest = np.argsort(-evaluated.score, kind="stable")[:20]
    for cells, row in zip(rows, highest.tolist(), strict=True):
        assert cells[0] == whole.keys[evaluated.sequence[row]]
        assert cells[1] == format_iso(int(evaluated.timestamp[row]))
        assert cells[2] == str(whole.event_numbers[row])
        assert cells[3] == format_number(float(evaluated.score[row]))
        assert cells[4] == ("yes" if evaluated.score[row] >= np.float32(whole.threshold or 0) else "no")
        assert cells[5] == str(evaluated.label[row])
        if row and evaluated.sequence[row - 1] == evaluated.sequence[row]:
            assert evaluated.prediction is not None
            value, forecast = evaluated.truth[row - 1, 0], evaluated.prediction[row - 1, 0]
            assert cells[6] == f"{format_number(float(value))} ({format_number(float(forecast))})"
        else:
            assert cells[6] == "-"
    assert 'id="events"' not in render(sample("forecast"))
    untimed = render(replace(whole, test=replace(evaluated, timed=False), event_numbers=np.empty(0, np.int64)))
    section = untimed.split('<section id="events">')[1].split("</section>")[0]
    assert "time (UTC)" not in section
    assert "event of the key" not in section


def test_advice_stands_beside_the_verdict() -> None:
    whole = replace(sample("binary"), advice="Try a smaller training.batch (it was <64>).")
    text = Page(render(whole)).text
    assert text.index("Is the LSTM worth it?") < text.index("Try a smaller training.batch (it was <64>).")
    assert text.index("Try a smaller") < text.index("Warnings")
    assert whole.advice in summary_lines(whole, Path("m.onnx"))


def test_scores_that_are_no_probabilities_are_said_to_be_none() -> None:
    noted = replace(sample("binary"), score_note="Weights shift the scores.")
    assert noted.score_note in Page(render(noted)).text
    assert noted.score_note in summary_lines(noted, Path("m.onnx"))


def test_a_large_report_stays_small(tmp_path: Path) -> None:
    count = 300_000
    rng = np.random.default_rng(0)
    label = (rng.random(count) < 0.01).astype(int)
    split = evaluated(rng.random(count), label, sequence=np.arange(count) // 3, timestamp=np.arange(count) * 1000)
    names = [f"customer-{i}" for i in range(count)]
    whole = replace(sample("binary"), test=split, keys=names, baselines={}, config="x: 1\n" * 500,
                    history=sample("binary").history * 20)  # fmt: skip
    write_report(tmp_path / "report.html", whole)
    assert (tmp_path / "report.html").stat().st_size < 500_000
    assert Page((tmp_path / "report.html").read_text(encoding="utf-8")).data()


def test_curves_hold_known_points() -> None:
    split = evaluated([0.9, 0.8, 0.7, 0.1], [1, 0, 1, 0], timestamp=[0, DAY, 2 * DAY, 2 * DAY])
    pr, roc, alert = plots.ranking_curves({"LSTM": split}, 0.7)
    recall, precision = np.array(pr.x), np.array(pr.series[0].values)
    assert precision[recall <= 0.5].tolist() == [1.0] * (recall <= 0.5).sum()
    np.testing.assert_allclose(precision[recall > 0.5], 2 / 3)
    assert pr.marks == ((1.0, "threshold"),)
    share, found = np.array(roc.x), np.array(roc.series[0].values)
    assert found[np.argmin(np.abs(share - 0.5))] == pytest.approx(1.0)
    assert alert.x[0] == pytest.approx(0.5)
    assert alert.x[-1] == pytest.approx(2.0)
    assert alert.marks == ((1.5, "threshold"),)


def test_calibration_points() -> None:
    weighted = plots.calibration_plot(evaluated([0.1, 0.9], [0, 1]), "Weights shift the scores.")
    assert weighted is not None
    assert weighted.caption.endswith("bins. Weights shift the scores.")
    plot = plots.calibration_plot(evaluated([0.1, 0.1, 0.1, 0.9], [0, 0, 1, 1]))
    assert plot is not None
    points = {x: y for x, y in zip(plot.x, plot.series[0].values, strict=True) if np.isfinite(y)}
    assert list(points) == pytest.approx([0.1, 0.9])
    assert list(points.values()) == pytest.approx([1 / 3, 1])


def test_a_forecast_is_drawn_when_it_is_for() -> None:
    whole = sample("forecast")
    drawn = [plot for plot in plots_of(whole) if plot.id == "forecast"]
    assert len(drawn) == plots.MAX_SERIES
    key = whole.evaluated.sequence == 0
    times, column = whole.evaluated.timestamp[key], whole.evaluated.names.index("load t+6")
    six = next(plot for plot in drawn if plot.choice == "k0 · load t+6")
    np.testing.assert_array_equal(six.x, times[6:] / 1000)
    np.testing.assert_array_equal(six.series[0].values, whole.evaluated.truth[key, column][:-6])
    # the truth of six events ahead is the truth of one event ahead, made five events later
    one = whole.evaluated.truth[key, whole.evaluated.names.index("load t+1")]
    np.testing.assert_array_equal(six.series[0].values, one[5:-1])


def test_a_long_series_is_drawn_to_its_end() -> None:
    whole = report("forecast", keys=1, length=5000, resamples=2)
    drawn = [plot for plot in plots_of(whole) if plot.id == "forecast"]
    assert max(len(plot.x) for plot in drawn) == plots.FORECAST_POINTS - 1
    assert drawn[0].choice == "load t+1"  # the key's name would say nothing
    assert drawn[0].x[-1] == whole.evaluated.timestamp[-1] / 1000


def test_the_data_in_numbers() -> None:
    _, events, features, _, _ = MAKERS["binary"](10, 50)
    summary = summarize(events, features)
    amount, balance, shop = summary.fields
    known = events.x[~np.isnan(events.x[:, 0]), 0].astype(np.float64)
    assert amount.missing == pytest.approx(np.isnan(events.x[:, 0]).mean())
    assert (amount.mean, amount.std) == (pytest.approx(known.mean()), pytest.approx(known.std()))
    assert (amount.min, amount.max) == (known.min(), known.max())
    assert balance.is_constant
    assert not amount.is_constant
    assert shop.distinct == 5
    assert shop.top[0][1] == pytest.approx(np.bincount(events.codes[:, 0])[1:].max() / 500)
    assert summary.events_per_key == (50, 50.0, 50)
    split = split_facts("test", events, np.arange(100, 200))
    assert (split.rows, split.keys, split.labelled) == (100, 2, 100)
    assert split.positives == events.label[100:200].sum()
    assert split_facts("test", events, []).start_ms is None
