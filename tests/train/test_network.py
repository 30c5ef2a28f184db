"""The network in torch against formulas written by hand, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lstmstream.train.export import Category
from lstmstream.train.network import (
    Anomaly,
    Architecture,
    Classes,
    Forecast,
    TaskHead,
    TorchNetwork,
    load_weights,
)
from lstmstream.train.predict import forward_sequences
from tests.train.sequences import (
    LSTM_AND_GRU,
    NAMED,
    RELU,
    encode_random,
    encoder_of_everything,
    encoder_of_numbers,
    random_torch_network,
)

pytestmark = pytest.mark.torch
torch.set_num_threads(1)


@pytest.mark.parametrize("architecture", RELU, ids=str)
def test_the_loop_is_torchs_own_layer_but_for_the_activation(
    architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = encoder_of_everything()
    dense, codes, *_ = encode_random(encoder)
    network = random_torch_network(encoder, architecture, Classes(2))
    theirs = TorchNetwork(encoder, replace(architecture, activation="tanh"), Classes(2)).eval()
    theirs.load_state_dict(network.state_dict())
    monkeypatch.setattr(torch, "relu", torch.tanh)
    for ours, expected in zip(
        flat(network(dense, codes, network.initial_state(9))),
        flat(theirs(dense, codes, theirs.initial_state(9))),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def flat(result: tuple[torch.Tensor, tuple[torch.Tensor, ...]]) -> list[torch.Tensor]:
    return [result[0], *result[1]]


def test_a_relu_lstm_as_keras_has_it() -> None:
    network = random_torch_network(encoder_of_numbers(), Architecture("lstm", 1, 2, activation="relu"), Classes(1))
    dense, codes, *_ = encode_random(encoder_of_numbers(), keys=1)
    (layer,) = network.to_spec().layers
    w, r, b = (values.astype(np.float64) for values in (layer.weight_ih, layer.weight_hh, layer.bias))
    h, c = np.zeros(2), np.zeros(2)

    def sigmoid(value: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-value))

    for x in dense[0].numpy().astype(np.float64):
        z = w @ x + r @ h + b[:8] + b[8:]
        c = sigmoid(z[2:4]) * c + sigmoid(z[0:2]) * np.maximum(z[4:6], 0)
        h = sigmoid(z[6:8]) * np.maximum(c, 0)
    _, state = network(dense, codes, network.initial_state(1))
    np.testing.assert_allclose([part[0].detach().numpy() for part in state], [h, c], rtol=1e-5, atol=1e-6)
    assert h.any()


@pytest.mark.parametrize("architecture", LSTM_AND_GRU + RELU + NAMED, ids=str)
def test_batches_with_the_state_carried_on_give_what_the_whole_sequence_gives(architecture: Architecture) -> None:
    encoder = encoder_of_everything()
    dense, codes, *_ = encode_random(encoder)
    network = random_torch_network(encoder, architecture, Forecast((0,), 2))
    whole, after = network(dense, codes, network.initial_state(9))
    kept = tuple(part.clone() for part in network.initial_state(12))
    rows = torch.tensor([11, 3, 4, 0, 1, 9, 8, 7, 2])  # where each key's state lies
    outputs = []
    for start in (0, 10, 17):
        stop = {0: 10, 10: 17, 17: dense.shape[1]}[start]
        output, state = network(dense[:, start:stop], codes[:, start:stop], tuple(part[rows] for part in kept))
        for part, values in zip(kept, state, strict=True):
            part[rows] = values.detach()
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, 1), whole, atol=1e-6, rtol=1e-6)
    for part, values in zip(kept, after, strict=True):
        torch.testing.assert_close(part[rows], values, atol=1e-6, rtol=1e-6)


def test_the_initial_weights() -> None:
    network = TorchNetwork(encoder_of_everything(), Architecture("lstm", 2, 5), Classes(1))
    for layer in network.layers:
        assert (layer.rnn.bias_ih_l0 + layer.rnn.bias_hh_l0)[5:10].tolist() == [1] * 5
    for table in network.embeddings:
        assert not table.weight[0].any()
        assert table.weight[1:].any()
    network.set_prior(-3.5)
    assert network.head.bias.tolist() == [-3.5]
    classes = TorchNetwork(encoder_of_everything(), Architecture("gru"), Classes(3))
    classes.set_prior([0, -1, -2])
    assert classes.head.bias.tolist() == [0, -1, -2]
    residual = TorchNetwork(encoder_of_numbers(), Architecture("gru"), Forecast((0,)))
    assert residual.head.weight.abs().max() < 0.1 / math.sqrt(64) + 1e-6
    assert [part.shape for part in network.initial_state(3)] == [(3, 5)] * 4


@pytest.mark.parametrize("architecture", [*LSTM_AND_GRU, *RELU, *NAMED, replace(LSTM_AND_GRU[0], window=4)], ids=str)
@pytest.mark.parametrize(
    "task_head", [Classes(3), Forecast((0, 1), 2), Anomaly((2,))], ids=lambda one: type(one).__name__
)
def test_every_weight_learns(architecture: Architecture, task_head: TaskHead) -> None:
    encoder = encoder_of_everything()
    dense, codes, *_ = encode_random(encoder, keys=60)
    network = random_torch_network(encoder, architecture, task_head)
    forward_sequences(network, dense, codes).square().mean().backward()
    for name, weights in network.named_parameters():
        assert weights.grad is not None, name
        assert weights.grad.abs().max() > 0, name


def changed(**architecture: Any) -> Callable[[], TorchNetwork]:
    return lambda: TorchNetwork(
        encoder_of_everything(), replace(Architecture("lstm", 2, 6), **architecture), Forecast((0,), 2)
    )


def with_head(task_head: TaskHead) -> Callable[[], TorchNetwork]:
    return lambda: TorchNetwork(encoder_of_everything(), Architecture("lstm", 2, 6), task_head)


def with_shop_count(count: int) -> TorchNetwork:
    encoder = encoder_of_everything()
    shop = Category("shop", np.zeros((count, 3), np.float32), vocabulary=tuple("abcdefg"[: count - 1]))
    return TorchNetwork(
        replace(encoder, categories=(shop, *encoder.categories[1:])), Architecture("lstm", 2, 6), Forecast((0,), 2)
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (changed(hidden=7), r"layers\.0\.initial_h: shape \(6,\), this network has \(7,\)"),
        (changed(layers=3), r"layers\.2\.initial_h: shape None, this network has"),
        (changed(layers=1), r"layers\.1\.rnn\.weight_ih_l0: shape \(24, 6\), this network has None"),
        (changed(cell="gru"), r"layer 0: another cell or activation \(lstm, tanh\)"),
        (changed(cell="mingru"), r"layer 0: another cell or activation \(lstm, tanh\)"),
        (changed(activation="relu"), "layer 0: another cell or activation"),
        (changed(projection=3), r"layers\.0\.initial_h: shape \(6,\), this network has \(3,\)"),
        (changed(window=3), "window None; this network has .* 3"),
        (with_head(Forecast((1,), 2)), "head or window"),
        (with_head(Forecast((0,), 2, residual=False)), "head or window"),
        (with_head(Classes(2)), "head or window"),
        (lambda: with_shop_count(6), r"embeddings\.0\.weight: shape \(4, 3\), this network has \(6, 3\)"),
    ],
)
def test_weights_of_another_shape_are_refused_by_name(make: Callable[[], TorchNetwork], message: str) -> None:
    theirs = changed()().to_spec()
    network = make()
    before = {name: values.clone() for name, values in network.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_weights(network, theirs)
    assert all(torch.equal(values, before[name]) for name, values in network.state_dict().items())


@pytest.mark.parametrize(
    ("architecture", "task_head", "message"),
    [
        (Architecture("gru", 1, 8, projection=2), Classes(), "projection 2: only for lstm"),
        (Architecture("lstm", 1, 8, projection=8), Classes(), "projection 8: .* smaller than hidden"),
        (Architecture("s4d", 1, 8, activation="relu"), Classes(), "activation relu: only for lstm and gru"),
        (Architecture("mingru", 1, 8, projection=2), Classes(), "projection 2: only for lstm"),
        (Architecture(), Classes(0), "classes: 0"),
        (Architecture(), Forecast(()), r"columns \(\)"),
        (Architecture(), Anomaly((4,)), r"columns \(4,\): should be indices of the encoder's 4 numbers"),
    ],
)
def test_what_cannot_be_built_is_refused(architecture: Architecture, task_head: TaskHead, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TorchNetwork(encoder_of_everything(), architecture, task_head)
