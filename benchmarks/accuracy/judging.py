"""The figures of a detector, by the scorers that come with the data.

Thresholds are one number for all series. Without a word it is the best one for the very labels that judge it, as in
Numenta's protocol: that favours a detector whose scores have many steps. `other half`: fitted on a random half of the
series and judged on the rest, mean of 20 such halves.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.accuracy.detectors import Readings
from benchmarks.accuracy.series import Numbers, Range, Series, ranges_of

OWN = "builtin:anomaly"
OWN_THRESHOLD = 0.5
SPLITS = 20
ALARM_ROWS, MAX_ALARMED, QUANTILES = 100, 0.052, 60  # of SMAP/MSL
THRESHOLDS = np.arange(0.3, 0.95, 0.005)
PROFILES = ("standard", "reward_low_FP_rate", "reward_low_FN_rate")

Found = Mapping[str, Sequence[Sequence[Readings]]]  # of each detector, by phase and series


@dataclass(frozen=True, slots=True)
class Table:
    """Texts: the first column is the detector."""

    heads: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def markdown(self) -> str:
        """With a line for each row."""
        lines = [self.heads, tuple("---" for _ in self.heads), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def load_scorer(data: Path, name: str) -> ModuleType:
    """The program `scorers/<name>.py` of the data's folder."""
    spec = importlib.util.spec_from_file_location(f"scorer_{name}", data / "scorers" / f"{name}.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"{data}: has no scorers/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def halves(names: Sequence[str]) -> list[tuple[list[str], list[str]]]:
    """Random halves of the series, with the rest of each."""
    found = []
    for split in range(SPLITS):
        order = np.random.default_rng(split).permutation(len(names)).tolist()
        middle = len(names) // 2
        found.append(([names[i] for i in order[:middle]], [names[i] for i in order[middle:]]))
    return found


def with_spread(values: Sequence[float], form: str) -> str:
    """Mean and range; the value alone where there is one."""
    text = form.format(np.mean(values))
    return text if len(values) == 1 else f"{text} ({form.format(min(values))} to {form.format(max(values))})"


def judge_nab(data: Path, series: Sequence[Series], found: Found) -> Table:
    """Points of 100 in Numenta's three profiles."""
    scorer, windows = load_scorer(data, "nab"), json.loads((data / "nab" / "windows.json").read_text())
    prepared: dict[str, dict[str, Any]] = {}
    for one in series:
        keep, window, unweighted = scorer.prepare([scorer.ts(label) for label in one.labels], windows[one.name])
        prepared[one.name] = {"wid": window[keep], "u": unweighted[keep], "nwin": len(windows[one.name])}

    def files_of(readings: Sequence[Readings]) -> dict[str, dict[str, Any]]:
        return {
            one.name: prepared[one.name] | {"score": reading.score[-len(prepared[one.name]["wid"]) :]}
            for one, reading in zip(series, readings, strict=True)
        }

    def points(files: dict[str, Any], profile: str, threshold: float) -> float:
        return float(scorer.normalised(scorer.totals(files, threshold, profile), profile)[0])

    def row(name: str, thresholds: Callable[[dict[str, Any], str], float], *, fits: bool) -> tuple[str, ...]:
        by_phase = [files_of(readings) for readings in found[name.partition(",")[0]]]
        cells = [
            with_spread([points(files, profile, thresholds(files, profile)) for files in by_phase], "{:.1f}")
            for profile in PROFILES
        ]
        first = scorer.totals(by_phase[0], thresholds(by_phase[0], PROFILES[0]), PROFILES[0]).values()
        cells += [f"{sum(one['found'] for one in first)}/{sum(one['windows'] for one in first)}"]
        cells += [str(sum(one["fp_rows"] for one in first))]
        halved = [
            np.mean([_other_half(scorer, files, mine, rest) for mine, rest in halves(list(files))])
            for files in (by_phase if fits else [])
        ]
        return (name, *cells, with_spread([float(one) for one in halved], "{:.1f}") if halved else "-")

    heads = ("detector", "standard", "low FP", "low FN", "windows found", "rows outside", "standard, other half")
    rows = [row(f"{OWN}, threshold {OWN_THRESHOLD}", lambda *_: OWN_THRESHOLD, fits=False)] if OWN in found else []
    rows += [row(name, lambda files, profile: float(scorer.fit(files, profile)[0]), fits=True) for name in found]
    return Table(heads, rows)


def _other_half(scorer: ModuleType, files: dict[str, Any], mine: list[str], rest: list[str]) -> float:
    threshold = scorer.fit({name: files[name] for name in mine}, PROFILES[0])[0]
    totals = scorer.totals({name: files[name] for name in rest}, threshold, PROFILES[0])
    return float(scorer.normalised(totals, PROFILES[0])[0])


def judge_ranks(data: Path, series: Sequence[Series], found: Found) -> Table:
    """Means over the series of areas under curves."""
    scorer = load_scorer(data, "touchstone")
    rows = []
    for name, by_phase in found.items():
        figures = [
            scorer.score_file(mask_of(one), reading.rank, np.inf)
            for one, reading in zip(series, by_phase[0], strict=True)
        ]
        means = [np.nanmean([figure[column] for figure in figures]) for column in ("roc", "ap", "vusr", "vus")]
        rows.append((name, *(f"{mean:.3f}" for mean in means)))
    return Table(("detector", "ROC", "AP", "VUS of ranks", "VUS"), rows)


def mask_of(series: Series) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """[T] True where the series is labelled anomalous."""
    mask = np.zeros(len(series.x), bool)
    for first, last in series.truth:
        mask[first : last + 1] = True
    return mask


def alarm_ranges(series: Series, alarm: Numbers, threshold: float) -> tuple[Range, ...]:
    """100 rows from where the alarm is at the threshold, of the rows that count."""
    reached = alarm[series.first :] >= threshold
    alarmed = np.convolve(reached, np.ones(ALARM_ROWS), mode="full")[: len(reached)] > 0.5
    return tuple((first + series.first, last + series.first) for first, last in ranges_of(alarmed))


@dataclass(frozen=True, slots=True)
class _Counts:
    """Of one threshold: [series] each."""

    threshold: float
    found: Numbers
    missed: Numbers
    false: Numbers
    alarmed: Numbers
    rows: Numbers

    def share(self, kept: Sequence[int]) -> float:
        return float(self.alarmed[kept].sum() / self.rows[kept].sum())

    def f_half(self, kept: Sequence[int]) -> float:
        found, missed, false = (float(one[kept].sum()) for one in (self.found, self.missed, self.false))
        return 1.25 * found / max(1.25 * found + 0.25 * missed + false, 1e-9)


def judge_alarms(data: Path, series: Sequence[Series], found: Found) -> Table:
    """F0.5 of ranges, thresholds with at most 5.2 % of the rows alarmed."""
    scorer = load_scorer(data, "smapmsl")
    everything = list(range(len(series)))

    def row(name: str, counts: list[_Counts], *, fits: bool) -> tuple[str, ...]:
        best = _best(counts, everything)
        figures = (
            f"{best.f_half(everything):.3f}",
            f"{best.found.sum():.0f}/{(best.found + best.missed).sum():.0f}",
            f"{best.false.sum():.0f}",
            f"{100 * best.share(everything):.1f} %",
        )
        other = [_best(counts, list(map(int, mine))).f_half(list(map(int, rest))) for mine, rest in halves_of(series)]
        return (name, *figures, f"{np.mean(other):.3f}" if fits else "-")

    rows = []
    for name, by_phase in found.items():
        alarms = [reading.alarm for reading in by_phase[0]]
        if name == OWN:
            own = [_counts(scorer, series, alarms, OWN_THRESHOLD)]
            rows.append(row(f"{OWN}, novelty 1", own, fits=False))
        counted = np.concatenate([alarm[one.first :] for one, alarm in zip(series, alarms, strict=True)])
        quantiles = np.quantile(counted, 1 - np.geomspace(1e-5, 0.05, QUANTILES))
        tried = np.unique(np.concatenate([quantiles, THRESHOLDS, [np.inf]]))
        rows.append(row(name, [_counts(scorer, series, alarms, float(one)) for one in tried], fits=True))
    heads = ("detector", "F0.5 of ranges", "ranges found", "false ranges", "rows alarmed", "F0.5, other half")
    return Table(heads, rows)


def halves_of(series: Sequence[Series]) -> list[tuple[list[str], list[str]]]:
    """Numbers of the series, as text."""
    return halves([str(number) for number in range(len(series))])


def _best(counts: Sequence[_Counts], kept: Sequence[int]) -> _Counts:
    """The highest F0.5 of the thresholds that alarm few enough rows; the highest threshold if none does."""
    allowed = [one for one in counts if one.share(kept) <= MAX_ALARMED]
    return max(allowed, key=lambda one: one.f_half(kept)) if allowed else counts[-1]


def _counts(scorer: ModuleType, series: Sequence[Series], alarms: Sequence[Numbers], threshold: float) -> _Counts:
    columns = []
    for one, alarm in zip(series, alarms, strict=True):
        raised = alarm_ranges(one, alarm, threshold)
        label = {"spacecraft": "", "anomalies": one.truth, "test_rows": len(one.x) - one.first}
        counted = scorer.score({one.name: label}, {one.name: raised})["all"]
        rows = sum(last - first + 1 for first, last in raised)
        columns.append((counted["tp"], counted["fn"], counted["fp"], rows, label["test_rows"]))
    return _Counts(threshold, *np.array(columns, np.float64).T)


JUDGES: dict[str, Callable[[Path, Sequence[Series], Found], Table]] = {
    "nab": judge_nab,
    "touchstone": judge_ranks,
    "gutentag": judge_ranks,
    "smapmsl": judge_alarms,
}
