"""Puts the parts together from a config and a model: the daemon and `score` do it alike, so they answer alike."""

from __future__ import annotations

from collections.abc import Collection

from lstmstream.config import Config
from lstmstream.errors import CannotServe
from lstmstream.extras import require
from lstmstream.formats.event_reader import EventReader
from lstmstream.model import Card, Model, load_model
from lstmstream.serve.alert_memory import AlertRules
from lstmstream.serve.alert_policy import AlertPolicy
from lstmstream.serve.decode import Decoder
from lstmstream.serve.device_choice import choose_step
from lstmstream.serve.encode import Encoder, OutputTopics
from lstmstream.serve.engine import Engine
from lstmstream.serve.enriched import EventWriter, prediction_column
from lstmstream.serve.expiry import Expiry
from lstmstream.serve.model_checks import probe
from lstmstream.serve.output_form import AvroOutput, Kind, OutputForm
from lstmstream.serve.scorer import Meaning, Scorer, Timer, no_timer
from lstmstream.serve.step import OnnxStep
from lstmstream.serve.step_model import StepModel
from lstmstream.transport.schema_registry import PASSWORD, RegistryClient, open_event_reader


def load_step_model(config: Config) -> tuple[Model, OnnxStep]:
    """Load and check the model. Raises CannotServe."""
    model = load_model(config.model, base=config.folder, sha256=config.model_sha256)
    device, threads, exact = config.device.device, config.device.threads, config.delivery == "exactly_once"
    step = OnnxStep(model, device=device, threads=threads, exact=exact)
    if device == "auto" and step.device != "cpu":
        cpu = OnnxStep(model, device="cpu", threads=threads, exact=exact)
        step = choose_step(cpu, step, events=config.batch.max_events)
    return model, step


def open_reader(config: Config) -> EventReader | None:
    """What makes JSON objects of the input's records; None where they are. Raises CannotServe."""
    source = config.input
    return open_event_reader(
        config.kafka,
        record_format=source.format,
        unwrap=source.unwrap,
        max_bytes=source.max_bytes,
        folder=config.folder,
        password_file=config.files.get(PASSWORD),
    )


def open_output_form(config: Config) -> OutputForm | None:
    """The form of predictions and alerts; None where they are plain JSON. Raises CannotServe."""
    output = config.output
    if output.format == "json" and output.cloudevents is None:
        return None
    topics: dict[Kind, str] = {"prediction": output.topic}
    if output.alerts_topic is not None:
        topics["alert"] = output.alerts_topic
    avro = None
    if output.format == "avro":
        require("avro", "output.format: avro")
        from lstmstream.formats.avro_predictions import SCHEMA_TEXTS, avro_record  # noqa: PLC0415 -- needs fastavro

        password_file = config.files.get(PASSWORD)
        registry = RegistryClient(config.kafka.schema_registry, config.folder, password_file=password_file)
        avro = AvroOutput(avro_record, lambda kind, topic: registry.register(f"{topic}-value", SCHEMA_TEXTS[kind]))
    return OutputForm(config.name, topics, avro=avro, cloudevents=output.cloudevents)


def make_engine(
    config: Config,
    step: StepModel,
    *,
    key_hashed: Collection[str] = (),
    from_file: bool = False,
    timer: Timer = no_timer,
    reader: EventReader | None = None,
    form: OutputForm | None = None,
) -> Engine:
    """The engine that answers as the config says. Raises CannotServe.

    `key_hashed`: see OutputTopics. `reader`: of `open_reader`, where the records come from Kafka. `form`: of
    `open_output_form`, where they go there.
    """
    card = step.card
    decoder = Decoder(
        card,
        key=config.input.key,
        timestamp=config.input.timestamp,
        max_bytes=config.input.max_bytes,
        max_future_ms=None if from_file else round(config.input.max_future * 1000),
        silent=config.input.silent.mark,
        reader=reader,
        texts=[*config.output.include, *([] if config.output.key is None else [config.output.key])],
    )
    encoder = Encoder(
        card,
        OutputTopics(config.output.topic, config.output.alerts_topic, config.dead_letter.topic, key_hashed),
        include=config.output.include,
        output_key=config.output.key,
        from_file=from_file,
        reasons=config.output.reasons,
        events=_event_writer(config, step),
        form=form,
        without_cloudevent=config.input.unwrap == "cloudevents" or config.output.cloudevents is not None,
    )
    rules = alert_rules(config, card)
    scorer = Scorer(
        step,
        _meaning(config, card),
        timer=timer,
        reasons=config.output.reasons > 0,
        policy=None if rules is None else AlertPolicy(rules),
    )
    return Engine(decoder, scorer, encoder, timer=timer)


def _event_writer(config: Config, step: StepModel) -> EventWriter | None:
    """Raises CannotServe where an output is to be added that the model does not have."""
    events = config.output.events
    if events.topic is None:
        return None
    prediction = step.step(probe(step.card, rows=1)).prediction
    columns = 0 if prediction is None else prediction.shape[1]
    names = step.card.prediction_names
    there = f"prediction[0] to prediction[{columns - 1}], or " if columns else ""
    named = f"; their names are {', '.join(names)}" if names else ""
    problems = [
        f"output.events.add.{name}: is {output}, and the predictions of model {step.card.name} have {columns} columns;"
        f" use {there}score{named}"
        for name, output in events.add.items()
        if (column := prediction_column(output, names)) is None or column >= columns
    ]
    if problems:
        raise CannotServe(*problems)
    return EventWriter(events.topic, events.key, events.add, names)


def alert_rules(config: Config, card: Card) -> AlertRules | None:
    """The settings of the alert policy; None: all alerts are published."""
    alerts = config.alerts
    if not alerts.any:
        return None
    return AlertRules(
        threshold=_threshold(config, card),
        cooldown_ms=None if alerts.cooldown is None else round(alerts.cooldown * 1000),
        hold=alerts.hold,
        end_record=alerts.end_record,
        max_per_hour=alerts.max_per_hour,
        mute=tuple(alerts.mute),
    )


def _threshold(config: Config, card: Card) -> float | None:
    return card.threshold if config.output.threshold is None else config.output.threshold


def _meaning(config: Config, card: Card) -> Meaning:
    return Meaning(
        ttl_ms=_ms(config.state.ttl),
        late=config.input.late,
        threshold=_threshold(config, card),
        reset_after=config.state.reset_after_failures,
        max_lateness_ms=_ms(config.input.max_lateness),
        max_keys=config.state.max_keys,
    )


def expiry_of(config: Config) -> Expiry:
    """Which keys can go."""
    limited = config.state.max_keys is not None
    return Expiry(_ms(config.state.ttl), _ms(config.input.max_lateness), incidents=config.alerts.any, limited=limited)


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
