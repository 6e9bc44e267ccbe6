"""What every test relies on: no network, no telemetry, no surprises from the terminal. Set before anything is imported."""

from __future__ import annotations

import os

os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "DO_NOT_TRACK": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "WANDB_MODE": "disabled",
        "MPLBACKEND": "agg",
        # Help texts and tables are as wide as the terminal; tests want one width.
        "COLUMNS": "100",
        "NO_COLOR": "1",
    }
)
for variable in ("FORCE_COLOR", "PY_COLORS", "TTY_COMPATIBLE"):
    os.environ.pop(variable, None)

import gc
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from align.testing.ray_nodes import RayNodes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first, so that two workers end at about the same time: the quick files fill what is left."""
    for item in items:
        if "finished_run" in getattr(item, "fixturenames", ()):  # a whole run, for whoever comes first
            item.add_marker("slow")
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no NVIDIA GPU")


@pytest.fixture(scope="module", autouse=True)
def short_collections() -> None:
    """A stage collects garbage a few times: 0.3 s each, if it looked at all that has been imported."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or libraries say at the end that their objects are still there


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[RayNodes]:
    """A Ray cluster with two nodes of one CPU each."""
    pytest.importorskip("ray")
    from align.testing.ray_nodes import RayNodes

    nodes = RayNodes(2, cpus=1)
    yield nodes
    nodes.close()


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this session of tests have in common."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """`folder` as `make` fills it, in the first process that needs it; the others wait until it is done."""
    done = folder.with_suffix(".done")
    with FileLock(folder.with_suffix(".lock")):
        if not done.exists():
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def project_template(common: Path) -> Path:
    """A tiny project; must not be written to."""
    from align.testing import tiny_project

    return made_once(common / "template", tiny_project)


@pytest.fixture
def project(project_template: Path, tmp_path: Path) -> Path:
    """A fresh copy of the tiny project: its folder holds recipe.yaml."""
    return Path(shutil.copytree(project_template, tmp_path / "project"))


@pytest.fixture(scope="session")
def finished_run(project_template: Path, common: Path) -> Path:
    """The folder of a whole undisturbed run of the tiny project; must not be written to."""
    from align import load_recipe, run_recipe

    def run(out: Path) -> None:
        run_recipe(load_recipe(project_template / "recipe.yaml"), out, command=["align", "run"])

    return made_once(common / "undisturbed", run) / "tiny"
