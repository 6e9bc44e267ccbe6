"""The inputs and stages that a goal needs, with what is there; their numbers are filled in by `settings`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from align.config.architecture import encoder_decoder_refusal
from align.errors import RecipeError
from align.pipeline.starter.choices import COMPARE, GOALS
from align.pipeline.starter.data import NOUNS, FoundData
from align.pipeline.starter.goal import Wanted, judge_of, optimises_score
from align.pipeline.starter.model import REVISION, TEMPLATE, FoundModel
from align.pipeline.starter.rule import NAME as RULE_NAME
from align.rows import INSTRUCTIONS, LABELLED, PREFERENCES, PROMPTS, DataKind
from align.store.artifact import MODEL_FOLDER

HELD_OUT_NAME = "held_out.jsonl"
ENCODER_DECODER_GOALS = ("sft",)


@dataclass
class Part:
    """An input or a stage of the recipe."""

    comment: str
    fields: dict[str, Any]
    remarks: dict[str, str] = field(default_factory=dict)
    """What stands behind a field."""
    rows: FoundData | None = None
    """Of a stage: the file that its rows come from; None where a stage makes them."""
    share: float = 1.0
    """Of that file's rows."""

    @property
    def row_count(self) -> int | None:
        return None if self.rows is None else round(self.share * self.rows.rows)


@dataclass
class Layout:
    """A recipe in parts. The stages have no numbers yet."""

    inputs: dict[str, Part]
    stages: dict[str, Part]
    held_out: Sequence[Mapping[str, Any]] = ()
    """Rows of `HELD_OUT_NAME`, which the recipe's input `held_out` reads."""
    has_rule: bool = False
    """Whether a rule scores answers."""
    judge: str = ""
    """What judges the comparison, for the user; empty where a rule or a given reward model does."""


def lay_out(wanted: Wanted) -> Layout:
    """The parts of the recipe.

    Raises:
        RecipeError: if the goal needs what is not there.
    """
    refused = [step for step in wanted.steps if step not in ENCODER_DECODER_GOALS]
    if wanted.model.encoder_decoder and refused:
        reason = encoder_decoder_refusal(wanted.model.written, wanted.model.encoder_decoder, refused[0])
        raise RecipeError(reason, hint="Name a decoder-only model, or take the goal sft.")
    if wanted.model.is_reward_model:
        raise RecipeError(f"model {wanted.model.written}: is a reward model, which writes no text", hint="Name a language model.")
    builder = _Builder(wanted)
    for step in wanted.steps:
        getattr(builder, step)()
    if wanted.goal == COMPARE:
        builder.compare()
    if wanted.rule is not None and not any("scorers" in part.fields for part in builder.layout.stages.values()):
        raise RecipeError(f"--rule: the goal {wanted.goal} scores no answers with these rows", hint="Leave --rule out.")
    if wanted.reward_model is not None and "reward_model" not in builder.layout.inputs:
        raise RecipeError(
            f"--reward-model: the goal {wanted.goal} scores no answers with these rows", hint="Leave --reward-model out."
        )
    return builder.layout


