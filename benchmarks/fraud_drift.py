"""Fine-tuning on a shifted month, against the old model and against training from scratch on that month.

    python -m benchmarks.fraud_drift [--shared ../shared] [--seeds 3] [--days 7,28] [--factor 0.511] [--all-features]

The old model is trained on days 14 to 60 (mid-April and May). From June 1st (day 61) on all amounts are in another
unit. New models are trained on the first days after that: from scratch, or from the old model with `--init`. Each has
two settings, and the one that is better on the month's own validation split, every tenth customer, counts. They are
evaluated by `lstmstream evaluate` on held-out days, each with the same 14 days before them. In training, labels are
known at once; days 96 to 128 are more than 7 days later than all training data.

By default the features are amounts and facts of the terminal, and the model has to remember what is normal for a
customer; with --all-features these features are given, as in fraud_weeks.py. Average precision, mean of 3 seeds:

    features  trained days  test days  old    scratch  tuned  tuned above both
    all                  7  82-90      0.715  0.738    0.775  3 of 3
                            96-128     0.745  0.684    0.755  3 of 3
                        28  96-128     0.745  0.782    0.786  3 of 3

With a month of training data the gain over training from scratch is small (0.004 on average); with a week it is large.
At 7 days the validation split chose the worse rate for scratch; the better one would have given 0.755 and 0.735.
About ten minutes per seed on one core.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl

from benchmarks.fraud_features import DAY
from benchmarks.fraud_weeks import CONFIG, read_transactions, to_events, train
from lstmstream.model import load_model

FEW: dict[str, Any] = {
    "numbers": [
        {"name": "amount", "log": True},
        "terminal_risk_7d",
        "terminal_risk_30d",
        "terminal_since",
        {"name": "terminal_count_30d", "log": True},
        {"name": "terminal_streak", "log": True},
    ],
    "elapsed": True,
}
WARM_UP = 14  # days of events that only warm up the states
OLD = (14, 60)  # first and last training day of the old model
SHIFT = 61  # 2018-06-01
HELD_OUT = ((82, 90), (96, 128))  # a span counts for trainings whose data end before it
OLD_TRAINING = {"epochs": 10, "learning_rate": 0.003, "batch": 32}
SETTINGS = {  # of each, the one that is better on the month's own validation split counts
    "scratch": ({"epochs": 12, "learning_rate": 0.003}, {"epochs": 12, "learning_rate": 0.006}),
    "tuned": ({"epochs": 5, "learning_rate": 0.001}, {"epochs": 12, "learning_rate": 0.003}),
}
NO_SHIFT = "old, were there no shift"
PrecisionBySpan = dict[str, float]  # average precision


def shifted(raw: pl.DataFrame, factor: float) -> pl.DataFrame:
    """The purchases with amounts in another unit from June 1st on."""
    amount = pl.col("TX_AMOUNT")
    after = pl.col("TX_TIME_SECONDS") >= SHIFT * DAY
    return raw.with_columns(pl.when(after).then((amount * factor).round(2)).otherwise(amount))


def training_data(events: pl.DataFrame, first: int, last: int) -> pl.DataFrame:
    """The days first .. last, with every tenth customer for validation, and before them the days of warm-up."""
    part = pl.when(pl.col("customer") % 10 == 0).then(pl.lit("validation")).otherwise(pl.lit("train"))
    kept = events.filter(pl.col("day").is_between(first - WARM_UP, last))
    return kept.with_columns(part=pl.when(pl.col("day") >= first).then(part))


def configuration(base: dict[str, Any], seed: int, options: dict[str, Any]) -> dict[str, Any]:
    """The configuration for `lstmstream train`."""
    return base | {"training": base["training"] | {"seed": seed, "patience": 5, "monitor": "loss"} | options}


class Evaluator:
    """`lstmstream evaluate` on the held-out days, with the same events before them for every model."""

    def __init__(self, events: pl.DataFrame, folder: Path) -> None:
        self._files = {}
        for first, last in HELD_OUT:
            file = folder / f"held-out-{first}-{last}.parquet"
            kept = events.filter(pl.col("day").is_between(first - WARM_UP, last))
            kept.with_columns(fraud=pl.when(pl.col("day") >= first).then("fraud")).write_parquet(file)
            self._files[f"{first}-{last}"] = file

    def __call__(self, model: Path) -> PrecisionBySpan:
        """Average precision of the model on each span."""
        found = {}
        for name, file in self._files.items():
            command = [sys.executable, "-m", "lstmstream", "evaluate", str(model), str(file), "--json"]
            done = subprocess.run([*command, "--resamples", "10"], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise SystemExit(done.stderr)
            found[name] = float(orjson.loads(done.stdout)["metrics"]["average_precision"]["value"])
        return found


def one_seed(
    base: dict[str, Any], seed: int, days: list[int], plain: pl.DataFrame, events: pl.DataFrame, folder: Path
) -> dict[str, PrecisionBySpan]:
    """Trains and evaluates every model of one seed; `plain` are the events without the shift."""
    evaluator, unshifted = Evaluator(events, folder), Evaluator(plain, _created(folder / "plain"))
    found: dict[str, PrecisionBySpan] = {}

    def record(name: str, model: Path, evaluator: Evaluator, began: float) -> None:
        found[name] = evaluator(model)
        text = "  ".join(f"days {span}: {value:.4f}" for span, value in found[name].items())
        print(f"  seed {seed}  {name:<30}{text}   {time.monotonic() - began:3.0f} s", flush=True)

    began = time.monotonic()
    old = train(folder / "old", training_data(plain, *OLD), configuration(base, seed, OLD_TRAINING))
    record(NO_SHIFT, old, unshifted, began)
    record("old", old, evaluator, time.monotonic())
    for count in days:
        month = training_data(events, SHIFT, SHIFT + count - 1)
        for how, settings in SETTINGS.items():
            began = time.monotonic()
            init = old if how == "tuned" else None
            models = [
                train(folder / f"{how}-{place}", month, configuration(base, seed, options), init=init)
                for place, options in enumerate(settings)
            ]
            record(f"{count} days, {how}", max(models, key=validation_precision), evaluator, began)
    return found


def validation_precision(model: Path) -> float:
    """Average precision on the validation split."""
    return float(load_model(model).card.training["metrics"]["validation"]["average_precision"]["value"])


def _created(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def show(days: list[int], seeds: list[dict[str, PrecisionBySpan]]) -> None:
    """The table: mean and standard deviation over the seeds."""

    def values(name: str, span: str) -> np.ndarray[Any, Any]:
        return np.array([found[name][span] for found in seeds])

    def text(found: np.ndarray[Any, Any]) -> str:
        return f"{found.mean():.4f} ± {found.std(ddof=1) if len(found) > 1 else 0:.4f}"

    for first, last in HELD_OUT:
        span = f"{first}-{last}"
        print(f"\naverage precision on days {span}, {len(seeds)} seeds; no shift: {text(values(NO_SHIFT, span))}")
        print("trained days   old               scratch           tuned             tuned - old  tuned - scratch  wins")
        for count in [count for count in days if SHIFT + count <= first]:
            old, tuned = values("old", span), values(f"{count} days, tuned", span)
            scratch = values(f"{count} days, scratch", span)
            wins = int(((tuned > old) & (tuned > scratch)).sum())
            gains = f"{(tuned - old).mean():+.4f}      {(tuned - scratch).mean():+.4f}          {wins} of {len(seeds)}"
            print(f"{count:>12}   {text(old)}   {text(scratch)}   {text(tuned)}   {gains}")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--shared", type=Path, default=root.parent / "shared", help="folder with fraud/")
    parser.add_argument("--seeds", type=int, default=3, help="number of runs, each with another seed")
    parser.add_argument("--days", default="7,28", help="numbers of training days in the new month")
    parser.add_argument("--factor", type=float, default=0.511, help="of amounts from June 1st on")
    parser.add_argument("--all-features", action="store_true", help="those of fraud_weeks.py")
    options = parser.parse_args()
    days = [int(word) for word in options.days.split(",")]
    raw = read_transactions(options.shared)
    plain, events = to_events(raw), to_events(shifted(raw, options.factor))
    base = CONFIG if options.all_features else CONFIG | {"features": FEW}
    with tempfile.TemporaryDirectory(prefix="lstmstream-drift-") as folder:
        show(days, [one_seed(base, seed, days, plain, events, Path(folder)) for seed in range(options.seeds)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
