"""The first rows of a dataset on the hub, read over the network by the real `datasets` from a hub on this machine."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_hub import LocalHub

from align.config.inputs import DataInput
from align.data.hub import fetch_dataset_rows
from align.data.ingest import ingest
from align.data.kept_rows import keep_rows
from align.data.source import find_source
from align.errors import AlignError, DataError, EnvironmentProblem, RecipeError
from align.formats.raw import RawProblem

FIRST, SECOND = "a" * 40, "b" * 40
CARD = """\
---
configs:
- {config_name: main, data_files: [{split: train, path: main.jsonl}, {split: test, path: main.jsonl}]}
- {config_name: socratic, data_files: [{split: train, path: socratic.jsonl}]}
---
"""


def shard(*prompts: str) -> bytes:
    import pyarrow
    from pyarrow import parquet

    stream = io.BytesIO()
    columns = {"prompt": list(prompts), "image": [{"bytes": b"\xff", "path": "a.png"} for _ in prompts]}
    parquet.write_table(pyarrow.table(columns), stream)
    return stream.getvalue()


def lines(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


@pytest.fixture(scope="module")
def server() -> Iterator[LocalHub]:
    # One for all tests: huggingface_hub keeps its address in objects that live as long as the process.
    hub = LocalHub()
    hub.start()
    yield hub
    hub.shutdown()
    hub.server_close()


@pytest.fixture
def hub(server: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    import datasets
    from huggingface_hub import HfFileSystem, constants

    server.reset()
    HfFileSystem.clear_instance_cache()
    online(monkeypatch)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    server.datasets["owner/rows"] = (
        FIRST,
        {
            "data/train-00000-of-00002.parquet": shard("one", "둘", "three"),
            "data/train-00001-of-00002.parquet": shard("four", "five"),
        },
    )
    return server


def online(monkeypatch: pytest.MonkeyPatch, *, is_online: bool = True) -> None:
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", not is_online)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", not is_online)


def fetch(*args: Any, **settings: Any) -> tuple[str | None, list[str]]:
    commit, rows = fetch_dataset_rows(*args, **settings)
    read = [row for _, row in rows if not isinstance(row, RawProblem)]
    return commit, [str(row.get("prompt", row.get("text"))) for row in read]


class TestReading:
    @pytest.mark.parametrize(("split", "max_rows"), [("train", 2), ("train[:2]", None)])
    def test_the_rest_is_not_downloaded(self, hub: LocalHub, split: str, max_rows: int | None) -> None:
        assert fetch("owner/rows", split, max_rows=max_rows) == (FIRST, ["one", "둘"])
        assert set(hub.read) == {"data/train-00000-of-00002.parquet"}

    def test_rows_go_on_in_the_next_file(self, hub: LocalHub) -> None:
        assert fetch("owner/rows", "train", max_rows=4) == (FIRST, ["one", "둘", "three", "four"])
        # Fewer than the limit: these are all.
        assert fetch("owner/rows", "train", max_rows=9) == (FIRST, ["one", "둘", "three", "four", "five"])

    def test_a_subset(self, hub: LocalHub) -> None:
        files = {"README.md": CARD.encode(), "main.jsonl": lines("m1", "m2"), "socratic.jsonl": lines("s1", "s2")}
        hub.datasets["owner/gsm"] = (FIRST, files)
        assert fetch("owner/gsm", "train", subset="socratic", max_rows=1) == (FIRST, ["s1"])
        assert "main.jsonl" not in hub.read

    def test_what_json_does_not_have(self, hub: LocalHub) -> None:
        hub.datasets["owner/times"] = (FIRST, {"train.jsonl": b'{"text": "a", "at": "2020-01-02", "n": {"x": [1, null]}}\n'})
        _, rows = fetch_dataset_rows("owner/times", "train", max_rows=1)
        assert list(rows) == [(1, {"text": "a", "at": "2020-01-02 00:00:00", "n": {"x": [1, None]}})]


class TestKeptRows:
    def test_they_are_not_read_again(self, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
        assert fetch("owner/rows", "train", max_rows=3)[1] == ["one", "둘", "three"]
        hub.read.clear()
        hub.requests.clear()
        assert fetch("owner/rows", "train", max_rows=2) == (FIRST, ["one", "둘"])
        assert hub.requests == ["/api/datasets/owner/rows"]  # which commit is the newest?
        online(monkeypatch, is_online=False)
        assert fetch("owner/rows", "train", max_rows=3) == (FIRST, ["one", "둘", "three"])
        assert len(hub.requests) == 1
        with pytest.raises(EnvironmentProblem, match=r"dataset owner/rows: cannot be (fetched|loaded)"):
            fetch("owner/rows", "train", max_rows=4)

    def test_a_commit_needs_no_hub(self, hub: LocalHub) -> None:
        first = fetch("owner/rows", "train", FIRST, max_rows=2)
        hub.reset()
        assert fetch("owner/rows", "train", FIRST, max_rows=2) == first
        assert hub.requests == []

    def test_all_rows_were_kept(self, hub: LocalHub) -> None:
        fetch("owner/rows", "train", max_rows=9)
        hub.read.clear()
        assert len(fetch("owner/rows", "train", max_rows=99)[1]) == 5
        assert hub.read == []

    def test_a_newer_commit_is_read(self, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
        fetch("owner/rows", "train", max_rows=2)
        hub.datasets["owner/rows"] = (SECOND, {"data/train.parquet": shard("new", "rows")})
        assert fetch("owner/rows", "train", max_rows=2) == (SECOND, ["new", "rows"])
        online(monkeypatch, is_online=False)
        assert fetch("owner/rows", "train", max_rows=2) == (SECOND, ["new", "rows"])

    def test_damage_is_noticed(self, hub: LocalHub, tmp_path: Path) -> None:
        fetch("owner/rows", "train", max_rows=2)
        (file,) = (tmp_path / "datasets" / "align").glob("owner--rows-*/rows.jsonl")
        file.write_text(file.read_text().replace("one", "two"))
        assert fetch("owner/rows", "train", max_rows=2)[1] == ["one", "둘"]

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(EnvironmentProblem, match=r"cannot be written.*\n→ Set HF_HOME"):
            keep_rows(tmp_path / "file" / "align", {"dataset": "a/b"}, None, 1, lambda: iter([{}]))

    @pytest.mark.parametrize("stop", [KeyboardInterrupt, EnvironmentProblem])
    def test_an_interrupted_read_leaves_what_was_there(self, tmp_path: Path, stop: type[BaseException]) -> None:
        def rows(count: int, then: type[BaseException] | None = None) -> Iterator[dict[str, Any]]:
            yield from ({"text": str(number)} for number in range(count))
            if then is not None:
                raise then("stopped")

        key: dict[str, str | None] = {"dataset": "a/b", "split": "train"}
        with pytest.raises(stop):
            keep_rows(tmp_path, key, FIRST, 9, lambda: rows(5, stop))
        assert not list(tmp_path.rglob("manifest.json"))
        assert keep_rows(tmp_path, key, FIRST, 2, lambda: rows(2))[0] == FIRST
        with pytest.raises(stop):
            keep_rows(tmp_path, key, SECOND, 2, lambda: rows(1, stop))
        commit, kept = keep_rows(tmp_path, key, None, 2, lambda: rows(0))
        assert (commit, [row for _, row in kept]) == (FIRST, [{"text": "0"}, {"text": "1"}])


class TestErrors:
    @pytest.mark.parametrize("max_rows", [None, 2])
    @pytest.mark.parametrize(
        ("arguments", "error", "told"),
        [
            (
                ("owner/none", "train"),
                RecipeError,
                "owner/none: the hub has no such dataset, or it is private\n→ Correct dataset:",
            ),
            (("owner/gated", "train"), EnvironmentProblem, "owner/gated: access must be granted first\n→ Accept its terms"),
            (("owner/rows", "train", "v9"), RecipeError, "owner/rows: has no revision 'v9'"),
            (("owner/rows", "tain"), RecipeError, r"no split 'tain'; there are \['train'\]\n→ Did you mean split: train\?"),
            (
                ("owner/gsm", "train"),
                RecipeError,
                r"has several subsets, and none is named; there are \['main', 'socratic'\]\n→ Write subset: with one of them",
            ),
            (
                ("owner/gsm", "train", None, "sokratic"),
                RecipeError,
                r"no subset 'sokratic'; there are \['main', 'socratic'\]\n→ Did you mean subset: socratic\?",
            ),
            (
                ("owner/script", "train"),
                RecipeError,
                r"its rows come from a script \(script.py\), which is never run\n→ Use a copy of it in Parquet",
            ),
        ],
    )
    def test_what_is_not_there(
        self, hub: LocalHub, arguments: tuple[Any, ...], error: type[AlignError], told: str, max_rows: int | None
    ) -> None:
        hub.datasets["owner/script"] = (FIRST, {"script.py": b"raise SystemExit('run')"})
        hub.datasets["owner/gated"] = hub.datasets["owner/rows"]
        hub.gated.add("owner/gated")
        hub.datasets["owner/gsm"] = (FIRST, {"README.md": CARD.encode(), "main.jsonl": lines("m"), "socratic.jsonl": lines("s")})
        with pytest.raises(error, match=told):
            fetch(*arguments, max_rows=max_rows)

    def test_the_network_is_lost_in_the_middle(self, hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets
        from huggingface_hub.utils import _http

        monkeypatch.setattr(_http.time, "sleep", lambda _: None)
        monkeypatch.setattr(datasets.config, "STREAMING_READ_RETRY_INTERVAL", 0)
        hub.lost.add("data/train-00001-of-00002.parquet")
        with pytest.raises(EnvironmentProblem, match="owner/rows: reading from the hub stopped after 3 rows: .*\n→ Run it again"):
            fetch("owner/rows", "train", max_rows=5)
        assert not list(tmp_path.rglob("manifest.json"))
        hub.lost.clear()
        assert len(fetch("owner/rows", "train", max_rows=5)[1]) == 5

    def test_a_row_that_cannot_be_read(self, hub: LocalHub) -> None:
        hub.datasets["owner/bad"] = (FIRST, {"train.jsonl": lines("a") + b"{bad\n"})
        with pytest.raises((DataError, EnvironmentProblem), match="dataset owner/bad: "):
            fetch("owner/bad", "train", max_rows=5)


def test_the_manifest_names_the_commits(hub: LocalHub, tmp_path: Path) -> None:
    hub.datasets["owner/more"] = (SECOND, {"train.jsonl": lines("m1", "m2", "m3")})
    place = {"dataset": "owner/more", "split": "train", "max_rows": 2}
    spec = DataInput.model_validate({"kind": "text", **place})
    result = ingest(spec, find_source(spec, Path), tmp_path)
    assert (result.source, result.rows_in) == (f"owner/more@{SECOND}:train", 2)
    parts = {"hub": {**place, "weight": 1}, "file": {"path": str(tmp_path / "a.txt"), "weight": 1}}
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    spec = DataInput.model_validate({"kind": "text", "mixture": parts})
    result = ingest(spec, find_source(spec, Path), tmp_path)
    assert (result.source, result.rows_out) == (f"mixture of hub, file (owner/more@{SECOND}:train)", 4)
