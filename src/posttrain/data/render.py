"""The one place where text becomes token ids: training, rollouts, evaluation and chat use it.

A row is cut into segments at the edges of the assistant turns; each segment is tokenised once and
the ids are joined. So the mask comes from positions, never from token ids or searched markers,
and the prompt ids of a training row are those that the sampler gets for the same prompt.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any

import jinja2
import torch

from posttrain.common.batch import Sequence
from posttrain.data.messages import Message, messages_of
from posttrain.data.rows import Row

_PROBE = "\N{BLACK SPADE SUIT}probe\N{BLACK SPADE SUIT}"


@dataclass(frozen=True)
class Renderer:
    """Turns rows into token ids, with a tokenizer and one set of stop tokens."""

    tokenizer: Any
    chat: bool
    """Whether rows go through the tokenizer's chat template or are bare text."""
    stop_token_ids: tuple[int, ...]
    """The tokens that end a completion, in training, sampling and the saved files alike."""
    turn_end: int
    """The stop token that this renderer writes after a completion."""
    system_prompt: str | None = None

    def prompt_ids(self, row: Row) -> list[int]:
        """Return the ids before the completion, cut into segments as in training."""
        if not self.chat:
            return self._plain_prompt(row)
        messages = self.prompt_messages(row)
        whole = self._template(messages, generation=True)
        if not any(m["role"] == "assistant" for m in messages):
            return self._ids(whole)
        try:
            segments = self._chat_segments(messages, generation=True)
        except ValueError:
            # a template that drops reasoning from earlier turns: such a chat is never trained on
            # as one sequence, so there are no training segments to agree with
            return self._ids(whole)
        return [token for ids, _ in segments for token in ids]

    def prompt_messages(self, row: Row) -> list[Message]:
        """Return the prompt as messages, without a last assistant turn."""
        messages = messages_of(row, "messages" if "messages" in row else "prompt")
        if messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        return self._with_system(messages)

    def training_sequence(self, row: Row) -> Sequence:
        """Return ids and mask of a row with `messages`, or with `prompt` and `completion`."""
        if not self.chat:
            prompt = self._plain_prompt(row)
            completion = [*self._ids(_text(row, "completion")), self.turn_end]
            return _sequence([(prompt, False), (completion, True)])
        if "messages" in row:
            messages = self._with_system(messages_of(row, "messages"))
        else:
            prompt_messages = self._with_system(messages_of(row, "prompt"))
            messages = prompt_messages + messages_of(row, "completion", role="assistant")
        return _sequence(self._chat_segments(messages))

    def step_sequence(self, row: Row, separator: str) -> Sequence:
        """Return the ids of a `prompt` and its steps (`completions`), joined by `separator`.

        Each step is tokenised together with what closes it: the separator or, after the last, the
        stop token. The mask [T] is True only at the last token of each step.
        """
        *others, last = row["completions"]
        steps = [*(step + separator for step in others), last]
        if self.chat:
            answer = {"role": "assistant", "content": "".join(steps)}
            messages = [*self._with_system(messages_of(row, "prompt")), answer]
            segments = self._chat_segments(messages, steps=steps)
        else:
            pieces = [self._ids(step) for step in steps]
            pieces[-1] = [*pieces[-1], self.turn_end]
            segments = [(self._plain_prompt(row), False), *((piece, True) for piece in pieces)]
        if not all(ids for ids, is_step in segments if is_step):
            raise ValueError("the tokenizer makes no token of one of the steps")
        lengths = itertools.accumulate(len(ids) for ids, _ in segments)
        ends = [length - 1 for length, (_, is_step) in zip(lengths, segments) if is_step]
        sequence = _sequence(segments)
        # earlier assistant turns belong to the prompt
        mask = torch.zeros_like(sequence.loss_mask)
        mask[ends[-len(steps) :]] = True
        return Sequence(sequence.input_ids, mask)

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of a whole text for language modelling, closed by the stop token."""
        ids = self._encoded(text)
        return ids if ids and ids[-1] in self.stop_token_ids else [*ids, self.turn_end]

    def decode(self, ids: list[int]) -> str:
        """Return the text of a completion, without its stop token."""
        if ids and ids[-1] in self.stop_token_ids:
            ids = ids[:-1]
        return str(self.tokenizer.decode(ids))

    def _chat_segments(
        self, messages: list[Message], generation: bool = False, steps: SequenceOf[str] = ()
    ) -> list[tuple[list[int], bool]]:
        """Return ids cut at the edges of assistant turns and `steps`, and what is trained on."""
        if not any(m["role"] == "assistant" for m in messages):
            roles = ", ".join(str(m["role"]) for m in messages)
            raise ValueError(f"no assistant message to train on; the roles are {roles}")
        full = self._template(messages, generation)
        segments: list[tuple[list[int], bool]] = []
        done = 0
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            if i == 0:
                raise ValueError("the chat begins with the assistant: that turn has no prompt")
            start = self._prefix(full, messages[:i], generation=True)
            end = self._prefix(full, messages[: i + 1], generation=False)
            pieces = _pieces(full[start:end], steps if i == len(messages) - 1 else ())
            *closed, turn = [self._ids(piece) for piece in pieces]
            stops = [k for k, token in enumerate(turn) if token in self.stop_token_ids]
            if not stops:
                raise ValueError(
                    "the chat template closes an assistant turn without a stop token "
                    f"({self.tokenizer.convert_ids_to_tokens(list(self.stop_token_ids))}): "
                    "the model would never learn to stop"
                )
            cut = stops[-1] + 1  # what the template writes after the stop token is not sampled
            segments.append((self._ids(full[done:start]), False))
            segments += [*((ids, True) for ids in closed), (turn[:cut], True), (turn[cut:], False)]
            done = end
        if generation:
            segments.append((self._ids(full[done:]), False))
        return segments

    def _prefix(self, full: str, messages: list[Message], generation: bool) -> int:
        prefix = self._template(messages, generation)
        if not full.startswith(prefix):
            raise ValueError(
                "the chat template renders earlier turns differently once a later one follows "
                "(it drops reasoning, for example): such a chat cannot be trained on as one "
                "sequence; keep one assistant turn per row"
            )
        return len(prefix)

    def _template(self, messages: list[Message], generation: bool = False) -> str:
        if not messages:
            raise ValueError("the chat is empty")
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generation
            )
        except jinja2.TemplateError as error:  # raised by templates for a wrong order of roles
            raise ValueError(f"the chat template refuses this chat: {error}") from None
        assert isinstance(text, str)
        return text

    def _ids(self, text: str) -> list[int]:
        if not text:
            return []
        # the template has written the special tokens already: never add them a second time
        return self._encoded(text, add_special_tokens=False)

    def _encoded(self, text: str, **options: bool) -> list[int]:
        try:
            ids: list[int] = self.tokenizer(text, verbose=False, **options)["input_ids"]
        except TypeError:  # raised by tokenizers for a text that cannot be encoded
            surrogates = [c for c in text if "\ud800" <= c <= "\udfff"]
            if not surrogates:
                raise
            raise ValueError(f"a text contains {surrogates[0]!r}, half of a character") from None
        return ids

    def _plain_prompt(self, row: Row) -> list[int]:
        prompt = _text(row, "prompt")
        if self.system_prompt is not None:
            prompt = f"{self.system_prompt}\n\n{prompt}"
        ids = self._encoded(prompt)
        if ids and ids[-1] == self.tokenizer.eos_token_id:  # by tokenizers that close every text
            ids = ids[:-1]
        if not ids:
            raise ValueError("the prompt is empty")
        return ids

    def _with_system(self, messages: list[Message]) -> list[Message]:
        if self.system_prompt is None or (messages and messages[0]["role"] == "system"):
            return messages
        return [{"role": "system", "content": self.system_prompt}, *messages]


def make_renderer(
    tokenizer: Any,
    template: str = "auto",
    system_prompt: str | None = None,
    generation_stops: list[int] | None = None,
) -> Renderer:
    """Return a renderer with its stop tokens.

    These are the tokenizer's EOS, those of the model's generation config, and the token with which
    the chat template closes an assistant turn. Raise ValueError if none can close a completion.
    """
    has_template = tokenizer.chat_template is not None
    if template == "chat" and not has_template:
        raise ValueError("data.template is chat, but the tokenizer has no chat template")
    chat = has_template and template != "plain"
    stops = set(generation_stops or [])
    if tokenizer.eos_token_id is not None:
        stops.add(tokenizer.eos_token_id)
    turn_end = tokenizer.eos_token_id
    if chat:
        turn_end = _turn_end(tokenizer)
        stops.add(turn_end)
    if turn_end is None:
        raise ValueError("the tokenizer has no EOS token: the model would never learn to stop")
    return Renderer(tokenizer, chat, tuple(sorted(stops)), turn_end, system_prompt)


def _turn_end(tokenizer: Any) -> int:
    """Return the special token with which the chat template closes an assistant turn."""
    probe = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _PROBE}]
    rendered = tokenizer.apply_chat_template(probe, tokenize=False)
    after = rendered.rpartition(_PROBE)[2]
    ids = tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    for token in ids:
        if token in special:
            return int(token)
    raise ValueError(
        "the chat template closes an assistant turn without a stop token: the model would never "
        "learn to stop; use data.template: plain or a tokenizer with another template"
    )


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        if column not in row and "messages" in row:
            raise ValueError(
                "messages need a chat template, which the tokenizer lacks: give prompt, completion"
            )
        raise ValueError(
            f"{column} must be a string without a chat template; got {str(value)[:60]!r}"
        )
    return value


def _pieces(turn: str, steps: SequenceOf[str]) -> list[str]:
    """Return the text of a turn, cut where one of its steps ends and the next begins."""
    if not steps:
        return [turn]
    pieces = list(steps)
    if "".join(pieces) not in turn:  # many templates strip a message's content
        pieces[0] = pieces[0].lstrip()
        pieces[-1] = pieces[-1].rstrip()
    before, completion, after = turn.partition("".join(pieces))
    if not completion:
        raise ValueError(
            "the chat template changes the completion: its steps cannot be found in it"
        )
    pieces[0] = before + pieces[0]
    pieces[-1] += after
    return pieces


def _sequence(segments: list[tuple[list[int], bool]]) -> Sequence:
    ids = [token for segment, _ in segments for token in segment]
    mask = [trained for segment, trained in segments for _ in segment]
    if mask:
        mask[0] = False  # nothing precedes the first token, so it has no probability
    return Sequence(torch.tensor(ids), torch.tensor(mask, dtype=torch.bool))
