"""`lstmstream dead-letter replay --set`: what it leaves as it is, and that it adds no field that nobody reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from lstmstream.config import Stage
from lstmstream.dead_letter import command, replay
from lstmstream.dead_letter.command import replay_letters
from lstmstream.dead_letter.letters import Filter
from lstmstream.errors import CannotServe
from tests.dead_letter.test_commands import Opened
from tests.models import random_model
from tests.serve.memory_world import INPUT, OUTPUT
from tests.verify.world import NOW_MS, VerifyWorld

CONFIG = Path("c.yaml")


class Replays:
    """A world whose one event is a dead letter, and its replay."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, value: bytes, **settings: Any) -> None:
        given = {"topic": INPUT, **settings.pop("input", {})}
        self.world = VerifyWorld(random_model(folder, categories={"shop.kind": ("a", "b")}), input=given, **settings)
        self.world.broker.append(INPUT, 0, b"k", value, NOW_MS, [])
        self.world.serve()
        config, opened = self.world.config(), Opened(self.world)
        monkeypatch.setattr(command, "load_config", lambda _path, stage=None: config)
        monkeypatch.setattr(command, "open_kafka_admin", lambda _config: opened)
        monkeypatch.setattr(replay, "RETRY_S", 0.0)
        self.opened = opened

    def run(self, *settings: str, **options: Any) -> bytes | None:
        """The value that is written."""
        assert replay_letters(CONFIG, Filter(), everything=True, settings=settings, **options) == 0
        return self.opened.transactions[-1][0].values[0]

    def refused(self, *settings: str, **options: Any) -> str:
        """Why it is refused; nothing is written then."""
        with pytest.raises(CannotServe) as refused:
            replay_letters(CONFIG, Filter(), everything=True, settings=settings, **options)
        assert not self.opened.transactions
        return "\n".join(refused.value.problems)


BAD = b'{"amount": "much", "region": "EU", "shop": {"name": "x"}}'


def test_a_misspelt_field_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replays = Replays(tmp_path, monkeypatch, BAD)
    replays.world.broker.append(INPUT, 1, b"k", b'{"amount": [], "amuont": 1}', NOW_MS, [])
    replays.world.serve()
    assert replays.refused("amuont=2.5", "amount=1") == (
        "--set amuont: 1 of 2 dead letters (the first: 0@0) would get a field that neither the model nor the"
        " configuration reads; did you mean 'amount'? Nothing was written; to add it all the same: --add-fields"
    )
    assert "did you mean 'amount'" in replays.refused("Amount=2.5", dry_run=True)
    assert "reads; read are 'amount', 'shop.kind'. Nothing" in replays.refused("country=DE")
    assert replays.run("amuont=2.5", "amount=1", add_fields=True)
    assert replays.opened.transactions[0][0].values == [
        b'{"amount":1,"region":"EU","shop":{"name": "x"},"amuont":2.5}',
        b'{"amount":1,"amuont":2.5}',
    ]
    assert "2 events were written to in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "written"),
    [
        ("amount=2", b'{"amount":2,"region":"EU","shop":{"name": "x"}}'),  # the event has it
        ("region=US", b'{"amount":"much","region":"US","shop":{"name": "x"}}'),  # the event has it, and nobody reads it
        ("shop.kind=a", b'{"amount":"much","region":"EU","shop":{"name":"x","kind":"a"}}'),  # the model reads it
        ("card=1", b'{"amount":"much","region":"EU","shop":{"name": "x"},"card":1}'),  # the configuration reads it
        ("at=null", b'{"amount":"much","region":"EU","shop":{"name": "x"},"at":null}'),
        ("kind=label", b'{"amount":"much","region":"EU","shop":{"name": "x"},"kind":"label"}'),
        ("note.text=t", b'{"amount":"much","region":"EU","shop":{"name": "x"},"note.text":"t"}'),
        ("place=p", b'{"amount":"much","region":"EU","shop":{"name": "x"},"place":"p"}'),
    ],
)
def test_fields_that_may_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, written: bytes) -> None:
    replays = Replays(
        tmp_path,
        monkeypatch,
        BAD,
        input={"key": "card", "timestamp": "at", "silent": {"field": "kind", "equals": "label"}},
        output={"topic": OUTPUT, "include": ["note.text"], "key": "place"},
    )
    assert replays.run(setting) == written


