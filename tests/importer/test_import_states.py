"""Step models whose states are inputs and outputs: paired, freed of their batch, and equal to the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lstmstream.errors import CannotServe
from lstmstream.importer.command import import_model
from lstmstream.model import load_model
from tests.importer import source_files, step_graphs
from tests.importer.source_files import draw, refusal
from tests.importer.step_graphs import F, H, cell, original, save, value

pytestmark = pytest.mark.torch
EVENTS = 200


def check(file: Path, carried: dict[str, str], *, output: str = "y", width: int = F, **options: Any) -> Any:
    """Imports the file and compares it with the original over some hundred events; returns the card."""
    kept = {name: options.pop(name) for name in ("first", "fixed", "data") if name in options}
    out = file.parent / "model.onnx"
    assert import_model(file, out=out, **options) == 0
    x = draw(3, EVENTS, width, seed=7)
    ours, _ = source_files.serve(out, x)
    theirs = original(file, x, carried, output=output, **kept)
    assert theirs.std() > 1e-4
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    return load_model(out).card


NAMES = [
    ("h", "h_next"), ("state", "stateN"), ("h0", "hn"), ("h_in", "h_out"), ("hidden.1", "hidden"), ("prev", "next"),
    ("past", "present"), ("lstm/rnn_state", "lstm/rnn_state_out"), ("cache_0", "new_cache_0"), ("h_prev", "h_t"),
    ("initial_hidden", "final_hidden"), ("HiddenStateIn", "HiddenStateOut"), ("args_1", "state_1"),
    ("serving_default_state:0", "StatefulPartitionedCall:1"), ("onnx::GRU_1", "12"), ("state", "score"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), NAMES)
def test_one_state_is_found_whatever_its_name(tmp_path: Path, before: str, after: str) -> None:
    for batch in ("batch", 1):
        file = cell(tmp_path / "a.onnx", batch, names=("x", before, "y", after))
        card = check(file, {before: after})
        assert [(part.name, part.shape) for part in card.state.parts] == [(before, (H,))]


def contributed(path: Path, operator: str, domain: str = "com.microsoft") -> Path:
    """A step around one operator of ONNX Runtime's own domain."""
    if operator == "CausalConvWithState":
        weights = {"kernel": draw(F, 1, 3), "axis": np.array([2]), "O": draw(F, 2, seed=2)}
        nodes = [
            helper.make_node("Unsqueeze", ["x", "axis"], ["channels"]),
            helper.make_node(operator, ["channels", "kernel", "", "past"], ["all", "present"], domain=domain),
            helper.make_node("Squeeze", ["all", "axis"], ["flat"]),
        ]
        shape: list[Any] = ["batch", F, 2]
    else:
        weights = {"W": draw(F, 3 * H), "axis": np.array([1]), "O": draw(H, 2, seed=2)}
        heads = {"q_num_heads": 1, "kv_num_heads": 1, "update_rule": "linear"}
        nodes = [
            helper.make_node("MatMul", ["x", "W"], ["flat_qkv"]),
            helper.make_node("Unsqueeze", ["flat_qkv", "axis"], ["qkv"]),
            helper.make_node("Split", ["qkv"], ["q", "k", "v"], axis=2, num_outputs=3),
            helper.make_node(operator, ["q", "k", "v", "past"], ["all", "present"], domain=domain, **heads),
            helper.make_node("Squeeze", ["all", "axis"], ["flat"]),
        ]
        shape = ["batch", 1, H, H]
    nodes.append(helper.make_node("MatMul", ["flat", "O"], ["y"]))
    tensors = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    graph = helper.make_graph(
        nodes, "step", [value("x", ["batch", F]), value("past", shape)],
        [value("y", ["batch", 2]), value("present", shape)], tensors,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(domain, 1)]
    path.write_bytes(helper.make_model(graph, ir_version=8, opset_imports=opsets).SerializeToString())
    return path


