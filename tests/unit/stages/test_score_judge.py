"""The score stage with a judge: refused hosts, whole prompts, a key that is in no file, and a kill in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align import load_recipe, run_recipe
from align.errors import RecipeError
from align.pipeline.plan import make_plan
from align.stages import score
from align.store.artifact import Entry, Manifest, write_rows
from align.testing import Recorder, candidate, fake_judge
from align.testing.judge import FakeJudge, shown_texts

KEY = "sk-very-secret-93"
RECIPE = """\
name: judged
inputs:
  sampled: {{kind: candidates, artifact: sampled}}
stages:
  scored:
    stage: score
    candidates: sampled
    scorers:
      j: {{judge: {judge}}}
      short: {{rules: [{{type: length, name: s, max_words: 1}}]}}
"""
RUN_STAGE = """\
import sys
from pathlib import Path
from align.stages import score
from align.store.artifact import Artifact, Entry
from align.testing import stage_context

folder, base_url = Path(sys.argv[1]), sys.argv[2]
entry = Entry.given(folder / "sampled")
judge = {"base_url": base_url, "model": "m", "max_concurrency": 2}
config = score.Config.model_validate({"candidates": "sampled", "scorers": {"j": {"judge": judge}}})
sampled = {"sampled": Artifact("sampled", entry.path, entry.read_manifest())}
outcome = score.run(stage_context(config, folder / "output", sampled))
print(outcome.metrics["j"]["cached_replies"])
"""


CANDIDATES = [
    candidate(f"대답 {prompt} " + "네" * (index + 1), index, prompt_id=f"p{prompt}", prompt=f"질문 {prompt}")
    for prompt in range(4)
    for index in range(3)
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with three candidates of each of four prompts."""
    entry = Entry(tmp_path / "sampled")
    entry.begin()
    write_rows(entry.path / "rows.jsonl", CANDIDATES)
    made: dict[str, Any] = {"stage": "generate", "stage_version": 1, "config": {}, "inputs": {}, "seed": 1}
    entry.commit(Manifest(kind="candidates", fingerprint="f" * 16, **made))
    monkeypatch.chdir(tmp_path)
    return tmp_path


Write = Callable[..., Any]


@pytest.fixture
def write(folder: Path) -> Write:
    """Writes the recipe with a judge of these fields and reads it."""

    def write_and_read(*overrides: str, **fields: Any) -> Any:
        judge = {"base_url": "https://api.example.com/v1", "model": "m", **fields}
        (folder / "recipe.yaml").write_text(RECIPE.format(judge=json.dumps(judge)))
        return load_recipe(folder, overrides)

    return write_and_read


def test_a_host_that_the_user_did_not_allow_is_refused_when_planned(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALIGN_JUDGE_HOSTS", raising=False)
    with pytest.raises(
        RecipeError, match=r"stages\.scored\.scorers\.j\.judge\.base_url: 'api\.example\.com' is not this mach"
    ) as e:
        make_plan(write(), Path("runs"))
    assert "recipe.yaml:9:31: stages.scored" in str(e.value)
    assert "export ALIGN_JUDGE_HOSTS=api.example.com" in str(e.value.hint)
    monkeypatch.setenv("ALIGN_JUDGE_HOSTS", "other.example.com, API.example.com")
    assert [stage.status for stage in make_plan(write(), Path("runs")).stages] == ["run"]
    with pytest.raises(RecipeError, match="https is needed"):
        make_plan(write(base_url="http://api.example.com/v1"), Path("runs"))
    monkeypatch.delenv("OTHER_API_KEY", raising=False)
    with pytest.raises(RecipeError, match="the environment variable OTHER_API_KEY is not set"):
        make_plan(write(api_key_env="OTHER_API_KEY"), Path("runs"))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"base_url": "api.example.com"}, r"scorers\.j\.judge\.base_url: expected an address such as"),
        ({"base_url": "http://127.0.0.1:99999/v1"}, "expected an address such as"),
        ({"base_url": "http://127.0.0.1:80/a b"}, "expected an address such as"),
        ({"base_url": "https://me:pw@api.example.com/v1"}, "without user, password, query or fragment"),
        ({"base_url": "https://api.example.com/v1?key=1"}, "without user, password, query or fragment"),
        ({"api_key_env": "AWS_SECRET_ACCESS"}, "ends in API_KEY"),
        ({"api_key_env": KEY}, "not a key itself"),
        ({"opponents": "some"}, r"scorers\.j\.judge\.opponents: expected 'all', or a whole number, got the text 'some'"),
        ({"max_request": 5}, r"judge\.max_request: unknown key; did you mean 'max_requests'"),
    ],
)
def test_mistakes_in_a_judge_are_located(write: Write, fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem) as caught:
        write(**fields)
    assert KEY not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "[::1]"])
def test_this_machine_needs_no_leave(write: Write, host: str) -> None:
    assert make_plan(write(base_url=f"http://{host}:8000/v1"), Path("runs"))


