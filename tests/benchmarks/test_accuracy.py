"""The accuracy benchmark without its data: detectors to compare with, alarms, halves, tables and pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.accuracy.alert_rates import alert_rates, by_kind, noise_series, quiet
from benchmarks.accuracy.detectors import BASELINES, Readings, only_largest
from benchmarks.accuracy.judging import Table, alarm_ranges, halves, mask_of
from benchmarks.accuracy.pictures import Scored, caption, cases, counted, picture
from benchmarks.accuracy.product import predictions
from benchmarks.accuracy.published import published
from benchmarks.accuracy.series import Series, every_second, ranges_of, shifted


def series_of(x: NDArray[np.float64], truth: tuple[tuple[int, int], ...] = (), first: int = 0) -> Series:
    rows = x.reshape(len(x), -1).astype(np.float32)
    return Series("one", rows, every_second(len(rows)), truth, first)


def noise(rows: int, channels: int = 2) -> NDArray[np.float64]:
    return np.random.default_rng(1).standard_normal((rows, channels))


@pytest.mark.parametrize("name", BASELINES)
def test_a_reading_knows_no_later_row(name: str) -> None:
    x = noise(600)
    changed = x.copy()
    changed[400:] *= 9
    before, after = (BASELINES[name](series_of(one)) for one in (x, changed))
    assert np.array_equal(before.rank[:400], after.rank[:400], equal_nan=True)
    assert np.array_equal(before.score[:400], after.score[:400])
    assert np.array_equal(before.rank, after.rank, equal_nan=True) == name.startswith("blind")


@pytest.mark.parametrize("name", [name for name in BASELINES if not name.startswith("blind")])
def test_a_plain_detector_sees_a_jump_in_any_unit(name: str) -> None:
    x = noise(600, 1)
    x[500] += 30
    found, other = (BASELINES[name](series_of(one)) for one in (x, x * 1024))
    assert 500 <= np.nanargmax(found.rank) < 550
    assert 500 <= found.score.argmax() < 550
    np.testing.assert_allclose(found.score, other.score, rtol=1e-4)


def test_ewma_z_is_the_formula() -> None:
    x = noise(50, 1)[:, 0]
    rows = np.arange(49)
    weights = 0.99 ** (48 - rows)
    means = [np.average(x[:row], weights=0.99 ** np.arange(row)[::-1]) if row else x[0] for row in range(49)]
    deviation = np.sqrt(np.average((x[:49] - means) ** 2, weights=weights))
    expected = abs(x[49] - np.average(x[:49], weights=weights)) / deviation
    assert BASELINES["EWMA z-score"](series_of(x)).rank[49] == pytest.approx(expected, rel=1e-4)


def test_a_score_counts_where_it_is_the_largest_for_a_while() -> None:
    score = np.zeros(400)
    score[[10, 11, 12, 50, 200]] = [0.5, 0.6, 0.6, 0.4, 0.3]
    assert np.flatnonzero(only_largest(score)).tolist() == [10, 11, 200]


def test_an_alarm_lasts_for_a_hundred_rows_and_counts_in_the_test_part_only() -> None:
    alarm = np.zeros(500)
    alarm[[50, 120, 150, 480]] = 1
    assert alarm_ranges(series_of(noise(500), first=100), alarm, 1.0) == ((120, 249), (480, 499))


def test_ranges_and_masks_are_each_others_inverse() -> None:
    one = series_of(noise(20), truth=((0, 3), (7, 7), (18, 19)))
    assert ranges_of(mask_of(one)) == one.truth


def test_halves_are_apart_and_whole() -> None:
    names = [str(number) for number in range(7)]
    found = halves(names)
    assert len(found) == 20
    assert all(sorted(mine + rest) == names and len(mine) == 3 for mine, rest in found)
    assert len({tuple(sorted(mine)) for mine, _ in found}) > 10


def test_a_phase_drops_rows_that_do_not_count() -> None:
    one = series_of(noise(300), first=30)
    assert shifted(one, 0) is one
    lengths = {len(shifted(one, phase).x) for phase in range(1, 9)}
    assert len(lengths) > 3
    assert all(270 <= length < 300 for length in lengths)
    late = shifted(one, 3)
    assert late.x.tobytes() == one.x[300 - len(late.x) :].tobytes()


def test_predictions_are_those_of_each_series_alone(tmp_path: Path) -> None:
    """Of two widths and of two lengths, in one call."""
    given = [series_of(noise(40, 1)), series_of(noise(30, 2)), series_of(noise(25, 1) * 5)]
    together = predictions(given, tmp_path)
    assert [found.shape for found in together] == [(40, 4), (30, 4), (25, 4)]
    assert together[2].tobytes() == predictions(given[2:], tmp_path)[0].tobytes()


def test_published_rows_fit_the_table(tmp_path: Path) -> None:
    (tmp_path / "published.csv").write_text(
        "dataset,detector,ROC-AUC,PR-AUC,AvgPrec,Precision,Recall,RangePR-VUS,time_sec\n"
        "a,KMeans,0.8,0,0.2,0,0,0.1,1\nb,KMeans,0.9,0,0.4,0,0,0.2,1\na,Other,0.9,0,0.1,0,0,0.1,1\n"
    )
    table = Table(("detector", "ROC", "AP", "VUS of ranks", "VUS"), [])
    table.rows.extend(published("touchstone", tmp_path, table))
    assert table.rows[1] == ("KMeans (published)", "0.850", "0.300", "-", "0.150")
    assert table.markdown().splitlines()[0] == "| detector | ROC | AP | VUS of ranks | VUS |"
    assert published("gutentag", tmp_path, table) == []


def test_pictures_show_what_was_caught_missed_and_falsely_raised() -> None:
    score = np.zeros(3000)
    score[[105, 900, 2500]] = [0.9, 0.8, 0.7]  # the first one before the rows that count
    one = replace(series_of(noise(3000, 6), truth=((880, 920), (1500, 1600)), first=200), name="<one>")
    scored = [Scored.at(one, score, 0.5)]
    assert counted(scored) == {"caught": 1, "missed": 1, "false": 1}
    found = cases(scored)
    assert [(case.kind, case.rows) for case in found] == [
        ("caught", (880, 920)),
        ("missed", (1500, 1600)),
        ("false", (2500, 2500)),
    ]
    assert caption(found[0]) == "<one>, from row 880; the 4 that move most of 6 channels"
    for case in found:
        root = ET.fromstring(picture(case))
        drawn = [element.get("class") for element in root if element.get("class")]
        assert sum(kind.startswith("value") for kind in drawn if kind) == 4
        assert ("truth" in drawn) == (case.kind != "false")
        assert ("alarm" in drawn) == (case.kind != "missed")


def test_alert_rates_count_where_nothing_is_labelled() -> None:
    one = series_of(noise(1500), truth=((900, 910),))
    assert np.flatnonzero(~quiet(one)).tolist() == [*range(200), *range(700, 1111)]
    score = np.zeros(1500)
    score[[100, 600, 900, 1400]] = [0.9, 0.5, 0.9, 0.6]  # in the warm-up, quiet, labelled, quiet
    table = alert_rates({"one": ([one], [Readings(score, score, score)])})
    assert table.heads == ("threshold", "one (889)")
    assert ("0.5", "22.5") in table.rows
    assert ("0.6", "11.2") in table.rows
    assert ("0.7", "0.0") in table.rows
    made = noise_series()
    kinds = by_kind(made, [Readings(score, score, score)] * len(made))
    assert {len(series) for series, _ in kinds.values()} == {4}
    assert len(kinds) == 5
