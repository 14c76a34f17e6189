"""Logs of a run whose loss is not always a number."""

import json

from optiml_jax.common.metrics_log import MetricsLog, read_metrics, training_losses


def test_an_overflow_at_a_logged_step_is_a_row(tmp_path):
    """In fp16 a loss may overflow; the step is then skipped, logged as unknown, and left out of the curve."""
    log = MetricsLog(tmp_path, 0, 3)
    for step, loss in enumerate((8.0, float("nan"), 2.0), start=1):
        log.write({"step": step, "loss": loss, "tokens_per_second": 1.0})
    log.close()
    assert [row["loss"] for row in read_metrics(tmp_path)] == [8.0, None, 2.0]
    assert training_losses(tmp_path)["curve"] == [[1, 8.0], [3, 2.0]]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 4, "loss": 1.0, "mean_loss": 4.0}) + "\n")
        file.write(json.dumps({"step": 5, "loss": 1.0, "mean_loss": None}) + "\n")
    summary = training_losses(tmp_path)
    assert summary["curve"] == [[1, 8.0], [3, 2.0], [4, 4.0]] and summary["rows"] == 1
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": None}) + "\n")
    assert training_losses(tmp_path) is None
