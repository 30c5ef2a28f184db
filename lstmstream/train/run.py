"""`lstmstream train`: one configuration in, one model file and one report out."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from lstmstream.card import Card
from lstmstream.errors import CannotServe
from lstmstream.model import load_model
from lstmstream.stop import Stop
from lstmstream.train.account import settings_digest
from lstmstream.train.export import read_network
from lstmstream.train.export.parts import Network
from lstmstream.train.finish import check_threshold, finish
from lstmstream.train.fit import Fit
from lstmstream.train.history.split import NAMES, TRAIN, VALIDATION
from lstmstream.train.network import Anomaly, Classes, Design, Forecast, Net, Target, load
from lstmstream.train.objective import Objective, class_counts, class_weights
from lstmstream.train.prepare import Prepared, prepare
from lstmstream.train.progress import Screen, summary
from lstmstream.train.report.report import write_report
from lstmstream.train.reporting import gather
from lstmstream.train.schema import TrainConfig, load_training, shown

_TO = {"classify": "classify", "forecast": "forecast", "anomaly": "find anomalies"}


def train(path: Path, *, out: Path | None = None, resume: bool = False, init: str | None = None) -> int:
    """Trains as the file at `path` says; writes the model and, beside it, the report. Returns the exit code.

    `init` is a model file to fine-tune: its network, scaling and vocabularies are kept. Raises CannotServe.
    """
    stop = Stop()
    config = load_training(path)
    out = _place(config, out)
    base = None
    if init is not None:
        model = load_model(init)
        base = read_network(model)
        config = fine_tuned(config, base, model.card)
    prepared = prepare(config, base)
    try:
        screen = Screen(prepared)
        screen.begin()
        check_threshold(prepared)
        net = make_net(prepared, base)
        fit = make_fit(net, prepared, out.with_suffix(".checkpoint"))
        if resume:
            screen.say(f"going on after epoch {fit.resume()}")
        weights = sum(part.numel() for part in net.parameters())
        screen.start(weights, fit.device.type)
        stop.then(screen.stopping)
        try:
            fitted = fit.run(screen.tell, lambda line: screen.after(line, fit.fitted), lambda: stop.asked)
        finally:
            screen.end()
        finished = finish(net, prepared, fitted, fit, out)
        report = gather(prepared, fitted, finished, shown(path), weights)
        write_report(out.with_suffix(".html"), report)
        fit.done()
        print("\n".join(summary(report, out)))
    finally:
        if prepared.events.scratch is not None:
            prepared.events.scratch.cleanup()
    return 0


def make_net(prepared: Prepared, base: Network | None = None) -> Net:
    """The network, seeded; with the weights of `base` where it is fine-tuned."""
    config = prepared.config
    options = config.training
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    model = config.model
    design = Design(
        model.cell, model.layers, model.hidden, model.projection, model.activation, model.dropout, model.window
    )
    net = Net(prepared.encoder, design, _target(prepared))
    if base is not None:
        try:
            load(net, base)
        except ValueError as error:
            raise CannotServe(f"--init: the model does not fit the configuration: {error}") from error
    elif config.task == "classify":
        counts = class_counts(prepared.events, prepared.counted[NAMES[TRAIN]])
        shares = counts * class_weights(options.class_weights, counts)
        logs = np.log(np.maximum(shares, 1e-3) / shares.sum())
        net.set_prior([logs[1] - logs[0]] if len(logs) == 2 else logs.tolist())
    net.to(_device(options.device))
    return net


def make_fit(net: Net, prepared: Prepared, checkpoint: Path | None) -> Fit:
    """The training of `net` on the training part, chosen by the validation part."""
    config = prepared.config
    weights = np.empty(0, np.float32)
    if config.task == "classify":
        counts = class_counts(prepared.events, prepared.counted[NAMES[TRAIN]])
        weights = class_weights(config.training.class_weights, counts)
    return Fit(
        net,
        prepared.events,
        Objective(config, prepared.encoder, weights),
        prepared.counted[NAMES[TRAIN]],
        prepared.counted[NAMES[VALIDATION]],
        checkpoint=checkpoint,
        owner=settings_digest(prepared),
    )


def fine_tuned(config: TrainConfig, base: Network, card: Card) -> TrainConfig:
    """The configuration with the network and classes of `base`. Raises CannotServe where it asks for others."""
    first = base.layers[0]
    theirs = {
        "cell": type(first).__name__.lower(),
        "layers": len(base.layers),
        "hidden": first.hidden,
        "projection": first.width if first.width != first.hidden else None,
        "activation": first.activation,
        "window": base.window,
    }
    model = config.model
    problems = [
        f"model.{name}: {getattr(model, name)} is asked for, and the model of --init has {theirs[name]}; leave it out"
        for name in sorted(model.model_fields_set & theirs.keys())
        if getattr(model, name) != theirs[name]
    ]
    ours = [number.name for number in config.features.numbers], [field.name for field in config.features.categories]
    encoder = base.encoder
    known = [number.name for number in encoder.numbers], [category.name for category in encoder.categories]
    problems += [
        f"features.{kind}: are {', '.join(mine) or 'none'}, and the model of --init has {', '.join(its) or 'none'}"
        for kind, mine, its in zip(("numbers", "categories"), ours, known, strict=True)
        if mine != its
    ]
    clock = {
        "elapsed": encoder.elapsed is not None,
        "hour_of_day": encoder.hour_of_day,
        "day_of_week": encoder.day_of_week,
    }
    has = {True: "has it", False: "does not have it"}
    problems += [
        f"features.{name}: the model of --init {has[clock[name]]}; leave it out"
        for name in sorted(config.features.model_fields_set & clock.keys())
        if getattr(config.features, name) != clock[name]
    ]
    problems += [
        f"features.numbers.{mine.name}.log: the model of --init {has[its.log]}; leave it out"
        for mine, its in zip(config.features.numbers, encoder.numbers, strict=False)
        if mine.name == its.name and "log" in mine.model_fields_set and mine.log != its.log
    ]
    classes = card.training.get("fields", {}).get("classes") or []
    target = config.target
    if config.task == "classify" and target.classes and classes and target.classes != classes:
        problems.append(f"target.classes: are {', '.join(classes)} in the model of --init, in this order; leave it out")
    if config.task != card.task:
        problems.append(f"task: {config.task} is asked for, and the model of --init was made to {_TO[card.task]}")
    if problems:
        raise CannotServe(*problems)
    changed = config.model_copy(
        update={
            "model": model.model_copy(update=theirs),
            "features": config.features.model_copy(update=clock),
            "target": target.model_copy(update={"classes": target.classes or classes}),
        }
    )
    changed._folder = config.folder
    return changed


def _place(config: TrainConfig, out: Path | None) -> Path:
    """Where the model goes. Raises CannotServe where nothing can be written there."""
    place = out or config.folder / (config.out or f"{config.name}.onnx")
    if not place.parent.is_dir():
        raise CannotServe(f"{place}: there is no folder {place.parent}; make it, or name another with --out")
    if place.suffix != ".onnx":
        raise CannotServe(f"{place}: a model file's name ends in .onnx")
    for suffix in (".onnx", ".html", ".checkpoint"):
        if place.with_suffix(suffix).is_dir():
            raise CannotServe(f"{place.with_suffix(suffix)}: is a folder; name another place with --out")
    try:
        with tempfile.TemporaryFile(dir=place.parent):
            place.exists()
    except OSError as error:
        raise CannotServe(f"{place}: {error.strerror or error}; name another place with --out") from error
    return place


def _target(prepared: Prepared) -> Target:
    config = prepared.config
    if config.task == "classify":
        count = len(prepared.events.classes)
        return Classes(1 if count == 2 else count)
    if config.task == "forecast":
        return Forecast(config.targets, config.target.horizon, config.target.residual)
    return Anomaly(config.targets, config.target.residual)


def _device(option: str) -> torch.device:
    if option == "cuda" and not torch.cuda.is_available():
        raise CannotServe("training.device: cuda asks for an NVIDIA GPU, and torch finds none; use auto or cpu")
    return torch.device("cuda" if option != "cpu" and torch.cuda.is_available() else "cpu")
