"""Work mapped over workers: the same results, errors and stops in one process or in several."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from executor_work import (
    Remembering,
    Surroundings,
    die,
    fail,
    fail_unforeseen,
    fail_unportably,
    last_when_first,
    leave,
    print_and_double,
    slow_when_even,
    square,
    touch_slowly,
)

from align.errors import DataError, Interrupted, StageError
from align.runtime.control_group import MemoryKills
from align.runtime.executor import Executor, Inline, Processes, executor_for
from align.runtime.gpus import GPU_VARIABLE, share_of_gpus, visible_gpus
from align.runtime.item_flow import WorkerDied

BOTH = pytest.mark.parametrize("executor", [Inline(), Processes(2)], ids=["inline", "processes"])


def results(executor: Executor, work: Callable[[int], object], count: int, **options: object) -> list[tuple[int, object]]:
    done: list[tuple[int, object]] = []
    executor.map(work, range(count), on_done=lambda item, result: done.append((item, result)), **options)  # type: ignore[arg-type]
    return done


@BOTH
def test_every_item_is_done_once_and_reported_with_its_result(executor: Executor) -> None:
    assert sorted(results(executor, slow_when_even, 9)) == [(item, item * item) for item in range(9)]


@pytest.mark.parametrize("executor", [Processes(1), Processes(3), Processes(2, items_ahead=2)])
def test_the_order_of_items_is_kept_where_it_is_wanted(executor: Executor) -> None:
    assert results(executor, slow_when_even, 9, in_order=True) == [(item, item * item) for item in range(9)]


def test_results_come_as_they_are_done_where_no_order_is_wanted() -> None:
    first = results(Processes(2), slow_when_even, 4)
    assert [item for item, _ in first] != [0, 1, 2, 3]


@BOTH
def test_nothing_to_do_is_done(executor: Executor) -> None:
    assert results(executor, square, 0) == []


def test_a_worker_keeps_its_state_from_item_to_item() -> None:
    done: list[Any] = [result for _, result in results(Processes(2), Remembering(), 8)]
    assert len({process for process, _ in done}) == 2
    by_process = {process: [seen for who, seen in done if who == process] for process, _ in done}
    assert all(seen == list(range(1, len(seen) + 1)) for seen in by_process.values())
    assert sum(map(len, by_process.values())) == 8


def test_a_free_worker_takes_the_next_item(tmp_path: Path) -> None:
    """One long item beside many short ones: a fixed half for each worker would leave four short ones behind the long one."""
    began = dict(results(Processes(2), partial(last_when_first, tmp_path, 8), 9))
    assert len({process for item, process in began.items() if item}) == 1
    assert began[0] not in {process for item, process in began.items() if item}


@pytest.mark.parametrize("items_ahead", [0, 1])
def test_items_are_drawn_as_they_are_needed(items_ahead: int) -> None:
    drawn, most = [0], [0]

    def items():  # type: ignore[no-untyped-def]
        for item in range(12):
            drawn[0] += 1
            yield item

    def on_done(item: int, result: int) -> None:
        most[0] = max(most[0], drawn[0] - item)

    Processes(2, items_ahead=items_ahead).map(slow_when_even, items(), on_done=on_done, in_order=True)
    assert drawn[0] == 12
    assert most[0] <= 2 * (items_ahead + 2)


def test_large_items_and_results_do_not_block_each_other() -> None:
    executor = Processes(2, items_ahead=1)
    large = [bytes([number]) * (4 << 20) for number in range(8)]
    back: list[bytes] = []
    executor.map(bytes, large, on_done=lambda item, result: back.append(result), in_order=True)
    assert back == large


@BOTH
def test_an_error_with_its_hint_reaches_the_caller(executor: Executor) -> None:
    with pytest.raises(DataError) as caught:
        results(executor, fail, 5)
    assert (caught.value.message, caught.value.hint) == ("rows.jsonl:3: wrong", "Correct it.")


@BOTH
def test_an_unforeseen_error_keeps_its_type(executor: Executor) -> None:
    with pytest.raises(KeyError, match="colour"):
        results(executor, fail_unforeseen, 2)


def test_the_traceback_of_a_worker_is_shown_with_its_error() -> None:
    with pytest.raises(KeyError) as caught:
        results(Processes(2), fail_unforeseen, 2)
    assert "in fail_unforeseen" in str(caught.value.__cause__)


def test_an_error_that_cannot_travel_keeps_its_type_and_message_in_words() -> None:
    with pytest.raises(StageError, match="ThatCannotTravel: this and that"):
        results(Processes(2), fail_unportably, 2)


def test_work_that_cannot_travel_is_refused_at_once() -> None:
    with pytest.raises(AttributeError, match="local object|pickle"):
        results(Processes(2), lambda item: item, 2)


def test_a_killed_worker_is_named_with_its_signal() -> None:
    with pytest.raises(WorkerDied, match=r"killed by signal 9 \(SIGKILL\)") as caught:
        results(Processes(2), die, 5)
    assert MemoryKills().hint(-signal.SIGKILL) in str(caught.value.hint)


def test_a_worker_that_leaves_is_named_with_its_code() -> None:
    with pytest.raises(WorkerDied, match="ended with code 7"):
        results(Processes(2), leave, 2)


@BOTH
def test_a_stop_lets_the_items_under_way_end_and_begins_no_other(executor: Executor, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.done" for number in range(8)]
    reported: list[Path] = []

    def check_stop() -> None:
        if any(tmp_path.glob("*.begun")):
            raise Interrupted("Stopped.", signal_number=signal.SIGTERM)

    with pytest.raises(Interrupted) as caught:
        executor.map(touch_slowly, paths, on_done=lambda path, _: reported.append(path), check_stop=check_stop)
    assert caught.value.signal_number == signal.SIGTERM
    finished = sorted(tmp_path.glob("*.done"))
    assert 1 <= len(finished) <= 2
    assert sorted(reported) == finished == sorted(path.with_suffix(".done") for path in tmp_path.glob("*.begun"))


@BOTH
def test_a_stop_may_come_from_the_report_too(executor: Executor) -> None:
    done: list[int] = []

    def on_done(item: int, result: int) -> None:
        done.append(item)
        if len(done) >= 2:
            raise Interrupted("Stopped.")

    with pytest.raises(Interrupted):
        executor.map(slow_when_even, range(10), on_done=on_done)
    assert len(done) in (2, 3)


def test_what_workers_print_goes_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    results(Processes(2, log=log), print_and_double, 3)
    assert sorted(log.read_text().split("\n")) == ["", "item 0", "item 1", "item 2"]


ORPHANS = """
import sys, time
from pathlib import Path
from align.runtime.executor import Processes
sys.path.insert(0, sys.argv[2])
from executor_work import write_pid_and_wait
if __name__ == "__main__":
    Processes(2).map(write_pid_and_wait, [Path(sys.argv[1]) / name for name in "ab"], on_done=print)
