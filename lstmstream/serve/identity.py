"""Which states a configuration may use."""

from __future__ import annotations

from lstmstream.config import Config
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
    )
