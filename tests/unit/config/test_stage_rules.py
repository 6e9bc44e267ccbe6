"""The rules of a stage's fields stand at its Config, and a Config that is mixed from several parts keeps the rules of all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from align.config.base import Problem
from align.config.checks import check_stage
from align.config.graph import Draft, RecipeGraph
from align.stage import StageConfig
from align.stages import dpo
from align.stages.registry import StageType


class Pickier(StageConfig):
    """A Config with a rule about the stage that it names."""

    @classmethod
    def check_graph(cls, fields: Mapping[str, Any], graph: RecipeGraph) -> Iterator[Problem]:
        if fields.get("after") not in graph.drafts:
            yield Problem(("after",), "names no stage", at_key=True)


class PickierStage(StageType):
    @property
    def config_type(self) -> type[StageConfig]:
        return Pickier


def test_a_mixed_config_keeps_all_rules() -> None:
    fields = {"variant": "ipo", "label_smoothing": 0.1, "batch_size": 4, "micro_batch_size": 3}
    assert [problem.path for problem in dpo.Config.check_fields(fields)] == [("micro_batch_size",), ("label_smoothing",)]
    assert [problem.path for problem in dpo.Config.check_fields({"nll_weight": 1, "ld_alpha": 0.5})] == [("ld_alpha",)]
    assert list(dpo.Config.check_fields({"batch_size": True, "micro_batch_size": "3"})) == []


def test_a_rule_about_other_stages_needs_no_change_outside_its_stage() -> None:
    stage_type = PickierStage("pickier", "none", produces="model")
    drafts = {name: Draft(stage_type, {"after": after}) for name, after in (("first", "second"), ("second", "third"))}
    graph = RecipeGraph(drafts, {}, Path())
    assert list(check_stage("first", drafts["first"], graph)) == []
    assert list(check_stage("second", drafts["second"], graph)) == [
        Problem(("stages", "second", "after"), "names no stage", at_key=True)
    ]
