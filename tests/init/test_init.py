"""`lstmstream init`: what it takes fields for, and that what it writes can be used."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from lstmstream.check.checks import TopicChecks
from lstmstream.check.results import Status
from lstmstream.config import load_config
from lstmstream.errors import CannotServe
from lstmstream.init import command
from lstmstream.init.command import init
from lstmstream.init.fields import profiles, propose
from lstmstream.serve.factory import load_step_model
from lstmstream.train.schema import load_training
from lstmstream.transport.patient_broker import PatientBroker
from tests.file_limit import limited_files
from tests.models import random_model
from tests.verify.world import NOW_MS, VerifyTransport, VerifyWorld

INPUT = "in"


def payments(count: int = 300) -> list[dict[str, Any]]:
    made = random.Random(3)
    return [
        {
            "transaction_id": 10_000 + number,
            "customer": f"c{made.randrange(40)}",
            "time": NOW_MS + 1000 * number,
            "amount": round(made.lognormvariate(3, 1), 2),
            "merchant": made.choice(["food", "online", "travel"]),
            "place": {"lat": made.uniform(47, 55), "city": f"city {number}"},
            "attempts": made.randrange(1, 4),
            "fraud": int(made.random() < 0.05),
            "note": None,
        }
        for number in range(count)
    ]


def proposal(events: list[dict[str, Any]], *, keyed: bool = False) -> Any:
    return propose(profiles(events), len(events), keyed=keyed)


def test_what_it_takes_the_fields_of_payments_for() -> None:
    found = proposal(payments())
    assert (found.key, found.timestamp, found.label) == ("customer", "time", "fraud")
    assert found.numbers == ["amount", "place.lat"]
    assert found.categories == ["merchant", "attempts"]
    assert found.others == ["transaction_id", "place.city"], "a counter, and text that is always another"
    assert proposal(payments(), keyed=True).key is None


def test_a_number_that_is_text_in_a_few_events_is_still_a_number() -> None:
    events: list[dict[str, Any]] = [
        {"machine": f"m{n % 5}", "pressure": n % 17 + 0.5, "flow": n + 0.5} for n in range(100)
    ]
    for n in range(5):
        events[n]["pressure"] = "4,2"
    found = proposal(events)
    assert (found.numbers, found.texts, found.others) == (["pressure", "flow"], {"pressure": 5}, [])
    events[5]["pressure"] = "4,2"
    found = proposal(events)
    assert (found.numbers, found.texts, found.others) == (["flow"], {}, ["pressure"])


@pytest.mark.parametrize(
    "times",
    [
        [f"2026-01-0{1 + n % 9}T10:00:0{n % 10}Z" for n in range(50)],
        [f"2026-01-0{1 + n % 9} 10:00:0{n % 10}" for n in range(50)],
        [1_700_000_000 + n for n in range(50)],
        [1_700_000_000.5 + n for n in range(50)],
        [1_700_000_000_000 + n for n in range(50)],
    ],
)
def test_times_as_people_write_them(times: list[Any]) -> None:
    events = [{"sensor": f"s{n % 5}", "created_at": at, "value": n % 17 + 0.5} for n, at in enumerate(times)]
    found = proposal(events)
    assert (found.timestamp, found.key, found.numbers) == ("created_at", "sensor", ["value"])


def test_what_is_not_a_time_or_a_key() -> None:
    events = [{"reading": 1.7e9 + n * (-1) ** n, "code": f"{n % 3}-x", "x": n * 0.5} for n in range(60)]
    found = proposal(events)
    assert (found.timestamp, found.key) == (None, None)
    assert found.numbers == ["reading", "x"]
    assert found.categories == ["code"]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VerifyWorld:
    made = VerifyWorld(random_model(tmp_path))

    class Opened(VerifyTransport):
        def close(self, timeout_s: float) -> None: ...

    monkeypatch.setattr(command, "open_kafka_admin", lambda _config: Opened(made.broker, INPUT))
    monkeypatch.setattr("lstmstream.check.checks.time.time", lambda: NOW_MS / 1000 + 900)
    return made


def run(folder: Path, *, force: bool = False, topic: str = INPUT, as_json: bool = False) -> int:
    servers = ["127.0.0.1:9092"]
    return init(folder, topic=topic, servers=servers, name=None, records=1000, force=force, as_json=as_json)


def test_what_it_writes_passes_the_checks(
    world: VerifyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for event in payments():
        partition = int(event["customer"][1:]) % 3
        world.broker.append(INPUT, partition, None, orjson.dumps(event), event["time"], [])
    assert run(tmp_path / "new") == 0
    assert "key         customer" in capsys.readouterr().out
    assert run(tmp_path / "other", as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["events"], found["not_json"], found["key"], found["label"]) == (300, 0, "customer", "fraud")
    assert found["files"] == [str(tmp_path / "other" / name) for name in ("stream.yaml", "train.yaml")]
    config = load_config(tmp_path / "new" / "stream.yaml")
    assert (config.model, config.input.key, config.input.timestamp) == (
        "builtin:anomaly:amount,place.lat",
        "customer",
        "time",
    )
    assert config.output.include == ["amount", "place.lat", "merchant", "attempts"]
    _, step = load_step_model(config)
    broker = PatientBroker(VerifyTransport(world.broker, INPUT))
    assert [line for line in TopicChecks(broker, config, step, records=300).run() if line.status is Status.FAILED] == []

    training = load_training(tmp_path / "new" / "train.yaml")
    assert (training.task, training.target.field, training.data.topic) == ("classify", "fraud", INPUT)
    assert [number.name for number in training.features.numbers] == ["amount", "place.lat"]


def test_text_among_the_numbers_is_said(world: VerifyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(40):
        value = {"machine": f"m{n % 5}", "pressure": n % 17 + 0.5 if n else "n/a"}
        world.broker.append(INPUT, 0, None, orjson.dumps(value), NOW_MS, [])
    assert run(tmp_path) == 0
    assert "pressure is text in 1 of them: such events become dead letters" in capsys.readouterr().out
    assert load_config(tmp_path / "stream.yaml").model == "builtin:anomaly:pressure"


def test_names_that_yaml_would_read_as_something_else(world: VerifyWorld, tmp_path: Path) -> None:
    for number in range(50):
        value = {"yes": f"k{number % 5}", "on: off, {x}": number % 13 + 0.5, "off": number % 11 + 0.5}
        world.broker.append(INPUT, 0, b"k", orjson.dumps(value), NOW_MS, [])
    assert run(tmp_path) == 0
    tree = yaml.safe_load((tmp_path / "train.yaml").read_text(encoding="utf-8"))
    assert tree["features"] == {"numbers": ["on: off, {x}", "off"], "categories": ["yes"], "elapsed": True}
    assert load_config(tmp_path / "stream.yaml").model == "builtin:anomaly:off", "a comma would end the name"
    assert (tree["task"], tree["data"]) == ("anomaly", {"from": "kafka", "topic": INPUT})


def test_what_it_refuses(world: VerifyWorld, tmp_path: Path) -> None:
    with pytest.raises(CannotServe, match="topic 'none' does not exist"):
        run(tmp_path, topic="none")
    with pytest.raises(CannotServe, match="topic 'in' has no records to look at"):
        run(tmp_path)
    world.broker.append(INPUT, 0, b"k", b"text", NOW_MS, [])
    with pytest.raises(CannotServe, match="none of its newest 1 record is a JSON object"):
        run(tmp_path)
    world.broker.append(INPUT, 0, b"k", b'{"name": "a"}', NOW_MS, [])
    with pytest.raises(CannotServe, match="no field of its newest 1 event is a number"):
        run(tmp_path)
    world.broker.append(INPUT, 0, b"k", b'{"x": 1.5}', NOW_MS, [])
    assert run(tmp_path) == 0
    with pytest.raises(CannotServe, match=r"stream\.yaml: is there already; give another folder, or --force"):
        run(tmp_path)
    assert run(tmp_path, force=True) == 0


def test_what_people_export_and_no_option_can_name(
    world: VerifyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The index of a data frame, thousands separators, seconds as text, a label that is sometimes the text None."""
    for n in range(60):
        event = {"": n * 7 % 13 + 0.5, "Energy (kWh)": f"1,{n:03}.5", "Time": f"{1_700_000_000 + n}.25"}
        event |= {"Outside": n % 17 + 0.5, "is_fraud": "None" if n == 3 else n % 2, "a,b": n % 11 + 0.5}
        world.broker.append(INPUT, 0, b"k", orjson.dumps(event), NOW_MS, [])
    assert run(tmp_path) == 0
    said = capsys.readouterr().out
    assert "'' is left out: an option cannot name it\n" in said
    assert "Energy (kWh) is left out: text in 60 of 60 events, such as '1,000.5'\n" in said
    assert "a,b is in train.yaml only: its comma would end the name in builtin:anomaly:\n" in said
    config = load_config(tmp_path / "stream.yaml")
    assert (config.model, config.input.timestamp) == ("builtin:anomaly:Outside", "Time")
    training = load_training(tmp_path / "train.yaml")
    assert training.target.field == "is_fraud", "a label must not become a feature"
    assert [number.name for number in training.features.numbers] == ["Outside", "a,b"]


