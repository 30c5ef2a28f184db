"""`lstmstream verify`: its options, what it prints, and its exit code."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from lstmstream.config import load_config
from lstmstream.errors import CannotServe
from lstmstream.model import load_model
from lstmstream.row_progress import RowProgress
from lstmstream.transport.kafka_admin import open_kafka_admin
from lstmstream.transport.patient_broker import LIMIT_S, Stopped, connected
from lstmstream.verify.findings import MEANING, Finding
from lstmstream.verify.history import History
from lstmstream.verify.run import Verification
from lstmstream.verify.topics import Limits
from lstmstream.verify.values import Refused, read_time
from lstmstream.wording import counted

MAX_LISTED = 20  # findings on the screen; --json has more
ROUND_S = 2.0  # between two rounds of --follow


def verify(
    config: Path,
    *,
    sample: str | None = None,
    since: str | None = None,
    until: str | None = None,
    tolerance: float | None = None,
    follow: bool = False,
    as_json: bool = False,
    stopping: Callable[[], bool] | None = None,
    stage: str | None = None,
    history: History | None = None,
) -> int:
    """Verify what a daemon of this configuration has published. Raises CannotServe where it cannot be judged."""
    fraction, limits = _fraction(sample), _limits(since, until)
    if follow and until is not None:
        raise CannotServe("--follow and --to cannot be used together: give one of them")
    loaded = load_config(config, stage=stage)
    model = load_model(loaded.model, base=loaded.folder, sha256=loaded.model_sha256)
    stopping = stopping or (lambda: False)
    limit_s = math.inf if follow else LIMIT_S
    progress = RowProgress("verify")
    try:
        with connected(
            open_kafka_admin(loaded), "the topics cannot be read", limit_s=limit_s, stopping=stopping, say=_say
        ) as broker:
            verification = Verification(
                broker,
                loaded,
                model,
                limits=limits,
                sample=fraction,
                tolerance=tolerance,
                history=history,
                on_progress=progress.update,
            )
            _run(verification, follow=follow, as_json=as_json, stopping=stopping)
    except Stopped as error:
        raise CannotServe("stopped before the end; nothing was judged") from error
    finally:
        progress.close()
    summary = verification.summary()
    if as_json:
        if follow:
            del summary["findings"]  # each has had its line
        options = 0 if follow else orjson.OPT_INDENT_2
        sys.stdout.write(orjson.dumps(summary, option=options).decode() + "\n")
    else:
        _print_summary(summary, listed=not follow)
    return verification.exit_code


def _run(verification: Verification, *, follow: bool, as_json: bool, stopping: Callable[[], bool]) -> None:
    said = 0
    verification.round()
    with suppress(Stopped):  # what was judged before is still so
        while follow:
            kept = verification.comparison.findings.kept
            for finding in kept[said:]:
                print(orjson.dumps(finding.to_dict()).decode() if as_json else finding, flush=True)
            said = len(kept)
            if stopping():
                return
            time.sleep(ROUND_S)
            verification.round()


def _say(text: str) -> None:
    print(f"verify: {text}", file=sys.stderr, flush=True)


def _fraction(sample: str | None) -> float:
    if sample is None:
        return 1.0
    try:
        fraction = float(sample[:-1]) / 100 if sample.endswith("%") else float(sample)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction <= 1:
        raise CannotServe(f"--sample {sample}: is not a share of the keys; write it like 1% or 0.01")
    return fraction


def _limits(since: str | None, until: str | None) -> Limits:
    first, first_is_time = _bound("--from", since)
    last, last_is_time = _bound("--to", until)
    return Limits(first, last, first_is_time, last_is_time)


def _bound(option: str, text: str | None) -> tuple[int | None, bool]:
    """An offset, or the milliseconds of a time and True."""
    if text is None:
        return None, False
    if text.isascii() and text.isdigit():
        return int(text), False
    try:
        return read_time(text), True
    except Refused as refused:
        raise CannotServe(f"{option} {text}: is neither an offset nor an ISO 8601 time") from refused


def _print_summary(summary: dict[str, Any], *, listed: bool) -> None:
    for one in summary["partitions"]:
        print(
            f"partition {one['partition']}: events {one['from']} to {one['to']}, the group's offset is"
            f" {one['group_offset']}"
        )
    whose = "" if summary["sample"] == 1 else f" (values of {summary['sample']:.3g} of the keys)"
    print(
        f"{counted(summary['events'], 'event')}{whose}: {counted(summary['predictions'], 'prediction')},"
        f" {counted(summary['alerts'], 'alert')},"
        f" {counted(summary['dead_letters'], 'dead letter')} in {summary['seconds']:.1f} s"
    )
    if summary["enriched_events"] is not None:
        print(f"{summary['enriched_events']:,} of their enriched events are right")
    if summary["silent"]:
        print(f"{counted(summary['silent'], 'event has', 'events have')} no answer, as input.silent says")
    if summary["repeated"]:
        print(
            f"{counted(summary['repeated'], 'record was', 'records were')} repeated, as delivery at_least_once allows"
        )
    if summary["others"]:
        print(f"left out: {counted(summary['others'], 'record')} of other programs or inputs in these topics")
    for one in summary["unjudged"]:
        print(f"not judged: partition {one['partition']}, among events {one['from']} to {one['to']}: {one['reason']}")
    if listed:
        for finding in summary["findings"][:MAX_LISTED]:
            print(Finding(**finding))
        more = sum(summary["counts"].values()) - MAX_LISTED
        if more > 0:
            print(f"and {more:,} more; --json has up to 1,000")
    for kind, count in summary["counts"].items():
        if count:
            print(f"{kind.replace('_', ' ')}: {count:,} {MEANING[kind]}")
    results = {
        "right": "Each event was answered once, with the right record.",
        "findings": "The output is not what the input gives.",
        "not judged": "What could be judged is right, but not all could be.",
    }
    print(results[summary["result"]] if summary["events"] else "There is no event in this range.")