@pytest.mark.parametrize("host", ["127.0.0.1.example.com", "localhost.example.com", "0.0.0.0", "10.0.0.1", "2130706433"])
def test_what_only_looks_like_this_machine_is_refused(write: Write, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALIGN_JUDGE_HOSTS", raising=False)
    with pytest.raises(RecipeError, match="is not this machine"):
        make_plan(write(base_url=f"https://{host}/v1"), Path("runs"))


def test_what_scores_one_completion_at_a_time_refuses_a_judge(folder: Path) -> None:
    (folder / "m").mkdir()
    (folder / "p.jsonl").write_text("")
    judge = "{judge: {base_url: 'http://127.0.0.1:1/v1', model: m}}"
    for stage in (
        f"stage: compare, models: [m], baseline: m, prompts: p, scorers: {{j: {judge}}}",
        f"stage: ppo, model: m, prompts: p, scorers: {{j: {judge}}}",
        f"stage: select_checkpoint, model: m, prompts: p, scorer: {judge}",
    ):
        (folder / "recipe.yaml").write_text(
            f"name: x\ninputs: {{m: {{kind: model, path: m}}, p: {{kind: prompts, path: p.jsonl}}}}\nstages: {{x: {{{stage}}}}}\n"
        )
        with pytest.raises(RecipeError, match="serves the score stage only; name a reward model or rules here"):
            load_recipe(folder)


def test_how_it_is_asked_is_not_in_the_fingerprint(write: Write) -> None:
    def digest(**fields: Any) -> str:
        return make_plan(write(base_url="http://127.0.0.1:1/v1", **fields), Path("runs")).stages[0].fingerprint

    assert digest() == digest(max_requests=3, retries=1, timeout_seconds=5.0, max_concurrency=2, requests_per_minute=9.0)
    assert len({digest(), digest(criteria="kind"), digest(opponents=1), digest(model="n"), digest(temperature=0.5)}) == 5


def test_a_judge_may_be_a_file(folder: Path, write: Write) -> None:
    (folder / "judge.yaml").write_text("base_url: http://127.0.0.1:1/v1\nmodel: m\nopponents: 2\n")
    text = RECIPE.format(judge="judge.yaml")
    (folder / "recipe.yaml").write_text(text)
    assert load_recipe(folder).stages["scored"].config.scorers["j"].judge.opponents == 2  # type: ignore[attr-defined]
    (folder / "recipe.yaml").write_text(text.replace("judge.yaml", "jugde.yaml"))
    with pytest.raises(RecipeError, match=r"recipe\.yaml:9:.*jugde\.yaml: there is no such file"):
        load_recipe(folder)


def test_no_prompt_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "SHARD_ROWS", 4)
    assert [len(piece) for piece in score.pieces(CANDIDATES, whole_prompts=False)] == [4, 4, 4]
    assert [len(piece) for piece in score.pieces(CANDIDATES, whole_prompts=True)] == [6, 6]
    mixed = sorted(CANDIDATES, key=lambda row: row.candidate_index)
    assert [len(piece) for piece in score.pieces(mixed, whole_prompts=True)] == [12]
    assert list(score.pieces([], whole_prompts=True)) == []


def test_a_run_scores_and_its_key_is_in_no_file(write: Write, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", KEY)
    recorder = Recorder()
    with fake_judge(failures=[500]) as server:
        recipe = write(base_url=server.base_url, api_key_env="MY_API_KEY", opponents=1)
        run = run_recipe(recipe, folder / "runs", sinks=[recorder], command=["align", "run"]).folder
        assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    rows = [json.loads(line) for line in (run / "stages" / "scored" / "rows.jsonl").read_text().splitlines()]
    assert [row["scores"] for row in rows] == [{"j": value, "short": 0.0} for _ in range(4) for value in (0.0, 0.5, 1.0)]
    metrics = json.loads((run / "stages" / "scored" / "manifest.json").read_text())["metrics"]["j"]
    assert (metrics["comparisons"], metrics["consistent_share"], metrics["requests"], metrics["mean"]) == (12, 1.0, 25, 0.5)
    assert "j: 12 comparisons, 24 questions to m at 127.0.0.1" in str(recorder.events)
    assert KEY not in str(recorder.events)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any("judge-answers" in str(path) for path in files)
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def stage_process(folder: Path, server: FakeJudge) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", RUN_STAGE, str(folder), server.base_url], stdout=subprocess.PIPE, text=True)


def test_after_a_kill_only_what_is_missing_is_asked(folder: Path) -> None:
    with fake_judge(delay_seconds=0.03) as server:
        killed = stage_process(folder, server)
        while len(server.requests) < 9:
            assert killed.poll() is None
            time.sleep(0.005)
        os.kill(killed.pid, signal.SIGKILL)
        killed.communicate()
        (answers,) = (folder / "judge-answers").iterdir()
        lines = answers.read_text().splitlines()
        again = stage_process(folder, server)
        told, _ = again.communicate(timeout=60)
        assert again.returncode == 0
        assert int(told) == len(lines) >= 5
        asked = Counter(shown_texts(request) for request in server.requests)
    assert len(asked) == 24
    assert asked.total() - len(asked) <= 2  # those that were under way when it was killed
    rows = [json.loads(line)["scores"]["j"] for line in (folder / "output" / "rows.jsonl").read_text().splitlines()]
    assert rows == [0.0, 0.5, 1.0] * 4
