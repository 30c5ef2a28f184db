"""A client of a schema registry, and the readers of records whose schemas are there.

It speaks the API of Confluent's registry, which Apicurio (`/apis/ccompat/v7`), Karapace and Redpanda have too.
"""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request

import orjson

from lstmstream.config.files import RenewableSecret
from lstmstream.config.schema import Kafka, SchemaRegistry
from lstmstream.errors import CannotServe, SchemaRegistryDown
from lstmstream.extras import require
from lstmstream.formats.event_reader import EventReader, ReadBody, json_schema_body
from lstmstream.formats.schemas import FramedReader, Schema, UnknownSchema
from lstmstream.records import RecordBatch
from lstmstream.transport.web import make_opener, read_response

MAX_REFERENCES = 200  # that one schema leads to
LIMIT_S, RETRY_S = 60.0, 1.0  # how long a command waits for a registry, and between two looks
PAUSES_S = (0.1, 0.4)  # before it is asked once more
PASSWORD = "kafka.schema_registry.password"  # noqa: S105 - the option, as it stands in `Config.files`
_MEDIA_TYPE = "application/vnd.schemaregistry.v1+json"
_UNKNOWN = {404}  # of a number, or of a version that a schema refers to
_PASSING = {408, 425, 429, 500, 502, 503, 504}


