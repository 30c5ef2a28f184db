# ruff: noqa: E501 -- one model, one line
"""Makes ONNX files with torch's two exporters, and records the outputs of torch itself.

Run as a program in a process of its own, for exporters warn and log: `python torch_models.py FOLDER`. Each NAME.onnx
has a NAME.npz: x0, y0, x1, y1, ... with x [B, T, F], y [B, positions, P] and at0, ... the positions that were asked.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

F, H = 3, 8


# Files that become steps; torch's answers are kept for these.
BOTH = (
    "lstm_last", "lstm_static", "lstm_static_batch", "lstm_time_first", "gru_two", "softmax_three", "dense_norm",
    "learned_start",
)  # fmt: skip
STEPS = {f"{name}_{exporter}" for name in BOTH for exporter in ("old", "new")} | {
    "rnn_tanh", "rnn_relu", "lstm_no_bias", "lstm_time_first_last", "by_last_h", "squeezed", "several_outputs", "residual",
    "two_branches", "log_input", "softplus_head", "sine_head", "view_static", "fourth_of_five", "square_static",
    "square_time_first", "univariate", "horizon", "states_in_and_out", "states_batch_first",
    "step_of_layers", "step_of_cell", "doubles",
}  # fmt: skip


class Rnn(nn.Module):
    """Recurrent layers and a head, in the forms that people write."""

    def __init__(
        self, cell: Any = nn.LSTM, layers: int = 1, *, batch_first: bool = True, whole: bool = False, out: int = 1,
        before: nn.Module | None = None, width: int = F, head: nn.Module | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.before = before or nn.Identity()
        self.rnn = cell(width, H, layers, batch_first=batch_first, **options)
        self.head = head or nn.Linear(H, out)
        self.batch_first, self.whole = batch_first, whole

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.rnn(self.before(x))
        if not self.whole:
            y = y[:, -1] if self.batch_first else y[-1]
        return self.head(y)


class Own(nn.Module):
    """A forward function with modules of its own."""

    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self._forward = forward

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self._forward(self, *inputs)


class Start(nn.Module):
    """Learned first states."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(F, H, batch_first=True), nn.Linear(H, 1)
        self.h, self.c = nn.Parameter(torch.randn(1, 1, H)), nn.Parameter(torch.randn(1, 1, H))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[0]
        first = self.h.expand(1, n, H).contiguous(), self.c.expand(1, n, H).contiguous()
        return self.head(self.rnn(x, first)[0][:, -1])


def lstm(width: int = F, **options: Any) -> nn.LSTM:
    return nn.LSTM(width, H, batch_first=True, **options)


def last(y: torch.Tensor) -> torch.Tensor:
    return y[:, -1]


