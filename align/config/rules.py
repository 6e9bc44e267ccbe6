"""The declarative rules of a scorer: what a recipe may say about a reply without training anything."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from align.config.base import StrictModel
from align.config.reference import iterate_parts


def _compiles(pattern: str) -> str:
    """The pattern itself, if it is a regular expression; else an error that shows it."""
    import regex  # takes longer to import than this module, and most rules have no pattern

    try:
        # In NFC, as it is compiled later to search texts in NFC.
        regex.compile(unicodedata.normalize("NFC", pattern))
    except regex.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, Field(min_length=1), AfterValidator(_compiles)]


class RuleBase(StrictModel):
    """What every rule has."""

    name: str = Field(min_length=1)
    """Name of the rule in the scores; unique within its rule set."""
    weight: float = Field(default=1.0, gt=0)
    """Its share of the score, relative to the other rules' weights."""
    at_most: float | None = Field(default=None, ge=0, lt=1)
    """Highest score of a completion that fails this rule, however well it does by the others. Default: no limit."""

    @property
    def row_field(self) -> str:
        """The field of a prompt's row that it cannot do without, such as `reference` or `fields.category`; empty for none."""
        return ""


class MatchesRule(RuleBase):
    """1 if the completion contains any of the patterns, else 0."""

    type: Literal["matches"]
    any_of: list[Pattern] = Field(min_length=1)
    """Regular expressions, searched anywhere in the NFC form of the completion."""
    ignore_case: bool = True
    """Whether upper and lower case are the same."""


class AvoidsRule(RuleBase):
    """1 if the completion contains none of the patterns, else 0."""

    type: Literal["avoids"]
    none_of: list[Pattern] = Field(min_length=1)
    """Regular expressions, searched anywhere in the NFC form of the completion."""
    ignore_case: bool = True
    """Whether upper and lower case are the same."""


class ContainsReferenceRule(RuleBase):
    """1 if the prompt's `reference` occurs in the completion (whatever the case), else 0."""

    type: Literal["contains_reference"]

    @property
    def row_field(self) -> str:
        return "reference"


class MatchesFieldRule(RuleBase):
    """1 if the completion contains a pattern of those for the value of a column of the prompts file, else 0."""

    type: Literal["matches_field"]
    field: str = Field(min_length=1)
    """The column, such as a category of the prompt."""
    patterns: dict[str, Annotated[list[Pattern], Field(min_length=1)]] = Field(min_length=1)
    """Regular expressions by the value of the column, searched anywhere in the NFC form of the completion."""
    ignore_case: bool = True
    """Whether upper and lower case are the same."""

    @property
    def row_field(self) -> str:
        return f"fields.{self.field}"


class NamesNoOtherRule(RuleBase):
    """1 if the completion contains none of the words but those that are part of the prompt's `reference`, else 0."""

    type: Literal["names_no_other"]
    words: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    """What the prompts may be about: words or phrases, in any case. One counts as a whole word, in Korean also with particles;
    one that is a part of the reference does not."""

    @property
    def row_field(self) -> str:
        return "reference"


class EchoRule(RuleBase):
    """1 if the completion copies no more of the prompt than allowed, else 0."""

    type: Literal["echo"]
    ngram_words: int = Field(default=3, ge=1)
    """Length of the word n-grams that are compared."""
    max_copied_share: float = Field(ge=0, le=1)
    """Largest share allowed, of the completion's n-grams that occur in the prompt's messages too."""


class WordPairsRule(RuleBase):
    """1 if enough of the completion's pairs of neighbouring words occur in a sample of the language, else 0.

    Words in an order that nobody writes fail it, whatever the words are.
    """

    type: Literal["word_pairs"]
    texts: str = Field(min_length=1)
    """The sample: sentences, each on its line or behind the one before, with the phrases that completions are made of."""
    min_known_share: float = Field(gt=0, le=1)
    """Smallest share allowed, of the pairs within the completion's sentences."""


