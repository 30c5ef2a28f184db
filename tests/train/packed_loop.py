"""A plain PyTorch loop over packed sequences, as a tutorial writes it: what the trainer is compared with.

It shares no code with the product: its own splits, targets, losses, class weights and order of the batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence


@dataclass(frozen=True)
class Sequence:
    """One key: inputs [T, D], what is to be predicted [T], and whether an event is in the loss [T]."""

    inputs: Tensor
    targets: Tensor
    in_loss: Tensor

    def cut(self, low: int, high: int) -> Sequence:
        """The events low .. high - 1."""
        return Sequence(self.inputs[low:high], self.targets[low:high], self.in_loss[low:high])

    def until_last_in_loss(self) -> Sequence:
        """Without the events after the last one in the loss."""
        rows = torch.nonzero(self.in_loss)
        return self.cut(0, int(rows[-1]) + 1 if len(rows) else 0)


class PlainNetwork(nn.Module):
    """One LSTM layer and a linear head."""

    def __init__(self, width: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(width, hidden, batch_first=True)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, inputs: list[Tensor], state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Outputs [n, O] of all events, one sequence after the other, and the states after each sequence's last."""
        output, state = self.rnn(pack_sequence(inputs, enforce_sorted=False), state)
        padded, lengths = pad_packed_sequence(output, batch_first=True)
        return self.head(padded[torch.arange(padded.shape[1]) < lengths[:, None]]), state


def event_losses(task: str, output: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted loss of each event [n] and its weight [n]; forecasts are changes of the first input."""
    if task == "classify":
        weight = weights[targets.long()]
        return nn.functional.binary_cross_entropy_with_logits(output[:, 0], targets, weight, reduction="none"), weight
    mean, one = output[:, 0] + inputs[:, 0], torch.ones(len(output))
    if task == "forecast":
        return (mean - targets) ** 2, one
    variance = torch.exp(2 * output[:, 1])
    return nn.functional.gaussian_nll_loss(mean, targets, variance, reduction="none"), one


def run_pieces(
    network: PlainNetwork, sequences: list[Sequence], groups: list[list[int]], steps: int
) -> Iterator[tuple[Tensor, Sequence]]:
    """Outputs [n, O] and the events of a group of sequences at once, `steps` events at a time, with carried states."""
    hidden = network.rnn.hidden_size
    for indices in groups:
        group = [sequences[index] for index in indices]
        h, c = torch.zeros(1, len(group), hidden), torch.zeros(1, len(group), hidden)
        for low in range(0, max(len(one.inputs) for one in group), steps):
            active = [index for index, one in enumerate(group) if len(one.inputs) > low]
            pieces = [group[index].cut(low, low + steps) for index in active]
            output, (new_h, new_c) = network([one.inputs for one in pieces], (h[:, active], c[:, active]))
            h[:, active], c[:, active] = new_h.detach(), new_c.detach()
            whole = (torch.cat([getattr(one, name) for one in pieces]) for name in ("inputs", "targets", "in_loss"))
            yield output, Sequence(*whole)


def similar_lengths(sequences: list[Sequence], order: list[int], batch: int) -> list[list[int]]:
    """Groups of `batch` sequences of similar length, the longest first; those of equal length in the given order."""
    order = sorted(order, key=lambda index: -len(sequences[index].inputs))
    return [order[at : at + batch] for at in range(0, len(order), batch)]


def train_epoch(
    network: PlainNetwork,
    optimizer: torch.optim.Optimizer,
    sequences: list[Sequence],
    *,
    task: str,
    weights: Tensor,
    batch: int,
    steps: int,
    clip: float,
) -> float:
    """One pass over the sequences in random order; each update takes the mean loss of its events.

    Sequences of similar length share their batches, as is usual: otherwise uneven ones take many more updates.
    Returns the mean loss of all events, each as it was at its update.
    """
    loss_sum = weight_sum = 0.0
    groups = similar_lengths(sequences, torch.randperm(len(sequences)).tolist(), batch)
    groups = [groups[index] for index in torch.randperm(len(groups)).tolist()]
    for output, events in run_pieces(network, sequences, groups, steps):
        mask = events.in_loss
        if mask.any():
            loss, weight = event_losses(task, output[mask], events.inputs[mask], events.targets[mask], weights)
            loss_sum, weight_sum = loss_sum + float(loss.detach().sum()), weight_sum + float(weight.sum())
            optimizer.zero_grad()
            loss.mean().backward()
            nn.utils.clip_grad_norm_(network.parameters(), clip)
            optimizer.step()
    return loss_sum / weight_sum


def mean_loss(network: PlainNetwork, sequences: list[Sequence], *, task: str, weights: Tensor) -> float:
    """The mean loss of the events in the loss, each key run as one sequence."""
    loss_sum = weight_sum = 0.0
    groups = similar_lengths(sequences, list(range(len(sequences))), batch=512)
    with torch.no_grad():
        for output, events in run_pieces(network, sequences, groups, steps=64):
            mask = events.in_loss
            loss, weight = event_losses(task, output[mask], events.inputs[mask], events.targets[mask], weights)
            loss_sum, weight_sum = loss_sum + float(loss.sum()), weight_sum + float(weight.sum())
    return loss_sum / weight_sum


def sequences_of_split(sequences: list[Sequence], masks: list[Tensor]) -> list[Sequence]:
    """The sequences with these events in the loss, up to the last such event of each."""
    cut = [replace(one, in_loss=mask).until_last_in_loss() for one, mask in zip(sequences, masks, strict=True)]
    return [one for one in cut if len(one.inputs)]
