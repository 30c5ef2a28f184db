"""The README as a reader tries it: its configuration loads, its example gives the predictions it shows."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from lstmstream.config import Config, load_config
from lstmstream.serve.score import score_file

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
PREDICTION = ["key", "timestamp", "score", "prediction", "alert", "steps", "model", "version", "source", "event"]
SOURCE = ["topic", "partition", "offset"]
CLOSE = 1e-5  # another kind of CPU may differ in the last bits


def blocks(language: str) -> list[str]:
    """The contents of the fenced blocks of that language; "" for those that name none."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    return [content for name, content in fenced if name == language]


def plain(start: str) -> str:
    """The block without a language that begins so."""
    return next(block for block in blocks("") if block.startswith(start))


def only(language: str) -> str:
    found = blocks(language)
    assert len(found) == 1
    return found[0]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "stream.yaml").write_text(only("yaml"))
    return load_config(tmp_path / "stream.yaml", {})


def answers(tmp_path: Path, reference: str, **columns: str | None) -> tuple[list[Any], list[Any]]:
    """What `score` makes of the README's events: predictions, dead letters."""
    events, out, letters = tmp_path / "events.jsonl", tmp_path / "out.jsonl", tmp_path / "bad.jsonl"
    events.write_text(only("jsonl"))
    code = score_file(
        reference,
        str(events),
        out=str(out),
        key=columns.get("key"),
        timestamp=columns.get("timestamp"),
        dead_letters=letters,
    )
    assert code == 0
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in (out, letters)]


def same(shown: dict[str, Any], given: dict[str, Any]) -> bool:
    """Whether both are equal, scores as close as float32 on another CPU may be; `source` is compared elsewhere."""
    rest = {name: value for name, value in given.items() if name not in {"score", "prediction", "source"}}
    return (
        rest.items() <= shown.items()
        and list(shown) == list(given)
        and shown["score"] == pytest.approx(given["score"], abs=CLOSE)
        and shown["prediction"] == pytest.approx(given["prediction"], abs=CLOSE)
    )


def test_it_is_short_enough_to_be_read() -> None:
    assert len(README.splitlines()) <= 200
    example = [
        only(language) for language in ("yaml", "jsonl", "sh", "json")
    ]  # configuration, events, commands, output
    assert sum(len(block.splitlines()) for block in example) <= 20


def test_its_configuration_loads(config: Config) -> None:
    assert config.model == "builtin:demo"
    assert config.output.alerts_topic == "alerts"


def test_its_prediction_has_the_fields_of_the_contract_in_their_order() -> None:
    shown = json.loads(only("json"))
    assert list(shown) == PREDICTION
    assert list(shown["source"]) == SOURCE


def test_its_events_give_the_prediction_it_shows(config: Config, tmp_path: Path) -> None:
    predictions, _ = answers(tmp_path, str(config.folder / "stream.yaml"))
    shown = json.loads(only("json"))
    assert same(shown, predictions[-1])
    assert shown["source"] == {"topic": config.input.topic, "partition": 0, "offset": predictions[-1]["source"]["row"]}
    assert sum(answer["alert"] for answer in predictions) == 1, "the README says that one of them is an alert"


def test_its_invalid_event_gives_the_headers_it_shows(config: Config, tmp_path: Path) -> None:
    _, letters = answers(tmp_path, str(config.folder / "stream.yaml"))
    shown = dict(re.findall(r"^([\w.]+): (.*)$", plain("__streams"), re.MULTILINE))
    assert len(letters) == 1
    assert letters[0].pop("value") == only("jsonl").splitlines()[2]
    assert letters[0] | {"__streams.errors.topic": config.input.topic} == shown


def test_its_score_command_prints_what_it_shows(tmp_path: Path) -> None:
    command, *lines = plain("$ ").splitlines()
    _, program, word, reference, data, *options = shlex.split(command)
    assert (program, word, data) == ("lstmstream", "score", "events.jsonl")
    assert options == ["--dead-letters", "bad.jsonl"]
    predictions, _ = answers(tmp_path, reference)
    shown = [json.loads(line) for line in lines]
    assert len(shown) == len(predictions)
    for one, other in zip(shown, predictions, strict=True):
        assert same(one, other)
        assert one["source"] == {"file": "events.jsonl", "row": other["source"]["row"]}


def test_its_detector_takes_three_commands(tmp_path: Path) -> None:
    """The first writes a configuration, by which events of a sensor give alerts once it is warm."""
    *write, run, read = plain("echo ").splitlines()
    echo, text, arrow, name = shlex.split("\n".join(write))
    assert (echo, arrow, name) == ("echo", ">", "sensors.yaml")
    (tmp_path / name).write_text(text)
    config = load_config(tmp_path / name, {})
    assert shlex.split(run) == ["lstmstream", "run", name]
    assert shlex.split(read)[:7] == [
        "python",
        "-m",
        "kafka.consumer",
        "-b",
        "127.0.0.1:9092",
        "-t",
        config.output.alerts_topic,
    ]
    events, out = tmp_path / "events.jsonl", tmp_path / "out.jsonl"
    rows = [{"sensor": "s1", "temperature": 20 + row % 7, "pressure": 1000 + row % 3} for row in range(400)]
    rows[380]["pressure"] = 2000
    events.write_text("".join(json.dumps(row) + "\n" for row in rows))
    score = {"out": str(out), "key": None, "timestamp": None, "dead_letters": None, "no_timestamp": True}
    assert score_file(str(tmp_path / name), str(events), **score) == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["key"] for record in found if record["alert"]][:1] == ["s1"]
    assert min(record["steps"] for record in found if record["alert"]) > 200
    assert found[380]["alert"]