class _Builder:
    """Adds a goal's stages, and before each of them what it needs. Every method returns the name of what it added, once."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.layout = Layout({}, {}, has_rule=wanted.rule is not None)
        fields, remarks = _model_fields("model", wanted.model), {}
        if wanted.model.needs_template:
            fields["chat"], remarks["chat"] = {"template": TEMPLATE}, "it has no chat template of its own"
        self.layout.inputs["base"] = Part("The model to start from.", fields, remarks)
        self._held_out = self._choose_held_out() if wanted.goal == COMPARE else None
        self._judge_pairs, self.layout.judge = judge_of(wanted)

    # Inputs

    def _rows(self, kind: DataKind[Any]) -> tuple[str, FoundData]:
        """The input of a kind: rows of that kind, or others that can be read so."""
        found, columns = self._find(kind)
        share = [0, 0.5] if found is self._judge_pairs else None
        self.layout.inputs.setdefault(kind.name, self._input(found, kind, columns, share, "the judge learns from the other half"))
        return kind.name, found

    def _input(
        self, found: FoundData, kind: DataKind[Any], columns: Mapping[str, str], share: list[float] | None, remark: str
    ) -> Part:
        part = Part(_sentence(found, kind), {"kind": kind.name, "path": found.path}, rows=found)
        if columns:
            part.fields["columns"] = dict(columns)
        if share is not None:
            part.fields["share"], part.remarks["share"] = share, remark
        if found.bad_rows:
            part.fields["on_invalid"] = "drop"
            part.remarks["on_invalid"] = f"{found.bad_share} cannot be used"
        if self._held_out is not None:
            part.fields["decontaminate"] = ["held_out"]
            part.remarks["decontaminate"] = "no training on the held-out prompts"
        return part

    def _find(self, kind: DataKind[Any]) -> tuple[FoundData, Mapping[str, str]]:
        for found in sorted(self.wanted.data, key=lambda found: (found.kind is not kind, self._lacks_references(found))):
            if (columns := found.columns_as(kind)) is not None:
                return found, columns
        noun, there = NOUNS.get(kind.name, kind.phrase), "; ".join(found.summary for found in self.wanted.data)
        raise RecipeError(
            f"goal {self.wanted.goal}: needs {noun}, and there are none in {there or 'no file'}",
            hint=f"Add a file of {noun} with --data, or take another --goal: {', '.join(GOALS)}.",
        )

    def _has(self, kind: DataKind[Any]) -> bool:
        """Whether a file has rows of the kind itself."""
        return any(found.kind is kind for found in self.wanted.data)

    def _lacks_references(self, found: FoundData) -> bool:
        """Whether the rule could not check answers to these rows."""
        return self.wanted.rule is not None and not found.has_references

    def _choose_held_out(self) -> FoundData:
        order = (PROMPTS, PREFERENCES, LABELLED, INSTRUCTIONS)
        data = sorted(self.wanted.data, key=self._lacks_references)
        found = next((found for kind in order for found in data if found.kind is kind), None)
        if found is None or not found.held_out:
            raise RecipeError(
                "goal compare: needs held-out prompts, and there are too few rows to keep a tenth of the prompts out of training",
                hint="Add prompts with --data, or take another --goal.",
            )
        self.layout.held_out = found.held_out
        comment = f"{len(found.held_out):,} prompts of {found.path}, which no stage is trained on."
        self.layout.inputs["held_out"] = Part(comment, {"kind": PROMPTS.name, "path": HELD_OUT_NAME}, rows=found)
        return found

    # Stages

    def _add(self, name: str, part: Part) -> str:
        self.layout.stages.setdefault(name, part)
        return name

    def _start(self) -> str:
        """The model that preferences and sampling start from: one that answers already."""
        learns_first = self.wanted.model.needs_template and self._has(PREFERENCES)
        return self.sft() if self._has(INSTRUCTIONS) or learns_first else "base"

    def sft(self) -> str:
        name, found = self._rows(INSTRUCTIONS)
        comment = "Fine-tuning: the model learns to give these answers."
        if found.kind is not INSTRUCTIONS:
            comment = "Fine-tuning on the chosen answers, so that the model answers at all before it learns preferences."
        return self._add("sft", Part(comment, {"stage": "sft", "model": "base", "data": name}, rows=found))

    def dpo(self) -> str:
        pairs, found = self._pairs()
        comment = "DPO: the chosen answers become likelier than the rejected ones. beta: how near it stays to its start."
        return self._add("dpo", Part(comment, {"stage": "dpo", "model": self._start(), "pairs": pairs, "beta": 0.1}, rows=found))

    def orpo(self) -> str:
        pairs, found = self._pairs()
        comment = "ORPO: fine-tuning on the chosen answers and preference in one training."
        start = self.sft() if self._has(INSTRUCTIONS) else "base"
        fields = {"stage": "orpo", "model": start, "pairs": pairs, "odds_ratio_weight": 0.1}
        return self._add("orpo", Part(comment, fields, rows=found))

    def kto(self) -> str:
        name, found = self._rows(LABELLED)
        comment = "KTO: good answers become likelier, bad ones less likely. beta: how near it stays to its start."
        return self._add("kto", Part(comment, {"stage": "kto", "model": self._start(), "data": name, "beta": 0.1}, rows=found))

    def grpo(self) -> str:
        return self._practise(
            "grpo", "GRPO: of several answers to a problem, those that are better than the rest become likelier."
        )

    def rloo(self) -> str:
        return self._practise("rloo", "RLOO: answers that are better than the others to their prompt become likelier.")

    def _practise(self, stage: str, comment: str) -> str:
        """A stage that samples answers while it learns."""
        name, scorer = self._scorer()
        prompts, found = self._rows(PROMPTS)
        fields = {"stage": stage, "model": self._start(), "prompts": prompts, "scorers": {name: scorer}}
        part = Part(f"{comment} It works where the model is right sometimes, neither never nor always.", fields, rows=found)
        if stage == "grpo" and self.wanted.rule is None:
            part.fields["kl_coef"], part.remarks["kl_coef"] = 0.04, "stay near the start: a reward model can be fooled"
        return self._add(stage, part)

    def _pairs(self) -> tuple[str, FoundData | None]:
        return (self.pairs(), None) if not self._has(PREFERENCES) and self._can_score else self._rows(PREFERENCES)

    def reward_model(self) -> str:
        name, found = self._rows(PREFERENCES)
        comment = "Reward model: scores an answer, as the pairs would. A tenth of the pairs is held out to measure its accuracy."
        fields = {"stage": "reward_model", "model": self._start(), "data": name}
        return self._add("reward_model", Part(comment, fields, rows=found))

    def pairs(self) -> str:
        scores, scorer = self._scores()
        fields: dict[str, Any] = {"stage": "pairs", "scored": scores, "scorer": scorer, "policy": "max_min"}
        if scorer == RULE_NAME:
            fields["min_margin"] = 1
        return self._add("pairs", Part("Of each prompt the best answer against the worst.", fields))

    def rejection_sampling(self) -> str:
        scores, scorer = self._scores()
        fields: dict[str, Any] = {"stage": "best_of_n", "scored": scores, "scorer": scorer}
        if scorer == RULE_NAME:
            fields["min_score"] = 1
        best = self._add("best_of_n", Part("Of each prompt the best answer.", fields))
        learns = {"stage": "sft", "model": self._start(), "data": best}
        return self._add("rejection_sampling", Part("Fine-tuning on the best answers.", learns))

    def _scores(self) -> tuple[str, str]:
        """Scored answers to the prompts, and the name of their scorer."""
        name, scorer = self._scorer()
        prompts, found = self._rows(PROMPTS)
        start = self._start()
        sample = {"stage": "generate", "model": start, "prompts": prompts}
        self._add("candidates", Part("Several answers to each prompt.", sample, rows=found))
        score = {"stage": "score", "candidates": "candidates", "scorers": {name: scorer}}
        return self._add("scores", Part("A score for each of them.", score)), name

    @property
    def _can_score(self) -> bool:
        return self.wanted.reward_model is not None or self.wanted.rule is not None

    def _scorer(self) -> tuple[str, Any]:
        """What scores answers, under a name: a rule, the given reward model, or one that is trained here."""
        if self.wanted.rule is not None:
            return RULE_NAME, {"rules": [dict(self.wanted.rule)]}
        if self.wanted.reward_model is not None:
            fields = _model_fields("reward_model", self.wanted.reward_model)
            self.layout.inputs.setdefault("reward_model", Part("The reward model that scores answers.", fields))
            return "rm", "reward_model"
        if self._has(PREFERENCES):
            return "rm", self.reward_model()
        raise RecipeError(
            f"goal {self.wanted.goal}: answers must be scored, and nothing here can do it",
            hint="Give a reward model (--reward-model), or preference pairs to train one on (--data),\n"
            "or prompts with the right answer: --columns prompt=question --columns reference=answer.",
        )

    def compare(self) -> str:
        comment = "The models answer the held-out prompts; the table says which is better, and how sure that is."
        pairs, learns_from_pairs = self._judge_pairs, PREFERENCES.name in self.layout.inputs
        given = self.wanted.judge_model
        has_judge = pairs is not None or given is not None
        scorers = dict([self._scorer()]) if not has_judge or self._can_score or optimises_score(self.wanted) else {}
        if given is not None:
            self.layout.inputs["judge"] = Part(
                "The judge, a reward model that no method uses.", _model_fields("reward_model", given)
            )
            scorers["judge"] = "judge"
        elif pairs is not None:
            scorers["judge"] = self._judge(pairs)
        elif learns_from_pairs and "reward_model" in self.layout.stages:
            comment += (
                " Read completions in the report too: the reward model learned from the pairs that the methods learned from."
            )
        start = self._start()
        trained = list(self.wanted.methods)
        baseline = "base" if trained == ["sft"] else start
        models = [baseline, *(method for method in trained if method != baseline)]
        fields = {"stage": "compare", "models": models, "baseline": baseline, "prompts": "held_out", "scorers": scorers}
        part = Part(comment, fields, rows=self._held_out)
        if len(scorers) > 1:
            fields["deciding_scorer"] = "judge"
            part.remarks["deciding_scorer"] = "its verdict comes first"
        return self._add("compare", part)

    def _judge(self, pairs: FoundData) -> str:
        """A reward model on pairs that no other stage reads: the second half, or all where none reads the first."""
        is_read = any(part.rows is pairs for name, part in self.layout.inputs.items() if name != "held_out")
        name, share = ("other_preferences", [0.5, 1]) if is_read else (PREFERENCES.name, None)
        self.layout.inputs[name] = self._input(pairs, PREFERENCES, pairs.columns, share, "the half that no method sees")
        comment = "The judge: a second reward model. A score that models learned to raise says only how well they raised it."
        if not optimises_score(self.wanted):
            comment = "The judge: a reward model from pairs that no method learns from, so that it does not share their mistakes."
        self._add("judge", Part(comment, {"stage": "reward_model", "model": self._start(), "data": name}, rows=pairs))
        for part in self.layout.stages.values() if is_read else ():
            part.share = 0.5 if part.rows is pairs else 1
        return "judge"


def _model_fields(kind: str, model: FoundModel) -> dict[str, Any]:
    if model.hub_id is not None:
        return {"kind": kind, "hub_id": model.hub_id, "revision": REVISION}
    if model.is_result and not model.needs_template:  # an artifact cannot be given one
        return {"kind": kind, "artifact": model.written}
    return {"kind": kind, "path": f"{model.written}/{MODEL_FOLDER}" if model.is_result else model.written}


def _sentence(found: FoundData, kind: DataKind[Any]) -> str:
    noun = NOUNS.get(found.kind.name, found.kind.phrase)
    as_kind = "" if found.kind is kind else f", read as {kind.phrase}"
    return f"{found.rows:,} {noun}{as_kind}."
