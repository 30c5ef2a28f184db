"""The examples do what their READMEs say: each is trained, scored and evaluated, the small ones with five seeds."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml

from lstmstream.cli import app
from lstmstream.config import load_config
from lstmstream.model import load_model
from lstmstream.serve.score import score_file
from lstmstream.train.run import train
from lstmstream.train.schema import load_training

pytestmark = pytest.mark.torch

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = ("README.md", "make_data.py", "train.yaml", "stream.yaml")
SPLIT_NAMES = sorted(folder.name for folder in EXAMPLES.iterdir() if folder.is_dir())
SEEDS = range(5)
TAXI = EXAMPLES.parents[1] / "shared" / "nab" / "data" / "realKnownCause" / "nyc_taxi.csv"
Predictions = list[dict[str, Any]]


def copied(name: str, to: Path, *options: str) -> Path:
    """A copy of the example as it is in a clone, without generated files, with its data at the small size."""
    folder = to / name
    folder.mkdir()
    for file in FILES:
        shutil.copy(EXAMPLES / name / file, folder)
    subprocess.run([sys.executable, "make_data.py", *(options or ["--small"])], cwd=folder, check=True, timeout=180)
    return folder


def trained(folder: Path, **options: Any) -> None:
    """Trains the example, with changed options of section `training`."""
    file = folder / "train.yaml"
    settings = yaml.safe_load(file.read_text())
    settings["training"] |= {"threads": 1, **options}
    file.write_text(yaml.safe_dump(settings))
    assert train(file) == 0


def scored(folder: Path) -> tuple[Predictions, Predictions]:
    """The predictions of the model in stream.yaml for events.jsonl, and these events."""
    out, letters = folder / "predictions.jsonl", folder / "letters.jsonl"
    stream, events = folder / "stream.yaml", folder / "events.jsonl"
    assert score_file(str(stream), str(events), out=str(out), key=None, timestamp=None, dead_letters=letters) == 0
    assert letters.read_bytes() == b""
    predictions, events_sent = ([json.loads(line) for line in file.read_text().splitlines()] for file in (out, events))
    assert len(predictions) == len(events_sent) > 0
    return predictions, events_sent


# --- with every seed ------------------------------------------------------------------------------------------------


def check_next_number(predictions: Predictions) -> None:
    assert predictions[-1]["event"]["value"] == 10
    assert predictions[-1]["score"] == pytest.approx(11, abs=0.1)


def check_number_line(predictions: Predictions) -> None:
    assert [prediction["event"]["value"] for prediction in predictions] == [100]
    assert predictions[0]["score"] == pytest.approx(101, abs=0.25)


def check_binary_sequence(predictions: Predictions) -> None:
    right = [prediction["alert"] == (prediction["event"]["label"] == 1) for prediction in predictions]
    assert np.mean(right) >= 0.95


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("next-number", check_next_number),
        ("number-line", check_number_line),
        ("binary-sequence", check_binary_sequence),
    ],
)
def test_whatever_the_seed_it_learns(tmp_path: Path, name: str, check: Callable[[Predictions], None]) -> None:
    folder = copied(name, tmp_path)
    fingerprints = set()
    for seed in SEEDS:
        trained(folder, seed=seed)
        check(scored(folder)[0])
        fingerprints.add(load_model(folder / f"{name}.onnx").card.fingerprint)
    assert len(fingerprints) == len(SEEDS), "five seeds give five models"


# --- once, at the small size ----------------------------------------------------------------------------------------


def metric(folder: Path, name: str) -> float:
    (model,) = folder.glob("*.onnx")
    return float(load_model(model).card.training["metrics"]["test"][name]["value"])


def test_softmax_sequence_knows_the_wave_at_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied("softmax-sequence", tmp_path)
    trained(folder)
    assert "Worth it? Yes." in capsys.readouterr().out
    assert metric(folder, "accuracy") >= 0.95
    predictions, _ = scored(folder)
    classes = load_model(folder / "softmax-sequence.onnx").card.training["fields"]["classes"]
    last = {record["key"]: record for record in predictions}
    right = [classes[np.argmax(record["prediction"])] == record["event"]["kind"] for record in last.values()]
    assert len(right) == 200
    assert np.mean(right) >= 0.95


def test_seasonal_beats_the_last_value_and_the_day_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied("seasonal", tmp_path)
    trained(folder)
    assert "Worth it? Yes." in capsys.readouterr().out
    predictions, events = scored(folder)
    by_place: dict[str, list[tuple[list[float], float]]] = defaultdict(list)
    for record, event in zip(predictions, events, strict=True):
        by_place[event["place"]].append((record["prediction"], event["value"]))
    assert len(by_place) == 8
    errors: dict[str, list[float]] = defaultdict(list)
    for rows in by_place.values():
        values = [value for _, value in rows]
        for at in range(24, len(rows) - 3):
            for ahead in (1, 2, 3):
                truth = values[at + ahead]
                errors["model"].append(abs(rows[at][0][ahead - 1] - truth))
                errors["last value"].append(abs(values[at] - truth))
                errors["a day ago"].append(abs(values[at + ahead - 24] - truth))
    error = {name: float(np.mean(found)) for name, found in errors.items()}
    assert error["model"] < 0.8 * min(error["last value"], error["a day ago"]), error


def taxi_or_synthetic_series(folder: Path) -> Path:
    """The measured series where it is available, which it is not in a clone; else half hours with a daily cycle."""
    if TAXI.exists():
        return TAXI
    half_hours = np.arange(48 * 90)
    values = 100 + 50 * np.sin(2 * np.pi * half_hours / 48) + np.random.default_rng(0).normal(0, 1, len(half_hours))
    times = np.datetime64("2014-07-01T00:00:00") + half_hours * np.timedelta64(30, "m")
    lines = [f"{str(time).replace('T', ' ')},{value:.2f}\n" for time, value in zip(times, values, strict=True)]
    (folder / "series.csv").write_text("timestamp,value\n" + "".join(lines))
    return folder / "series.csv"


def test_seasonal_on_a_series_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied("seasonal", tmp_path, "--from", str(taxi_or_synthetic_series(tmp_path)))
    trained(folder)
    assert "Worth it? Yes." in capsys.readouterr().out
    assert metric(folder, "mase") < 0.6


def test_sensor_anomaly_alerts_on_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied("sensor-anomaly", tmp_path)
    trained(folder)
    assert "Worth it? Yes." in capsys.readouterr().out
    assert metric(folder, "average_precision") >= 0.5
    predictions, events = scored(folder)
    alerts = [event["fault"] for prediction, event in zip(predictions, events, strict=True) if prediction["alert"]]
    faults = sum(event["fault"] for event in events)
    assert faults / len(events) < 0.1
    assert np.mean(alerts) >= 0.5
    assert sum(alerts) >= 0.4 * faults


def test_fraud_finds_most_frauds_and_costs_less_than_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied("fraud", tmp_path)
    trained(folder)
    # on data of this size a regression on counts and means of the past is about as good, and the verdict is by that
    assert "for the best baseline, 'logistic regression with the past'" in capsys.readouterr().out
    assert metric(folder, "average_precision") >= 0.6
    missed, alert = 4, 1  # the costs of train.yaml
    costs = yaml.safe_load((folder / "train.yaml").read_text())["threshold"]["cost"]
    assert costs == {"missed": missed, "alert": alert}
    precision, recall = metric(folder, "precision"), metric(folder, "recall")
    assert recall >= 0.5
    assert missed * (1 - recall) + alert * recall / precision < missed, "for each fraud, against no alert at all"
    assert any(prediction["alert"] for prediction in scored(folder)[0])


# --- its files ------------------------------------------------------------------------------------------------------


def test_the_examples_are_those_that_are_tested_here() -> None:
    assert SPLIT_NAMES == [
        "binary-sequence", "fraud", "next-number", "number-line", "seasonal", "sensor-anomaly", "softmax-sequence",
    ]  # fmt: skip


@pytest.mark.parametrize("name", SPLIT_NAMES)
def test_its_files_are_there_and_agree(name: str) -> None:
    folder = EXAMPLES / name
    assert [file for file in FILES if not (folder / file).is_file()] == []
    training = load_training(folder / "train.yaml")
    stream = load_config(folder / "stream.yaml", {})
    assert Path(stream.model).name == f"{training.name}.onnx"
    assert stream.input.key == training.data.key
    assert stream.input.timestamp == training.data.timestamp
    assert stream.name == name, "so that two examples on one broker do not share state"


def test_no_two_examples_share_a_topic() -> None:
    topics = []
    for name in SPLIT_NAMES:
        stream = load_config(EXAMPLES / name / "stream.yaml", {})
        topics += [stream.input.topic, stream.output.topic]
        topics += [stream.output.alerts_topic] if stream.output.alerts_topic else []
    assert len(topics) == len(set(topics))


def commands(text: str) -> list[list[str]]:
    """The words of each command in the README's blocks; a line of output begins with none of these two."""
    lines = [line for block in re.findall(r"^```\n(.*?)^```$", text, re.M | re.S) for line in block.splitlines()]
    return [shlex.split(line.removeprefix("$ ")) for line in lines if re.match(r"(\$ )?(lstmstream|python) ", line)]


