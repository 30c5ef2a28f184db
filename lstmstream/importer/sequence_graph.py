"""Writes whole-sequence ONNX graphs layer by layer, as an exporter would write a chain of layers.

Gates and biases are in ONNX's order; no framework is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[np.float32]
_OPSET, _IR = 17, 8
# name -> operators on tensors, each with its attributes
ACTIVATIONS: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "linear": (),
    "relu": (("Relu", {}),),
    "sigmoid": (("Sigmoid", {}),),
    "tanh": (("Tanh", {}),),
    "softmax": (("Softmax", {"axis": -1}),),
    "softplus": (("Softplus", {}),),
    "softsign": (("Softsign", {}),),
    "elu": (("Elu", {"alpha": 1.0}),),
    "selu": (("Selu", {}),),
    "exponential": (("Exp", {}),),
    "hard_sigmoid": (("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),),
    "leaky_relu": (("LeakyRelu", {"alpha": 0.2}),),
}
# name -> operator inside LSTM, GRU and RNN, alpha, beta
RECURRENT_ACTIVATIONS: dict[str, tuple[str, float | None, float | None]] = {
    "sigmoid": ("Sigmoid", None, None),
    "tanh": ("Tanh", None, None),
    "relu": ("Relu", None, None),
    "linear": ("Affine", 1.0, 0.0),
    "hard_sigmoid": ("HardSigmoid", 1 / 6, 0.5),
    "softsign": ("Softsign", None, None),
}


class SequenceGraph:
    """A graph under construction; its current tensor is [B, T, F], or [B, H] after the time axis has been removed."""

    def __init__(self, features: int, length: int | None) -> None:
        self.width = features
        self.sequence = True  # whether the current tensor has a time axis
        self._features = features
        self._length = length
        self._current = "input"
        self._nodes: list[Any] = []
        self._weights: list[Any] = []

    def dense(self, kernel: Array, bias: Array | None) -> None:
        """Appends a dense layer: kernel [I, O], bias [O]."""
        self._node("MatMul", [self._current, self._weight("kernel", kernel)])
        self.width = kernel.shape[1]
        if bias is not None:
            self._node("Add", [self._current, self._weight("bias", bias)])

    def activate(self, name: str) -> None:
        """Appends an activation, by its name in ACTIVATIONS."""
        for operator, attributes in ACTIVATIONS[name]:
            self._node(operator, [self._current], **attributes)

    def affine(self, factor: Array | np.float32, offset: Array | np.float32, *, less: Array | None = None) -> None:
        """Appends (v - less) * factor + offset for every feature."""
        if less is not None:
            self._node("Sub", [self._current, self._weight("less", less)])
        self._node("Mul", [self._current, self._weight("factor", factor)])
        self._node("Add", [self._current, self._weight("offset", offset)])

    def layer_norm(self, gamma: Array, beta: Array, epsilon: float) -> None:
        """Appends a layer normalisation over the features of one event: gamma [I], beta [I]."""
        inputs = [self._current, self._weight("gamma", gamma), self._weight("beta", beta)]
        self._node("LayerNormalization", inputs, axis=-1, epsilon=epsilon)

    def recurrent(
        self,
        operator: str,
        kernel: Array,
        recurrent: Array,
        bias: Array,
        activations: Sequence[str],
        *,
        linear_before_reset: int | None,
        whole: bool,
    ) -> None:
        """Appends LSTM, GRU or RNN: kernel [G*H, I], recurrent [G*H, H], bias [2*G*H].

        With `whole` it returns the output of every event, else that of the last.
        """
        hidden = recurrent.shape[1]
        names = [*activations, activations[-1]] if operator == "LSTM" else list(activations)
        known = [RECURRENT_ACTIVATIONS[name] for name in names]
        attributes: dict[str, Any] = {"hidden_size": hidden, "activations": [one[0] for one in known]}
        if any(one[1] is not None for one in known):  # ONNX's lists skip activations without parameters
            attributes["activation_alpha"] = [one[1] for one in known if one[1] is not None]
            attributes["activation_beta"] = [one[2] for one in known if one[2] is not None]
        if linear_before_reset is not None:
            attributes["linear_before_reset"] = linear_before_reset
        self._node("Transpose", [self._current], perm=[1, 0, 2])
        weights = [
            self._weight(name, values[np.newaxis]) for name, values in (("W", kernel), ("R", recurrent), ("B", bias))
        ]
        name = f"{operator.lower()}_{len(self._nodes)}"
        outputs = [f"{name}_y", f"{name}_h"]
        self._nodes.append(helper.make_node(operator, [self._current, *weights], outputs, name=name, **attributes))
        if whole:
            self._current = outputs[0]
            axis = self._weight("direction", np.array([1]))
            self._node("Squeeze", [self._current, axis])
            self._node("Transpose", [self._current], perm=[1, 0, 2])
        else:
            self._current = outputs[1]
            self._node("Squeeze", [self._current, self._weight("direction", np.array([0]))])
        self.sequence, self.width = whole, hidden

    def to_bytes(self) -> bytes:
        """The serialised ONNX model, with the current tensor as its output."""
        self._nodes.append(helper.make_node("Identity", [self._current], ["output"], name="output"))
        dims = ["batch", *([self._length or "time"] if self.sequence else []), self.width]
        graph = helper.make_graph(
            self._nodes,
            "sequence",
            [
                helper.make_tensor_value_info(
                    "input", TensorProto.FLOAT, ["batch", self._length or "time", self._features]
                )
            ],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, dims)],
            self._weights,
        )
        model = helper.make_model(graph, ir_version=_IR, opset_imports=[helper.make_opsetid("", _OPSET)])
        return bytes(model.SerializeToString(deterministic=True))

    def _node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> None:
        name = f"{operator.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        self._current = name

    def _weight(self, role: str, values: Any) -> str:
        name = f"{role}_{len(self._nodes)}_{len(self._weights)}"
        values = np.asarray(values)
        kind = values if values.dtype == np.int64 else values.astype(np.float32)
        self._weights.append(numpy_helper.from_array(np.ascontiguousarray(kind).reshape(kind.shape), name))
        return name
