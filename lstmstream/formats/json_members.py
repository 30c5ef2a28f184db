"""Members of a JSON object as they are written: taken apart and put together without a digit being lost."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterable

import msgspec

from lstmstream.errors import BadRecord
from lstmstream.formats.json_documents import parse_document

_SPACE = b" \t\r\n"
_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def read_members(value: bytes | None, what: str) -> dict[str, bytes]:
    """Name → JSON text of the members of the object `value`; of duplicate names the last counts.

    Raises BadRecord, stage `decode`. Members are not looked into, but for that they are UTF-8. `what` begins the
    message where it is another JSON value than an object.
    """
    if value is None:
        raise BadRecord("decode", f"{what} is null")
    try:
        if not value.isascii():
            value.decode()  # msgspec does not look at the strings
        return {name: bytes(raw) for name, raw in _decode(value.removeprefix(BOM_UTF8)).items()}
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        try:
            parse_document(value)  # says what is wrong in the words of all other events
        except BadRecord as bad:
            raise BadRecord("decode", str(bad).replace("the value", what, 1)) from error
        raise BadRecord("decode", f"{what} is not a JSON object: {type(error).__name__}") from error


def with_members(value: bytes, members: Iterable[bytes]) -> bytes:
    """The JSON object `value` with these members, `"name":text` each, at its end."""
    added = b",".join(members)
    if not added:
        return value
    body = value.rstrip(_SPACE)[:-1].rstrip(_SPACE)
    return b"%b%b%b}" % (body, b"" if body.endswith(b"{") else b",", added)
