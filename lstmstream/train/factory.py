"""Builds the network and its trainer for a data set, from the options of the configuration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lstmstream.errors import CannotServe
from lstmstream.history.split import SPLIT_NAMES, TRAIN, VALIDATION
from lstmstream.records import Floats
from lstmstream.train.dataset import Dataset
from lstmstream.train.export import NetworkSpec
from lstmstream.train.loss import Objective, class_counts, class_weights
from lstmstream.train.network import (
    Anomaly,
    Architecture,
    Classes,
    Forecast,
    TaskHead,
    TorchNetwork,
    load_weights,
)
from lstmstream.train.provenance import settings_digest
from lstmstream.train.trainer import Trainer


def make_network(dataset: Dataset, base: NetworkSpec | None = None) -> TorchNetwork:
    """The network on its device, with seeded random weights, or with the weights of `base` for fine-tuning.

    A new classifier starts with the frequencies of the classes. Sets torch's seed and number of threads. Raises
    CannotServe where `base` does not fit the configuration, or where there is no GPU and one is required.
    """
    config = dataset.config
    options, model = config.training, config.model
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    architecture = Architecture(
        model.cell, model.layers, model.hidden, model.projection, model.activation, model.dropout, model.window
    )
    network = TorchNetwork(dataset.encoder, architecture, _task_head(dataset))
    if base is not None:
        try:
            load_weights(network, base)
        except ValueError as error:
            raise CannotServe(f"--init: the model does not fit the configuration: {error}") from error
    elif config.task == "classify":
        counts = class_counts(dataset.events, dataset.loss_masks[SPLIT_NAMES[TRAIN]])
        weighted = counts * _class_weights(dataset)
        log_shares = np.log(np.maximum(weighted, 1e-3) / weighted.sum())
        binary = len(log_shares) == 2
        network.set_prior([log_shares[1] - log_shares[0]] if binary else log_shares.tolist())
    network.to(_device(options.device))
    return network


def make_trainer(network: TorchNetwork, dataset: Dataset, checkpoint: Path | None) -> Trainer:
    """The trainer of `network`, with the training and the validation split. `checkpoint` is its file, None for none."""
    return Trainer(
        network,
        dataset.events,
        Objective(dataset.config, dataset.encoder, _class_weights(dataset)),
        dataset.loss_masks[SPLIT_NAMES[TRAIN]],
        dataset.loss_masks[SPLIT_NAMES[VALIDATION]],
        checkpoint=checkpoint,
        settings_digest=settings_digest(dataset),
    )


def _class_weights(dataset: Dataset) -> Floats:
    """[K] The weights of the classes in the loss; [0] where the task is not classification."""
    config = dataset.config
    if config.task != "classify":
        return np.empty(0, np.float32)
    counts = class_counts(dataset.events, dataset.loss_masks[SPLIT_NAMES[TRAIN]])
    return class_weights(config.training.class_weights, counts)


def _task_head(dataset: Dataset) -> TaskHead:
    config = dataset.config
    if config.task == "classify":
        count = len(dataset.events.classes)
        return Classes(1 if count == 2 else count)
    if config.task == "forecast":
        return Forecast(config.targets, config.target.horizon, config.target.residual)
    return Anomaly(config.targets, config.target.residual)


def _device(option: str) -> torch.device:
    if option == "cuda" and not torch.cuda.is_available():
        raise CannotServe("training.device: cuda needs an NVIDIA GPU, and torch finds none; use auto or cpu")
    return torch.device("cuda" if option != "cpu" and torch.cuda.is_available() else "cpu")
