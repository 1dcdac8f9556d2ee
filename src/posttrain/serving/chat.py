"""`posttrain chat`: a conversation with a model, or with two of them, in the terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from posttrain.common.errors import SettingError
from posttrain.common.files import expanded
from posttrain.common.seeds import mix
from posttrain.common.suggest import did_you_mean
from posttrain.config.yaml_values import parse_value
from posttrain.data.entries import Message
from posttrain.data.render import Renderer
from posttrain.evaluation.loading import as_trained, load_renderer, load_sampler
from posttrain.model.kernels.quantized import dense
from posttrain.rollout.check import check_sampling
from posttrain.rollout.native.engine import Engine
from posttrain.rollout.native.row import Row
from posttrain.rollout.native.sampler import NativeSampler
from posttrain.rollout.sampler import SamplingParams
from posttrain.serving.page import shown
from posttrain.serving.text import TextStream, decoder
from posttrain.serving.votes import Votes, append, vote_row

HELP = """\
/system TEXT    the system prompt from now on; without TEXT, the one of the model's training
/set KEY=VALUE  temperature, top_p, top_k, max_new_tokens or seed
/better A|B     keep the better answer, of two models
/reset          begin anew
/save FILE      append the conversation to a .jsonl file, as a row with `messages`
/quit           end, as Ctrl-D does; Ctrl-C stops an answer
\"\"\"             begins and ends a message of several lines"""
COMMANDS = ("/system", "/set", "/better", "/reset", "/save", "/help", "/quit")
FENCE = '"""'


@dataclass(frozen=True)
class Speaker:
    """A model that answers."""

    name: str
    renderer: Renderer
    sampler: NativeSampler
    limit: int
    """The longest sequence in tokens that it takes."""


@dataclass(frozen=True)
class ChatSettings:
    """How answers are sampled."""

    max_new_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


@dataclass
class Answer:
    """An answer, whole or stopped."""

    text: str
    finish_reason: str


@dataclass
class Talk:
    """A conversation."""

    speakers: list[Speaker]
    settings: ChatSettings
    system: str | None
    say: Callable[[str], None]
    """Prints a piece of text."""
    votes: Votes | None = None
    messages: list[Message] = field(default_factory=list)
    open: list[Answer] = field(default_factory=list)
    """The answers of which one is to become part of the conversation."""
    question: tuple[list[Message], ChatSettings] | None = None
    """What the open answers were made with: all messages, and the settings."""

    def settled(self, place: int = 0) -> list[Message]:
        """Return the messages if that answer, should any be open, becomes one of them.

        A turn without text is left out."""
        if not self.open:
            return self.messages
        text = self.open[place].text
        answer: Message = {"role": "assistant", "content": text}
        if self.open[place].finish_reason != "stop":
            answer["train"] = False  # a model that is trained on it would learn to end there
        return [*self.messages, answer] if text else self.messages[:-1]

    @property
    def asked(self) -> list[Message]:
        """Return the conversation so far, with the system prompt, as models read it."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        turns = [{"role": m["role"], "content": m["content"]} for m in self.settled()]
        return [*system, *turns]


def load_speaker(
    model: str,
    template: str,
    system_prompt: str | None,
    device: str,
    dtype: str,
    quantization: str | None,
) -> Speaker:
    """Return a model to talk with; raise ValueError for one that writes no text."""
    template, system_prompt = as_trained(model, template, system_prompt)
    renderer, limit = load_renderer(model, template, system_prompt)
    sampler = load_sampler(model, device, dtype, 1, quantization)
    return Speaker(shown(model), renderer, sampler, limit)


def talk(conversation: Talk, lines: Iterator[str]) -> None:
    """Answer the lines that a user types until there are no more, or /quit."""
    say = conversation.say
    for speaker in conversation.speakers:
        if not speaker.renderer.chat:
            say(f"note: {speaker.name} has no chat template: each message is a prompt of its own\n")
    for line in messages_in(lines):
        try:
            if line.startswith("/"):
                if not obey(conversation, line):
                    return
            elif line.strip():
                respond(conversation, line)
        except ValueError as error:
            say(f"error: {' '.join(str(error).split())}\n")


def messages_in(lines: Iterator[str]) -> Iterator[str]:
    """Yield lines, those between two fences as one."""
    for line in lines:
        if not line.startswith(FENCE):
            yield line
            continue
        rest, parts = line.removeprefix(FENCE), list[str]()
        while not rest.rstrip().endswith(FENCE):
            parts.append(rest)
            following = next(lines, None)
            if following is None:
                break
            rest = following
        else:
            parts.append(rest.rstrip().removesuffix(FENCE))
        yield "\n".join(parts).strip("\n")


def obey(conversation: Talk, line: str) -> bool:
    """Follow a command, and return whether the conversation goes on; raise ValueError if wrong."""
    command, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    match command:
        case "/quit" | "/exit":
            return False
        case "/help":
            conversation.say(f"{HELP}\n")
        case "/system":
            conversation.system = rest or None
        case "/reset":
            conversation.messages, conversation.open = [], []
        case "/set":
            conversation.settings = changed(conversation.settings, rest)
        case "/better":
            conversation.say(prefer(conversation, rest))
        case "/save":
            save(conversation, rest)
            conversation.say(f"saved to {rest}\n")
        case _:
            known = did_you_mean(command, COMMANDS)
            raise ValueError(f"no command {command}; {known} (/help lists them)")
    return True


def changed(settings: ChatSettings, text: str) -> ChatSettings:
    """Return settings with KEY=VALUE applied; raise ValueError for what cannot be."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or key not in vars(settings):
        known = ", ".join(vars(settings))
        raise ValueError(f"/set takes KEY=VALUE, and the keys are {known}; got {text!r}")
    kind, parsed = type(getattr(settings, key)), parse_value(text, value)
    if type(parsed) not in (int, kind) or isinstance(parsed, bool):
        raise ValueError(f"{key}: expected a number, got {value!r}")
    new = replace(settings, **{key: kind(parsed)})
    check_sampling(new.max_new_tokens, new.temperature, new.top_p, new.top_k)
    return new


