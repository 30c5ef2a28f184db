"""Fields of events as JSON text, to be written into predictions.

Most values would be written as they came. The compiled codec, or msgspec, finds these without a parsed document, which
would cost more than all else that is done for an event; tests/serve/test_event_fields.py compares with the document.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from operator import attrgetter

import msgspec
import orjson

from lstmstream import codec
from lstmstream.formats.json_documents import ABSENT, Document, dump_finite, locate, may_be_rounded, parse_digits
from lstmstream.records import Ints, pick

_PLAIN_NAME = re.compile(r'[^\x00-\x1f."\\]+').fullmatch  # of a field of the event itself, written without escapes
# A string without escapes, an integer of 18 digits, a float of 15 that is at least 0.001: orjson writes them so again.
_WRITTEN_SO = (
    rb'(?:"[^\x00-\x1f"\\]*"|true|false|null|0|-?[1-9][0-9]{0,17}'
    rb"|-?[1-9][0-9]{0,8}\.(?:0|[0-9]{0,5}[1-9])|-?0\.(?!000)(?:0|[0-9]{0,13}[1-9]))?"
)
_IS_WRITTEN_SO = re.compile(_WRITTEN_SO).fullmatch
_ALL_ARE_WRITTEN_SO = re.compile(rb"(?:%b\n)*" % _WRITTEN_SO).fullmatch


def plain_names(names: Sequence[str]) -> list[str]:
    """Those whose texts can be found without a parsed document, each once."""
    return [name for name in dict.fromkeys(names) if _PLAIN_NAME(name)]


class EventFields:
    """Reads the fields of these names from events that were decoded. Holds no data between calls."""

    def __init__(self, names: Sequence[str]) -> None:
        """A name with a dot may lead into an object: `locate` in formats/json_documents.py."""
        self._names = names
        self._top_level = plain_names(names)
        self._encoded = tuple(name.encode() for name in self._top_level)
        places = [f"f{number}" for number in range(len(self._top_level))]
        self._getters = [attrgetter(place) for place in places]
        event = msgspec.defstruct(
            "Event",
            [(place, msgspec.Raw, msgspec.Raw()) for place in places],
            rename=dict(zip(places, self._top_level, strict=True)),
            frozen=True,
            gc=False,
        )
        self._decode = msgspec.json.Decoder(event).decode

    def read(
        self,
        values: list[bytes | None],
        documents: Sequence[Document],
        index: Ints,
        texts: Mapping[str, list[bytes | None]] | None = None,
    ) -> list[list[bytes]]:
        """For each name the texts in the events at `index`; empty where it is absent or cannot be written as JSON.

        `documents` are the `values` parsed. `texts` are those that were found as the events were decoded, by name, with
        None where the document has to say. An integer beyond 64 bits is written with its own digits.
        """
        taken = pick(values, index)
        chosen: list[bytes] = [value or b"" for value in taken] if None in taken else taken  # type: ignore[assignment]
        if texts is not None and texts.keys() >= set(self._top_level):
            found = {name: pick(texts[name], index) for name in self._top_level}
        else:
            found = dict(zip(self._top_level, self._read_top_level(chosen), strict=True))
        columns = []
        for name in self._names:
            column = found.get(name, [None] * len(chosen))
            columns.append(
                [
                    _text(documents[i], name, value) if text is None else text
                    for i, text, value in zip(index.tolist(), column, chosen, strict=True)
                ]
                if None in column
                else column
            )
        return columns  # type: ignore[return-value]  # no None is left

    def _read_top_level(self, values: list[bytes]) -> list[list[bytes | None]]:
        """For each plain name the texts; None where the document has to say."""
        compiled = codec.load()
        if compiled is not None:
            columns: list[list[bytes | None]] | None = compiled.read_members(values, self._encoded)
            if columns is not None:
                return columns
        try:
            events = list(map(self._decode, values))
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return [[None] * len(values) for _ in self._top_level]
        return [only_written_so(list(map(bytes, map(get, events)))) for get in self._getters]


def only_written_so(texts: list[bytes]) -> list[bytes | None]:
    """Texts of values; None in place of those that would be written in another way."""
    if _ALL_ARE_WRITTEN_SO(b"\n".join([*texts, b""])):
        return texts  # type: ignore[return-value]  # a list of bytes is one of bytes or None
    return [text if _IS_WRITTEN_SO(text) else None for text in texts]


def string_texts(strings: list[str]) -> list[bytes | None]:
    """Strings as JSON: all at once where nothing is escaped but the line breaks between them."""
    text = orjson.dumps("\n".join(strings))
    if text.count(b"\\") == len(strings) - 1:
        return text.replace(b"\\n", b'"\n"').split(b"\n")  # type: ignore[return-value]  # a list of bytes is one of both
    return list(map(orjson.dumps, strings))


def _text(document: Document, name: str, text: bytes) -> bytes:
    """The definition."""
    value = locate(document, name)
    if value is ABSENT:
        return b""
    try:
        if may_be_rounded(value, text):
            value = locate(parse_digits(text), name)
        return dump_finite(value)
    except (ValueError, TypeError, RecursionError):  # not finite, or nested too deeply
        return b""
