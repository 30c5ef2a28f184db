"""History features: the same statistics in the exported graph, in training, and by weighted sums in float64."""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lstmstream.errors import CannotServe
from lstmstream.history import events as events_module
from lstmstream.history.split import TRAIN
from lstmstream.model import describe, load_model
from lstmstream.serve.model_checks import CHECKED_ROWS, check_rows_are_independent, probe, warm_up
from lstmstream.serve.split_step import SplitStep
from lstmstream.serve.step_model import StepInput
from lstmstream.train.dataset import prepare_dataset
from lstmstream.train.export import FeatureEncoder, History, Number, build, export, read_network
from lstmstream.train.factory import make_network, make_trainer
from lstmstream.train.features import transform_rows
from lstmstream.train.loss import augment
from lstmstream.train.network import Anomaly, Architecture, Classes, Forecast, TaskHead
from lstmstream.train.provenance import settings_digest
from lstmstream.train.run import train
from lstmstream.train.schema import load_training
from lstmstream.train.trainer import Trainer
from tests.train.histories import command, scores, write_config
from tests.train.reference_encoder import history_in_float64
from tests.train.sequences import (
    encoder_of_everything,
    encoder_of_numbers,
    random_sequences,
    random_torch_network,
    with_history,
)
from tests.train.test_export_parity import CALIBRATION, assert_parity, exported

pytestmark = pytest.mark.torch

DAY = 86_400.0
PAIRS = [(0, DAY), (0, 7 * DAY), (1, 3600.0), (3, 30 * DAY)]
HISTORY = {
    "numbers": [{"name": "amount", "log": True, "history": ["1h", "1d"]}, {"name": "distance", "history": "7d"}],
    "categories": ["shop"],
}


# --- the exported graph ---


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("cell", ["lstm", "gru", "mingru", "s4d"])
@pytest.mark.parametrize("task_head", [Classes(1), Classes(3), Forecast((0, 3), 2), Anomaly((1, 0))])
def test_graph_and_network_agree(tmp_path: Path, task_head: TaskHead, cell: str, window: int | None) -> None:
    encoder = with_history(encoder_of_everything(), PAIRS)
    network = random_torch_network(encoder, Architecture(cell, 2, 7, window=window), task_head)
    assert_parity(tmp_path, network, random_sequences(encoder, 60))


@pytest.mark.parametrize("pairs", [PAIRS[:1], PAIRS[:3], PAIRS * 2], ids=len)
def test_history_alone_with_any_number_of_pairs(tmp_path: Path, pairs: list[tuple[int, float]]) -> None:
    pairs = [(column % 3, window * (1 + index)) for index, (column, window) in enumerate(pairs)]
    encoder = with_history(encoder_of_numbers(log=True), pairs)  # neither elapsed nor a clock is an input
    network = random_torch_network(encoder, Architecture("lstm", 1, 5), Classes())
    assert_parity(tmp_path, network, random_sequences(encoder, 40))
    step = exported(tmp_path, network)
    warm_up(step)
    check_rows_are_independent(step)
    SplitStep(step)


@pytest.mark.parametrize("count", [1, 3, 8, 9])
def test_a_rows_bits_do_not_depend_on_the_batch(tmp_path: Path, count: int) -> None:
    encoder = with_history(encoder_of_numbers(), [(index % 3, DAY * (1 + index)) for index in range(count)])
    step = exported(tmp_path, random_torch_network(encoder, Architecture("lstm", 1, 9), Anomaly((0, 2))))
    given = probe(step.card, rows=CHECKED_ROWS)
    for _ in range(3):
        given = given._replace(state=step.step(given).state)
    alone = [step.step(given.rows(row, 1)) for row in range(CHECKED_ROWS)]
    for size in (2, 3, 7, 64):
        for start in (0, 1, 5):
            together = step.step(given.rows(start, size))
            for name, batch in together._asdict().items():
                rows = np.concatenate([getattr(one, name) for one in alone[start : start + size]])
                assert rows.tobytes() == batch.tobytes(), f"{name}, batch of {size} at {start}"


