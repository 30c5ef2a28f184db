"""Where the states of each model begin: the floor records of the state topic, which are JSON (docs/architecture.md)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import orjson

from lstmstream.config import Config
from lstmstream.model import Card
from lstmstream.records import RecordBatch
from lstmstream.verify.alerts import Rules, read_history

_FLOOR = b"\x00"  # first byte of a floor record's key
_DECIDES = ("fingerprint", "ttl", "late", "key", "timestamp", "max_bytes", "others")  # what a state depends on
_NOWHERE = 2**62  # where an earlier version's floor does not say how far its group has come
_DEFAULT_MAX_FUTURE_S, _DEFAULT_RESET_AFTER = 365 * 86_400.0, 10


class Span(NamedTuple):
    """Offsets of the input that others may have answered."""

    first: int
    end: int
    alike: bool  # whether their records name the same model and version as the own ones


class Origins(NamedTuple):
    """Of one input partition."""

    first: int | None  # the least input offset from which any model has answered; None: none has
    own: int | None  # from which this model and these settings have
    topic_id: str = ""  # of the input that the own one names
    between: tuple[Span, ...] = ()  # where others have answered since the own origin
    alert_rules: tuple[tuple[int, Rules], ...] = ()  # policies for alerts, by the offset from which on they held
    seeded: bool = False  # whether the own states began with others, which were imported or built from history
    floor: int = 0  # of the own states
    stream_time_ms: int | None = None  # greatest event time before the floor, where it is noted
    moved: bool = False  # whether keys have come from other partitions, with their states
    outside_times: tuple[tuple[int, int], ...] = ()  # offset, and the time that events of elsewhere make it there
    moves: tuple[tuple[int, int], ...] = ()  # offset from which on the input has so many partitions


def read_origins(batches: Iterable[RecordBatch], wanted: dict[str, str]) -> tuple[Origins, list[dict[str, Any]]]:
    """From all records of one partition of the state topic; and the identities that are not `wanted`."""
    newest: dict[bytes, dict[str, Any]] = {}
    for records in batches:
        for key, value in zip(records.keys, records.values, strict=True):
            if key is not None and key[:1] == _FLOOR and (floor := _parse(value)) is not None:
                newest[key] = floor
    floors = list(newest.values())
    own = [floor for floor in floors if _decides(floor["identity"]) == wanted]
    others = [floor for floor in floors if floor not in own]
    first = min((at for floor in floors for at in (floor["origin"], *floor.get("earlier", ()))), default=None)
    if own:
        origin = own[0]["origin"]
        spans = [
            Span(max(origin, _answers_from(floor)), end, _alike(floor, own[0]))
            for floor in others
            if (end := floor.get("position", _NOWHERE)) > origin
        ]
        spans.append(Span(origin, _answers_from(own[0]), alike=True))
        # Answered with states that were dropped later, as those of a model that another one has replaced are.
        spans += [
            Span(max(origin, one[0]), one[1], _alike(floor, own[0]))
            for floor in floors
            if (one := floor.get("earlier")) and one[1] > origin
        ]
        origins = Origins(
            first,
            origin,
            str(own[0].get("input_topic_id", "")),
            tuple(spans),
            read_history(own[0]),
            bool(own[0].get("seed")),
            int(own[0].get("offset", origin)),
            own[0].get("stream_time_ms"),
            bool(own[0].get("moved_from")),
            tuple((int(offset), int(time_ms)) for offset, time_ms in own[0].get("outside_times", ())),
            tuple((int(offset), int(partitions)) for offset, _, partitions in own[0].get("moves", ())),
        )
    else:
        origins = Origins(first, None)
    return origins, [floor["identity"] for floor in others]


def identity_of(config: Config, card: Card) -> dict[str, str]:
    """What a floor record of this configuration says of the model and the settings that its states depend on."""
    ttl, unusual = config.state.ttl, []
    if config.input.max_future != _DEFAULT_MAX_FUTURE_S:
        unusual.append(f"max_future {config.input.max_future:g}")
    if config.state.reset_after_failures != _DEFAULT_RESET_AFTER:
        unusual.append(f"reset_after_failures {config.state.reset_after_failures:g}")
    if config.input.max_lateness is not None:
        unusual.append(f"max_lateness {round(1000 * config.input.max_lateness)}ms")
    if config.state.max_keys is not None:
        unusual.append(f"max_keys {config.state.max_keys}")
    if config.input.format != "json":
        unusual.append(f"format {config.input.format}")
    if config.input.unwrap:
        unusual.append(f"unwrap {config.input.unwrap}")
    return {
        "fingerprint": card.fingerprint,
        "ttl": "none" if ttl is None else f"{round(ttl * 1000)}ms",
        "late": config.input.late,
        "key": config.input.key or "the record's",
        "timestamp": config.input.timestamp or "the record's",
        "max_bytes": str(config.input.max_bytes),
        "others": ", ".join(unusual),
    }


def describe(identity: dict[str, Any]) -> str:
    """For a message."""
    settings = ", ".join(f"{name} {identity[name]}" for name in _DECIDES[1:] if identity.get(name))
    return f"model {identity.get('model')} version {identity.get('version')} ({settings})"


def _parse(value: bytes | None) -> dict[str, Any] | None:
    try:
        found = orjson.loads(value or b"")
        return found if isinstance(found["identity"], dict) and isinstance(found["origin"], int) else None
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None


def _answers_from(floor: dict[str, Any]) -> int:
    """A model whose states were rebuilt has answered nothing of what they were rebuilt from."""
    return int(floor.get("answers_from", floor["origin"]))


def _alike(floor: dict[str, Any], own: dict[str, Any]) -> bool:
    return all(floor["identity"].get(name) == own["identity"].get(name) for name in ("model", "version"))


def _decides(identity: dict[str, Any]) -> dict[str, str]:
    return {name: str(identity.get(name, "")) for name in _DECIDES}
