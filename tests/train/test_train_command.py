"""`lstmstream train` and `tune` as commands: files in, a model and a report out."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pytest
import yaml

from lstmstream.errors import CannotServe, Fatal
from lstmstream.history import events as data
from lstmstream.model import load_model
from lstmstream.serve.score import score_file
from lstmstream.train.dataset import prepare_dataset
from lstmstream.train.factory import make_network, make_trainer
from lstmstream.train.run import train
from lstmstream.train.trainer import Trainer
from lstmstream.train.tune import tune, with_params
from tests.train.histories import LSTMSTREAM, command, config_for, purchases, scores, settings, write_config

pytestmark = pytest.mark.torch


def _iso(seconds: object) -> str:
    assert isinstance(seconds, int)
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.parametrize("task", ["classify", "forecast", "anomaly"])
def test_a_model_and_a_report_come_out(tmp_path: Path, task: str) -> None:
    file = write_config(tmp_path, task=task)
    done = command(tmp_path, "train", str(file))
    assert done.stdout.startswith("card-fraud.onnx") or str(tmp_path / "card-fraud.onnx") in done.stdout
    card = load_model(tmp_path / "card-fraud.onnx").card
    frame = pl.read_csv(tmp_path / "history.csv")
    assert (card.name, card.version, card.task) == ("card-fraud", "1", task)
    assert [feature.name for feature in card.features] == ["amount", "distance", "shop"]
    assert card.categories[0].vocabulary == ("food", "fuel", "web")
    training = card.training
    assert training["fields"]["key"] == "customer"
    assert training["fields"]["timestamp"] == "time"
    assert training["data"] | {"sha256": ""} == {
        "sha256": "", "rows": len(frame), "keys": 40,
        "from": _iso(frame["time"].min()), "to": _iso(frame["time"].max()),
    }  # fmt: skip
    assert set(training["metrics"]) == {"validation", "test"}
    for metrics in training["metrics"].values():
        for interval in metrics.values():
            assert set(interval) == {"value", "low", "high"}
    assert training["difference"] < 1e-5
    assert training["threshold_rule"]
    assert (card.threshold is None) == (task == "forecast")
    assert sum(card.reference["score"]["counts"]) > 0
    assert set(card.reference["features"]) == {"amount", "distance", "shop"}
    assert sum(card.reference["features"]["shop"]["counts"]) == sum(card.reference["features"]["amount"]["counts"])
    assert str(tmp_path) not in card.to_json()
    assert (tmp_path / "card-fraud.html").stat().st_size > 10_000
    assert not list(tmp_path.glob("*checkpoint*"))
    assert not list(tmp_path.glob(".*"))
    predictions = scores(tmp_path / "card-fraud.onnx", tmp_path / "history.csv", tmp_path)
    assert len(predictions) == len(frame)


def test_the_outcome_for_a_program(tmp_path: Path) -> None:
    done = command(tmp_path, "train", str(write_config(tmp_path, task="classify")), "--json")
    found = orjson.loads(done.stdout)
    model = tmp_path / "card-fraud.onnx"
    assert (found["model"], found["report"]) == (str(model), str(model.with_suffix(".html")))
    card = load_model(model).card
    assert found["threshold"] == card.threshold
    for split, metrics in card.training["metrics"].items():
        for name, interval in metrics.items():
            assert found["metrics"][split][name] == pytest.approx(interval, rel=1e-3, nan_ok=True), name
    assert found["better_than_baselines"] in {True, False, None}


def test_the_metrics_are_those_of_the_served_scores(tmp_path: Path) -> None:
    """Average precision on the test split, from the scores of the engine."""
    file = write_config(tmp_path, training={"epochs": 8, "learning_rate": 0.02})
    train(file)
    model = tmp_path / "card-fraud.onnx"
    dataset = prepare_dataset(config_for(tmp_path))
    begin = int(dataset.events.timestamp[dataset.split.labels == 3].min())
    frame = pl.read_csv(tmp_path / "history.csv")
    predictions = scores(model, tmp_path / "history.csv", tmp_path)
    card = load_model(model).card
    score = np.array([prediction["score"] for prediction in predictions])
    in_test = (frame["time"] * 1000 >= begin).to_numpy()
    order = np.argsort(-score[in_test], kind="stable")
    label = frame["fraud"].to_numpy()[in_test][order]
    precision = np.cumsum(label) / np.arange(1, len(label) + 1)
    expected = card.training["metrics"]["test"]["average_precision"]["value"]
    assert (precision * label).sum() / label.sum() == pytest.approx(expected, abs=1e-3)
    alerts = [prediction["alert"] for prediction in predictions]
    assert alerts == [bool(value >= np.float32(card.threshold)) for value in score.astype(np.float32)]


def test_the_same_twice(tmp_path: Path) -> None:
    file = write_config(tmp_path, model={"hidden": 8, "dropout": 0.3}, training={"noise": 0.1, "mask": 0.1})
    train(file, out=tmp_path / "one.onnx")
    train(file, out=tmp_path / "two.onnx")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    train(write_config(tmp_path, training={"seed": 1}), out=tmp_path / "three.onnx")
    assert load_model(tmp_path / "one.onnx").card.fingerprint != load_model(tmp_path / "three.onnx").card.fingerprint


def test_classes_may_be_named_as_a_csv_file_writes_them(tmp_path: Path) -> None:
    frame = purchases(tmp_path / "history.csv")
    frame.with_columns(fraud=pl.col("fraud").cast(pl.Float64)).write_csv(tmp_path / "history.csv")
    train(write_config(tmp_path, target={"classes": ["1.0", "0.0"]}))
    assert load_model(tmp_path / "card-fraud.onnx").card.training["fields"]["classes"] == ["1", "0"]


def test_the_test_split_does_not_choose(tmp_path: Path) -> None:
    file = write_config(tmp_path)
    train(file, out=tmp_path / "one.onnx")
    dataset = prepare_dataset(config_for(tmp_path))
    begin = int(dataset.events.timestamp[dataset.split.labels == 3].min()) // 1000
    frame = pl.read_csv(tmp_path / "history.csv")
    late = pl.col("time") >= begin
    frame.with_columns(
        fraud=pl.when(late).then(1 - pl.col("fraud")).otherwise(pl.col("fraud")),
        amount=pl.when(late).then(pl.col("amount") * 50).otherwise(pl.col("amount")),
    ).write_csv(tmp_path / "history.csv")
    train(file, out=tmp_path / "two.onnx")
    one, two = (load_model(tmp_path / name).card for name in ("one.onnx", "two.onnx"))
    assert one.fingerprint == two.fingerprint
    assert one.threshold == two.threshold
    assert one.training["metrics"]["validation"] == two.training["metrics"]["validation"]
    assert one.training["metrics"]["test"] != two.training["metrics"]["test"]


def test_an_anomaly_model_without_further_options(tmp_path: Path) -> None:
    """Few long keys: the batch size follows the data, the default threshold is explained, the top events are listed."""
    rng = np.random.default_rng(0)
    times, keys = np.repeat(np.arange(300), 6), np.tile(np.arange(6), 300)
    frame = {"m": [f"m{key}" for key in keys], "t": 1_700_000_000 + 900 * times, "v": np.sin(times / 9 + keys)}
    frame["v"] = frame["v"] + rng.normal(size=len(times)) / 20
    pl.DataFrame(frame).write_csv(tmp_path / "x.csv")
    config = {"name": "a", "task": "anomaly", "features": {"numbers": ["v"]}}
    config["data"] = {"path": "x.csv", "key": "m", "timestamp": "t"}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(config))
    done = command(tmp_path, "train", "a.yaml")
    assert "batches of 3 keys x 64 events, 8 updates per epoch" in done.stderr
    assert "Threshold 0.5 is the default for anomalies" in done.stdout
    card = load_model(tmp_path / "a.onnx").card
    assert card.threshold == 0.5
    page = (tmp_path / "a.html").read_text()
    section = page.split('<section id="events">')[1].split("</section>")[0]
    assert "v (expected)" in section
    # what the table says was expected is the forecast in the prediction before
    cells = re.findall(r"<td>([^<]*)</td>", section)[:6]
    rows = [row for row in scores_of(tmp_path, "m", "t") if row["key"] == cells[0]]
    number = int(cells[2])
    assert cells[3] == f"{rows[number - 1]['score']:.4g}"
    assert cells[5].endswith(f"({rows[number - 2]['prediction'][0]:.4g})")


def scores_of(folder: Path, key: str, timestamp: str) -> list[dict[str, Any]]:
    out = folder / "a.jsonl"
    score_file(str(folder / "a.onnx"), str(folder / "x.csv"), out=str(out), key=key, timestamp=timestamp,
               dead_letters=None)  # fmt: skip
    return [orjson.loads(line) for line in out.read_bytes().splitlines()]


def test_the_default_batch_of_a_trial_is_that_of_its_training(tmp_path: Path) -> None:
    """`tune` samples the steps; with them the tuned file gives the batch size of the trial."""
    config = config_for(tmp_path, training={"batch": None, "epochs": 1})
    sizes = {}
    for steps in (1, 64):
        dataset = prepare_dataset(with_params(config, {"steps": steps}))
        sizes[steps] = make_trainer(make_network(dataset), dataset, checkpoint=None).batch_size
    whole = prepare_dataset(config)
    for steps, size in sizes.items():
        trial = replace(whole, config=with_params(config, {"steps": steps}))
        assert make_trainer(make_network(trial), trial, checkpoint=None).batch_size == size
    assert sizes[1] > sizes[64]


def test_an_anomaly_score_of_one_half_is_rare(tmp_path: Path) -> None:
    """One usual event in two hundred has a score above one half."""
    purchases(tmp_path / "history.csv", keys=60, events=300)
    train(write_config(tmp_path, task="anomaly", target={"memory": 2000}))
    metrics = load_model(tmp_path / "card-fraud.onnx").card.training["metrics"]["validation"]
    assert metrics["alert_share"]["value"] == pytest.approx(0.005, abs=0.002)


def test_a_test_split_without_targets_gives_a_model_without_test_metrics(tmp_path: Path) -> None:
    frame = purchases(tmp_path / "history.csv")
    late = frame["time"].quantile(0.85)
    frame.with_columns(amount=pl.when(pl.col("time") < late).then("amount")).write_csv(tmp_path / "history.csv")
    assert train(write_config(tmp_path, task="forecast", target={"fields": ["amount"]})) == 0


def test_a_forecast_may_have_a_threshold(tmp_path: Path) -> None:
    file = write_config(tmp_path, task="forecast", threshold={"rule": "value", "value": 3.5})
    assert train(file) == 0
    assert load_model(tmp_path / "card-fraud.onnx").card.threshold == 3.5


def test_data_larger_than_memory_give_the_same_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_config(tmp_path)
    train(file, out=tmp_path / "memory.onnx")
    monkeypatch.setattr("lstmstream.history.events.RAM_BYTES", 20_000)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    spooled: list[int] = []
    add = data._Spool.add
    monkeypatch.setattr(data._Spool, "add", lambda spool, held: (spooled.append(len(held)), add(spool, held))[1])
    train(file, out=tmp_path / "disk.onnx")
    assert spooled
    assert not list(scratch.iterdir())
    memory, disk = (load_model(tmp_path / name).card for name in ("memory.onnx", "disk.onnx"))
    assert memory.training["data"] == disk.training["data"]
    assert memory.training["metrics"]["test"].keys() == disk.training["metrics"]["test"].keys()


# --- stopping, resuming ---------------------------------------------------------------------------------------------


def start_training(folder: Path, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """A training that has printed two epochs and has many before it, and the line of the second."""
    file = write_config(folder, training={"epochs": 5000, "patience": 5000})
    process = subprocess.Popen(
        [*LSTMSTREAM, "train", str(file), *arguments],
        cwd=folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    epochs = (line for line in process.stderr if line.startswith("epoch "))
    assert next(epochs)
    return process, next(epochs)


def last_epoch(output: str) -> int:
    return int(re.findall(r"^epoch +(\d+)", output, re.MULTILINE)[-1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_the_best_so_far(tmp_path: Path, number: int) -> None:
    process, _ = start_training(tmp_path)
    process.send_signal(number)
    _, output = process.communicate(timeout=180)
    assert process.returncode == 0, output
    assert "stopping; the best epoch so far is kept" in output
    training = load_model(tmp_path / "card-fraud.onnx").card.training
    assert 2 <= training["epochs"] < 5000


def test_a_killed_training_resumes_after_its_last_epoch(tmp_path: Path) -> None:
    process, output = start_training(tmp_path)
    process.kill()
    _, more = process.communicate(timeout=180)
    done = last_epoch(output + more)
    assert (tmp_path / "card-fraud.checkpoint").exists()
    assert not (tmp_path / "card-fraud.onnx").exists()
    process, output = start_training(tmp_path, "--resume")
    assert last_epoch(output) > done
    process.send_signal(signal.SIGTERM)
    _, more = process.communicate(timeout=180)
    assert process.returncode == 0, more
    assert load_model(tmp_path / "card-fraud.onnx").card.training["epochs"] >= last_epoch(output + more)
    assert not (tmp_path / "card-fraud.checkpoint").exists()


# --- tuning ---------------------------------------------------------------------------------------------------------


def test_tuning_writes_the_best_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bounds = {"trials": 4, "hidden": [4, 6], "learning_rate": [0.001, 0.05]}
    file = write_config(tmp_path, tune=bounds)
    assert tune(file) == 0
    assert "train.tuned.yaml: the best of 4 trials" in capsys.readouterr().out
    assert tune(file, as_json=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["config"], said["trials"]) == (str(tmp_path / "train.tuned.yaml"), 4)
    best = said["best"][0]
    found = yaml.safe_load((tmp_path / "train.tuned.yaml").read_text())
    assert f"{best['learning_rate']:.4g}" == f"{found['training']['learning_rate']:.4g}"
    assert best["validation"] == max(trial["validation"] for trial in said["best"])
    assert 4 <= found["model"].pop("hidden") <= 6
    assert 0.001 <= found["training"].pop("learning_rate") <= 0.05
    given = settings(tune=bounds)
    del given["model"]["hidden"], given["training"]["learning_rate"]
    assert found == given
    assert train(tmp_path / "train.tuned.yaml") == 0
    with pytest.raises(CannotServe, match="must be in the folder of"):
        tune(file, out=tmp_path.parent / "elsewhere.yaml")
    with pytest.raises(CannotServe, match=r"tune\.hidden: its lower bound must be above model\.projection, 6"):
        tune(write_config(tmp_path, model={"projection": 6}, tune={"hidden": [6, 8]}))


def test_a_trial_without_a_result_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, trainers = Trainer.run, []

    def second_fails(trainer: Trainer, *callbacks: Any) -> Any:
        trainers.append(trainer)
        if len(trainers) == 2:
            raise CannotServe("training: the loss is not finite")
        return run(trainer, *callbacks)

    monkeypatch.setattr(Trainer, "run", second_fails)
    assert tune(write_config(tmp_path, tune={"trials": 3, "hidden": [4, 6]})) == 0
    out, err = capsys.readouterr()
    assert "the loss is not finite" in err
    assert "train.tuned.yaml: the best of 3 trials" in out


def test_a_file_whose_scores_are_nan_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_step: Any, events: Any) -> Any:
        return np.full(len(events), np.nan, np.float32), None

    monkeypatch.setattr("lstmstream.train.finalize.score_events", nothing)
    with pytest.raises(Fatal, match="differ by nan; the file is not written"):
        train(write_config(tmp_path))
    assert not list(tmp_path.glob("*.onnx"))


def test_anomalies_of_huge_unscaled_numbers(tmp_path: Path) -> None:
    frame = purchases(tmp_path / "history.csv")
    frame.with_columns(amount=pl.col("amount") * 1e9).write_csv(tmp_path / "history.csv")
    features = {"numbers": [{"name": "amount", "scale": "none"}, "distance"], "categories": []}
    assert train(write_config(tmp_path, task="anomaly", features=features)) == 0
