"""The exported step model, event by event, gives what the network in torch gives over whole sequences."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from lstmstream.errors import CannotServe
from lstmstream.model import load_model
from lstmstream.serve.step import OnnxStep
from lstmstream.serve.step_model import StepInput
from lstmstream.train.export import Calibration, FeatureEncoder, NetworkSpec, build, export, read_network
from lstmstream.train.export.named_cells import NAMED_CELLS
from lstmstream.train.network import Anomaly, Architecture, Classes, Forecast, TaskHead, TorchNetwork, load_weights
from lstmstream.train.predict import anomaly_scores, forward_sequences, normalized_error, predict_sequences
from tests.models import poisoned_model
from tests.train.sequences import (
    Sequences,
    encoder_of_everything,
    encoder_of_numbers,
    random_sequences,
    random_torch_network,
    serve,
)

pytestmark = pytest.mark.torch
torch.set_num_threads(1)
TOLERANCE = 1e-5
CALIBRATION = Calibration(initial_level=1.3, half_point=1.7, alpha=0.05)

TARGETS: dict[str, TaskHead] = {
    "logit": Classes(1),
    "classes": Classes(4),
    "next": Forecast((1,), 1, residual=True),
    "next-absolute": Forecast((1,), 1, residual=False),
    "next-log": Forecast((0, 3), 1, residual=True),
    "three-ahead": Forecast((2, 0, 1), 3, residual=True),
    "three-ahead-absolute": Forecast((0, 2), 3, residual=False),
    "anomaly": Anomaly((1, 0, 2)),
    "anomaly-absolute": Anomaly((3,), residual=False),
}
CELLS = {
    "lstm": Architecture("lstm"),
    "gru": Architecture("gru"),
    "lstm-projected": Architecture("lstm", projection=3),
    "lstm-relu": Architecture("lstm", activation="relu"),
    **{cell: Architecture(cell) for cell in NAMED_CELLS},
    "gru-relu": Architecture("gru", activation="relu"),
    "lstm-relu-projected": Architecture("lstm", projection=2, activation="relu"),
}


def exported(folder: Path, network: TorchNetwork, **card: object) -> OnnxStep:
    export(folder / "m.onnx", network.to_spec(calibration=CALIBRATION), name="m", version="1", **card)
    return OnnxStep(load_model(folder / "m.onnx"), device="cpu")


def assert_parity(folder: Path, network: TorchNetwork, events: Sequences) -> None:
    """Scores, predictions and, for anomalies, the head's state."""
    step = exported(folder, network)
    dense, codes, missing, lengths = events.tensors(network.encoder)
    score, prediction = (
        values.numpy() for values in predict_sequences(network, dense, codes, missing, lengths, CALIBRATION)
    )
    served, predicted, state = serve(step, events)
    assert np.array_equal(np.isnan(served), np.isnan(score))
    assert np.array_equal(np.isnan(predicted), np.isnan(prediction))
    for ours, theirs in ((served, score), (predicted, prediction)):
        size = 1 if isinstance(network.task_head, Classes) else np.maximum(1, np.abs(theirs))
        assert np.nanmax(np.abs(ours - theirs) / size) <= TOLERANCE
    assert np.nanstd(score) > 1e-3  # constant scores would agree too
    if isinstance(network.task_head, Anomaly):
        assert_same_head_state(network, state, dense, codes, missing, lengths)


def assert_same_head_state(network: TorchNetwork, state: dict[str, np.ndarray], dense, codes, missing, lengths) -> None:
    assert isinstance(network.task_head, Anomaly)
    with torch.no_grad():
        output = forward_sequences(network, dense, codes)
        _, moment = anomaly_scores(normalized_error(output, dense, missing, network.task_head), CALIBRATION)
    rows, last = torch.arange(len(dense)), lengths - 1
    expected = {"forecast": output[rows, last].numpy(), "power": moment[rows, last, None].numpy()}
    for name, values in expected.items():
        assert np.max(np.abs(state[name] - values) / np.maximum(1, np.abs(values))) <= TOLERANCE, name
    assert (state["has_forecast"] == 1).all()
    assert np.ptp(state["power"]) > 0.1


@cache
def small_sequences() -> tuple[FeatureEncoder, Sequences]:
    encoder = encoder_of_everything()
    return encoder, random_sequences(encoder, 200)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("task_head", TARGETS)
def test_every_task_with_every_cell(tmp_path: Path, task_head: str, cell: str, layers: int) -> None:
    encoder, events = small_sequences()
    network = random_torch_network(
        encoder, replace(CELLS[cell], layers=layers, hidden=5 + layers), TARGETS[task_head], seed=layers
    )
    assert_parity(tmp_path, network, events)


@pytest.mark.parametrize("window", [1, 2, 7])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("task_head", ["logit", "next-log", "anomaly"])
def test_every_cell_in_a_window(tmp_path: Path, task_head: str, cell: str, window: int) -> None:
    encoder, events = small_sequences()
    network = random_torch_network(
        encoder, replace(CELLS[cell], layers=1 + window % 2, hidden=6, window=window), TARGETS[task_head]
    )
    assert_parity(tmp_path, network, events)


