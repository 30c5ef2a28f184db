"""The network in torch: its weights are trained, and the export package writes them as a step model.

It does not train and reads no raw events: it gets the encoder's dense inputs (numbers, elapsed, missing flags, clock;
already scaled, 0 where missing) and the category codes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lstmstream.train.export.heads import MAX_LOG_SCALE
from lstmstream.train.export.named_cells import CellName
from lstmstream.train.export.network_spec import (
    Activation,
    AnomalyHead,
    Calibration,
    DenseHead,
    FeatureEncoder,
    ForecastHead,
    Gru,
    HeadSpec,
    Layer,
    Lstm,
    NamedLayer,
    NetworkSpec,
)
from lstmstream.train.recurrent_layers import NAMED_LAYERS, NamedCellLayer

State = tuple[Tensor, ...]  # one [rows, width] for each part of each layer, as h0, c0, h1, c1, ... of an LSTM


@dataclass(frozen=True, slots=True)
class Architecture:
    """The recurrent layers."""

    cell: CellName = "lstm"
    layers: int = 1
    hidden: int = 64
    projection: int | None = None  # number of values in h; LSTM only
    activation: Activation = "tanh"  # relu for LSTM and GRU only
    dropout: float = 0.0  # after every layer, the last one included
    window: int | None = None  # the network sees only the last `window` events


@dataclass(frozen=True, slots=True)
class Classes:
    """Class probabilities. Count 1: one logit with a sigmoid; 2 or more: softmax, with class 0 as the usual one."""

    count: int = 1


@dataclass(frozen=True, slots=True)
class Forecast:
    """The next `horizon` values of some numbers."""

    columns: tuple[int, ...]  # indices into the encoder's numbers
    horizon: int = 1
    residual: bool = True  # forecast the change from the present value


@dataclass(frozen=True, slots=True)
class Anomaly:
    """The next values of some numbers with their spread, from which the anomaly score comes."""

    columns: tuple[int, ...]  # indices into the encoder's numbers
    residual: bool = True  # as in Forecast, for the means


TaskHead = Classes | Forecast | Anomaly  # what the outputs of a network mean


class _RecurrentLayer(nn.Module):  # type: ignore[misc] # torch is untyped here
    """An LSTM or GRU layer over [B, T, I]: torch's own, or for relu a loop over T with the same weights."""

    def __init__(self, width: int, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        hidden = architecture.hidden
        projection = {"proj_size": architecture.projection} if architecture.projection else {}
        rnn_class = nn.LSTM if architecture.cell == "lstm" else nn.GRU
        self.rnn = rnn_class(width, hidden, batch_first=True, **projection)
        if architecture.cell == "lstm":
            with torch.no_grad():  # forget gates open at first (Gers et al. 2000); the two biases add up
                self.rnn.bias_ih_l0[hidden : 2 * hidden] = 1
                self.rnn.bias_hh_l0[hidden : 2 * hidden] = 0
        self.state_widths = {"h": architecture.projection or hidden}
        if architecture.cell == "lstm":
            self.state_widths["c"] = hidden
        for letter, size in self.state_widths.items():
            self.register_buffer(f"initial_{letter}", torch.zeros(size))

    @property
    def letters(self) -> tuple[str, ...]:
        return tuple(self.state_widths)

    def initial_state(self, rows: int) -> State:
        return tuple(getattr(self, f"initial_{letter}").repeat(rows, 1) for letter in self.state_widths)

    def forward(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        if self.architecture.activation == "relu":
            return self._forward_relu(inputs, state)
        is_lstm = self.architecture.cell == "lstm"
        initial = tuple(part.unsqueeze(0).contiguous() for part in state)
        with warnings.catch_warnings():  # a note that the slower of two implementations is used
            warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
            output, final = self.rnn(inputs, initial if is_lstm else initial[0])
        return output, tuple(part[0] for part in (final if is_lstm else (final,)))

    def _forward_relu(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        rnn, outputs = self.rnn, []
        from_input = nn.functional.linear(inputs, rnn.weight_ih_l0, rnn.bias_ih_l0)
        for gates in from_input.unbind(1):
            from_state = nn.functional.linear(state[0], rnn.weight_hh_l0, rnn.bias_hh_l0)
            if self.architecture.cell == "gru":
                (r, z, n), (r_h, z_h, n_h) = gates.chunk(3, -1), from_state.chunk(3, -1)
                n = torch.relu(n + torch.sigmoid(r + r_h) * n_h)
                state = (n + torch.sigmoid(z + z_h) * (state[0] - n),)
            else:
                i, f, g, o = (gates + from_state).chunk(4, -1)
                c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.relu(g)
                h = torch.sigmoid(o) * torch.relu(c)
                state = (nn.functional.linear(h, rnn.weight_hr_l0) if self.architecture.projection else h, c)
            outputs.append(state[0])
        return torch.stack(outputs, 1), state


class TorchNetwork(nn.Module):  # type: ignore[misc] # torch is untyped here
    """Embeddings, recurrent layers and a linear head, with weights to be trained."""

    def __init__(self, encoder: FeatureEncoder, architecture: Architecture, task_head: TaskHead) -> None:
        """Of the encoder's embedding tables only the shapes are used. Raises ValueError for what cannot be built."""
        super().__init__()
        _validate(encoder, architecture, task_head)
        self.encoder, self.architecture, self.task_head = encoder, architecture, task_head
        self.embeddings = nn.ModuleList(nn.Embedding(*category.table.shape) for category in encoder.categories)
        for embedding in self.embeddings:
            nn.init.normal_(embedding.weight, std=0.1)
            nn.init.zeros_(embedding.weight[0].data)  # unknown or missing: neutral
        widths = [encoder.width] + [architecture.projection or architecture.hidden] * architecture.layers
        self.layers = nn.ModuleList(_make_layer(width, architecture) for width in widths[:-1])
        self.dropout = nn.Dropout(architecture.dropout)
        self.head = nn.Linear(widths[-1], _output_width(task_head))
        if getattr(task_head, "residual", False):
            with torch.no_grad():  # start near the present value, which is hard to beat
                self.head.weight *= 0.1
                self.head.bias *= 0

    @property
    def parameter_count(self) -> int:
        """Number of trained weights."""
        return sum(parameter.numel() for parameter in self.parameters())

    def initial_state(self, rows: int) -> State:
        """The state of `rows` new keys, one [rows, width] for each part: zeros, or the initial values once loaded."""
        return tuple(part for layer in self.layers for part in layer.initial_state(rows))

    def forward(self, dense: Tensor, codes: Tensor, state: State) -> tuple[Tensor, State]:
        """`dense` [B, T, D] float32 and `codes` [B, T, C] int64 to outputs [B, T, O] and the state after T events.

        The outputs are logits for Classes (O is 1 or the number of classes); horizon * C values in scaled units for
        Forecast (t + 1 of all columns, then t + 2, ...); for Anomaly the C means of the next event in scaled units,
        then the C logs of their scales. With a window the caller passes windows and the initial state, as
        `forward_sequences` in predict.py does.
        """
        embedded = [embedding(codes[..., index]) for index, embedding in enumerate(self.embeddings)]
        hidden = torch.cat([dense, *embedded], -1)
        new_state: list[Tensor] = []
        for layer in self.layers:
            count = len(layer.letters)
            hidden, layer_state = layer(hidden, state[:count])
            hidden, state, new_state = self.dropout(hidden), state[count:], [*new_state, *layer_state]
        return self._apply_residual(self.head(hidden), dense), tuple(new_state)

    def _apply_residual(self, linear: Tensor, dense: Tensor) -> Tensor:
        """The head's linear output, with the present values added for `residual`, and log scales clipped."""
        task_head = self.task_head
        if isinstance(task_head, Classes):
            return linear
        present = dense[..., list(task_head.columns)]
        if isinstance(task_head, Forecast):
            repeats = [1] * (present.dim() - 1)
            return linear + present.repeat(*repeats, task_head.horizon) if task_head.residual else linear
        means, log_scales = linear.chunk(2, -1)
        log_scales = log_scales.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE)
        return torch.cat([means + present if task_head.residual else means, log_scales], -1)

    def set_prior(self, values: float | Sequence[float]) -> None:
        """Sets the head's bias [O], for example to the log odds of the positive class or the logs of class shares."""
        with torch.no_grad():
            self.head.bias.copy_(torch.as_tensor(values, dtype=torch.float32).reshape(-1))

    def to_spec(self, encoder: FeatureEncoder | None = None, calibration: Calibration | None = None) -> NetworkSpec:
        """The network as arrays, for export. `encoder` defaults to the network's own; its tables are replaced.

        Raises ValueError for an Anomaly head without calibration.
        """
        encoder = encoder or self.encoder
        categories = tuple(
            replace(category, table=_to_array(embedding.weight))
            for category, embedding in zip(encoder.categories, self.embeddings, strict=True)
        )
        head = _head_spec(self.task_head, _to_array(self.head.weight), _to_array(self.head.bias), calibration)
        layers = tuple(_layer_spec(layer) for layer in self.layers)
        return NetworkSpec(replace(encoder, categories=categories), layers, head, self.architecture.window)


def load_weights(network: TorchNetwork, spec: NetworkSpec) -> None:
    """Copies the weights of an exported network into `network`, for fine-tuning: the inverse of `to_spec`.

    Scaling and calibration are not part of `network` and stay with the caller. Raises ValueError, naming the first
    difference, where tables, layers or head have other shapes or types than the network's.
    """
    arrays: dict[str, Any] = {}
    architecture = network.architecture
    for index, category in enumerate(spec.encoder.categories):
        arrays[f"embeddings.{index}.weight"] = category.table
    for index, layer in enumerate(spec.layers):
        if (layer.cell, layer.activation) != (architecture.cell, architecture.activation):
            raise ValueError(f"layer {index}: another cell or activation ({layer.cell}, {layer.activation})")
        if isinstance(layer, NamedLayer):
            if index < len(network.layers):
                own_arrays = network.layers[index].state_arrays(layer)
                arrays |= {f"layers.{index}.{name}": values for name, values in own_arrays.items()}
            continue
        weights = {"weight_ih": layer.weight_ih, "weight_hh": layer.weight_hh}
        weights |= dict(zip(("bias_ih", "bias_hh"), np.split(layer.bias, 2), strict=True))
        if isinstance(layer, Lstm) and layer.projection is not None:
            weights["weight_hr"] = layer.projection
        arrays |= {f"layers.{index}.rnn.{name}_l0": values for name, values in weights.items()}
        for letter, size, initial in layer.state_parts:
            arrays[f"layers.{index}.initial_{letter}"] = np.zeros(size, np.float32) if initial is None else initial
    arrays |= {"head.weight": spec.head.weight, "head.bias": spec.head.bias}
    own_head, head = _head_signature(network.to_spec(calibration=Calibration(1, 1, 1)).head), _head_signature(spec.head)
    if own_head != head or architecture.window != spec.window:
        raise ValueError(
            f"head or window: {head}, window {spec.window}; this network has {own_head}, {architecture.window}"
        )
    own = network.state_dict()
    for name in dict.fromkeys([*own, *arrays]):
        shape, own_shape = (tuple(values[name].shape) if name in values else None for values in (arrays, own))
        if shape != own_shape:
            raise ValueError(f"{name}: shape {shape}, this network has {own_shape}")
    network.load_state_dict({name: torch.from_numpy(np.array(values)) for name, values in arrays.items()})


def _validate(encoder: FeatureEncoder, architecture: Architecture, task_head: TaskHead) -> None:
    projection, hidden = architecture.projection, architecture.hidden
    if projection is not None and (architecture.cell != "lstm" or not 0 < projection < hidden):
        raise ValueError(f"projection {projection}: only for lstm, at least 1 and smaller than hidden ({hidden})")
    if architecture.activation != "tanh" and architecture.cell not in {"lstm", "gru"}:
        raise ValueError(f"activation {architecture.activation}: only for lstm and gru")
    if isinstance(task_head, Classes):
        if task_head.count < 1:
            raise ValueError(f"classes: {task_head.count} should be 1 or more")
    elif not task_head.columns or not all(0 <= column < len(encoder.numbers) for column in task_head.columns):
        raise ValueError(
            f"columns {task_head.columns}: should be indices of the encoder's {len(encoder.numbers)} numbers"
        )


def _output_width(task_head: TaskHead) -> int:
    if isinstance(task_head, Classes):
        return task_head.count
    return len(task_head.columns) * (task_head.horizon if isinstance(task_head, Forecast) else 2)


def _make_layer(width: int, architecture: Architecture) -> _RecurrentLayer | NamedCellLayer:
    if architecture.cell in NAMED_LAYERS:
        return NAMED_LAYERS[architecture.cell](width, architecture.hidden)
    return _RecurrentLayer(width, architecture)


def _layer_spec(layer: _RecurrentLayer | NamedCellLayer) -> Layer:
    if isinstance(layer, NamedCellLayer):
        return layer.to_layer()
    rnn, activation = layer.rnn, layer.architecture.activation
    weights = (_to_array(rnn.weight_ih_l0), _to_array(rnn.weight_hh_l0))
    bias = np.concatenate([_to_array(rnn.bias_ih_l0), _to_array(rnn.bias_hh_l0)])
    values = [_to_array(getattr(layer, f"initial_{letter}")) for letter in layer.state_widths]
    initial = [part if part.any() else None for part in values]
    if layer.architecture.cell == "gru":
        return Gru(*weights, bias, activation, initial[0])
    projection = _to_array(rnn.weight_hr_l0) if layer.architecture.projection else None
    return Lstm(*weights, bias, initial[0], initial[1], projection, activation)


def _head_spec(task_head: TaskHead, weight: Any, bias: Any, calibration: Calibration | None) -> HeadSpec:
    if isinstance(task_head, Classes):
        return DenseHead(weight, bias, "sigmoid" if task_head.count == 1 else "softmax")
    if isinstance(task_head, Forecast):
        return ForecastHead(weight, bias, task_head.columns, task_head.horizon, task_head.residual)
    if calibration is None:
        raise ValueError("an anomaly score needs a calibration")
    return AnomalyHead(weight, bias, task_head.columns, calibration, task_head.residual)


def _head_signature(head: HeadSpec) -> tuple[Any, ...]:
    """What must be equal for the weights of one head to mean the same in another."""
    names = ("activation", "columns", "horizon", "residual")
    return (type(head).__name__, *(getattr(head, name) for name in names if hasattr(head, name)))


def _to_array(tensor: Tensor) -> Any:
    return tensor.detach().cpu().numpy().copy()
