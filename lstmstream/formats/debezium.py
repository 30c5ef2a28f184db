"""Change events of Debezium: the row after the change is the event.

With and without the schema that Debezium's JSON converter puts around the change. Beside the row's columns the event
has `__op`, `__ts_ms` and `__source_ts_ms`, under the names that Debezium's own ExtractNewRecordState gives them.
A delete has no row after it, and there is nothing to score: it is a dead letter, and its key's state stays.
"""

from __future__ import annotations

from lstmstream.errors import BadRecord
from lstmstream.formats.json_members import read_members, with_members

_ROW, _OPERATION, _NULL = "after", "op", b"null"
_WITHOUT_ROW = {b'"d"': "a delete", b'"t"': "a truncation of the table", b'"m"': "a message of the database"}


def row_after(value: bytes) -> bytes:
    """The event of a change, as JSON text. Raises BadRecord, stage `decode`."""
    change = read_members(value, "the value")
    if _OPERATION not in change and "payload" in change:
        payload = change["payload"]
        if payload == _NULL:
            raise BadRecord("decode", "the Debezium envelope has no payload: a delete, of which there is no row")
        change = read_members(payload, "the payload of the Debezium envelope")
    if _OPERATION not in change:
        raise BadRecord("decode", "the value is not a Debezium change event: it has no member 'op'; see input.unwrap")
    operation, row = change[_OPERATION], change.get(_ROW, _NULL)
    if operation in _WITHOUT_ROW:
        raise BadRecord("decode", f"the change is {_WITHOUT_ROW[operation]}, after which there is no row to score")
    if row == _NULL:
        raise BadRecord("decode", "the change has no row in its member 'after'")
    if not row.startswith(b"{"):
        read_members(row, "the member 'after' of the change")  # raises
    added = [b'"__op":' + operation]
    added += [b'"__ts_ms":' + change["ts_ms"]] if "ts_ms" in change else []
    if (source_ms := _source_time(change.get("source", _NULL))) is not None:
        added.append(b'"__source_ts_ms":' + source_ms)
    return with_members(row, added)


def _source_time(source: bytes) -> bytes | None:
    try:
        return read_members(source, "the member 'source' of the change").get("ts_ms")
    except BadRecord:
        return None
