"""The machine file: where it is looked for, and what is said about mistakes in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.config.machine import MachineSettings
from align.config.machine_file import MachineFile, read_machine_settings
from align.errors import RecipeError


def written(folder: Path, text: str, name: str = "machine.yaml") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def said(folder: Path, text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        read_machine_settings(written(folder, text), folder, {})
    assert caught.value.exit_code == 2
    assert len(caught.value.render().splitlines()) <= 15
    return caught.value.render().replace(f"{folder}/", "").splitlines()


def test_the_option_wins_over_the_variable_and_that_over_the_recipes_folder(tmp_path: Path) -> None:
    def processes(option: Path | None, environment: dict[str, str]) -> object:
        return read_machine_settings(option, tmp_path / "recipe", environment).settings.training.processes

    assert processes(None, {}) == "auto"
    written(tmp_path / "recipe", "training: {processes: 2}")
    assert processes(None, {"ALIGN_MACHINE": ""}) == 2
    variable = {"ALIGN_MACHINE": str(written(tmp_path / "cluster", "training: {processes: 3}").parent)}
    assert processes(None, variable) == 3
    assert processes(written(tmp_path, "training: {processes: 4}", "other.yaml"), variable) == 4


def test_settings_may_be_given_from_python() -> None:
    found = read_machine_settings({"sampling": {"engines": 3}}, Path(), {})
    assert (found.settings.sampling.engines, found.source) == (3, "machine")
    assert read_machine_settings(found, Path(), {"ALIGN_MACHINE": "none.yaml"}) is found
    with pytest.raises(RecipeError, match=r"machine: sampling.engines: must be at least 1, got 0"):
        read_machine_settings({"sampling": {"engines": 0}}, Path(), {})


def test_an_empty_file_leaves_everything_to_the_defaults(tmp_path: Path) -> None:
    assert read_machine_settings(written(tmp_path, "# later\n"), tmp_path, {}).settings == MachineSettings()


def test_a_message_can_name_the_place_of_a_value(tmp_path: Path) -> None:
    found = read_machine_settings(written(tmp_path, "training:\n  processes: 8\n"), tmp_path, {})
    assert found.where("training", "processes") == f"{tmp_path}/machine.yaml:2:14: training.processes"
    assert found.where("training", "strategy") == "training.strategy"
    assert MachineFile().where("training", "processes") == "training.processes"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {num_processes: 8}", "1:12: training.num_processes: unknown key; did you mean 'processes'?"),
        ("training: {nproc_per_node: 8}", "1:12: training.nproc_per_node: unknown key; did you mean 'processes'?"),
        ("world_size: 8", "1:1: world_size: unknown key; did you mean 'training.processes'?"),
        ("num_gpus: 8", "1:1: num_gpus: unknown key; did you mean 'training.processes'?"),
        ("fsdp: true", "1:1: fsdp: unknown key; did you mean 'training.strategy'?"),
        ("sampling: {tp: 2}", "1:12: sampling.tp: unknown key; did you mean 'tensor_parallel'?"),
        ("sampling: {tensor_parallel_size: 2}", "sampling.tensor_parallel_size: unknown key; did you mean 'tensor_parallel'?"),
        (
            "training: {tensor_parallel_size: 2}",
            "unknown key; did you mean 'sampling.tensor_parallel'? It goes beside 'training'",
        ),
        (
            "training: {tensor_parallel: 2}",
            "training.tensor_parallel: unknown key; did you mean 'sampling.tensor_parallel'? It goes",
        ),
        ("sampling: {num_engines: 2}", "1:12: sampling.num_engines: unknown key; did you mean 'engines'?"),
        ("sampling: {data_parallel_size: 2}", "1:12: sampling.data_parallel_size: unknown key; did you mean 'engines'?"),
        (
            "trainng: {processes: 8}",
            "1:1: trainng: unknown key; did you mean 'training.processes'? Write training: {processes: 8}",
        ),
        ("trainng: 8", "1:1: trainng: unknown key; did you mean 'training'?"),
        ("nodes: 2", "1:1: nodes: unknown key; did you mean 'training.nodes'?"),
        ("training: {nnodes: 2}", "1:12: training.nnodes: unknown key; did you mean 'nodes'?"),
        ("training: {master_addr: a}", "Ray places the processes of several nodes"),
        ("training: {nodes: 0}", "1:19: training.nodes: must be at least 1, got 0"),
        ("training: {nodes: 2, strategy: single}", "1:11: training: strategy single is one process, not 2 nodes"),
        ("training: {strategy: deepspeed}", "1:22: training.strategy: expected"),
        ("training: {strategy: deepspeed}", "did you mean 'zero3'?"),
        ("training: {processes: '8'}", "got the text '8' (remove the quotes)"),
        ("training: {processes: 0}", "1:23: training.processes: must be at least 1, got 0"),
        ("training: {processes: 2, strategy: single}", "1:11: training: strategy single is one process, not 2"),
        ("training:", "1:1: training: expected a mapping, got nothing (null)"),
        ("- training", "1:1: expected a mapping, got a list"),
        ("ray: {address: auto, address: auto}", "the key 'address' is here twice"),
    ],
)
def test_a_mistake_has_a_place_and_a_proposal(tmp_path: Path, text: str, message: str) -> None:
    lines = said(tmp_path, text)
    assert message in lines[0]
    assert lines[0].startswith("machine.yaml:1:")


def test_all_mistakes_are_reported_in_the_order_of_the_file(tmp_path: Path) -> None:
    lines = said(tmp_path, "sampling:\n  pool: threads\n  engines: -1\ntraining: {processes: two}\n")
    assert lines[0] == "3 problems in machine.yaml:"
    assert [line.split(":")[1] for line in lines[1:]] == ["2", "3", "4"]


def test_a_file_that_is_not_there_is_named_as_it_was_given(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"--machine none.yaml: there is no such file"):
        read_machine_settings(Path("none.yaml"), tmp_path, {})
    with pytest.raises(RecipeError, match=r"ALIGN_MACHINE=none.yaml: there is no such file"):
        read_machine_settings(None, tmp_path, {"ALIGN_MACHINE": "none.yaml"})
    with pytest.raises(RecipeError, match="there is no machine.yaml in this folder"):
        read_machine_settings(tmp_path, tmp_path, {})
