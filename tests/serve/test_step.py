"""What a model must do before any event reaches it."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import helper

from lstmstream.errors import CannotServe
from lstmstream.model import load_model
from lstmstream.serve.step import OnnxStep
from lstmstream.train.export import build
from tests.models import card_of, random_network, write


def test_a_model_that_cannot_answer_one_event_alone_is_refused(tmp_path: Path) -> None:
    network = random_network(numbers=("a", "b"))
    proto = build(network)
    for node in proto.graph.node:
        for place, name in enumerate(node.input):
            if name == "x":
                node.input[place] = "squeezed"  # loses the rows' axis where there is one row
    proto.graph.node.insert(0, helper.make_node("Squeeze", ["x"], ["squeezed"]))
    path = write(tmp_path / "m.onnx", proto, card_of(network))
    with pytest.raises(CannotServe, match=r"m\.onnx: a first step fails: "):
        OnnxStep(load_model(path), device="cpu")
