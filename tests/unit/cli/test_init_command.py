"""`align init`: what it finds, what it writes, and that what it writes can be planned and run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from init_place import NUMBER, TURNS, Init

from align.cli.main import main
from align.errors import MAX_ERROR_LINES
from align.pipeline.recipe import load_recipe
from align.pipeline.starter.choices import GOALS
from align.testing.project import write_jsonl
from align.testing.shapes import SHAPES

Capture = pytest.CaptureFixture[str]

CASES = [
    *(("sft", data) for data in ("openai.jsonl", "sharegpt.json", "alpaca.json", "pairs.jsonl", "talks.parquet")),
    *((goal, data) for goal in ("dpo", "orpo", "reward_model") for data in ("pairs.jsonl", "pairs.csv", "talks.parquet")),
    *((goal, data) for goal in ("pairs", "rejection_sampling", "compare") for data in ("pairs.csv", "talks.parquet")),
    *((goal, "sums.jsonl --kind prompts") for goal in ("pairs", "rejection_sampling", "dpo", "compare")),
    ("kto", "marked.jsonl"),
    ("grpo", "sums.jsonl"),
    ("rloo", "pairs.jsonl"),
    ("dpo", "pairs.jsonl alpaca.json"),
    ("compare", "pairs.csv openai.jsonl"),
]


@pytest.mark.parametrize(("goal", "data"), CASES)
def test_every_goal_with_every_shape_can_be_planned(goal: str, data: str, init: Init, capsys: Capture) -> None:
    files, kind = data.partition(" --kind ")[0].split(), "--kind" in data
    options = [option for file in files for option in ("--data", file)]
    if kind:  # question and answer: prompts with a reference here
        options += ["--columns", "reference=answer", "--columns", "prompt=question"]
    answer = init("mine", *options, "--goal", goal)
    assert (answer.code, answer.err) == (0, ""), answer.err
    assert str(NUMBER) in answer.out
    assert "align plan mine" in answer.out
    assert (main(["plan", "mine"]), capsys.readouterr().err) == (0, "")


def test_the_cases_cover_every_goal() -> None:
    assert {goal for goal, _ in CASES} == set(GOALS)


def test_the_recipe_is_minimal(init: Init) -> None:
    """Nothing that the goal does not need: no reward model, no rules, no held-out rows."""
    assert init("mine", "--data", "pairs.jsonl", "--goal", "dpo").code == 0
    recipe = load_recipe("mine")
    assert (list(recipe.inputs), list(recipe.stages), recipe.name) == (["base", "preferences"], ["dpo"], "mine")
    text = Path("mine/recipe.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=.align/recipe.schema.json\n")
    assert Path("mine/.align/recipe.schema.json").is_file()
    assert "path: ../pairs.jsonl" in text  # relative to the recipe, not to where the command ran
    assert max(map(len, text.splitlines())) <= 80


def test_columns_are_mapped_where_names_are_unusual_and_the_user_is_told(init: Init) -> None:
    answer = init("mine", "--data", "pairs.csv", "--yes")
    assert "40 preference pairs, columns query, good, bad" in answer.out
    assert "prompt is 'query', chosen is 'good', rejected is 'bad'; please check" in answer.out
    assert "columns: {prompt: query, chosen: good, rejected: bad}" in Path("mine/recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("question,good,bad", "preference pairs, columns question, good, bad"),
        ("prompt,good,bad", "preference pairs, columns prompt, good, bad"),
        ("prompt,reply,bad", "instructions, columns prompt, reply"),
        ("prompt,answer,bad", "prompts, columns prompt, answer"),  # what a right answer holds
        ("질문,선호,비선호", "preference pairs, columns 질문, 선호, 비선호"),
        ("prompt,x,y", "prompts, columns prompt"),
    ],
)
def test_kind_by_the_names_of_columns(header: str, found: str, init: Init) -> None:
    Path("rows.csv").write_text("\n".join([header, *(f'"{p}","{c}","{r}"' for p, c, r in TURNS)]) + "\n")
    assert found in init("mine", "--data", "rows.csv", "--goal", "sft").out


def test_a_base_model_gets_a_template_and_learns_to_answer_first(init: Init) -> None:
    (Path("model") / "chat_template.jinja").unlink()
    answer = init("mine", "--data", "pairs.jsonl", "--goal", "dpo")
    assert "no chat template" in answer.out
    assert "chat: {template: chatml}" in Path("mine/recipe.yaml").read_text()
    assert list(load_recipe("mine").stages) == ["sft", "dpo"]


def test_rows_that_cannot_be_used_are_named_and_left_out(init: Init) -> None:
    with Path("pairs.jsonl").open("a") as stream:
        stream.write('{"prompt": "Hi", "chosen": "", "rejected": "x"}\n')
    answer = init("mine", "--data", "pairs.jsonl", "--goal", "dpo")
    assert "1 of 41 rows cannot be used and are left out, such as pairs.jsonl:41: chosen" in answer.out
    assert "on_invalid: drop  # 1 of 41 rows cannot be used" in Path("mine/recipe.yaml").read_text()


def test_held_out_prompts_are_a_tenth_and_no_stage_trains_on_them(init: Init) -> None:
    assert init("mine", "--data", "pairs.jsonl", "--goal", "compare", "--method", "dpo").code == 0
    rows = [json.loads(line) for line in Path("mine/held_out.jsonl").read_text().splitlines()]
    assert len(rows) == NUMBER // 10
    assert {row["prompt"] for row in rows} <= {prompt for prompt, _, _ in TURNS}
    recipe = load_recipe("mine")
    assert recipe.inputs["preferences"].decontaminate == ["held_out"]  # type: ignore[union-attr]
    assert recipe.stages["compare"].config.models == ["base", "dpo"]  # type: ignore[attr-defined]


def test_a_rule_scores_where_prompts_say_the_right_number(init: Init) -> None:
    columns = ["--columns", "reference=answer", "--columns", "prompt=question"]
    assert init("mine", "--data", "sums.jsonl", *columns, "--goal", "pairs").code == 0
    text = Path("mine/recipe.yaml").read_text()
    assert "scorers: {answer: {rules: [{type: numeric_answer, name: answer}]}}" in text
    assert "min_margin: 1" in text


RULED: list[tuple[str, dict[str, Any], list[str], str]] = [
    ("sums", {"question": "1 + 1?", "answer": "1 + 1 = 2\n#### 2"}, [], "type: numeric_answer, name: answer"),
    ("quiz", {"prompt": "A, B or C?", "reference": "C"}, [], "type: choice_answer, name: answer, choices: [A, B, C]"),
    (
        "makes",
        {"prompt": "2 of 1 1", "numbers": [1, 1], "reference": "2"},
        [],
        "type: expression, name: answer, numbers: numbers",
    ),
    ("halves", {"prompt": "1 / 2?", "reference": r"\frac{1}{2}"}, [], "type: math_answer, name: answer"),
    ("capitals", {"prompt": "Of France?", "reference": "Paris"}, [], "type: contains_reference, name: answer"),
    ("tables", {"prompt": "As JSON?"}, ["--rule", "json"], "type: json, name: answer, json_schema: {type: object}"),
    ("votes", {"prompt": "1, 2 or 3?", "reference": "3"}, ["--rule", "choice"], "choices: [1, 2, 3]"),
]


@pytest.mark.parametrize(("name", "row", "options", "rule"), RULED, ids=[name for name, *_ in RULED])
def test_the_references_decide_which_rule_checks_answers(
    name: str, row: dict[str, Any], options: list[str], rule: str, init: Init
) -> None:
    write_jsonl(
        Path(f"{name}.jsonl"), ({**row, "prompt": f"{index}: {row.get('prompt', row.get('question'))}"} for index in range(9))
    )
    if "question" in row:
        write_jsonl(Path(f"{name}.jsonl"), (row for _ in range(9)))
    answer = init("mine", "--data", f"{name}.jsonl", "--goal", "grpo", *options)
    assert (answer.code, answer.err) == (0, "")
    text = Path("mine/recipe.yaml").read_text().replace('"', "")
    assert rule in text
    assert list(load_recipe("mine").stages) == ["grpo"]  # no reward model


def test_practice_beside_rejection_sampling_is_what_problems_are_compared_with(init: Init) -> None:
    row = {"numbers": [1, 2], "reference": "3", "topic": "sums"}
    write_jsonl(Path("makes.jsonl"), ({"prompt": f"{index}: 3 of 1 2", **row} for index in range(NUMBER)))
    assert init("mine", "--data", "makes.jsonl", "--goal", "compare", "--yes").code == 0
    recipe = load_recipe("mine")
    assert list(recipe.stages)[-2:] == ["grpo", "compare"]
    assert recipe.stages["compare"].config.models == ["base", "rejection_sampling", "grpo"]  # type: ignore[attr-defined]
    held_out = json.loads(Path("mine/held_out.jsonl").read_text().splitlines()[0])
    assert held_out.items() >= {"numbers": "[1, 2]", "reference": "3", "topic": "sums"}.items()


COMPARED = ["--data", "pairs.jsonl", "--goal", "compare", "--method", "dpo"]


@pytest.mark.parametrize(
    ("options", "scorers", "inputs"),
    [
        ([], {"rm": "reward_model"}, ["base", "held_out", "preferences"]),  # too few pairs
        (["--judge"], {"judge": "judge"}, ["base", "held_out", "preferences", "other_preferences"]),
        (
            ["--judge", "--method", "rejection_sampling"],
            {"rm": "reward_model", "judge": "judge"},
            ["base", "held_out", "preferences", "prompts", "other_preferences"],
        ),
    ],
)
def test_half_of_the_pairs_teach_a_judge(
    options: list[str], scorers: dict[str, str], inputs: list[str], init: Init, capsys: Capture
) -> None:
    answer = init("mine", *COMPARED, *options)
    assert (answer.code, answer.err) == (0, "")
    recipe = load_recipe("mine")
    compare: Any = recipe.stages["compare"].config
    assert (compare.scorers, list(recipe.inputs)) == (scorers, inputs)
    assert compare.deciding_scorer == ("judge" if len(scorers) > 1 else None)
    shares = {name: getattr(found, "share", None) for name, found in recipe.inputs.items()}
    if "judge" in scorers:
        assert {share for name, share in ((name, tuple(shares[name] or ())) for name in inputs[2:-1])} == {(0, 0.5)}
        assert shares["other_preferences"] == [0.5, 1]
    else:
        assert set(shares.values()) == {None}
        assert "judge    none: 40 pairs are too few to keep half from training (1,000 needed)" in answer.out
    assert (main(["plan", "mine"]), capsys.readouterr().err) == (0, "")


def test_enough_pairs_have_a_judge_unless_the_user_wants_none(init: Init, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("align.pipeline.starter.goal.JUDGE_PAIRS", NUMBER)
    assert "judge    a reward model from half of the 40 pairs" in init("mine", *COMPARED).out
    assert init("other", *COMPARED, "--no-judge").code == 0
    assert list(load_recipe("mine").stages) == ["dpo", "judge", "compare"]
    assert list(load_recipe("other").stages) == ["dpo", "reward_model", "compare"]
    given = init("third", *COMPARED, "--reward-model", "owner/reward-model")  # it judges: nothing is trained with it
    assert (given.code, "judge  " in given.out) == (0, False)


@pytest.mark.parametrize(
    ("options", "scorers"),
    [
        (COMPARED, {"judge": "judge"}),
        ([*COMPARED, "--method", "rejection_sampling"], {"rm": "reward_model", "judge": "judge"}),
        ([*COMPARED, "--method", "rejection_sampling", "--reward-model", "owner/rm"], {"rm": "reward_model", "judge": "judge"}),
        (
            ["--data", "openai.jsonl", "--data", "pairs.txt", "--goal", "compare", "--method", "sft"],
            {"judge": "judge"},
        ),
    ],
)
def test_a_reward_model_that_no_method_uses_may_judge(options: list[str], scorers: dict[str, str], init: Init) -> None:
    answer = init("mine", *options, "--judge-model", "owner/judge", "--yes")
    assert (answer.code, answer.err) == (0, "")
    assert "judge    owner/judge, which no method uses" in answer.out
    recipe = load_recipe("mine")
    compare: Any = recipe.stages["compare"].config
    assert (compare.scorers, compare.deciding_scorer) == (scorers, "judge" if len(scorers) > 1 else None)
    assert recipe.inputs["judge"].hub_id == "owner/judge"  # type: ignore[union-attr]


def test_sentences_are_no_right_answers_that_a_rule_could_check(init: Init) -> None:
    """A rule that no completion can pass would teach nothing; pairs teach a reward model instead."""
    reply = "I am sorry to hear that; do you remember where you put it last time?"
    write_jsonl(Path("talk.jsonl"), ({"question": prompt, "answer": f"{prompt} {reply}"} for prompt, _, _ in TURNS))
    alone = init("mine", "--data", "talk.jsonl", "--goal", "rloo")
    assert (alone.code, "answers must be scored, and nothing here can do it" in alone.err) == (2, True)
    assert init("mine", "--data", "talk.jsonl", "--data", "pairs.jsonl", "--goal", "rloo").code == 0
    assert load_recipe("mine").stages["rloo"].config.scorers == {"rm": "reward_model"}  # type: ignore[attr-defined]


def test_what_a_rule_needs_and_is_not_installed_is_said_at_once(init: Init, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(Path("halves.jsonl"), ({"prompt": f"{index} / 7?", "reference": rf"\frac{{{index}}}{{7}}"} for index in range(9)))
    monkeypatch.setattr("align.scoring.math_answer.PACKAGE", "a_package_that_nobody_has")
    answer = init("mine", "--data", "halves.jsonl", "--goal", "grpo")
    assert answer.code == 0
    assert "math_answer needs math-verify, which is not installed\n         pip install 'align-llm[math]'" in answer.out


TALK = "\n\nHuman: {}\n\nAssistant: {}"


@pytest.mark.parametrize(
    ("rows", "goal", "found", "columns"),
    [
        ([{"text": TALK.format(p, c)} for p, c, _ in TURNS], "sft", "40 instructions, columns text", "{messages: text}"),
        (
            [{"chosen": TALK.format(p, c), "rejected": TALK.format(p, r)} for p, c, r in TURNS],
            "sft",
            "40 preference pairs, columns chosen, rejected",
            "{messages: chosen}",
        ),
        ([{"prompt": TALK.format(p, ""), "chosen": c, "rejected": r} for p, c, r in TURNS], "dpo", "40 preference pairs", ""),
    ],
)
def test_transcripts_are_conversations(
    rows: list[dict[str, str]], goal: str, found: str, columns: str, init: Init, capsys: Capture
) -> None:
    """As hh-rlhf and copies of it write them."""
    write_jsonl(Path("talks.jsonl"), rows)
    answer = init("mine", "--data", "talks.jsonl", "--goal", goal)
    assert (answer.code, answer.err) == (0, "")
    assert found in answer.out
    assert columns in Path("mine/recipe.yaml").read_text()
    assert (main(["plan", "mine"]), capsys.readouterr().err) == (0, "")


def config_alone(folder: Path, shape: str) -> Path:
    folder.mkdir()
    kind = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}[SHAPES[shape]["model_type"]]
    config = {"architectures": [kind], "tie_word_embeddings": True, "torch_dtype": "bfloat16", **SHAPES[shape]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("shape", "gib", "method", "rate"),
    [("qwen3-0.6b", 80, None, "1e-6"), ("qwen3-8b", 80, "lora", "5e-6"), ("qwen3-8b", 16, "qlora", "5e-6")],
)
def test_size_and_machine_decide_how_it_trains(shape: str, gib: int, method: str | None, rate: str, init: Init) -> None:
    config_alone(Path("big"), shape)
    answer = init("mine", "--data", "pairs.jsonl", "--goal", "dpo", "--gpu-memory", f"{gib}GB", model="big")
    text = Path("mine/recipe.yaml").read_text()
    assert f"learning_rate: {rate}" in text
    assert (f"peft: {{method: {method}}}" in text) if method else "peft" not in text
    assert f"of {gib} GiB" in answer.out


def test_a_hub_model_that_is_not_here_is_not_fetched(init: Init, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("align.pipeline.starter.model.fetch_model", refuse)
    answer = init("mine", "--data", "pairs.jsonl", "--goal", "dpo", model="owner/model-1b")
    assert (answer.code, answer.err) == (0, "")
    assert "owner/model-1b: on the hub; not here yet" in answer.out
    recipe = load_recipe("mine")
    assert recipe.inputs["base"].hub_id == "owner/model-1b"  # type: ignore[union-attr]
    assert recipe.stages["dpo"].config.peft.method == "lora"  # type: ignore[attr-defined]


def test_with_fetch_the_configuration_decides(init: Init, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cached = config_alone(tmp_path / "cached", "qwen3-0.6b")
    monkeypatch.setattr(
        "align.pipeline.starter.model.fetch_model", lambda *_, weights: (cached, "0" * 40) if not weights else None
    )
    answer = init("mine", "--data", "pairs.jsonl", "--goal", "dpo", "--gpu-memory", "80", "--fetch", model="owner/model")
    assert "owner/model: 596 M parameters" in answer.out
    assert "peft" not in Path("mine/recipe.yaml").read_text()


WRONG: list[tuple[list[str], str, str]] = [
    (["--data", "pairs.jsonl", "--goal", "ppo"], "model", "--goal ppo: init writes no recipe with ppo"),
    (["--data", "pairs.jsonl", "--goal", "dop"], "model", "did you mean 'dpo'"),
    (["--data", "pairs.jsonl", "--goal", "dpo", "--method", "orpo"], "model", "--method goes with --goal compare"),
    (["--data", "pairs.jsonl", "--goal", "dpo", "--judge"], "model", "--judge: it is for --goal compare"),
    (["--data", "sums.jsonl", "--goal", "grpo", "--rule", "number"], "model", "--rule number: unknown name"),
    (
        ["--data", "sums.jsonl", "--goal", "grpo", "--rule", "choice"],
        "model",
        "sums.jsonl:1: has none of A, B, C, D in `reference`",
    ),
    (["--data", "sums.jsonl", "--goal", "grpo", "--rule", "expression"], "model", "has no such column: 'numbers'"),
    (["--data", "pairs.jsonl", "--goal", "grpo", "--rule", "numeric"], "model", "--rule: needs prompts with the right answer"),
    (["--data", "sums.jsonl", "--goal", "sft", "--rule", "numeric"], "model", "--rule: the goal sft scores no answers"),
    (["--data", "openai.jsonl", "--goal", "grpo"], "model", "answers must be scored, and nothing here can do it"),
    (["--data", "pairs.jsonl", "--method", "ppo", "--goal", "compare"], "model", "--method ppo"),
    (["--data", "pairs.jsonl"], "model", "--goal: missing; with these rows it is usually dpo"),
    (["--goal", "dpo"], "", "--model and --data: missing"),
    (["--goal", "dpo", "--data", "owner/pairs"], "model", "dataset of the hub?"),
    (["--goal", "dpo", "--data", "pairs.jsonl"], "modle", "model modle: there is no such folder"),
    (["--goal", "dpo", "--data", "pairs.jsonl"], "pairs.jsonl", "it is a file"),
    (["--goal", "dpo", "--data", "openai.jsonl"], "model", "goal dpo: needs preference pairs"),
    (["--goal", "pairs", "--data", "openai.jsonl"], "model", "answers must be scored, and nothing here can do it"),
    (["--goal", "dpo", "--data", "pairs.jsonl", "--machine", "H100"], "model", "--machine H100: expected auto, cpu"),
    (["--goal", "dpo", "--data", "pairs.jsonl", "--name", "my run"], "model", "--name my run"),
    (["--goal", "sft", "--data", "pairs.jsonl", "--reward-model", "owner/rm"], "model", "--reward-model: the goal sft scores no"),
    (["--goal", "dpo", "--data", "pairs.jsonl", "--judge-model", "owner/rm"], "model", "--judge-model: it is for --goal compare"),
    (
        ["--goal", "compare", "--data", "pairs.jsonl", "--judge-model", "owner/rm", "--reward-model", "owner/rm"],
        "model",
        "--judge-model: is the model of --reward-model",
    ),
    (
        ["--goal", "compare", "--data", "pairs.jsonl", "--judge-model", "o/rm", "--judge"],
        "model",
        "--judge-model and --judge: one",
    ),
]


@pytest.mark.parametrize(("options", "model", "message"), WRONG, ids=[message for *_, message in WRONG])
def test_wrong_answers_are_refused_and_nothing_is_written(options: list[str], model: str, message: str, init: Init) -> None:
    answer = init("mine", *options, model=model)
    assert answer.code == 2
    assert message in answer.err
    assert len(answer.err.splitlines()) <= MAX_ERROR_LINES
    assert not Path("mine").exists()


@pytest.mark.parametrize("text", ["", "colour,size\nred,1\n"])
def test_data_that_nothing_fits_is_refused_with_what_to_say(text: str, init: Init) -> None:
    Path("odd.csv").write_text(text)
    answer = init("mine", "--data", "odd.csv", "--goal", "dpo")
    assert (answer.code, "--columns" in answer.err, Path("mine").exists()) == (3, True, False)


def test_a_recipe_is_never_overwritten(init: Init) -> None:
    Path("mine").mkdir()
    Path("mine/recipe.yaml").write_text("name: old\n")
    answer = init("mine", "--data", "pairs.jsonl", "--goal", "dpo")
    assert (answer.code, "mine/recipe.yaml: exists already" in answer.err) == (2, True)
    assert Path("mine/recipe.yaml").read_text() == "name: old\n"


def test_paths_that_yaml_could_misread_are_quoted(init: Init) -> None:
    folder = Path("my: data [1] #한글")
    folder.mkdir()
    shutil.copy("pairs.jsonl", folder / "no")
    shutil.move(folder / "no", folder / "yes.jsonl")
    answer = init("mine", "--data", str(folder / "yes.jsonl"), "--goal", "dpo")
    assert answer.code == 0, answer.err
    assert load_recipe("mine").inputs["preferences"].path == f"../{folder}/yes.jsonl"  # type: ignore[union-attr]


@pytest.mark.slow
def test_what_init_wrote_runs(init: Init) -> None:
    """The whole way of docs/tutorial.md, with a comparison, is run by tests/recipes."""
    assert init("mine", "--data", "pairs.csv", "--goal", "dpo").code == 0
    assert main(["run", "mine", "--in-process"]) == 0
    assert Path("runs/mine/stages/dpo/model/config.json").is_file()
