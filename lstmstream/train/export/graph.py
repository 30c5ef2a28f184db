"""Nodes and weights of an ONNX graph as they are added, in an order that depends on the network alone.

Knows nothing of networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

OPSET = 18
IR = 8
VECTOR = 16  # columns; a multiple of every vector width onnxruntime uses for float32


@dataclass(slots=True)
class Graph:
    """Nodes and weights so far. Every tensor is named after the node that makes it."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Adds a node with one output; returns the output's name."""
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def several(self, operator: str, inputs: Sequence[str], outputs: list[str], name: str, **attributes: Any) -> None:
        """Adds a node with several outputs; an output named "" is not wanted."""
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=name, **attributes))

    def weight(self, name: str, values: NDArray[Any]) -> str:
        """Adds an initializer; returns its name."""
        self.weights.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
        return name

    def scalar(self, name: str, value: float) -> str:
        """Adds a float32 initializer without axes; returns its name."""
        return self.weight(name, np.array(value, np.float32))

    @staticmethod
    def declare(name: str, element: int, columns: int | None = None) -> onnx.ValueInfoProto:
        """An input or output [N] or [N, columns]."""
        return helper.make_tensor_value_info(name, element, ["N"] if columns is None else ["N", columns])
