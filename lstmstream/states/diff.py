"""`lstmstream state diff`: a key's state beside the one that another model has after the same events of the input."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from lstmstream.config import Config, load_config
from lstmstream.errors import CannotServe
from lstmstream.logs import escape_untrusted
from lstmstream.model import Card
from lstmstream.records import Floats, Ints, Observations, RecordBatch
from lstmstream.row_progress import RowProgress
from lstmstream.serve.decode import Decoded
from lstmstream.serve.engine import Engine
from lstmstream.serve.erasures import Erasures, RebuildErasures
from lstmstream.serve.factory import load_step_model, make_engine, open_reader
from lstmstream.serve.scorer import Scorer
from lstmstream.serve.state import KeyState
from lstmstream.serve.state_view import key_member, state_fields, state_parts
from lstmstream.serve.stream_time import StreamTime
from lstmstream.states.command import SHOWN_VALUES, say
from lstmstream.states.stored import StateTopicReader, StoredStates, opened
from lstmstream.transport.schema_registry import read_patiently
from lstmstream.wording import counted


class _Other(NamedTuple):
    """Another model, and what makes its states."""

    config: Config
    card: Card
    engine: Engine


class _Pair(NamedTuple):
    """The states of one partition."""

    partition: int
    served: KeyState
    other: KeyState | None  # none of the events is still in the input, or none gave a state


def diff_states(config: Path, key: str, model: str, *, as_json: bool, stage: str | None) -> int:
    """Print both; 1 where the key has no state. Raises CannotServe."""
    loaded = load_config(config, stage=stage)
    other = _load(loaded, model)
    wanted, pairs = os.fsencode(key), []
    with opened(config, stage=stage, say=say) as reader:
        card = reader.card
        for stored in reader.read():
            row = stored.slab.index.get(wanted)
            if row is not None and row in stored.rows:
                served = stored.slab.get(row)
                pairs.append(_Pair(stored.partition, served, _follow(reader, other, wanted, stored, served)))
    if not pairs:
        say(f"no state of key {key!r} has been written yet")
        return 1
    if as_json:
        states = [_members(pair, card, other.card) for pair in pairs]
        body = {**key_member(wanted), "states": states}
        print(orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY).decode())
    else:
        for pair in pairs:
            _print(pair, card, other.card)
    return 0


def _load(config: Config, model: str) -> _Other:
    path = model if model.startswith("builtin:") else str(Path(model).absolute())
    changed = config.model_copy(update={"model": path, "model_sha256": None})
    _, step = load_step_model(changed)
    return _Other(config, step.card, make_engine(changed, step))


def _follow(
    reader: StateTopicReader, other: _Other, key: bytes, stored: StoredStates, served: KeyState
) -> KeyState | None:
    """The other model's state after the key's events that the input still has, up to the last one of the served one.

    Without those before the key was erased. With `state.max_keys` after the events of all keys: others may have had to
    go for them, or this one. With `input.max_lateness` the events of all keys are read, for their times.
    """
    topic, scorer, partition = other.config.input.topic, other.engine.scorer, stored.partition
    found = reader.broker.describe([topic]).get(topic)
    if found is None:
        raise CannotServe(f"input.topic: there is no topic {topic!r}, whose events the other model would read")
    salt = found.topic_id
    limited = RebuildErasures(stored.erasures, salt)
    kept = partial(_of_key, key=key, erasures=stored.erasures, salt=salt)
    events, slab = open_reader(other.config), scorer.states.open(partition)
    beginning, _ = reader.broker.offset_range(topic, partition)
    end = served.last_offset + 1
    only_mine = other.config.input.key is None and not (scorer.limits_keys or scorer.compares_times)
    with closing(RowProgress(f"{topic}[{partition}]")) as progress:
        for records in _read(reader, topic, stored, beginning, end, slab.stream_time):
            progress.update(int(records.offsets[-1]) - beginning, (records.offsets[-1] - beginning) / (end - beginning))
            some = records.take(np.flatnonzero([one == key for one in records.keys])) if only_mine else records
            if not len(some):
                continue
            decoded = other.engine.decode(read_patiently(events, some))
            if scorer.limits_keys:
                _replay_limited(scorer, partition, decoded, limited)
            else:
                scorer.replay(decoded.observations, decoded.silent, kept=kept)
    row = slab.index.get(key)
    return None if row is None else slab.get(row)


def _read(
    reader: StateTopicReader, topic: str, stored: StoredStates, beginning: int, end: int, stream_time: StreamTime
) -> Iterator[RecordBatch]:
    """The events between the two offsets, with the stream time raised where events of elsewhere have raised it."""
    start = beginning
    for offset, time_ms in stored.outside_times:
        if start < offset < end:
            yield from reader.broker.read(topic, stored.partition, start, offset)
            start = offset
        if offset <= start:
            stream_time.begin(start, max(stream_time.now_ms, time_ms))
    yield from reader.broker.read(topic, stored.partition, start, end)


def _of_key(observations: Observations, *, key: bytes, erasures: Erasures, salt: str) -> Ints:
    """The rows of those that are of the key, and were not erased."""
    mine = np.flatnonzero([one == key for one in observations.keys])
    kept = erasures.kept(observations.take(mine), salt)
    return mine if kept is None else mine[kept]


def _replay_limited(scorer: Scorer, partition: int, decoded: Decoded, erasures: RebuildErasures) -> None:
    """The events of all keys of the partition, which lose their states as the daemon's keys do."""
    observations, slab, start = decoded.observations, scorer.states.slabs[partition], 0
    while start < len(observations.offsets):
        slab.remove_all([key for key in erasures.take_due(int(observations.offsets[start])) if key in slab.index])
        end = int(np.searchsorted(observations.offsets, erasures.next_offset))
        part = np.arange(start, end)
        some = observations.take(part)
        erasures.note(some)
        scorer.replay(some, decoded.silent[part], evict=True)
        start = end


