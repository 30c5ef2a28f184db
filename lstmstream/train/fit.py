"""The training loop: truncated backpropagation through time, with each key's state carried on as in serving.

One pass over the training part is an epoch; after each the validation part chooses whether it is the best so far, and
everything needed to go on is saved. Knows nothing of files' formats, thresholds or reports.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lstmstream.errors import CannotServe
from lstmstream.train.history import features
from lstmstream.train.history.data import Events
from lstmstream.train.history.read import Floats, Ints
from lstmstream.train.measure.metrics import Judged, average_precision, rank
from lstmstream.train.network import Net
from lstmstream.train.objective import Objective, hide
from lstmstream.train.pieces import Bools, Piece, walk, windows
from lstmstream.train.schema import Training

_LOOK_BATCH = 512  # keys at once where nothing is learned
_ENOUGH_POSITIVES = 10  # for average precision to choose an epoch by

Line = dict[str, float]  # of the history: epoch, train_loss, validation_loss, metric, learning_rate, seconds


@dataclass(slots=True)
class Fitted:
    """What training has come to."""

    history: list[Line] = field(default_factory=list)
    best_epoch: int = 0  # from 1; 0 before the first
    best: float = -math.inf  # of what the epoch is chosen by; higher is better
    weights: dict[str, Tensor] = field(default_factory=dict)  # of the best epoch
    monitor: str = "loss"
    ended: str = ""  # why it stopped

    @property
    def stale(self) -> int:
        """Epochs since the best."""
        return len(self.history) - self.best_epoch


@dataclass(frozen=True, slots=True)
class Told:
    """How far the training is: for the progress bar."""

    epoch: int
    done: float  # share of the epoch
    loss: float  # mean so far in this epoch


class Fit:
    """Trains `net` on the events that `learned` marks, and chooses by those that `checked` marks; both are [N]."""

    def __init__(
        self,
        net: Net,
        events: Events,
        objective: Objective,
        learned: Bools,
        checked: Bools,
        *,
        checkpoint: Path | None = None,
        owner: str = "",
    ) -> None:
        """`owner` names data and settings: a checkpoint of another is refused."""
        config = objective.config
        self.net, self.events, self.objective = net, events, objective
        self.learned, self.checked = learned, checked
        self.options: Training = config.training
        self.window = config.model.window
        self.device = next(net.parameters()).device
        self.random = np.random.default_rng(self.options.seed)
        self.noise = torch.Generator().manual_seed(self.options.seed)
        self.optimizer = _optimizer(net, self.options)
        self.schedule = _schedule(self.optimizer, self.options)
        self.fitted = Fitted(monitor=self._monitor())
        self.checkpoint, self.owner = checkpoint, owner

    def run(self, tell: Callable[[Told], None], after: Callable[[Line], None], stopped: Callable[[], bool]) -> Fitted:
        """Epoch after epoch, until patience or `stopped` ends it; the net then has the best epoch's weights.

        Raises CannotServe where the loss is no number from the start on.
        """
        fitted = self.fitted
        while len(fitted.history) < self.options.epochs and fitted.stale < self.options.patience and not stopped():
            started = time.monotonic()
            rate = self.optimizer.param_groups[0]["lr"]
            loss = self._learn(tell, stopped)
            if stopped():
                break
            check, metric = self._check()
            self._turn_rate(check)
            line = {"epoch": len(fitted.history) + 1.0, "train_loss": loss, "validation_loss": check}
            line |= {"metric": metric, "learning_rate": rate, "seconds": time.monotonic() - started}
            fitted.history.append(line)
            if metric > fitted.best or (fitted.monitor == "none" and math.isfinite(metric)):
                fitted.best, fitted.best_epoch = metric, len(fitted.history)
                fitted.weights = copy.deepcopy(self.net.state_dict())
            if not math.isfinite(loss) or not math.isfinite(check):
                break
            self._save()
            after(line)
        fitted.ended = self._why(stopped())
        if not fitted.weights:
            if stopped():
                raise CannotServe("training: stopped before the first epoch was done; there is nothing to keep")
            raise CannotServe(
                "training: the loss is not a number; take a smaller training.learning_rate, noise or weight_decay, or"
                " log: true for numbers that range widely"
            )
        self.net.load_state_dict(fitted.weights)
        return fitted

    def outputs(self, wanted: Bools) -> Iterator[tuple[Ints, Tensor, Piece]]:
        """The network's outputs [n, O] at the rows [n] that are wanted, keys' whole sequences through; no learning."""
        self.net.eval()
        with torch.no_grad():
            for piece, output, _, _ in self._pass(wanted, None):
                where = torch.from_numpy(piece.counted)
                yield piece.rows[piece.counted], output[where.to(output.device)].cpu(), piece

    # --- one epoch --------------------------------------------------------------------------------------------------

    def _learn(self, tell: Callable[[Told], None], stopped: Callable[[], bool]) -> float:
        """One pass that learns; the mean loss."""
        self.net.train()
        total = weights = seen = 0.0
        everything = max(1, int(self.learned.sum()))
        for piece, _, loss, weight in self._pass(self.learned, self.random):
            if loss is not None and weight > 0:
                self.optimizer.zero_grad(set_to_none=True)
                (loss / weight).backward()
                nn.utils.clip_grad_norm_(self.net.parameters(), self.options.clip)
                self.optimizer.step()
                total, weights = total + float(loss.detach()), weights + weight
            seen += int(piece.counted.sum())
            tell(Told(len(self.fitted.history) + 1, seen / everything, total / max(weights, 1e-30)))
            if stopped():
                break
        return total / max(weights, 1e-30)

    def _check(self) -> tuple[float, float]:
        """The validation part's loss, and what chooses the epoch (higher is better)."""
        self.net.eval()
        total = weights = 0.0
        scores: list[Floats] = []
        labels: list[Ints] = []
        with torch.no_grad():
            for piece, output, loss, weight in self._pass(self.checked, None):
                if loss is not None:
                    total, weights = total + float(loss), weights + weight
                if self.fitted.monitor == "average_precision":
                    scores.append(output[..., 0].cpu().numpy()[piece.counted])
                    labels.append(np.asarray(self.events.label[piece.rows[piece.counted]]))
        loss_value = total / max(weights, 1e-30)
        if not math.isfinite(loss_value):
            return loss_value, -math.inf
        if self.fitted.monitor != "average_precision":
            return loss_value, -loss_value
        return loss_value, _precision(np.concatenate(scores), np.concatenate(labels))

    def _pass(
        self, counted: Bools, random: np.random.Generator | None
    ) -> Iterator[tuple[Piece, Tensor, Tensor | None, float]]:
        """Runs the pieces in order with the states carried on: piece, output, summed loss and its weight."""
        learning = random is not None
        batch = self.options.batch if learning else max(self.options.batch, _LOOK_BATCH)
        starts = self.events.starts
        if self.window is not None:
            pieces = windows(starts, counted, batch=batch, window=self.window, random=random)
        else:
            pieces = walk(starts, counted, batch=batch, steps=self.options.steps, random=random)
        table = None if self.window is not None else self.net.initial(len(self.events.keys))
        for piece in pieces:
            dense, codes = self.inputs(piece)
            if learning:
                dense = hide(dense, self.objective.encoder, self.options.mask, self.options.noise, self.noise)
            keys = torch.from_numpy(piece.sequence).to(self.device)
            state = self.net.initial(len(keys)) if table is None else tuple(part[keys] for part in table)
            matters = bool(piece.counted.any())
            with torch.set_grad_enabled(learning and matters):
                output, state = self.net(dense, codes, state)
                loss, weight = None, 0.0
                if matters:
                    wanted, known = self.objective.wanted(self.events, piece)
                    summed, weights = self.objective.error(output, wanted.to(self.device), known.to(self.device))
                    loss, weight = summed, float(weights)
            if table is not None:
                for part, new in zip(table, state, strict=True):
                    part[keys] = new.detach()
            yield piece, output, loss, weight

    def inputs(self, piece: Piece) -> tuple[Tensor, Tensor]:
        """Dense inputs [B, T, D] and codes [B, T, C] of a piece."""
        events, rows = self.events, piece.rows
        dense = features.encode(
            self.objective.encoder, events.x[rows], events.elapsed[rows], np.asarray(events.timestamp[rows])
        )
        return torch.from_numpy(dense).to(self.device), torch.from_numpy(events.codes[rows]).to(self.device)

    # --- around it --------------------------------------------------------------------------------------------------

    def _monitor(self) -> str:
        """What chooses the epoch."""
        config = self.objective.config
        two = config.task == "classify" and len(self.objective.weights) == 2
        if self.options.monitor == "average_precision" and not two:
            raise CannotServe("training.monitor: average_precision needs two classes; use loss")
        labels = np.asarray(self.events.label)[self.checked] if two else np.empty(0, np.int64)
        positives = int((labels == 1).sum())
        if self.options.monitor == "average_precision" and not 0 < positives < len(labels):
            raise CannotServe(
                f"training.monitor: average_precision cannot choose, as {positives} of the validation part's"
                f" {len(labels)} labelled events are positive; use loss, or split so that it has both"
            )
        if self.options.monitor != "auto":
            return self.options.monitor
        if not two:
            return "loss"
        return "average_precision" if positives >= _ENOUGH_POSITIVES else "loss"

    def _turn_rate(self, check: float) -> None:
        if isinstance(self.schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.schedule.step(check)
        elif self.schedule is not None:
            self.schedule.step()

    def _why(self, stopped: bool) -> str:  # noqa: FBT001
        fitted = self.fitted
        if stopped:
            return "stopped by hand"
        if fitted.history and not all(
            math.isfinite(fitted.history[-1][name]) for name in ("train_loss", "validation_loss")
        ):
            return "the loss was no number any more"
        if fitted.stale >= self.options.patience:
            return f"{fitted.stale} epochs without a better validation"
        return "all epochs done"

    def _save(self) -> None:
        """Everything needed to go on, whole or not at all."""
        if self.checkpoint is None:
            return
        unfinished = self.checkpoint.with_name(f".{self.checkpoint.name}.part")
        torch.save(
            {
                "owner": self.owner,
                "net": self.net.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": None if self.schedule is None else self.schedule.state_dict(),
                "random": _plain(self.random.bit_generator.state),
                "noise": self.noise.get_state(),
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
                "fitted": {name: getattr(self.fitted, name) for name in ("history", "best_epoch", "best", "weights")},
            },
            unfinished,
        )
        unfinished.replace(self.checkpoint)

    def done(self) -> None:
        """The checkpoint is needed no more."""
        if self.checkpoint is not None:
            self.checkpoint.unlink(missing_ok=True)

    def resume(self) -> int:
        """Goes on after the last saved epoch; returns how many are done. Raises CannotServe for a wrong checkpoint."""
        assert self.checkpoint is not None
        if not self.checkpoint.is_file():
            raise CannotServe(f"--resume: there is no {self.checkpoint}; start without --resume")
        try:
            saved: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CannotServe(
                f"--resume: {self.checkpoint} cannot be read ({error}); start without --resume"
            ) from error
        if saved.get("owner") != self.owner:
            raise CannotServe(
                f"--resume: {self.checkpoint} was written with other data or settings; start without --resume"
            )
        self.net.load_state_dict(saved["net"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(saved["schedule"])
        self.random.bit_generator.state = saved["random"]
        self.noise.set_state(saved["noise"])
        torch.set_rng_state(saved["torch"])
        if self.device.type == "cuda" and saved["cuda"]:
            torch.cuda.set_rng_state_all(saved["cuda"])
        for name, value in saved["fitted"].items():
            setattr(self.fitted, name, value)
        return len(self.fitted.history)


def _plain(state: Any) -> Any:
    """A random generator's state as Python's own types."""
    if isinstance(state, dict):
        return {name: _plain(value) for name, value in state.items()}
    return int(state) if isinstance(state, np.integer) else state


def _precision(scores: Floats, labels: Ints) -> float:
    """Average precision of class 1."""
    nothing = np.empty(0, np.int64)
    no_values = np.empty((0, 0), np.float32)
    ranked = rank(Judged("classify", nothing, nothing, scores, None, labels, no_values, ("0", "1"), no_values))
    return average_precision(*ranked.counts(np.ones(len(scores))))


def _optimizer(net: Net, options: Training) -> torch.optim.Optimizer:
    rate, decay = options.learning_rate, options.weight_decay
    if options.optimizer == "sgd":
        return torch.optim.SGD(net.parameters(), rate, momentum=0.9, weight_decay=decay)
    if options.optimizer == "adamw":
        return torch.optim.AdamW(net.parameters(), rate, weight_decay=decay)
    return torch.optim.Adam(net.parameters(), rate, weight_decay=decay)


def _schedule(optimizer: torch.optim.Optimizer, options: Training) -> Any:
    if options.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs, options.learning_rate / 100)
    if options.schedule == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
    return None
