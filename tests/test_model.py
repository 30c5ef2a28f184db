"""What a model file may be: each rule refused by name, whoever computed the fingerprint; damage never escapes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import orjson
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from lstmstream.errors import CannotServe
from lstmstream.model import (
    CARD_KEY,
    Card,
    Feature,
    StatePart,
    StateSpec,
    describe,
    fingerprint,
    inspect_json,
    load_model,
    onnx_proto,
    with_all_outputs,
    write_model,
)
from lstmstream.train.export import build
from tests.models import MAGIC, card_of, poisoned_model, random_model, random_network

NETWORK: dict[str, Any] = {"numbers": ("amount", "balance"), "categories": {"shop": ("a", "b")}, "clock": True}
Edit = Callable[[onnx.ModelProto], object]


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return random_model(tmp_path, **NETWORK)


def problems(path: Path | str, **options: Any) -> str:
    with pytest.raises(CannotServe) as caught:
        load_model(path, **options)
    assert all("\n" not in problem for problem in caught.value.problems)
    return str(caught.value)


def forged(tmp_path: Path, edit: Edit, change_card: Callable[[dict[str, Any]], object] | None = None) -> Path:
    """A file changed by an attacker who can compute fingerprints."""
    network = random_network(**NETWORK)
    proto = build(network)
    edit(proto)
    card = card_of(network)
    parsed = onnx_proto.parse(proto.SerializeToString())
    values = card.to_dict()
    if parsed.opset_import:
        values["fingerprint"] = fingerprint(parsed, card)
    values = orjson.loads(orjson.dumps(values))
    if change_card is not None:
        change_card(values)
    entry = proto.metadata_props.add()
    entry.key, entry.value = CARD_KEY, orjson.dumps(values).decode()
    path = tmp_path / "forged.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def weight(proto: onnx.ModelProto, name: str = "W0") -> onnx.TensorProto:
    (found,) = [tensor for tensor in proto.graph.initializer if tensor.name == name]
    return found


def value(proto: onnx.ModelProto, name: str) -> onnx.ValueInfoProto:
    (found,) = [info for info in [*proto.graph.input, *proto.graph.output] if info.name == name]
    return found


# ---- what is accepted ------------------------------------------------------------------------------------------------


def test_a_written_model_loads_and_runs(good: Path) -> None:
    model = load_model(good)
    assert model.graph_inputs == {"x", "categories", "timestamp", "elapsed", "state"}
    assert model.outputs == {"state_out", "score", "prediction"}
    assert model.path == good
    assert model.path.is_absolute()
    assert [feature.name for feature in model.card.numbers] == ["amount", "balance"]
    assert model.card.categories == (Feature("shop", "category", ("a", "b")),)
    assert len(model.card.fingerprint) == 32
    session = ort.InferenceSession(model.content, providers=["CPUExecutionProvider"])
    assert {one.name for one in session.get_inputs()} == model.graph_inputs
    assert orjson.loads(session.get_modelmeta().custom_metadata_map[CARD_KEY])["name"] == "test-model"


def test_an_edit_that_changes_nothing_passes(tmp_path: Path) -> None:
    """So that each forgery below is refused for what it changes."""
    assert load_model(forged(tmp_path, lambda _: None)).card.name == "test-model"


def test_only_the_file_with_the_given_digest_is_loaded(good: Path) -> None:
    digest = hashlib.sha256(good.read_bytes()).hexdigest()
    assert load_model(good, sha256=digest).sha256 == digest
    with pytest.raises(CannotServe, match=rf"its SHA-256 is {digest}, and model_sha256 is {'0' * 64}"):
        load_model(good, sha256="0" * 64)


def test_paths(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_model("model.onnx", base=good.parent).path == good
    monkeypatch.chdir(good.parent)
    assert load_model("model.onnx").path == good
    assert load_model(good, base=Path("/elsewhere")).path == good


def test_serving_loads_neither_onnx_nor_torch() -> None:
    code = "import lstmstream.model, sys; print(sorted({'onnx', 'torch', 'onnxruntime'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_metadata_stays_behind(tmp_path: Path) -> None:
    """Doc strings, producer names, paths in node metadata and unused operator domains are not written."""
    network = random_network(**NETWORK)
    clean, noisy = build(network), build(network)
    noisy.producer_name, noisy.doc_string = "canary", "canary"
    noisy.graph.doc_string = noisy.graph.node[0].doc_string = weight(noisy).doc_string = "canary"
    for owner in (noisy, noisy.graph, noisy.graph.node[0], weight(noisy), noisy.graph.input[0]):
        owner.metadata_props.add(key="source", value="/home/canary/train.py")
    noisy.opset_import.add(domain="ai.onnx.ml", version=3)
    first = write_model(tmp_path / "a.onnx", clean.SerializeToString(), card_of(network))
    second = write_model(tmp_path / "b.onnx", noisy.SerializeToString(), card_of(network))
    assert first == second
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert b"canary" not in (tmp_path / "b.onnx").read_bytes()


def test_writing_replaces_whole_or_not_at_all(good: Path) -> None:
    before = good.read_bytes()
    with pytest.raises(CannotServe):
        write_model(good, b"", load_model(good).card)
    assert good.read_bytes() == before
    assert list(good.parent.iterdir()) == [good]
    with good.open("rb") as reader:  # a reader in the middle of the file keeps the old content
        write_model(good, build(random_network()).SerializeToString(), card_of(random_network()))
        assert reader.read() == before
    assert good.read_bytes() != before
    assert list(good.parent.iterdir()) == [good]
    umask = os.umask(0o022)
    os.umask(umask)
    assert good.stat().st_mode & 0o777 == 0o666 & ~umask


# ---- the file --------------------------------------------------------------------------------------------------------


def test_files_that_are_none(tmp_path: Path, good: Path) -> None:
    assert "does not exist" in problems(tmp_path / "absent.onnx")
    assert "not a regular file" in problems(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in problems(tmp_path / "pipe")
    assert f"{good.stat().st_size} bytes, and at most 1000" in problems(good, max_bytes=1000)
    assert load_model(good, max_bytes=good.stat().st_size)
    assert "does not exist" in problems("a\0b")


def test_a_small_file_needs_little_memory(good: Path) -> None:
    """Whatever the limit on its size is."""
    code = (
        "import resource, sys; from lstmstream.model import load_model; "
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)); load_model(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, good], check=True)


@pytest.mark.parametrize("content", [b"", b"name: fraud\n", b"\x80\x04", bytes(100), b"\x3a\x02\x0a\x00"])
def test_files_of_other_kinds(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    message = problems(tmp_path / "m.onnx")
    assert "not an ONNX file" in message or "without an lstmstream card" in message


@pytest.mark.parametrize("text", [b"lstm0", b"encoded", b"test-model", b"prediction", b"lstmstream"])
def test_text_that_is_not_utf8(good: Path, text: bytes) -> None:
    content = good.read_bytes()
    assert text in content
    good.write_bytes(content.replace(text, text[:-1] + b"\xff"))
    assert "not an ONNX file (" in problems(good)


def test_a_long_text_that_is_not_utf8(good: Path) -> None:
    proto = onnx.load(good)
    proto.graph.node[0].name = "y" * 1000
    good.write_bytes(proto.SerializeToString().replace(b"y" * 1000, b"y" * 999 + b"\xff"))
    assert "not an ONNX file (" in problems(good)


def test_deep_nesting(tmp_path: Path) -> None:
    def wrapped(tag: int, content: bytes) -> bytes:
        length, size = len(content), b""
        while length > 127:
            size, length = size + bytes([length & 127 | 128]), length >> 7
        return bytes([tag]) + size + bytes([length]) + content

    graph = b""
    for _ in range(3000):  # a graph in an attribute in a node in a graph ...
        graph = wrapped(0x0A, wrapped(0x2A, wrapped(0x32, graph)))
    (tmp_path / "m.onnx").write_bytes(wrapped(0x3A, graph))
    assert "not an ONNX file (DecodeError)" in problems(tmp_path / "m.onnx")


@pytest.mark.parametrize("name", ["", "absent", "../model", "/etc/passwd", "demo.onnx", "a\nb"])
def test_builtin_models_that_are_none(name: str) -> None:
    assert "there is no such model in the package; use one of: " in problems(f"builtin:{name}")


def test_builtin_models(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lstmstream.model.file._BUILTIN_DIR", good.parent)
    assert load_model("builtin:model", base=Path("/elsewhere")).path == good
    assert "use one of: builtin:model" in problems("builtin:other")


def test_a_file_that_onnxruntime_would_take_for_another_format(good: Path) -> None:
    """With ORTM at byte 4 onnxruntime reads flatbuffers, past all checks: the mark must not reach it."""
    proto = onnx.load(good)
    proto.producer_name = "ORTM"
    content = proto.SerializeToString(deterministic=True)
    assert content[4:8] == b"ORTM"
    with pytest.raises(Exception, match="ORT model verification failed"):
        ort.InferenceSession(content)
    good.write_bytes(content)
    ort.InferenceSession(load_model(good).content)


# ---- hostile graphs --------------------------------------------------------------------------------------------------


def outside(tensor: onnx.TensorProto, location: str = "secrets.bin") -> onnx.TensorProto:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def sparse(*, external: bool = False) -> onnx.SparseTensorProto:
    made = onnx.SparseTensorProto(dims=[4])
    made.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "sparse"))
    made.indices.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int64), "places"))
    if external:
        outside(made.values)
    return made


def constant(values: np.ndarray | None = None, **attributes: Any) -> onnx.NodeProto:
    if values is not None:
        attributes["value"] = numpy_helper.from_array(values, "inner")
    return helper.make_node("Constant", [], ["unused"], name="hidden_constant", **attributes)


def branch(*nodes: onnx.NodeProto, tensors: list[onnx.TensorProto] | None = None) -> onnx.NodeProto:
    graph = helper.make_graph(list(nodes), "branch", [], [], tensors or [])
    return helper.make_node("If", ["condition"], ["unused"], name="choice", then_branch=graph, else_branch=graph)


def external_constant() -> onnx.NodeProto:
    node = constant(np.ones(3, np.float32))
    outside(node.attribute[0].t)
    return node


def listed_tensor() -> onnx.NodeProto:
    node = helper.make_node("Constant", [], ["unused"], name="list")
    attribute = node.attribute.add(name="tensors", type=onnx.AttributeProto.TENSORS)
    outside(attribute.tensors.add(name="inner", data_type=1, dims=[1]))
    return node


def sparse_attribute() -> onnx.NodeProto:
    node = helper.make_node("Constant", [], ["unused"], name="thin")
    node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR).sparse_tensor.CopyFrom(sparse())
    return node


def typed(data_type: int, field: str, values: list[Any], name: str = "odd") -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=data_type, dims=[len(values)])
    getattr(tensor, field).extend(values)
    return tensor


def array(values: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(values, "odd")


def raw(data_type: int, content: bytes, dims: list[int]) -> onnx.TensorProto:
    return onnx.TensorProto(name="odd", data_type=data_type, dims=dims, raw_data=content)


def add_node(node: onnx.NodeProto) -> Edit:
    return lambda proto: proto.graph.node.insert(0, node)


def add_weight(tensor: onnx.TensorProto) -> Edit:
    return lambda proto: proto.graph.initializer.append(tensor)


def set_fields(find: Callable[[onnx.ModelProto], Any], **fields: Any) -> Edit:
    def edit(proto: onnx.ModelProto) -> None:
        for name, content in fields.items():
            setattr(find(proto), name, content)

    return edit


def first_node(proto: onnx.ModelProto) -> onnx.NodeProto:
    return proto.graph.node[0]


EXTERNAL, FINITE = "external data is not accepted", "not finite"
NAMED = "node 0 .*'com.microsoft' is not accepted, only CausalConv"
HOSTILE: dict[str, tuple[Edit, str]] = {
    "external weight": (lambda proto: outside(weight(proto)), f"initializer 'W0': {EXTERNAL}"),
    "external weight in memory": (
        lambda proto: outside(weight(proto), "*/_ORT_MEM_ADDR_/*"), f"initializer 'W0': {EXTERNAL}"
    ),
    "external data without saying so": (
        lambda proto: weight(proto).external_data.add(key="location", value="x"), f"initializer 'W0': {EXTERNAL}"
    ),
    "external flag without data": (
        set_fields(weight, data_location=TensorProto.EXTERNAL), f"initializer 'W0': {EXTERNAL}"
    ),
    "external sparse weight": (
        lambda proto: proto.graph.sparse_initializer.append(sparse(external=True)),
        f"sparse_initializer / values 'sparse': {EXTERNAL}",
    ),
    "external constant": (add_node(external_constant()), f"node 0 'hidden_constant' .*'inner': {EXTERNAL}"),
    "external in a list": (add_node(listed_tensor()), f"node 0 'list' .* tensors 'inner': {EXTERNAL}"),
    "external in a branch": (
        add_node(branch(tensors=[outside(array(np.ones(1, np.float32)))])),
        f"'choice' .*then_branch.* initializer 'odd': {EXTERNAL}",
    ),
    "external constant in a branch of a branch": (
        add_node(branch(branch(external_constant()))),
        f"'choice' .*'choice' .*'hidden_constant' .*'inner': {EXTERNAL}",
    ),
    "sparse weight": (lambda proto: proto.graph.sparse_initializer.append(sparse()), "sparse weights are not accepted"),
    "sparse constant": (add_node(sparse_attribute()), "node 0 'thin' .*sparse weights are not accepted"),
    "function": (lambda proto: proto.functions.add(name="Relu", domain=""), "local functions are not accepted"),
    "training graph": (lambda proto: proto.training_info.add(), "training graphs are not accepted"),
    "vendor operator": (set_fields(first_node, domain="com.microsoft"), NAMED),
    "ml operator": (set_fields(first_node, domain="ai.onnx.ml"), "node 0 .*'ai.onnx.ml' is not accepted"),
    "vendor operator in a branch": (
        add_node(branch(helper.make_node("Evil", [], [], name="evil", domain="evil"))),
        "'choice' .*'evil' .*domain 'evil' is not accepted",
    ),
    "overload": (set_fields(first_node, overload="mine"), "node 0 .*overload"),
    "no operator set": (lambda proto: proto.ClearField("opset_import"), "version of the standard operators is missing"),
    "random": (add_node(helper.make_node("RandomNormal", [], ["r"], shape=[1])), "node 0 .*random operator"),
    "random in a branch": (add_node(branch(helper.make_node("Bernoulli", ["a"], ["r"]))), "'Bernoulli'.*random"),
    "NaN raw": (add_weight(array(np.array([1, np.nan], np.float32))), f"'odd': .*{FINITE}.*first at value 1"),
    "infinity listed": (add_weight(typed(1, "float_data", [0, 1, -np.inf])), f"'odd': .*{FINITE}.*first at value 2"),
    "NaN float64": (add_weight(array(np.array([np.nan]))), f"'odd': .*{FINITE}"),
    "NaN float64 listed": (add_weight(typed(11, "double_data", [np.nan])), f"'odd': .*{FINITE}"),
    "infinity float16": (add_weight(array(np.array([np.inf], np.float16))), f"'odd': .*{FINITE}"),
    "infinity float16 listed": (add_weight(typed(10, "int32_data", [0x7C00])), f"'odd': .*{FINITE}"),
    "NaN bfloat16": (add_weight(raw(16, b"\0\0\xc0\x7f", [2])), f"'odd': .*{FINITE}.*first at value 1"),
    "NaN bfloat16 listed": (add_weight(typed(16, "int32_data", [0x7FC0])), f"'odd': .*{FINITE}"),
    "NaN constant": (add_node(constant(np.array([np.nan], np.float32))), f"'hidden_constant' .*'inner': .*{FINITE}"),
    "NaN in a branch": (
        add_node(branch(constant(np.array(np.nan, np.float32)))), f"'choice' .*'hidden_constant' .*{FINITE}"
    ),
    "NaN attribute": (add_node(constant(value_float=float("nan"))), f"'hidden_constant' .*'value_float': .*{FINITE}"),
    "infinite attributes": (
        add_node(constant(value_floats=[1.0, float("inf")])), f"'hidden_constant' .*'value_floats': .*{FINITE}"
    ),
    "short raw data": (add_weight(raw(1, bytes(7), [2])), r"'odd': shape \[2\] needs 8 bytes, but there are 7"),
    "huge shape": (add_weight(raw(1, b"", [2**40, 2**40])), "'odd': shape .* needs .* bytes, but there are 0"),
    "short list": (add_weight(onnx.TensorProto(name="odd", data_type=1, dims=[3])), "'odd': .* needs 3 values"),
    "two kinds of data": (
        add_weight(onnx.TensorProto(name="odd", data_type=1, dims=[1], raw_data=bytes(4), float_data=[1])), "'odd': "
    ),
    "negative shape": (add_weight(raw(1, b"", [-1, 0])), "'odd': a dimension is negative"),
    "type unknown": (add_weight(raw(99, b"", [0])), "'odd': data type 99 is not accepted"),
    "type of 4 bits": (add_weight(raw(22, b"\0", [2])), "'odd': data type 22 is not accepted"),
    "input undeclared": (
        lambda proto: proto.graph.input.append(helper.make_tensor_value_info("w", 1, ["N"])),
        "graph input 'w': must be one of x, categories, timestamp, elapsed, state",
    ),
    "output undeclared": (
        lambda proto: proto.graph.output.append(helper.make_tensor_value_info("encoded", 1, ["N", 3])),
        "graph output 'encoded': must be one of state_out, score, prediction",
    ),
    "input twice": (lambda proto: proto.graph.input.append(value(proto, "x")), "graph input 'x': is declared twice"),
    "input with a default": (
        add_weight(numpy_helper.from_array(np.zeros((1, 2), np.float32), "x")), "graph input x: is also a weight"
    ),
    "input missing": (lambda proto: proto.graph.input.remove(value(proto, "x")), "input x: is missing.* 2 number"),
    "no state": (lambda proto: proto.graph.input.remove(value(proto, "state")), "graph input state: is missing"),
    "no state out": (
        lambda proto: proto.graph.output.remove(value(proto, "state_out")), "graph output state_out: is missing"
    ),
    "long name": (
        set_fields(lambda proto: value(proto, "x"), name="y" * 10_000), "graph input 'y{78}[.]{3}': must be one of"
    ),
    "name with a line feed": (
        set_fields(lambda proto: value(proto, "x"), name="x\nlevel=ERROR fake"), r"graph input 'x\\nlevel=ERROR fake'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_graphs_are_refused_by_name(tmp_path: Path, case: str) -> None:
    edit, message = HOSTILE[case]
    path = forged(tmp_path, edit)
    text = problems(path)
    with pytest.raises(CannotServe, match=message):
        load_model(path)
    assert "fingerprint" not in text
    assert str(path) in text
    proto = build(random_network(**NETWORK))
    edit(proto)
    with pytest.raises(CannotServe, match=message):
        write_model(tmp_path / "out.onnx", proto.SerializeToString(), card_of(random_network(**NETWORK)))


def test_an_unused_operator_domain_in_a_file_is_refused(tmp_path: Path) -> None:
    assert "domain 'evil' is not accepted" in problems(
        forged(tmp_path, lambda proto: proto.opset_import.add(domain="evil", version=1))
    )


INT32, N = TensorProto.INT32, "N"
SHAPES: list[tuple[str, int, list[int | str | None] | None, str]] = [
    ("x", TensorProto.DOUBLE, [N, 2], "is float64 [N, 2], but must be float32 [N, 2]"),
    ("x", TensorProto.FLOAT, [N, 3], "is float32 [N, 3], but must be float32 [N, 2] (the card has 2 number features)"),
    ("x", TensorProto.FLOAT, [N, "F"], "is float32 [N, F], but must be float32 [N, 2]"),
    ("x", TensorProto.FLOAT, [1, 2], "is float32 [1, 2], but must be float32 [N, 2]"),
    ("x", TensorProto.FLOAT, [N, 1, 2], "is float32 [N, 1, 2], but must be float32 [N, 2]"),
    ("x", TensorProto.FLOAT, None, "declares no tensor shape; it must be float32 [N, 2]"),
    ("categories", TensorProto.FLOAT, [N, 1], "is float32 [N, 1], but must be int64 [N, 1]"),
    ("categories", TensorProto.INT64, [N, 2], "must be int64 [N, 1] (the card has 1 category features)"),
    ("timestamp", INT32, [N], "is int32 [N], but must be int64 [N]"),
    ("elapsed", TensorProto.FLOAT, [N, 1], "is float32 [N, 1], but must be float32 [N]"),
    ("state", TensorProto.FLOAT, [N, 17], "must be float32 [N, 16] (the card has state.size 16)"),
    ("state_out", TensorProto.FLOAT, [N, 17], "must be float32 [N, 16] (the card has state.size 16)"),
    ("score", TensorProto.FLOAT, [], "is float32 [], but must be float32 [N]"),
    ("score", 99, [N], "is type 99 [N], but must be float32 [N]"),
    ("prediction", TensorProto.FLOAT, [N, "P"], "is float32 [N, P], but must be float32 [N, P]"),
    ("prediction", TensorProto.FLOAT, [N, 0], "is float32 [N, 0], but must be float32 [N, P]"),
]


@pytest.mark.parametrize(("name", "element", "shape", "message"), SHAPES)
def test_wrong_shapes_are_refused_by_name(
    tmp_path: Path, name: str, element: int, shape: list[int | str | None] | None, message: str
) -> None:
    def edit(proto: onnx.ModelProto) -> None:
        value(proto, name).CopyFrom(helper.make_tensor_value_info(name, element, shape))

    text = problems(forged(tmp_path, edit))
    assert f"put {name}: " in text
    assert message in text


def test_an_input_that_is_no_tensor(tmp_path: Path) -> None:
    kind = helper.make_tensor_sequence_value_info("x", 1, [N, 2])
    assert "graph input x: declares no tensor shape" in problems(
        forged(tmp_path, lambda proto: value(proto, "x").CopyFrom(kind))
    )


# ---- the card --------------------------------------------------------------------------------------------------------


def put(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    """Sets card[path[0]][path[1]]..."""

    def change(card: dict[str, Any]) -> None:
        place: Any = card
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to

    return change


CARDS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (put("format", to=2), "card.format: format 2, but this lstmstream reads 1"),
    (put("format", to="two\n"), "card.format: format 'two\\n', but this lstmstream reads 1"),
    (put("format", to=True), "card.format: must be a whole number from 1 to 1"),
    (lambda card: card.pop("format"), "card.format: "),
    (lambda card: card.pop("name"), "card.name: must be text"),
    (put("name", to=""), "card.name: must be text, not empty"),
    (put("name", to="a\nb"), "card.name: must be text, not empty and without control characters"),
    (put("version", to=3), "card.version: must be text"),
    (put("task", to="cluster"), "card.task: 'cluster' must be one of anomaly, classify, forecast"),
    (put("colour", to=1), "card.colour: unknown field"),
    (put("a\nb", to=1), "card.a\\nb: unknown field"),
    (put("features", to={}), "card.features: must be a list"),
    (put("features", 1, to="x"), "card.features[1]: must be an object"),
    (put("features", 0, "name", to=None), "card.features[0].name: must be text"),
    (put("features", 0, "kind", to="text"), "card.features[0].kind: 'text' must be number or category"),
    (put("features", 0, "buckets", to=3), "card.features[0].kind: a number has neither vocabulary nor buckets"),
    (put("features", 2, "buckets", to=3), "card.features[2].kind: a category needs either a vocabulary or buckets"),
    (put("features", 2, "buckets", to=0), "card.features[2].buckets: must be a whole number"),
    (put("features", 2, "vocabulary", to=None), "card.features[2].kind: a category needs"),
    (put("features", 2, "vocabulary", to=["a", 1]), "card.features[2].vocabulary: must be a list of text values"),
    (put("features", 2, "vocabulary", to=["a", "a"]), "card.features[2].vocabulary: an entry is listed twice"),
    (put("features", 2, "unit", to="EUR"), "card.features[2].unit: unknown field"),
    (put("features", 1, "name", to="amount"), "card.features: a field is listed twice"),
    (lambda card: card["features"].pop(0), "graph input x: is float32 [N, 2], but must be float32 [N, 1]"),
    (lambda card: card["features"].pop(2), "graph input categories: is int64 [N, 1], but must be int64 [N, 0]"),
    (put("state", to=[]), "card.state: must be an object"),
    (put("state", "size", to=15), "card.state.initial: has 16 values, but state.size is 15"),
    (put("state", "size", to=0), "card.state.size: must be a whole number from 1"),
    (put("state", "size", to=True), "card.state.size: must be a whole number"),
    (put("state", "initial", 3, to=None), "card.state.initial: must contain finite numbers only"),
    (put("state", "initial", 3, to=1e39), "card.state.initial: must contain finite numbers only"),
    (put("state", "initial", to=[0.0] * 17), "card.state.initial: has 17 values, but state.size is 16"),
    (put("state", "parts", 1, "offset", to=7), "card.state.parts: 'c0' at 7 overlaps the previous part"),
    (put("state", "parts", 1, "offset", to=9), "card.state.parts: 'c0' at 9 leaves a gap after the previous part"),
    (put("state", "parts", 1, "offset", to=-8), "card.state.parts[1].offset: must be a whole number"),
    (put("state", "parts", 1, "shape", to=[9]), "card.state.parts: the parts end at 17, but state.size is 16"),
    (put("state", "parts", 1, "shape", to=[-8]), "card.state.parts[1].shape: must be a list of whole numbers"),
    (put("state", "parts", 1, "name", to="h0"), "card.state.parts: a name is used twice"),
    (put("outputs", to=["state_out", "score"]), "card.outputs: are 'state_out', 'score', but the graph has"),
    (put("outputs", to=[1]), "card.outputs: must be a list of text values"),
    (put("prediction_names", to="warm"), "card.prediction_names: must be a list"),
    (put("prediction_names", to=["a", "a"]), "card.prediction_names: must be a list of different text values"),
    (put("prediction_names", to=["a", 1]), "card.prediction_names: must be a list of different text values"),
    (put("prediction_names", to=list("abcdefgh")), "card.prediction_names: are 8, but the graph's prediction has "),
    (put("threshold", to="0.5"), "card.threshold: must be a finite number or null"),
    (put("threshold", to=1e39), "card.threshold: must be a finite number or null"),
    (put("threshold", to=False), "card.threshold: must be a finite number or null"),
    (put("training", to=[]), "card.training: must be an object"),
    (put("reference", to="x"), "card.reference: must be an object"),
    (put("fingerprint", to=7), "card.fingerprint: must be text"),
    (put("fingerprint", to="0" * 32), f"card.fingerprint: is '{'0' * 32}', but graph and weights give '"),
]


@pytest.mark.parametrize(("change", "message"), CARDS, ids=[message for _, message in CARDS])
def test_wrong_cards_are_refused_by_name(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    assert message in problems(forged(tmp_path, lambda _: None, change))


def test_all_problems_at_once(tmp_path: Path) -> None:
    def change(card: dict[str, Any]) -> None:
        card["name"], card["state"]["size"], card["threshold"] = 1, 2, "x"

    text = problems(forged(tmp_path, lambda _: None, change))
    assert all(f"card.{name}" in text for name in ("name", "state.initial", "threshold"))


def test_many_problems_are_cut(tmp_path: Path) -> None:
    def edit(proto: onnx.ModelProto) -> None:
        for node in proto.graph.node:
            node.domain = "evil"

    lines = problems(forged(tmp_path, edit)).splitlines()
    assert len(lines) == 21
    assert lines[-1].endswith("more problems")


@pytest.mark.parametrize("text", ["", "{", "[]", "NaN", '{"format": NaN}', "[" * 5000, "1e999", '"\\ud800"'])
def test_cards_that_are_no_card(good: Path, text: str) -> None:
    proto = onnx.load(good)
    proto.metadata_props[0].value = text
    good.write_bytes(proto.SerializeToString())
    assert "card: " in problems(good)


def test_no_card_and_two_cards(good: Path) -> None:
    proto = onnx.load(good)
    proto.metadata_props.add(key=CARD_KEY, value=proto.metadata_props[0].value)
    good.write_bytes(proto.SerializeToString())
    assert "more than one lstmstream card" in problems(good)
    proto.ClearField("metadata_props")
    good.write_bytes(proto.SerializeToString())
    assert "an ONNX file without an lstmstream card" in problems(good)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": float("nan")}, "card.threshold"),
        ({"threshold": 1e39}, "card.threshold"),
        ({"training": {"path": object()}}, "not JSON serializable"),
        ({"state": StateSpec(1, (float("inf"),), (StatePart("h0", 0, (1,)),))}, "card.state.initial"),
    ],
)
def test_cards_that_cannot_be_written(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    network = random_network()
    with pytest.raises(CannotServe, match=message):
        write_model(tmp_path / "m.onnx", build(network).SerializeToString(), replace(card_of(network), **change))
    assert not list(tmp_path.iterdir())


# ---- fingerprint -----------------------------------------------------------------------------------------------------


def test_what_the_fingerprint_names(tmp_path: Path) -> None:
    """Graph, weights, features and state; not name, version, threshold, training, reference."""
    network = random_network(**NETWORK)
    content, card = build(network).SerializeToString(), card_of(network)

    def mark(content: bytes, card: Card) -> str:
        written = write_model(tmp_path / "m.onnx", content, card)
        assert load_model(tmp_path / "m.onnx").card == written
        return written.fingerprint

    first = mark(content, card)
    same = replace(card, name="other", version="9", threshold=None, training={"a": 1}, reference={"b": [1]},
                   task="anomaly", fingerprint="stale")  # fmt: skip
    assert mark(content, same) == first
    others = {first}
    others.add(mark(build(random_network(**NETWORK, seed=1)).SerializeToString(), card))
    others.add(
        mark(content, replace(card, features=(Feature("balance", "number"), *card.features[:1], card.features[2])))
    )
    others.add(mark(content, replace(card, features=(*card.features[:2], Feature("shop", "category", buckets=2)))))
    others.add(mark(content, replace(card, state=replace(card.state, initial=(1.0,) * 16))))
    others.add(mark(content, replace(card, state=replace(card.state, parts=(StatePart("all", 0, (16,)),)))))
    newer = build(network)
    newer.opset_import[0].version += 1
    others.add(mark(newer.SerializeToString(), card))
    assert len(others) == 7


def test_integers_in_the_card_name_the_same_state(tmp_path: Path) -> None:
    network = random_network()
    card = card_of(network)
    whole = replace(card, state=replace(card.state, initial=(0,) * 16))
    content = build(network).SerializeToString()
    assert write_model(tmp_path / "a", content, card) == write_model(tmp_path / "b", content, whole)


GOLDEN = (
    '{"format":1,"name":"golden","version":"3","task":"forecast","features":[{"name":"a.b","kind":"number"},'
    '{"name":"shop","kind":"category","vocabulary":["x","\u00e4"]},{"name":"user","kind":"category","buckets":100}],'
    '"state":{"size":3,"initial":[0.0,0.1,-1e-08],"parts":[{"name":"h0","offset":0,"shape":[1]},'
    '{"name":"c0","offset":1,"shape":[2,1]}]},"outputs":["state_out","score"],"threshold":0.25,'
    '"fingerprint":"00112233445566778899aabbccddeeff","training":{"seed":7,"metrics":{"auc":0.9}},"reference":{}}'
)


def test_golden_card() -> None:
    """The card is a contract: this text must be readable, and be written so, for ever."""
    card = Card.from_json(GOLDEN)
    assert card == Card(
        name="golden",
        version="3",
        task="forecast",
        features=(
            Feature("a.b", "number"),
            Feature("shop", "category", vocabulary=("x", "\u00e4")),
            Feature("user", "category", buckets=100),
        ),
        state=StateSpec(3, (0.0, 0.1, -1e-8), (StatePart("h0", 0, (1,)), StatePart("c0", 1, (2, 1)))),
        outputs=("state_out", "score"),
        threshold=0.25,
        fingerprint="00112233445566778899aabbccddeeff",
        training={"seed": 7, "metrics": {"auc": 0.9}},
    )
    assert orjson.loads(card.to_json()) == orjson.loads(GOLDEN)
    assert list(orjson.loads(card.to_json())) == list(orjson.loads(GOLDEN))
    assert card.format == 1


def test_golden_fingerprint(tmp_path: Path) -> None:
    """Stored states carry it: a release that computes another one orphans them all."""
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["state", "step"], ["state_out"]),
            helper.make_node("Gather", ["state_out", "column"], ["score"], axis=1),
        ],
        "golden",
        [helper.make_tensor_value_info("state", 1, [N, 3])],
        [helper.make_tensor_value_info("state_out", 1, [N, 3]), helper.make_tensor_value_info("score", 1, [N])],
        [helper.make_tensor("step", 1, [3], [1, 2, 0.5]), helper.make_tensor("column", 7, [], [0])],
    )
    content = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()
    card = Card.from_json(GOLDEN)
    card = replace(card, features=())
    assert write_model(tmp_path / "m.onnx", content, card).fingerprint == "e40f388efe4aaa86b4f04fdde12748d8"


# ---- damage ----------------------------------------------------------------------------------------------------------


def test_flipped_bits_and_cuts_raise_nothing_but_cannot_serve(good: Path) -> None:
    content = good.read_bytes()
    sound = load_model(good)
    generator = np.random.default_rng(20260105)
    refused = 0
    rounds = 600
    for index in range(rounds):
        damaged = bytearray(content)
        if index % 6 == 0:
            damaged = damaged[: generator.integers(len(content))]
        else:
            for place in generator.integers(len(content) * 8, size=1 + index % 3):
                damaged[place // 8] ^= 1 << (place % 8)
        good.write_bytes(damaged)
        try:
            model = load_model(good)
        except CannotServe as error:
            refused += 1
            assert all(problem.isprintable() for problem in error.problems)  # noqa: PT017 -- either way is right
        else:  # the damage met what the fingerprint leaves out: name, version, threshold, training
            assert model.card.fingerprint == sound.card.fingerprint
    assert refused > rounds * 0.9


def test_damage_with_a_repaired_fingerprint_raises_nothing_but_cannot_serve(tmp_path: Path) -> None:
    """An attacker damages the graph and recomputes the fingerprint: every later check must hold without it."""
    network = random_network(**NETWORK)
    content = build(network).SerializeToString()
    generator = np.random.default_rng(20260106)
    refused = 0
    for index in range(400):
        damaged = bytearray(content)
        for place in generator.integers(len(content) * 8, size=1 + index % 4):
            damaged[place // 8] ^= 1 << (place % 8)

        def edit(proto: onnx.ModelProto, damaged: bytes = bytes(damaged)) -> None:
            proto.ParseFromString(damaged)

        try:
            path = forged(tmp_path, edit)
        except (DecodeError, ValueError):  # too broken for the forger's own tools
            continue
        try:
            load_model(path)
        except CannotServe:
            refused += 1
    assert refused > 10


# ---- for people and programs -----------------------------------------------------------------------------------------


def test_with_all_outputs_runs_and_agrees(good: Path) -> None:
    model = load_model(good)
    content, names = with_all_outputs(model.content)
    assert len(onnx.load_from_string(content).graph.output) == len(set(names)) == len(names)
    assert names == [name for node in onnx.load(good).graph.node for name in node.output if name]
    assert {"encoded", "h0_out", "c0_out", "state_out", "score", "prediction"} <= set(names)
    feed = {
        "x": np.ones((2, 2), np.float32),
        "categories": np.ones((2, 1), np.int64),
        "timestamp": np.ones(2, np.int64),
        "elapsed": np.ones(2, np.float32),
        "state": np.ones((2, 16), np.float32),
    }
    outputs = sorted(model.outputs)
    plain = ort.InferenceSession(model.content, providers=["CPUExecutionProvider"]).run(outputs, feed)
    every = ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(names, feed)
    for name, result in zip(outputs, plain, strict=True):
        np.testing.assert_array_equal(every[names.index(name)], result)


def test_inspect(good: Path) -> None:
    model = load_model(good)
    shown = inspect_json(model)
    assert shown["path"] == str(good)
    assert shown["sha256"] == subprocess.run(
        ["sha256sum", good], capture_output=True, text=True, check=True
    ).stdout.split()[0]  # fmt: skip
    assert {name: shown[name] for name in model.card.to_dict()} == model.card.to_dict()
    assert orjson.loads(orjson.dumps(shown)) == shown


def test_describe(tmp_path: Path) -> None:
    path = random_model(tmp_path, **NETWORK, name="fraud", version="7", threshold=None)
    lines = describe(load_model(path))
    text = "\n".join(lines)
    assert lines[0] == "fraud version 7: classify"
    for part in ("amount: number", "shop: category, 2 known values", "c0: [8] at 8", "threshold    none", "seed: 0"):
        assert part in text


def test_describe_shows_nothing_that_moves_the_cursor(tmp_path: Path) -> None:
    network = random_network()
    card = replace(card_of(network), training={"note": "a\x1b[2Jb\nc\u2028d", "long": list(range(100))})
    write_model(tmp_path / "m.onnx", build(network).SerializeToString(), card)
    lines = describe(load_model(tmp_path / "m.onnx"))
    assert all(line.isprintable() for line in lines)
    assert "  note: a\\x1b[2Jb\\nc\\u2028d" in lines


@pytest.mark.parametrize("where", ["score", "state_out", "prediction"])
def test_poisoned_models_fail_where_they_should(tmp_path: Path, where: Any) -> None:
    model = load_model(poisoned_model(tmp_path, where=where))
    feed = {"x": np.array([[1], [MAGIC], [np.nan]], np.float32), "elapsed": np.ones(3, np.float32),
            "state": np.zeros((3, 16), np.float32)}  # fmt: skip
    outputs = ["state_out", "score", "prediction"]
    for name, result in zip(outputs, ort.InferenceSession(model.content).run(outputs, feed), strict=True):
        finite = np.isfinite(result.reshape(3, -1)).all(axis=1)
        assert finite.tolist() == [True, name != where, True]
