"""Reads the topics as a read_committed consumer outside the group does; the group's offsets say how far to judge."""

from __future__ import annotations

from dataclasses import dataclass

from lstmstream.config import Config
from lstmstream.errors import CannotServe
from lstmstream.model import Card
from lstmstream.transport.patient_broker import PatientBroker
from lstmstream.verify.alerts import Rules, rules_of
from lstmstream.verify.differences import ALERT, DEAD_LETTER, PREDICTION
from lstmstream.verify.erasures import Erasures
from lstmstream.verify.floors import describe, identity_of, read_origins
from lstmstream.verify.partition import PartitionRange

Bound = int | None  # an offset, for every partition; None: no bound


@dataclass(frozen=True, slots=True)
class Limits:
    """`--from` and `--to`: an offset, which holds for every partition, or milliseconds since 1970 UTC."""

    first: int | None = None
    last: int | None = None  # not included
    first_is_time: bool = False
    last_is_time: bool = False


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of a daemon as the broker has them."""

    input: str
    partitions: int
    outputs: dict[str, str]  # kind of record → topic
    counts: dict[str, int]  # kind of record → partitions of its topic
    hashed: frozenset[str]  # kinds whose partition is murmur2 of the key
    state: str


def find_topics(config: Config, broker: PatientBroker) -> Topics:
    """Raises CannotServe where something cannot be judged from these topics."""
    outputs = {PREDICTION: config.output.topic, DEAD_LETTER: config.dead_letter.topic}
    if config.output.alerts_topic is not None:
        outputs[ALERT] = config.output.alerts_topic
    found = broker.describe([config.input.topic, *outputs.values(), config.state.topic])
    options = {"input.topic": config.input.topic, "state.topic": config.state.topic}
    options |= {f"topic of each {kind}": topic for kind, topic in outputs.items()}
    problems = [f"{option}: there is no topic {name!r}" for option, name in options.items() if name not in found]
    for option, name in options.items():
        if name in found and name != config.state.topic and "compact" in found[name].settings.get("cleanup.policy", ""):
            problems.append(f"{option}: {name!r} is compacted, so it no longer has every record")
    if problems:
        raise CannotServe(*problems)
    partitions = found[config.input.topic].partitions
    counts = {kind: found[topic].partitions for kind, topic in outputs.items()}
    hashed = {kind for kind, count in counts.items() if count != partitions}
    if config.output.key is not None:
        hashed |= {PREDICTION, ALERT}
    return Topics(config.input.topic, partitions, outputs, counts, frozenset(hashed), config.state.topic)


def committed_offsets(broker: PatientBroker, topics: Topics) -> dict[int, int]:
    """How far the group has come. Raises CannotServe where it has not begun."""
    found = broker.group_offsets(topics.input, range(topics.partitions))
    if not found:
        raise CannotServe("the group has no committed offset: there is nothing to verify yet")
    return {partition: committed.offset for partition, committed in found.items()}


def plan(
    broker: PatientBroker,
    config: Config,
    card: Card,
    topics: Topics,
    committed: dict[int, int],
    limits: Limits,
    *,
    with_history: bool = False,
) -> dict[int, PartitionRange]:
    """What to read and judge of each partition. Raises CannotServe where no partition can be judged.

    `with_history`: the events are known that states were built from.
    """
    wanted = identity_of(config, card)
    ranges: dict[int, PartitionRange] = {}
    strangers: dict[str, None] = {}
    known = False
    topic_id = broker.describe([topics.input])[topics.input].topic_id
    for partition in range(topics.partitions):
        if partition not in committed:
            continue
        beginning, _ = broker.offset_range(topics.input, partition)
        states = broker.offset_range(topics.state, partition)
        erasures = Erasures()
        origins, others = read_origins(erasures.watched(broker.read(topics.state, partition, *states)), wanted)
        erasures.read_to = states[1]
        strangers |= {describe(identity): None for identity in others}
        if origins.topic_id and origins.topic_id != topic_id:
            raise CannotServe(
                f"input.topic: {topics.input!r} was created again after its events were answered; it is another topic"
            )
        start = max(beginning, beginning if origins.first is None else origins.first)
        own = committed[partition] if origins.own is None else max(start, origins.own)
        known = known or origins.own is not None
        from_history = with_history and not origins.moved
        whole = origins.own is not None and origins.own >= beginning and (from_history or not origins.seeded)
        newest_ms = None
        if config.input.max_lateness is not None and origins.own is not None and origins.own < beginning:
            # What the newest event was is known from the floor on: nothing before it can be judged.
            own, newest_ms = max(own, origins.floor), origins.stream_time_ms
        ranges[partition] = PartitionRange(
            start=start,
            own=own,
            first=max(start, _bound(broker, topics.input, partition, limits.first, start, time=limits.first_is_time)),
            last=_bound(broker, topics.input, partition, limits.last, 2**62, time=limits.last_is_time),
            whole=whole,
            seeded=origins.seeded,
            newest_ms=newest_ms,
            outside_times=() if from_history else origins.outside_times,  # the history itself says it
            moves=tuple((offset, partition, partitions) for offset, partitions in origins.moves),
            between=origins.between,
            alert_rules=origins.alert_rules,
            erasures=erasures,
            input_topic_id=topic_id,
        )
        if origins.own is not None:
            _check_rules(origins.alert_rules, rules_of(config, card))
    if with_history and not any(given.seeded for given in ranges.values()):
        raise CannotServe("--history: the states of this group were not built from history; leave it out")
    if not known:
        ours = describe({**wanted, "model": card.name, "version": card.version})
        theirs = "; ".join(strangers) or "nobody"
        raise CannotServe(f"the events were not answered with this model and these settings ({ours}), but by: {theirs}")
    return ranges


def _check_rules(history: tuple[tuple[int, Rules], ...], rules: Rules | None) -> None:
    """Raises CannotServe where the daemon has not run with the policy for alerts of the configuration."""
    theirs = history[-1][1] if history else None
    if theirs != rules:
        raise CannotServe(
            f"alerts: the events were answered with another policy for alerts ({_described(theirs)}) than that of the"
            f" configuration ({_described(rules)}); give verify the configuration that the daemon runs with"
        )


def _described(rules: Rules | None) -> str:
    if rules is None:
        return "none"
    return ", ".join(f"{name} {value}" for name, value in rules._asdict().items() if value not in (None, False, ()))


def _bound(broker: PatientBroker, topic: str, partition: int, bound: Bound, default: int, *, time: bool) -> int:
    if bound is None:
        return default
    if not time:
        return bound
    found = broker.offset_for_time(topic, partition, bound)
    return broker.offset_range(topic, partition)[1] if found is None else found
