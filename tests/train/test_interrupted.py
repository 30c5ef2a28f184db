"""What is left of a training, and what is said, when something comes between: a second one, a full disk, Ctrl-C."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lstmstream.errors import CannotServe, Fatal
from lstmstream.history import events as data
from lstmstream.train import run
from lstmstream.train.dataset import prepare_dataset
from lstmstream.train.run import train
from lstmstream.train.sole import sole_training
from lstmstream.train.trainer import Trainer
from lstmstream.train.tune import tune
from tests.train.histories import LSTMSTREAM, config_for, write_config

pytestmark = pytest.mark.torch


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_second_training_of_the_same_file_is_refused(tmp_path: Path) -> None:
    file, out = write_config(tmp_path), tmp_path / "card-fraud.onnx"
    with sole_training(out):
        with pytest.raises(CannotServe, match=r"card-fraud\.onnx: another training writes it; wait for its end"):
            train(file)
        with sole_training(tmp_path / "other.onnx"):
            pass
    lock = tmp_path / ".card-fraud.onnx.lock"
    assert not lock.exists()
    lock.touch()  # as kill -9 leaves it
    assert train(file) == 0
    assert not lock.exists()


def test_a_disk_that_is_full_at_the_end_costs_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, report = write_config(tmp_path), tmp_path / "card-fraud.html"
    fsync = os.fsync
    with monkeypatch.context() as patch:
        # the model is the second file that goes to the disk, after its draft, and the report the third
        for whole_files, what in ((1, "card-fraud.onnx"), (2, "card-fraud.html")):
            left = [None] * whole_files
            patch.setattr(os, "fsync", lambda number, left=left: fsync(number) if left and not left.pop() else full())
            with pytest.raises(Fatal, match=rf"{what}: cannot be written \(No space left on device\)\. .*--resume"):
                train(file)
            assert not report.exists()
            assert not list(tmp_path.glob(".*"))
    capsys.readouterr()
    assert train(file, resume=True) == 0
    assert "resuming after epoch 3" in capsys.readouterr().err
    assert report.read_text().rstrip().endswith("</html>")
    assert not (tmp_path / "card-fraud.checkpoint").exists()


def test_a_log_on_a_full_disk_ends_no_training(tmp_path: Path) -> None:
    file = write_config(tmp_path, tune={"trials": 1, "hidden": [4, 4]}, training={"epochs": 1})
    for name, made in (("train", "card-fraud.html"), ("tune", "train.tuned.yaml")):
        with Path("/dev/full").open("w") as full_log:
            done = subprocess.run(
                [*LSTMSTREAM, name, str(file)], stdout=subprocess.PIPE, stderr=full_log, check=False, timeout=180
            )
        assert done.returncode == 0
        assert made.encode() in done.stdout
        assert (tmp_path / made).exists()


def test_a_training_that_replaces_a_checkpoint_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_config(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(run, "build_report", full)
        with pytest.raises(Fatal):
            train(file)
    capsys.readouterr()
    assert train(file) == 0
    assert "card-fraud.checkpoint is of an earlier training, which --resume continues" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_epoch_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """While the data are read, which may take minutes."""
    read: list[str] = []

    def prepare(*_: Any) -> Any:
        signal.raise_signal(number)
        read.append("all")

    monkeypatch.setattr(run, "prepare_dataset", prepare)
    monkeypatch.setattr("lstmstream.train.tune.prepare_dataset", prepare)
    with pytest.raises(CannotServe, match="stopped before the first epoch was complete; there is no model to keep"):
        train(write_config(tmp_path))
    with pytest.raises(CannotServe, match="stopped before the first trial was complete; there are no settings"):
        tune(write_config(tmp_path))
    assert not read
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.csv", "train.yaml"]


def test_the_model_to_fine_tune_is_not_written_over(tmp_path: Path) -> None:
    file, model = write_config(tmp_path), tmp_path / "card-fraud.onnx"
    train(file)
    content = model.read_bytes()
    (tmp_path / "link.onnx").symlink_to(model)
    for init in (model, tmp_path / "link.onnx"):
        with pytest.raises(CannotServe, match=r"--init .*onnx: is also the model file that is written; name another"):
            train(file, init=str(init))
    assert model.read_bytes() == content
    assert train(file, init=str(model), out=tmp_path / "second.onnx") == 0


def test_a_signal_within_the_first_epoch_promises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    epoch = Trainer._train_epoch

    def interrupted(*arguments: Any) -> float:
        signal.raise_signal(signal.SIGINT)
        return epoch(*arguments)

    monkeypatch.setattr(Trainer, "_train_epoch", interrupted)
    with pytest.raises(CannotServe, match="stopped before the first epoch was complete"):
        train(write_config(tmp_path))
    assert "stopping; no epoch is complete yet" in capsys.readouterr().err


def test_resuming_without_a_checkpoint_is_refused_before_the_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "prepare_dataset", full)
    with pytest.raises(CannotServe, match=r"--resume: .*checkpoint does not exist"):
        train(write_config(tmp_path), resume=True)


def test_temporary_files_that_do_not_fit_name_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_for(tmp_path)
    monkeypatch.setattr(data, "RAM_BYTES", 2000)
    opened = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, mode="r", **how: full() if mode == "ab" else opened(path, mode, **how)
    )
    with pytest.raises(Fatal, match=r"the events do not fit there \(No space left on device\); make room, or .*TMPDIR"):
        prepare_dataset(config)


# --- tune ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("history.csv", "is there already, and is not a configuration for training; name another file"),
        ("train.yaml", "is the configuration itself; name another file"),
        ("folder", r"cannot be written \(Is a directory\); name another file"),
        ("link.yaml", "is the configuration itself"),
    ],
)
def test_tune_refuses_a_file_of_the_user_before_the_first_trial(tmp_path: Path, out: str, message: str) -> None:
    file = write_config(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.yaml").symlink_to(file)
    before = {name: name.read_bytes() for name in tmp_path.iterdir() if name.is_file()}
    with pytest.raises(CannotServe, match=f"{out}: {message}"):
        tune(file, out=tmp_path / out)
    assert before == {name: name.read_bytes() for name in tmp_path.iterdir() if name.is_file()}


def test_tune_names_the_settings_that_it_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_config(tmp_path, tune={"trials": 1, "hidden": [4, 4]}, training={"epochs": 1})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Fatal, match=r"tuned\.yaml: cannot be written \(No space left .*The best settings are hidden 4"):
        tune(file)
    assert not (tmp_path / "train.tuned.yaml").exists()


def test_rounded_settings_stay_within_their_bounds(tmp_path: Path) -> None:
    bounds = {"trials": 1, "dropout": [0.99996, 0.99999]}  # of which four digits are 1
    file = write_config(tmp_path, tune=bounds, training={"epochs": 1})
    assert tune(file) == 0
    assert train(tmp_path / "train.tuned.yaml") == 0
