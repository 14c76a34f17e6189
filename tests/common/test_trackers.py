"""Experiment trackers: they receive every logged value, and a resumed run continues its W&B run."""

import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboardX.proto import event_pb2

from optiml_jax.common import trackers
from optiml_jax.common.errors import UserError
from optiml_jax.common.metrics_log import MetricsLog, Validated, read_metrics
from optiml_jax.training.hooks import Logging
from tests.training.test_hooks import cache  # noqa: F401 - a fixture
from tests.training.test_trainable import run

ROW = {"step": 1, "loss": 2.0, "mean_loss": 2.5, "mfu": None, "mfu_formula": "x", "tokens_per_second": 9.0}


def records(path: Path) -> Iterator[bytes]:
    """The records of a file of wandb: seven bytes, then LevelDB's log, blocks of 32 KiB with parts of records."""
    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 32_768 - place % 32_768) < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


def events(path: Path) -> Iterator[event_pb2.Event]:
    """The events of a file of TensorBoard: length, its checksum, content, its checksum."""
    left = path.read_bytes()
    while left:
        (size,) = struct.unpack("<Q", left[:8])
        yield event_pb2.Event.FromString(left[12 : 12 + size])
        left = left[16 + size :]


class Recorder:
    def __init__(self):
        self.points, self.closed = [], False

    def log(self, values, step):
        self.points.append((step, dict(values)))

    def log_samples(self, rows, step):
        self.points.append((step, rows))

    def close(self):
        self.closed = True


def test_a_tracker_gets_what_tensorboard_gets(tmp_path):
    recorder = Recorder()
    log = MetricsLog(tmp_path, 0, 3, tracker=recorder)
    log.write(ROW)
    samples = [("a", "Is *it* | <b>?\nA:", "yes", " no_", "0.0")]
    log.validated(2, Validated({"average": 0.5}, {}, samples), "validated")
    log.close()
    assert recorder.closed and recorder.points == [
        (1, {"train/loss": 2.0, "train/mean_loss": 2.5, "system/tokens_per_second": 9.0}),
        (2, {"validation/average": 0.5}),
        (2, samples),
    ]
    tags = {}
    for file in (tmp_path / "tensorboard").glob("events.*"):
        tags |= {value.tag: value for event in events(file) for value in event.summary.value}
    assert {"train/loss", "validation/average", "validation/samples/text_summary"} <= tags.keys()
    (text,) = tags["validation/samples/text_summary"].tensor.string_val
    assert text.decode().splitlines()[2] == "a | Is &#42;it&#42; &#124; &lt;b>?<br>A: | yes |  no&#95; | 0.0"


def test_a_run_goes_on_without_a_tracker_that_fails(tmp_path, capsys):
    class Unreachable(Recorder):
        def log(self, values, step):
            raise ConnectionError("no route to host\nmore")

    recorder = Unreachable()
    log = MetricsLog(tmp_path, 0, 3, tracker=recorder)
    for step in (1, 2):
        log.write(ROW | {"step": step})
    log.close()
    assert capsys.readouterr().out.count("Logging.tracker: no route to host; nothing more is logged to it") == 1
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2] and not recorder.closed


def logged(folder: Path) -> tuple[set[tuple], list[tuple[int, float]], set[str]]:
    """Reads wandb's files; returns (project, id, name) of each run, (step, loss) of each logged point, and the names of
    the logged settings."""
    from wandb.proto import wandb_internal_pb2

    runs, points, settings = set(), [], set()
    for path in sorted(folder.glob("offline-run-*/*.wandb")):
        for data in records(path):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                runs.add((record.run.project, record.run.run_id, record.run.display_name))
                settings |= {update.key for update in record.run.config.update}
            if record.HasField("history"):
                items = {(item.key or "/".join(item.nested_key)): item.value_json for item in record.history.item}
                points.append((int(items["step"]), float(items["train/loss"])))
    return runs, points, settings


@pytest.mark.slow
def test_a_run_and_its_resume_are_one_run_of_weights_and_biases(cache, tmp_path, monkeypatch):  # noqa: F811
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "tests")
    for steps in (3, 4):
        run(cache, tmp_path / "run", None, steps, logging=Logging(log_every=1, checkpoint_every=3, tracker="wandb"))
    folder, end = tmp_path / "run" / "wandb", time.monotonic() + 30
    while len(logged(folder)[1]) < 4 and time.monotonic() < end:  # a process of wandb's writes the files
        time.sleep(0.2)
    runs, points, settings = logged(folder)
    ((project, name, shown),) = runs
    assert (project, shown) == ("tests", "run")
    assert name == (folder / trackers.ID).read_text()
    assert [step for step, _ in points] == [1, 2, 3, 4] and all(loss > 0 for _, loss in points)
    assert "Optimization.learning_rate" in settings


@pytest.mark.slow
def test_a_run_and_its_resume_are_one_run_of_mlflow(cache, tmp_path, monkeypatch):  # noqa: F811
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/store")
    for steps in (3, 4):
        run(cache, tmp_path / "run", None, steps, logging=Logging(log_every=1, checkpoint_every=3, tracker="mlflow"))
    client = mlflow.MlflowClient(f"file:{tmp_path}/store")
    experiment = client.get_experiment_by_name("optiml-jax")
    (record,) = client.search_runs([experiment.experiment_id])
    assert record.info.run_id == (tmp_path / "run" / "mlflow" / trackers.ID).read_text()
    assert record.info.run_name == "run" and record.info.status == "FINISHED"
    losses = client.get_metric_history(record.info.run_id, "train/loss")
    expected = [(row["step"], row["loss"]) for row in read_metrics(tmp_path / "run")]
    assert sorted((point.step, point.value) for point in losses) == expected
    assert record.data.params["Optimization.learning_rate"] and not any("tokens of" in x for x in record.data.params)
    (tmp_path / "run" / "mlflow" / trackers.ID).write_text("0" * 32)  # of a run that is not there
    with pytest.raises(
        UserError, match=r"Logging\.tracker: mlflow cannot start \(.*check MLFLOW_TRACKING_URI, and .*run_id"
    ):
        run(cache, tmp_path / "run", None, 5, logging=Logging(tracker="mlflow"))


def test_a_mistake_is_told_before_the_run(cache, tmp_path, monkeypatch):  # noqa: F811
    with pytest.raises(UserError, match=r"Logging\.tracker: 'wandb ' is unknown; use 'wandb', 'mlflow' or None"):
        run(cache, tmp_path / "run", None, 2, logging=Logging(tracker="wandb "))
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"Logging\.tracker: 'wandb' is not installed: pip install wandb"):
        run(cache, tmp_path / "run", None, 2, logging=Logging(tracker="wandb"))
    assert not (tmp_path / "run").exists()


def test_weights_and_biases_without_a_login_is_one_line(cache, tmp_path, monkeypatch):  # noqa: F811
    wandb = pytest.importorskip("wandb")

    def refuse(**options):
        raise wandb.errors.UsageError("No API key configured.\nmore")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match=r"wandb cannot start \(No API key configured\.\); run `wandb login`, or set"):
        run(cache, tmp_path / "run", None, 2, logging=Logging(tracker="wandb"))
