"""The card and the files of a preference set, from a store made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from align.export.preference_set import write_preference_set
from align.records import Drop, Message, Preference
from align.store.artifact import Entry, Manifest, write_rows

HOSTILE = "잘했어.\n````\n# Not a heading\n---\n\u202e"
COMMAND = ["align", "pairs", "--model", "/home/me/secret/base", "--scorer", "gold=/home/me/gold.yaml", "--out", "p.jsonl"]


def commit(store: Path, stage: str, digest: str, **fields: Any) -> None:
    entry = Entry(store / f"{stage}-{digest}")
    (entry.path / "work").mkdir(parents=True, exist_ok=True)
    entry.commit(Manifest(stage=stage, stage_version=1, fingerprint=digest, seed=3, versions={"python": "3.11"}, **fields))


@pytest.fixture
def stage_folder(tmp_path: Path) -> Path:
    """The link of a run to pairs that were made from scored candidates of sampled ones."""
    store = tmp_path / ".store"
    sampled, scored, made = ("a" * 16, "b" * 16, "c" * 16)
    commit(
        store,
        "generate",
        sampled,
        kind="candidates",
        config={"temperature": 0.7, "max_prompt_tokens": 96},
        inputs={"prompts": "d" * 16},
        input_sources={"prompts": "/home/me/data/prompts.jsonl"},
        rows_in=6,
        rows_out=20,
        dropped={"too_long": 1},
        metrics={"finish_reasons": {"stop": 15, "length": 5}},
    )
    judge = {"base_url": "http://127.0.0.1:1/v1", "model": "m", "api_key_env": "MY_API_KEY", "opponents": "all"}
    commit(
        store,
        "score",
        scored,
        kind="scored_candidates",
        config={"scorers": {"j": {"judge": judge}}},
        inputs={"sampled": sampled},
        rows_out=20,
        metrics={"j": {"comparisons": 30, "consistent_share": 0.9}},
    )
    prompt = [Message(role="user", content="나 | 왔어")]
    pairs = [
        Preference(id=f"p{n}", prompt=prompt, chosen=HOSTILE, rejected="x" * (n + 1), chosen_score=n + 1.5, rejected_score=1.0)
        for n in range(4)
    ]
    folder = store / f"pairs-{made}"
    write_rows(folder / "rows.jsonl", pairs)
    write_rows(folder / "drops.jsonl", [Drop(id="p9", drop_reason="tie")])
    commit(
        store,
        "pairs",
        made,
        kind="preferences",
        config={"policy": "max_min", "scorer": "j", "scored": "scored"},
        inputs={"scored": scored},
        rows_in=5,
        rows_out=4,
        dropped={"tie": 1},
        metrics={"longer_chosen_share": 1.0},
    )
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "pairs").symlink_to(folder)
    return tmp_path / "stages" / "pairs"


def test_the_files_lie_beside_each_other(stage_folder: Path, tmp_path: Path) -> None:
    made = write_preference_set(stage_folder, tmp_path / "out" / "p.jsonl", command=COMMAND)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"p.jsonl", "p.drops.jsonl", "p.README.md"}
    rows = [json.loads(line) for line in made.pairs.read_text().splitlines()]
    assert [(row["id"], row["chosen_score"], row["chosen"]) for row in rows] == [(f"p{n}", n + 1.5, HOSTILE) for n in range(4)]
    write_preference_set(stage_folder, tmp_path / "q.parquet", command=COMMAND)
    assert parquet.read_table(tmp_path / "q.parquet").to_pylist() == rows
    assert json.loads(made.drops.read_text())["drop_reason"] == "tie"
    assert made.to_json()["prompts_in"] == 5
    assert next(made.lines()).endswith("p.jsonl: 4 pairs of 5 prompts")


def test_the_card_says_how_the_pairs_were_made(stage_folder: Path, tmp_path: Path) -> None:
    text = write_preference_set(stage_folder, tmp_path / "p.jsonl", command=COMMAND).card.read_text()
    front, body = text.split("\n---\n", 1)
    assert front.startswith("---\nlicense: unknown\n")
    assert "- config_name: default\n  data_files: p.jsonl" in front
    for part in (
        "Licence: **unknown, fill in**",
        "5 prompts with scored candidates gave 4 pairs.",
        "| `tie` | 1 |",
        "Before that, `sampled` dropped 1 as `too_long`.",
        "stop 75.0 %, length 25.0 %",
        "temperature: 0.7",
        "policy: max_min",
        "seed: 3",
        "The judge `j` made 30 comparisons, each in both orders; 90.0 % were consistent",
        "| score, chosen | 3.000 | 1.650 | 3.000 | 4.350 |",
        "In 100.0 % of the pairs the longer completion was chosen",
        "`…/prompts.jsonl`",
    ):
        assert part in body


def test_nothing_of_this_machine_and_no_key_is_in_it(stage_folder: Path, tmp_path: Path) -> None:
    text = write_preference_set(stage_folder, tmp_path / "p.jsonl", command=COMMAND).card.read_text()
    assert "--model …/base --scorer gold=…/gold.yaml --out p.jsonl" in text.replace("'", "")
    assert "/home/me" not in text
    assert str(tmp_path) not in text
    assert "API_KEY" not in text


def test_a_text_cannot_leave_its_sample(stage_folder: Path, tmp_path: Path) -> None:
    text = write_preference_set(stage_folder, tmp_path / "p.jsonl", command=COMMAND).card.read_text()
    assert "`````text\n잘했어.\n````\n# Not a heading\n---\n\\u202e\n`````" in text
    assert text.count("chosen by ") == 3
    assert [f"`p{n}`, chosen by" in text for n in range(4)] == [True, False, True, True]


def test_files_of_scored_candidates_are_called_so(stage_folder: Path, tmp_path: Path) -> None:
    made, store = "e" * 16, stage_folder.resolve().parent
    folder = store / f"pairs-{made}"
    write_rows(folder / "rows.jsonl", [])
    write_rows(folder / "drops.jsonl", [])
    commit(
        store,
        "pairs",
        made,
        kind="preferences",
        config={"scored": "scored"},
        inputs={"scored": "9" * 16},
        input_sources={"scored": "shards/*.parquet"},
        rows_in=0,
        rows_out=0,
    )
    text = write_preference_set(folder, tmp_path / "p.jsonl", command=COMMAND).card.read_text()
    assert "| `scored` | scored_candidates from `shards/*.parquet` |" in text
    assert "There are no pairs to measure." in text
