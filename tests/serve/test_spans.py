"""A span of OpenTelemetry for each batch, as a collector gets it."""

from __future__ import annotations

import gzip
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lstmstream.config import Config, load_config
from lstmstream.errors import CannotServe
from lstmstream.serve.clock import Clock
from lstmstream.serve.observers import StageTimer
from lstmstream.serve.startup import open_spans
from tests.serve.helpers import NumpyStep, batch, engine
from tests.serve.reference import Event
from tests.serve.test_observers import plan_of

TRACES = [f"00-{number + 1:032x}-{number + 1:016x}-01".encode() for number in range(200)]


class Collector:
    """Keeps the spans that it is sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[Any] = []
        self.status = 200
        self.asked = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.take(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                collector.asked.set()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1/traces"

    def take(self, body: bytes) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(group.resource)
            self.spans += [span for scope in group.scope_spans for span in scope.spans]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def config(folder: Path, endpoint: str | None) -> Config:
    path = folder / "c.yaml"
    path.write_text(
        "name: payments\nmodel: builtin:demo\nkafka: {bootstrap_servers: 'a:1'}\ninput: {topic: in}\n"
        "output: {topic: out}\n" + ("" if endpoint is None else f"tracing: {{endpoint: '{endpoint}'}}\n")
    )
    return load_config(path, {})


def values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


class AtTime(Clock):
    def wall_s(self) -> float:
        return 1000.0


def test_a_committed_batch_is_a_span_with_links_to_its_records(tmp_path: Path, collector: Collector) -> None:
    timer = StageTimer(lambda: 0.0)
    spans = open_spans(config(tmp_path, collector.url), timer, AtTime())
    assert spans is not None
    timer.add("poll", 50.0)
    timer.add("step", 2.0)
    timer.add("commit", 1.0)
    events = [Event(0, n, 1, b"a", b'{"amount":1}' if n else b"bad") for n in range(200)]
    headers = [(("traceparent", TRACES[n // 2 * 2]),) if n < 6 else () for n in range(200)]
    spans.on_commit(engine(NumpyStep()).process(batch(events, headers=headers)), plan_of(), 1.0)
    spans.on_commit(engine(NumpyStep()).process(batch([])), plan_of(), 1.0)
    spans.close()
    (span,) = collector.spans
    assert (span.name, span.kind) == ("process in", 5)
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (997 * 10**9, 1000 * 10**9)
    assert [(link.trace_id.hex(), link.span_id.hex()) for link in span.links] == [
        (f"{number:032x}", f"{number:016x}") for number in (1, 3, 5)
    ]
    found = values(span.attributes)
    assert found["messaging.batch.message_count"] == 200
    assert (found["lstmstream.predictions"], found["lstmstream.dead_letters"]) == (199, 1)
    assert (found["lstmstream.stage_seconds.step"], found["messaging.consumer.group.name"]) == (2.0, "payments")
    assert "lstmstream.stage_seconds.poll" not in found, "the time without events is not the batch's"
    assert values(collector.resources[0].attributes)["service.name"] == "payments"


def test_links_are_bounded(tmp_path: Path, collector: Collector) -> None:
    spans = open_spans(config(tmp_path, collector.url), StageTimer(lambda: 0.0), Clock())
    assert spans is not None
    events = [Event(0, n, 1, b"a", b'{"amount":1}') for n in range(200)]
    records = batch(events, headers=[(("traceparent", trace),) for trace in TRACES])
    spans.on_commit(engine(NumpyStep()).process(records), plan_of(), None)
    spans.close()
    assert len(collector.spans[0].links) == 128


def test_a_collector_that_is_away_holds_up_nothing(tmp_path: Path, collector: Collector) -> None:
    collector.status = 400
    spans = open_spans(config(tmp_path, collector.url), StageTimer(lambda: 0.0), Clock())
    assert spans is not None
    result = engine(NumpyStep()).process(batch([Event(0, 0, 1, b"a", b'{"amount":1}')]))
    for _ in range(5_000):  # more than wait to be sent
        spans.on_commit(result, plan_of(), None)
    spans.close()
    assert collector.asked.is_set()


def test_without_an_endpoint_nothing_is_loaded(tmp_path: Path) -> None:
    assert open_spans(config(tmp_path, None), StageTimer(lambda: 0.0), Clock()) is None
    code = "import sys, lstmstream.serve.process; assert not [m for m in sys.modules if m.startswith('opentelemetry')]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    monkeypatch.delitem(sys.modules, "lstmstream.serve.spans", raising=False)
    given = config(tmp_path, "http://127.0.0.1:9/v1/traces")
    with pytest.raises(CannotServe, match=r"^tracing\.endpoint needs opentelemetry-sdk and .*pip install '\.\[otel\]'"):
        open_spans(given, StageTimer(lambda: 0.0), Clock())
