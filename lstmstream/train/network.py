"""The network in torch: what training moves, what becomes a model file, and what serving will answer.

`Net` is the network that the package `export` writes, over whole sequences. It does not train, and reads no raw events:
the encoder's dense columns (numbers, elapsed | flags | clock, already scaled, missing 0) and codes are given.

`answers` gives, in float32, what the exported step model gives event by event, for every task.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lstmstream.train.export.heads import LARGEST_JUMP, LARGEST_LOG, LARGEST_LOG_SCALE, LARGEST_Z, raw_scale
from lstmstream.train.export.parts import (
    Activation,
    AnomalyHead,
    AnyHead,
    Calibration,
    Encoder,
    ForecastHead,
    Gru,
    Head,
    Layer,
    Lstm,
    Network,
)

__all__ = [
    "Anomaly", "Calibration", "Classes", "Design", "Forecast", "Net", "State", "Target",
    "answers", "levels", "load", "outputs", "powers", "surprise",
]  # fmt: skip

State = tuple[Tensor, ...]  # one [rows, width] for each of h0, c0, h1, c1, ... (h0, h1, ... for GRU)
_WINDOW_ROWS = 1 << 16  # encoded rows of windows that are computed at once


@dataclass(frozen=True, slots=True)
class Design:
    """The recurrent part."""

    cell: Literal["lstm", "gru"] = "lstm"
    layers: int = 1
    hidden: int = 64
    projection: int | None = None  # lstm only: h has this many values
    activation: Activation = "tanh"
    dropout: float = 0.0  # after every layer, the last too
    window: int | None = None  # the network sees the last `window` events only


@dataclass(frozen=True, slots=True)
class Classes:
    """1: one logit, sigmoid; 2 or more: softmax, class 0 the usual one."""

    count: int = 1


@dataclass(frozen=True, slots=True)
class Forecast:
    """The next `horizon` values of some numbers."""

    columns: tuple[int, ...]  # indices into the encoder's numbers
    horizon: int = 1
    residual: bool = True  # forecast the change from the present value


@dataclass(frozen=True, slots=True)
class Anomaly:
    """The next values of some numbers with their spread."""

    columns: tuple[int, ...]
    residual: bool = True


Target = Classes | Forecast | Anomaly


class _Body(nn.Module):  # type: ignore[misc] # torch is untyped here
    """One recurrent layer over [B, T, I]; torch's own where it can do it, else step by step with the same weights."""

    def __init__(self, width: int, design: Design) -> None:
        super().__init__()
        self.design = design
        projection = {"proj_size": design.projection} if design.projection else {}
        kind = nn.LSTM if design.cell == "lstm" else nn.GRU
        self.rnn = kind(width, design.hidden, batch_first=True, **projection)
        if design.cell == "lstm":
            with torch.no_grad():  # remember at first (Gers et al. 2000); the two biases add up
                self.rnn.bias_ih_l0[design.hidden : 2 * design.hidden] = 1
                self.rnn.bias_hh_l0[design.hidden : 2 * design.hidden] = 0
        self.widths = [design.projection or design.hidden] + [design.hidden] * (design.cell == "lstm")
        for letter, size in zip("hc", self.widths, strict=False):
            self.register_buffer(f"first_{letter}", torch.zeros(size))

    def first(self, rows: int) -> State:
        return tuple(
            getattr(self, f"first_{letter}").repeat(rows, 1) for letter, _ in zip("hc", self.widths, strict=False)
        )

    def forward(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        if self.design.activation == "relu":
            return self._relu(inputs, state)
        given = tuple(part.unsqueeze(0).contiguous() for part in state)
        with warnings.catch_warnings():  # it only says that it takes the slower of two ways
            warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
            out, after = self.rnn(inputs, given if self.design.cell == "lstm" else given[0])
        return out, tuple(part[0] for part in (after if self.design.cell == "lstm" else (after,)))

    def _relu(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        rnn, made = self.rnn, []
        from_input = nn.functional.linear(inputs, rnn.weight_ih_l0, rnn.bias_ih_l0)
        for now in from_input.unbind(1):
            before = nn.functional.linear(state[0], rnn.weight_hh_l0, rnn.bias_hh_l0)
            if self.design.cell == "gru":
                (r, z, n), (r_h, z_h, n_h) = now.chunk(3, -1), before.chunk(3, -1)
                n = torch.relu(n + torch.sigmoid(r + r_h) * n_h)
                state = (n + torch.sigmoid(z + z_h) * (state[0] - n),)
            else:
                i, f, g, o = (now + before).chunk(4, -1)
                c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.relu(g)
                h = torch.sigmoid(o) * torch.relu(c)
                state = (nn.functional.linear(h, rnn.weight_hr_l0) if self.design.projection else h, c)
            made.append(state[0])
        return torch.stack(made, 1), state


class Net(nn.Module):  # type: ignore[misc] # torch is untyped here
    """Embeddings, recurrent layers and a linear head, with weights to be learned."""

    def __init__(self, encoder: Encoder, design: Design, target: Target) -> None:
        """The tables of the encoder's categories give only their shapes. Raises ValueError for what cannot be built."""
        super().__init__()
        _check(encoder, design, target)
        self.encoder, self.design, self.target = encoder, design, target
        self.tables = nn.ModuleList(nn.Embedding(*category.table.shape) for category in encoder.categories)
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.1)
            nn.init.zeros_(table.weight[0].data)  # unknown: neither this nor that
        widths = [encoder.width] + [design.projection or design.hidden] * design.layers
        self.body = nn.ModuleList(_Body(width, design) for width in widths[:-1])
        self.dropout = nn.Dropout(design.dropout)
        self.head = nn.Linear(widths[-1], _width(target))
        if getattr(target, "residual", False):
            with torch.no_grad():  # begin near "as it is now", which is hard to beat
                self.head.weight *= 0.1
                self.head.bias *= 0

    def initial(self, rows: int) -> State:
        """The state of `rows` new keys: zeros, unless loaded weights say otherwise. One [rows, width] for each part."""
        return tuple(part for layer in self.body for part in layer.first(rows))

    def forward(self, dense: Tensor, codes: Tensor, state: State) -> tuple[Tensor, State]:
        """`dense` [B, T, D] float32, `codes` [B, T, C] int64 -> outputs [B, T, O], and the state after T events.

        O: logits (1 or K) for Classes; for Forecast horizon * C values in scaled units (t + 1 of all columns, then
        t + 2 ...); for Anomaly the C means of the next event in scaled units, then the C logs of their scales. With a
        window the caller feeds windows, from the initial state (`outputs` does).
        """
        embedded = [table(codes[..., index]) for index, table in enumerate(self.tables)]
        below = torch.cat([dense, *embedded], -1)
        after: list[Tensor] = []
        for layer in self.body:
            count = len(layer.widths)
            below, moved = layer(below, state[:count])
            below, state, after = self.dropout(below), state[count:], [*after, *moved]
        return self._finish(self.head(below), dense), tuple(after)

    def _finish(self, linear: Tensor, dense: Tensor) -> Tensor:
        target = self.target
        if isinstance(target, Classes):
            return linear
        now = dense[..., list(target.columns)]
        if isinstance(target, Forecast):
            return linear + now.repeat(*[1] * (now.dim() - 1), target.horizon) if target.residual else linear
        means, scales = linear.chunk(2, -1)
        scales = scales.clamp(-LARGEST_LOG_SCALE, LARGEST_LOG_SCALE)
        return torch.cat([means + now if target.residual else means, scales], -1)

    def set_prior(self, values: float | Sequence[float]) -> None:
        """Begins with these outputs: the log-odds of the positive class for Classes(1), logs of the shares else."""
        with torch.no_grad():
            self.head.bias.copy_(torch.as_tensor(values, dtype=torch.float32).reshape(-1))

    def to_network(self, encoder: Encoder | None = None, calibration: Calibration | None = None) -> Network:
        """The network as arrays, for export. `encoder`: this one's unless given; its tables are replaced.

        Anomaly needs a calibration: ValueError without.
        """
        encoder = encoder or self.encoder
        categories = tuple(
            replace(category, table=_array(table.weight))
            for category, table in zip(encoder.categories, self.tables, strict=True)
        )
        head = _head(self.target, _array(self.head.weight), _array(self.head.bias), calibration)
        layers = tuple(_layer(layer) for layer in self.body)
        return Network(replace(encoder, categories=categories), layers, head, self.design.window)


def load(net: Net, network: Network) -> None:
    """Puts the weights of an exported network into `net`, for fine-tuning: the inverse of `to_network`.

    Category tables, layers and head must have `net`'s shapes and kinds: ValueError names the first that has not.
    Scales and calibration are not `net`'s: they stay with whoever calls.
    """
    made: dict[str, Any] = {}
    for index, category in enumerate(network.encoder.categories):
        made[f"tables.{index}.weight"] = category.table
    for index, layer in enumerate(network.layers):
        if isinstance(layer, Lstm) != (net.design.cell == "lstm") or layer.activation != net.design.activation:
            raise ValueError(f"layer {index}: another cell or activation ({type(layer).__name__}, {layer.activation})")
        weights = {"weight_ih": layer.weight_ih, "weight_hh": layer.weight_hh}
        weights |= dict(zip(("bias_ih", "bias_hh"), np.split(layer.bias, 2), strict=True))
        if isinstance(layer, Lstm) and layer.projection is not None:
            weights["weight_hr"] = layer.projection
        made |= {f"body.{index}.rnn.{name}_l0": values for name, values in weights.items()}
        for letter, size, first in layer.state:
            made[f"body.{index}.first_{letter}"] = np.zeros(size, np.float32) if first is None else first
    made |= {"head.weight": network.head.weight, "head.bias": network.head.bias}
    ours, theirs = _kind(net.to_network(calibration=Calibration(1, 1, 1)).head), _kind(network.head)
    if ours != theirs or net.design.window != network.window:
        raise ValueError(f"head or window: {theirs}, window {network.window}; this net has {ours}, {net.design.window}")
    own = net.state_dict()
    for name in sorted(own.keys() | made.keys()):
        shapes = [tuple(one[name].shape) if name in one else None for one in (made, own)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{name}: shape {shapes[0]}, this net has {shapes[1]}")
    net.load_state_dict({name: torch.from_numpy(np.array(values, np.float32)) for name, values in made.items()})


def outputs(net: Net, dense: Tensor, codes: Tensor) -> Tensor:
    """`net` over whole sequences from their first event: [B, T, O] for `dense` [B, T, D], `codes` [B, T, C].

    With a window each event's output is that of the last `window` events up to it, or of those there are.
    """
    window, steps = net.design.window, dense.shape[1]
    whole = dense.shape[1] if window is None else min(window - 1, steps)  # as far as all earlier events are seen
    made = [net(dense[:, :whole], codes[:, :whole], net.initial(len(dense)))[0]] if whole else []
    if window is not None and steps >= window:
        at_once = max(1, _WINDOW_ROWS // (window * len(dense)))  # places in the sequence
        for start in range(0, steps - window + 1, at_once):
            span = slice(start, start + at_once + window - 1)
            views = [part[:, span].unfold(1, window, 1).movedim(-1, 2) for part in (dense, codes)]
            count = views[0].shape[:2]  # [B, places, window, columns]
            last = net(*(part.flatten(0, 1) for part in views), net.initial(count.numel()))[0][:, -1]
            made.append(last.unflatten(0, count))
    return torch.cat(made, 1)


def surprise(output: Tensor, dense: Tensor, missing: Tensor, target: Anomaly) -> Tensor:
    """Surprise e [B, T]: how far each event was from what the output before it said, in its scales; NaN where none is.

    `output` [B, T, O] of the net, `missing` [B, T, F] of the encoder's numbers. e is the root mean square, over the
    columns that are present, of (value - mean) / scale cut to +-100. None at a first event, nor without any column.
    """
    columns = list(target.columns)
    means, log_scales = output[:, :-1].chunk(2, -1)
    z = ((dense[:, 1:, columns] - means) / log_scales.exp()).clamp(-LARGEST_Z, LARGEST_Z)
    absent = missing[:, 1:, columns]
    count = (~absent).sum(-1)
    e = (torch.where(absent, 0, z * z).sum(-1) / count.clamp(min=1)).sqrt()
    e = torch.where(count > 0, e, torch.nan)
    return torch.cat([e.new_full((len(e), 1), torch.nan), e], 1)


def levels(e: Tensor, calibration: Calibration) -> Tensor:
    """Anomaly scores [B, T] in 0..1 from surprises [B, T]; 0 where there is none. heads.py has the formula."""
    return powers(e, calibration)[0]


def powers(e: Tensor, calibration: Calibration) -> tuple[Tensor, Tensor]:
    """The scores of `levels`, and the power [B, T] after each event."""
    power = e.new_full((len(e),), calibration.power)
    scores, after = [], []
    for now in e.unbind(1):
        level = power.sqrt().sqrt()
        fourth = torch.minimum(now, LARGEST_JUMP * level).square().square()
        moved = (power + calibration.alpha * (fourth - power)).clamp(min=calibration.floor)
        known = ~now.isnan()
        scores.append(torch.where(known, now / (now + calibration.unit * level), 0))
        power = torch.where(known, moved, power)
        after.append(power)
    return torch.stack(scores, 1), torch.stack(after, 1)


def answers(
    net: Net, dense: Tensor, codes: Tensor, missing: Tensor, lengths: Tensor, calibration: Calibration | None = None
) -> tuple[Tensor, Tensor]:
    """What serving gives for whole sequences: score [B, T], prediction [B, T, P]; NaN from `lengths` [B] on.

    Probabilities for Classes; forecasts in raw units for Forecast; for Anomaly, which needs the calibration, the
    anomaly score and the forecast of the next event's columns in raw units. `missing` [B, T, F] matters for Anomaly.
    """
    training = net.training
    net.eval()
    with torch.no_grad():
        output = outputs(net, dense, codes)
        score, prediction = _answers(net, output, dense, missing, calibration)
        over = torch.arange(dense.shape[1], device=dense.device) >= lengths.to(dense.device)[:, None]
        score, prediction = score.masked_fill(over, torch.nan), prediction.masked_fill(over[..., None], torch.nan)
    net.train(training)
    return score, prediction


def _answers(
    net: Net, output: Tensor, dense: Tensor, missing: Tensor, calibration: Calibration | None
) -> tuple[Tensor, Tensor]:
    target = net.target
    if isinstance(target, Classes):
        prediction = torch.sigmoid(output) if target.count == 1 else torch.softmax(output, -1)
        return prediction[..., 0] if target.count == 1 else (1 - prediction[..., 0]).clamp(min=0), prediction
    if isinstance(target, Forecast):
        prediction = raw_units(output, net.encoder, target.columns * target.horizon)
        return prediction[..., 0], prediction
    if calibration is None:
        raise ValueError("an anomaly score needs a calibration")
    score = levels(surprise(output, dense, missing, target), calibration)
    return score, raw_units(output.chunk(2, -1)[0], net.encoder, target.columns)


def raw_units(scaled: Tensor, encoder: Encoder, columns: Sequence[int]) -> Tensor:
    """Scaled values [..., P] of these numbers (indices, one for each P) in raw units; heads.py has the formula."""
    index = list(columns)
    scale, centre = (torch.from_numpy(values[index]).to(scaled.device) for values in raw_scale(encoder.numbers))
    logs = torch.tensor([encoder.numbers[column].log for column in index], device=scaled.device)
    linear = scaled * scale + centre
    grown = linear.sign() * (linear.abs().clamp(max=LARGEST_LOG).exp() - 1)
    return torch.where(logs, grown, linear)


def _check(encoder: Encoder, design: Design, target: Target) -> None:
    if design.projection is not None and (design.cell != "lstm" or not 0 < design.projection < design.hidden):
        raise ValueError(f"projection {design.projection}: only for lstm, from 1 to below hidden ({design.hidden})")
    if isinstance(target, Classes):
        if target.count < 1:
            raise ValueError(f"classes: {target.count} should be 1 or more")
    elif not target.columns or not all(0 <= column < len(encoder.numbers) for column in target.columns):
        raise ValueError(f"columns {target.columns}: should be indices of the encoder's {len(encoder.numbers)} numbers")


def _width(target: Target) -> int:
    if isinstance(target, Classes):
        return target.count
    return len(target.columns) * (target.horizon if isinstance(target, Forecast) else 2)


def _layer(layer: _Body) -> Layer:
    rnn, firsts = (
        layer.rnn,
        [_array(getattr(layer, f"first_{letter}")) for letter, _ in zip("hc", layer.widths, strict=False)],
    )
    weights = (_array(rnn.weight_ih_l0), _array(rnn.weight_hh_l0))
    bias = np.concatenate([_array(rnn.bias_ih_l0), _array(rnn.bias_hh_l0)])
    given = [values if values.any() else None for values in firsts]
    if layer.design.cell == "gru":
        return Gru(*weights, bias, layer.design.activation, given[0])
    projection = _array(rnn.weight_hr_l0) if layer.design.projection else None
    return Lstm(*weights, bias, given[0], given[1], projection, layer.design.activation)


def _head(target: Target, weight: Any, bias: Any, calibration: Calibration | None) -> AnyHead:
    if isinstance(target, Classes):
        return Head(weight, bias, "sigmoid" if target.count == 1 else "softmax")
    if isinstance(target, Forecast):
        return ForecastHead(weight, bias, target.columns, target.horizon, target.residual)
    if calibration is None:
        raise ValueError("an anomaly score needs a calibration")
    return AnomalyHead(weight, bias, target.columns, calibration, target.residual)


def _kind(head: AnyHead) -> tuple[Any, ...]:
    """What must agree for one head's weights to mean the same in another."""
    names = ("activation", "columns", "horizon", "residual")
    return (type(head).__name__, *(getattr(head, name) for name in names if hasattr(head, name)))


def _array(tensor: Tensor) -> Any:
    return tensor.detach().cpu().numpy().copy()