class LengthRule(RuleBase):
    """1 if the completion's length lies inside every bound given (ends included), else 0."""

    type: Literal["length"]
    min_characters: int | None = Field(default=None, ge=0)
    """Fewest characters (Unicode code points of the NFC form, outer white space not counted)."""
    max_characters: int | None = Field(default=None, ge=0)
    """Largest number of characters."""
    min_words: int | None = Field(default=None, ge=0)
    """Fewest words (separated by white space)."""
    max_words: int | None = Field(default=None, ge=0)
    """Largest number of words."""

    @model_validator(mode="after")
    def _bounds_make_a_window(self) -> LengthRule:
        windows = {"characters": (self.min_characters, self.max_characters), "words": (self.min_words, self.max_words)}
        if all(bound is None for window in windows.values() for bound in window):
            raise ValueError("a length rule needs at least one of min_characters, max_characters, min_words, max_words")
        for unit, (least, most) in windows.items():
            if least is not None and most is not None and least > most:
                raise ValueError(f"min_{unit} ({least}) is greater than max_{unit} ({most}): nothing could pass")
        return self


class RepetitionRule(RuleBase):
    """1 if the completion repeats itself no more than allowed, else 0."""

    type: Literal["repetition"]
    ngram_words: int = Field(default=3, ge=1)
    """Length of the word n-grams that are compared."""
    max_repeated_share: float = Field(ge=0, le=1)
    """Largest share allowed, of n-grams seen earlier in the completion and of sentences seen earlier in it."""


class AnswerRule(RuleBase):
    """What the rules have that read one answer in the completion."""

    pattern: Pattern | None = None
    """Regular expression of where the answer stands: its last match, or the first group of that. Default: see the rule."""


class NumericAnswerRule(AnswerRule):
    """1 if the number that the completion ends with equals the last number in the prompt's `reference`, else 0."""

    type: Literal["numeric_answer"]
    tolerance: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Largest difference allowed between the two numbers."""

    @property
    def row_field(self) -> str:
        return "reference"


class ChoiceAnswerRule(AnswerRule):
    """1 if the completion chooses the option that the prompt's `reference` names, and no other, else 0."""

    type: Literal["choice_answer"]
    choices: list[Annotated[str, Field(min_length=1)]] = Field(min_length=2)
    """Labels of the options: capital letters or numbers, such as A to E, "1" to "5" or ① to ⑤."""

    @property
    def row_field(self) -> str:
        return "reference"

    @model_validator(mode="after")
    def _labels_can_be_told_apart(self) -> ChoiceAnswerRule:
        labels = [unicodedata.normalize("NFKC", label) for label in self.choices]
        for label in labels:
            if not (label.isascii() and label.isalnum() and label == label.upper()):
                raise ValueError(f"choices: {label!r} is not a label: capital letters or digits only, without brackets")
        if len(set(labels)) < len(labels):
            raise ValueError("choices: two labels are the same (① counts as 1)")
        return self


class ExpressionRule(AnswerRule):
    """1 if the completion ends with an arithmetic expression of the prompt's numbers that equals its target, else 0."""

    type: Literal["expression"]
    numbers: str = Field(min_length=1)
    """The column with the numbers that the expression may use, such as `3 5 7`."""
    target: str | None = Field(default=None, min_length=1)
    """The column with the value to reach. Default: the prompt's `reference`."""
    use: Literal["exactly_once", "at_most_once"] = "exactly_once"
    """How often the expression has each of the numbers."""

    @property
    def row_field(self) -> str:
        return f"fields.{self.numbers}"


class MathAnswerRule(AnswerRule):
    """1 if the completion's answer is mathematically that in the prompt's `reference`, by math-verify, else 0."""

    type: Literal["math_answer"]
    timeout_seconds: float = Field(default=5.0, gt=0)
    """An answer that takes longer to compare is wrong."""

    @property
    def row_field(self) -> str:
        return "reference"