@dataclass(frozen=True)
class Large:
    task_head: str
    architecture: Architecture
    encoder: str = "everything"


LARGE = (
    Large("logit", Architecture("lstm", 2, 32)),
    Large("classes", Architecture("gru", 1, 16)),
    Large("next", Architecture("lstm", 3, 16, projection=8)),
    Large("next-log", Architecture("gru", 2, 16, activation="relu"), "logs"),
    Large("three-ahead", Architecture("lstm", 1, 16, activation="relu"), "numbers"),
    Large("three-ahead-absolute", Architecture("gru", 3, 16)),
    Large("anomaly", Architecture("lstm", 1, 32)),
    Large("anomaly", Architecture("gru", 2, 16, window=4), "numbers"),
    Large("anomaly-absolute", Architecture("lstm", 2, 16, projection=4, activation="relu")),
    Large("logit", Architecture("lstm", 1, 16, window=10), "logs"),
)


@pytest.mark.parametrize(
    "case", LARGE, ids=lambda case: f"{case.task_head}-{case.architecture.cell}{case.architecture.layers}"
)
def test_ten_thousand_keys(tmp_path: Path, case: Large) -> None:
    encoder = {
        "everything": encoder_of_everything(),
        "numbers": encoder_of_numbers(),
        "logs": encoder_of_numbers(log=True),
    }[case.encoder]
    task_head = TARGETS[case.task_head]
    if not isinstance(task_head, Classes) and max(task_head.columns) >= len(encoder.numbers):
        task_head = replace(task_head, columns=(2, 0))
    network = random_torch_network(encoder, case.architecture, task_head, seed=7)
    assert_parity(tmp_path, network, random_sequences(encoder, 10_000, seed=11))


BATCHES = (2, 3, 7, 64, 200)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("task_head", TARGETS)
def test_a_rows_bits_do_not_depend_on_the_batch(tmp_path: Path, task_head: str, cell: str, window: int | None) -> None:
    encoder, events = small_sequences()
    hidden = 5 + len(task_head)  # from 9 to 25, few of them a multiple of the vector
    step = exported(
        tmp_path, random_torch_network(encoder, replace(CELLS[cell], hidden=hidden, window=window), TARGETS[task_head])
    )
    _, _, parts = serve(step, events)  # states that occur
    given = StepInput(
        *(np.ascontiguousarray(getattr(events, name)[:, 0]) for name in ("x", "codes", "timestamp")),
        events.elapsed[:, 1].copy(),
        np.concatenate([parts[part.name] for part in step.card.state.parts], axis=1),
    )
    alone = [step.step(given.rows(row, 1)) for row in range(len(given.x))]
    for size in BATCHES:
        for start in {0, 1, 5, 64, 200 - size}:
            if start + size > 200:
                continue
            together = step.step(given.rows(start, size))
            for name, batch in together._asdict().items():
                rows = np.concatenate([getattr(one, name) for one in alone[start : start + size]])
                assert rows.tobytes() == batch.tobytes(), f"{name}, batch of {size} at {start}"


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("task_head", TARGETS)
def test_weights_come_back_from_the_file(tmp_path: Path, task_head: str, cell: str, window: int | None) -> None:
    encoder, architecture = encoder_of_everything(limit=123.0), replace(CELLS[cell], layers=2, hidden=6, window=window)
    network = random_torch_network(encoder, architecture, TARGETS[task_head])
    for layer in network.layers:  # not what a network begins with, but what an imported one may have
        for name, values in layer.named_buffers(recurse=False):
            values.add_({"initial_h": 0.3, "initial_c": -0.2}.get(name, 0.1))
    made = network.to_spec(calibration=CALIBRATION)
    first = export(tmp_path / "a.onnx", made, name="m", version="1", training={"seed": 1})

    read = read_network(load_model(tmp_path / "a.onnx"))
    again = random_torch_network(read.encoder, architecture, TARGETS[task_head], seed=99)
    load_weights(again, read)
    calibration = getattr(read.head, "calibration", None)
    second = export(
        tmp_path / "b.onnx", again.to_spec(calibration=calibration), name="m", version="1", training={"seed": 1}
    )
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert first == second
    assert first.fingerprint
    other = random_torch_network(encoder, architecture, TARGETS[task_head], seed=99).to_spec(calibration=CALIBRATION)
    assert build(other) != build(made)  # the weights, not the seed, made them equal