def change(**row: Any) -> bytes:
    return json.dumps({"payload": {"op": "c", "after": row}}).encode()


def test_in_an_envelope_a_field_is_one_of_the_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replays = Replays(tmp_path, monkeypatch, change(id="7", other=1), input={"unwrap": "after", "key": "card"})
    for setting in ("card=8", "after.card=8", "payload.card=8", "payload.after.Card=8"):
        assert "did you mean 'payload.after.card'?" in replays.refused(setting), setting
    assert "the event's fields begin with 'payload.after.'. Nothing" in replays.refused("country=DE")
    value = replays.run("payload.after.card=8")
    assert orjson.loads(value or b"")["payload"]["after"] == {"id": "7", "other": 1, "card": 8}
    batch = replays.opened.transactions[-1][0]
    assert (batch.keys, batch.partitions.tolist()) == ([b"8"], [-1]), "it goes where the events of that key are"
    replays.world.serve()


def test_in_a_cloudevent_attributes_are_fields_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    envelope = {"specversion": "1.0", "id": "1", "source": "s", "type": "t", "data": {"amount": "x"}}
    replays = Replays(
        tmp_path, monkeypatch, json.dumps(envelope).encode(), input={"unwrap": "cloudevents", "key": "ce_subject"}
    )
    assert "did you mean 'data.amount'?" in replays.refused("amount=5")
    value = orjson.loads(replays.run("subject=k1", "data.amount=5") or b"")
    assert value == envelope | {"subject": "k1", "data": {"amount": 5}}


def test_what_a_later_stage_reads_may_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replays = Replays(tmp_path, monkeypatch, b'{"amount": "x"}')
    second = random_model(tmp_path, numbers=("age",), file="second.onnx")
    first = replays.world.config()
    stages = [first, first.model_copy(update={"name": "t.second", "model": str(second)})]
    made = [Stage(one.name, one) for one in stages]
    assert "neither the model nor" in replays.refused("age=3")
    monkeypatch.setattr(command, "load_stages", lambda _path: made)
    assert replays.run("age=3", stage_name="t") == b'{"amount":"x","age":3}'


def test_without_the_model_a_field_is_added_on_demand_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replays = Replays(tmp_path, monkeypatch, b'{"amount": "x"}')
    Path(replays.world.config().model).unlink()
    text = replays.refused("country=DE")
    assert re.search(r"--add-fields replays the events without asking the model", text)
    assert replays.run("amount=1") == b'{"amount":1}', "the event has it: no need to ask"


@pytest.mark.parametrize(
    ("value", "settings", "written"),
    [
        (b'\xef\xbb\xbf{"amount": "x"}', {"amount": 1}, b'{"amount":1}'),
        (b'{"amount": "x", "n": 1e400}', {"amount": 1}, b'{"amount":1,"n":1e400}'),
        (b'{"amount": "x", "n": 1.10}', {"amount": 1}, b'{"amount":1,"n":1.10}'),
        (b'{"a": {"b": 1, "n": 12345678901234567890123}}', {"a.b": 2}, b'{"a":{"b":2,"n":12345678901234567890123}}'),
    ],
)
def test_other_fields_stay_as_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: bytes, settings: Mapping[str, Any], written: bytes
) -> None:
    replays = Replays(tmp_path, monkeypatch, value, input={"key": "card"})
    assert replays.run(*(f"{name}={found}" for name, found in settings.items())) == written
