"""Which states a configuration may use."""

from __future__ import annotations

from lstmstream.config import Config
from lstmstream.config.schema import MAX_FUTURE_S, RESET_AFTER
from lstmstream.model import Card
from lstmstream.serve.state_records import StateIdentity


def state_identity(config: Config, card: Card) -> StateIdentity:
    """The model, and the settings that decide what a state means and which events count (docs/semantics.md).

    Output settings are not among them: how a prediction is published decides nothing about a state.
    """
    ttl = config.state.ttl
    return StateIdentity(
        model=card.name,
        version=card.version,
        fingerprint=card.fingerprint,
        ttl="none" if ttl is None else f"{round(ttl * 1000)}ms",
        late=config.input.late,
        key=config.input.key or "the record's",
        timestamp=config.input.timestamp or "the record's",
        max_bytes=str(config.input.max_bytes),
        others=_unusual(config),
    )


def _unusual(config: Config) -> str:
    """Options that came later: named where they are not the default, so that the states of earlier versions count."""
    defaults = {
        "max_future": (config.input.max_future, MAX_FUTURE_S),
        "reset_after_failures": (config.state.reset_after_failures, RESET_AFTER),
    }
    found = [f"{name} {value:g}" for name, (value, default) in defaults.items() if value != default]
    if config.input.max_lateness is not None:
        found.append(f"max_lateness {round(config.input.max_lateness * 1000)}ms")
    if config.state.max_keys is not None:
        found.append(f"max_keys {config.state.max_keys}")
    if config.input.format != "json":
        found.append(f"format {config.input.format}")
    if config.input.unwrap is not None:
        found.append(f"unwrap {config.input.unwrap}")
    return ", ".join(found)
