"""What the network is to learn, by task: which events count, what was to be said of them, and how wrong it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lstmstream.train.export import Encoder
from lstmstream.train.export.heads import LARGEST_Z
from lstmstream.train.history import features
from lstmstream.train.history.data import Events
from lstmstream.train.history.read import Floats, Ints
from lstmstream.train.history.split import Parts
from lstmstream.train.pieces import Bools, Piece
from lstmstream.train.schema import TrainConfig

HUBER_FROM = 1.0  # in scaled units, errors grow linearly from here


def counting(events: Events, parts: Parts, config: TrainConfig, part: int) -> Bools:
    """[N] Whether the network's output at an event belongs to the part.

    To classify: events of the part that have a label (per sequence: only each key's last event). Else: events whose
    next `horizon` events are all of the part; a forecast belongs where it comes true.
    """
    here = parts.of == part
    if config.task == "classify":
        counted: Bools = here & (np.asarray(events.label) >= 0)
        if config.target.per == "sequence":
            ends = np.zeros(len(events), np.bool_)
            ends[events.starts[1:] - 1] = True
            counted &= ends
        return counted
    horizon = config.target.horizon
    sequence = events.sequence()
    counted = np.zeros(len(events), np.bool_)
    if len(events) > horizon:
        there = sequence[:-horizon] == sequence[horizon:]
        for ahead in range(1, horizon + 1):
            there &= here[ahead : len(here) - horizon + ahead]
        counted[:-horizon] = there
    return counted


@dataclass(frozen=True, slots=True)
class Objective:
    """A task's error, on tensors of one piece: outputs [B, T, O] of the network."""

    config: TrainConfig
    encoder: Encoder
    weights: Floats  # [K] of the classes, or [0]

    def wanted(self, events: Events, piece: Piece) -> tuple[Tensor, Tensor]:
        """What was to be said [B, T, P] (classes: [B, T, 1] int64) and where it is known and counts, as bool."""
        if self.config.task == "classify":
            label = np.asarray(events.label[piece.rows])[..., np.newaxis]
            return torch.from_numpy(label), torch.from_numpy(piece.counted[..., np.newaxis] & (label >= 0))
        columns = list(self.config.targets)
        ahead = piece.rows[..., np.newaxis] + np.arange(1, self.config.target.horizon + 1)
        raw = np.asarray(events.x[np.minimum(ahead, len(events) - 1)])[..., columns]  # [B, T, horizon, columns]
        numbers = [self.encoder.numbers[column] for column in columns]
        flat = raw.reshape(*piece.rows.shape, -1)
        values = features.scale(numbers, raw, self.encoder.limit).reshape(flat.shape)
        return torch.from_numpy(values), torch.from_numpy(piece.counted[..., np.newaxis] & ~np.isnan(flat))

    def error(self, output: Tensor, wanted: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """The summed error and the summed weights; their ratio is the loss."""
        if self.config.task == "classify":
            return self._of_classes(output, wanted, known)
        if self.config.task == "anomaly":
            width = wanted.shape[-1]
            mean, log_scale = output[..., :width], output[..., width:]
            off = (wanted - mean) * torch.exp(-log_scale)
            # Gaussian negative log-likelihood, less a constant; linear where it would drown everything else
            each = log_scale + functional.huber_loss(off, torch.zeros_like(off), reduction="none", delta=LARGEST_Z)
        elif self.config.target.loss == "mae":
            each = (output - wanted).abs()
        elif self.config.target.loss == "huber":
            each = functional.huber_loss(output, wanted, reduction="none", delta=HUBER_FROM)
        else:
            each = (output - wanted) ** 2
        return each[known].sum(), known.sum()

    def _of_classes(self, output: Tensor, wanted: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        label, counted = wanted[..., 0], known[..., 0]
        weight = torch.from_numpy(self.weights).to(output.device)[label[counted]]
        if output.shape[-1] == 1:
            each = functional.binary_cross_entropy_with_logits(
                output[..., 0][counted], label[counted].to(output.dtype), reduction="none"
            )
        else:
            each = functional.cross_entropy(output[counted], label[counted], reduction="none")
        return (each * weight).sum(), weight.sum()


def class_weights(option: str | list[float], counts: Ints) -> Floats:
    """[K] by the option and the classes' counts in the training part; balanced: n / (K n_c)."""
    if option == "none":
        return np.ones(len(counts), np.float32)
    if option == "balanced":
        balanced: Floats = (counts.sum() / (len(counts) * np.maximum(counts, 1))).astype(np.float32)
        return balanced
    return np.array(option, np.float32)


def class_counts(events: Events, counted: Bools) -> Ints:
    """[K] Labels of each class among the events that count."""
    return np.bincount(np.asarray(events.label)[counted], minlength=len(events.classes))


def hide(dense: Tensor, encoder: Encoder, share: float, noise: float, random: Any) -> Tensor:
    """Numbers [B, T, D] with noise, and a share of them as if they were missing (elapsed stays)."""
    count = len(encoder.numbers)
    if not count or not (share or noise):
        return dense
    dense = dense.clone()
    numbers = dense[..., :count]
    if noise:
        numbers += noise * torch.randn(numbers.shape, generator=random).to(dense.device)
    if share:
        hidden = (torch.rand(numbers.shape, generator=random) < share).to(dense.device)
        numbers.masked_fill_(hidden, 0.0)
        for column, flag in enumerate(features.flag_columns(encoder)):
            if flag is not None:
                dense[..., flag].masked_fill_(hidden[..., column], 1.0)
    return dense
