"""The trace that a record belongs to, by its header `traceparent` (W3C Trace Context, section 3.2)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lstmstream.records import Headers, RecordBatch

_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")


class TracedLatency(NamedTuple):
    """The latency of one record, and its trace."""

    seconds: float
    trace: Mapping[str, str]  # `trace_id` and `span_id`, lower-case hexadecimal


def trace_of(headers: Headers) -> Mapping[str, str] | None:
    """The trace that the headers name; None where they name none, or not as the standard says."""
    for name, value in headers:
        if name == "traceparent" and value is not None and (found := _TRACEPARENT.fullmatch(value)):
            return {"trace_id": found[1].decode(), "span_id": found[2].decode()}
    return None


def slowest(records: RecordBatch, now_s: float) -> TracedLatency | None:
    """The record that waited longest, if it has a trace. `now_s`: seconds since 1970 UTC.

    Nothing is searched where the last record has no headers: whoever traces puts them on all.
    """
    if not len(records) or not records.headers[-1]:
        return None
    row = int(np.argmin(np.where(records.timestamps < 0, np.iinfo(np.int64).max, records.timestamps)))
    trace = trace_of(records.headers[row]) if records.headers[row] and records.timestamps[row] >= 0 else None
    return None if trace is None else TracedLatency(max(0.0, now_s - float(records.timestamps[row]) / 1000), trace)
