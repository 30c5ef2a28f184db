"""A daemon's life on the broker in memory, and its states as `lstmstream state` finds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lstmstream.states.export import export_states
from tests.serve.memory_world import INPUT, PARTITIONS
from tests.verify.world import NOW_MS, VerifyTransport, VerifyWorld

CONFIG = Path("c.yaml")
KEYS = [b"a", b"a2", b"b", b"\xff", b"", "Zoë".encode()]


class Opened(VerifyTransport):
    def close(self, timeout_s: float) -> None:
        """Nothing is open."""


def append(world: VerifyWorld, number: int) -> None:
    """One event for each key, in the partition of its place, later for later keys."""
    for place, key in enumerate(KEYS):
        at_ms = NOW_MS + 1000 * (10 * number + place)
        world.broker.append(INPUT, place % PARTITIONS, key, b'{"amount": %d}' % (number + place), at_ms, [])


def exported(tmp_path: Path, **options: Any) -> list[dict[str, Any]]:
    out = tmp_path / "states.jsonl"
    options = {"prefix": None, "partition": None, "stage": None, **options}
    assert export_states(CONFIG, out, **options) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]
