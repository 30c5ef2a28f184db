"""What the network predicts over whole sequences, against formulas written by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from lstmstream.train import predict
from lstmstream.train.export import Calibration
from lstmstream.train.network import Anomaly, Architecture, Classes, Forecast, TaskHead, TorchNetwork
from lstmstream.train.predict import (
    anomaly_scores,
    forward_sequences,
    normalized_error,
    predict_sequences,
    to_raw_units,
)
from tests.train.sequences import (
    LSTM_AND_GRU,
    RELU,
    encode_random,
    encoder_of_everything,
    encoder_of_numbers,
    random_torch_network,
)

pytestmark = pytest.mark.torch
torch.set_num_threads(1)


@pytest.mark.parametrize("rows", [1, 40, 1 << 16])
@pytest.mark.parametrize("window", [1, 4, 29, 30, 100])
@pytest.mark.parametrize("task_head", [Classes(1), Forecast((1,)), Anomaly((0, 1))], ids=lambda one: type(one).__name__)
def test_a_window_is_the_network_over_the_last_events(
    task_head: TaskHead, window: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "_WINDOW_ROWS", rows)
    encoder = encoder_of_everything()
    dense, codes, *_ = (part[:, :30] for part in encode_random(encoder)[:2])
    network = random_torch_network(encoder, Architecture("gru", 1, 4, window=window), task_head)
    got = forward_sequences(network, dense, codes)
    for now in range(dense.shape[1]):
        seen = slice(max(0, now + 1 - window), now + 1)
        expected, _ = network(dense[:, seen], codes[:, seen], network.initial_state(9))
        torch.testing.assert_close(got[:, now], expected[:, -1], atol=1e-6, rtol=1e-6)


def test_forecasts_in_raw_units_by_hand() -> None:
    encoder = encoder_of_everything()
    dense, codes, missing, lengths = encode_random(encoder)
    network = random_torch_network(encoder, Architecture("gru", 1, 5), Forecast((3, 1), 2, residual=True))
    score, prediction = predict_sequences(network, dense, codes, missing, lengths)
    with torch.no_grad():
        embedded = [table(codes[..., index]) for index, table in enumerate(network.embeddings)]
        hidden, _ = network.layers[0](torch.cat([dense, *embedded], -1), network.initial_state(9))
    weight, bias = network.head.weight.detach().numpy(), network.head.bias.detach().numpy()
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
    big = to_raw_units(torch.tensor([[1e6, 1e6], [-1e6, 0.0]]), encoder, (3, 1))
    assert big[0].tolist() == pytest.approx([math.exp(80), 5e6 - 2], rel=1e-4)
    assert big[1].tolist() == pytest.approx([-math.exp(80), -2], rel=1e-4)


def test_the_anomaly_score_by_hand() -> None:
    encoder = encoder_of_everything()
    dense, codes, missing, lengths = encode_random(encoder, keys=30)
    task_head, calibration = Anomaly((1, 0), residual=True), Calibration(0.3, 2.5, 0.2)
    network = random_torch_network(encoder, Architecture("lstm", 1, 5), task_head)
    score, prediction = predict_sequences(network, dense, codes, missing, lengths, calibration)
    with torch.no_grad():
        output = forward_sequences(network, dense, codes).numpy().astype(float)
    cut, none = 0, 0
    for key in range(30):
        moment = 0.3**4
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
            e, level = math.sqrt(sum(squares) / len(squares)), moment**0.25
            assert score[key, now] == pytest.approx(e / (e + 2.5 * level), abs=1e-5)
            cut += e > 3 * level
            moment += 0.2 * (min(e, 3 * level) ** 4 - moment)
    assert cut > 5
    assert none > 5
    assert prediction[0, 0, 0] == pytest.approx(output[0, 0, 0] * 5 - 2, rel=1e-5)


def test_the_logs_of_scales_are_cut() -> None:
    network = random_torch_network(encoder_of_numbers(), Architecture("gru", 1, 3), Anomaly((0, 1)))
    with torch.no_grad():
        network.head.bias[2:] = torch.tensor([100.0, -100.0])
    dense, codes, *_ = encode_random(encoder_of_numbers())
    scales = forward_sequences(network, dense, codes)[..., 2:]
    assert scales[..., 0].unique().tolist() == [7]
    assert scales[..., 1].unique().tolist() == [-7]


def test_a_normalized_error_needs_a_forecast_and_a_value() -> None:
    output, dense = torch.zeros(1, 4, 4), torch.tensor([[[1.0, 2, 9], [3, 4, 9], [300, 0, 9], [5, 6, 9]]])
    missing = torch.tensor([[[False] * 3, [False, False, True], [False, True, False], [True, True, False]]])
    e = normalized_error(output, dense, missing, Anomaly((0, 1)))[0].tolist()
    assert e[1:3] == pytest.approx([math.sqrt((9 + 16) / 2), 100])
    assert math.isnan(e[0])
    assert math.isnan(e[3])
    assert torch.isnan(normalized_error(output[:, :1], dense[:, :1], missing[:, :1], Anomaly((0, 1)))).all()


def test_the_fourth_moment_changes_only_with_known_errors() -> None:
    calibration = Calibration(1.0, 1.0, 0.5)
    error = torch.tensor([[torch.nan, 1.0, torch.nan, 100.0, 1.0]])
    score, moment = anomaly_scores(error, calibration)
    assert moment[0].tolist() == [1, 1, 1, 41, 21]  # 41 = 1 + (3^4 - 1) / 2
    expected = [0, 1 / 2, 0, 100 / 101, 1 / (1 + 41**0.25)]
    assert score[0].tolist() == pytest.approx(expected)


def test_dropout_is_after_every_layer_and_never_in_predictions() -> None:
    encoder = encoder_of_everything()
    dense, codes, missing, lengths = encode_random(encoder)
    network = random_torch_network(encoder, Architecture("lstm", 1, 6, dropout=0.5), Classes(1)).train()
    torch.manual_seed(0)
    noisy = [forward_sequences(network, dense, codes) for _ in range(2)]
    assert not torch.equal(*noisy)
    first, second = (predict_sequences(network, dense, codes, missing, lengths)[1] for _ in range(2))
    assert torch.equal(first.nan_to_num(), second.nan_to_num())
    assert network.training
    assert not predict_sequences(network.eval(), dense, codes, missing, lengths)[0].requires_grad
    assert not network.training


@pytest.mark.parametrize("architecture", [*LSTM_AND_GRU, *RELU, replace(LSTM_AND_GRU[0], window=4)], ids=str)
@pytest.mark.parametrize("task_head", [Classes(1), Classes(3), Forecast((0, 3), 2), Anomaly((0, 2))], ids=str)
def test_nothing_is_left_on_the_cpu(architecture: Architecture, task_head: TaskHead) -> None:
    encoder = encoder_of_everything()
    network = random_torch_network(encoder, architecture, task_head).to(
        "meta"
    )  # a device that refuses to mix with others
    parts = [part.to("meta") for part in encode_random(encoder)]
    score, prediction = predict_sequences(network, *parts, Calibration(1, 1, 0.1))
    assert {score.device.type, prediction.device.type} == {"meta"}
    assert {part.device.type for part in network.initial_state(2)} == {"meta"}


def test_an_anomaly_needs_a_calibration() -> None:
    network = TorchNetwork(encoder_of_numbers(), Architecture(), Anomaly((0,)))
    with pytest.raises(ValueError, match="needs a calibration"):
        network.to_spec()
    with pytest.raises(ValueError, match="needs a calibration"):
        predict_sequences(network, *encode_random(encoder_of_numbers()))
