"""The equations of torch.nn.LSTM and torch.nn.GRU in numpy and float64, from a state dict's own tensors.

The step model is compared with them. They share no code with the conversion, so that a wrong order of gates, a lost
bias or a wrong projection shows.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Tensors = Mapping[str, NDArray[np.float32]]


def recurrent_layers(cell: str, tensors: Tensors, prefix: str, layers: int, x: Doubles) -> Doubles:
    """The outputs [B, T, H] of the last of `layers` layers of an "lstm" or "gru" for x [B, T, I], from zero states.

    `tensors` are named as torch names them, after `prefix`; a missing bias counts as zeros (bias=False).
    """
    for layer in range(layers):
        named = {
            kind: np.asarray(tensors[f"{prefix}{kind}_l{layer}"], np.float64)
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
            if f"{prefix}{kind}_l{layer}" in tensors
        }
        x = _lstm(named, x) if cell == "lstm" else _gru(named, x)
    return x


def _lstm(tensors: Mapping[str, Doubles], x: Doubles) -> Doubles:
    """[B, T, I] to [B, T, H]; with `weight_hr` [P, H] (torch's proj_size) to [B, T, P]."""
    projection = tensors.get("weight_hr")
    h = np.zeros((len(x), tensors["weight_hh"].shape[1]))
    c = np.zeros((len(x), tensors["weight_hh"].shape[0] // 4))
    outputs = []
    for event in range(x.shape[1]):
        i, f, g, o = np.split(_linear(tensors, "ih", x[:, event]) + _linear(tensors, "hh", h), 4, axis=1)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
        h = h if projection is None else h @ projection.T
        outputs.append(h)
    return np.stack(outputs, axis=1)


def _gru(tensors: Mapping[str, Doubles], x: Doubles) -> Doubles:
    """[B, T, I] to [B, T, H]."""
    h = np.zeros((len(x), tensors["weight_hh"].shape[1]))
    outputs = []
    for event in range(x.shape[1]):
        r_x, z_x, n_x = np.split(_linear(tensors, "ih", x[:, event]), 3, axis=1)
        r_h, z_h, n_h = np.split(_linear(tensors, "hh", h), 3, axis=1)
        z = _sigmoid(z_x + z_h)
        h = (1 - z) * np.tanh(n_x + _sigmoid(r_x + r_h) * n_h) + z * h
        outputs.append(h)
    return np.stack(outputs, axis=1)


def _linear(tensors: Mapping[str, Doubles], which: str, values: Doubles) -> Doubles:
    """The weights and bias "ih" or "hh" applied to values [B, I]."""
    product = values @ tensors[f"weight_{which}"].T
    bias = tensors.get(f"bias_{which}")
    return product if bias is None else product + bias


def activate(name: str, logits: Doubles) -> Doubles:
    """The head's activation: "sigmoid", "softmax" over the last axis, or "none"."""
    if name == "sigmoid":
        return _sigmoid(logits)
    if name == "softmax":
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))
    return logits


def _sigmoid(z: Doubles) -> Doubles:
    return np.asarray(0.5 * (1 + np.tanh(z / 2)))  # cannot overflow
