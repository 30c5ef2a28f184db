"""A key's state as people and other programs read it: JSON members, and the row by the names of the card's parts."""

from __future__ import annotations

import math
from base64 import b64encode
from typing import Any

import numpy as np

from lstmstream.formats.timestamps import format_iso
from lstmstream.model import Card
from lstmstream.records import Floats
from lstmstream.serve.state import KeyState


def key_member(key: bytes | None) -> dict[str, str | None]:
    """`key`, or `key_base64` where it is not UTF-8, as predictions have it."""
    try:
        return {"key": None if key is None else key.decode()}
    except UnicodeDecodeError:
        return {"key_base64": b64encode(key or b"").decode()}


def state_parts(card: Card, rows: Floats) -> dict[str, Floats]:
    """A state row [S], or rows [N, S], by the names of the card's parts, each in its shape, or N of these."""
    parts = {}
    for part in card.state.parts:
        values = rows[..., part.offset : part.offset + math.prod(part.shape)]
        parts[part.name] = np.ascontiguousarray(values.reshape(*rows.shape[:-1], *part.shape))
    return parts


def state_fields(partition: int, state: KeyState) -> dict[str, Any]:
    """What belongs to a state besides its row."""
    return {
        "partition": partition,
        "offset": max(state.last_offset, -1),  # -1: it was there before the input
        "timestamp": format_iso(state.last_timestamp),
        "steps": state.steps,
        "failures": state.failures,
    }
