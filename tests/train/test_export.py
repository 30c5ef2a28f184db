"""The step graph gives what torch gives over whole sequences, with bits that do not depend on the batch."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from lstmstream.errors import CannotServe
from lstmstream.model import load_model, with_all_outputs
from lstmstream.train.export import (
    AnomalyHead,
    Calibration,
    Category,
    DenseHead,
    Elapsed,
    FeatureEncoder,
    ForecastHead,
    Gru,
    Lstm,
    NetworkSpec,
    Number,
    build,
    export,
    gru_layers,
    lstm_layers,
)
from tests.models import card_of, random_network, write
from tests.train.reference_encoder import encode_in_float64

OUTPUTS = ["state_out", "score", "prediction"]
KEYS, STEPS = 6, 25


def session(network: NetworkSpec) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(build(network).SerializeToString(), options, providers=["CPUExecutionProvider"])


def events(network: NetworkSpec, rows: int, seed: int = 0, *, missing: float = 0.2) -> dict[str, np.ndarray]:
    """Random inputs of each kind the network has, `rows` of them; a fifth is missing."""
    generator = np.random.default_rng(seed)
    encoder = network.encoder

    def holes(values: np.ndarray) -> np.ndarray:
        return np.where(generator.random(values.shape) < missing, np.nan, values).astype(np.float32)

    feed: dict[str, np.ndarray] = {}
    if encoder.numbers:
        feed["x"] = holes(generator.normal(scale=50, size=(rows, len(encoder.numbers))))
    if encoder.categories:
        tops = [len(category.table) for category in encoder.categories]
        feed["categories"] = generator.integers(0, tops, size=(rows, len(tops)))
    if encoder.hour_of_day or encoder.day_of_week:
        feed["timestamp"] = generator.integers(-(10**12), 2 * 10**12, rows)
    if encoder.elapsed is not None:
        feed["elapsed"] = holes(generator.exponential(size=rows) * 10 ** generator.uniform(-3, 6, rows))
    feed["state"] = generator.normal(size=(rows, network.state.size)).astype(np.float32)
    return feed


def whole_sequence(network: NetworkSpec, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """torch.nn.LSTM and torch's head over [keys, steps, width]: prediction, last h, last c."""
    hidden = network.layers[0].hidden
    lstm = torch.nn.LSTM(inputs.shape[2], hidden, len(network.layers), batch_first=True)
    state = {}
    for index, layer in enumerate(network.layers):
        first, second = np.split(layer.bias, 2)
        state |= {
            f"weight_ih_l{index}": layer.weight_ih,
            f"weight_hh_l{index}": layer.weight_hh,
            f"bias_ih_l{index}": first,
            f"bias_hh_l{index}": second,
        }
    lstm.load_state_dict({name: torch.from_numpy(np.array(values)) for name, values in state.items()})
    with torch.no_grad():
        out, (h, c) = lstm(torch.from_numpy(inputs.astype(np.float32)))
        logits = out @ torch.from_numpy(network.head.weight).T + torch.from_numpy(network.head.bias)
        activations = {"sigmoid": torch.sigmoid, "softmax": lambda v: torch.softmax(v, -1), "none": lambda v: v}
        return activations[network.head.activation](logits).numpy(), h.numpy(), c.numpy()


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("hidden", [1, 2, 3, 7, 16, 33, 64])
@pytest.mark.parametrize("outputs", [1, 3])
def test_steps_give_what_torch_gives_over_whole_sequences(layers: int, hidden: int, outputs: int) -> None:
    network = random_network(
        layers=layers,
        hidden=hidden,
        outputs=outputs,
        numbers=("amount", "balance", "age"),
        categories={"shop": ("a", "b"), "country": 5},
        clock=True,
        seed=layers * 100 + hidden,
    )
    feed = events(network, KEYS * STEPS)
    feed["elapsed"].reshape(KEYS, STEPS)[:, 0] = np.nan
    inputs = encode_in_float64(network.encoder, feed).reshape(KEYS, STEPS, -1)
    assert inputs.shape[2] == network.encoder.width
    expected, h, c = whole_sequence(network, inputs)

    run = session(network)
    state = np.tile(np.array(network.state.initial, np.float32), (KEYS, 1))
    for step in range(STEPS):
        now = {name: np.ascontiguousarray(values.reshape(KEYS, STEPS, *values.shape[1:])[:, step])
               for name, values in feed.items() if name != "state"}  # fmt: skip
        state, score, prediction = run.run(OUTPUTS, {**now, "state": state})
        np.testing.assert_allclose(prediction, expected[:, step], atol=1e-5, rtol=0)
        probability = expected[:, step, 0]
        np.testing.assert_allclose(score, probability if outputs == 1 else 1 - probability, atol=1e-5, rtol=0)
    for part in network.state.parts:
        torch_part = {"h": h, "c": c}[part.name[0]][int(part.name[1:])]
        ours = state[:, part.offset : part.offset + math.prod(part.shape)]
        np.testing.assert_allclose(ours, torch_part, atol=2e-5, rtol=1e-5)


