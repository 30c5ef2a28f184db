"""What the network in torch predicts over whole sequences, for every task.

`predict_sequences` gives, in float32, what the exported step model gives event by event. The anomaly score is computed
here by the formulas of export/heads.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lstmstream.train.export.heads import MAX_JUMP, MAX_LOG, MAX_Z, raw_unit_scale
from lstmstream.train.export.network_spec import Calibration, FeatureEncoder
from lstmstream.train.network import Anomaly, Classes, Forecast, TorchNetwork

_WINDOW_ROWS = 1 << 16  # encoded rows of windows that are computed at once


def forward_sequences(network: TorchNetwork, dense: Tensor, codes: Tensor) -> Tensor:
    """The outputs [B, T, O] over whole sequences from their first events; `dense` is [B, T, D], `codes` [B, T, C].

    With a window the output at an event is that of the last `window` events up to it, or of fewer at the beginning.
    """
    window, steps = network.architecture.window, dense.shape[1]
    head_steps = steps if window is None else min(window - 1, steps)  # where the window holds all events so far
    outputs = []
    if head_steps:
        initial = network.initial_state(len(dense))
        outputs.append(network(dense[:, :head_steps], codes[:, :head_steps], initial)[0])
    if window is not None and steps >= window:
        at_once = max(1, _WINDOW_ROWS // (window * len(dense)))  # windows of each sequence
        for start in range(0, steps - window + 1, at_once):
            span = slice(start, start + at_once + window - 1)
            views = [part[:, span].unfold(1, window, 1).movedim(-1, 2) for part in (dense, codes)]
            count = views[0].shape[:2]  # of [B, windows, window, columns]
            flat = (part.flatten(0, 1) for part in views)
            last = network(*flat, network.initial_state(count.numel()))[0][:, -1]
            outputs.append(last.unflatten(0, count))
    return torch.cat(outputs, 1)


def normalized_error(output: Tensor, dense: Tensor, missing: Tensor, task_head: Anomaly) -> Tensor:
    """[B, T] How far each event is from the forecast at the event before it, in units of the forecast's scale.

    `output` [B, T, O] is the network's, `missing` [B, T, F] of the encoder's numbers. The error is the root mean
    square, over the columns that are not missing, of (value - mean) / scale clipped to +-100. It is NaN at a first
    event and at an event without any of the columns.
    """
    columns = list(task_head.columns)
    means, log_scales = output[:, :-1].chunk(2, -1)
    z = ((dense[:, 1:, columns] - means) / log_scales.exp()).clamp(-MAX_Z, MAX_Z)
    absent = missing[:, 1:, columns]
    count = (~absent).sum(-1)
    error = (torch.where(absent, 0, z * z).sum(-1) / count.clamp(min=1)).sqrt()
    error = torch.where(count > 0, error, torch.nan)
    return torch.cat([error.new_full((len(error), 1), torch.nan), error], 1)


def anomaly_scores(error: Tensor, calibration: Calibration) -> tuple[Tensor, Tensor]:
    """The scores [B, T] in 0..1 of normalized errors [B, T], and the fourth moment [B, T] after each event.

    The score is 0 where the error is NaN. The docstring of export/heads.py has the formulas.
    """
    moment = error.new_full((len(error),), calibration.initial_moment)
    scores, moments = [], []
    for now in error.unbind(1):
        level = moment.sqrt().sqrt()
        fourth_power = torch.minimum(now, MAX_JUMP * level).square().square()
        new = (moment + calibration.alpha * (fourth_power - moment)).clamp(min=calibration.min_moment)
        known = ~now.isnan()
        scores.append(torch.where(known, now / (now + calibration.half_point * level), 0))
        moment = torch.where(known, new, moment)
        moments.append(moment)
    return torch.stack(scores, 1), torch.stack(moments, 1)


def predict_sequences(
    network: TorchNetwork,
    dense: Tensor,
    codes: Tensor,
    missing: Tensor,
    lengths: Tensor,
    calibration: Calibration | None = None,
) -> tuple[Tensor, Tensor]:
    """What serving gives for whole sequences: score [B, T] and prediction [B, T, P], NaN from `lengths` [B] on.

    The predictions are probabilities for Classes, forecasts in raw units for Forecast, and for Anomaly the forecast of
    the next event's columns in raw units. `missing` [B, T, F] is used for Anomaly only, which needs a calibration:
    ValueError without.
    """
    training = network.training
    network.eval()
    with torch.no_grad():
        output = forward_sequences(network, dense, codes)
        score, prediction = _score_and_prediction(network, output, dense, missing, calibration)
        padding = torch.arange(dense.shape[1], device=dense.device) >= lengths.to(dense.device)[:, None]
        score, prediction = score.masked_fill(padding, torch.nan), prediction.masked_fill(padding[..., None], torch.nan)
    network.train(training)
    return score, prediction


def _score_and_prediction(
    network: TorchNetwork, output: Tensor, dense: Tensor, missing: Tensor, calibration: Calibration | None
) -> tuple[Tensor, Tensor]:
    task_head = network.task_head
    if isinstance(task_head, Classes):
        prediction = torch.sigmoid(output) if task_head.count == 1 else torch.softmax(output, -1)
        return prediction[..., 0] if task_head.count == 1 else (1 - prediction[..., 0]).clamp(min=0), prediction
    if isinstance(task_head, Forecast):
        prediction = to_raw_units(output, network.encoder, task_head.columns * task_head.horizon)
        return prediction[..., 0], prediction
    if calibration is None:
        raise ValueError("an anomaly score needs a calibration")
    score, _ = anomaly_scores(normalized_error(output, dense, missing, task_head), calibration)
    return score, to_raw_units(output.chunk(2, -1)[0], network.encoder, task_head.columns)


def to_raw_units(scaled: Tensor, encoder: FeatureEncoder, columns: Sequence[int]) -> Tensor:
    """Scaled values [..., P] in raw units; `columns` [P] are indices into the numbers. export/heads.py has the formula.

    Numbers with log are clipped before the exponential, so that they stay finite.
    """
    index = list(columns)
    scale, centre = (torch.from_numpy(values[index]).to(scaled.device) for values in raw_unit_scale(encoder.numbers))
    has_log = torch.tensor([encoder.numbers[column].log for column in index], device=scaled.device)
    linear = scaled * scale + centre
    exponential = linear.sign() * (linear.abs().clamp(max=MAX_LOG).exp() - 1)
    return torch.where(has_log, exponential, linear)