def test_the_state_has_a_named_value_of_each_statistic(tmp_path: Path) -> None:
    encoder = FeatureEncoder((Number("amount", 10.0, 2.0),), history=History((0,), (2 * DAY,), (0.0,) * 4, (1.0,) * 4))
    step = exported(tmp_path, random_torch_network(encoder, Architecture("gru", 1, 3), Classes()))
    names = [part.name for part in step.card.state.parts]
    assert names == ["h0", "history.amount.2d.count", "history.amount.2d.mean", "history.amount.2d.variance"]
    state = np.array([step.card.state.initial], np.float32)
    assert state[0, 3:].tolist() == [0, 0, 0]
    seen = []
    for value, elapsed in ((14.0, np.nan), (18.0, 0.0), (np.nan, 2 * DAY), (10.0, 0.0)):
        given = StepInput(
            np.array([[value]], np.float32),
            np.zeros((1, 0), np.int64),
            np.zeros(1, np.int64),
            np.array([elapsed], np.float32),
            state,
        )
        state = step.step(given).state
        seen.append(state[0, 3:].tolist())
    aged = 2 / np.e  # of two events
    assert seen[0] == [1, 2, 0]  # (14 - 10) / 2
    assert seen[1] == [2, 3, 1]
    assert seen[2] == pytest.approx([aged, 3, 1], rel=1e-6)  # without the number they only age
    mean = aged * 3 / (aged + 1)
    assert seen[3] == pytest.approx([aged + 1, mean, aged * 10 / (aged + 1) - mean**2], rel=1e-5)


def test_extremes_stay_finite(tmp_path: Path) -> None:
    pairs = [(0, 1e-3), (1, 36_500 * DAY), (2, 1.0), (3, DAY)]
    encoder = with_history(encoder_of_everything(), pairs)
    numbers = tuple(replace(number, centre=1e29, scale=scale) for number, scale in
                    zip(encoder.numbers, (1e29, 1e-29, 1e29, 1e-29), strict=True))  # fmt: skip
    network = random_torch_network(replace(encoder, numbers=numbers), Architecture("lstm", 1, 8), Forecast((1,)))
    step = exported(tmp_path, network)
    most = float(np.finfo(np.float32).max)
    generator = np.random.default_rng(0)
    state = np.tile(np.array(step.card.state.initial, np.float32), (20, 1))
    for _ in range(40):
        x = generator.choice([most, -most, 0.0, -0.0, 1e-45, np.nan], (20, 4)).astype(np.float32)
        elapsed = generator.choice([0, 1e-3, 1e9, most, np.nan], 20).astype(np.float32)
        out = step.step(StepInput(x, np.zeros((20, 2), np.int64), np.zeros(20, np.int64), elapsed, state))
        assert out.finite().all()
        state = out.state


def test_many_equal_values_are_no_deviation(tmp_path: Path) -> None:
    encoder = FeatureEncoder((Number("n"),), history=History((0,), (DAY,), (0.0,) * 4, (1.0,) * 4))
    step = exported(tmp_path, random_torch_network(encoder, Architecture("gru", 1, 1), Classes()))
    state = np.array([step.card.state.initial], np.float32)
    for _ in range(3000):
        empty = (np.zeros((1, 0), np.int64), np.zeros(1, np.int64), np.zeros(1, np.float32))
        state = step.step(StepInput(np.full((1, 1), 0.1, np.float32), *empty, state)).state
    count, mean, variance = state[0, 1:].tolist()
    assert (count, mean, variance) == (3000, np.float32(0.1), 0)


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("elapsed", [False, True])
def test_it_comes_back_from_the_file(tmp_path: Path, window: int | None, *, elapsed: bool) -> None:
    pairs = [(0, 1e-3), (3, 90.0), (3, 3600.0), (0, 36_500 * DAY), (1, 123_456.789)]
    encoder = with_history(encoder_of_everything(), pairs)
    if not elapsed:
        encoder = replace(encoder, elapsed=None)  # the graph reads it for the history alone
    made = random_torch_network(encoder, Architecture("lstm", 1, 4, window=window), Anomaly((0,))).to_spec(
        calibration=CALIBRATION
    )
    export(tmp_path / "m.onnx", made, name="m", version="1")
    read = read_network(load_model(tmp_path / "m.onnx"))
    assert read.encoder.history is not None
    assert encoder.history is not None
    assert read.encoder.history.windows_s == encoder.history.windows_s
    assert read.state == made.state
    assert build(read).SerializeToString(deterministic=True) == build(made).SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (History((4,), (1.0,), (0.0,) * 4, (1.0,) * 4), "columns .* should be indices of the 4 numbers"),
        (History((0, 1), (1.0,), (0.0,) * 8, (1.0,) * 8), "windows .* as many"),
        (History((0,), (0.0,), (0.0,) * 4, (1.0,) * 4), "windows .* should be from 1 ms"),
        (History((0, 0), (1.0, 1.0), (0.0,) * 8, (1.0,) * 8), "the same window twice in amount.1s, amount.1s"),
        (History((0,), (1.0,), (0.0,) * 3, (1.0,) * 4), "3 centres and 4 scales, not 4"),
        (History((0,), (1.0,), (0.0,) * 4, (np.nan,) * 4), "centres and scales should be below"),
    ],
)
def test_arrays_that_do_not_fit(wrong: History, message: str) -> None:
    network = random_torch_network(encoder_of_everything(), Architecture("gru", 1, 2), Classes())
    with pytest.raises(ValueError, match=message):
        build(network.to_spec(replace(encoder_of_everything(), history=wrong)))


