"""A chat cut at the edges of its assistant turns: one sequence of all turns, or one of each turn.

A template may render a turn differently once later turns follow: it drops earlier reasoning, or
closes only the last turn. Such a chat has no single text of which every turn's prompt is a part, so
each turn is rendered as it was at its time, by itself.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

from posttrain.data.chat import Chat, is_silent
from posttrain.data.chat_template import PROBE, ChatTemplate
from posttrain.data.entries import Message, Notes, text_of

Segment = tuple[list[int], bool]
"""Token ids, and whether they are trained on."""
CUT_REASONING = (
    "the template leaves out what its generation prompt begins: the completion is written after "
    "the generation prompt as it is"
)
OTHER_PROMPT = (
    "the template renders the prompt differently once the answer follows: it is rendered as the "
    "sampler gets it"
)
AFTER_BLOCK = (
    "the generation prompt ends with a block that the template does not write before answers: the "
    "answer follows the prompt as the sampler gets it"
)
REWRITTEN = "the chat template renders earlier turns differently once later ones follow"
JOINED = "the tokenizer joins the end of a turn's prompt with the beginning of the turn"
CLOSED_BLOCK = re.compile(r"(?:</[\w|]+>|<\w+\|>|\[/\w+\])\s*$")
"""The end of a block such as <think></think> or <|channel>thought<channel|>."""
MIN_SHARED = 4
"""Characters before a turn that its two renderings must share, if there is no generation prompt."""
EMPTY_TURN = "assistant turns without text are context (data.train_empty_turns trains on them)"
UNWRITTEN_TURN = "assistant turns of which the template writes nothing are context"


class Rewritten(ValueError):
    """A chat that is no single sequence in which each turn follows what the sampler gets."""

    def __init__(self, message: str, example: str, note: str = REWRITTEN) -> None:
        super().__init__(message)
        self.example = example
        self.note = f"{note}: one row for each assistant turn (data.turns: split)"


@dataclass
class Cut:
    """A chat in segments."""

    segments: list[Segment]
    texts: dict[int, str] = field(default_factory=dict)
    """The text of each trained turn by its index."""
    notes: Notes = field(default_factory=dict)

    @property
    def last(self) -> list[int]:
        """The ids of the last segment that has any."""
        return next((ids for ids, _ in reversed(self.segments) if ids), [])


@dataclass(frozen=True)
class Cutter:
    """Cuts chats with a template, its stop tokens, and a rule for empty turns."""

    template: ChatTemplate
    stops: tuple[int, ...]
    train_empty: bool = False

    def whole(self, chat: Chat, generation: bool = False, exact: bool = True) -> Cut:
        """Return one sequence of the chat, cut at all assistant turns.

        Raise Rewritten if a turn's prompt or the turn itself is not a part of the whole text, or if
        the ids are not those of the whole text; unless it must be `exact`, a note says the latter.
        """
        messages = chat.messages
        full = self.template.text(messages, chat.options, generation)
        cut = Cut([])
        done = 0
        for i in _assistants(messages):
            start = self._prompt_end(full, chat, i)
            end = self._turn_end(full, chat, i, start)
            cut.segments.append((self.template.ids(full[done:start], cut.last), False))
            self._add_turn(cut, full[start:end], chat, i)
            done = end
        if generation:
            cut.segments.append((self.template.ids(full[done:], cut.last), False))
        joined, direct = [x for ids, _ in cut.segments for x in ids], self.template.ids(full[:done])
        if joined != (self.template.ids(full) if generation else direct):
            at = next((k for k, (a, b) in enumerate(zip(joined, direct)) if a != b), len(direct))
            example = f"{self.template.tokenizer.decode(direct[at : at + 1])!r} is one token"
            if exact:
                raise Rewritten(f"{JOINED} ({example})", example, JOINED)
            cut.notes[f"{JOINED}, which are tokenised apart"] = example
        return cut

    def one(self, chat: Chat, i: int, steps: SequenceOf[str] = ()) -> Cut:
        """Return the sequence of turn `i` after its prompt, rendered as at its time."""
        messages, options = chat.messages, chat.options
        prompt = self.template.text(messages[:i], options, generation=True)
        cut = Cut([(self.prompt_ids(messages[:i], chat), False)])
        full = self.template.text(messages[: i + 1], options)
        if full.startswith(prompt):
            turn = full[len(prompt) :]
        elif (start := self._own_start(prompt, full, chat, i)) is not None:
            turn = full[start:]
            cut.notes[OTHER_PROMPT] = self._rewritten(full, prompt, chat, i).example
        elif header := self._before_block(prompt, full, chat, i):
            turn = full[len(header) :]
            cut.notes[AFTER_BLOCK] = repr(prompt[len(header) :][-40:])
        elif is_silent(messages[i]) and not self.train_empty:
            cut.notes[EMPTY_TURN] = f"turn {i + 1}"
            return cut
        else:
            turn = self._continued(prompt, full, chat, i)
            cut.notes[CUT_REASONING] = f"the generation prompt ends with {prompt[-12:]!r}"
        self._add_turn(cut, turn, chat, i, steps)
        return cut

    def prompt_ids(self, messages: list[Message], chat: Chat) -> list[int]:
        """Return the ids that the sampler gets, cut as in training if the template allows it."""
        if any(_assistants(messages)):
            context = Chat(messages, [False] * len(messages), chat.options, {})
            try:
                segments = self.whole(context, generation=True).segments
            except ValueError:
                # a template that drops reasoning from earlier turns: such a chat is never trained
                # on as one sequence, so there are no training segments to agree with
                pass
            else:
                return [token for ids, _ in segments for token in ids]
        return self.template.ids(self.template.text(messages, chat.options, generation=True))

    def _add_turn(
        self, cut: Cut, text: str, chat: Chat, i: int, steps: SequenceOf[str] = ()
    ) -> None:
        """Add the segments of a turn's text: its steps, and what follows its stop token."""
        last, pieces = cut.last, []
        for piece in _pieces(text, steps):
            pieces.append(self.template.ids(piece, last))
            last = pieces[-1] or last
        *closed, turn = pieces
        stop = self._stop(turn)
        if stop is None:
            tokens = self.template.tokenizer.convert_ids_to_tokens(list(self.stops))
            raise ValueError(
                f"the chat template closes an assistant turn without a stop token ({tokens}): "
                "the model would never learn to stop"
            )
        trained = chat.trained[i]
        silent = not closed and (is_silent(chat.messages[i]) or set(turn[:stop]) <= {*self.stops})
        if trained and silent and not self.train_empty:
            trained = False
            empty = EMPTY_TURN if is_silent(chat.messages[i]) else UNWRITTEN_TURN
            cut.notes[empty] = f"turn {i + 1}"
        if trained:
            cut.texts[i] = text
        # what the template writes after the stop token is not sampled
        cut.segments += [(ids, trained) for ids in closed]
        cut.segments += [(turn[:stop], trained), (turn[stop:], False)]

    def _stop(self, turn: list[int]) -> int | None:
        """Return the length of a turn with its stop token, the first of those that close it."""
        places = [k for k, token in enumerate(turn) if token in self.stops]
        if not places:
            return None
        first = places[-1]
        for place in reversed(places[:-1]):
            between = turn[place + 1 : first]
            if between and self.template.tokenizer.decode(between).strip():
                break
            first = place
        return first + 1

    def _prompt_end(self, full: str, chat: Chat, i: int) -> int:
        prompt = self.template.text(chat.messages[:i], chat.options, generation=True)
        if not full.startswith(prompt):
            raise self._rewritten(full, prompt, chat, i)
        return len(prompt)

    def _turn_end(self, full: str, chat: Chat, i: int, start: int) -> int:
        """Return where turn `i` ends in the whole text.

        Some templates close the whole text, but not each turn, with EOS.
        """
        alone = self.template.text(chat.messages[: i + 1], chat.options)
        if full.startswith(alone):
            return len(alone)
        for closing in self._closings():
            shorter = alone.rstrip().removesuffix(closing)
            if shorter != alone.rstrip() and full.startswith(shorter):
                turn = self.template.ids(full[start : len(shorter)])  # its stop token alone counts
                if self._stop(turn) is not None:
                    return len(shorter)
        raise self._rewritten(full, alone, chat, i)

    def _closings(self) -> list[str]:
        return [str(t) for t in self.template.tokenizer.convert_ids_to_tokens(list(self.stops))]

    def _own_start(self, prompt: str, full: str, chat: Chat, i: int) -> int | None:
        """Return where turn `i` itself begins, if its prompt is rendered otherwise in `full`.

        Mistral's template puts the system text into the last user turn if that is last. None if
        what precedes the turn does not end with the generation prompt.
        """
        messages, options = chat.messages[:i], chat.options
        before = self._before_answer(chat, i)
        if not full.startswith(before):
            return None
        earlier = self.template.text(messages, options)
        header = prompt.removeprefix(earlier)
        # an earlier turn may hold the same text
        if header.strip() and header != prompt and before.count(header) > earlier.count(header):
            return before.rindex(header) + len(header)
        for end in (len(before), len(before.rstrip())):
            shared = _common(before[:end][::-1], prompt[::-1])
            if shared >= max(MIN_SHARED, len(header) if header != prompt else 0):
                return end
        return None

    def _before_block(self, prompt: str, full: str, chat: Chat, i: int) -> str:
        """Return what `full` has before turn `i`, if the prompt is that and a closed block.

        Gemma 4's prompt ends with an empty thought, which its template does not write elsewhere.
        Return an empty text otherwise.
        """
        before = self._before_answer(chat, i)
        if not (full.startswith(before) and prompt.startswith(before)):
            return ""
        return before if CLOSED_BLOCK.search(prompt[len(before) :]) else ""

    def _before_answer(self, chat: Chat, i: int) -> str:
        """Return what the template writes before the answer of turn `i`."""
        probe = [*chat.messages[:i], {"role": "assistant", "content": PROBE}]
        return self.template.text(probe, chat.options).partition(PROBE)[0]

    def _continued(self, prompt: str, full: str, chat: Chat, i: int) -> str:
        """Return a turn that continues a generation prompt which its own rendering lacks.

        DeepSeek-R1's prompt ends with <think>, and its template cuts the reasoning out of answers.
        Raise ValueError unless the content begins with what the prompt ends with.
        """
        message = chat.messages[i]
        shared = _common(prompt, full)
        content, begun = text_of(message).lstrip(), prompt.rstrip()
        overlap = next(
            (n for n in range(min(len(content), len(begun)), 0, -1) if begun.endswith(content[:n])),
            0,
        )
        if not overlap or len(begun) - overlap > shared or "tool_calls" in message:
            at = prompt.rfind("<", 0, shared) if prompt[:shared].endswith(">") else shared
            at = _tag_start(prompt, max(at, shared - 20))
            raise ValueError(
                f"turn {i + 1} (assistant): the chat template's generation prompt ends with "
                f"{prompt[at:][-40:]!r}, but this answer is written as {full[at : at + 40]!r}: "
                "begin the answer with it, give chat_template_kwargs with which both agree (such "
                "as enable_thinking), or use a template that keeps it"
            )
        rest = content[overlap:]
        if len(begun) < len(prompt):
            rest = rest.lstrip()
        probe = [*chat.messages[:i], {"role": "assistant", "content": PROBE}]
        return rest + self.template.text(probe, chat.options).rpartition(PROBE)[2]

    def _rewritten(self, full: str, alone: str, chat: Chat, i: int) -> Rewritten:
        """Return the error that names the turn and the text that differ."""
        at, turn = _common(alone, full), i
        for j in range(i):
            try:
                text = self.template.text(chat.messages[: j + 1], chat.options)
            except ValueError:  # a template may refuse a chat that is not yet complete
                continue
            if _common(text, alone) > at:
                turn = j
                break
        at = _tag_start(alone, at)
        role = chat.messages[turn]["role"]
        place = f"turn {turn + 1} ({role})"
        texts = f"{alone[at : at + 40]!r} at first, then {full[at : at + 40]!r}"
        return Rewritten(
            f"the chat template renders {place} differently once later turns follow: {texts}",
            f"{place} is {texts}",
        )


def trained_turns(chat: Chat) -> list[int]:
    """Return the indices of the trained turns; raise ValueError if there can be none."""
    if not any(_assistants(chat.messages)):
        first = bool(chat.messages) and chat.messages[0]["role"] == "assistant"
        if first:
            raise ValueError("the chat begins with the assistant: that turn has no prompt")
        roles = ", ".join(dict.fromkeys(str(m["role"]) for m in chat.messages)) or "none"
        raise ValueError(f"no assistant message to train on; the roles are {roles}")
    return [i for i, trained in enumerate(chat.trained) if trained]


def _assistants(messages: list[Message]) -> list[int]:
    """Return the indices of the assistant turns that have a prompt."""
    return [i for i, m in enumerate(messages) if m["role"] == "assistant" and i > 0]


def _common(a: str, b: str) -> int:
    """Return the number of characters that two texts begin with alike."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b)))


def _tag_start(text: str, at: int) -> int:
    """Return the start of the tag that position `at` is in; `at` itself outside of tags."""
    begin = text.rfind("<", 0, at + 1)
    return begin if begin >= 0 and ">" not in text[begin:at] and at - begin < 20 else at


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
