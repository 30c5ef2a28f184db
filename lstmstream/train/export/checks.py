"""Checks that the arrays of a network specification fit together; an error names the one that does not."""

from __future__ import annotations

import numpy as np

from lstmstream.train.export.named_cells import NAMED_CELLS
from lstmstream.train.export.network_spec import (
    AnomalyHead,
    DenseHead,
    FeatureEncoder,
    ForecastHead,
    History,
    Layer,
    Lstm,
    NamedLayer,
    NetworkSpec,
)

MAX_SCALE = 1e30  # of centre and scale; float32 ends at 3e38
MIN_WINDOW_S, MAX_WINDOW_S = 1e-3, 36_500 * 86_400.0  # of a history
MAX_WINDOW = 500  # events; each is a copy of all layers in the graph


def validate(spec: NetworkSpec) -> None:
    """Raises ValueError for arrays whose shapes do not fit together, or values out of their bounds."""
    if spec.encoder.width == 0 or not spec.layers:
        raise ValueError("the network needs at least one input and one layer")
    if spec.window is not None and not 1 <= spec.window <= MAX_WINDOW:
        raise ValueError(f"window: {spec.window} should be from 1 to {MAX_WINDOW}")
    _validate_encoder(spec.encoder)
    width = spec.encoder.width
    for index, layer in enumerate(spec.layers):
        _validate_layer(index, layer, width)
        width = layer.width
    head = spec.head
    if head.weight.ndim != 2 or head.weight.shape[1] != width or head.bias.shape != head.weight.shape[:1]:
        raise ValueError(f"head: weight {head.weight.shape} and bias {head.bias.shape} do not fit {width} inputs")
    if isinstance(head, DenseHead):
        wrong = {"sigmoid": len(head.bias) != 1, "softmax": len(head.bias) < 2, "none": len(head.bias) < 1}
        if wrong.get(head.activation, True):
            raise ValueError(f"head: {len(head.bias)} outputs with activation {head.activation!r}")
    else:
        _validate_forecast(spec.encoder, head)


def _validate_layer(index: int, layer: Layer, width: int) -> None:
    if isinstance(layer, NamedLayer):
        _validate_named_layer(index, layer, width)
        return
    h, gates = layer.hidden, 4 if isinstance(layer, Lstm) else 3
    out = h
    if isinstance(layer, Lstm) and layer.projection is not None:
        out = np.shape(layer.projection)[0]
        if np.shape(layer.projection) != (out, h):
            raise ValueError(f"layer {index} projection: shape {np.shape(layer.projection)}, should be {(out, h)}")
    shapes: dict[str, tuple[int, ...]] = {
        "weight_ih": (gates * h, width),
        "weight_hh": (gates * h, out),
        "bias": (2 * gates * h,),
        "initial_h": (out,),
        "initial_c": (h,),
    }
    for name, shape in shapes.items():
        values = getattr(layer, name, None)
        if values is not None and np.shape(values) != shape:
            raise ValueError(f"layer {index} {name}: shape {np.shape(values)}, should be {shape}")
    if layer.activation not in {"tanh", "relu"}:
        raise ValueError(f"layer {index} activation: {layer.activation!r} should be tanh or relu")


def _validate_named_layer(index: int, layer: NamedLayer, width: int) -> None:
    kind = NAMED_CELLS[layer.cell]
    shapes = kind.weight_shapes(width, layer.hidden)
    states = {f"initial_{letter}": (count * layer.hidden,) for letter, count, _ in kind.state}
    given = {**layer.weights, **{f"initial_{letter}": values for letter, values in layer.initial.items()}}
    for name in dict.fromkeys([*shapes, *given]):
        shape = np.shape(given[name]) if name in given else None
        wanted = (shapes | states).get(name)
        if shape != wanted:
            raise ValueError(f"layer {index} {name}: shape {shape}, should be {wanted}")
    if layer.activation != "tanh":
        raise ValueError(f"layer {index} activation: {layer.activation!r}; {layer.cell} has its own")


def _validate_forecast(encoder: FeatureEncoder, head: ForecastHead | AnomalyHead) -> None:
    columns = head.columns
    if not columns or len(set(columns)) != len(columns) or not all(0 <= c < len(encoder.numbers) for c in columns):
        raise ValueError(f"head: columns {columns} should be distinct indices of the {len(encoder.numbers)} numbers")
    each = 2 if isinstance(head, AnomalyHead) else head.horizon
    if each < 1 or len(head.bias) != each * len(columns):
        raise ValueError(f"head: {len(head.bias)} outputs, should be {each} for each of {len(columns)} columns")
    if isinstance(head, AnomalyHead):
        calibration = head.calibration
        level, half_point, alpha = calibration.initial_level, calibration.half_point, calibration.alpha
        if not (1e-6 <= level <= 1e6 and 1e-6 <= half_point <= 1e6 and 0 < alpha <= 1):  # NaN fails too
            raise ValueError(
                f"calibration: initial_level {level} and half_point {half_point} should be from 1e-6 to 1e6,"
                f" alpha {alpha} above 0, up to 1"
            )


def _validate_encoder(encoder: FeatureEncoder) -> None:
    if not 0 < encoder.limit < 1e30:
        raise ValueError(f"encoder limit: {encoder.limit} should be above 0 and below 1e30")
    scaled: list[tuple[str, float, float]] = [(f"number {one.name}", one.centre, one.scale) for one in encoder.numbers]
    if encoder.elapsed is not None:
        scaled.append(("elapsed", encoder.elapsed.centre, encoder.elapsed.scale))
    for name, centre, scale in scaled:
        if not (abs(centre) < MAX_SCALE and 1 / MAX_SCALE < scale < MAX_SCALE):  # NaN fails too
            raise ValueError(f"{name}: centre {centre} and scale {scale} should be below 1e30, scale above 1e-30")
    if encoder.history is not None:
        _validate_history(encoder, encoder.history)
    for category in encoder.categories:
        codes = len(category.vocabulary or ()) or category.buckets or 0
        if category.table.ndim != 2 or category.table.shape[0] != codes + 1:
            raise ValueError(f"category {category.name}: {codes} codes need a table of {codes + 1} rows")


def _validate_history(encoder: FeatureEncoder, history: History) -> None:
    count = len(history)
    if not count or len(history.windows_s) != count or not all(0 <= c < len(encoder.numbers) for c in history.columns):
        raise ValueError(
            f"history: columns {history.columns} should be indices of the {len(encoder.numbers)} numbers,"
            f" and windows {history.windows_s} as many"
        )
    if not all(MIN_WINDOW_S <= window <= MAX_WINDOW_S for window in history.windows_s):
        raise ValueError(f"history: windows {history.windows_s} should be from 1 ms to 100 years")
    if len(set(encoder.history_names)) != count:
        raise ValueError(f"history: the same window twice in {', '.join(encoder.history_names)}")
    if not len(history.centre) == len(history.scale) == 4 * count:
        raise ValueError(f"history: {len(history.centre)} centres and {len(history.scale)} scales, not {4 * count}")
    if not all(abs(value) < MAX_SCALE for value in history.centre) or not all(
        1 / MAX_SCALE < value < MAX_SCALE for value in history.scale
    ):
        raise ValueError("history: centres and scales should be below 1e30, scales above 1e-30")
