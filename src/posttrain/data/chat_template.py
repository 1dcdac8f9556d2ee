"""The tokenizer's chat template: messages to text, at one date, in the form that it takes."""

from __future__ import annotations

import copy
import datetime
import functools
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jinja2

from posttrain.data.encoding import encoded_after
from posttrain.data.entries import Message, Notes, text_of

PROBE = "\N{BLACK SPADE SUIT}probe\N{BLACK SPADE SUIT}"
TODAY = re.compile(r"""strftime_now\(\s*(?:"([^"]*)"|'([^']*)')\s*\)""")
TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""What a template can raise: it is a program."""


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer with the way in which its chat template is called."""

    tokenizer: Any
    content: Literal["text", "parts", "both"] = "text"
    """Whether a message's content is a text, a list of parts, or either."""
    date: datetime.date | None = None
    """The date that the template writes; today's by default."""

    def text(
        self, messages: list[Message], options: dict[str, Any], generation: bool = False
    ) -> str:
        """Return the chat as text; raise ValueError if it is empty or the template refuses it."""
        if not messages:
            raise ValueError("the chat is empty")
        messages = [self._shaped(message) for message in messages]
        try:
            template = self.tokenizer.get_chat_template(None, options.get("tools"))
            text = self.tokenizer.apply_chat_template(
                messages,
                chat_template=template if self.date is None else dated(template, self.date),
                tokenize=False,
                add_generation_prompt=generation,
                **self._date_string(template),
                **options,
            )
        except TEMPLATE_ERRORS as error:
            raise ValueError(_refusal(error)) from None
        assert isinstance(text, str)
        return text

    def ids(self, text: str, before: Sequence[int] = ()) -> list[int]:
        """Return the ids of a piece of the chat's text, after the ids of what precedes it."""
        # the template has written the special tokens already: never add them a second time
        return encoded_after(self.tokenizer, text, before)

    def _shaped(self, message: Message) -> Message:
        """Return the message with its content as the template takes it."""
        content = message.get("content")
        if isinstance(content, list) and self.content == "text":
            return message | {"content": text_of(message)}
        if isinstance(content, str) and self.content == "parts":
            return message | {"content": [{"type": "text", "text": content}]}
        return message

    def _date_string(self, template: str) -> dict[str, str]:
        """Return the variable that templates read which do not ask for today's date."""
        if self.date is None or "strftime_now" in template or "date_string" not in template:
            return {}
        return {"date_string": self.date.strftime("%d %b %Y")}


def is_dated(tokenizer: Any) -> bool:
    """Whether the tokenizer's chat template writes the day on which it is used."""
    return any("strftime_now" in text for text in _templates(tokenizer))


def reads_date(tokenizer: Any) -> bool:
    """Whether the tokenizer's chat template writes a date if it is given one."""
    return any(re.search("strftime_now|date_string", text) for text in _templates(tokenizer))


def _templates(tokenizer: Any) -> list[str]:
    templates = tokenizer.chat_template or ""
    return list(templates.values()) if isinstance(templates, dict) else [templates]


@functools.lru_cache
def dated(template: str, date: datetime.date) -> str:
    """Return a template that writes `date` wherever it would write today's.

    transformers gives templates strftime_now, which cannot be replaced by an argument of the call.
    Raise ValueError if the template computes a format, which is not found in its text.
    """
    fixed = TODAY.sub(lambda call: json.dumps(date.strftime(call[1] or call[2] or "")), template)
    if "strftime_now(" in fixed:
        raise ValueError("it calls strftime_now with a computed format: a date cannot be set")
    return fixed


def _refusal(error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, jinja2.TemplateError) or type(error) is ValueError:
        return f"the chat template refuses this chat: {reason}"
    return f"the chat template fails on this chat ({type(error).__name__}: {reason})"


def content_form(tokenizer: Any) -> Literal["text", "parts", "both"]:
    """Return which form of content the tokenizer's chat template writes."""

    def writes(form: Literal["text", "parts"]) -> bool:
        template = ChatTemplate(tokenizer, form)
        for probe in probes():
            try:
                text = template.text(probe, {})
            except ValueError:
                continue
            if PROBE in text and "'text'" not in text and '"text"' not in text:
                return True
        return False

    if not writes("parts"):
        return "text"
    return "both" if writes("text") else "parts"


