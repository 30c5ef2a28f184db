"""`lstmstream state export`: the states to a file that other programs read."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from lstmstream.errors import CannotServe
from lstmstream.extras import require
from lstmstream.model import Card
from lstmstream.serve.state_records import StateIdentity
from lstmstream.serve.state_view import key_member, state_fields, state_parts
from lstmstream.states.command import say
from lstmstream.states.stored import StateTopicReader, StoredStates, opened, with_prefix
from lstmstream.whole_files import whole_file
from lstmstream.wording import counted

CHUNK_ROWS = 8_192
SUFFIXES = (".jsonl", ".parquet")


def export_states(config: Path, out: Path, *, prefix: str | None, partition: int | None, stage: str | None) -> int:
    """Write one row for each state. Raises CannotServe."""
    to_screen = str(out) == "-"
    if not to_screen and out.suffix not in SUFFIXES:
        raise CannotServe(f"--out {out}: the file's name must end with .jsonl or .parquet")
    if out.suffix == ".parquet":
        require("tables", f"--out {out}: writing Parquet", otherwise="write .jsonl")
    wanted = None if prefix is None else os.fsencode(prefix)
    count = 0
    with (
        opened(config, stage=stage, say=say) as reader,
        contextlib.nullcontext(sys.stdout.buffer) if to_screen else _written(out) as file,
    ):
        if out.suffix == ".parquet":
            from lstmstream.states.parquet import write_parquet  # noqa: PLC0415 -- needs polars

            count = write_parquet(file, reader.card, reader.identity, _chosen(reader, partition, wanted))
        else:
            for stored in _chosen(reader, partition, wanted):
                count += _write_json(file, reader.card, reader.identity, stored)
    say(f"{counted(count, 'state was', 'states were')} written to {'standard output' if to_screen else out}")
    return 0


def _chosen(reader: StateTopicReader, partition: int | None, prefix: bytes | None) -> Iterator[StoredStates]:
    for stored in reader.read(partition):
        yield stored._replace(rows=with_prefix(stored, prefix))


@contextlib.contextmanager
def _written(out: Path) -> Iterator[BinaryIO]:
    """A file that is there once it is whole: a part of the states would look like all of them."""
    try:
        with whole_file(out) as file:
            yield file
    except OSError as error:
        raise CannotServe(f"--out {out}: cannot be written ({error.strerror or error})") from error


def _write_json(file: BinaryIO, card: Card, identity: StateIdentity, stored: StoredStates) -> int:
    owner = identity.digest.hex()
    for start in range(0, len(stored.rows), CHUNK_ROWS):
        rows = stored.rows[start : start + CHUNK_ROWS]
        lines = []
        for key, row in zip(stored.slab.index.keys_at(rows), rows.tolist(), strict=True):
            state = stored.slab.get(row)
            members: dict[str, Any] = {**key_member(key), **state_fields(stored.partition, state)}
            members |= {"identity": owner, "parts": state_parts(card, state.row)}
            lines.append(orjson.dumps(members, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))
        file.write(b"".join(lines))
    return len(stored.rows)