def test_the_state_of_each_kind() -> None:
    encoder = encoder_of_numbers()

    def parts(architecture: Architecture, task_head: TaskHead) -> list[tuple[str, tuple[int, ...]]]:
        state = TorchNetwork(encoder, architecture, task_head).to_spec(calibration=CALIBRATION).state
        assert state.size == len(state.initial) == sum(int(np.prod(part.shape)) for part in state.parts)
        return [(part.name, part.shape) for part in state.parts]

    head = [("forecast", (2, 2)), ("has_forecast", (1,)), ("power", (1,))]
    assert parts(Architecture("lstm", 2, 4), Classes()) == [("h0", (4,)), ("c0", (4,)), ("h1", (4,)), ("c1", (4,))]
    assert parts(Architecture("lstm", 1, 4, projection=2), Forecast((0,))) == [("h0", (2,)), ("c0", (4,))]
    assert parts(Architecture("gru", 2, 4), Anomaly((0, 2))) == [("h0", (4,)), ("h1", (4,)), *head]
    assert parts(Architecture("gru", 2, 4, window=5), Anomaly((0, 2))) == [("window", (5, 3)), ("filled", (1,)), *head]
    made = TorchNetwork(encoder, Architecture("gru", 1, 1), Anomaly((0,))).to_spec(calibration=CALIBRATION)
    assert made.state.initial == (0, 0, 0, 0, float(str(np.float32(1.3**4))))


def test_a_full_window_holds_the_last_rows(tmp_path: Path) -> None:
    encoder = encoder_of_numbers()
    events = random_sequences(encoder, 50)
    network = random_torch_network(encoder, Architecture("lstm", 1, 4, window=5), Classes())
    _, _, state = serve(exported(tmp_path, network), events)
    dense, _, _, _ = events.tensors(encoder)
    for row, length in enumerate(events.lengths):
        seen = min(length, 5)
        assert state["filled"][row] == seen
        held = state["window"][row].reshape(5, 3)
        np.testing.assert_allclose(held[5 - seen :], dense[row, length - seen : length], atol=1e-6)
        assert not held[: 5 - seen].any()


def test_a_model_that_export_did_not_write_cannot_be_read_back(tmp_path: Path) -> None:
    with pytest.raises(CannotServe, match=r"poisoned\.onnx: its weights cannot be read back.*train did not write it"):
        read_network(load_model(poisoned_model(tmp_path)))


def test_existing_models_can_be_read_back() -> None:
    small = read_network(load_model(Path(__file__).parents[1] / "data" / "small.onnx"))
    assert [category.vocabulary for category in small.encoder.categories] == [("web", "app", "pos"), None]
    assert isinstance(read_network(load_model("builtin:demo")), NetworkSpec)


@pytest.mark.parametrize("task_head", ["next", "next-log", "three-ahead", "anomaly"])
@pytest.mark.parametrize("window", [None, 3])
def test_extremes_stay_finite(tmp_path: Path, task_head: str, window: int | None) -> None:
    encoder = encoder_of_everything()
    numbers = tuple(replace(number, centre=1e29, scale=scale) for number, scale in
                    zip(encoder.numbers, (1e29, 1e-29, 1e29, 1e-29), strict=True))  # fmt: skip
    network = random_torch_network(
        replace(encoder, numbers=numbers), Architecture("lstm", 1, 8, window=window), TARGETS[task_head]
    )
    step = exported(tmp_path, network)
    most = float(np.finfo(np.float32).max)
    generator = np.random.default_rng(0)
    state = np.tile(np.array(step.card.state.initial, np.float32), (20, 1))
    for _ in range(20):
        x = generator.choice([most, -most, 0.0, -0.0, 1e-45, np.nan], (20, 4)).astype(np.float32)
        elapsed = generator.choice([0, most, np.nan], 20).astype(np.float32)
        given = StepInput(x, np.zeros((20, 2), np.int64), np.zeros(20, np.int64), elapsed, state)
        out = step.step(given)
        assert out.finite().all()
        state = out.state
        if task_head == "next-log":  # logs of about 1e29
            assert np.abs(out.prediction) == pytest.approx(np.exp(80), rel=1e-4)


def test_a_plateau_ends_in_no_division_by_zero(tmp_path: Path) -> None:
    encoder = encoder_of_numbers()
    network = TorchNetwork(encoder, Architecture("gru", 1, 2), Anomaly((0,)))
    with torch.no_grad():
        for weights in network.parameters():
            weights.zero_()  # with the residual: the forecast is the present value
    calibration = Calibration(1e-6, 1e-6, 1.0)
    spec = network.to_spec(calibration=calibration)
    export(tmp_path / "m.onnx", spec, name="m", version="1")
    step = OnnxStep(load_model(tmp_path / "m.onnx"), device="cpu")
    state = np.array([step.card.state.initial], np.float32)
    empty = (np.zeros((1, 0), np.int64), np.zeros(1, np.int64), np.full(1, np.nan, np.float32))
    for _ in range(5):
        out = step.step(StepInput(np.full((1, 3), 3, np.float32), *empty, state))
        state = out.state
        assert out.score == 0
        assert out.finite().all()
    assert state[0, -1] == np.float32(calibration.min_moment)
    out = step.step(StepInput(np.full((1, 3), 9, np.float32), *empty, state))
    assert out.score > 0.99
    error = torch.tensor([[torch.nan, 0, 0, 0, 0, 3]])
    score, moment = anomaly_scores(error, calibration)
    assert torch.isfinite(moment).all()
    np.testing.assert_allclose(score[0, -1], out.score[0], atol=1e-6)
