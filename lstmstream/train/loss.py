"""The loss of each task: which outputs are in it, what the targets are, and how large the loss is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lstmstream.history.events import Events
from lstmstream.history.split import Split
from lstmstream.records import Bools, Floats, Ints
from lstmstream.train import features
from lstmstream.train.batching import SequenceBatch
from lstmstream.train.export import FeatureEncoder
from lstmstream.train.export.heads import MAX_Z
from lstmstream.train.schema import TrainConfig

_ROWS = 1 << 16  # of events that are looked at at once
HUBER_DELTA = 1.0  # in scaled units: errors count linearly beyond it


def make_loss_mask(events: Events, split: Split, config: TrainConfig, split_label: int) -> Bools:
    """[N] Whether the network's output at an event is in the loss of one split: TRAIN, VALIDATION or TEST.

    For classification: events of the split with a class label (with `target.per: sequence` only a key's last event).
    Otherwise: events whose next `horizon` events are all in the split; a forecast belongs where its targets are.
    """
    in_split = split.labels == split_label
    if config.task == "classify":
        mask: Bools = in_split & (np.asarray(events.label) >= 0)
        if config.target.per == "sequence":
            last_of_key = np.zeros(len(events), np.bool_)
            last_of_key[events.starts[1:] - 1] = True
            mask &= last_of_key
        return mask
    horizon = config.target.horizon
    keys = events.key_indices()
    mask = np.zeros(len(events), np.bool_)
    if len(events) > horizon:
        has_targets = keys[:-horizon] == keys[horizon:]
        for ahead in range(1, horizon + 1):
            has_targets &= in_split[ahead : len(in_split) - horizon + ahead]
        mask[:-horizon] = has_targets
    return mask


@dataclass(frozen=True, slots=True)
class Objective:
    """The targets and the loss of a task, for the network's outputs [B, T, O] on one batch."""

    config: TrainConfig
    encoder: FeatureEncoder
    class_weights: Floats  # [K], or [0] where the task is not classification

    def targets(self, events: Events, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """The targets [B, T, P] and a bool mask [B, T, P] of those that are known and in the loss.

        For classification the targets are class indices [B, T, 1] int64, otherwise scaled values.
        """
        if self.config.task == "classify":
            label = np.asarray(events.label[batch.rows])[..., np.newaxis]
            return torch.from_numpy(label), torch.from_numpy(batch.loss_mask[..., np.newaxis] & (label >= 0))
        columns = list(self.config.targets)
        ahead = batch.rows[..., np.newaxis] + np.arange(1, self.config.target.horizon + 1)
        raw = np.asarray(events.x[np.minimum(ahead, len(events) - 1)])[..., columns]  # [B, T, horizon, columns]
        numbers = [self.encoder.numbers[column] for column in columns]
        flat = raw.reshape(*batch.rows.shape, -1)
        values = features.scale_numbers(numbers, raw, self.encoder.limit).reshape(flat.shape)
        return torch.from_numpy(values), torch.from_numpy(batch.loss_mask[..., np.newaxis] & ~np.isnan(flat))

    def total_weight(self, events: Events, mask: Bools) -> float:
        """The sum of the weights that `loss` gives for the events that `mask` [N] marks, in one pass over them."""
        if self.config.task == "classify":
            return float(class_counts(events, mask) @ self.class_weights.astype(np.float64))
        columns, total = list(self.config.targets), 0
        rows = np.flatnonzero(mask)
        for start in range(0, len(rows), _ROWS):
            for ahead in range(1, self.config.target.horizon + 1):
                total += int((~np.isnan(np.asarray(events.x[rows[start : start + _ROWS] + ahead])[:, columns])).sum())
        return float(total)

    def loss(self, output: Tensor, targets: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """The summed loss and the summed weights, both scalars; their ratio is the mean loss."""
        if self.config.task == "classify":
            return self._cross_entropy(output, targets, known)
        if self.config.task == "anomaly":
            width = targets.shape[-1]
            mean, log_scale = output[..., :width], output[..., width:]
            z = (targets - mean) * torch.exp(-log_scale)
            # Gaussian negative log-likelihood without its constant; linear where it would outweigh everything else
            each = log_scale + functional.huber_loss(z, torch.zeros_like(z), reduction="none", delta=MAX_Z)
        elif self.config.target.loss == "mae":
            each = (output - targets).abs()
        elif self.config.target.loss == "huber":
            each = functional.huber_loss(output, targets, reduction="none", delta=HUBER_DELTA)
        else:
            each = (output - targets) ** 2
        return each[known].sum(), known.sum()

    def _cross_entropy(self, output: Tensor, targets: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        label, in_loss = targets[..., 0], known[..., 0]
        weight = torch.from_numpy(self.class_weights).to(output.device)[label[in_loss]]
        if output.shape[-1] == 1:
            each = functional.binary_cross_entropy_with_logits(
                output[..., 0][in_loss], label[in_loss].to(output.dtype), reduction="none"
            )
        else:
            each = functional.cross_entropy(output[in_loss], label[in_loss], reduction="none")
        return (each * weight).sum(), weight.sum()


def class_weights(option: str | list[float], counts: Ints) -> Floats:
    """[K] The classes' weights from the option and their counts [K] in the training split; balanced: n / (K n_c)."""
    if option == "none":
        return np.ones(len(counts), np.float32)
    if option == "balanced":
        balanced: Floats = (counts.sum() / (len(counts) * np.maximum(counts, 1))).astype(np.float32)
        return balanced
    return np.array(option, np.float32)


def class_counts(events: Events, loss_mask: Bools) -> Ints:
    """[K] How often each class occurs among the events that `loss_mask` [N] marks."""
    return np.bincount(np.asarray(events.label)[loss_mask], minlength=len(events.classes))


def augment(
    dense: Tensor, absent: Tensor, encoder: FeatureEncoder, mask_fraction: float, noise: float, generator: Any
) -> Tensor:
    """The dense inputs [B, T, D] with noise on the numbers, and a fraction of the numbers shown as missing.

    `absent` [B, T, F] marks numbers that are missing: they get no noise. `noise` is a standard deviation in scaled
    units, `generator` a torch.Generator. Elapsed, the clock and the statistics of earlier events stay; only how far a
    hidden number is from them is hidden too.
    """
    count = len(encoder.numbers)
    if not count or not (mask_fraction or noise):
        return dense
    dense = dense.clone()
    numbers = dense[..., :count]
    if noise:
        added = noise * torch.randn(numbers.shape, generator=generator).to(dense.device)
        numbers += added.masked_fill_(absent, 0.0)
    if mask_fraction:
        masked = (torch.rand(numbers.shape, generator=generator) < mask_fraction).to(dense.device)
        numbers.masked_fill_(masked, 0.0)
        for column, flag in enumerate(features.missing_flag_columns(encoder)):
            if flag is not None:
                dense[..., flag].masked_fill_(masked[..., column], 1.0)
        for column, deviation in features.deviation_columns(encoder):
            dense[..., deviation].masked_fill_(masked[..., column], 0.0)
    return dense