def test_head_without_activation_and_weights_from_a_state_dict() -> None:
    torch.manual_seed(3)
    module = torch.nn.Module()
    module.rnn = torch.nn.LSTM(4, 5, 2, batch_first=True, dropout=0.5)
    layers = lstm_layers({name: value.numpy() for name, value in module.state_dict().items()}, "rnn.")
    head = DenseHead(np.ones((2, 5), np.float32), np.zeros(2, np.float32), "none")
    network = NetworkSpec(FeatureEncoder(tuple(Number(name) for name in "abcd")), layers, head)
    feed = events(network, KEYS, missing=0)
    with torch.no_grad():
        sequence, _ = module.rnn.eval()(torch.from_numpy(feed["x"])[:, None])
    feed["state"][:] = 0
    _, score, prediction = session(network).run(OUTPUTS, feed)
    np.testing.assert_allclose(prediction, np.repeat(sequence[:, -1].numpy().sum(-1, keepdims=True), 2, 1), atol=1e-5)
    np.testing.assert_array_equal(score, prediction[:, 0])


def test_a_state_dict_without_biases() -> None:
    lstm = torch.nn.LSTM(2, 3, bias=False)
    (layer,) = lstm_layers({name: value.numpy() for name, value in lstm.state_dict().items()})
    assert layer.bias.shape == (24,)
    assert not layer.bias.any()


@pytest.mark.parametrize(
    ("rnn", "read"),
    [
        (torch.nn.LSTM(2, 3, bidirectional=True), lstm_layers),
        (torch.nn.GRU(2, 3, bidirectional=True), gru_layers),
    ],
    ids=["lstm", "gru"],
)
def test_bidirectional_layers_are_refused_by_name(rnn: torch.nn.Module, read: Any) -> None:
    arrays = {name: value.numpy() for name, value in rnn.state_dict().items()}
    with pytest.raises(ValueError, match="weight_ih_l0_reverse: bidirectional"):
        read(arrays)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("width", [1, 3, 16, 33])
@pytest.mark.parametrize("kind", ["gru", "gru-no-bias", "projected", "projected-no-bias"])
def test_other_layers_from_a_state_dict(kind: str, width: int) -> None:
    torch.manual_seed(width)
    options = {"batch_first": True, "bias": "no-bias" not in kind}
    gru = kind.startswith("gru")
    rnn = torch.nn.GRU(4, width, 2, **options) if gru else torch.nn.LSTM(4, width + 1, 2, proj_size=width, **options)
    read = gru_layers if gru else lstm_layers
    layers = read({name: value.numpy() for name, value in rnn.state_dict().items()})
    head = DenseHead(np.ones((1, width), np.float32), np.zeros(1, np.float32), "none")
    network = NetworkSpec(FeatureEncoder(tuple(Number(name) for name in "abcd")), layers, head)
    run, state = session(network), np.zeros((KEYS, network.state.size), np.float32)
    x = np.random.default_rng(0).normal(size=(KEYS, STEPS, 4)).astype(np.float32)
    with torch.no_grad():
        expected = rnn(torch.from_numpy(x))[0].sum(-1).numpy()
    for step in range(STEPS):
        state, score, _ = run.run(OUTPUTS, {"x": np.ascontiguousarray(x[:, step]), "state": state})
        np.testing.assert_allclose(score, expected[:, step], atol=2e-6 * width + 1e-6)


def test_a_state_dict_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no LSTM under 'body\.'"):
        lstm_layers({"weight_ih_l0": np.zeros((4, 1))}, "body.")
    with pytest.raises(ValueError, match="no GRU under ''"):
        gru_layers({})


@pytest.mark.parametrize("hidden", [1, 2, 3, 5, 8, 16, 31, 32, 33, 64])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("width", [0, 1, 3, 16, 19])
def test_a_rows_bits_do_not_depend_on_the_batch(hidden: int, layers: int, width: int) -> None:
    network = random_network(
        layers=layers,
        hidden=hidden,
        outputs=1 if width % 2 else 4,
        numbers=[f"n{index}" for index in range(width)],
        categories={"shop": ("a", "b", "c")},
        clock="hour" if layers == 1 else True,  # two sines or four
    )
    rows = 300
    feed = events(network, rows, seed=hidden)
    run = session(network)

    def outputs(start: int, stop: int) -> list[np.ndarray]:
        return run.run(OUTPUTS, {name: np.ascontiguousarray(values[start:stop]) for name, values in feed.items()})

    alone = [np.concatenate(parts) for parts in zip(*(outputs(row, row + 1) for row in range(rows)), strict=True)]
    for size in (3, 7, 64, 300):
        for start in {0, 1, 2, 5, 13, 100, rows - size}:
            if start + size > rows:
                continue
            together = outputs(start, start + size)
            for name, one, many in zip(OUTPUTS, alone, together, strict=True):
                expected = one[start : start + size].view(np.int32)
                assert np.array_equal(expected, many.view(np.int32)), f"{name}, batch of {size} at {start}"


