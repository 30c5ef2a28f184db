"""The layers of train/export/named_cells.py in torch, over whole sequences; the formulas are there.

A recurrence that is linear in its state is computed by a scan: log2(T) operations on all events instead of T steps.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lstmstream.train.export.named_cells import GATE_CAP, GATE_LIMIT, NAMED_CELLS, S4D_MODES, CellName
from lstmstream.train.export.network_spec import Array, NamedLayer

LONGEST_MEMORY = 64.0  # events: gates forget over 2 to this many at first (Tallec and Ollivier 2018)
S4D_MIN_STEP, S4D_MAX_STEP = 1e-3, 0.1  # of the first values of d, as in the paper
S4D_MIN_RATE, S4D_MAX_RATE = 1e-6, 20.0  # -log |p|: in float32 p is then neither 1 nor 0


def linear_scan(decay: Tensor, inputs: Tensor, start: Tensor) -> Tensor:
    """[B, T, H] All states of s_t = decay_t s_(t-1) + inputs_t from s_0 = `start` [B, H].

    `decay` is [B, T, H], or [1, 1, H] where it is the same for all events. Nothing is divided by products of decays, so
    they may vanish (Hillis and Steele 1986: each round doubles the number of events that a state has seen).
    """
    states = torch.cat([inputs[:, :1] + decay[:, :1] * start.unsqueeze(1), inputs[:, 1:]], 1)
    shift, constant = 1, decay.shape[1] == 1
    while shift < states.shape[1]:
        later = decay if constant else decay[:, shift:]
        states = torch.cat([states[:, :shift], states[:, shift:] + later * states[:, :-shift]], 1)
        decay = decay * decay if constant else torch.cat([decay[:, :shift], later * decay[:, :-shift]], 1)
        shift *= 2
    return states


class NamedCellLayer(nn.Module):  # type: ignore[misc] # torch is untyped here
    """A layer whose weights have the names and shapes of its cell."""

    cell: ClassVar[CellName]

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        kind = NAMED_CELLS[self.cell]
        for letter, count, value in kind.state:
            self.register_buffer(f"initial_{letter}", torch.full((count * hidden,), value))
        for name, shape in self._parameter_shapes(kind.weight_shapes(width, hidden)).items():
            bound = 1 / math.sqrt(shape[-1] if len(shape) == 2 else hidden)  # as torch.nn.Linear
            self.register_parameter(name, nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))

    def initial_state(self, rows: int) -> tuple[Tensor, ...]:
        """The state of `rows` new keys."""
        return tuple(getattr(self, f"initial_{letter}").repeat(rows, 1) for letter in self.letters)

    @property
    def letters(self) -> tuple[str, ...]:
        """The names of the parts of the state."""
        return tuple(letter for letter, _, _ in NAMED_CELLS[self.cell].state)

    def forward(self, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`inputs` [B, T, I] to outputs [B, T, H] and the state after T events."""
        raise NotImplementedError

    def to_layer(self) -> NamedLayer:
        """The layer as arrays."""
        initial = {letter: _to_array(getattr(self, f"initial_{letter}")) for letter in self.letters}
        return NamedLayer(self.cell, {name: _to_array(values) for name, values in self._weights().items()}, initial)

    def state_arrays(self, layer: NamedLayer) -> dict[str, Any]:
        """The state dict's values of a layer of the same cell: the inverse of `to_layer`."""
        return {**layer.weights, **{f"initial_{letter}": values for letter, values in layer.initial.items()}}

    def _parameter_shapes(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        return shapes

    def _weights(self) -> dict[str, Tensor]:
        return dict(self.named_parameters())


class MinGruLayer(NamedCellLayer):
    """minGRU: gates and candidates depend on the input alone."""

    cell = "mingru"

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(width, hidden)
        with torch.no_grad():
            self.bias[:hidden] = -_memory_bias(hidden)

    def forward(self, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See NamedCellLayer."""
        z, candidate = nn.functional.linear(inputs, self.weight, self.bias).chunk(2, -1)
        share = torch.sigmoid(z)
        h = linear_scan(torch.sigmoid(-z), share * _positive(candidate), state[0])
        return h, (h[:, -1],)


class MinLstmLayer(NamedCellLayer):
    """minLSTM: as minGRU, with two gates whose sum is scaled to 1."""

    cell = "minlstm"

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(width, hidden)
        with torch.no_grad():
            self.bias[:hidden] = _memory_bias(hidden)
            self.bias[hidden : 2 * hidden] = 0

    def forward(self, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See NamedCellLayer."""
        f, i, candidate = nn.functional.linear(inputs, self.weight, self.bias).chunk(3, -1)
        f, i = (1 + torch.exp(-gate.clamp(-GATE_LIMIT, GATE_LIMIT)) for gate in (f, i))  # 1 / sigmoid
        total = f + i
        h = linear_scan(i / total, f / total * _positive(candidate), state[0])
        return h, (h[:, -1],)


class SlstmLayer(NamedCellLayer):
    """sLSTM: its gates depend on h, so that there is no scan for it."""

    cell = "slstm"

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(width, hidden)
        with torch.no_grad():
            self.bias[hidden : 2 * hidden] = _memory_bias(hidden)

    def forward(self, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See NamedCellLayer."""
        h, c, n, m = state
        outputs = []
        for from_input in nn.functional.linear(inputs, self.weight_ih, self.bias).unbind(1):
            i, f, z, o = (from_input + nn.functional.linear(h, self.weight_hh)).chunk(4, -1)
            log_i = GATE_CAP * torch.tanh(i / GATE_CAP)
            kept = nn.functional.logsigmoid(f) + m
            m = torch.maximum(kept, log_i)
            keep, write = torch.exp(kept - m), torch.exp(log_i - m)
            c, n = keep * c + write * torch.tanh(z), keep * n + write
            h = torch.sigmoid(o) * c / n
            outputs.append(h)
        return torch.stack(outputs, 1), (h, c, n, m)


class S4dLayer(NamedCellLayer):
    """S4D. The poles p = exp(-rate + i phase) are trained as log rates and phases; d = 2 rate, and w = phase / d.

    Both are float64, so that the poles of an exported layer come back bit for bit.
    """

    cell = "s4d"

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(width, hidden)
        step = math.log(S4D_MIN_STEP) + torch.rand(hidden, dtype=torch.float64) * math.log(S4D_MAX_STEP / S4D_MIN_STEP)
        modes = torch.arange(S4D_MODES, dtype=torch.float64).repeat_interleave(hidden)
        step = step.exp().repeat(S4D_MODES)
        self.log_rate = nn.Parameter((step / 2).log())
        self.phase = nn.Parameter(step * math.pi * modes)  # S4D-Lin: A = -1/2 + i pi n
        with torch.no_grad():
            self.readout_re.normal_()
            self.readout_im.normal_()
            self.skip.normal_()

    def forward(self, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See NamedCellLayer."""
        pole, gain = self._discretised()
        u = nn.functional.linear(inputs, self.weight_in, self.bias_in)
        states = linear_scan(pole[None, None], gain * u.repeat(1, 1, S4D_MODES), torch.complex(*state))
        by_mode = self.readout_re * states.real - self.readout_im * states.imag
        y = by_mode.unflatten(-1, (S4D_MODES, self.hidden)).sum(-2) + self.skip * u
        a, b = nn.functional.linear(nn.functional.silu(y), self.weight_out, self.bias_out).chunk(2, -1)
        last = states[:, -1]
        return u + a * torch.sigmoid(b), (last.real.contiguous(), last.imag.contiguous())

    def state_arrays(self, layer: NamedLayer) -> dict[str, Any]:
        """See NamedCellLayer."""
        arrays = super().state_arrays(layer)
        pole_re, pole_im = (np.asarray(arrays.pop(f"pole_{part}"), np.float64) for part in ("re", "im"))
        for part in ("re", "im"):
            del arrays[f"gain_{part}"]  # the pole gives it
        rate = -np.log(np.hypot(pole_re, pole_im))
        return arrays | {"log_rate": np.log(rate), "phase": np.arctan2(pole_im, pole_re)}

    def _parameter_shapes(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, shape in shapes.items() if not name.startswith(("pole", "gain"))}

    def _weights(self) -> dict[str, Tensor]:
        pole, gain = self._discretised()
        derived = {"pole_re": pole.real, "pole_im": pole.imag, "gain_re": gain.real, "gain_im": gain.imag}
        own = dict(self.named_parameters())
        return {
            name: derived[name] if name in derived else own[name] for name in NAMED_CELLS[self.cell].weight_shapes(1, 1)
        }

    def _discretised(self) -> tuple[Tensor, Tensor]:
        """The poles p and the gains q; q is that of the p that float32 holds, as the file has it."""
        rate = self.log_rate.exp().clamp(S4D_MIN_RATE, S4D_MAX_RATE)
        pole = torch.polar(torch.exp(-rate), self.phase).to(torch.complex64)
        exact = pole.to(torch.complex128)
        exponent = torch.log(exact)
        gain = -2 * exponent.real * (exact - 1) / exponent  # d (p - 1) / (d A)
        return pole, gain.to(torch.complex64)


NAMED_LAYERS: dict[str, type[NamedCellLayer]] = {
    layer.cell: layer for layer in (MinGruLayer, MinLstmLayer, SlstmLayer, S4dLayer)
}


def _positive(value: Tensor) -> Tensor:
    """The papers' g: v + 1/2 for v >= 0, else sigmoid(v)."""
    return torch.relu(value) + torch.sigmoid(value.clamp(max=0))


def _memory_bias(hidden: int) -> Tensor:
    """Log odds of forget gates that keep a value for 2 to LONGEST_MEMORY events."""
    return torch.empty(hidden).uniform_(1, LONGEST_MEMORY - 1).log()


def _to_array(tensor: Tensor) -> Array:
    return np.array(tensor.detach().cpu().numpy(), np.float32)
