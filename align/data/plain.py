"""Prompts as plain text, for encoder–decoder models without a chat template, such as T5.

The encoder reads the contents of the messages, joined by line ends; the decoder writes the completion.
"""

from __future__ import annotations

from collections.abc import Sequence

from align.config.chat import ChatSettings
from align.data.template import ChatFormat
from align.data.template_problems import TemplateProblem
from align.data.tokens import Tokenizer
from align.data.tool_messages import ADVICE
from align.data.turns import difference
from align.records import Message

_PROBE = "Probe"


class PlainFormat(ChatFormat):
    """Renders conversations for an encoder–decoder model without a chat template.

    Encoder: the messages' contents, joined by line ends, with the special tokens that the tokenizer itself puts around a text
    (T5: the end-of-sequence token behind it). Decoder: the completion and the end-of-sequence token.

    Args:
        tokenizer, where: as for `ChatFormat`.
    Raises:
        RecipeError: if the tokenizer lacks an end-of-sequence or a padding token, or they are the same.
    """

    # T5's tokenizers have NFKC built in: full-width forms and the like come back as their plain counterparts.
    unicode_form = "NFKC"

    def completion_text(self, messages: Sequence[Message], completion: str | Message) -> str:
        """The completion and the end-of-sequence token.

        Raises:
            TemplateProblem: contains_eos; or not_representable, if the tokens do not give the completion back: the vocabularies
                of T5 know no line end, no outer or double space and not every character.
        """
        text = super().completion_text(messages, completion)
        ids = self.tokenize([text])[0]
        # Clean-up would remove spaces before punctuation, and texts that are fine would seem changed.
        found = str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        if not self.same_text(found, text):
            raise TemplateProblem("not_representable", f"the tokenizer cannot write this completion: {difference(text, found)}")
        return text

    def _check_template(self) -> None:
        """Finds what the tokenizer puts around a text, which takes the place of a template."""
        bare, whole = (self.tokenizer([_PROBE], add_special_tokens=add)["input_ids"][0] for add in (False, True))
        start = next((place for place in range(len(whole)) if whole[place : place + len(bare)] == bare), 0)
        decode = self.tokenizer.decode
        self._before, self._behind = (
            str(decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
            for ids in (whole[:start], whole[start + len(bare) :])
        )

    def _find_format(self) -> None:
        super()._find_format()
        # Encoder and decoder read texts of their own, so a completion follows nothing.
        self._anchor = ""

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The prompt's messages, followed by the completion where the last message is the assistant's."""
        prompt = messages if add_generation_prompt else messages[:-1]
        if any(message.uses_tools for message in messages):
            raise TemplateProblem("tools_not_shown", f"the model has no chat template, and plain text shows no tools{ADVICE}")
        contents = "\n".join(message.content for message in prompt)
        if self.end_token in contents:
            raise TemplateProblem("contains_eos", f"the prompt contains the end-of-sequence token {self.end_token!r}")
        text = self._before + contents + self._behind
        # The completion follows the unchanged prompt, since `ChatFormat` requires the prompt as a prefix of the whole.
        return text if add_generation_prompt else text + messages[-1].content + self.end_token


def format_of(
    tokenizer: Tokenizer,
    encoder_decoder: str | None,
    where: str,
    *,
    settings: ChatSettings | None = None,
    stop_token_ids: Sequence[int] = (),
) -> ChatFormat:
    """The format of a model: its chat template, or plain text for an encoder–decoder model without one.

    Args:
        encoder_decoder: the architecture of an encoder–decoder model; None for a decoder.
        settings, stop_token_ids: see `ChatFormat`.
    Raises:
        RecipeError: see `ChatFormat` and `PlainFormat`.
    """
    form = PlainFormat if encoder_decoder and not tokenizer.chat_template else ChatFormat
    return form(tokenizer, where=where, settings=settings, stop_token_ids=stop_token_ids)