def test_extremes_stay_finite() -> None:
    network = random_network(numbers="ab", clock=True)
    numbers = tuple(Number(name, centre=1e29, scale=1e-29, flag_missing=name == "a") for name in "ab")
    network = replace(network, encoder=replace(network.encoder, numbers=numbers))
    most = float(np.finfo(np.float32).max)
    rows = [(most, -most), (most, most), (np.nan, np.nan), (0.0, -0.0), (1e-45, -1e-45)]
    feed = events(network, len(rows))
    feed["x"] = np.array(rows, np.float32)
    feed["elapsed"][:] = [0, most, 1e-45, np.nan, 1]
    feed["timestamp"][:] = [0, -(2**63), 2**63 - 1, 1, -1]
    for values in session(network).run(OUTPUTS, feed):
        assert np.isfinite(values).all()
    # onnxruntime's LSTM on the CPU swallows infinities; other forms of it need not.
    content, _ = with_all_outputs(build(network).SerializeToString())
    (encoded,) = ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(["encoded"], feed)
    assert np.abs(encoded).max() == network.encoder.limit
    del feed["timestamp"]  # beyond what datetime can hold
    without_clock = replace(network.encoder, hour_of_day=False, day_of_week=False)
    columns = [0, 1, 2, 3, 4]
    np.testing.assert_allclose(encoded[:, columns], encode_in_float64(without_clock, feed)[:, columns], rtol=1e-6)


def test_an_initial_state_that_is_not_zero() -> None:
    network = random_network(hidden=2)
    first = replace(network.layers[0], initial_h=np.array([0.1, 0.2]), initial_c=np.array([1e-8, -3]))
    assert replace(network, layers=(first,)).state.initial == (0.1, 0.2, 1e-8, -3.0)


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    def file(name: str, seed: int = 1) -> bytes:
        network = random_network(layers=2, categories={"shop": ("a",)}, clock=True, seed=seed)
        export(tmp_path / name, network, name="m", version="1", training={"seed": 1})
        return (tmp_path / name).read_bytes()

    assert file("a.onnx") == file("b.onnx")
    assert file("c.onnx", seed=2) != file("a.onnx")
    assert str(tmp_path).encode() not in file("a.onnx")


def test_the_onnx_checker_accepts_the_model(tmp_path: Path) -> None:
    for network in (random_network(), random_network(layers=2, outputs=3, clock=True, categories={"shop": 4})):
        path = write(tmp_path / "m.onnx", build(network), card_of(network))
        onnx.checker.check_model(onnx.load(path), full_check=True)


@pytest.mark.parametrize("kind", ["numbers", "categories", "elapsed", "clock"])
def test_each_kind_of_input_alone(tmp_path: Path, kind: str) -> None:
    table = np.ones((3, 2), np.float32)
    encoder, inputs = {
        "numbers": (FeatureEncoder((Number("amount"),)), {"x"}),
        "categories": (FeatureEncoder(categories=(Category("shop", table, buckets=2),)), {"categories"}),
        "elapsed": (FeatureEncoder(elapsed=Elapsed()), {"elapsed"}),
        "clock": (FeatureEncoder(day_of_week=True), {"timestamp"}),
    }[kind]
    layer = Lstm(np.ones((4, encoder.width), np.float32), np.ones((4, 1), np.float32), np.zeros(8, np.float32))
    network = NetworkSpec(encoder, (layer,), DenseHead(np.ones((1, 1), np.float32), np.zeros(1, np.float32)))
    export(tmp_path / "m.onnx", network, name="m", version="1")
    model = load_model(tmp_path / "m.onnx")
    assert model.graph_inputs == inputs | {"state"}
    feed = events(network, 5)
    assert set(feed) == model.graph_inputs
    run = ort.InferenceSession(model.content, providers=["CPUExecutionProvider"])
    state, _, _ = run.run(OUTPUTS, feed)
    encoded = encode_in_float64(encoder, feed)[:, None].astype(np.float32)
    weights = {"w": torch.nn.LSTM(encoder.width, 1, batch_first=True)}
    weights["w"].load_state_dict(
        {"weight_ih_l0": torch.ones(4, encoder.width), "weight_hh_l0": torch.ones(4, 1),
         "bias_ih_l0": torch.zeros(4), "bias_hh_l0": torch.zeros(4)}
    )  # fmt: skip
    before = torch.from_numpy(feed["state"])
    with torch.no_grad():
        _, (h, c) = weights["w"](torch.from_numpy(encoded), (before[None, :, :1], before[None, :, 1:].contiguous()))
    np.testing.assert_allclose(state, torch.cat([h[0], c[0]], 1).numpy(), atol=1e-5)