class RegistryClient:
    """Asks one registry. Every method raises SchemaRegistryDown where it gives no answer that says anything."""

    def __init__(
        self,
        registry: SchemaRegistry,
        folder: Path,
        *,
        serialized: bool = False,
        password_file: Path | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`serialized`: schemas of Protobuf as file descriptors. A relative path of `ca` starts from `folder`.

        `password_file`: where the password was read from; it is read again for each question.
        """
        assert registry.url is not None, "the configuration was checked"
        self._url = registry.url
        self._timeout_s = registry.timeout
        self._query, self._and_format = ("?format=serialized", "&format=serialized") if serialized else ("", "")
        self._sleep = sleep
        self._opener = make_opener(None if registry.ca is None else str(folder / registry.ca))
        self._username = registry.username
        password = registry.password
        self._password = None if password is None else RenewableSecret(password.get_secret_value(), password_file)

    def schema(self, schema_id: int) -> Schema:
        """The schema and all that it refers to. Raises UnknownSchema."""
        return self._with_references(self._ask(f"/schemas/ids/{schema_id}{self._query}"), [0])

    def register(self, subject: str, schema: str) -> int:
        """The number of an Avro schema under this subject; registers it if it is not there."""
        try:
            found = self._ask(f"/subjects/{quote(subject, safe='')}/versions", {"schema": schema, "schemaType": "AVRO"})
        except UnknownSchema as error:
            raise SchemaRegistryDown(f"{self._url}: the schema registry does not take {subject!r}: {error}") from error
        number = found.get("id")
        if type(number) is not int or not 0 <= number < 2**32:
            raise SchemaRegistryDown(f"{self._url}: the schema registry's answer has no id")
        return number

    def check(self) -> None:
        """Asks for something that every registry has."""
        self._ask("/schemas/types")

    def _with_references(self, answer: Mapping[str, Any], count: list[int]) -> Schema:
        text = answer.get("schema")
        if type(text) is not str:
            raise SchemaRegistryDown(f"{self._url}: the schema registry's answer has no schema")
        references = []
        for one in answer.get("references") or ():
            count[0] += 1
            if count[0] > MAX_REFERENCES:
                raise UnknownSchema(f"it refers to more than {MAX_REFERENCES} other schemas")
            try:
                name, subject, version = str(one["name"]), quote(str(one["subject"]), safe=""), int(one["version"])
            except (KeyError, TypeError, ValueError) as error:
                raise UnknownSchema("it refers to another schema without name, subject and version") from error
            # One that was deleted since is still needed to read what was written with it.
            inner = self._ask(f"/subjects/{subject}/versions/{version}?deleted=true{self._and_format}")
            references.append((name, self._with_references(inner, count)))
        return Schema(str(answer.get("schemaType") or "AVRO"), text, tuple(references))

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The answer to a GET, or to a POST of `body`."""
        for pause_s in (*PAUSES_S, None):
            try:
                found = orjson.loads(self._answer(path, body))
                return found if isinstance(found, dict) else {"answer": found}
            except HTTPError as error:
                with error:
                    said = _message(error)
                if error.code in _UNKNOWN:
                    raise UnknownSchema(f"the schema registry does not have it ({said})") from error
                problem = f"answered {error.code} ({said})"
                if error.code not in _PASSING or pause_s is None:
                    raise SchemaRegistryDown(f"{self._url}: the schema registry {problem}") from error
            except (OSError, HTTPException, ValueError) as error:  # a URLError is an OSError
                reason = error.reason if isinstance(error, URLError) else error
                if pause_s is None:
                    raise SchemaRegistryDown(
                        f"{self._url}: the schema registry cannot be reached: {reason or type(error).__name__}"
                    ) from error
            self._sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    def _answer(self, path: str, body: Mapping[str, Any] | None) -> bytes:
        data = None if body is None else orjson.dumps(body)
        headers = {"Accept": f"{_MEDIA_TYPE}, application/json", "User-Agent": "lstmstream"}
        if data is not None:
            headers["Content-Type"] = _MEDIA_TYPE
        if self._username is not None and self._password is not None:
            user = f"{self._username}:{self._password.current()}".encode()
            headers["Authorization"] = f"Basic {b64encode(user).decode()}"
        request = Request(self._url + path, data, headers)  # noqa: S310 - the configuration allows http and https only
        return read_response(self._opener, request, self._timeout_s)


def _message(error: HTTPError) -> str:
    """What the registry says of its error."""
    try:
        said = orjson.loads(error.read(10_000))["message"]
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        said = error.reason
    return " ".join(str(said).split())[:200]


def open_event_reader(
    kafka: Kafka,
    *,
    record_format: str,
    unwrap: str | None,
    max_bytes: int,
    folder: Path,
    password_file: Path | None = None,
) -> EventReader | None:
    """What makes JSON objects of the records; None where they are JSON objects. Raises CannotServe.

    `record_format` and `unwrap` are those of `input`; `password_file` is RegistryClient's. Nothing is asked for yet.
    """
    if record_format == "json" and unwrap is None:
        return None
    body_reader = _body_reader(kafka, record_format, folder, password_file)
    return EventReader(body_reader, unwrap, max_bytes=max_bytes)


def read_patiently(reader: EventReader | None, records: RecordBatch, limit_s: float = LIMIT_S) -> RecordBatch:
    """The records with JSON objects as values. Raises CannotServe where the registry is away for so long."""
    if reader is None:
        return records
    give_up_s = time.monotonic() + limit_s
    while True:
        try:
            return reader.read(records)
        except SchemaRegistryDown as error:
            if time.monotonic() >= give_up_s:
                raise CannotServe(str(error)) from error
            time.sleep(RETRY_S)


def _body_reader(kafka: Kafka, record_format: str, folder: Path, password_file: Path | None) -> ReadBody | None:
    if record_format == "json":
        return None
    if record_format == "json_schema":
        return json_schema_body
    if record_format == "avro":
        require("avro", "input.format: avro")
        from lstmstream.formats.avro import avro_reader  # noqa: PLC0415 -- needs fastavro

        registry = RegistryClient(kafka.schema_registry, folder, password_file=password_file)
        return FramedReader(registry, "AVRO", avro_reader)
    from lstmstream.formats.protobuf import protobuf_reader  # noqa: PLC0415 -- takes a while to load

    registry = RegistryClient(kafka.schema_registry, folder, serialized=True, password_file=password_file)
    return FramedReader(registry, "PROTOBUF", protobuf_reader)