def probes() -> Iterator[list[Message]]:
    """Yield the smallest chats that a template may ask for, with PROBE as the answer."""
    user, answer = {"role": "user", "content": "x"}, {"role": "assistant", "content": PROBE}
    yield [user, answer]
    yield [{"role": "system", "content": "x"}, user, answer]
    yield [{"role": "developer", "content": "x"}, user, answer]


def after_answer(template: ChatTemplate) -> str:
    """Return what the template writes after an answer; raise ValueError if it refuses all chats."""
    refusal = None
    for probe in probes():
        try:
            text = template.text(probe, {})
        except ValueError as error:
            refusal = refusal or error
            continue
        place = text.lower().rfind(PROBE)  # a template may write in capitals
        if place < 0:
            raise ValueError("the chat template does not write the answer of a chat")
        return text[place + len(PROBE) :]
    raise ValueError(f"{refusal} (a question with its answer)")


def before_next_question(template: ChatTemplate) -> str:
    """Return what the template writes between an answer and the next question, if it takes both."""
    for probe in probes():
        question = {"role": "user", "content": PROBE}
        try:
            text = template.text([*probe, question], {}, generation=True)
        except ValueError:
            continue
        _, answer, rest = text.lower().partition(PROBE)
        between, next_question, _ = rest.partition(PROBE)
        if answer and next_question:
            return text[len(text) - len(rest) :][: len(between)]
    return ""


def closing_token(template: ChatTemplate, stops: set[int]) -> int:
    """Return the token with which the chat template closes an assistant turn.

    It is the first of the known `stops` in what closes any turn, the last one or not (Command A
    closes the response first, then the turn), else the first special token after the last one.
    """
    tokenizer = template.tokenizer
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    last = template.ids(after_answer(template))
    pairs = zip(last, template.ids(before_next_question(template)))
    every = [a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]
    for token in [*filter(stops.__contains__, every), *filter(special.__contains__, last)]:
        return int(token)
    raise ValueError(
        "the chat template closes an assistant turn without a stop token: the model would never "
        "learn to stop; use data.template: plain or a tokenizer with another template"
    )


def fitted(
    template: ChatTemplate, messages: list[Message], options: dict[str, Any]
) -> tuple[list[Message], Notes]:
    """Return the messages with their tool calls in the form that the template takes.

    Some templates add the arguments to a text, some write them as JSON even if they are JSON text,
    and some need a content in every message.
    """
    if all("content" in m and "tool_calls" not in m for m in messages):
        return messages, {}
    try:
        text = template.text(messages, options)
    except ValueError as error:
        for variant, note in _variants(messages):
            try:
                template.text(variant, options)
            except ValueError:
                continue
            return variant, {note: ""}
        raise error
    twice = [a for a in _arguments(messages) if isinstance(a, str) and json.dumps(a) in text]
    if twice and not any(a in text for a in twice):
        try:
            variant = _with_arguments(messages, json.loads)
            template.text(variant, options)
        except ValueError:
            return messages, {}
        return variant, {"arguments in JSON text are parsed, since the template writes JSON": ""}
    return messages, {}


def _variants(messages: list[Message]) -> Iterator[tuple[list[Message], str]]:
    filled = [{"content": "", **m} for m in messages]
    for chat, filling in ((messages, ""), (filled, "a missing content is an empty text")):
        if filling:
            yield chat, f"{filling}, since the template asks for one"
        for change, to in ((json.dumps, "JSON text"), (json.loads, "an object")):
            try:
                variant = _with_arguments(chat, change)
            except ValueError:
                continue
            note = f"the arguments of tool calls are passed as {to}, since the template asks for it"
            yield variant, f"{filling}; {note}" if filling else note


def _arguments(messages: list[Message]) -> list[Any]:
    calls = [call for m in messages for call in m.get("tool_calls", ())]
    return [call.get("function", call).get("arguments") for call in calls]


def _with_arguments(messages: list[Message], change: Any) -> list[Message]:
    """Return the messages with all tool calls' arguments changed to text or from it."""
    takes = str if change is json.loads else (dict, list)
    changed = copy.deepcopy(messages)
    for message in changed:
        for call in message.get("tool_calls", ()):
            inner = call.get("function", call)
            if isinstance(inner.get("arguments"), takes):
                inner["arguments"] = change(inner["arguments"])
    return changed
