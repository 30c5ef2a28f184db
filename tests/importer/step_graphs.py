"""Graphs with their states as inputs and outputs, as frameworks and people write them, and the original's answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from tests.importer.source_files import draw

F, H = 3, 4
Dims = Sequence[int | str | None]


def value(name: str, dims: Dims, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, dims)


def save(
    path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: dict[str, Any], opset: int = 17
) -> Path:
    tensors = [numpy_helper.from_array(np.asarray(values), name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "step", inputs, outputs, tensors)
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def cell(
    path: Path,
    batch: int | str | None = "batch",
    *,
    names: tuple[str, str, str, str] = ("x", "h", "y", "h_next"),
    kind: int = TensorProto.FLOAT,
    opset: int = 17,
    default: Any = None,
    form: str = "plain",
) -> Path:
    """A tanh cell of small operators; `form` puts it at the top level, into an If, a Scan or a Loop."""
    x, h, y, after = names
    numpy_type = helper.tensor_dtype_to_np_dtype(kind)
    weights: dict[str, Any] = {
        "W": draw(F, H).astype(numpy_type), "R": draw(H, H, seed=1).astype(numpy_type),
        "O": draw(H, 2, seed=2).astype(numpy_type),
    }  # fmt: skip
    inner = [
        helper.make_node("MatMul", [x, "W"], ["from_x"]),
        helper.make_node("MatMul", [h, "R"], ["from_h"]),
        helper.make_node("Add", ["from_x", "from_h"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["new"]),
    ]
    body = helper.make_graph(inner, "body", [], [value("new", [None, H], kind)])
    if form == "plain":
        nodes = [*inner, helper.make_node("Identity", ["new"], [after])]
    elif form == "if":
        weights["yes"] = np.array(True)
        nodes = [helper.make_node("If", ["yes"], [after], then_branch=body, else_branch=body)]
    elif form == "scan":
        inner[1] = helper.make_node("MatMul", ["carried", "R"], ["from_h"])
        inner[0] = helper.make_node("MatMul", ["event", "W"], ["from_x"])
        scan = helper.make_graph(
            inner, "body", [value("carried", [None, H], kind), value("event", [None, F], kind)],
            [value("new", [None, H], kind)],
        )  # fmt: skip
        weights["front"] = np.array([0])
        nodes = [
            helper.make_node("Unsqueeze", [x, "front"], ["sequence"]),
            helper.make_node("Scan", [h, "sequence"], [after], body=scan, num_scan_inputs=1),
        ]
    else:
        inner[1] = helper.make_node("MatMul", ["carried", "R"], ["from_h"])
        inner.append(helper.make_node("Identity", ["go"], ["go_on"]))
        loop = helper.make_graph(
            inner, "body",
            [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("carried", [None, H], kind)],
            [value("go_on", [], TensorProto.BOOL), value("new", [None, H], kind)],
        )  # fmt: skip
        weights |= {"once": np.array(1), "yes": np.array(True)}
        nodes = [helper.make_node("Loop", ["once", "yes", h], [after], body=loop)]
    nodes.append(helper.make_node("MatMul", [after, "O"], [y]))
    if default is not None:
        weights[h] = default
    return save(
        path, nodes, [value(x, [batch, F], kind), value(h, [batch, H], kind)],
        [value(y, [batch, 2], kind), value(after, [batch, H], kind)], weights, opset,
    )  # fmt: skip


def original(
    path: Path, x: np.ndarray, states: dict[str, str], *, output: str, first: dict[str, np.ndarray] | None = None,
    fixed: dict[str, np.ndarray] | None = None, data: str = "x",
) -> np.ndarray:  # fmt: skip
    """The answers [B, T, P] of the file to x [B, T, F], one key at a time, carrying its own states."""
    session = ort.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    inputs = [*session.get_inputs(), *session.get_overridable_initializers()]
    shapes = {one.name: [n if isinstance(n, int) else 1 for n in one.shape] for one in inputs}
    types = {one.name: one.type for one in inputs}
    of = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
    found = []
    for key in x:
        now: dict[str, Any] = {name: np.zeros(shapes[name], of.get(types[name], np.int64)) for name in states}
        now |= first or {}
        answers = []
        for event in key:
            whole = np.broadcast_to(event, (int(np.prod(shapes[data])) // len(event), len(event)))
            feed = {data: whole.reshape(shapes[data]).astype(of[types[data]]), **now, **(fixed or {})}
            out = dict(zip([one.name for one in session.get_outputs()], session.run(None, feed), strict=True))
            answers.append(out[output].reshape(np.prod(out[output].shape), -1)[: out[output].shape[-1]].reshape(-1))
            now = {name: out[after] for name, after in states.items()}
        found.append(np.stack(answers))
    return np.stack(found)