# --- training ---


@pytest.mark.parametrize("on_disk", [False, True])
def test_training_has_the_inputs_of_the_formulas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, on_disk: bool
) -> None:
    if on_disk:
        monkeypatch.setattr(events_module, "RAM_BYTES", 1000)
    with closing(prepare_dataset(load_training(write_config(tmp_path, features=HISTORY)))) as dataset:
        events, encoder = dataset.events, dataset.encoder
        assert isinstance(events.statistics, np.memmap) is on_disk
        history = encoder.history
        assert history is not None
        assert (history.columns, history.windows_s) == ((0, 0, 1), (3600, DAY, 7 * DAY))
        dense = transform_rows(encoder, events, np.arange(len(events)))
        assert dense.shape[1] == encoder.dense_width
        for key in range(len(events.keys)):
            rows = slice(events.starts[key], events.starts[key + 1])
            expected = history_in_float64(encoder, np.asarray(events.x[rows]), np.asarray(events.elapsed[rows]))
            np.testing.assert_allclose(dense[rows, -12:], expected, rtol=1e-4, atol=2e-5)
        assert history.centre[-3:] == (0, 0, 0)  # where the number is missing the deviation is 0
        training = dense[dataset.split.rows(TRAIN)]
        assert np.abs(training[:, -12:-3].mean(axis=0)).max() < 1e-4
        assert np.sqrt((training[:, -12:] ** 2).mean(axis=0)) == pytest.approx(np.ones(12), rel=1e-3)


def test_a_hidden_number_has_no_deviation() -> None:
    encoder = with_history(encoder_of_everything(), PAIRS)
    dense = torch.ones(50, 20, encoder.dense_width)
    absent = torch.zeros(50, 20, 4, dtype=torch.bool)
    masked = augment(dense, absent, encoder, 0.5, 0.0, torch.Generator().manual_seed(0))
    for index, (column, _) in enumerate(PAIRS):
        assert torch.equal(masked[..., encoder.dense_width - 4 + index] == 0, masked[..., column] == 0)
    assert (masked[..., -16:-4] == 1).all()
    assert (dense == 1).all()