def respond(conversation: Talk, text: str) -> None:
    """Let each model answer a message, and print the answers as they come."""
    asked = [*conversation.asked, {"role": "user", "content": text}]
    prompts = [prompt_of(speaker, asked, conversation) for speaker in conversation.speakers]
    settle(conversation)  # only now, so that a message that is refused takes no choice away
    conversation.question = asked, conversation.settings
    answers = []
    for letter, speaker, ids in zip("AB", conversation.speakers, prompts):
        if len(prompts) > 1:
            conversation.say(f"[{letter}: {speaker.name}]\n")
        answers.append(_write(conversation, speaker, ids))
    conversation.messages.append({"role": "user", "content": text})
    conversation.open = answers
    if len(prompts) > 1:
        conversation.say("/better A or /better B keeps the better answer; else A's is kept\n")


def _write(conversation: Talk, speaker: Speaker, ids: list[int]) -> Answer:
    turn = sum(message["role"] == "user" for message in conversation.messages)
    answer = Answer("", "stopped")
    try:
        for piece, reason in stream(speaker, ids, conversation.settings, turn):
            answer.text += piece
            answer.finish_reason = reason or answer.finish_reason
            conversation.say(plain(piece))
    except KeyboardInterrupt:
        pass
    ends = {"stopped": " [stopped]", "length": f" [cut at {conversation.settings.max_new_tokens}]"}
    conversation.say(f"{ends.get(answer.finish_reason, '')}\n")
    return answer


def prompt_of(speaker: Speaker, messages: list[Message], conversation: Talk) -> list[int]:
    """Return the ids of a conversation; raise ValueError if no room is left for an answer."""
    row: dict[str, Any] = {"messages": messages}
    if not speaker.renderer.chat:
        row = {"prompt": messages[-1]["content"], "system": conversation.system}
    ids = speaker.renderer.prompt_ids(row)
    if len(ids) >= speaker.limit:
        raise ValueError(
            f"the conversation has {len(ids)} tokens, and {speaker.name} takes {speaker.limit}: "
            "begin anew with /reset"
        )
    return ids