def _members(pair: _Pair, card: Card, other_card: Card) -> dict[str, Any]:
    found: dict[str, Any] = {"partition": pair.partition}
    for name, owner, state in (("served", card, pair.served), ("other", other_card, pair.other)):
        found[name] = (
            None
            if state is None
            else {
                "model": owner.name,
                "version": owner.version,
                **state_fields(pair.partition, state),
                "parts": state_parts(owner, state.row),
            }
        )
    found["difference"] = _differences(pair, card, other_card)
    return found


def _differences(pair: _Pair, card: Card, other_card: Card) -> dict[str, float]:
    """The largest of each part that both have in the same shape."""
    if pair.other is None:
        return {}
    one, two = state_parts(card, pair.served.row), state_parts(other_card, pair.other.row)
    same = [name for name, values in one.items() if name in two and two[name].shape == values.shape]
    return {name: float(np.abs(one[name] - two[name]).max(initial=0)) for name in same}


def _print(pair: _Pair, card: Card, other_card: Card) -> None:
    served, other = pair.served, pair.other
    print(f"partition {pair.partition}, up to offset {served.last_offset}")
    if other is None:
        print("the input has none of the key's events any more, so there is nothing to compare with")
        return
    if other.steps < served.steps:
        say(f"the other model has seen {counted(other.steps, 'event')} of the key, the served one {served.steps:,}")
    differences = _differences(pair, card, other_card)
    one, two = state_parts(card, served.row), state_parts(other_card, other.row)
    for name in dict.fromkeys([*one, *two]):
        largest = f"  largest difference {differences[name]:.6g}" if name in differences else ""
        print(f"{escape_untrusted(name)}{largest}")
        for whose, found in ((f"{card.name} {card.version}", one), (f"{other_card.name} {other_card.version}", two)):
            print(f"  {escape_untrusted(whose):<24}  {_shown(found[name]) if name in found else '-'}")


def _shown(values: Floats) -> str:
    more = f", … ({values.size} numbers)" if values.size > SHOWN_VALUES else ""
    return ", ".join(f"{value:.6g}" for value in values.ravel()[:SHOWN_VALUES]) + more
