"""`lstmstream state` over the broker in memory: the newest states that count, and what is printed and written."""

from __future__ import annotations

import errno
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmstream.errors import CannotServe
from lstmstream.serve.erasure_records import pack_request
from lstmstream.serve.state_records import FLOOR
from lstmstream.states import diff, stored
from lstmstream.states.command import get_state, list_states
from lstmstream.states.diff import diff_states
from lstmstream.states.export import export_states
from lstmstream.states.stored import StateTopicReader, StoredStates
from lstmstream.transport.partitioner import partition_of
from tests.file_limit import limited_files
from tests.models import random_model
from tests.serve.memory_world import INPUT, PARTITIONS, STATES
from tests.states.build_world import build, lines
from tests.states.seed_world import at_the_beginning
from tests.states.world import CONFIG, KEYS, Opened, append, exported
from tests.verify.world import NOW_MS, VerifyWorld


def listed(capsys: pytest.CaptureFixture[str], **options: Any) -> tuple[list[dict[str, Any]], str]:
    capsys.readouterr()
    options = {"prefix": None, "limit": 100, "stage": None, **options}
    assert list_states(CONFIG, as_json=True, **options) == 0
    printed = capsys.readouterr()
    return [json.loads(line) for line in printed.out.splitlines()], printed.err


@pytest.mark.usefixtures("world")
def test_the_newest_state_of_each_key_is_listed_latest_event_first(capsys: pytest.CaptureFixture[str]) -> None:
    found, said = listed(capsys)
    assert [one.get("key", one.get("key_base64")) for one in found] == ["Zoë", "", "/w==", "b", "a2", "a"]
    assert {one["steps"] for one in found} == {2}
    assert found[-1] == {
        "key": "a",
        "partition": 0,
        "offset": 2,
        "timestamp": "2023-11-14T22:13:30Z",
        "steps": 2,
        "failures": 0,
    }
    assert said == "state: 6 states in 3 partitions\n"


@pytest.mark.usefixtures("world")
def test_only_some_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    found, said = listed(capsys, limit=2)
    assert [one["key"] for one in found] == ["Zoë", ""]
    assert said == "state: 6 states in 3 partitions; the 2 with the latest events are shown (--limit)\n"
    assert [one["key"] for one in listed(capsys, prefix="a")[0]] == ["a2", "a"]
    assert len(listed(capsys, prefix="")[0]) == len(KEYS)
    assert listed(capsys, prefix="nobody") == ([], "state: 0 states in 3 partitions\n")


@pytest.mark.usefixtures("world")
def test_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert list_states(CONFIG, prefix="a", limit=9, as_json=False, stage=None) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["a2", "2023-11-14T22:13:31Z", "2", "events", "1@2"],
        ["a", "2023-11-14T22:13:30Z", "2", "events", "0@2"],
    ]


def test_a_state_is_what_the_daemon_had(world: VerifyWorld, capsys: pytest.CaptureFixture[str]) -> None:
    daemon = world.start(world.onnx_step())
    world.settle()
    slab = daemon.states.slabs[1]
    row = slab.get(slab.index[b"a2"]).row
    assert world.stop(daemon) == 0
    capsys.readouterr()
    assert get_state(CONFIG, "a2", as_json=True, stage=None) == 0
    body = json.loads(capsys.readouterr().out)
    (state,) = body["states"]
    flat = np.concatenate([np.ravel(np.float32(values)) for values in state["parts"].values()])
    assert flat.tobytes() == row.tobytes()
    assert (body["key"], state["partition"], state["steps"], state["offset"]) == ("a2", 1, 2, 2)
    assert get_state(CONFIG, "a2", as_json=False, stage=None) == 0
    assert "steps" in capsys.readouterr().out


@pytest.mark.usefixtures("world")
def test_a_key_without_a_state(capsys: pytest.CaptureFixture[str]) -> None:
    assert get_state(CONFIG, "nobody", as_json=False, stage=None) == 1
    assert "no state of key 'nobody' has been written yet" in capsys.readouterr().err