def stream(
    speaker: Speaker, ids: list[int], settings: ChatSettings, turn: int
) -> Iterator[tuple[str, str | None]]:
    """Yield pieces of an answer, the last with why it ended."""
    room = min(settings.max_new_tokens, speaker.limit - len(ids))
    params = SamplingParams(
        room,
        speaker.renderer.stop_token_ids,
        settings.temperature,
        settings.top_p,
        settings.top_k,
    )
    text, seed = TextStream(decoder(speaker.renderer)), mix(settings.seed, turn)
    policy = speaker.sampler.policy.eval()
    row, pushed = Row(ids, params, seed), 0
    with torch.no_grad(), policy.precision(), dense(policy, policy.autocast or torch.float32):
        if not speaker.sampler.shares_cache(len(ids) + room):
            (whole,) = speaker.sampler.generate([ids], params, [seed])
            yield speaker.renderer.decode(whole.response_ids), whole.finish_reason
            return
        engine = Engine(policy, 1, len(ids) + room)
        engine.add([row])
        while row.finish_reason is None:
            engine.step()
            engine.collect()
            for token in row.response_ids[pushed:]:
                if token not in row.stops:
                    text.push(token)
            pushed = len(row.response_ids)
            yield text.new(row.finish_reason is not None), row.finish_reason


def plain(text: str) -> str:
    """Return text that moves no cursor and changes no terminal: controls become signs."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c
        for c in text
    )


def settle(conversation: Talk, place: int = 0) -> None:
    """Make one of the open answers part of the conversation; leave a turn without text out."""
    conversation.messages, conversation.open = conversation.settled(place), []


def prefer(conversation: Talk, which: str) -> str:
    """Keep the better of two answers, write the vote, and return what to print."""
    if len(conversation.open) != 2:
        raise ValueError(
            "/better chooses between the last answers of two models, which are not there"
        )
    if which.upper() not in ("A", "B"):
        raise ValueError(f"/better takes A or B, got {which!r}")
    place = "AB".index(which.upper())
    words = "kept, and not saved: start with the option votes to save such choices\n"
    if conversation.votes is not None:
        sides = [
            (speaker.name, answer.text, answer.finish_reason)
            for speaker, answer in zip(conversation.speakers, conversation.open, strict=True)
        ]
        better, worse = sides[place], sides[1 - place]
        assert conversation.question is not None
        asked, settings = conversation.question
        renderer = conversation.speakers[place].renderer
        row = vote_row(asked, better, worse, vars(settings), renderer)
        count = conversation.votes.add(row)
        words = f"saved as row {count} of {conversation.votes.file}\n"
    settle(conversation, place)
    return words


def save(conversation: Talk, name: str) -> None:
    """Settle the conversation and append it to a JSONL file; raise ValueError if that cannot be."""
    if not name.endswith(".jsonl"):
        raise ValueError(f"/save takes the name of a .jsonl file, got {name!r}")
    if not conversation.settled():
        raise ValueError("nothing has been said that could be saved")
    file = Path(expanded(name))
    prompt = conversation.system
    if prompt is None:
        prompt = conversation.speakers[0].renderer.system_prompt
    system = [{"role": "system", "content": prompt}] if prompt else []
    try:
        append(file, {"messages": [*system, *conversation.settled()]})
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror or error}") from None
    settle(conversation)


def typed(prompt: str) -> Iterator[str]:
    """Yield what a user types, line by line, until the end of the input."""
    while True:
        try:
            yield input(prompt)
        except (EOFError, KeyboardInterrupt):
            print()
            return


def chat(
    models: list[str],
    settings: ChatSettings,
    system_prompt: str | None,
    template: str,
    machine: tuple[str, str, str | None],
    votes: Path | None,
    interactive: bool,
) -> None:
    """Talk with one or two models until the input ends.

    `machine` is device, dtype and quantisation. An empty system prompt is none."""
    check_sampling(settings.max_new_tokens, settings.temperature, settings.top_p, settings.top_k)
    if votes is not None and len(models) < 2:
        raise SettingError("votes", "votes are between two models: name a second one")
    kept = None if votes is None else Votes(votes)
    # a prompt that is given is a message of the conversation, and is saved with it
    own = "" if system_prompt == "" else None
    speakers = [load_speaker(model, template, own, *machine) for model in models]
    conversation = Talk(speakers, settings, system_prompt or None, _print, kept)
    if interactive:
        print("/help lists the commands; Ctrl-C stops an answer, Ctrl-D ends")
    talk(conversation, typed("> " if interactive else ""))


def _print(text: str) -> None:
    print(text, end="", flush=True)
