"""How an optimizer batch is shared among processes and micro-batches, and what is kept of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align.config.sections import Optimization
from align.runtime.spread import Spread
from align.store.atomic import link_tree
from align.testing import run_context
from align.training.epoch import epoch_folder, keep_epoch
from align.training.loop import TrainingHistory, training_arguments


def arguments(processes: int, **settings: Any) -> dict[str, Any]:
    context = run_context(name="sft", spread=Spread(processes, "ddp"))
    return training_arguments(Optimization(precision="float32", warmup_ratio=0.5, num_epochs=3, **settings), context, num_rows=50)


@pytest.mark.parametrize(
    ("processes", "micro", "rows", "accumulation"),
    [(1, "auto", 16, 1), (1, 2, 2, 8), (2, "auto", 16, 1), (2, 2, 2, 8), (3, 4, 4, 4)],
)
def test_the_rows_of_a_step_do_not_depend_on_processes(processes: int, micro: Any, rows: int, accumulation: int) -> None:
    found = arguments(processes, batch_size=16, micro_batch_size=micro)
    assert (found["per_device_train_batch_size"], found["gradient_accumulation_steps"]) == (rows, accumulation)
    assert found["warmup_steps"] == 6  # half of 3 epochs of 50 / 16, rounded up to 4 steps


def test_a_batch_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ValueError, match=r"micro_batch_size: batch_size \(16\) must be a multiple of micro_batch_size \(3\)"):
        Optimization(batch_size=16, micro_batch_size=3)


def test_an_epoch_that_is_trained_again_leaves_what_was_linked_from_it(tmp_path: Path) -> None:
    def save(text: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights").write_text(text)

    keep_epoch(lambda folder: save("first", folder), tmp_path / "work", 1)
    link_tree(epoch_folder(tmp_path / "work", 1), tmp_path / "model")
    keep_epoch(lambda folder: save("second", folder), tmp_path / "work", 1)
    assert (epoch_folder(tmp_path / "work", 1) / "weights").read_text() == "second"
    assert (tmp_path / "model" / "weights").read_text() == "first"
    assert [path.name for path in (tmp_path / "work" / "epochs").iterdir()] == ["epoch-1"]


def test_a_metric_of_the_last_epoch_is_its_mean_over_rows() -> None:
    # Two epochs of 10 rows in steps of 4, 4 and 2; steps 2, 4, 5 and 6 are logged, 4 with what came since step 2.
    rows = [{"step": step, "loss": loss} for step, loss in ((1, 9.0), (2, 8.0), (4, 3.0), (5, 2.0), (6, 1.0))]
    history = TrainingHistory([*rows, {"step": 6, "train_runtime": 1.0}], steps=6)
    assert history.of_last_epoch("loss", rows=10, batch_size=4) == pytest.approx((4 * 3 + 4 * 2 + 2 * 1) / 10)
    assert history.of_last_epoch("margin", rows=10, batch_size=4) is None


def test_of_a_single_short_epoch_all_steps_count() -> None:
    history = TrainingHistory([{"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.0}], steps=2)
    assert history.of_last_epoch("loss", rows=5, batch_size=4) == pytest.approx((4 * 3 + 1) / 5)


def test_a_training_of_one_step_learns(tmp_path: Path) -> None:
    def warmup(num_rows: int) -> Any:
        config = Optimization(batch_size=4, warmup_ratio=0.1)
        return training_arguments(config, run_context(tmp_path), num_rows=num_rows)["warmup_steps"]

    # A warm-up begins with the rate 0, so the only step of a training must not be a part of it.
    assert (warmup(3), warmup(8), warmup(80)) == (0, 1, 2)
