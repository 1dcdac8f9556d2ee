"""The one place where text becomes token ids: training, rollouts, evaluation and chat use it.

A row is cut into segments at the edges of the assistant turns; each segment is tokenised once and
the ids are joined. So the mask comes from positions, never from token ids or searched markers,
and the prompt ids of a training row are those that the sampler gets for the same prompt.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from posttrain.common.batch import Sequence
from posttrain.data.chat import Chat, chat_of, unread
from posttrain.data.chat_template import ChatTemplate, closing_token, content_form, fitted
from posttrain.data.encoding import decoded_after, encoded, encoded_after
from posttrain.data.entries import Notes
from posttrain.data.left_out import left_out
from posttrain.data.rows import Row
from posttrain.data.turns import Cut, Cutter, Rewritten, Segment, trained_turns

Turns = Literal["all", "last", "split"]


@dataclass
class Rendered:
    """The sequences of a row, and what is read differently from how the row writes it."""

    sequences: list[Sequence]
    notes: Notes = field(default_factory=dict)


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
    turns: Turns | None = None
    """The assistant turns of a chat that are trained on, and whether each is a row of its own."""
    train_empty: bool = False
    """Whether a turn without text is trained on, as a bare stop token."""
    template: ChatTemplate | None = None

    def prompt_ids(self, row: Row) -> list[int]:
        """Return the ids before the completion, cut into segments as in training."""
        return self.prompt(row)[0]

    def prompt(self, row: Row) -> tuple[list[int], Notes]:
        """Return the ids before the completion, and what the row writes otherwise."""
        if not self.chat:
            return self._plain_prompt(row), unread(row)
        chat = self._chat_of(row, asked=True)
        ids = self._cutter.prompt_ids(chat.messages, chat)
        whole = self._template.text(chat.messages, chat.options, generation=True)
        return ids, chat.notes | left_out(chat, {}, whole)

    def training_sequence(self, row: Row) -> Sequence:
        """Return ids and mask of a row with `messages`, or with `prompt` and `completion`.

        Raise ValueError if its turns cannot be trained on as one sequence.
        """
        (sequence,) = self.training(row, one=True).sequences
        return sequence

    def training(self, row: Row, one: bool = False) -> Rendered:
        """Return the sequences of a row, one for each assistant turn if `turns` is split.

        By default there is one, unless the template renders earlier turns differently once later
        ones follow. There is always one if only `one` will do.
        """
        if not self.chat:
            prompt, text = self._plain_prompt(row), _text(row, "completion")
            completion = encoded_after(self.tokenizer, text, prompt)
            trained = bool(text) or self.train_empty
            segments = [(prompt, False), ([*completion, self.turn_end], trained)]
            return Rendered([_sequence(segments)], unread(row))
        chat = self._chat_of(row)
        turns = trained_turns(chat)
        chat = chat.until(turns[-1] + 1 if turns else len(chat.messages))
        cuts, notes = self._cuts(chat, turns, one)
        for cut in cuts:
            notes |= cut.notes
        texts = {i: text for cut in cuts for i, text in cut.texts.items()}
        whole = self._template.text(chat.messages, chat.options)
        notes = chat.notes | notes | left_out(chat, texts, whole)
        speaking = [cut for cut in cuts if cut.texts] or cuts[:1]
        return Rendered([_sequence(cut.segments) for cut in speaking], notes)

    def _cuts(self, chat: Chat, turns: list[int], one: bool) -> tuple[list[Cut], Notes]:
        """Return a chat in one sequence or in one for each of its trained `turns`."""
        if not turns:
            text = self._template.text(chat.messages, chat.options)
            return [Cut([(self._template.ids(text), False)])], {}
        notes: Notes = {}
        mode = "all" if one else self.turns
        if mode == "last" and len(turns) > 1:
            notes["the last assistant turn alone is trained on (data.turns: last)"] = ""
            turns = turns[-1:]
        if len(turns) > 1 and mode != "split":
            try:
                return [self._cutter.whole(chat, exact=not one)], notes
            except Rewritten as reason:
                if mode is not None:
                    remedy = "keep one assistant turn in each completion"
                    if not one:
                        remedy = "set data.turns: split or last"
                    raise ValueError(f"{reason}, so it is not one sequence; {remedy}") from None
                notes[reason.note] = reason.example
        return [self._cutter.one(chat, i) for i in turns], notes

    def step_sequence(self, row: Row, separator: str) -> Sequence:
        """Return the sequence of steps()."""
        return self.steps(row, separator).sequences[0]

    def steps(self, row: Row, separator: str) -> Rendered:
        """Return the ids of a `prompt` and its steps (`completions`), joined by `separator`.

        Each step is tokenised together with what closes it: the separator or, after the last, the
        stop token. The mask [T] is True only at the last token of each step.
        """
        *others, last = row["completions"]
        steps = [*(step + separator for step in others), last]
        if self.chat:
            others = {k: v for k, v in row.items() if k != "messages"}
            chat = self._chat_of(others | {"completion": "".join(steps)})
            cut = self._cutter.one(chat, len(chat.messages) - 1, steps)
            whole = self._template.text(chat.messages, chat.options)
            segments, notes = (
                cut.segments,
                chat.notes | cut.notes | left_out(chat, cut.texts, whole),
            )
        else:
            notes = unread(row)
            segments = [(self._plain_prompt(row), False)]
            for step in steps:
                segments.append((encoded_after(self.tokenizer, step, segments[-1][0]), True))
            segments.append(([*segments.pop()[0], self.turn_end], True))
        if not all(ids for ids, is_step in segments if is_step):
            raise ValueError("the tokenizer makes no token of one of the steps")
        lengths = itertools.accumulate(len(ids) for ids, _ in segments)
        ends = [length - 1 for length, (_, is_step) in zip(lengths, segments) if is_step]
        sequence = _sequence(segments)
        mask = torch.zeros_like(sequence.loss_mask)
        mask[ends] = True
        return Rendered([Sequence(sequence.input_ids, mask)], notes)

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of a whole text for language modelling, closed by the stop token."""
        ids = encoded(self.tokenizer, text)
        return ids if ids and ids[-1] in self.stop_token_ids else [*ids, self.turn_end]

    def decode(self, ids: list[int]) -> str:
        """Return the text of a completion, without its stop token."""
        if ids and ids[-1] in self.stop_token_ids:
            ids = ids[:-1]
        return str(self.tokenizer.decode(ids)) if self.chat else decoded_after(self.tokenizer, ids)

    @property
    def _template(self) -> ChatTemplate:
        return self.template or ChatTemplate(self.tokenizer)

    @property
    def _cutter(self) -> Cutter:
        return Cutter(self._template, self.stop_token_ids, self.train_empty)

    def _chat_of(self, row: Row, asked: bool = False) -> Chat:
        """Return the row's chat, in the form that the template takes."""
        chat = chat_of(row, self.system_prompt, asked)
        messages, notes = fitted(self._template, chat.messages, chat.options)
        return dataclasses.replace(chat, messages=messages, notes=chat.notes | notes)

    def _plain_prompt(self, row: Row) -> list[int]:
        prompt = _text(row, "prompt")
        if system := row.get("system") or self.system_prompt:
            prompt = f"{system}\n\n{prompt}"
        ids = encoded(self.tokenizer, prompt)
        if ids and ids[-1] == self.tokenizer.eos_token_id:  # by tokenizers that close every text
            ids = ids[:-1]
        if not ids:
            raise ValueError("the prompt is empty")
        return ids


def make_renderer(
    tokenizer: Any,
    template: str = "auto",
    system_prompt: str | None = None,
    generation_stops: list[int] | None = None,
    date: datetime.date | None = None,
    turns: Turns | None = None,
    train_empty: bool = False,
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
    chat_template = None
    if chat:
        chat_template = ChatTemplate(tokenizer, content_form(tokenizer), date)
        turn_end = closing_token(chat_template, stops)
        stops.add(turn_end)
    if turn_end is None:
        raise ValueError("the tokenizer has no EOS token: the model would never learn to stop")
    return Renderer(
        tokenizer,
        chat,
        tuple(sorted(stops)),
        turn_end,
        system_prompt,
        turns,
        train_empty,
        chat_template,
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


def _sequence(segments: list[Segment]) -> Sequence:
    ids = [token for segment, _ in segments for token in segment]
    mask = [trained for segment, trained in segments for _ in segment]
    if mask:
        mask[0] = False  # nothing precedes the first token, so it has no probability
    return Sequence(torch.tensor(ids), torch.tensor(mask, dtype=torch.bool))
