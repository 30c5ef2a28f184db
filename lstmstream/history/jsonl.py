"""Lines of JSON to chunks of columns, through the daemon's decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lstmstream.errors import BadRecord, CannotServe
from lstmstream.formats.field_names import MAX_LISTED, unknown_field
from lstmstream.formats.files import DataFile
from lstmstream.formats.json_documents import ABSENT, ONE_VALUE, field_getter, locate, may_be_a_table
from lstmstream.formats.values import Role, text_of
from lstmstream.history.fields import Chunk, Fields
from lstmstream.model.card import Card, Feature, StateSpec
from lstmstream.records import RecordBatch
from lstmstream.serve.decode import Decoder

CHUNK_LINES = 16_384  # parsed objects take several times the room of their text


class JsonlReader:
    """Reads files of JSON objects. A field may be absent from rows and from whole files, but not from all of them."""

    def __init__(self, fields: Fields) -> None:
        widths = zip(fields.numbers, fields.widths, strict=True)
        features = [Feature(name, "number", size=width) for name, width in widths]
        features += [Feature(name, "category", buckets=1) for name in fields.categories]
        card = Card("history", "1", "classify", tuple(features), StateSpec(1, (0.0,), ()), ())
        self._decoder = Decoder(card, key=fields.key, timestamp=fields.timestamp, silent=fields.silent)
        self._fields = fields
        self._unseen = set(fields.all())
        self._empty = True
        self._names: dict[str, None] = {}  # some of the names that the rows have, for a message

    def read(self, file: DataFile, first_row: int) -> Iterator[Chunk]:
        """The rows of one file, of which the first has the index `first_row` among all rows. Raises CannotServe."""
        row = 0  # in this file
        for values in file.batches(CHUNK_LINES):
            try:
                yield self._chunk(file.name, values, row, first_row)
            except CannotServe as error:
                if row or len(values) > 1 or not may_be_a_table(values[0]):
                    raise
                raise CannotServe(f"{error}; {ONE_VALUE}") from error
            row += len(values)

    def unknown_fields(self, where: object) -> list[str]:
        """A message for each field that no row has; none where there are no rows. `where` names the data."""
        if self._empty:
            return []
        return [unknown_field(where, name, self._names) for name in self._fields.all() if name in self._unseen]

    def _chunk(self, file: str, values: list[bytes], row: int, first_row: int) -> Chunk:
        count = len(values)
        self._empty = False
        observations, dead_letters, documents, _, silent, _, _ = self._decoder.decode(
            RecordBatch(
                topic=file,
                partitions=np.zeros(count, np.int64),
                offsets=np.arange(row, row + count),
                timestamps=np.arange(first_row + row, first_row + row + count) * 1000,
                keys=[b""] * count,
                values=list(values),
                headers=[()] * count,
            )
        )
        if dead_letters:
            where, reason = row + dead_letters[0].index, dead_letters[0].message
            raise CannotServe(f"{file}: row {where}: {reason}; fix the row, or remove it")
        self._note_fields(documents)

        def texts(name: str, role: Role) -> list[str | None]:
            return _texts(file, documents, name, row, role)

        fields = self._fields
        return Chunk(
            first_row=first_row + row,
            keys=[(key or b"").decode() for key in observations.keys],
            timestamp=observations.timestamps,
            x=observations.x,
            categories=[texts(name, "category") for name in fields.categories],
            label=None if fields.label is None else texts(fields.label, "label"),
            split=None if fields.split is None else texts(fields.split, "split"),
            silent=None if fields.silent is None else silent,
        )

    def _note_fields(self, documents: Sequence[dict[str, Any]]) -> None:
        """Notes which of the wanted fields have been seen, and some names of others."""
        if len(self._names) < MAX_LISTED:
            self._names |= dict.fromkeys(name for document in documents[:MAX_LISTED] for name in document)
        for name in list(self._unseen):
            if any(locate(document, name) is not ABSENT for document in documents):
                self._unseen.discard(name)


def _texts(file: str, documents: Sequence[dict[str, Any]], name: str, row: int, role: Role) -> list[str | None]:
    """[M] The field's text in each document. `row` is the first document's in the file. Raises CannotServe."""
    get = field_getter(name)
    texts = []
    for index, document in enumerate(documents):
        try:
            texts.append(text_of(get(document), name, role))
        except BadRecord as bad:
            raise CannotServe(f"{file}: row {row + index}: {bad}; fix the row, or remove it") from bad
    return texts