"""


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(tmp_path: Path, number: int) -> None:
    script = tmp_path / "script.py"
    script.write_text(ORPHANS)
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path), str(Path(__file__).parent)], stderr=subprocess.PIPE)
    try:
        assert wait_for(lambda: all((tmp_path / name).exists() for name in "ab"))
        workers = [int((tmp_path / name).read_text()) for name in "ab"]
        assert all(map(is_running, workers))
        parent.send_signal(number)
        assert wait_for(lambda: not any(map(is_running, workers)))
    finally:
        parent.kill()
        parent.communicate()


def test_each_worker_sees_its_own_gpu_before_it_loads_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GPU_VARIABLE, "4,6")
    found = [result for _, result in results(Processes(2, gpus_each=1), Surroundings(), 4)]
    assert sorted(set(found)) == [("4", False), ("6", False)]  # type: ignore[type-var]
    assert {result for _, result in results(Processes(2), Surroundings(), 4)} == {("4,6", False)}


@pytest.mark.parametrize(
    ("devices", "each", "expected"),
    [
        (["0", "1"], 1, [["0"], ["1"]]),
        (["0", "1", "2", "3"], 2, [["0", "1"], ["2", "3"]]),
        (["0"], 1, [None, None]),
        ([], 1, [None, None]),
        (["0", "1"], 0, [None, None]),
    ],
)
def test_every_worker_has_gpus_of_its_own(devices: list[str], each: int, expected: list[list[str] | None]) -> None:
    assert [share_of_gpus(devices, number, each) for number in range(2)] == expected


@pytest.mark.parametrize(
    ("gpus", "each", "expected"),
    [("0,1,2", 1, Processes(3, gpus_each=1)), ("0,1,2", 2, Inline()), ("0", 1, Inline()), ("0", 0, Processes(4))],
)
def test_there_are_no_more_workers_than_gpus_for_them(
    monkeypatch: pytest.MonkeyPatch, gpus: str, each: int, expected: Executor
) -> None:
    monkeypatch.setenv(GPU_VARIABLE, gpus)
    found = executor_for(4, gpus_each=each)
    assert found == expected if isinstance(expected, Processes) else isinstance(found, Inline)


@pytest.mark.parametrize(("variable", "expected"), [("2, 5", ["2", "5"]), ("", []), ("-1", []), ("GPU-a,-1,3", ["GPU-a"])])
def test_the_gpus_are_those_that_cuda_would_see(monkeypatch: pytest.MonkeyPatch, variable: str, expected: list[str]) -> None:
    monkeypatch.setenv(GPU_VARIABLE, variable)
    assert visible_gpus() == expected


def test_one_worker_or_one_item_needs_no_process() -> None:
    assert all(isinstance(executor_for(*counts), Inline) for counts in [(1, 9), (4, 1), (4, 0)])
    assert executor_for(4, 3, gpus_each=1) == Processes(3, gpus_each=1)
