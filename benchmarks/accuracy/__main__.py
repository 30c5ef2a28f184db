"""How well `builtin:anomaly` finds anomalies on public benchmarks: one configuration, through `lstmstream score`.

    python -m benchmarks.accuracy --data FOLDER [--model anomaly-small] [--sets nab,touchstone,gutentag,smapmsl]
        [--phases N] [--report FILE]

FOLDER has a folder for each set, and `scorers/` with a program for each. Each series is a stream of events in their
order, and a reading knows the events up to its own. The tables have the same figures of plain detectors and of rules
that read no data, each with one configuration, and of what others published. With --phases N each of Numenta's files
starts at N different rows. The last table says what a threshold means: alerts where there is no anomaly. Readings are
kept in --out: --reuse takes those, to make tables and page again in a minute.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.accuracy import product
from benchmarks.accuracy.alert_rates import alert_rates, by_kind, noise_series
from benchmarks.accuracy.detectors import BASELINES, Readings
from benchmarks.accuracy.judging import JUDGES, OWN
from benchmarks.accuracy.published import SOURCES, published
from benchmarks.accuracy.report import SetResult, write_report
from benchmarks.accuracy.series import READERS, Numbers, Series, shifted

MODELS = ("anomaly", "anomaly-small")


def say(line: str) -> None:
    """Progress, apart from the results."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


class Kept:
    """Readings on disk: [T, K] of each detector, phase and series."""

    def __init__(self, out: Path, model: str, *, reuse: bool) -> None:
        self.out, self.model, self.reuse = out, model, reuse

    def own(self, name: str, starts: Sequence[Sequence[Series]]) -> list[list[Readings]]:
        """Of the product's model, by phase. All phases are scored together."""
        series = [one for phase in starts for one in phase]
        own = "builtin" if self.model == MODELS[0] else self.model
        paths = [self._path(name, own, phase, one) for phase, moved in enumerate(starts) for one in moved]
        missing = [i for i, path in enumerate(paths) if not (self.reuse and path.exists())]
        began_s = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="lstmstream-accuracy-") as folder:
            made = product.predictions([series[i] for i in missing], Path(folder), self.model)
        for i, prediction in zip(missing, made, strict=True):
            _save(paths[i], prediction)
        rows = sum(len(series[i].x) for i in missing)
        say(f"{name}: {rows} rows of {OWN} in {time.monotonic() - began_s:.0f} s")
        readings = [product.readings(np.load(path)) for path in paths]
        width = len(starts[0])
        return [readings[first : first + width] for first in range(0, len(readings), width)]

    def baseline(self, detector: str, name: str, one: Series, phase: int) -> Readings:
        """Of a plain detector."""
        path = self._path(name, detector.replace(" ", "-").replace(":", ""), phase, one)
        if not (self.reuse and path.exists()):
            made = BASELINES[detector](one)
            _save(path, np.stack([made.rank, made.score, made.alarm], axis=1))
        return Readings(*np.load(path).T)

    def _path(self, name: str, detector: str, phase: int, one: Series) -> Path:
        return self.out / name / f"{detector}.{phase}" / f"{one.name.replace('/', '__')}.npy"


def _save(path: Path, values: Numbers) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)


def measure(name: str, data: Path, kept: Kept, *, phases: int, files: str) -> SetResult:
    """All detectors on one set."""
    series = [one for one in READERS[name](data / name) if files in one.name]
    if not series:
        raise SystemExit(f"{data / name}: no series whose name has {files!r} in it")
    starts = [[shifted(one, phase) for one in series] for phase in range(phases if name == "nab" else 1)]
    found = {OWN: kept.own(name, starts)}
    for detector in BASELINES:
        say(f"{name}: {detector}")
        found[detector] = [
            [kept.baseline(detector, name, one, phase) for one in moved] for phase, moved in enumerate(starts)
        ]
    table = JUDGES[name](data, series, found)
    table.rows.extend(published(name, data / name, table))
    return SetResult(name, series, found[OWN][0], table, SOURCES.get(name, ""))


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description="Anomaly detection benchmarks.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets and their scorers")
    parser.add_argument("--sets", default=",".join(READERS), help="(%(default)s)")
    parser.add_argument("--files", default="", help="only series whose name has this in it")
    parser.add_argument("--phases", type=int, default=1, help="starts of Numenta's files (%(default)s)")
    parser.add_argument("--model", choices=MODELS, default=MODELS[0], help="of the package (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path(".cache/accuracy"), help="(%(default)s)")
    parser.add_argument("--reuse", action="store_true", help="take the readings that --out has, compute the others")
    parser.add_argument("--report", type=Path, help="write a page with tables and pictures: FILE.html")
    given = parser.parse_args()
    unknown = set(given.sets.split(",")) - set(READERS)
    if unknown:
        parser.error(f"--sets: {', '.join(sorted(unknown))}: use some of {', '.join(READERS)}")
    if given.phases < 1:
        parser.error("--phases: must be 1 or more")
    kept = Kept(given.out.absolute(), given.model, reuse=given.reuse)
    results = []
    for name in given.sets.split(","):
        result = measure(name, given.data.absolute(), kept, phases=given.phases, files=given.files)
        text = result.table.markdown().replace(OWN, f"builtin:{given.model}")
        print(f"## {name}\n\n{text}\n", flush=True)
        results.append(result)
    noise = noise_series()
    sets = {**by_kind(noise, kept.own("noise", [noise])[0]), **{one.name: (one.series, one.own) for one in results}}
    print(f"## alerts in 10,000 events without anomaly (events)\n\n{alert_rates(sets).markdown()}\n", flush=True)
    if given.report:
        write_report(given.report, given.data.absolute(), results)
        say(f"wrote {given.report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
