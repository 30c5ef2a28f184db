"""`lstmstream tune`: trains again and again within bounds, and keeps the settings that the validation part liked best.

Never looks at the test part. What it writes is a training configuration; `lstmstream train` then makes the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import yaml
from rich.console import Console
from rich.table import Table

from lstmstream.config.load import read_yaml
from lstmstream.errors import CannotServe
from lstmstream.stop import Stop
from lstmstream.train.fit import Line
from lstmstream.train.history.inspection import check_memory
from lstmstream.train.prepare import Prepared, prepare
from lstmstream.train.run import make_fit, make_net
from lstmstream.train.schema import TrainConfig, Tune, judge_training, load_training

_WHERE = {
    "learning_rate": "training", "weight_decay": "training", "batch": "training", "steps": "training",
    "hidden": "model", "layers": "model", "dropout": "model",
}  # fmt: skip
_LOGARITHMIC = {"learning_rate", "weight_decay", "hidden", "batch", "steps"}
_SHOWN = 10


def tune(path: Path, *, trials: int | None = None, out: Path | None = None) -> int:
    """Searches as section `tune` of the file at `path` says; writes the best settings to `out`. Returns the exit code.

    Without `out`: `<file>.tuned.yaml` beside it. Raises CannotServe.
    """
    stop = Stop()
    config = load_training(path)
    out = out or path.with_suffix(".tuned.yaml")
    if config.tune.bounds.get("hidden", (1 << 30,))[0] <= (config.model.projection or 0):
        raise CannotServe(
            f"tune.hidden: its lower bound must be above model.projection, {config.model.projection}; write bounds"
        )
    if out.parent.resolve() != path.parent.resolve():
        raise CannotServe(f"{out}: must lie beside {path}, because paths in it start from there")
    prepared = prepare(config)
    screen = Console(stderr=True, highlight=False)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=config.training.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2),
    )

    def one(trial: optuna.Trial) -> float:
        try:
            found = _try(trial, prepared, stop)
        except CannotServe as error:  # it did not learn, or was stopped before it could: the others count
            screen.print(f"trial {trial.number + 1:>3}  {_shown(trial.params)}  {error}")
            raise optuna.TrialPruned from error
        screen.print(f"trial {trial.number + 1:>3}  {_shown(trial.params)}  validation {found:.5g}")
        return found

    try:
        study.optimize(
            one,
            n_trials=trials or config.tune.trials,
            callbacks=[lambda study, _trial: study.stop() if stop.asked else None],
        )
    finally:
        if prepared.events.scratch is not None:
            prepared.events.scratch.cleanup()
    if not any(trial.state == optuna.trial.TrialState.COMPLETE for trial in study.trials):
        why = "stopped before the first training was done" if stop.asked else "no trial came to a result (see above)"
        raise CannotServe(f"tune: {why}; there is nothing to keep")
    _write(out, read_yaml(path), study.best_params, config)
    _print(study)
    print(f"{out}: the best of {len(study.trials)} trials; now: lstmstream train {out}")
    return 0


def _try(trial: optuna.Trial, prepared: Prepared, stop: Stop) -> float:
    """One training; what the validation part said of its best epoch, higher is better."""
    changed = _with(prepared.config, _draw(trial, prepared.config.tune))
    one = Prepared(
        changed, prepared.fields, prepared.events, prepared.parts, prepared.counted, prepared.encoder, prepared.warnings
    )
    check_memory(changed, len(prepared.events.keys), prepared.encoder.width)
    fit = make_fit(make_net(one), one, None)

    def after(line: Line) -> None:
        trial.report(line["metric"], int(line["epoch"]))
        if trial.should_prune():
            raise optuna.TrialPruned

    return fit.run(lambda _told: None, after, lambda: stop.asked).best


def _draw(trial: optuna.Trial, bounds: Tune) -> dict[str, float | int]:
    """A value for everything that has bounds."""
    drawn: dict[str, float | int] = {}
    for name, (low, high) in bounds.bounds.items():
        logarithmic = name in _LOGARITHMIC
        if isinstance(low, int) and isinstance(high, int):
            drawn[name] = trial.suggest_int(name, low, high, log=logarithmic)
        else:
            drawn[name] = trial.suggest_float(name, low, high, log=logarithmic)
    return drawn


def _with(config: TrainConfig, drawn: dict[str, float | int]) -> TrainConfig:
    """The configuration with these values."""
    sections = {
        section: getattr(config, section).model_copy(
            update={name: value for name, value in drawn.items() if _WHERE[name] == section}
        )
        for section in ("model", "training")
    }
    changed = config.model_copy(update=sections)
    changed._folder = config.folder
    return changed


def _write(out: Path, tree: dict[str, Any], best: dict[str, Any], config: TrainConfig) -> None:
    for name, value in best.items():
        section = tree.get(_WHERE[name])
        tree[_WHERE[name]] = {**(section or {}), name: float(f"{value:.4g}") if isinstance(value, float) else value}
    judge_training(tree, config.folder)  # what is written can be read
    out.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _print(study: optuna.Study) -> None:
    """The best trials, best first."""
    done = [trial for trial in study.trials if trial.value is not None]
    table = Table(title="best trials")
    names = list(study.best_params)
    for name in ("trial", *names, "validation"):
        table.add_column(name, justify="right")
    for trial in sorted(done, key=lambda trial: -(trial.value or 0.0))[:_SHOWN]:
        table.add_row(str(trial.number + 1), *(f"{trial.params[name]:.4g}" for name in names), f"{trial.value:.5g}")
    Console().print(table)


def _shown(params: dict[str, Any]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in params.items())
