"""The client of the schema registry: what it asks, what it takes for an answer, and what it says of others."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from lstmstream.config.schema import Kafka, SchemaRegistry
from lstmstream.errors import CannotServe, SchemaRegistryDown
from lstmstream.formats.schemas import Schema, UnknownSchema
from lstmstream.formats.wire_format import frame
from lstmstream.records import RecordBatch
from lstmstream.transport import schema_registry
from lstmstream.transport.schema_registry import RegistryClient, open_event_reader, read_patiently
from tests.registry import Registry
from tests.transport.servers import Certificates

LOGIN = {"username": "reader", "password": "canary-hunter2"}


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as running:
        yield running


def client(url: str, *, folder: Path = Path(), serialized: bool = False, **settings: Any) -> RegistryClient:
    settings = {"timeout": "2s", **settings}
    made = SchemaRegistry.model_validate({"url": url, **settings})
    return RegistryClient(made, folder, serialized=serialized, sleep=lambda _s: None)


def test_a_schema_and_what_it_refers_to(registry: Registry) -> None:
    inner = registry.add("place/value", '"string"')
    registry.add("middle", '"int"', references=[("Place", "place/value", 1)])
    outer = registry.add("outer", '"long"', references=[("Middle", "middle", 1), ("Place", "place/value", 1)])
    asked = client(registry.url)
    assert asked.schema(inner) == Schema("AVRO", '"string"')
    place = Schema("AVRO", '"string"')
    middle = Schema("AVRO", '"int"', (("Place", place),))
    assert asked.schema(outer) == Schema("AVRO", '"long"', (("Middle", middle), ("Place", place)))
    assert "GET /subjects/place%2Fvalue/versions/1?deleted=true" in registry.requests


def test_protobuf_is_asked_for_as_a_descriptor(registry: Registry) -> None:
    number = registry.add("p", b"descriptor", "PROTOBUF")
    assert client(registry.url, serialized=True).schema(number) == Schema("PROTOBUF", "ZGVzY3JpcHRvcg==")
    assert registry.requests == [f"GET /schemas/ids/{number}?format=serialized"]


def test_a_schema_is_registered_once(registry: Registry) -> None:
    asked = client(registry.url)
    assert asked.register("a-value", '"int"') == asked.register("a-value", '"int"') == 1
    assert asked.register("a/b-value", '"long"') == 2
    assert registry.subjects == {"a-value": [1], "a/b-value": [2]}


def test_what_the_registry_does_not_have(registry: Registry) -> None:
    lost = registry.add("lost", '"int"', references=[("X", "nowhere", 1)])
    for number, said in ((99, "Schema not found"), (lost, "Version not found")):
        with pytest.raises(UnknownSchema, match=rf"^the schema registry does not have it \({said}\)$"):
            client(registry.url).schema(number)
    assert len(registry.requests) == 3, "that is an answer, and nothing is asked twice"


def test_what_may_pass_is_asked_again(registry: Registry) -> None:
    registry.fault = 503
    asked = client(registry.url)
    with pytest.raises(SchemaRegistryDown, match=rf"^{registry.url}: .* answered 503 \(out of order\)$"):
        asked.schema(1)
    assert len(registry.requests) == 3
    registry.fault, registry.requests = 401, []
    with pytest.raises(SchemaRegistryDown, match="answered 401"):
        asked.schema(1)
    assert len(registry.requests) == 1, "a password does not get right by itself"
    registry.fault, registry.requests = 0, []
    with pytest.raises(SchemaRegistryDown, match=r"the schema registry cannot be reached: Remote end closed"):
        asked.check()
    assert len(registry.requests) == 3
    registry.fault = None
    asked.check()


def test_nobody_is_there(registry: Registry) -> None:
    registry.stop()
    with pytest.raises(SchemaRegistryDown, match=r"cannot be reached: .*refused"):
        client(registry.url).schema(1)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"<html>", SchemaRegistryDown),
        (b'{"id": 1}', SchemaRegistryDown),
        (b'["schema"]', SchemaRegistryDown),
        (b'{"schema": 7}', SchemaRegistryDown),
        (b'{"schema": "x", "references": [{"name": "y"}]}', UnknownSchema),
        (b'{"schema": "x", "references": [7]}', UnknownSchema),
        (b'{"schema": "' + b"x" * 10_000_001 + b'"}', SchemaRegistryDown),
    ],
)
def test_answers_that_make_no_sense(registry: Registry, body: bytes, error: type[Exception]) -> None:
    registry.bodies["/schemas/ids/1"] = body
    with pytest.raises(error):
        client(registry.url).schema(1)


def test_schemas_that_refer_to_each_other_end(registry: Registry) -> None:
    for number, other in ((1, "b"), (2, "a")):
        assert registry.add("ab"[number - 1], f'"{number}"', references=[("X", other, 1)]) == number
    with pytest.raises(UnknownSchema, match="it refers to more than 200 other schemas"):
        client(registry.url).schema(1)


def test_a_password_may_be_replaced_in_its_file(registry: Registry, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("canary-hunter2\n")
    made = SchemaRegistry.model_validate({"url": registry.url, **LOGIN, "password": "canary-old"})
    asked = RegistryClient(made, Path(), password_file=file)
    registry.login = "reader:canary-hunter2"
    asked.check()
    registry.login = "reader:canary-hunter3"
    with pytest.raises(SchemaRegistryDown, match="answered 401"):
        asked.check()
    file.write_text("canary-hunter3\n")
    asked.check()


def test_the_password_goes_to_the_configured_address_only(registry: Registry) -> None:
    registry.login = "reader:canary-hunter2"
    client(registry.url, **LOGIN).check()
    with pytest.raises(SchemaRegistryDown, match="answered 401") as caught:
        client(registry.url, **{**LOGIN, "password": "canary-wrong"}).check()
    assert "canary" not in str(caught.value)
    seen: list[str | None] = []

    class Redirect(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_response(302)
            self.send_header("Location", f"{registry.url}/schemas/types")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    registry.requests.clear()
    with HTTPServer(("127.0.0.1", 0), Redirect) as server:
        Thread(target=server.handle_request, daemon=True).start()
        with pytest.raises(SchemaRegistryDown, match="answered 302"):
            client(f"http://127.0.0.1:{server.server_port}", **LOGIN).check()
    assert len(seen) == 1
    assert not registry.requests


def test_tls(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    certificate = certificates.certificate("server")
    with Registry(certificate=(certificate, tmp_path / "server.key")) as registry:
        client(registry.url, folder=tmp_path, ca="root.pem").check()
        with pytest.raises(SchemaRegistryDown, match="certificate verify failed"):
            client(registry.url).check()


def test_a_command_waits_for_the_registry_and_says_so_in_the_end(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.fault = 503
    number = registry.add("a", '{"type": "record", "name": "r", "fields": [{"name": "a", "type": "int"}]}')
    kafka = Kafka.model_validate({"bootstrap_servers": "h:1", "schema_registry": {"url": registry.url}})
    reader = open_event_reader(kafka, record_format="avro", unwrap=None, max_bytes=1000, folder=Path())
    zeros = np.zeros(1, np.int64)
    records = RecordBatch.to_write("in", zeros, zeros, [None], [frame(number, b"\x02")])
    monkeypatch.setattr(schema_registry, "PAUSES_S", (0.0,))
    with pytest.raises(CannotServe, match="answered 503"):
        read_patiently(reader, records, limit_s=0)

    def repaired(_s: float) -> None:
        registry.fault = None

    monkeypatch.setattr(schema_registry.time, "sleep", repaired)
    assert read_patiently(reader, records).values == [b'{"a":1}']
    assert read_patiently(None, records) is records


def test_plain_json_needs_no_reader() -> None:
    kafka = Kafka.model_validate({"bootstrap_servers": "h:1"})
    for unwrap, needed in ((None, False), ("after", True)):
        made = open_event_reader(kafka, record_format="json", unwrap=unwrap, max_bytes=1, folder=Path())
        assert (made is not None) is needed
