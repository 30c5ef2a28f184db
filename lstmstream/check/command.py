"""`lstmstream check`: what it prints, and its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson

from lstmstream.check.checks import (
    TopicChecks,
    check_broker,
    check_config,
    check_model,
    check_packages,
    check_registry,
)
from lstmstream.check.results import Check, Status, failed
from lstmstream.config import Config
from lstmstream.errors import CannotServe, Fatal
from lstmstream.serve.step import OnnxStep
from lstmstream.transport.kafka_admin import open_kafka_admin
from lstmstream.transport.patient_broker import PatientBroker

LIMIT_S = 20.0  # a broker may take so long to answer
SIGNS = {Status.OK: "✓", Status.WARNING: "!", Status.FAILED: "✗"}
COLORS = {Status.OK: 32, Status.WARNING: 33, Status.FAILED: 31}  # of a terminal: green, yellow, red
PLAIN = {Status.OK: "ok", Status.WARNING: "warning", Status.FAILED: "FAILED"}  # where the terminal has no such signs


def check(path: Path, *, records: int, as_json: bool, stage: str | None = None) -> int:
    """Print one line per check as it is made. 0, or 1 if one has failed."""
    results = []
    for result in _checks(path, records, stage):
        results.append(result)
        if not as_json:
            print(_line(result), flush=True)
    bad = sum(result.status is Status.FAILED for result in results)
    if as_json:
        lines = [{"check": one.name, "status": one.status.value, "text": one.text} for one in results]
        print(orjson.dumps({"ok": not bad, "checks": lines}, option=orjson.OPT_INDENT_2).decode())
    elif bad:
        print(f"{bad} of {len(results)} checks failed", file=sys.stderr)
    return 1 if bad else 0


def _checks(path: Path, records: int, stage: str | None) -> Iterator[Check]:
    yield from check_packages()
    config, step = None, None
    for found in check_config(path, stage):
        if isinstance(found, Config):
            config = found
        else:
            yield found
    if config is None:
        return
    for made in check_model(config):
        if isinstance(made, OnnxStep):
            step = made
        else:
            yield made
    yield from check_registry(config)
    try:
        kafka = open_kafka_admin(config)
    except CannotServe as error:
        yield from (failed("broker", problem) for problem in error.problems)
        return
    try:
        reached = check_broker(kafka, config)
        yield reached
        if reached.status is Status.OK:
            yield from TopicChecks(PatientBroker(kafka, limit_s=LIMIT_S), config, step, records=records).run()
    except (CannotServe, Fatal) as error:
        yield failed("broker", str(error))
    finally:
        kafka.close(1.0)


def _line(result: Check) -> str:
    encoding = sys.stdout.encoding or "ascii"
    try:
        sign = SIGNS[result.status]
        sign.encode(encoding)
    except UnicodeEncodeError:
        sign = f"{PLAIN[result.status]:<7}"
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        sign = f"\x1b[{COLORS[result.status]}m{sign}\x1b[0m"
    return f"{sign} {result.name}: {result.text}"
