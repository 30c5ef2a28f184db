"""The live figures of all workers as those of one daemon: the same fields, added up, and one more, `workers`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from lstmstream import __version__
from lstmstream.serve.live_figures import MAX_ALERTS, MAX_PARTITIONS, MAX_REASONS, Bucket, Snapshot, latency, rounded


class WorkerView(NamedTuple):
    """A worker with its snapshot."""

    number: int
    label: str  # what messages call it
    stage: str | None  # whose process it is, where there are stages
    address: str
    restarts: int
    snapshot: Snapshot | None  # None: it does not answer, or is not read
    absence: str  # why there is none


def merge(views: Sequence[WorkerView], *, show_keys: bool, wall_s: Callable[[], float] = time.time) -> Snapshot:
    """Put together what workers say. `show_keys`: whether alerts keep the key and the event's fields."""
    found = [view.snapshot for view in views if view.snapshot]
    said = [(view.label, view.snapshot["reasons"]) for view in views if view.snapshot]
    silent = [f"{view.label}: {view.absence}" for view in views if not view.snapshot]
    reasons = [f"{label}: {reason}" for label, of_worker in said for reason in of_worker]
    batches = _sum(one["batches_per_s"] for one in found)
    events = _sum(one["batches_per_s"] * (one["batch_events"] or 0) for one in found)
    return {
        "time": round(wall_s(), 3),
        "name": next((one["name"] for one in found), ""),
        "version": __version__,
        "phase": ", ".join(sorted({one["phase"] for one in found} | ({"absent"} if silent else set()))),
        "ready": bool(found) and not silent and not reasons,
        "reasons": silent + reasons,
        "uptime_s": max((one["uptime_s"] for one in found), default=0),
        "model": next((one["model"] for one in found if one["model"]), None),
        "events_per_s": rounded(_sum(one["events_per_s"] for one in found)),
        "totals": _sums([one["totals"] for one in found], ("events", "predictions", "alerts", "dead_letters")),
        "latency": latency(_buckets(found)),
        "batches_per_s": rounded(batches),
        "batch_events": rounded(events / batches) if batches else None,
        "stages": {
            stage: rounded(_sum(one["stages"].get(stage, 0) for one in found) / len(found))
            for stage in (found[0]["stages"] if found else ())
        },
        "lag": _lag([(view.stage, view.snapshot["lag"]) for view in views if view.snapshot]),
        "state": _sums([one["state"] for one in found], ("keys", "bytes")),
        "memory_bytes": sum(one["memory_bytes"] or 0 for one in found),
        "cpu_cores": rounded(_sum(one["cpu_cores"] for one in found)),
        "restore": _restore([one["restore"] for one in found]),
        "scores": _scores([one["scores"] for one in found if one["scores"]]),
        "alerts": _alerts(found, show_keys=show_keys),
        "dead_letters": _dead_letters([one["dead_letters"] for one in found]),
        "workers": [_worker(view) for view in views],
    }


def _worker(view: WorkerView) -> dict[str, Any]:
    about: dict[str, Any] = {
        "number": view.number,
        "stage": view.stage,
        "address": view.address,
        "restarts": view.restarts,
    }
    if view.snapshot is None:
        return about | {"phase": "absent", "ready": False, "events_per_s": 0, "lag": None}
    one = view.snapshot
    return about | {
        "phase": one["phase"],
        "ready": one["ready"],
        "events_per_s": one["events_per_s"],
        "lag": one["lag"]["total"],
    }


def _sum(values: Iterable[float]) -> float:
    return sum(values, 0.0)


def _sums(parts: Sequence[dict[str, int]], names: Sequence[str]) -> dict[str, int]:
    return {name: sum(part[name] for part in parts) for name in names}


def _buckets(found: Sequence[Snapshot]) -> list[Bucket]:
    counts: dict[tuple[float, float | None], int] = {}
    for one in found:
        for low, high, count in one["latency"]["buckets"]:
            counts[low, high] = counts.get((low, high), 0) + count
    return [(low, high, count) for (low, high), count in sorted(counts.items(), key=lambda bucket: bucket[0][0])]


def _lag(found: Sequence[tuple[str | None, dict[str, Any]]]) -> dict[str, Any]:
    """While a partition moves two workers may name it; the larger is the older, as for the metric.

    Each stage has partitions of its own, which are named by it.
    """
    lags = [lag for _, lag in found]
    partitions: dict[tuple[str, int], list[Any]] = {}
    for stage, lag in found:
        for number, records, floor in lag["partitions"]:
            before = partitions.get((stage or "", number))
            if before is None or (records or 0) > (before[1] or 0):
                name = number if stage is None else f"{stage} {number}"
                partitions[stage or "", number] = [name, records, floor]
    worst = sorted(partitions, key=lambda at: -(partitions[at][1] or 0))[:MAX_PARTITIONS]
    known = [lag["total"] for lag in lags if lag["total"] is not None]
    return {
        "total": sum(known) if known else None,
        "count": sum(lag["count"] for lag in lags),
        "partitions": [partitions[at] for at in sorted(worst)],
    }


def _restore(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The least progress: all are done when the slowest is."""
    progress = [part["progress"] for part in parts if part["progress"] is not None]
    return {
        "records_remaining": sum(part["records_remaining"] for part in parts),
        "progress": min(progress, default=None),
    }


def _scores(parts: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Those of one model, and so of the same edges; stages may have others."""
    if not parts:
        return None
    same = [part["counts"] for part in parts if part["edges"] == parts[0]["edges"]]
    return parts[0] | {"counts": [sum(counts) for counts in zip(*same, strict=True)]}


def _alerts(found: Sequence[Snapshot], *, show_keys: bool) -> list[dict[str, Any]]:
    hidden = () if show_keys else ("key", "event")
    newest = sorted((alert for one in found for alert in one["alerts"]), key=lambda alert: -alert["at_s"])[:MAX_ALERTS]
    return [{name: value for name, value in alert.items() if name not in hidden} for alert in newest]


def _dead_letters(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for stage in {stage: None for part in parts for stage in part}:
        of_stage = [part[stage] for part in parts if stage in part]
        reasons = sorted((reason for one in of_stage for reason in one["reasons"]), key=lambda reason: -reason["at_s"])
        merged[stage] = {"count": sum(one["count"] for one in of_stage), "reasons": reasons[:MAX_REASONS]}
    return merged
