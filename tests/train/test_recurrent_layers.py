"""The layers of recurrent_layers.py: the scan against a plain loop, long sequences, what they begin with."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from lstmstream.train.export.named_cells import NAMED_CELLS, CellName
from lstmstream.train.recurrent_layers import NAMED_LAYERS, NamedCellLayer, S4dLayer, linear_scan
from lstmstream.train.schema import CELL_TITLES, Cell

pytestmark = pytest.mark.torch
torch.set_num_threads(1)


def make_layer(cell: str, width: int = 3, hidden: int = 5) -> NamedCellLayer:
    torch.manual_seed(1)
    return NAMED_LAYERS[cell](width, hidden)


def loop(decay: Tensor, inputs: Tensor, start: Tensor) -> Tensor:
    state, states = start, []
    for decay_now, now in zip(decay.expand_as(inputs).unbind(1), inputs.unbind(1), strict=True):
        state = decay_now * state + now
        states.append(state)
    return torch.stack(states, 1)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 64, 100])
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_the_scan_and_its_gradient_are_those_of_a_loop(steps: int, constant: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(steps)
    decay = torch.rand((1, 1, 4) if constant else (3, steps, 4), generator=generator, dtype=torch.float64).to(dtype)
    values = [
        decay,
        *(torch.randn(shape, generator=generator, dtype=dtype) for shape in ((3, steps, 4), (3, 4))),
    ]
    if not constant:
        values[0][:, ::3] = 0  # nothing is divided by it
    gradients = []
    for compute in (linear_scan, loop):
        leaves = [value.clone().requires_grad_() for value in values]
        states = compute(*leaves)
        (states.abs().square().sum() + states.real.sin().sum()).backward()
        gradients.append([states, *(leaf.grad for leaf in leaves)])
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cell", NAMED_CELLS)
def test_a_layers_gradient_is_that_of_its_steps(cell: str) -> None:
    layer = make_layer(cell)
    inputs = torch.randn(4, 20, 3)
    at_once, _ = layer(inputs, layer.initial_state(4))
    state, outputs = layer.initial_state(4), []
    for now in inputs.split(1, 1):
        output, state = layer(now, state)
        outputs.append(output)
    gradients = [
        torch.autograd.grad(output.square().sum(), list(layer.parameters()))
        for output in (at_once, torch.cat(outputs, 1))
    ]
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("size", [1.0, 1e4])
@pytest.mark.parametrize("cell", NAMED_CELLS)
def test_ten_thousand_events_stay_finite(cell: str, size: float) -> None:
    layer = make_layer(cell)
    inputs = size * torch.randn(1, 10_000, 3)
    output, state = layer(inputs, layer.initial_state(1))
    assert torch.isfinite(output).all()
    assert all(torch.isfinite(part).all() for part in state)
    output[:, -1].sum().backward()
    assert all(torch.isfinite(weights.grad).all() for weights in layer.parameters())


def test_slstm_by_the_unstabilised_formula() -> None:
    layer = make_layer("slstm", hidden=2).double()
    inputs = torch.randn(1, 12, 3, dtype=torch.float64)
    output, _ = layer(inputs, layer.initial_state(1))
    h, c, n = (torch.zeros(2, dtype=torch.float64) for _ in range(3))
    for now in range(12):
        i, f, z, o = (layer.weight_ih @ inputs[0, now] + layer.weight_hh @ h + layer.bias).chunk(4)
        i = torch.exp(15 * torch.tanh(i / 15))
        c = torch.sigmoid(f) * c + i * torch.tanh(z)
        n = torch.sigmoid(f) * n + i
        h = torch.sigmoid(o) * c / n
        torch.testing.assert_close(output[0, now], h)


def test_s4d_begins_with_the_papers_poles() -> None:
    layer = S4dLayer(3, 5)
    pole, gain = layer._discretised()
    step = 2 * layer.log_rate.exp().detach()
    imaginary = torch.tensor([0.0] * 5 + [math.pi] * 5, dtype=torch.float64)
    a = torch.complex(torch.full((10,), -0.5, dtype=torch.float64), imaginary)
    torch.testing.assert_close(pole, torch.exp(step * a).to(torch.complex64))
    exact = (torch.exp(step * a) - 1) / a  # by zero-order hold
    torch.testing.assert_close(gain, exact.to(torch.complex64), rtol=1e-3, atol=0)  # of a pole in float32
    assert step.min() >= 1e-3
    assert step.max() <= 0.1


def test_every_cell_has_a_layer_and_a_title() -> None:
    assert get_args(Cell) == get_args(CellName) == tuple(CELL_TITLES) == ("lstm", "gru", *NAMED_CELLS)
    assert NAMED_CELLS.keys() == NAMED_LAYERS.keys()