def test_an_export_has_no_key_whose_erasure_was_asked_for(
    world: VerifyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """While no daemon runs, the state is still in the topic; an import of the file would bring it back."""
    for partition in range(PARTITIONS):
        world.broker.append(STATES, partition, *pack_request([b"a2", b"nobody"]))
    assert sorted(one.get("key", one.get("key_base64")) for one in exported(tmp_path)) == ["", "/w==", "Zoë", "a", "b"]
    said = capsys.readouterr().err
    assert "5 states were written" in said
    assert "1 state was left out: `state delete` has asked for their erasure, which no owner has confirmed yet" in said


def test_an_export_that_lacks_damaged_states_says_so(
    world: VerifyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(world, b"a")
    assert export_states(CONFIG, tmp_path / "s.jsonl", prefix=None, partition=None, stage=None) == 1
    assert "1 record is damaged: the file lacks these states" in capsys.readouterr().err
    assert len((tmp_path / "s.jsonl").read_text().splitlines()) == 5


def test_a_damaged_floor_record_is_not_taken_for_a_topic_without_states(world: VerifyWorld) -> None:
    log = world.log(STATES, 1)
    log[:] = [
        record._replace(value=b"?") if record.key is not None and record.key[:1] == FLOOR else record for record in log
    ]
    with pytest.raises(CannotServe, match=r"the floor record in topic 't\.state', partition 1, is damaged"):
        list_states(CONFIG, prefix=None, limit=1, as_json=True, stage=None)


def test_an_export_has_each_state_once(world: VerifyWorld, tmp_path: Path) -> None:
    rows = exported(tmp_path)
    assert sorted(one.get("key", one.get("key_base64")) for one in rows) == ["", "/w==", "Zoë", "a", "a2", "b"]
    assert {one["partition"] for one in exported(tmp_path, partition=2)} == {2}
    assert [one["key"] for one in exported(tmp_path, prefix="b")] == ["b"]
    assert set(rows[0]["parts"]) == {part.name for part in world.model.card.state.parts}


def test_states_of_another_model_are_named_and_not_shown(
    world: VerifyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    before = world.model.card
    other = VerifyWorld(random_model(tmp_path / "other", hidden=2, seed=9))
    world.model, world.settings["model"] = other.model, other.settings["model"]
    append(world, 2)
    world.serve(on_model_change="reset")
    found, said = listed(capsys)
    assert {one["steps"] for one in found} == {1}
    assert f"the topic also has states of model {before.name} version {before.version}" in said


def test_states_that_no_floor_record_vouches_for_do_not_count(
    world: VerifyWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    """A restore does not use them either."""
    log = world.log(STATES, 1)
    log[:] = [record for record in log if record.key is not None and record.key[:1] != FLOOR]
    assert {one["partition"] for one in listed(capsys)[0]} == {0, 2}
    assert get_state(CONFIG, "a2", as_json=False, stage=None) == 1


def damage(world: VerifyWorld, key: bytes) -> None:
    """The newest record of the state of a key of partition 0."""
    log = world.log(STATES, 0)
    last = max(i for i, record in enumerate(log) if record.key is not None and record.key.endswith(key))
    value = log[last].value
    assert value is not None
    log[last] = log[last]._replace(value=value[:-1] + bytes([value[-1] ^ 1]))


def test_a_damaged_record_is_counted(world: VerifyWorld, capsys: pytest.CaptureFixture[str]) -> None:
    damage(world, b"a")
    found, said = listed(capsys)
    assert "a" not in [one.get("key") for one in found]
    assert "1 record is damaged" in said


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": Path("x.csv")}, "--out x.csv: the file's name must end with .jsonl or .parquet"),
        ({"out": Path("/nowhere/x.jsonl")}, "--out /nowhere/x.jsonl: cannot be written (No such file or directory)"),
        ({"out": Path("-"), "partition": 3}, "--partition 3: topic 't.state' has partitions 0 to 2"),
    ],
)
def test_what_cannot_be_exported(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CannotServe) as raised:
        export_states(CONFIG, **{"prefix": None, "partition": None, "stage": None, **options})
    assert list(raised.value.problems) == [message]


def test_a_daemon_that_never_ran(world: VerifyWorld) -> None:
    del world.broker.topics[STATES]
    with pytest.raises(CannotServe, match=r"state\.topic: there is no topic 't\.state'"):
        list_states(CONFIG, prefix=None, limit=1, as_json=True, stage=None)


def test_a_state_beside_that_of_another_model(
    world: VerifyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other one is what that model has in memory after the same events."""
    monkeypatch.setattr(diff, "load_config", lambda _path, stage=None: world.config())
    (tmp_path / "other").mkdir()
    path = random_model(tmp_path / "other", hidden=2, seed=9)
    same = str(world.settings["model"])
    assert diff_states(CONFIG, "a2", same, as_json=True, stage=None) == 0
    (state,) = json.loads(capsys.readouterr().out)["states"]
    assert state["served"] == state["other"]
    assert set(state["difference"].values()) == {0.0}
    assert diff_states(CONFIG, "a2", str(path), as_json=True, stage=None) == 0
    (state,) = json.loads(capsys.readouterr().out)["states"]
    assert (state["other"]["steps"], state["other"]["offset"]) == (2, 2)
    assert min(state["difference"].values()) > 0
    other = VerifyWorld(path)
    for record in world.log(INPUT, 1):
        other.broker.append(INPUT, 1, record.key, record.value, record.timestamp_ms, [])
    daemon = other.start(other.onnx_step())
    other.settle()
    slab = daemon.states.slabs[1]
    row = slab.get(slab.index[b"a2"]).row
    flat = np.concatenate([np.ravel(np.float32(values)) for values in state["other"]["parts"].values()])
    assert flat.tobytes() == row.tobytes()
    world.broker.truncate(INPUT, 1, 2)
    assert diff_states(CONFIG, "a2", same, as_json=False, stage=None) == 0
    printed = capsys.readouterr()
    assert "largest difference" in printed.out
    assert "the other model has seen 1 event of the key, the served one 2" in printed.err
    assert diff_states(CONFIG, "nobody", same, as_json=False, stage=None) == 1


def test_a_state_beside_another_one_without_the_input(world: VerifyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diff, "load_config", lambda _path, stage=None: world.config())
    del world.broker.topics[INPUT]
    with pytest.raises(CannotServe, match=r"input\.topic: there is no topic 'in'"):
        diff_states(CONFIG, "a2", str(world.settings["model"]), as_json=True, stage=None)


def test_a_state_beside_another_one_after_the_key_was_erased(
    world: VerifyWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No event before the erasure comes into the other one either."""
    monkeypatch.setattr(diff, "load_config", lambda _path, stage=None: world.config())
    for partition in range(PARTITIONS):
        world.broker.append(STATES, partition, *pack_request([b"a2"]))
    append(world, 3)
    world.serve()
    assert diff_states(CONFIG, "a2", str(world.settings["model"]), as_json=True, stage=None) == 0
    (state,) = json.loads(capsys.readouterr().out)["states"]
    assert state["served"]["steps"] == 1
    assert state["served"] == state["other"]


def test_a_state_beside_another_one_with_a_limit_on_the_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The key has gone and come back; then it is erased, so that another one does not have to go."""
    made = VerifyWorld(random_model(tmp_path, hidden=2, seed=1), state={"max_keys": 2, "checkpoint_interval": "5s"})
    monkeypatch.setattr(diff, "load_config", lambda _path, stage=None: made.config())
    monkeypatch.setattr(stored, "load_config", lambda _path, stage=None: made.config())
    monkeypatch.setattr(stored, "open_kafka_admin", lambda _config: Opened(made.broker, INPUT))

    def answer(keys: str) -> None:
        for number, key in enumerate(keys):
            made.broker.append(INPUT, 0, key.encode(), b'{"amount": %d}' % number, NOW_MS + 1000 * number, [])
        made.serve()

    def steps(key: str) -> tuple[int, int]:
        assert diff_states(CONFIG, key, str(made.settings["model"]), as_json=True, stage=None) == 0
        (state,) = json.loads(capsys.readouterr().out)["states"]
        assert state["served"] == state["other"]
        return state["served"]["steps"], state["served"]["offset"]

    answer("aabcaa")  # a goes for c
    assert steps("a") == (2, 5)
    made.broker.append(STATES, 0, *pack_request([b"a"]))
    answer("dc")
    assert steps("c") == (2, 7)
    answer("ba")
    assert steps("a") == (1, 9)
    assert diff_states(CONFIG, "c", str(made.settings["model"]), as_json=True, stage=None) == 1


def test_a_state_beside_another_one_with_a_bound_on_lateness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Events of other keys decide on which are too late, those of a history too."""
    bound = {"topic": INPUT, "max_lateness": "5s"}
    made = VerifyWorld(random_model(tmp_path, hidden=2, seed=1), input=bound)
    monkeypatch.setattr(diff, "load_config", lambda _path, stage=None: made.config())
    monkeypatch.setattr(stored, "load_config", lambda _path, stage=None: made.config())
    monkeypatch.setattr(stored, "open_kafka_admin", lambda _config: Opened(made.broker, INPUT))
    partition = partition_of(b"z", PARTITIONS)
    for key, second in ((b"a", 0), (b"b", 58), (b"a", 57), (b"b", 70), (b"a", 64), (b"a", 66)):
        made.broker.append(INPUT, partition, key, b'{"amount": %d}' % second, NOW_MS + 1000 * second, [])
    history = lines(tmp_path / "h.jsonl", [{"id": "z", "ts": NOW_MS + 60_000, "amount": 1}])
    build(made, [history], at_the_beginning())
    made.serve()
    for name, found in (("a", (2, 5)), ("b", (2, 3))):
        capsys.readouterr()
        assert diff_states(CONFIG, name, str(made.settings["model"]), as_json=True, stage=None) == 0
        (state,) = json.loads(capsys.readouterr().out)["states"]
        assert state["served"] == state["other"]
        assert (state["served"]["steps"], state["served"]["offset"]) == found


@pytest.mark.usefixtures("world")
def test_a_full_disk_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "out" / "s.jsonl"
    file.parent.mkdir()
    with limited_files(1_000), pytest.raises(CannotServe) as failed:
        export_states(CONFIG, file, prefix=None, partition=None, stage=None)
    (problem,) = failed.value.problems
    assert problem.startswith(f"--out {file}: cannot be written (File too large); a limit (ulimit -f)")
    assert not list(file.parent.iterdir())


@pytest.mark.usefixtures("world")
def test_an_export_that_fails_leaves_the_file_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of the states would look like all of them."""
    file = tmp_path / "s.jsonl"
    file.write_bytes(b"precious")
    read = StateTopicReader.read

    def torn(self: StateTopicReader, partition: int | None = None) -> Iterator[StoredStates]:
        yield from itertools.islice(read(self, partition), 1)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(StateTopicReader, "read", torn)
    with pytest.raises(CannotServe, match=r"cannot be written \(No space left on device\)"):
        export_states(CONFIG, file, prefix=None, partition=None, stage=None)
    assert file.read_bytes() == b"precious"
    assert not list(tmp_path.glob("*.part"))
    assert not list(tmp_path.glob(".*.part"))