def test_a_full_disk_leaves_both_files_as_they_were(world: VerifyWorld, tmp_path: Path) -> None:
    world.broker.append(INPUT, 0, b"k", b'{"x": 1.5}', NOW_MS, [])
    folder = tmp_path / "made"
    assert run(folder) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with (
        limited_files(100),
        pytest.raises(CannotServe, match=r"made/\w+\.yaml: cannot be written \(File too large\); a"),
    ):
        run(folder, force=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_that_is_a_file(world: VerifyWorld, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("precious", encoding="utf-8")
    world.broker.append(INPUT, 0, b"k", b'{"v":1.5}', NOW_MS, [])
    with pytest.raises(CannotServe, match="taken: is a file; give the folder"):
        run(tmp_path / "taken")


def test_numbers_that_no_float_holds(world: VerifyWorld, tmp_path: Path) -> None:
    """As JSON may have them; the daemon makes a dead letter of such an event."""
    for number in range(60):
        event = orjson.dumps({"sensor": f"s{number % 5}", "at": NOW_MS + 1000 * number, "v": number % 17 + 0.5})
        huge = b"1e400" if number % 2 else b"-" + b"9" * 400
        world.broker.append(INPUT, 0, None, event[:-1] + b',"huge":%b}' % huge, NOW_MS, [])
    assert run(tmp_path) == 0
    assert load_config(tmp_path / "stream.yaml").model.startswith("builtin:anomaly:v")


def test_a_name_with_spaces_around_it_is_not_shortened(
    world: VerifyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(60):
        event = {"sensor": f"s{number % 5}", "at": NOW_MS + 1000 * number, "v": number % 17 + 0.5, " v": number + 0.5}
        world.broker.append(INPUT, 0, None, orjson.dumps(event), NOW_MS, [])
    assert run(tmp_path) == 0
    assert load_config(tmp_path / "stream.yaml").model == "builtin:anomaly:v"
    assert [number.name for number in load_training(tmp_path / "train.yaml").features.numbers] == ["v", " v"]
    assert "' v' is in train.yaml only: the spaces around it would be left out in" in capsys.readouterr().out


def test_a_topic_may_have_a_longer_name_than_the_stream(world: VerifyWorld, tmp_path: Path) -> None:
    topic = "t" * 249
    with pytest.raises(CannotServe, match=f"topic '{topic}' does not exist"):
        init(tmp_path, topic=topic, servers=["127.0.0.1:9092"], name="short", records=10, force=False)