def cases() -> dict[str, dict[str, Any]]:
    """Name -> model, and how to export it; `old` and `new` are the exporters (dynamo=False, dynamo=True)."""
    linear = nn.Linear
    made: dict[str, dict[str, Any]] = {}

    def add(name: str, model: nn.Module, **how: Any) -> None:
        made[name] = {"model": model, **how}

    for exporter in ("old", "new"):
        add(f"lstm_last_{exporter}", Rnn(), exporter=exporter)
        add(f"lstm_static_{exporter}", Rnn(out=2), exporter=exporter, static=(1, 6))
        add(f"lstm_static_batch_{exporter}", Rnn(whole=True, layers=2), exporter=exporter, static=(4, 6))
        add(f"lstm_time_first_{exporter}", Rnn(layers=2, batch_first=False, whole=True), exporter=exporter, time_axis=0)
        add(f"gru_two_{exporter}", Rnn(nn.GRU, 2, out=2), exporter=exporter)
        add(
            f"softmax_three_{exporter}",
            Rnn(layers=3, head=nn.Sequential(linear(H, 4), nn.Softmax(-1))),
            exporter=exporter,
        )
        add(
            f"dense_norm_{exporter}",
            Rnn(
                before=nn.Sequential(linear(F, 6), nn.ReLU(), nn.LayerNorm(6)), width=6, whole=True,
                head=nn.Sequential(nn.LayerNorm(H), linear(H, 5), nn.ReLU(), nn.Dropout(0.5), linear(5, 1), nn.Sigmoid()),
            ),
            exporter=exporter,
        )  # fmt: skip
        add(f"learned_start_{exporter}", Start(), exporter=exporter)
        add(f"bidirectional_{exporter}", Rnn(bidirectional=True, head=linear(2 * H, 1)), exporter=exporter)
        add(f"mean_{exporter}", Own(lambda m, x: m.o(m.r(x)[0].mean(1)), r=lstm(), o=linear(H, 1)), exporter=exporter)
        attention = Own(
            lambda m, x: m.o((torch.softmax(m.a(m.r(x)[0]), 1) * m.r(x)[0]).sum(1)),
            r=lstm(), a=linear(H, 1), o=linear(H, 1),
        )  # fmt: skip
        add(f"attention_{exporter}", attention, exporter=exporter)
        add(
            f"encoder_decoder_{exporter}",
            Own(lambda m, x: m.o(m.d(x, m.e(x)[1])[0]), e=lstm(), d=lstm(), o=linear(H, 1)),
            exporter=exporter,
        )
    add("rnn_tanh", Rnn(nn.RNN), exporter="old")
    add("rnn_relu", Rnn(nn.RNN, nonlinearity="relu", whole=True), exporter="old")
    add("lstm_no_bias", Rnn(bias=False, whole=True, out=3), exporter="old")
    add("lstm_time_first_last", Rnn(batch_first=False), exporter="old", time_axis=0)
    add("by_last_h", Own(lambda m, x: m.o(m.r(x)[1][0][-1]), r=nn.LSTM(F, H, 2, batch_first=True), o=linear(H, 1)))
    add("squeezed", Own(lambda m, x: m.o(last(m.r(x)[0])).squeeze(-1), r=lstm(), o=linear(H, 1)))
    add("several_outputs", Own(lambda m, x: (m.o(m.r(x)[0]), m.r(x)[1][0], m.r(x)[1][1]), r=lstm(), o=linear(H, 1)))
    add(
        "residual",
        Own(
            lambda m, x: m.o(m.r(m.i(x))[0] + m.q(m.r(m.i(x))[0])[0]),
            i=linear(F, H),
            r=lstm(H),
            q=lstm(H),
            o=linear(H, 1),
        ),
    )
    add("two_branches", Own(lambda m, x: m.o(torch.cat([m.a(x)[0], m.b(x)[0]], -1)), a=lstm(), b=nn.GRU(F, H, batch_first=True), o=linear(2 * H, 2)))  # fmt: skip
    add("log_input", Own(lambda m, x: m.o(last(m.r(torch.log1p(x.abs()))[0])), r=lstm(), o=linear(H, 1)))
    add("softplus_head", Own(lambda m, x: nn.functional.softplus(m.o(m.r(x)[0])), r=lstm(), o=linear(H, 2)))
    add("sine_head", Own(lambda m, x: torch.sin(3 * m.o(last(m.r(x)[0]))), r=lstm(), o=linear(H, 1)))
    add(
        "view_static",
        Own(lambda m, x: m.o(m.r(x)[0].reshape(-1, H)).view(2, 5, 2), r=lstm(), o=linear(H, 2)),
        static=(2, 5),
    )
    add("fourth_of_five", Own(lambda m, x: m.o(m.r(x)[0][:, 4]), r=lstm(), o=linear(H, 1)), static=(2, 5))
    add("square_static", Rnn(whole=True), static=(4, 4))
    add("square_time_first", Rnn(batch_first=False, whole=True), static=(4, 4), time_axis=0)
    add("univariate", Own(lambda m, x: m.o(last(m.r(x.unsqueeze(-1))[0])), r=lstm(1), o=linear(H, 1)), flat=True)
    add("horizon", Own(lambda m, x: m.o(last(m.r(x)[0])).view(-1, 2, 3), r=lstm(), o=linear(H, 6)))

    def with_state(module: Any, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> Any:
        y, (h, c) = module.r(x, (h, c))
        return module.o(y), h, c

    def cell(module: Any, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> Any:
        h, c = module.r(x, (h, c))
        return module.o(h), h, c

    two = {"r": nn.LSTM(F, H, 2, batch_first=True), "o": linear(H, 1)}
    names = {"inputs": ["x", "h", "c"], "outputs": ["y", "h_next", "c_next"]}
    add("states_in_and_out", Own(with_state, **two), states=[(2, -1, H)] * 2, **names)

    def batch_first(module: Any, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> Any:
        y, (h, c) = module.r(x, (h.transpose(0, 1).contiguous(), c.transpose(0, 1).contiguous()))
        return module.o(y), h.transpose(0, 1), c.transpose(0, 1)

    add("states_batch_first", Own(batch_first, **two), states=[(-1, 2, H)] * 2, **names)
    add("step_of_layers", Own(with_state, **two), states=[(2, -1, H)] * 2, one=True, **names)
    add("step_of_cell", Own(cell, r=nn.LSTMCell(F, H), o=linear(H, 1)), states=[(-1, H)] * 2, one=True, flat_event=True, **names)  # fmt: skip
    add(
        "step_unnamed", Own(cell, r=nn.LSTMCell(F, H), o=linear(H, 1)), states=[(-1, H)] * 2, one=True, flat_event=True,
        inputs=["x", "a", "b"], outputs=["y", "p", "q"],
    )  # fmt: skip
    add("decoder", Own(lambda m, x, h, c: m.o(m.r(x, (h, c))[0]), r=lstm(), o=linear(H, 1)), states=[(1, -1, H)] * 2,
        inputs=["x", "h", "c"], outputs=["y"])  # fmt: skip
    # --- what cannot be a step ---
    add("max_over_time", Own(lambda m, x: m.o(m.r(x)[0].max(1).values), r=lstm(), o=linear(H, 1)))
    add("flatten_time", Own(lambda m, x: m.o(m.r(x)[0].flatten(1)), r=lstm(), o=linear(6 * H, 1)), static=(2, 6))
    conv = nn.Conv1d(F, F, 3, padding=1)
    add("conv_padded", Own(lambda m, x: m.o(last(m.r(m.c(x.transpose(1, 2)).transpose(1, 2))[0])), c=conv, r=lstm(), o=linear(H, 1)))  # fmt: skip
    short = nn.Conv1d(F, F, 3)
    add("conv_short", Own(lambda m, x: m.o(last(m.r(m.c(x.transpose(1, 2)).transpose(1, 2))[0])), c=short, r=lstm(), o=linear(H, 1)))  # fmt: skip
    add("flipped", Own(lambda m, x: m.o(last(m.r(x.flip(1))[0])), r=lstm(), o=linear(H, 1)))
    add("differences", Own(lambda m, x: m.o(last(m.r(x[:, 1:] - x[:, :-1])[0])), r=lstm(), o=linear(H, 1)))
    add("scaled_by_window", Own(lambda m, x: m.o(last(m.r(x - x.mean(1, keepdim=True))[0])), r=lstm(), o=linear(H, 1)))
    add("first_event_too", Own(lambda m, x: m.o(m.r(x)[0][:, -1] + m.r(x)[0][:, 0]), r=lstm(), o=linear(H, 1)))
    add("repeated", Own(lambda m, x: m.o(m.d(m.e(x)[0][:, -1:].expand(-1, 6, -1).contiguous())[0]), e=lstm(), d=lstm(H), o=linear(H, 1)), static=(2, 6))  # fmt: skip
    position = nn.Embedding(6, F)
    add(
        "positions",
        Own(lambda m, x: m.o(last(m.r(x + m.p.weight)[0])), p=position, r=lstm(), o=linear(H, 1)),
        static=(2, 6),
    )
    add("over_the_batch", Own(lambda m, x: m.o(last(m.r(x)[0]) - m.r(x)[0].mean((0, 1))), r=lstm(), o=linear(H, 1)))
    add(
        "batch_scaled",
        Own(lambda m, x: m.o(last(m.r(x)[0]) / m.r(x)[0][:, -1].abs().amax(0)), r=lstm(), o=linear(H, 1)),
    )
    add("no_memory", Own(lambda m, x: m.o(x), o=linear(F, 1)))
    add("one_event", Rnn(), static=(2, 1))
    add("no_batch", Own(lambda m, x: m.o(m.r(x)[0]), r=nn.LSTM(F, H), o=linear(H, 1)), unbatched=True)
    add("projection", Own(lambda m, x: m.o(m.r(x)[0]), r=lstm(proj_size=4), o=linear(4, 1)), exporter="new")
    add(
        "tokens",
        Own(lambda m, x: m.o(last(m.r(m.e(x))[0])), e=nn.Embedding(20, F), r=lstm(), o=linear(H, 1)),
        tokens=True,
    )
    add("doubles", Rnn().double(), double=True)
    add("two_inputs", Own(lambda m, x, y: m.o(last(m.r(torch.cat([x, y], -1))[0])), r=lstm(2 * F), o=linear(H, 1)), second=True,
        inputs=["x", "y"], outputs=["out"])  # fmt: skip
    return made


def export(path: Path, case: dict[str, Any]) -> None:
    model = case["model"].eval()
    static, time_axis = case.get("static"), case.get("time_axis", 1)
    batch, length = static or (2, 1 if case.get("one") else 5)
    x = case["make"](batch, length)
    inputs: tuple[torch.Tensor, ...] = (
        x,
        *(torch.zeros([batch if n == -1 else n for n in s]) for s in case.get("states", ())),
    )
    if case.get("second"):
        inputs = (x, x)
    names = case.get("inputs", ["input"])
    axes: dict[str, Any] = {}
    if static is None:
        free = {0: "batch", 1: "time"} if time_axis == 1 else {0: "time", 1: "batch"}
        if case.get("one"):
            free = {0: "batch"}
        axes = dict.fromkeys(names[: 2 if case.get("second") else 1], free)
        axes |= {name: {list(s).index(-1): "batch"} for name, s in zip(names[1:], case.get("states", ()), strict=False)}
        if case.get("unbatched"):
            axes = {"input": {0: "time"}}
    options: dict[str, Any] = {"dynamo": False, "dynamic_axes": axes}
    if case.get("exporter") == "new":
        free_dim = torch.export.Dim.DYNAMIC
        options = {"dynamo": True, "external_data": False}
        if axes:
            options["dynamic_shapes"] = (dict.fromkeys(axes[names[0]], free_dim),)
            if isinstance(model, Own):  # its forward takes *inputs
                options["dynamic_shapes"] = (options["dynamic_shapes"],)
    torch.onnx.export(
        model, inputs, str(path), input_names=names, output_names=case.get("outputs"), verbose=False, **options
    )


def input_maker(case: dict[str, Any]) -> Callable[[int, int], torch.Tensor]:
    """x as the model takes it, of a batch and a length."""

    def make(batch: int, length: int) -> torch.Tensor:
        if case.get("tokens"):
            return torch.randint(0, 20, (batch, length))
        if case.get("flat"):
            return torch.randn(batch, length)
        if case.get("flat_event"):
            return torch.randn(batch, F)
        if case.get("unbatched"):
            return torch.randn(length, F)
        shape = (batch, length, F) if case.get("time_axis", 1) == 1 else (length, batch, F)
        return torch.randn(shape, dtype=torch.float64 if case.get("double") else torch.float32)

    return make


def record(path: Path, case: dict[str, Any]) -> None:
    """What torch answers, of whole sequences and of their prefixes."""
    model, time_axis = case["model"].eval(), case.get("time_axis", 1)
    static = case.get("static")
    kept: dict[str, np.ndarray] = {}
    for number, (batch, length) in enumerate([static, static] if static else [(3, 6), (4, 11)]):
        x = torch.randn(batch, length, 1 if case.get("flat") else F)
        answers, positions = [], []
        states = [torch.zeros([batch if n == -1 else n for n in s]) for s in case.get("states", ())]
        for event in range(length):
            part = x[:, event : event + 1] if case.get("one") else x[:, : event + 1]
            if static and event + 1 < length:
                continue
            given = part.transpose(0, 1) if time_axis == 0 else part
            given = given[..., 0] if case.get("flat") else given
            given = given[:, 0] if case.get("flat_event") else given
            with torch.no_grad():
                out = model(given.double() if case.get("double") else given, *states)
            if isinstance(out, tuple):
                if case.get("one"):
                    states = list(out[1:])
                out = out[0]
            answers.append(_rows(out, batch, event + 1, time_axis, case))
            positions.append(event)
        kept |= {f"x{number}": x.numpy(), f"y{number}": np.stack(answers, 1), f"at{number}": np.array(positions)}
    np.savez(path, **kept)  # type: ignore[arg-type]  # numpy's stubs take the first for allow_pickle


def _rows(out: torch.Tensor, batch: int, length: int, time_axis: int, case: dict[str, Any]) -> np.ndarray:
    """[B, P]: the answer at the last event."""
    whole = getattr(case["model"], "whole", None)
    whole = case.get(
        "time_in_answer",
        whole if whole is not None else out.ndim == 3 and out.shape[1] == length and out.shape[0] == batch,
    )
    if case["name"] == "horizon":
        whole = False
    if whole and not case.get("flat_event"):
        out = out[-1] if time_axis == 0 else out[:, -1]
    return out.reshape(batch, -1).numpy()


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name, case in cases().items():
        case["name"] = name
        case["make"] = input_maker(case)
        export(folder / f"{name}.onnx", case)
        if name in STEPS:
            record(folder / f"{name}.npz", case)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
