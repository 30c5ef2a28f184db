"""`lstmstream tune`: trains with many settings within bounds, and writes those that do best on the validation split.

The test split is never used. The result is a training configuration, with which `lstmstream train` makes the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.table import Table

from lstmstream.config.yaml_file import read_yaml
from lstmstream.errors import CannotServe, Fatal
from lstmstream.shutdown import ShutdownSignal
from lstmstream.train.data_checks import check_memory
from lstmstream.train.dataset import Dataset, prepare_dataset
from lstmstream.train.factory import make_network, make_trainer
from lstmstream.train.progress import print_or_drop
from lstmstream.train.schema import TrainConfig, Tune, load_training, validate_training
from lstmstream.train.trainer import EpochMetrics
from lstmstream.whole_file import check_writable, remedy_of, write_whole
from lstmstream.wording import counted

MAX_LISTED = 10  # of the best trials
STOPPED = "stopped before the first trial was complete"
Params = Mapping[str, float | int]  # option to value
_SECTIONS = {
    "learning_rate": "training", "weight_decay": "training", "batch": "training", "steps": "training",
    "hidden": "model", "layers": "model", "dropout": "model",
}  # fmt: skip
_LOG_SCALE = {"learning_rate", "weight_decay", "hidden", "batch", "steps"}


def tune(path: Path, *, trials: int | None = None, out: Path | None = None, as_json: bool = False) -> int:
    """Searches within the bounds of section `tune` of the configuration at `path`. Returns the exit code.

    The best settings go to `out`, by default `<file>.tuned.yaml` beside it. `as_json`: the best trials are printed as
    JSON, not as a table. Raises CannotServe for faults of configuration and data, and where no trial has a result.
    """
    stop = ShutdownSignal()
    stop.interrupt()  # until there is a trial to keep
    config = load_training(path)
    out = out or path.with_suffix(".tuned.yaml")
    _check_bounds(config)
    _check_out(out, path)
    try:
        study = _search(config, stop, trials)
    except KeyboardInterrupt:
        raise CannotServe(f"tune: {STOPPED}; there are no settings to write") from None
    if not any(trial.state == optuna.trial.TrialState.COMPLETE for trial in study.trials):
        reason = STOPPED if stop.requested else "no trial has a result (see above)"
        raise CannotServe(f"tune: {reason}; there are no settings to write")
    _write_config(out, read_yaml(path), study.best_params, config)
    best = _best_trials(study)
    if as_json:
        found = [{"trial": one.number + 1, "validation": one.value, **one.params} for one in best]
        print(json.dumps({"config": str(out), "trials": len(study.trials), "best": found}))
    else:
        _print_table(best)
        print(f"{out}: the best of {counted(len(study.trials), 'trial')}; now: lstmstream train {out}")
    return 0


def _search(config: TrainConfig, stop: ShutdownSignal, trials: int | None) -> optuna.Study:
    """All trials, or those until a signal."""
    console = Console(stderr=True, highlight=False)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=config.training.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2),
    )
    with closing(prepare_dataset(config)) as dataset:

        def objective(trial: optuna.Trial) -> float:
            number = f"trial {trial.number + 1:>3}"
            try:
                metric = run_trial(trial, dataset, stop)
            except CannotServe as error:  # its loss was not finite, or it was stopped early: the other trials count
                print_or_drop(console, f"{number}  {_format_params(trial.params)}  {error}")
                raise optuna.TrialPruned from error
            print_or_drop(console, f"{number}  {_format_params(trial.params)}  validation {metric:.5g}")
            return metric

        stop.on_request(lambda: print_or_drop(console, "stopping; the best trial so far is kept"))
        study.optimize(
            objective,
            n_trials=trials or config.tune.trials,
            callbacks=[lambda study, _trial: study.stop() if stop.requested else None],
        )
    return study


def _check_out(out: Path, path: Path) -> None:
    """Raises CannotServe where the settings cannot be written to `out`; known before the first trial."""
    if out.parent.resolve() != path.parent.resolve():
        raise CannotServe(
            f"{out}: must be in the folder of {path}, because the paths in it are relative to that folder"
        )
    try:
        check_writable(out)
        there = out.exists()
    except OSError as error:
        raise CannotServe(f"--out {out}: cannot be written ({error.strerror}); name another file") from error
    if there and out.samefile(path):
        raise CannotServe(f"--out {out}: is the configuration itself; name another file")
    if there and not _is_training(out):
        raise CannotServe(f"--out {out}: is there already, and is not a configuration for training; name another file")


def _is_training(file: Path) -> bool:
    """Whether it is such a file as is written here."""
    try:
        return {"name", "task", "data"} <= read_yaml(file).keys()
    except CannotServe:
        return False


def _check_bounds(config: TrainConfig) -> None:
    projection = config.model.projection or 0
    if config.tune.bounds.get("hidden", (1 << 30,))[0] <= projection:
        raise CannotServe(
            f"tune.hidden: its lower bound must be above model.projection, {projection}; change the bounds"
        )


def run_trial(trial: optuna.Trial, dataset: Dataset, stop: ShutdownSignal) -> float:
    """One training with sampled options; returns the metric of its best epoch, where higher is better.

    Raises CannotServe where the training has no result, optuna.TrialPruned where it is given up.
    """
    config = with_params(dataset.config, sample_params(trial, dataset.config.tune))
    check_memory(config, len(dataset.events.keys), dataset.encoder.width)
    dataset = replace(dataset, config=config)
    trainer = make_trainer(make_network(dataset), dataset, checkpoint=None)

    def on_epoch_end(epoch: EpochMetrics) -> None:
        trial.report(epoch["metric"], int(epoch["epoch"]))
        if trial.should_prune():
            raise optuna.TrialPruned

    return trainer.run(lambda _progress: None, on_epoch_end, lambda: stop.requested).best_metric


def sample_params(trial: optuna.Trial, options: Tune) -> Params:
    """A value for each option that has bounds."""
    params: dict[str, float | int] = {}
    for name, (low, high) in options.bounds.items():
        log = name in _LOG_SCALE
        if isinstance(low, int) and isinstance(high, int):
            params[name] = trial.suggest_int(name, low, high, log=log)
        else:
            params[name] = trial.suggest_float(name, low, high, log=log)
    return params


def with_params(config: TrainConfig, params: Params) -> TrainConfig:
    """The configuration with these values in its sections `model` and `training`."""
    sections = {
        section: getattr(config, section).model_copy(
            update={name: value for name, value in params.items() if _SECTIONS[name] == section}
        )
        for section in ("model", "training")
    }
    return config.model_copy(update=sections)


def _write_config(out: Path, tree: dict[str, Any], params: Params, config: TrainConfig) -> None:
    """Writes the configuration file's tree with these values; numbers have four digits, within the bounds."""
    for name, value in params.items():
        low, high = config.tune.bounds[name]
        rounded = min(max(float(f"{value:.4g}"), low), high) if isinstance(value, float) else value
        tree[_SECTIONS[name]] = {**(tree.get(_SECTIONS[name]) or {}), name: rounded}
    validate_training(tree, config.folder)  # a file that cannot be loaded must not be written
    try:
        write_whole(out, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode())
    except OSError as error:
        why = f"cannot be written ({error.strerror}){remedy_of(error)}"
        raise Fatal(f"{out}: {why}. The best settings are {_format_params(params)}") from error


def _best_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Those with a result, the best first."""
    complete = [trial for trial in study.trials if trial.value is not None]
    return sorted(complete, key=lambda trial: -(trial.value or 0.0))[:MAX_LISTED]


def _print_table(trials: Sequence[FrozenTrial]) -> None:
    table = Table(title="best trials")
    names = list(trials[0].params)
    for name in ("trial", *names, "validation"):
        table.add_column(name, justify="right")
    for trial in trials:
        table.add_row(str(trial.number + 1), *(f"{trial.params[name]:.4g}" for name in names), f"{trial.value:.5g}")
    Console().print(table)


def _format_params(params: Params) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in params.items())
