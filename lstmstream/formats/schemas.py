"""Schemas of a registry, and the readers that are made of them, each once.

A number stands for one schema forever, so what was read is kept. That a number is not known may change, and is asked
for again after a while.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from lstmstream.errors import BadRecord
from lstmstream.formats.wire_format import split_frame

UNKNOWN_FOR_S = 60.0  # that a schema is not known is believed so long
MAX_KEPT = 10_000  # readers and reasons; hostile records may name as many numbers as they like


@dataclass(frozen=True, slots=True)
class Schema:
    """One schema as the registry has it."""

    kind: str  # AVRO, PROTOBUF or JSON
    text: str  # for Protobuf the file's descriptor in base64
    references: tuple[tuple[str, Schema], ...] = ()  # the name by which it is referred to → schema


class UnknownSchema(Exception):
    """The registry has no schema of this number, or one that leads nowhere; the text says which."""


class SchemaSource(Protocol):
    """Where schemas come from."""

    def schema(self, schema_id: int) -> Schema:
        """Raises UnknownSchema, or SchemaRegistryDown where it cannot be asked now."""


Read = Callable[[bytes], bytes]  # what follows the number of the schema → JSON text; raises BadRecord


class FramedReader:
    """Reads values that begin with the number of their schema."""

    def __init__(
        self,
        source: SchemaSource,
        kind: str,
        make: Callable[[Schema], Read],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`kind`: of the schemas. `make`: the reader for one; raises BadRecord where it cannot be used."""
        self._source = source
        self._kind = kind
        self._make = make
        self._clock = clock
        self._readers: dict[int, Read] = {}
        self._faults: dict[int, tuple[str, float]] = {}  # the reason, and until when it is believed

    def __call__(self, value: bytes) -> bytes:
        """The JSON text. Raises BadRecord, stage `decode`, and SchemaRegistryDown."""
        schema_id, body = split_frame(value)
        reader = self._readers.get(schema_id) or self._find(schema_id)
        try:
            return reader(body)
        except BadRecord as bad:
            raise BadRecord("decode", f"{bad} (schema {schema_id})") from bad

    def _find(self, schema_id: int) -> Read:
        reason, until = self._faults.get(schema_id, ("", -1.0))
        if self._clock() < until:
            raise BadRecord("decode", reason)
        self._make_room()
        try:
            schema = self._source.schema(schema_id)
        except UnknownSchema as unknown:
            reason = f"schema {schema_id}: {unknown}"
            self._faults[schema_id] = reason, self._clock() + UNKNOWN_FOR_S
            raise BadRecord("decode", reason) from unknown
        try:
            if schema.kind != self._kind:
                raise BadRecord("decode", f"it is of the type {schema.kind}, not {self._kind}; see input.format")
            reader = self._readers[schema_id] = self._make(schema)
        except BadRecord as bad:
            reason = f"schema {schema_id} cannot be used: {bad}"
            self._faults[schema_id] = reason, float("inf")
            raise BadRecord("decode", reason) from bad
        return reader

    def _make_room(self) -> None:
        for kept in (self._readers, self._faults):
            while len(kept) >= MAX_KEPT:
                del kept[next(iter(kept))]