def parse(words: list[str]) -> None:
    """Parses the words as the command line does; raises for an unknown command, option or argument."""
    command: Any = typer.main.get_command(app)
    context: Any = None
    while True:
        context = command.make_context(words[0], words[1:], parent=context)
        if not hasattr(command, "commands"):
            return
        words = [*getattr(context, "_protected_args", ()), *context.args]
        assert words[0] in command.commands, words
        command = command.commands[words[0]]


@pytest.mark.parametrize("name", SPLIT_NAMES)
def test_its_readme_names_commands_that_exist(name: str) -> None:
    text = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
    assert 15 <= len(text.splitlines()) <= 45
    stream = load_config(EXAMPLES / name / "stream.yaml", {})
    seen = commands(text)
    for words in seen:
        if words[0] == "lstmstream":
            parse(words)
        elif words[1] == "-m":
            assert importlib.util.find_spec(words[2]) is not None
            assert words[words.index("-b") + 1] in stream.kafka.bootstrap_servers
            assert words[words.index("-t") + 1] in {stream.input.topic, stream.output.topic, stream.output.alerts_topic}
        else:
            assert words[1] == f"examples/{name}/make_data.py"
        for word in words:
            if word.startswith("examples/"):
                path = Path(word)
                assert path.parent.name == name
                assert path.name in {*FILES, "events.jsonl", "predictions.jsonl"}, word
    first = [" ".join(words[:3]) for words in seen]
    for command in (
        f"python examples/{name}/make_data.py",
        f"lstmstream train examples/{name}/train.yaml",
        f"lstmstream score examples/{name}/stream.yaml",
        "lstmstream dev up",
        f"lstmstream run examples/{name}/stream.yaml",
    ):
        assert command in first