class InstructionsRule(RuleBase):
    """1 if the completion follows every instruction that the prompt's row lists as IFEval does, else 0."""

    type: Literal["instructions"]
    ids: str = Field(default="instruction_id_list", min_length=1)
    """The column with the list of instructions, such as `["punctuation:no_comma"]`."""
    arguments: str = Field(default="kwargs", min_length=1)
    """The column with their arguments: a list with a mapping for each instruction."""
    loose: bool = False
    """Also accept it without its first or last line, or both, and without asterisks (IFEval's loose accuracy)."""

    @property
    def row_field(self) -> str:
        return f"fields.{self.ids}"


_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef", "patternProperties")
"""Keys of a JSON Schema that could fetch something, or let a check go on without end."""


def _is_json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema itself, if it is one and its checks have an end; else an error that shows where."""
    from jsonschema import Draft202012Validator, SchemaError  # as `_compiles`

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"not a JSON Schema: {'.'.join(map(str, error.absolute_path)) or 'schema'}: {error.message}") from None
    for path, part in iterate_parts(schema):
        for key in _REFERENCES if isinstance(part, dict) else ():
            if key in part:
                raise ValueError(f"{'.'.join(map(str, (*path, key)))} is not supported: write what it stands for in its place")
        if isinstance(part, dict) and isinstance(part.get("pattern"), str):
            _compiles(part["pattern"])  # by the package that will search with it
    return schema


class JsonRule(RuleBase):
    """1 if the completion, or the one fenced block in it, is JSON that fits a JSON Schema, else 0."""

    type: Literal["json"]
    json_schema: Annotated[dict[str, Any], AfterValidator(_is_json_schema)] = Field(default_factory=dict)
    """The schema, in draft 2020-12, without `$ref` and `patternProperties`. Default: any JSON fits."""


def _is_script(name: str) -> str:
    import regex

    try:
        regex.compile(rf"\p{{Script={name}}}")
    except regex.error:
        raise ValueError(f"{name!r} is not the name of a script in Unicode, such as hangul, latin, han, cyrillic") from None
    return name


class LanguageRule(RuleBase):
    """1 if the share of the completion's letters that belong to a script lies inside the bounds (ends included), else 0."""

    type: Literal["language"]
    script: Annotated[str, Field(pattern="^[A-Za-z_]+$"), AfterValidator(_is_script)]
    """Name of a script in Unicode: hangul, latin, han, cyrillic and so on."""
    min_share: float | None = Field(default=None, ge=0, le=1)
    """Smallest share of the letters. A completion without letters has the share 0."""
    max_share: float | None = Field(default=None, ge=0, le=1)
    """Largest share of the letters."""

    @model_validator(mode="after")
    def _bounds_make_a_window(self) -> LanguageRule:
        if self.min_share is None and self.max_share is None:
            raise ValueError("a language rule needs min_share, max_share, or both")
        if self.min_share is not None and self.max_share is not None and self.min_share > self.max_share:
            raise ValueError(f"min_share ({self.min_share}) is greater than max_share ({self.max_share}): nothing could pass")
        return self


Rule = Annotated[
    MatchesRule
    | AvoidsRule
    | ContainsReferenceRule
    | MatchesFieldRule
    | NamesNoOtherRule
    | EchoRule
    | WordPairsRule
    | LengthRule
    | RepetitionRule
    | NumericAnswerRule
    | ChoiceAnswerRule
    | ExpressionRule
    | InstructionsRule
    | MathAnswerRule
    | JsonRule
    | LanguageRule,
    Field(discriminator="type"),
]


class RuleSet(StrictModel, defer_build=False):  # deferred, it would be built again for every stage type that has scorers
    """Rules whose weighted mean is a completion's score, from 0 to 1, unless a rule with `at_most` fails."""

    rules: list[Rule] = Field(min_length=1)
    """The rules; each gives 0 or 1."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> RuleSet:
        names = [rule.name for rule in self.rules]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"rule names must be unique; given more than once: {', '.join(twice)}")
        return self