@pytest.mark.parametrize("operator", ["CausalConvWithState", "LinearAttention"])
def test_recurrences_of_onnx_runtimes_own_domain_are_taken(tmp_path: Path, operator: str) -> None:
    card = check(contributed(tmp_path / "a.onnx", operator), {"past": "present"})
    assert [part.name for part in card.state.parts] == ["past"]


@pytest.mark.parametrize(
    ("operator", "domain", "message"),
    [
        ("QuickGelu", "com.microsoft", r"operator 'QuickGelu' of domain 'com.microsoft' is not accepted, only Causal"),
        ("LinearAttention", "com.example", r"('LinearAttention'): operator domain 'com.example' is not accepted"),
    ],
)
def test_other_operators_of_other_domains_are_named(tmp_path: Path, operator: str, domain: str, message: str) -> None:
    assert message in refusal(contributed(tmp_path / "a.onnx", operator, domain))


@pytest.mark.parametrize("form", ["plain", "if", "scan", "loop"])
@pytest.mark.parametrize("batch", ["batch", 1, 8])
def test_the_state_is_kept_wherever_it_is_computed(tmp_path: Path, form: str, batch: Any) -> None:
    check(cell(tmp_path / "a.onnx", batch, form=form), {"h": "h_next"})


@pytest.mark.parametrize("opset", [9, 11, 13, 15, 18, 21])
def test_every_opset_is_taken(tmp_path: Path, opset: int) -> None:
    for batch in ("batch", 1):
        check(cell(tmp_path / "a.onnx", batch, opset=opset), {"h": "h_next"})


