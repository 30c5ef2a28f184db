"""A span of OpenTelemetry for each committed batch, linked to the traces of its records (extra `otel`).

Loaded only where `tracing.endpoint` is set. Names are those of OpenTelemetry's conventions for messaging.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags

from lstmstream import __version__
from lstmstream.config import Config
from lstmstream.records import RecordBatch
from lstmstream.serve.observers import Observer
from lstmstream.serve.traces import trace_of

if TYPE_CHECKING:
    from lstmstream.serve.checkpoint import CheckpointPlan
    from lstmstream.serve.engine import Result

MAX_LINKS = 128  # of one span; the SDK's own default


class SpanObserver(Observer):
    """Exports the spans on a thread of its own; where the collector is away they are lost, and nothing waits."""

    def __init__(self, config: Config, spent: Callable[[], Mapping[str, float]], wall_s: Callable[[], float]) -> None:
        """`spent`: seconds in each stage since the last commit. `wall_s`: seconds since 1970 UTC."""
        self._spent, self._wall_s = spent, wall_s
        self._topic = config.input.topic
        self._always: dict[str, str] = {
            "messaging.system": "kafka",
            "messaging.operation.type": "process",
            "messaging.destination.name": config.input.topic,
            "messaging.consumer.group.name": config.name,
        }
        resource = Resource.create(
            {
                "service.name": os.environ.get("OTEL_SERVICE_NAME", config.name),
                "service.version": __version__,
                "service.instance.id": str(config.kafka.properties.get("group.instance.id", os.getpid())),
            }
        )
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=config.tracing.endpoint)))
        self._tracer = self._provider.get_tracer("lstmstream", __version__)

    def on_commit(self, result: Result, plan: CheckpointPlan, duration_s: float | None) -> None:
        """See Observer. With commits beside the loop, stages of the next batch may count in."""
        if not len(result.records):
            return
        spent_s = {stage: seconds for stage, seconds in self._spent().items() if stage != "poll"}
        end_s = self._wall_s()
        start_s = end_s - max(duration_s or 0.0, sum(spent_s.values()))
        span = self._tracer.start_span(
            f"process {self._topic}",
            kind=SpanKind.CONSUMER,
            links=links_of(result.records),
            start_time=_ns(start_s),
            attributes={
                **self._always,
                "messaging.batch.message_count": len(result.records),
                "lstmstream.predictions": len(result.predictions.index),
                "lstmstream.dead_letters": len(result.dead_letters),
                "lstmstream.states_written": sum(map(len, plan.records)),
                **{f"lstmstream.stage_seconds.{stage}": seconds for stage, seconds in spent_s.items()},
            },
        )
        span.end(_ns(end_s))

    def close(self) -> None:
        """Send what is left, for a few seconds at most."""
        self._provider.shutdown()


def links_of(records: RecordBatch) -> list[Link]:
    """To the traces that the records name, each once, in the order of the records; MAX_LINKS at most."""
    found: dict[tuple[str, str], None] = {}
    for headers in records.headers:
        if headers and (trace := trace_of(headers)) is not None:
            found[trace["trace_id"], trace["span_id"]] = None
            if len(found) == MAX_LINKS:
                break
    return [
        Link(SpanContext(int(trace, 16), int(span, 16), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)))
        for trace, span in found
    ]


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
