"""`lstmstream state export`: the states to a file that other programs read."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson

from lstmstream.errors import CannotServe
from lstmstream.extras import require
from lstmstream.formats.timestamps import format_iso
from lstmstream.model import Card
from lstmstream.serve.state_records import StateIdentity
from lstmstream.serve.state_view import key_member, state_fields, state_parts
from lstmstream.serve.stream_time import NEVER
from lstmstream.states.command import say
from lstmstream.states.stored import StateTopicReader, StoredStates, opened, with_prefix
from lstmstream.whole_file import remedy_of, whole_file
from lstmstream.wording import counted

CHUNK_ROWS = 8_192
SUFFIXES = (".jsonl", ".parquet")


def export_states(config: Path, out: Path, *, prefix: str | None, partition: int | None, stage: str | None) -> int:
    """Write one row for each state. 1 where some cannot be read. Raises CannotServe."""
    to_screen = str(out) == "-"
    if not to_screen and out.suffix not in SUFFIXES:
        raise CannotServe(f"--out {out}: the file's name must end with .jsonl or .parquet")
    if out.suffix == ".parquet":
        require("tables", f"--out {out}: writing Parquet", otherwise="write .jsonl")
    wanted = None if prefix is None else os.fsencode(prefix)
    count, left_out = 0, _LeftOut()
    with (
        opened(config, stage=stage, say=say) as reader,
        contextlib.nullcontext(sys.stdout.buffer) if to_screen else _written(out) as file,
    ):
        if out.suffix == ".parquet":
            from lstmstream.states.parquet import write_parquet  # noqa: PLC0415 -- needs polars

            count = write_parquet(file, reader.card, reader.identity, _chosen(reader, partition, wanted, left_out))
        else:
            for stored in _chosen(reader, partition, wanted, left_out):
                count += _write_json(file, reader.card, reader.identity, stored)
    say(f"{counted(count, 'state was', 'states were')} written to {'standard output' if to_screen else out}")
    left_out.say()
    return 1 if left_out.damaged else 0


@dataclass(slots=True)
class _LeftOut:
    """What is in the state topic and not in the file."""

    erased: int = 0
    damaged: int = 0
    others: dict[StateIdentity, None] = field(default_factory=dict)

    def say(self) -> None:
        if self.erased:
            text = counted(self.erased, "state was", "states were")
            say(f"{text} left out: `state delete` has asked for their erasure, which no owner has confirmed yet")
        if self.damaged:
            text = counted(self.damaged, "record is", "records are")
            say(f"{text} damaged: the file lacks these states; the daemon rebuilds them from the input when it starts")
        for other in self.others:
            say(f"the topic also has states of {other}")


def _chosen(
    reader: StateTopicReader, partition: int | None, prefix: bytes | None, left_out: _LeftOut
) -> Iterator[StoredStates]:
    for stored in reader.read(partition):
        rows = with_prefix(stored, prefix)
        # Where the daemon does not run, the request stays here: whoever imports the file would bring the keys back.
        requested = [stored.slab.index[key] for key in stored.erasures.requested() if key in stored.slab.index]
        kept = rows[~np.isin(rows, requested)]
        left_out.erased += len(rows) - len(kept)
        left_out.damaged += stored.damaged
        left_out.others |= dict.fromkeys(stored.others)
        yield stored._replace(rows=kept)


@contextlib.contextmanager
def _written(out: Path) -> Iterator[IO[bytes]]:
    try:
        with whole_file(out) as file:
            yield file
    except OSError as error:
        raise CannotServe(f"--out {out}: cannot be written ({error.strerror or error}){remedy_of(error)}") from error


def _write_json(file: IO[bytes], card: Card, identity: StateIdentity, stored: StoredStates) -> int:
    common: dict[str, Any] = {"identity": identity.digest.hex()}
    if stored.stream_time_ms != NEVER:  # of no state alone: the newest event may have left none
        common["stream_time"] = format_iso(stored.stream_time_ms)
    for start in range(0, len(stored.rows), CHUNK_ROWS):
        rows = stored.rows[start : start + CHUNK_ROWS]
        lines = []
        for key, row in zip(stored.slab.index.keys_at(rows), rows.tolist(), strict=True):
            state = stored.slab.get(row)
            members: dict[str, Any] = {**key_member(key), **state_fields(stored.partition, state)}
            members |= {**common, "parts": state_parts(card, state.row)}
            lines.append(orjson.dumps(members, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))
        file.write(b"".join(lines))
    return len(stored.rows)
