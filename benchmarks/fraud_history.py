"""Card fraud, with the features of the customer's past computed by the product: `history` of the amount.

    python -m benchmarks.fraud_history [--shared ../shared] [--seeds 1] [--terminal outside|product|chain|none]
        [--days 7|all] [--epochs N] [--hidden N] [--cell NAME]

The protocol of fraud_weeks.py: seven training days (`--days all`: all days before the labels are known), the test week
two weeks after the training week began. Events before the training days only warm up the states, in training and in
scoring. The features of the terminal need another key: they come with the event as in fraud_weeks.py, or from a first
stage of the product (`builtin:history:fraud`, fed by a report of each purchase seven days after it), or not at all.
With `--terminal chain` a stage by customer comes before that: it adds the customer's usual amount to each purchase, and
so the report of a fraud can say whether its amount was an ordinary one, which points to the terminal, not the card.

Measured, means of the four weeks, beside those of fraud_weeks.py with all features made outside:

    training days  customer's features   terminal's  seeds  average precision  card precision@100  AUC
    7              made outside          outside     1      0.741              0.292
    7              history, log amount   outside     1      0.735              0.293               0.894
    7              history, amount       outside     3      0.746 ± 0.001      0.293 ± 0.001       0.893 ± 0.003
    7              history, amount       none        1      0.343              0.104               0.680
    all            history, amount       outside     1      0.758              0.294               0.887
    7              history, amount       product     2      0.740 ± 0.002      0.291 ± 0.001       0.892 ± 0.001
    all            history, amount       product     1      0.754              0.293               0.890
    all, 6 epochs  history, amount       product     1      0.755              0.293               0.886
    7              history, amount       chain       2      0.746 ± 0.000      0.293 ± 0.000       0.894 ± 0.003
    all            history, amount       chain       1      0.760              0.295               0.887

Two to ten minutes per seed for seven days, fifteen for all, on a busy core.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import yaml

from benchmarks.fraud_weeks import (
    CONFIG,
    START,
    WEEKS,
    evaluate,
    lstmstream,
    read_transactions,
    score,
    to_events,
    train,
)

WARM_UP_DAYS = 42
TERMINAL_PLAIN = ("terminal_risk_7d", "terminal_risk_30d", "terminal_since")
TERMINAL_LOGGED = ("terminal_count_30d", "terminal_streak")
CHAIN_LOGGED = ("terminal_run", "terminal_fraud_amount")
METRICS = ("ap", "cp100", "auc")
DAY_MS = 86_400_000
DELAY_MS = 7 * DAY_MS
STAGE = {  # of the terminals; its topics are not used by `lstmstream score`
    "name": "terminal",
    "model": "builtin:history:fraud",
    "kafka": {"bootstrap_servers": "localhost:9092"},
    "input": {"topic": "transactions", "key": "terminal", "timestamp": "time"}
    | {"silent": {"field": "kind", "equals": "report"}},
    "output": {
        "topic": "terminals",
        "events": {
            "topic": "by-customer",
            "add": {
                "terminal_risk_7d": "prediction[fraud.mean_7d]",
                "terminal_risk_30d": "prediction[fraud.mean_30d]",
                "terminal_count_30d": "prediction[fraud.count_30d]",
                "terminal_streak": "prediction[fraud.run]",
                "terminal_since": "prediction[fraud.run_age_s]",
            },
        },
    },
}

USUAL = STAGE | {  # of the customers, in front of the terminals
    "name": "usual",
    "model": "builtin:history:amount",
    "input": {"topic": "purchases", "key": "customer", "timestamp": "time"},
    "output": {
        "topic": "usual",
        "events": {"topic": "transactions", "key": "terminal", "add": {"usual": "prediction[amount.mean_30d]"}},
    },
}
STOLEN = 3.0  # times the usual amount; a fraud above points to a stolen card
FIRST_USUAL = 50.0  # before the customer's first purchase


def with_chain(events: pl.DataFrame, terminal: pl.Series, folder: Path) -> pl.DataFrame:
    """As with_terminals, with a stage by customer in front, and two more features."""
    purchases = events.select(
        pl.col("id").cast(pl.Int64), pl.col("time").dt.epoch("ms"), "customer", "amount", "fraud", terminal=terminal
    )
    plain = purchases.select("id", "time", "customer", "terminal", "amount")
    purchases = purchases.with_columns(run_stage(USUAL, plain, ["usual"], folder)["usual"])
    usual = pl.when(pl.col("usual") > 0).then("usual").otherwise(FIRST_USUAL)
    stolen = (pl.col("fraud") == 1) & (pl.col("amount") > STOLEN * usual)
    reports = purchases.select(
        pl.lit(None, pl.Int64).alias("id"),
        pl.col("time") + DELAY_MS,
        "terminal",
        "fraud",
        kind=pl.lit("report"),
        ordinary=pl.when(~stolen).then("fraud"),
        fraud_amount=pl.when(pl.col("fraud") == 1).then("amount"),
    )
    both = pl.concat([reports, purchases.select("id", "time", "terminal")], how="diagonal")
    output = STAGE["output"]["events"]  # type: ignore[index]
    add = {name: of.replace("fraud.", "ordinary.") for name, of in output["add"].items()} | {
        "terminal_run": "prediction[fraud.run]",
        "terminal_fraud_amount": "prediction[fraud_amount.mean_7d]",
    }
    stage = STAGE | {
        "model": "builtin:history:ordinary,fraud,fraud_amount",
        "output": {"topic": "terminals", "events": output | {"add": add}},
    }
    made = run_stage(stage, both.sort("time", maintain_order=True), list(add), folder)
    kept = events.drop(name for name in add if name in events.columns)
    return kept.hstack(made.drop("id").with_columns(pl.col("terminal_since") / 86_400))


def run_stage(stage: dict[str, Any], stream: pl.DataFrame, added: list[str], folder: Path) -> pl.DataFrame:
    """The id and the `added` fields of each event that the stage writes for `stream`, in its order."""
    settings, source, out = (folder / f"{stage['name']}{suffix}" for suffix in (".yaml", ".jsonl", ".out.jsonl"))
    settings.write_text(yaml.safe_dump(stage), encoding="utf-8")
    stream.write_ndjson(source)
    lstmstream("score", settings, source, "--events", out, "--out", folder / "predictions.jsonl")
    with out.open("rb") as lines:
        rows = [[record["id"], *(record[name] for name in added)] for record in map(orjson.loads, lines)]
    made = pl.DataFrame(rows, schema=["id", *added], orient="row")
    assert made["id"].to_list() == stream["id"].drop_nulls().to_list(), "an event has no features"
    return made


def with_terminals(events: pl.DataFrame, terminal: pl.Series, folder: Path) -> pl.DataFrame:
    """The events with the features of their terminals from a first stage; `terminal` [N] in their order.

    The report of a purchase comes seven days after it, and before a purchase of the same moment.
    """
    purchases = events.select("id", time=pl.col("time").dt.epoch("ms")).with_columns(terminal=terminal)
    reports = purchases.select(
        pl.lit(None, pl.Int64).alias("id"), pl.col("time") + DELAY_MS, "terminal", kind=pl.lit("report")
    ).with_columns(fraud=events["fraud"])
    both = pl.concat([reports, purchases.with_columns(pl.col("id").cast(pl.Int64))], how="diagonal")
    added = list(STAGE["output"]["events"]["add"])  # type: ignore[index]
    made = run_stage(STAGE, both.sort("time", maintain_order=True), added, folder)
    return events.drop(added).hstack(made.drop("id").with_columns(pl.col("terminal_since") / 86_400))


def config(terminal: str, seed: int, training: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """The training configuration; `training` are options of that section."""
    numbers: list[Any] = [{"name": "amount", "history": ["1d", "7d", "30d"]}]
    if terminal != "none":
        logged = (*TERMINAL_LOGGED, *(CHAIN_LOGGED if terminal == "chain" else ()))
        numbers += [*TERMINAL_PLAIN, *({"name": name, "log": True} for name in logged)]
    return CONFIG | {
        "features": {"numbers": numbers, "elapsed": True},
        "model": CONFIG["model"] | model,
        "training": CONFIG["training"] | training | {"seed": seed},
    }


def training_data(events: pl.DataFrame, first: int, end: int) -> pl.DataFrame:
    """The events before day `end`: those from day `first` on are the training split, the others warm up.

    The validation split chooses nothing and is a copy of every tenth customer, as in fraud_weeks.py.
    """
    part = pl.when(pl.col("day") >= first).then(pl.lit("train")).otherwise(pl.lit(None))
    before = events.filter(pl.col("day") < end)
    whole = before.with_columns(pl.col("customer").cast(pl.String), part=part)
    copies = whole.filter(before["customer"] % 10 == 0)
    copies = copies.with_columns(
        customer="copy of " + pl.col("customer"), part=pl.when(pl.col("part") == "train").then(pl.lit("validation"))
    )
    return pl.concat([whole, copies])


def one_week(events: pl.DataFrame, begins: str, options: argparse.Namespace, seed: int, folder: Path) -> pl.DataFrame:
    """The scores of the test week for the training week that starts on the date `begins`."""
    day = (date.fromisoformat(begins) - START.date()).days
    week = options.days == "7"
    seen = events.filter(pl.col("day").is_between(day - WARM_UP_DAYS if week else 0, day + 20))
    first = day if week else 0
    training = {"epochs": options.epochs or (9 if week else 3)}
    settings = config(options.terminal, seed, training, {"hidden": options.hidden, "cell": options.cell})
    model = train(folder, training_data(seen, first, day + 7), settings)
    scored = seen.with_columns(score(folder, seen, model))
    return scored.filter(pl.col("day") >= day + 14).select(TRANSACTION_ID="id", score="score")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--shared", type=Path, default=root.parent / "shared", help="folder with fraud/ and scorers/")
    parser.add_argument("--seeds", type=int, default=1, help="number of runs, each with another seed")
    parser.add_argument("--terminal", choices=["outside", "product", "chain", "none"], default="outside")
    parser.add_argument("--days", choices=["7", "all"], default="7", help="of training")
    parser.add_argument("--epochs", type=int, help="of training; default: 9, or 3 with all days")
    parser.add_argument("--hidden", type=int, default=64, help="units of the recurrent layer")
    parser.add_argument("--cell", default="lstm", help="lstm, gru, mingru, minlstm, slstm or s4d")
    options = parser.parse_args()
    raw = read_transactions(options.shared)
    events = to_events(raw)
    if options.terminal in {"product", "chain"}:
        add_features = with_terminals if options.terminal == "product" else with_chain
        with tempfile.TemporaryDirectory(prefix="lstmstream-terminals-") as name:
            events = add_features(events, raw["TERMINAL_ID"].cast(pl.Int64), Path(name))
    means: dict[str, list[float]] = {name: [] for name in METRICS}
    for seed in range(options.seeds):
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="lstmstream-fraud-") as name:
            folder = Path(name)
            scores = pl.concat([one_week(events, begins, options, seed, folder / begins) for begins in WEEKS])
            weeks = evaluate(options.shared, scores, folder)
        for begins, found in zip(WEEKS, weeks, strict=True):
            print(f"seed {seed}  {begins}:  " + "  ".join(f"{name} {found[name]:.4f}" for name in METRICS))
        for metric, each in means.items():
            each.append(float(np.mean([found[metric] for found in weeks])))
        print(f"seed {seed}  {time.monotonic() - began:.0f} s", flush=True)
    for metric, each in means.items():
        spread = f" ± {np.std(each, ddof=1):.4f}" if len(each) > 1 else ""
        print(f"{metric}: {np.mean(each):.4f}{spread} over {len(each)} seeds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
