"""`lstmstream train`: from a configuration to a model file and a report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from lstmstream.errors import CannotServe, Fatal
from lstmstream.model import load_model
from lstmstream.shutdown import ShutdownSignal
from lstmstream.train.dataset import prepare_dataset
from lstmstream.train.export import read_network
from lstmstream.train.factory import make_network, make_trainer
from lstmstream.train.finalize import check_threshold, finalize_model
from lstmstream.train.fine_tuning import config_for_fine_tuning
from lstmstream.train.progress import ConsoleProgress, summary_json, summary_lines
from lstmstream.train.report.build import build_report
from lstmstream.train.report.render import write_report
from lstmstream.train.schema import TrainConfig, config_text, load_training
from lstmstream.train.sole import sole_training
from lstmstream.train.trainer import STOPPED_EARLY, check_exists
from lstmstream.whole_file import check_writable


def train(
    path: Path, *, out: Path | None = None, resume: bool = False, init: str | None = None, as_json: bool = False
) -> int:
    """Trains by the configuration at `path`; writes the model to `out` and the report beside it. Returns the exit code.

    `init` is a model file to fine-tune: its network, scaling and vocabularies are kept. With `resume` training goes on
    from the checkpoint beside `out`. `as_json`: the outcome is printed as JSON. Raises CannotServe for faults of
    configuration and data, Fatal where the exported file does not compute what was trained.
    """
    stop = ShutdownSignal()
    stop.interrupt()  # until there is an epoch to keep
    config = load_training(path)
    out = _output_path(config, out)
    try:
        with sole_training(out):
            return _train(stop, path, config, out, resume=resume, init=init, as_json=as_json)
    except KeyboardInterrupt:
        raise CannotServe(STOPPED_EARLY) from None


def _train(
    stop: ShutdownSignal, path: Path, config: TrainConfig, out: Path, *, resume: bool, init: str | None, as_json: bool
) -> int:
    checkpoint = out.with_suffix(".checkpoint")
    if resume:
        check_exists(checkpoint)
    base = base_training = None
    if init is not None:
        if init.split(":")[:2] == ["builtin", "anomaly"]:
            raise CannotServe(
                f"--init {init}: it has no weights to train, since it learns each key's ways as events come; serve it"
                " as it is, with output.threshold for fewer or more alerts (docs/anomaly.md), or train without --init"
            )
        base_model = load_model(init)
        if out.exists() and out.samefile(base_model.path):
            raise CannotServe(f"--init {init}: is also the model file that is written; name another one with --out")
        base = read_network(base_model)
        base_training = base_model.card.training
        config = config_for_fine_tuning(config, base, base_model.card)
    with closing(prepare_dataset(config, base, base_training)) as dataset:
        console = ConsoleProgress(dataset)
        console.show_dataset()
        check_threshold(dataset)
        trainer = make_trainer(make_network(dataset, base), dataset, checkpoint)
        if resume:
            console.print(f"resuming after epoch {trainer.resume()}")
        elif checkpoint.exists():
            console.print(f"{checkpoint} is of an earlier training, which --resume continues; this one replaces it")
        with console.showing(trainer):
            stop.on_request(console.on_stop_requested)
            trainer.run(console.on_progress, console.on_epoch_end, lambda: stop.requested)
        console.print("evaluating the model and the baselines ...")
        with _resumable(checkpoint):
            model = finalize_model(trainer, dataset, out)
            report = build_report(dataset, trainer, model, config_text(path))
            write_report(out.with_suffix(".html"), report)
        trainer.remove_checkpoint()
        print(summary_json(report, out) if as_json else "\n".join(summary_lines(report, out)))
    return 0


@contextmanager
def _resumable(checkpoint: Path) -> Iterator[None]:
    """Raises Fatal where a file cannot be written, and says how to write it without another training."""
    try:
        yield
    except OSError as error:
        raise Fatal(
            f"{error.filename or checkpoint.parent}: cannot be written ({error.strerror or error}). The training is in"
            f" {checkpoint}: make room, and run the same command with --resume"
        ) from error


def _output_path(config: TrainConfig, out: Path | None) -> Path:
    """The path of the model file. Raises CannotServe where model, report or checkpoint cannot be written there."""
    path = out or config.folder / (config.out or f"{config.name}.onnx")
    if not path.parent.is_dir():
        raise CannotServe(f"{path}: there is no folder {path.parent}; create it, or name another with --out")
    if path.suffix != ".onnx":
        raise CannotServe(f"{path}: the name of a model file must end in .onnx; choose another with --out")
    for suffix in (".onnx", ".html", ".checkpoint"):
        if path.with_suffix(suffix).is_dir():
            raise CannotServe(f"{path.with_suffix(suffix)}: is a folder; choose another path with --out")
    try:
        check_writable(path)
    except OSError as error:
        raise CannotServe(f"{path}: {error.strerror or error}; choose another path with --out") from error
    return path