@pytest.mark.parametrize("kind", [TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_other_precisions_are_computed_in_float32(
    tmp_path: Path, kind: int, capsys: pytest.CaptureFixture[str]
) -> None:
    file = cell(tmp_path / "a.onnx", kind=kind)
    assert import_model(file, out=tmp_path / "m.onnx") == 0
    assert f"the file computes in float{'64' if kind == TensorProto.DOUBLE else '16'}" in capsys.readouterr().out
    x = draw(2, 20, F)
    ours, _ = source_files.serve(tmp_path / "m.onnx", x)
    theirs = original(file, x, {"h": "h_next"}, output="y")
    np.testing.assert_allclose(ours, theirs, atol=1e-5 if kind == TensorProto.DOUBLE else 1e-2)


def test_an_optional_state_starts_with_its_default(tmp_path: Path) -> None:
    row = draw(1, H, seed=9)
    card = check(cell(tmp_path / "a.onnx", 1, default=row), {"h": "h_next"}, first={"h": row})
    assert card.state.initial == pytest.approx(row[0].tolist())


def test_the_user_says_which_output_is_which_state(tmp_path: Path) -> None:
    def two(path: Path, *names: str) -> Path:
        """Two states of one shape that do different things."""
        nodes = [
            helper.make_node("Add", ["x", names[0]], ["s"]),
            helper.make_node("Tanh", ["s"], [names[2]]),
            helper.make_node("Mul", [names[1], "half"], ["d"]),
            helper.make_node("Add", ["d", names[2]], [names[3]]),
            helper.make_node("Sub", [names[2], names[3]], ["y"]),
        ]
        inputs = [value(name, ["n", F]) for name in ("x", *names[:2])]
        outputs = [value(name, ["n", F]) for name in ("y", *names[2:])]
        return save(path, nodes, inputs, outputs, {"half": np.float32(0.5)})

    file = two(tmp_path / "a.onnx", "a", "b", "p", "q")
    text = refusal(file)
    assert "which output is the next value of 'a' is ambiguous ('y', 'p', 'q')" in text
    assert "--state a=OUTPUT" in text
    check(file, {"a": "p", "b": "q"}, states=["a=p", "b=q"])
    assert "no such output" in refusal(file, states=["a=none"])
    assert "no such input" in refusal(file, states=["none=p"])
    assert "the next value of two states" in refusal(file, states=["a=p", "b=p"])
    assert "should be NAME=VALUE" in refusal(file, states=["a"])
    assert "--state is for --mode step" in refusal(file, states=["a=p"], mode="window", window=3)
    for names in (
        ("h_1", "h_2", "h_1_out", "h_2_out"), ("cache.0", "cache.1", "new.cache.0", "new.cache.1"),
        ("h", "c", "hn", "cn"), ("past_0_key", "past_0_value", "present_0_key", "present_0_value"),
        ("enc_state", "dec_state", "enc_state_out", "dec_state_out"), ("state", "state_1", "stateN", "stateN_1"),
        ("prev_mean", "prev_var", "next_var", "next_mean"),
    ):  # fmt: skip
        swapped = names[0].split("_")[-1] != names[2].split("_")[-1] and names[0] == "prev_mean"
        pairs = {names[0]: names[3], names[1]: names[2]} if swapped else {names[0]: names[2], names[1]: names[3]}
        import_model(two(tmp_path / "b.onnx", *names), out=tmp_path / "m.onnx")
        listed = load_model(tmp_path / "m.onnx").card.training["import"]["already_a_step"]
        assert listed == [f"'{one}' <- '{other}'" for one, other in pairs.items()]


# --- inputs that are fixed -------------------------------------------------------------------------------------------


def rated(path: Path, batch: Any = "batch", *, dims: list[int] | None = None, kind: int = TensorProto.INT64) -> Path:
    """A step [batch, 576] with a state [2, batch, H] and a rate, which an If asks for."""
    numpy_type = helper.tensor_dtype_to_np_dtype(kind)

    def branch(number: int) -> Any:
        nodes = [
            helper.make_node("Constant", [], ["axis"], value_ints=[1]),
            helper.make_node("MatMul", ["input", f"W{number}"], ["wide"]),
            helper.make_node("ReduceMean", ["wide"], ["mean"], axes=[1], keepdims=1),
            helper.make_node("Sub", ["wide", "mean"], ["taken"]),
        ]
        return helper.make_graph(nodes, f"branch{number}", [], [value("taken", [None, H])])

    nodes = [
        helper.make_node("Equal", ["sr", "wanted"], ["is16"]),
        helper.make_node("Squeeze" if dims else "Identity", ["is16"], ["yes"]),
        helper.make_node("If", ["yes"], ["front"], then_branch=branch(0), else_branch=branch(1)),
        helper.make_node("Unsqueeze", ["front", "zero"], ["both"]),
        helper.make_node("Mul", ["state", "decay"], ["kept"]),
        helper.make_node("Add", ["both", "kept"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["stateN"]),
        helper.make_node("ReduceMean", ["stateN"], ["mean"], axes=[0, 2], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "last"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["output"]),
    ]  # fmt: skip
    weights = {
        "wanted": np.full(dims or [], 16000, numpy_type), "W0": draw(576, H) / 10, "W1": draw(576, H, seed=3) / 10,
        "zero": np.array([0]), "last": np.array([1]), "decay": draw(2, 1, H, seed=4),
    }  # fmt: skip
    inputs = [value("input", [batch, 576]), value("state", [2, batch, H]), value("sr", dims or [], kind)]
    return save(path, nodes, inputs, [value("output", [batch, 1]), value("stateN", [2, batch, H])], weights)


@pytest.mark.parametrize(
    ("batch", "rate", "kind", "dims"),
    [("batch", 16000, TensorProto.INT64, None), (1, 16000, TensorProto.INT64, [1]),
     (None, 8000, TensorProto.INT32, None),
     (1, 8000, TensorProto.FLOAT, None), ("batch", 8000, TensorProto.FLOAT, [1])],
)  # fmt: skip
def test_a_rate_is_fixed_and_the_event_is_one_array(
    tmp_path: Path, batch: Any, rate: int, kind: int, dims: Any
) -> None:
    file = rated(tmp_path / "a.onnx", batch, kind=kind, dims=dims)
    fixed = {"sr": np.full(dims or [], rate, helper.tensor_dtype_to_np_dtype(kind))}
    card = check(
        file, {"state": "stateN"}, output="output", width=576, data="input", fixed=fixed,
        constants=[f"sr={rate}"], features="samples[576]",
    )  # fmt: skip
    assert [(one.name, one.size) for one in card.features] == [("samples", 576)]
    assert [(part.name, part.shape) for part in card.state.parts] == [("state", (2, H))]
    assert "If" not in {node.op_type for node in step_graphs.onnx.load(tmp_path / "model.onnx").graph.node}


def test_an_input_that_is_not_fixed_is_named_with_the_remedy(tmp_path: Path) -> None:
    file = rated(tmp_path / "a.onnx")
    assert "the input 'sr' (int64, a scalar) is neither the event nor a state" in refusal(file)
    assert "--constant sr=VALUE fixes it" in refusal(file)
    for wrong in ("1.5", "many", "1e30", "nan", str(2**64)):
        assert "which takes a whole number" in refusal(file, constants=[f"sr={wrong}"])
    assert "no such input; it has 'input', 'state', 'sr'" in refusal(file, constants=["rate=1"])
    assert "'sr' is given twice" in refusal(file, constants=["sr=1", "sr=2"])
    assert "should be NAME=VALUE" in refusal(file, constants=["sr"])


def test_a_constant_for_an_input_without_effect_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def more(model: Any) -> None:
        model.graph.input.append(value("sr", [], TensorProto.INT64))

    file = source_files.edited(cell(tmp_path / "a.onnx"), more)
    check(file, {"h": "h_next"}, fixed={"sr": np.array(16000)}, constants=["sr=16000"])
    assert "the input 'sr' is fixed to 16000 (no output depends on it)" in capsys.readouterr().out


# --- shapes ----------------------------------------------------------------------------------------------------------


def test_a_cache_that_grows_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Unsqueeze", ["x", "one"], ["event"]),
        helper.make_node("Concat", ["past", "event"], ["present"], axis=1),
        helper.make_node("ReduceMean", ["present"], ["y"], axes=[1], keepdims=0),
    ]
    file = save(
        tmp_path / "a.onnx", nodes, [value("x", ["n", F]), value("past", ["n", "p", F])],
        [value("y", ["n", F]), value("present", ["n", "q", F])], {"one": np.array([1])},
    )  # fmt: skip
    assert "a state that changes its size (a cache that grows with each event)" in refusal(file)


@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_ring_buffers_and_counters_are_states(tmp_path: Path, batch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The last four events as a buffer [batch, F, 4], and how many there were, a whole number."""
    nodes = [
        helper.make_node("Unsqueeze", ["x", "two"], ["event"]),
        helper.make_node("Concat", ["buf_in", "event"], ["longer"], axis=2),
        helper.make_node("Slice", ["longer", "one", "end", "two"], ["buf_out"]),
        helper.make_node("Add", ["count_in", "one"], ["count_out"]),
        helper.make_node("Cast", ["count_out"], ["seen"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["buf_out", "two"], ["total"], keepdims=0),
        helper.make_node("Div", ["total", "seen"], ["y"]),
    ]
    weights = {"one": np.array([1]), "two": np.array([2]), "end": np.array([99])}
    file = save(
        tmp_path / "a.onnx", nodes,
        [value("x", [batch, F]), value("buf_in", [batch, F, 4]), value("count_in", [batch, 1], TensorProto.INT64)],
        [value("y", [batch, F]), value("buf_out", [batch, F, 4]), value("count_out", [batch, 1], TensorProto.INT64)],
        weights,
    )  # fmt: skip
    card = check(file, {"buf_in": "buf_out", "count_in": "count_out"})
    assert [part.shape for part in card.state.parts] == [(F, 4), (1,)]
    assert "exact up to 16,777,216" in capsys.readouterr().out


@pytest.mark.parametrize(
    "dims", [([1, 1, F], [1, 1, H]), ([F], [H]), ([1, F, 1], [H, 1]), ([1, 1, 1, F], [2, 1, H]), ([4, F], [4, H])]
)
def test_any_place_of_the_batch_is_taken(tmp_path: Path, dims: tuple[list[int], list[int]]) -> None:
    """Fixed shapes whose values are mixed with all others: only computing key by key is right."""
    data, state = dims
    width, size = int(np.prod(data)), int(np.prod(state))
    nodes = [
        helper.make_node("Reshape", ["x", "x_flat"], ["row"]),
        helper.make_node("Reshape", ["s_in", "s_flat"], ["state_row"]),
        helper.make_node("MatMul", ["row", "W"], ["from_x"]),
        helper.make_node("MatMul", ["state_row", "R"], ["from_s"]),
        helper.make_node("Add", ["from_x", "from_s"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["next_row"]),
        helper.make_node("Reshape", ["next_row", "s_dims"], ["s_out"]),
        helper.make_node("ReduceSum", ["next_row"], ["y"], keepdims=1),
    ]
    weights = {
        "x_flat": np.array([1, width]), "s_flat": np.array([1, size]), "s_dims": np.array(state),
        "W": draw(width, size), "R": draw(size, size, seed=1) / size,
    }  # fmt: skip
    file = save(tmp_path / "a.onnx", nodes, [value("x", data), value("s_in", state)],
                [value("y", [1, 1]), value("s_out", state)], weights)  # fmt: skip
    assert check(file, {"s_in": "s_out"}, width=width).state.size == size


def test_a_step_that_mixes_the_rows_of_its_batch_is_computed_key_by_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a dynamic batch the original means a batch of one; what it computes over a batch is not the model."""
    nodes = [
        helper.make_node("Add", ["x", "h"], ["sum"]),
        helper.make_node("ReduceMax", ["sum"], ["top"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["sum", "top"], ["less"]),
        helper.make_node("Add", ["less", "x"], ["both"]),
        helper.make_node("Tanh", ["both"], ["h_out"]),
        helper.make_node("Identity", ["h_out"], ["y"]),
    ]
    file = save(tmp_path / "a.onnx", nodes, [value("x", ["n", F]), value("h", ["n", F])],
                [value("y", ["n", F]), value("h_out", ["n", F])], {})  # fmt: skip
    check(file, {"h": "h_out"}, output="y")
    assert "keys are computed one by one" in capsys.readouterr().out


def test_an_event_of_unknown_size_is_refused(tmp_path: Path) -> None:
    def open_end(model: Any) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[1].ClearField("dim_value")

    text = refusal(source_files.edited(cell(tmp_path / "a.onnx"), open_end))
    assert "the input 'x' does not state how many numbers an event has" in text


def test_an_index_of_a_table_is_refused_with_the_remedy(tmp_path: Path) -> None:
    table = numpy_helper.from_array(np.ones((50, 4), np.float32), "table")
    nodes = [
        helper.make_node("Gather", ["table", "token"], ["embedded"]),
        helper.make_node("Add", ["embedded", "h"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["h_out"]),
        helper.make_node("ReduceSum", ["h_out", "axes"], ["y"]),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g",
        [info("token", TensorProto.INT64, ["N"]), info("h", TensorProto.FLOAT, ["N", 4])],
        [info("y", TensorProto.FLOAT, ["N", 1]), info("h_out", TensorProto.FLOAT, ["N", 4])],
        [table, numpy_helper.from_array(np.array([1]), "axes")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(
        CannotServe, match=r"'token' is the index of a table .* export the model starting after its embed"
    ):
        import_model(tmp_path / "m.onnx", out=tmp_path / "out.onnx")
