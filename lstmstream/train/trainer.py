"""The training loop: truncated backpropagation through time, with each key's state carried on as in serving.

An epoch is one pass over the training split. After each epoch the validation split decides whether it is the best so
far, and a checkpoint is written from which training can resume. Knows nothing of file formats, thresholds or reports.
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

from lstmstream.errors import CannotServe, Fatal
from lstmstream.evaluation.metrics import Evaluated, average_precision, rank_by_score
from lstmstream.history.events import Events
from lstmstream.records import Bools, Floats, Ints
from lstmstream.train import features
from lstmstream.train.batching import (
    SequenceBatch,
    default_batch_size,
    sequence_count,
    tbptt_batches,
    updates_per_epoch,
    window_batches,
)
from lstmstream.train.loss import Objective, augment
from lstmstream.train.network import TorchNetwork
from lstmstream.train.schema import Training
from lstmstream.wording import counted

EVAL_BATCH = 512  # keys, or windows, at once where no gradient is needed
MIN_POSITIVES = 50  # in the validation split, for `monitor: auto`: with fewer, average precision may keep a first epoch
STOPPED_EARLY = "training: stopped before the first epoch was complete; there is no model to keep"

EpochMetrics = dict[str, float]  # epoch, train_loss, validation_loss, metric, learning_rate, seconds


@dataclass(slots=True)
class TrainingResult:
    """The outcome of the training so far."""

    history: list[EpochMetrics] = field(default_factory=list)
    best_epoch: int = 0  # from 1; 0 before the first
    best_metric: float = -math.inf  # what the epoch is chosen by; higher is better
    weights: dict[str, Tensor] = field(default_factory=dict)  # state dict of the best epoch
    monitor: str = "loss"  # loss | average_precision | none
    stop_reason: str = ""

    @property
    def epochs_without_improvement(self) -> int:
        """Number of epochs since the best one."""
        return len(self.history) - self.best_epoch


@dataclass(frozen=True, slots=True)
class Progress:
    """How far training is within an epoch."""

    epoch: int  # from 1
    fraction: float  # of the epoch, 0 to 1
    loss: float  # mean of the epoch so far


class Trainer:
    """Trains a network on one part of the events, and chooses the epoch by another."""

    def __init__(
        self,
        network: TorchNetwork,
        events: Events,
        objective: Objective,
        train_mask: Bools,
        validation_mask: Bools,
        *,
        checkpoint: Path | None = None,
        settings_digest: str = "",
    ) -> None:
        """`train_mask` and `validation_mask` [N] mark the events in the training and in the validation loss.

        `settings_digest` names data and settings: a checkpoint with another one is refused. Raises CannotServe where
        `training.monitor` cannot be used with these data.
        """
        config = objective.config
        self.network, self.events, self.objective = network, events, objective
        self.train_mask, self.validation_mask = train_mask, validation_mask
        self.options: Training = config.training
        self.window = config.model.window
        starts, steps, window = events.starts, self.options.steps, self.window
        self.batch_size = self.options.batch or default_batch_size(starts, train_mask, steps=steps, window=window)
        self.batch_size = max(1, min(self.batch_size, sequence_count(starts, train_mask, window=window)))
        self.updates_per_epoch = updates_per_epoch(
            starts, train_mask, batch_size=self.batch_size, steps=steps, window=window
        )
        self.weight_per_update = objective.total_weight(events, train_mask) / max(1, self.updates_per_epoch)
        self.device = next(network.parameters()).device
        self.rng = np.random.default_rng(self.options.seed)  # order of the batches
        self.augment_generator = torch.Generator().manual_seed(self.options.seed)
        self.optimizer = _make_optimizer(network, self.options)
        self.scheduler = _make_scheduler(self.optimizer, self.options)
        self.result = TrainingResult(monitor=self._choose_monitor())
        self.checkpoint, self.settings_digest = checkpoint, settings_digest

    @property
    def batch_text(self) -> str:
        """Size and number of the batches in words."""
        updates = f"{counted(self.updates_per_epoch, 'update')} per epoch"
        if self.window is not None:
            return f"{self.batch_size} windows, {updates}"
        return f"{counted(self.batch_size, 'key')} x {self.options.steps} events, {updates}"

    def run(
        self,
        on_progress: Callable[[Progress], None],
        on_epoch_end: Callable[[EpochMetrics], None],
        should_stop: Callable[[], bool],
    ) -> TrainingResult:
        """Trains until the last epoch, until patience ends, or until `should_stop` returns true.

        Afterwards the network has the weights of the best epoch. Raises CannotServe where no epoch has a finite loss,
        and where it is stopped before the first epoch is complete.
        """
        result, options = self.result, self.options
        while (
            len(result.history) < options.epochs
            and result.epochs_without_improvement < options.patience
            and not should_stop()
        ):
            started = time.monotonic()
            learning_rate = self.optimizer.param_groups[0]["lr"]
            train_loss = self._train_epoch(on_progress, should_stop)
            if should_stop():
                break
            validation_loss, metric = self._validate()
            self._step_scheduler(validation_loss)
            epoch_metrics = {
                "epoch": len(result.history) + 1.0,
                "train_loss": train_loss,
                "validation_loss": validation_loss,
                "metric": metric,
                "learning_rate": learning_rate,
                "seconds": time.monotonic() - started,
            }
            result.history.append(epoch_metrics)
            if metric > result.best_metric or (result.monitor == "none" and math.isfinite(metric)):
                result.best_metric, result.best_epoch = metric, len(result.history)
                result.weights = copy.deepcopy(self.network.state_dict())
            if not math.isfinite(train_loss) or not math.isfinite(validation_loss):
                break
            self._save_checkpoint()
            on_epoch_end(epoch_metrics)
        result.stop_reason = self._stop_reason(stopped=should_stop())
        if not result.weights:
            if should_stop():
                raise CannotServe(STOPPED_EARLY)
            raise CannotServe(
                "training: the loss is not finite; use a smaller training.learning_rate, noise or weight_decay, or"
                " log: true for numbers with a wide range"
            )
        self.network.load_state_dict(result.weights)
        return result

    def forward_events(self, mask: Bools) -> Iterator[tuple[Ints, Tensor]]:
        """The network's outputs [n, O] at the events that `mask` [N] marks, with their rows [n], a batch at a time.

        States are carried through each key's whole sequence; no gradient is computed.
        """
        self.network.eval()
        with torch.no_grad():
            for batch, output, _, _ in self._run_batches(mask, None):
                in_loss = torch.from_numpy(batch.loss_mask)
                yield batch.rows[batch.loss_mask], output[in_loss.to(output.device)].cpu()

    # --- one epoch --------------------------------------------------------------------------------------------------

    def _train_epoch(self, on_progress: Callable[[Progress], None], should_stop: Callable[[], bool]) -> float:
        """One pass over the training split with updates; returns the mean loss.

        An update moves the weights by its share of the epoch: its summed loss is divided by what an average update
        has, not by what it has itself, or a batch of a few events would count as much as one of thousands. The bound
        on the gradient has the same share.
        """
        self.network.train()
        loss_sum = weight_sum = seen = 0.0
        events_in_loss = max(1, int(self.train_mask.sum()))
        for batch, _, loss, weight in self._run_batches(self.train_mask, self.rng):
            if loss is not None and weight > 0:
                self.optimizer.zero_grad(set_to_none=True)
                (loss / self.weight_per_update).backward()
                share = weight / self.weight_per_update
                nn.utils.clip_grad_norm_(self.network.parameters(), self.options.clip * share)
                self.optimizer.step()
                loss_sum, weight_sum = loss_sum + float(loss.detach()), weight_sum + weight
            seen += int(batch.loss_mask.sum())
            mean_loss = loss_sum / max(weight_sum, 1e-30)
            on_progress(Progress(len(self.result.history) + 1, seen / events_in_loss, mean_loss))
            if should_stop():
                break
        return loss_sum / max(weight_sum, 1e-30)

    def _validate(self) -> tuple[float, float]:
        """The mean loss of the validation split, and the metric that chooses the epoch (higher is better)."""
        self.network.eval()
        loss_sum = weight_sum = 0.0
        scores: list[Floats] = []
        labels: list[Ints] = []
        with torch.no_grad():
            for batch, output, loss, weight in self._run_batches(self.validation_mask, None):
                if loss is not None:
                    loss_sum, weight_sum = loss_sum + float(loss), weight_sum + weight
                if self.result.monitor == "average_precision":
                    scores.append(output[..., 0].cpu().numpy()[batch.loss_mask])
                    labels.append(np.asarray(self.events.label[batch.rows[batch.loss_mask]]))
        mean_loss = loss_sum / max(weight_sum, 1e-30)
        if not math.isfinite(mean_loss):
            return mean_loss, -math.inf
        if self.result.monitor != "average_precision":
            return mean_loss, -mean_loss
        return mean_loss, _average_precision(np.concatenate(scores), np.concatenate(labels))

    def _run_batches(
        self, mask: Bools, rng: np.random.Generator | None
    ) -> Iterator[tuple[SequenceBatch, Tensor, Tensor | None, float]]:
        """Runs the network over the batches in order, with the states carried on from batch to batch.

        Yields each batch with its output [B, T, O], its summed loss and its summed weights; the loss is None where no
        event of the batch is in it. With `rng` batches are shuffled and augmented, and gradients are recorded.
        """
        training = rng is not None
        batch_size = self.batch_size if training else max(self.batch_size, EVAL_BATCH)
        starts = self.events.starts
        if self.window is not None:
            batches = window_batches(starts, mask, batch_size=batch_size, window=self.window, rng=rng)
        else:
            batches = tbptt_batches(starts, mask, batch_size=batch_size, steps=self.options.steps, rng=rng)
        all_states = None if self.window is not None else self.network.initial_state(len(self.events.keys))
        for batch in batches:
            dense, codes = self._inputs(batch)
            options = self.options
            if training and (options.mask or options.noise):
                absent = torch.from_numpy(np.isnan(np.asarray(self.events.x[batch.rows]))).to(self.device)
                dense = augment(
                    dense, absent, self.objective.encoder, options.mask, options.noise, self.augment_generator
                )
            keys = torch.from_numpy(batch.keys).to(self.device)
            if all_states is None:
                state = self.network.initial_state(len(keys))
            else:
                state = tuple(part[keys] for part in all_states)
            in_loss = bool(batch.loss_mask.any())
            with torch.set_grad_enabled(training and in_loss):
                output, state = self.network(dense, codes, state)
                loss, weight = None, 0.0
                if in_loss:
                    targets, known = self.objective.targets(self.events, batch)
                    loss, weights = self.objective.loss(output, targets.to(self.device), known.to(self.device))
                    weight = float(weights)
            if all_states is not None:
                for part, new in zip(all_states, state, strict=True):
                    part[keys] = new.detach()
            yield batch, output, loss, weight

    def _inputs(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """The dense inputs [B, T, D] and the category codes [B, T, C] of a batch."""
        events, rows = self.events, batch.rows
        dense = features.transform_rows(self.objective.encoder, events, rows)
        return torch.from_numpy(dense).to(self.device), torch.from_numpy(events.codes[rows]).to(self.device)

    # --- between epochs ---------------------------------------------------------------------------------------------

    def _choose_monitor(self) -> str:
        """What chooses the epoch. Raises CannotServe where the configured monitor cannot be used."""
        config = self.objective.config
        binary = config.task == "classify" and len(self.objective.class_weights) == 2
        if self.options.monitor == "average_precision" and not binary:
            raise CannotServe("training.monitor: average_precision needs two classes; use loss")
        labels = np.asarray(self.events.label)[self.validation_mask] if binary else np.empty(0, np.int64)
        positives = int((labels == 1).sum())
        if self.options.monitor == "average_precision" and not 0 < positives < len(labels):
            raise CannotServe(
                f"training.monitor: average_precision cannot be computed, because {positives} of the {len(labels)}"
                " labelled events of the validation split are positive; use loss, or a split with both classes"
            )
        if self.options.monitor != "auto":
            return self.options.monitor
        if not binary:
            return "loss"
        return "average_precision" if positives >= MIN_POSITIVES else "loss"

    def _step_scheduler(self, validation_loss: float) -> None:
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(validation_loss)
        elif self.scheduler is not None:
            self.scheduler.step()

    def _stop_reason(self, *, stopped: bool) -> str:
        """Why training ended, as text for the report."""
        result = self.result
        if stopped:
            return "stopped by the user"
        last = result.history[-1] if result.history else {}
        if not all(math.isfinite(last.get(name, 0.0)) for name in ("train_loss", "validation_loss")):
            return "the loss became infinite or NaN"
        if result.epochs_without_improvement >= self.options.patience:
            return f"{counted(result.epochs_without_improvement, 'epoch')} without improvement on the validation split"
        return "all epochs complete"

    def _save_checkpoint(self) -> None:
        """Writes everything that resuming needs; an interrupted write leaves the old checkpoint. Raises Fatal."""
        if self.checkpoint is None:
            return
        unfinished = self.checkpoint.with_name(f".{self.checkpoint.name}.part")
        content = {
            "settings_digest": self.settings_digest,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "rng": _to_python(self.rng.bit_generator.state),
            "augment_generator": self.augment_generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            "result": {
                name: getattr(self.result, name) for name in ("history", "best_epoch", "best_metric", "weights")
            },
        }
        try:
            torch.save(content, unfinished)
            unfinished.replace(self.checkpoint)
        except (OSError, RuntimeError) as error:  # of a full disk torch says the latter
            unfinished.unlink(missing_ok=True)
            raise Fatal(
                f"{self.checkpoint}: the checkpoint cannot be written ({str(error).splitlines()[0]}); is the disk full?"
                " Make room, or give a path on another disk with --out"
            ) from error

    def remove_checkpoint(self) -> None:
        """Deletes the checkpoint, once the model file is written."""
        if self.checkpoint is not None:
            self.checkpoint.unlink(missing_ok=True)

    def resume(self) -> int:
        """Restores the state after the last complete epoch; returns the number of epochs done.

        Raises CannotServe where there is no checkpoint, or one of other data or settings.
        """
        assert self.checkpoint is not None
        check_exists(self.checkpoint)
        try:
            saved: Any = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:
            reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
            raise CannotServe(
                f"--resume: {self.checkpoint} cannot be read: it is damaged, or not a checkpoint ({reason}); start"
                " without --resume"
            ) from error
        if not isinstance(saved, dict) or saved.get("settings_digest") != self.settings_digest:
            raise CannotServe(
                f"--resume: {self.checkpoint} was written with other data or settings; start without --resume"
            )
        try:
            self._restore(saved)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CannotServe(
                f"--resume: {self.checkpoint} was written by another version of lstmstream"
                f" ({type(error).__name__}); start without --resume"
            ) from error
        return len(self.result.history)

    def _restore(self, saved: dict[str, Any]) -> None:
        """Takes what `_save_checkpoint` wrote. Raises what a checkpoint of another form leads to."""
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(saved["scheduler"])
        self.rng.bit_generator.state = saved["rng"]
        self.augment_generator.set_state(saved["augment_generator"])
        torch.set_rng_state(saved["torch_rng"])
        if self.device.type == "cuda" and saved["cuda_rng"]:
            torch.cuda.set_rng_state_all(saved["cuda_rng"])
        for name, value in saved["result"].items():
            setattr(self.result, name, value)


def check_exists(checkpoint: Path) -> None:
    """Raises CannotServe where there is no checkpoint to resume from."""
    if not checkpoint.is_file():
        raise CannotServe(f"--resume: {checkpoint} does not exist; start without --resume")


def _to_python(state: Any) -> Any:
    """The state of a numpy generator with Python's own integers, which torch.save can write."""
    if isinstance(state, dict):
        return {name: _to_python(value) for name, value in state.items()}
    return int(state) if isinstance(state, np.integer) else state


def _average_precision(scores: Floats, labels: Ints) -> float:
    """Average precision of class 1, from scores [n] and labels [n]."""
    no_rows = np.empty(0, np.int64)
    no_values = np.empty((0, 0), np.float32)
    evaluated = Evaluated("classify", no_rows, no_rows, scores, None, labels, no_values, ("0", "1"), no_values)
    return average_precision(*rank_by_score(evaluated).counts(np.ones(len(scores))))


def _make_optimizer(network: TorchNetwork, options: Training) -> torch.optim.Optimizer:
    rate, decay = options.learning_rate, options.weight_decay
    if options.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), rate, momentum=0.9, weight_decay=decay)
    if options.optimizer == "adamw":
        return torch.optim.AdamW(network.parameters(), rate, weight_decay=decay)
    return torch.optim.Adam(network.parameters(), rate, weight_decay=decay)


def _make_scheduler(optimizer: torch.optim.Optimizer, options: Training) -> Any:
    if options.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs, options.learning_rate / 100)
    if options.schedule == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
    return None
