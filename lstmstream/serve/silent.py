"""Events that move their key's state and have no prediction: `input.silent`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import orjson

from lstmstream.errors import BadRecord
from lstmstream.formats.json_documents import Document
from lstmstream.formats.values import canonical_text, category_text
from lstmstream.records import Ints
from lstmstream.serve.event_fields import EventFields


class SilentField:
    """Reads the field that marks them. Its value is text, as a category's is. Holds no data between calls."""

    def __init__(self, name: str, equals: str) -> None:
        self._fields = EventFields([name])
        wanted = canonical_text(equals)

        @lru_cache(4096)
        def is_silent(text: bytes) -> bool | BadRecord:
            try:
                return category_text(orjson.loads(text), name) == wanted if text else False
            except BadRecord as bad:
                return bad

        self._is_silent = is_silent

    def read(self, values: list[bytes | None], documents: Sequence[Document], index: Ints) -> list[bool | BadRecord]:
        """Whether each event at `index` is silent, or why its value is refused. `documents` are the `values` parsed."""
        (texts,) = self._fields.read(values, documents, index)
        return list(map(self._is_silent, texts))