def changed(**values: Any) -> NetworkSpec:
    network = random_network(categories={"shop": ("a",)})
    parts = {name: replace(getattr(network, name), **change) for name, change in values.items() if name != "layer"}
    if "layer" in values:
        parts["layers"] = (replace(network.layers[0], **values["layer"]),)
    return replace(network, **parts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": {"numbers": (Number("amount", scale=0),)}}, "number amount: .*scale 0"),
        ({"encoder": {"numbers": (Number("amount", centre=math.nan),)}}, "number amount: centre nan"),
        ({"encoder": {"elapsed": Elapsed(scale=math.inf)}}, "elapsed: .*scale inf"),
        ({"encoder": {"limit": math.inf}}, "encoder limit"),
        ({"encoder": {"categories": (Category("shop", np.ones((3, 2)), ("a",)),)}}, "shop: 1 codes .* 2 rows"),
        ({"encoder": {"elapsed": None}}, "layer 0 weight_ih: shape"),
        ({"layer": {"bias": np.ones(4)}}, r"layer 0 bias: shape \(4,\)"),
        ({"layer": {"initial_h": np.ones(3)}}, "layer 0 initial_h"),
        ({"head": {"weight": np.ones((1, 3))}}, "head: weight"),
        ({"head": {"activation": "softmax"}}, "head: 1 outputs with activation 'softmax'"),
        ({"head": {"activation": "tanh"}}, "head: .*'tanh'"),
        ({"layer": {"projection": np.ones((3, 5))}}, r"layer 0 projection: shape \(3, 5\), should be \(3, 8\)"),
        ({"layer": {"projection": np.ones((3, 8))}}, r"layer 0 weight_hh: shape \(32, 8\), should be \(32, 3\)"),
        ({"layer": {"activation": "gelu"}}, "layer 0 activation: 'gelu'"),
    ],
)
def test_arrays_that_do_not_fit_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(changed(**change))


def forecast(**values: Any) -> NetworkSpec:
    return replace(changed(), head=replace(ForecastHead(np.ones((1, 8)), np.ones(1), (0,)), **values))


def anomaly(**calibration: float) -> NetworkSpec:
    values = Calibration(**{"initial_level": 1.0, "half_point": 1.0, "alpha": 0.1} | calibration)
    return replace(changed(), head=AnomalyHead(np.ones((2, 8)), np.ones(2), (0,), values))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (replace(changed(), window=0), "window: 0 should be from 1 to 500"),
        (replace(changed(), window=501), "window: 501"),
        (replace(changed(), layers=(Gru(np.ones((6, 8)), np.ones((6, 2)), np.ones(12)),)), "layer 0 weight_ih: shape"),
        (forecast(columns=()), r"head: columns \(\)"),
        (forecast(columns=(1,)), r"head: columns \(1,\) should be distinct indices of the 1 numbers"),
        (forecast(columns=(0, 0)), r"head: columns \(0, 0\)"),
        (forecast(horizon=2), "head: 1 outputs, should be 2 for each of 1 columns"),
        (forecast(horizon=0), "head: 1 outputs, should be 0 for each"),
        (forecast(weight=np.ones((1, 7))), "do not fit 8 inputs"),
        (anomaly(initial_level=0), "calibration: initial_level 0 .*"),
        (anomaly(half_point=math.nan), "half_point nan"),
        (anomaly(alpha=1.5), "alpha 1.5"),
        (anomaly(alpha=0), "alpha 0"),
    ],
)
def test_layers_heads_and_windows_that_do_not_fit_are_named(network: NetworkSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(network)


def test_the_task_is_that_of_the_head(tmp_path: Path) -> None:
    for network, task in ((changed(), "classify"), (forecast(), "forecast"), (anomaly(), "anomaly")):
        assert export(tmp_path / "m.onnx", network, name="m", version="1").task == task
        onnx.checker.check_model(onnx.load(tmp_path / "m.onnx"), full_check=True)
    assert export(tmp_path / "m.onnx", changed(), name="m", version="1", task="anomaly").task == "anomaly"


def test_an_empty_network_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one input"):
        build(NetworkSpec(FeatureEncoder(), (), DenseHead(np.ones((1, 1)), np.ones(1))))


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    network = changed(head={"bias": np.array([np.nan], np.float32)})
    with pytest.raises(CannotServe, match="initializer 'head_bias': the weights are not finite"):
        export(tmp_path / "m.onnx", network, name="m", version="1")
    assert not list(tmp_path.iterdir())
