"""Builds an ONNX graph node by node. The order of nodes and weights is the order in which they are added.

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
IR_VERSION = 8
VECTOR_COLUMNS = 16  # a multiple of every vector width that onnxruntime uses for float32


@dataclass(slots=True)
class GraphBuilder:
    """The nodes and weights added so far. A node with one output has the name of its output."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Adds a node with one output; returns the output's name."""
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def multi_output_node(
        self, operator: str, inputs: Sequence[str], outputs: list[str], name: str, **attributes: Any
    ) -> None:
        """Adds a node with several outputs; an output named "" is left out."""
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=name, **attributes))

    def weight(self, name: str, values: NDArray[Any]) -> str:
        """Adds an initializer of the values' shape and type; returns its name."""
        self.weights.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
        return name

    def scalar(self, name: str, value: float) -> str:
        """Adds a float32 initializer without axes; returns its name."""
        return self.weight(name, np.array(value, np.float32))

    def log(self, positive: str, one: str, width: int, prefix: str = "") -> str:
        """Adds the logs of a tensor [N, width], in a multiple of 16 columns; returns their name.

        On fewer columns the bits of a row depend on the rows beside it. `one` is the name of a scalar.
        """
        spare = -width % VECTOR_COLUMNS
        if spare:
            pads = self.weight(f"{prefix}spare", np.array([0, 0, 0, spare], np.int64))
            positive = self.node("Pad", [positive, pads, one], f"{prefix}padded")
        logs = self.node("Log", [positive], f"{prefix}log")
        if not spare:
            return logs
        bounds = [
            self.weight(f"{prefix}keep_{name}", np.array([value], np.int64))
            for name, value in (("from", 0), ("to", width), ("axis", 1))
        ]
        return self.node("Slice", [logs, *bounds], f"{prefix}log_kept")

    @staticmethod
    def value_info(name: str, element_type: int, columns: int | None = None) -> onnx.ValueInfoProto:
        """Declares an input or output of the graph, [N] or [N, columns]."""
        return helper.make_tensor_value_info(name, element_type, ["N"] if columns is None else ["N", columns])
