"""`on_model_change: replay` on a real broker: the new model has seen what the old one has answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson

from lstmstream.serve.state_records import ENTITY_KEY, key_kind
from tests.broker.harness import (
    RunningDaemon,
    committed_offsets,
    produce,
    read_all,
    two_models,
)
from tests.broker.test_states import state_command
from tests.broker.test_verify import verify

NOW_MS = 1_700_000_000_000
PARTITIONS = 2


def fill(broker: str, name: str, first: int, count: int) -> None:
    """Of each partition; a second apart."""
    records = [
        (b"k%d-%d" % (p, i % 3), b'{"amount": %d}' % i, NOW_MS + 1000 * i, p)
        for i in range(first, first + count)
        for p in range(PARTITIONS)
    ]
    produce(broker, f"{name}.in", records)


def serve(broker: str, name: str, config: Path, log: Path, end: int, *, gone: bytes = b"") -> None:
    """Until all up to `end` is answered, and the states of the model `gone` are deleted."""
    with RunningDaemon(config, log) as daemon:
        daemon.wait(lambda: committed_offsets(broker, name) == dict.fromkeys(range(PARTITIONS), end), "all answered")
        daemon.wait(lambda: gone not in models_with_states(broker, name), "the states of the other model are deleted")
        assert daemon.sigterm() == 0, daemon.last_words()


def steps_since(origin: int, answer: dict[str, Any]) -> bool:
    """Whether the key's state has all its events from this offset on, and none before."""
    offset = answer["source"]["offset"]
    return bool(answer["steps"] == sum(i % 3 == offset % 3 for i in range(origin, offset + 1)))


def answers(broker: str, name: str, first: int, last: int) -> list[dict[str, Any]]:
    found = [orjson.loads(record.value) for record in read_all(broker, f"{name}.out", partitions=PARTITIONS)]
    return [one for one in found if first <= one["source"]["offset"] < last]


def models_with_states(broker: str, name: str) -> set[bytes]:
    """Those of which the state topic has states, by the bytes in their record keys."""
    newest = {(r.partition, r.key): r.value for r in read_all(broker, f"{name}.state", partitions=PARTITIONS)}
    return {key_kind(key)[1] for (_, key), value in newest.items() if key[:1] == ENTITY_KEY and value is not None}


def test_a_new_model_goes_on_with_states_rebuilt_from_the_input(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    name = topic_prefix
    old, new = two_models(broker, name, tmp_path, partitions=PARTITIONS, replay="60s")
    fill(broker, name, 0, 100)
    serve(broker, name, old, tmp_path / "log1", 100)
    fill(broker, name, 100, 20)
    serve(broker, name, new, tmp_path / "log2", 120)
    ours = answers(broker, name, 100, 120)
    assert len(ours) == 20 * PARTITIONS
    # The record at 99 is 60 s after that at 39: each key's events from there on are in its state.
    assert all(steps_since(39, one) for one in ours)
    code, summary, said = verify(new, "--from", "100")
    assert (code, summary["predictions"]) == (0, 20 * PARTITIONS), said
    got = state_command("get", str(new), "k0-1", "--json")
    assert json.loads(got.stdout)["states"][0]["offset"] == 118


def test_there_and_back_revives_nothing_of_states_that_were_dropped(
    broker: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Models A, B, A: each has deleted the states of the other meanwhile, and begins with the last 60 s."""
    name = topic_prefix
    one, other = two_models(broker, name, tmp_path, partitions=PARTITIONS, replay="60s", keep_old_models="0s")
    fill(broker, name, 0, 100)
    serve(broker, name, one, tmp_path / "log1", 100)
    (of_one,) = models_with_states(broker, name)
    fill(broker, name, 100, 40)
    serve(broker, name, other, tmp_path / "log2", 140, gone=of_one)
    (of_other,) = models_with_states(broker, name)
    fill(broker, name, 140, 20)
    serve(broker, name, one, tmp_path / "log3", 160, gone=of_other)
    assert models_with_states(broker, name) == {of_one}
    # 60 s before the newest answered record, that at 139: with the states of before there would be more steps.
    assert all(steps_since(39, found) for found in answers(broker, name, 100, 140))
    assert all(steps_since(79, found) for found in answers(broker, name, 140, 160))
    for config, span in ((other, ("--from", "100", "--to", "140")), (one, ("--from", "140"))):
        code, summary, said = verify(config, *span)
        assert (code, summary["result"], summary["not_judged"]) == (0, "right", 0), said
        assert summary["predictions"] == (40 if config is other else 20) * PARTITIONS
    code, summary, said = verify(one)
    assert (code, summary["result"]) == (2, "not judged"), said
    assert [(found["partition"], found["from"], found["to"]) for found in summary["unjudged"]] == [
        (partition, 0, 140) for partition in range(PARTITIONS)
    ]
