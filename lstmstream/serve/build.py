"""Put the engine together from a config and a model: the daemon and `score` do it alike, so they answer alike."""

from __future__ import annotations

from collections.abc import Collection

from lstmstream.config import Config
from lstmstream.model import Model, load_model
from lstmstream.serve.checkpoint import Owner
from lstmstream.serve.decode import Decoder
from lstmstream.serve.encode import Encoder
from lstmstream.serve.engine import Engine, Measure, unmeasured
from lstmstream.serve.step import OnnxStep


def open_model(config: Config) -> tuple[Model, OnnxStep]:
    """Load and check the model. Raises CannotServe."""
    model = load_model(config.model, base=config.folder)
    step = OnnxStep(
        model,
        device=config.device.device,
        threads=config.device.threads,
        exact=config.delivery == "exactly_once",
    )
    return model, step


def make_engine(
    config: Config,
    step: OnnxStep,
    *,
    hashed_topics: Collection[str] = (),
    from_file: bool = False,
    measure: Measure = unmeasured,
) -> Engine:
    """The engine that answers as the config says."""
    card = step.card
    decoder = Decoder(
        card,
        key=config.input.key,
        timestamp=config.input.timestamp,
        output_key=config.output.key,
        include=config.output.include,
        max_bytes=config.input.max_bytes,
    )
    encoder = Encoder(
        card,
        output_topic=config.output.topic,
        alerts_topic=config.output.alerts_topic,
        dead_letter_topic=config.dead_letter.topic,
        hashed_topics=hashed_topics,
        from_file=from_file,
    )
    ttl = config.state.ttl
    return Engine(
        step,
        decoder,
        encoder,
        ttl_ms=None if ttl is None else round(ttl * 1000),
        late=config.input.late,
        threshold=card.threshold if config.output.threshold is None else config.output.threshold,
        measure=measure,
    )


def owner_of(config: Config, step: OnnxStep) -> Owner:
    """Whose states these are: the model, and the settings that change what a state means."""
    ttl = config.state.ttl
    return Owner(
        model=step.card.name,
        version=step.card.version,
        fingerprint=step.card.fingerprint,
        ttl="none" if ttl is None else f"{round(ttl * 1000)}ms",
        late=config.input.late,
        key=config.input.key or "the record's",
        timestamp=config.input.timestamp or "the record's",
    )
