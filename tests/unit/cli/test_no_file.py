"""Pipes, devices and folders in the place of files: refused by name, and neither waited for nor read without end."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from align.testing import tiny_causal_lm

RECIPE = """\
name: small
inputs:
  base: {kind: model, path: base, chat: {template: ./chat.jinja}}
  lessons: {kind: instructions, path: lessons.jsonl}
stages:
  sft: {stage: sft, model: base, data: lessons}
"""
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
SECONDS = 20
OTHERS: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    tiny_causal_lm(folder / "base")
    for name in ("lessons.jsonl", "lessons.csv", "lessons.parquet", "lessons.jsonl.gz"):
        (folder / name).write_text('{"prompt": "a", "completion": "b"}\n')
    (folder / "chat.jinja").write_text(TEMPLATE)
    (folder / "machine.yaml").write_text("")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def place(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project; whatever waits longer than `SECONDS` is interrupted."""
    place = Path(shutil.copytree(sound, tmp_path / "p"))
    monkeypatch.chdir(place)

    def end(*_: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    yield place
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize(
    "name", ["recipe.yaml", "machine.yaml", "chat.jinja", "base/config.json", "base/tokenizer.json", "base/model.safetensors"]
)
def test_a_file_of_a_project(align: Any, place: Path, name: str, kind: str) -> None:
    (place / name).unlink()
    OTHERS[kind](place / name)
    answer = align("plan", "recipe.yaml", *(["--machine", name] if name == "machine.yaml" else []))
    assert answer.code in (2, 4)
    assert Path(name).name in answer.err
    told = f"is {kind}, not a file"
    if kind == "a folder" and name in ("recipe.yaml", "machine.yaml"):
        told = "in this folder" if name == "machine.yaml" else "this folder has no recipe.yaml"  # it may stand for the file in it
    if kind == "a device" and name.startswith("base/") and name.endswith(".json"):
        told = "is not inside the folder"  # links that lead out of it are not followed at all
    assert told in answer.err


@pytest.mark.parametrize("kind", ["a pipe", "a device"])
@pytest.mark.parametrize("name", ["lessons.jsonl", "lessons.csv", "lessons.parquet", "lessons.jsonl.gz"])
def test_data(align: Any, place: Path, name: str, kind: str) -> None:
    (place / name).unlink()
    OTHERS[kind](place / name)
    (place / "recipe.yaml").write_text(RECIPE.replace("lessons.jsonl", name))
    for arguments in (("plan", "recipe.yaml"), ("data", "validate", name, "--kind", "instructions")):
        answer = align(*arguments)
        assert answer.code == 2
        assert f"{name}" in answer.err
        assert f"is {kind}, not a file" in answer.err


def test_a_machine_file_beside_the_recipe(align: Any, place: Path) -> None:
    (place / "machine.yaml").unlink()
    os.mkfifo(place / "machine.yaml")
    answer = align("plan", "recipe.yaml")
    assert answer.code == 2
    assert "machine.yaml: cannot be read (is a pipe, not a file)" in answer.err


def test_a_text_without_end_in_a_model_folder(align: Any, place: Path) -> None:
    (place / "base" / "merges.txt").write_bytes(b"")
    os.truncate(place / "base" / "merges.txt", 1 << 40)
    answer = align("plan", "recipe.yaml")
    assert answer.code == 4
    assert "merges.txt: has 1,099,511,627,776 bytes; at most 268,435,456 are read" in answer.err


LINKS = {"circle": "{name}", "nowhere": "gone"}


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("name", ["lessons.jsonl", "base", "chat.jinja"])
def test_a_link_that_leads_nowhere(align: Any, place: Path, name: str, link: str) -> None:
    shutil.rmtree(place / name) if name == "base" else (place / name).unlink()
    target = LINKS[link].format(name=name)
    (place / name).symlink_to(target)
    answer = align("plan", "recipe.yaml")
    assert answer.code == 2
    assert f"; it is a link to {target}, which leads nowhere" in answer.err
    if name == "lessons.jsonl":
        answer = align("data", "validate", name, "--kind", "instructions")
        assert answer.code == 3
        assert answer.err.startswith(f"error: {name}: is a link to {target}, which leads nowhere")


@pytest.mark.parametrize(
    "command",
    [
        "plan recipe.yaml --out circle",
        "run recipe.yaml --out circle",
        "stage sft --model base --data lessons.jsonl --out circle",
        "export base --to circle",
        "init circle --model base --data lessons.jsonl --goal sft",
    ],
)
def test_a_place_that_is_a_link_to_itself(align: Any, place: Path, command: str) -> None:
    (place / "circle").symlink_to("circle")
    answer = align(*command.split())
    assert answer.code == 4
    assert "circle: the links there lead in a circle\n→ Remove the link, or choose another place." in answer.err
