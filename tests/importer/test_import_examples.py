"""`--examples`: outputs of the original that the imported model has to reproduce, which weights alone cannot show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lstmstream.cli import app
from lstmstream.importer.command import import_model
from lstmstream.model import load_model
from tests.importer.source_files import refusal

pytestmark = pytest.mark.torch

FEATURES = 3
LAYOUT = """
cell: lstm
layers: rnn.
head: {linear: fc., activation: none}
features: [a, b, {name: c, centre: 5, scale: 2}]
"""


class Net(nn.Module):
    """LSTM, then the given layer without weights, then Linear."""

    def __init__(self, between: nn.Module, out: int = 1) -> None:
        super().__init__()
        self.rnn, self.between, self.fc = nn.LSTM(FEATURES, 4, batch_first=True), between, nn.Linear(4, out)

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        x = torch.stack([raw[..., 0], raw[..., 1], (raw[..., 2] - 5) / 2], dim=-1)
        return self.fc(self.between(self.rnn(x)[0]))


def saved(tmp_path: Path, between: nn.Module, out: int = 1) -> tuple[Net, Path, Path]:
    """The net, the file of its weights and that of its layout; nothing in them names `between`."""
    torch.manual_seed(0)
    net = Net(between, out)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    (tmp_path / "layout.yaml").write_text(LAYOUT)
    return net, tmp_path / "w.pt", tmp_path / "layout.yaml"


def recorded(path: Path, net: nn.Module, *, every: bool = False, digits: int = 9) -> Path:
    """Three sequences of 1, 4 and 9 events with what torch gives for them."""
    lines = []
    for length in (1, 4, 9):
        x = 2 * torch.randn(1, length, FEATURES) + 1
        with torch.no_grad():
            y = net(x)[0].numpy().astype(np.float64).round(digits)
        lines.append(json.dumps({"input": x[0].tolist(), "output": (y if every else y[-1]).tolist()}))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("out", [1, 3])
def test_a_layer_without_weights_is_seen_by_the_examples_alone(tmp_path: Path, every: bool, out: int) -> None:
    for name, between in (("same", nn.Identity()), ("other", nn.ReLU())):
        net, file, layout = saved(tmp_path, between, out)
        examples = recorded(tmp_path / f"{name}.jsonl", net, every=every)
        if name == "same":
            import_model(file, out=tmp_path / "same.onnx", layout=layout, examples=examples)
            assert load_model(tmp_path / "same.onnx").card.training["import"]["examples"]["sequences"] == 3
            continue
        import_model(file, out=tmp_path / "unseen.onnx", layout=layout)  # accepted: it cannot be seen
        message = refusal(file, layout=layout, examples=examples)
        assert f"--examples {examples}: line 1: after event 1 the model gives " in message
        assert "A layer without weights between the others (ReLU, pooling)" in message


def test_without_examples_the_report_says_what_is_not_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, file, layout = saved(tmp_path, nn.Identity())
    import_model(file, out=tmp_path / "m.onnx", layout=layout)
    assert "weights do not show layers that have none (ReLU, pooling)" in capsys.readouterr().out
    examples = recorded(tmp_path / "e.jsonl", net, digits=4)  # as somebody copies them from a notebook
    arguments = ["import", str(file), "--out", str(tmp_path / "m.onnx"), "--layout", str(layout)]
    app([*arguments, "--examples", str(examples)], standalone_mode=False)
    said = capsys.readouterr().out
    assert "weights do not show" not in said
    assert "examples  3 sequences of the original: largest difference " in said


@pytest.mark.parametrize("event", [0, 2])
def test_the_event_that_differs_is_named(tmp_path: Path, event: int) -> None:
    net, file, layout = saved(tmp_path, nn.Identity())
    examples = recorded(tmp_path / "e.jsonl", net, every=True)
    lines = [json.loads(line) for line in examples.read_text().splitlines()]
    lines[1]["output"][event][0] += 0.001
    examples.write_text("\n\n".join(map(json.dumps, lines)))
    assert f"line 3: after event {event + 1} the model gives" in refusal(file, layout=layout, examples=examples)


@pytest.mark.filterwarnings("ignore")  # of the exporter
def test_a_graph_is_compared_with_examples_too(tmp_path: Path) -> None:
    """Of the raw values of the events, which the YAML of --features scales."""
    torch.manual_seed(1)
    rnn, head = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 1)

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = rnn, head

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.rnn(x)[0])

    axes = {"x": {0: "batch", 1: "time"}}
    options: Any = {"input_names": ["x"], "dynamic_axes": axes, "dynamo": False}
    torch.onnx.export(Whole(), (torch.zeros(2, 5, 1),), str(tmp_path / "g.onnx"), **options)
    names = tmp_path / "features.yaml"
    names.write_text("features: [{name: amount, centre: 10, scale: 4}]\n")
    raw = [12.5, 8.0, 30.0]
    with torch.no_grad():
        expected = Whole()((torch.tensor(raw)[None, :, None] - 10) / 4)[0, :, 0].tolist()
    good = tmp_path / "good.jsonl"
    good.write_text(
        json.dumps({"input": raw, "output": expected[-1]}) + "\n" + json.dumps({"input": raw, "output": expected})
    )
    import_model(tmp_path / "g.onnx", out=tmp_path / "m.onnx", features=str(names), examples=good)
    assert load_model(tmp_path / "m.onnx").card.training["import"]["examples"]["sequences"] == 2
    assert "after event 3 the model gives" in refusal(tmp_path / "g.onnx", features="amount", examples=good)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty; give at least one input"),
        ("{", "line 1 is not JSON"),
        ("[1]", 'line 1: write {"input"'),
        ('{"input": [[1, 2]], "output": 1}', "line 1: input: should be a list of events with 3 numbers each"),
        ('{"input": [], "output": 1}', "line 1: input: should be a list of events with 3 numbers each"),
        ('{"input": [[1, 2, 3], [1]], "output": 1}', "line 1: input: should hold numbers, in lists of equal length"),
        ('{"input": [["x", 2, 3]], "output": 1}', "line 1: input: should hold numbers"),
        ('{"input": [[1, 2, 3]], "output": [1, 2]}', "line 1: output: should be 1 number, as after the last event"),
        ('{"input": [[1, 2, 3]], "output": null}', "line 1: after event 1 the model gives"),
    ],
)
def test_examples_that_cannot_be_compared_are_refused(tmp_path: Path, text: str, said: str) -> None:
    _, file, layout = saved(tmp_path, nn.Identity())
    (tmp_path / "e.jsonl").write_text(text)
    assert said in refusal(file, layout=layout, examples=tmp_path / "e.jsonl")
    assert "No such file" in refusal(file, layout=layout, examples=tmp_path / "nowhere.jsonl")
