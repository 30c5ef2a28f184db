"""`lstmstream state list | get`: what they print, and their exit codes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from lstmstream.formats.timestamps import format_iso
from lstmstream.logs import escape_untrusted
from lstmstream.serve.state import KeyState
from lstmstream.serve.state_records import StateIdentity
from lstmstream.serve.state_view import key_member, state_fields, state_parts
from lstmstream.states.stored import StateTopicReader, StoredStates, opened, with_prefix
from lstmstream.wording import counted

KEY_CHARS = 40  # on the screen
SHOWN_VALUES = 16  # of a part, on the screen


class _Listed(NamedTuple):
    key: bytes | None
    partition: int
    state: KeyState


def list_states(config: Path, *, prefix: str | None, limit: int, as_json: bool, stage: str | None) -> int:
    """Print the keys with the latest events. Raises CannotServe."""
    wanted = None if prefix is None else os.fsencode(prefix)
    latest: list[_Listed] = []
    total = damaged = 0
    others: dict[StateIdentity, None] = {}
    with opened(config, stage=stage, say=say) as reader:
        for stored in reader.read():
            rows = with_prefix(stored, wanted)
            total += len(rows)
            damaged += stored.damaged
            others |= dict.fromkeys(stored.others)
            newest = rows[np.argsort(-stored.slab.last_timestamp[rows], kind="stable")[:limit]]
            latest += map(
                _Listed,
                stored.slab.index.keys_at(newest),
                [stored.partition] * len(newest),
                map(stored.slab.get, newest.tolist()),
            )
            latest = sorted(latest, key=lambda one: -one.state.last_timestamp)[:limit]
        partitions = reader.partitions
    for one in latest:
        print(orjson.dumps(_members(one)).decode() if as_json else _line(one))
    shown = f"; the {len(latest):,} with the latest events are shown (--limit)" if len(latest) < total else ""
    say(f"{counted(total, 'state')} in {counted(partitions, 'partition')}{shown}")
    if damaged:
        say(f"{counted(damaged, 'record is', 'records are')} damaged; the daemon rebuilds such states from the input")
    for other in others:
        say(f"the topic also has states of {other}")
    return 0


def get_state(config: Path, key: str, *, as_json: bool, stage: str | None) -> int:
    """Print a key's state, of each partition that has one; 1 where none has. Raises CannotServe."""
    wanted = os.fsencode(key)
    with opened(config, stage=stage, say=say) as reader:
        found = [one for stored in reader.read() if (one := _of_key(stored, wanted)) is not None]
        card = reader.card
    if as_json:
        states = [{**_fields(reader, one), "parts": state_parts(card, one.state.row)} for one in found]
        body = {**key_member(wanted), "states": states}
        print(orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY).decode())
    else:
        for one in found:
            _print_state(reader, one)
    if not found:
        say(
            f"no state of key {key!r} has been written yet; the daemon may have one in memory (its endpoint /state/KEY)"
        )
        return 1
    return 0


def say(text: str) -> None:
    """To the person, beside what is printed."""
    print(f"state: {text}", file=sys.stderr, flush=True)


def _of_key(stored: StoredStates, key: bytes) -> _Listed | None:
    row = stored.slab.index.get(key)
    if row is None or row not in stored.rows:
        return None
    return _Listed(key, stored.partition, stored.slab.get(row))


def _members(one: _Listed) -> dict[str, Any]:
    return {**key_member(one.key), **state_fields(one.partition, one.state)}


def _fields(reader: StateTopicReader, one: _Listed) -> dict[str, Any]:
    return {"model": reader.card.name, "version": reader.card.version, **state_fields(one.partition, one.state)}


def _line(one: _Listed) -> str:
    state = one.state
    key = "(none)" if one.key is None else escape_untrusted(one.key, KEY_CHARS)
    failures = f"  {state.failures} failures in a row" if state.failures else ""
    at = f"{one.partition}@{max(state.last_offset, -1)}"
    steps = f"{state.steps:>9,} {'event ' if state.steps == 1 else 'events'}"
    return f"{key:<24}  {format_iso(state.last_timestamp)}  {steps}  {at:>12}{failures}"


def _print_state(reader: StateTopicReader, one: _Listed) -> None:
    width = max(len("partition"), *(len(part.name) for part in reader.card.state.parts))
    for name, value in _fields(reader, one).items():
        print(f"{name:<{width}}  {value}")
    for name, values in state_parts(reader.card, one.state.row).items():
        shown = ", ".join(f"{value:.6g}" for value in values.ravel()[:SHOWN_VALUES])
        more = f", … ({values.size} numbers; --json prints all)" if values.size > SHOWN_VALUES else ""
        print(f"{escape_untrusted(name):<{width}}  {shown}{more}")
