"""The net in torch against formulas written anew, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sequences import encoder_of_everything, encoder_of_numbers, random_net, world

from lstmstream.train import network as module
from lstmstream.train.export import Calibration, Category, Encoder
from lstmstream.train.network import (
    Anomaly,
    Classes,
    Design,
    Forecast,
    Net,
    Target,
    answers,
    levels,
    load,
    outputs,
    powers,
    raw_units,
    surprise,
)

pytestmark = pytest.mark.torch
torch.set_num_threads(1)
CELLS = [Design("lstm", 2, 6), Design("gru", 2, 6), Design("lstm", 2, 6, projection=4)]
RELU = [replace(design, activation="relu") for design in CELLS]


def inputs(encoder: Encoder, keys: int = 9, seed: int = 0) -> tuple[torch.Tensor, ...]:
    return world(encoder, keys, seed).tensors(encoder)


@pytest.mark.parametrize("design", RELU, ids=str)
def test_the_loop_is_torchs_own_layer_but_for_the_activation(design: Design, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_of_everything()
    dense, codes, *_ = inputs(encoder)
    net = random_net(encoder, design, Classes(2))
    theirs = Net(encoder, replace(design, activation="tanh"), Classes(2)).eval()
    theirs.load_state_dict(net.state_dict())
    monkeypatch.setattr(torch, "relu", torch.tanh)
    for ours, expected in zip(
        flat(net(dense, codes, net.initial(9))), flat(theirs(dense, codes, theirs.initial(9))), strict=True
    ):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def flat(result: tuple[torch.Tensor, tuple[torch.Tensor, ...]]) -> list[torch.Tensor]:
    return [result[0], *result[1]]


def test_a_relu_lstm_as_keras_has_it() -> None:
    net = random_net(encoder_of_numbers(), Design("lstm", 1, 2, activation="relu"), Classes(1))
    dense, codes, *_ = inputs(encoder_of_numbers(), keys=1)
    (layer,) = net.to_network().layers
    w, r, b = (values.astype(np.float64) for values in (layer.weight_ih, layer.weight_hh, layer.bias))
    h, c = np.zeros(2), np.zeros(2)

    def sigmoid(value: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-value))

    for x in dense[0].numpy().astype(np.float64):
        z = w @ x + r @ h + b[:8] + b[8:]
        c = sigmoid(z[2:4]) * c + sigmoid(z[0:2]) * np.maximum(z[4:6], 0)
        h = sigmoid(z[6:8]) * np.maximum(c, 0)
    _, state = net(dense, codes, net.initial(1))
    np.testing.assert_allclose([part[0].detach().numpy() for part in state], [h, c], rtol=1e-5, atol=1e-6)
    assert h.any()


@pytest.mark.parametrize("design", CELLS + RELU, ids=str)
def test_pieces_with_the_state_carried_over_are_the_whole(design: Design) -> None:
    encoder = encoder_of_everything()
    dense, codes, *_ = inputs(encoder)
    net = random_net(encoder, design, Forecast((0,), 2))
    whole, after = net(dense, codes, net.initial(9))
    kept = tuple(torch.zeros_like(part) for part in net.initial(12))
    rows = torch.tensor([11, 3, 4, 0, 1, 9, 8, 7, 2])  # where each key's state lies
    made = []
    for start in (0, 10, 17):
        stop = {0: 10, 10: 17, 17: dense.shape[1]}[start]
        piece, state = net(dense[:, start:stop], codes[:, start:stop], tuple(part[rows] for part in kept))
        for part, values in zip(kept, state, strict=True):
            part[rows] = values.detach()
        made.append(piece)
    torch.testing.assert_close(torch.cat(made, 1), whole, atol=1e-6, rtol=1e-6)
    for part, values in zip(kept, after, strict=True):
        torch.testing.assert_close(part[rows], values, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 40, 1 << 16])
@pytest.mark.parametrize("window", [1, 4, 29, 30, 100])
@pytest.mark.parametrize("target", [Classes(1), Forecast((1,)), Anomaly((0, 1))], ids=lambda one: type(one).__name__)
def test_a_window_is_the_net_over_the_last_events(
    target: Target, window: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WINDOW_ROWS", rows)
    encoder = encoder_of_everything()
    dense, codes, *_ = (part[:, :30] for part in inputs(encoder)[:2])
    net = random_net(encoder, Design("gru", 1, 4, window=window), target)
    got = outputs(net, dense, codes)
    for now in range(dense.shape[1]):
        seen = slice(max(0, now + 1 - window), now + 1)
        expected, _ = net(dense[:, seen], codes[:, seen], net.initial(9))
        torch.testing.assert_close(got[:, now], expected[:, -1], atol=1e-6, rtol=1e-6)


def test_forecasts_in_raw_units_by_hand() -> None:
    encoder = encoder_of_everything()
    dense, codes, missing, lengths = inputs(encoder)
    net = random_net(encoder, Design("gru", 1, 5), Forecast((3, 1), 2, residual=True))
    score, prediction = answers(net, dense, codes, missing, lengths)
    with torch.no_grad():
        hidden, _ = net.body[0](torch.cat([dense, *(t(codes[..., i]) for i, t in enumerate(net.tables))], -1),
                                net.initial(9))  # fmt: skip
    weight, bias = net.head.weight.detach().numpy(), net.head.bias.detach().numpy()
    for key, now in ((0, 0), (3, 2), (8, int(lengths[8]) - 1)):
        linear = weight.astype(float) @ hidden[key, now].numpy() + bias
        for place, column in enumerate((3, 1, 3, 1)):
            number = encoder.numbers[column]
            scaled = linear[place] + (0 if missing[key, now, column] else float(dense[key, now, column]))
            value = scaled * number.scale + number.centre
            if number.log:
                value = math.copysign(math.exp(abs(value)) - 1, value)
            assert prediction[key, now, place] == pytest.approx(value, rel=1e-5, abs=1e-5)
        assert score[key, now] == prediction[key, now, 0]
    assert torch.isnan(score[0, int(lengths[0]) :]).all()


def test_raw_units_at_the_edge() -> None:
    encoder = encoder_of_everything()
    big = raw_units(torch.tensor([[1e6, 1e6], [-1e6, 0.0]]), encoder, (3, 1))
    assert big[0].tolist() == pytest.approx([math.exp(80), 5e6 - 2], rel=1e-4)
    assert big[1].tolist() == pytest.approx([-math.exp(80), -2], rel=1e-4)


def test_the_anomaly_score_by_hand() -> None:
    encoder = encoder_of_everything()
    dense, codes, missing, lengths = inputs(encoder, keys=30)
    target, calibration = Anomaly((1, 0), residual=True), Calibration(0.3, 2.5, 0.2)
    net = random_net(encoder, Design("lstm", 1, 5), target)
    score, prediction = answers(net, dense, codes, missing, lengths, calibration)
    with torch.no_grad():
        output = outputs(net, dense, codes).numpy().astype(float)
    cut, none = 0, 0
    for key in range(30):
        power = 0.3**4
        assert score[key, 0] == 0
        for now in range(1, int(lengths[key])):
            squares = []
            for place, column in enumerate((1, 0)):
                if not missing[key, now, column]:
                    away = float(dense[key, now, column]) - output[key, now - 1, place]
                    squares.append(max(-100, min(100, away / math.exp(output[key, now - 1, 2 + place]))) ** 2)
            if not squares:
                none += 1
                assert score[key, now] == 0
                continue
            e, level = math.sqrt(sum(squares) / len(squares)), power**0.25
            assert score[key, now] == pytest.approx(e / (e + 2.5 * level), abs=1e-5)
            cut += e > 3 * level
            power += 0.2 * (min(e, 3 * level) ** 4 - power)
    assert cut > 5
    assert none > 5
    assert prediction[0, 0, 0] == pytest.approx(output[0, 0, 0] * 5 - 2, rel=1e-5)


def test_the_logs_of_scales_are_cut() -> None:
    net = random_net(encoder_of_numbers(), Design("gru", 1, 3), Anomaly((0, 1)))
    with torch.no_grad():
        net.head.bias[2:] = torch.tensor([100.0, -100.0])
    dense, codes, *_ = inputs(encoder_of_numbers())
    scales = outputs(net, dense, codes)[..., 2:]
    assert scales[..., 0].unique().tolist() == [7]
    assert scales[..., 1].unique().tolist() == [-7]


def test_a_surprise_needs_a_forecast_and_a_value() -> None:
    output, dense = torch.zeros(1, 4, 4), torch.tensor([[[1.0, 2, 9], [3, 4, 9], [300, 0, 9], [5, 6, 9]]])
    missing = torch.tensor([[[False] * 3, [False, False, True], [False, True, False], [True, True, False]]])
    e = surprise(output, dense, missing, Anomaly((0, 1)))[0].tolist()
    assert e[1:3] == pytest.approx([math.sqrt((9 + 16) / 2), 100])
    assert math.isnan(e[0])
    assert math.isnan(e[3])
    assert torch.isnan(surprise(output[:, :1], dense[:, :1], missing[:, :1], Anomaly((0, 1)))).all()


def test_levels_move_only_with_surprises() -> None:
    calibration = Calibration(1.0, 1.0, 0.5)
    e = torch.tensor([[torch.nan, 1.0, torch.nan, 100.0, 1.0]])
    score, power = powers(e, calibration)
    assert power[0].tolist() == [1, 1, 1, 41, 21]  # 41 = 1 + (3^4 - 1) / 2
    expected = [0, 1 / 2, 0, 100 / 101, 1 / (1 + 41**0.25)]
    assert score[0].tolist() == pytest.approx(expected)
    assert torch.equal(levels(e, calibration), score)


def test_how_a_net_begins() -> None:
    net = Net(encoder_of_everything(), Design("lstm", 2, 5), Classes(1))
    for layer in net.body:
        assert (layer.rnn.bias_ih_l0 + layer.rnn.bias_hh_l0)[5:10].tolist() == [1] * 5
    for table in net.tables:
        assert not table.weight[0].any()
        assert table.weight[1:].any()
    net.set_prior(-3.5)
    assert net.head.bias.tolist() == [-3.5]
    classes = Net(encoder_of_everything(), Design("gru"), Classes(3))
    classes.set_prior([0, -1, -2])
    assert classes.head.bias.tolist() == [0, -1, -2]
    residual = Net(encoder_of_numbers(), Design("gru"), Forecast((0,)))
    assert residual.head.weight.abs().max() < 0.1 / math.sqrt(64) + 1e-6
    assert [part.shape for part in net.initial(3)] == [(3, 5)] * 4


def test_dropout_falls_after_every_layer_and_never_in_answers() -> None:
    encoder = encoder_of_everything()
    dense, codes, missing, lengths = inputs(encoder)
    net = random_net(encoder, Design("lstm", 1, 6, dropout=0.5), Classes(1)).train()
    torch.manual_seed(0)
    noisy = [outputs(net, dense, codes) for _ in range(2)]
    assert not torch.equal(*noisy)
    first, second = (answers(net, dense, codes, missing, lengths)[1] for _ in range(2))
    assert torch.equal(first.nan_to_num(), second.nan_to_num())
    assert net.training
    assert not answers(net.eval(), dense, codes, missing, lengths)[0].requires_grad
    assert not net.training


@pytest.mark.parametrize("design", [*CELLS, *RELU, replace(CELLS[0], window=4)], ids=str)
@pytest.mark.parametrize("target", [Classes(3), Forecast((0, 1), 2), Anomaly((2,))], ids=lambda one: type(one).__name__)
def test_every_weight_learns(design: Design, target: Target) -> None:
    encoder = encoder_of_everything()
    dense, codes, *_ = inputs(encoder, keys=60)
    net = random_net(encoder, design, target)
    outputs(net, dense, codes).square().mean().backward()
    for name, weights in net.named_parameters():
        assert weights.grad is not None, name
        assert weights.grad.abs().max() > 0, name


@pytest.mark.parametrize("design", [*CELLS, *RELU, replace(CELLS[0], window=4)], ids=str)
@pytest.mark.parametrize("target", [Classes(1), Classes(3), Forecast((0, 3), 2), Anomaly((0, 2))], ids=str)
def test_nothing_is_left_on_the_cpu(design: Design, target: Target) -> None:
    encoder = encoder_of_everything()
    net = random_net(encoder, design, target).to("meta")  # a device that refuses to mix with others
    parts = [part.to("meta") for part in inputs(encoder)]
    score, prediction = answers(net, *parts, Calibration(1, 1, 0.1))
    assert {score.device.type, prediction.device.type} == {"meta"}
    assert {part.device.type for part in net.initial(2)} == {"meta"}


def changed(**design: Any) -> Callable[[], Net]:
    return lambda: Net(encoder_of_everything(), replace(Design("lstm", 2, 6), **design), Forecast((0,), 2))


def with_target(target: Target) -> Callable[[], Net]:
    return lambda: Net(encoder_of_everything(), Design("lstm", 2, 6), target)


def with_shops(count: int) -> Net:
    encoder = encoder_of_everything()
    shop = Category("shop", np.zeros((count, 3), np.float32), vocabulary=tuple("abcdefg"[: count - 1]))
    return Net(replace(encoder, categories=(shop, *encoder.categories[1:])), Design("lstm", 2, 6), Forecast((0,), 2))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (changed(hidden=7), r"body\.0\.first_c: shape \(6,\), this net has \(7,\)"),
        (changed(layers=3), r"body\.2\.first_c: shape None, this net has"),
        (changed(layers=1), r"body\.1\.first_c: shape \(6,\), this net has None"),
        (changed(cell="gru"), r"layer 0: another cell or activation \(Lstm, tanh\)"),
        (changed(activation="relu"), "layer 0: another cell or activation"),
        (changed(projection=3), r"body\.0\.first_h: shape \(6,\), this net has \(3,\)"),
        (changed(window=3), "window None; this net has .* 3"),
        (with_target(Forecast((1,), 2)), "head or window"),
        (with_target(Forecast((0,), 2, residual=False)), "head or window"),
        (with_target(Classes(2)), "head or window"),
        (lambda: with_shops(6), r"tables\.0\.weight: shape \(4, 3\), this net has \(6, 3\)"),
    ],
)
def test_weights_of_another_shape_are_refused_by_name(make: Callable[[], Net], said: str) -> None:
    theirs = changed()().to_network()
    net = make()
    before = {name: values.clone() for name, values in net.state_dict().items()}
    with pytest.raises(ValueError, match=said):
        load(net, theirs)
    assert all(torch.equal(values, before[name]) for name, values in net.state_dict().items())


@pytest.mark.parametrize(
    ("design", "target", "said"),
    [
        (Design("gru", 1, 8, projection=2), Classes(), "projection 2: only for lstm"),
        (Design("lstm", 1, 8, projection=8), Classes(), "projection 8: .* below hidden"),
        (Design(), Classes(0), "classes: 0"),
        (Design(), Forecast(()), r"columns \(\)"),
        (Design(), Anomaly((4,)), r"columns \(4,\): should be indices of the encoder's 4 numbers"),
    ],
)
def test_what_cannot_be_built_is_refused(design: Design, target: Target, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Net(encoder_of_everything(), design, target)


def test_an_anomaly_needs_a_calibration() -> None:
    net = Net(encoder_of_numbers(), Design(), Anomaly((0,)))
    with pytest.raises(ValueError, match="needs a calibration"):
        net.to_network()
    with pytest.raises(ValueError, match="needs a calibration"):
        answers(net, *inputs(encoder_of_numbers()))
