"""`lstmstream capacity`: what is printed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import orjson

from lstmstream.capacity.measure import Costs, measure
from lstmstream.config import Config, load_config
from lstmstream.errors import CannotServe
from lstmstream.model import Card
from lstmstream.serve.checkpoint import EVENTS_PER_WRITE
from lstmstream.serve.factory import load_step_model
from lstmstream.wording import counted

MIB = 2**20
_BEGAN_BYTES = 8  # a followed state has beside its row where it began


def print_capacity(
    config: Path, *, keys: int, rate: float, seconds: float, as_json: bool, stage: str | None = None
) -> int:
    """Measure, and print. Raises CannotServe."""
    loaded = load_config(config, stage=stage)
    if loaded.input.format != "json" or loaded.input.unwrap is not None:
        raise CannotServe("input.format: capacity generates events as plain JSON; give it a configuration with these")
    _, step = load_step_model(loaded)
    if not as_json:
        print(f"capacity: measuring for {seconds:g} s ...", file=sys.stderr, flush=True)
    costs = measure(loaded, step, keys=keys, seconds=seconds)
    needs = plan(loaded, costs, keys=keys, rate=rate)
    if as_json:
        print(orjson.dumps({"measured": costs._asdict(), "needed": needs}, option=orjson.OPT_INDENT_2).decode())
    else:
        print("\n".join(lines(step.card, costs, needs, keys=keys, rate=rate)))
    return 0


def plan(config: Config, costs: Costs, *, keys: int, rate: float) -> dict[str, float]:
    """What `keys` keys and `rate` events per second need, all members of the group together."""
    written = min(rate / EVENTS_PER_WRITE, keys / config.state.checkpoint_interval)
    return {
        "memory_bytes": keys * costs.key_bytes,
        "standby_bytes": keys * (costs.key_bytes + _BEGAN_BYTES) * config.state.standby,
        "cores": rate * costs.cpu_us / 1e6,
        "restart_s": keys / costs.states_per_s,
        "state_topic_bytes": keys * costs.record_bytes,
        "states_written_per_s": written,
        "state_topic_bytes_per_s": written * costs.record_bytes,
    }


def lines(card: Card, costs: Costs, needs: dict[str, Any], *, keys: int, rate: float) -> list[str]:
    """A table for people."""
    rows = [
        ("", "measured", f"for {counted(keys, 'key')} and {rate:,.0f} events/s"),
        ("memory of states", f"{costs.key_bytes:,.0f} bytes per key", _size(needs["memory_bytes"])),
        ("CPU", f"{costs.cpu_us:.2f} us per event", f"{needs['cores']:.2f} cores"),
        ("restart", f"{costs.states_per_s:,.0f} states/s", f"{needs['restart_s']:,.1f} s, one worker"),
        ("state topic", f"{costs.record_bytes:,.0f} bytes per key", f"{_size(needs['state_topic_bytes'])} compacted"),
        (
            "states written",
            f"one for {EVENTS_PER_WRITE} events at most",
            f"{needs['states_written_per_s']:,.0f}/s, {_size(needs['state_topic_bytes_per_s'])}/s",
        ),
    ]
    if needs["standby_bytes"]:
        followed = ("memory of standbys", "", f"{_size(needs['standby_bytes'])} on the members that follow")
        rows.insert(2, followed)
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    table = [f"{name:<{widths[0]}}  {measured:<{widths[1]}}  {needed}".rstrip() for name, measured, needed in rows]
    head = f"model {card.name} version {card.version}, {card.state.size} numbers of state per key"
    return [
        f"{head}; batches of {costs.batch_events:,} events; {os.cpu_count()} cores here",
        "",
        *table,
        "",
        "On top come the process itself (about 100 MB), what it fetches, and what Kafka's client and the broker take.",
        "Partitions are divided among workers, and so are keys, events and the restart.",
    ]


def _size(count: float) -> str:
    return f"{count / MIB:,.1f} MiB" if count < 1024 * MIB else f"{count / (1024 * MIB):,.1f} GiB"