def test_from_training_to_scores(tmp_path: Path) -> None:
    """The whole way: train, the card, the report, inspect, score and --init."""
    file = write_config(tmp_path, features=HISTORY)
    command(tmp_path, "train", "train.yaml")
    model = load_model(tmp_path / "card-fraud.onnx")
    assert model.card.training["difference"] < 1e-5
    assert model.card.training["config"]["features"]["numbers"][0]["history"] == [3600, DAY]
    assert "elapsed" in model.graph_inputs
    assert "  history.amount.1d.mean: [1] at 20" in describe(model)
    assert "amount.1h, amount.1d, distance.7d" in (tmp_path / "card-fraud.html").read_text(encoding="utf-8")
    first = scores(tmp_path / "card-fraud.onnx", tmp_path / "history.csv", tmp_path)
    assert all(np.isfinite(one["score"]) for one in first)
    shuffled = sorted((tmp_path / "history.csv").read_text().splitlines()[1:], key=lambda line: line.split(",")[0])
    (tmp_path / "by_key.csv").write_text("\n".join(["customer,time,amount,distance,shop,fraud", *shuffled]))
    by_key = {(one["key"], one["steps"]): one["score"] for one in
              scores(tmp_path / "card-fraud.onnx", tmp_path / "by_key.csv", tmp_path)}  # fmt: skip
    assert by_key == {(one["key"], one["steps"]): one["score"] for one in first}  # other batches, the same bits

    write_config(tmp_path, features={"numbers": ["amount", "distance"], "categories": ["shop"]})
    train(file, out=tmp_path / "tuned.onnx", init=str(tmp_path / "card-fraud.onnx"))
    tuned = load_model(tmp_path / "tuned.onnx")
    assert tuned.card.state == model.card.state
    assert tuned.card.training["difference"] < 1e-5
    assert read_network(tuned).encoder.history == read_network(model).encoder.history
    assert tuned.card.training["config"]["features"]["numbers"][0]["history"] == [3600, DAY]
    numbers = [{"name": "amount", "history": ["1d"]}, {"name": "distance", "history": []}]
    write_config(tmp_path, features={"numbers": numbers, "categories": ["shop"]})
    with pytest.raises(CannotServe) as caught:
        train(file, out=tmp_path / "no.onnx", init=str(tmp_path / "card-fraud.onnx"))
    assert list(caught.value.problems) == [
        "features.numbers.amount.history: is 1d, and the model of --init has 1h, 1d; remove it",
        "features.numbers.distance.history: is none, and the model of --init has 7d; remove it",
    ]


def test_a_resumed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    config = load_training(write_config(tmp_path, features=HISTORY))

    def trained(checkpoint: Path | None, *, until: int, resume: bool = False) -> Trainer:
        with closing(prepare_dataset(config)) as dataset:
            trainer = make_trainer(make_network(dataset), dataset, checkpoint)
            assert not resume or trainer.resume() == 2
            trainer.run(lambda _: None, lambda _: None, lambda: len(trainer.result.history) >= until)
        return trainer

    whole = trained(None, until=3)
    trained(tmp_path / "checkpoint", until=2)
    resumed = trained(tmp_path / "checkpoint", until=3, resume=True)
    assert len(resumed.result.history) == 3
    for one, other in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_another_window_is_another_training(tmp_path: Path) -> None:
    digests = set()
    for windows in (["1h", "1d"], ["1h", "2d"], []):
        numbers = [{"name": "amount", "history": windows}, "distance"]
        config = load_training(write_config(tmp_path, features={"numbers": numbers}))
        with closing(prepare_dataset(config)) as dataset:
            digests.add(settings_digest(dataset))
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        (7, "features.numbers.0.history: must be a list"),
        ([7], "features.numbers.0.history.0: needs a unit; write it like 30s"),
        ("1d, soon", "features.numbers.0.history.1: is not a valid duration"),
        (["0s"], "features.numbers.0.history: has a window of 0; write durations such as 1d"),
        (["1d", "24h"], "features.numbers.0.history: has a window twice; list each once"),
        ([f"{day}d" for day in range(1, 18)], "features.numbers.0.history: has 17 windows; list 16 at most"),
        (["200y"], "features.numbers.0.history.0: is not a valid duration"),
    ],
)
def test_bad_settings_are_refused_with_their_path(tmp_path: Path, windows: object, message: str) -> None:
    write_config(tmp_path, features={"numbers": [{"name": "amount", "history": windows}]})
    done = command(tmp_path, "train", "train.yaml", check=2)
    assert message in " ".join(done.stderr.split())


def test_without_event_times_it_is_refused(tmp_path: Path) -> None:
    data = {"path": "history.csv", "key": "customer", "timestamp": None}
    with pytest.raises(CannotServe, match=re.escape("features.numbers.0.history: needs data.timestamp")):
        load_training(write_config(tmp_path, data=data, features={**HISTORY, "hour_of_day": False}))
