"""`POST /v1/completions` and `POST /v1/chat/completions`."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from typing import Any

from posttrain.common.seeds import mix
from posttrain.data.encoding import encoded
from posttrain.data.render import Renderer
from posttrain.rollout.native.row import Row
from posttrain.rollout.sampler import SamplingParams
from posttrain.serving.answers import (
    Choice,
    Head,
    Part,
    Wanted,
    choice_json,
    echoed,
    joined,
    usage_json,
)
from posttrain.serving.bodies import ChatBody, CompletionBody, Sampled, read_body, short
from posttrain.serving.errors import Gone, Refusal
from posttrain.serving.http import answer, json_answer, read, stream
from posttrain.serving.service import Prompt, Service
from posttrain.serving.text import TextStream

DEFAULT_TOKENS = 16
"""max_tokens of /v1/completions, OpenAI's default; a chat's is what the model has room for."""

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def add_to(app: Any, service: Service) -> None:
    """Add the two routes."""

    async def completions(request: Any) -> Any:
        body = read_body(CompletionBody, await read(request, service.bounds.max_body))
        prompts = await service.in_text(completion_prompts, service, body)
        wanted = Wanted(
            chat=False,
            echo=bool(body.echo),
            logprobs=body.logprobs is not None,
            top=body.logprobs or 0,
            token_ids=bool(body.return_token_ids),
            ids_for_tokens=bool(body.return_tokens_as_token_ids),
        )
        limit = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
        return await respond(service, request, body, prompts, wanted, limit)

    async def chat(request: Any) -> Any:
        body = read_body(ChatBody, await read(request, service.bounds.max_body))
        prompt = await service.in_text(chat_prompt, service, body)
        if body.top_logprobs and not body.logprobs:
            raise Refusal("top_logprobs needs logprobs: true", param="top_logprobs")
        wanted = Wanted(
            chat=True,
            logprobs=bool(body.logprobs),
            top=body.top_logprobs or 0,
            token_ids=bool(body.return_token_ids),
            ids_for_tokens=bool(body.return_tokens_as_token_ids),
        )
        limit = body.max_completion_tokens
        limit = body.max_tokens if limit is None else limit
        return await respond(service, request, body, [prompt], wanted, limit)

    app.add_api_route("/v1/completions", answer(service, completions), methods=["POST"])
    app.add_api_route("/v1/chat/completions", answer(service, chat), methods=["POST"])


def completion_prompts(service: Service, body: CompletionBody) -> list[Prompt]:
    """Return the prompts of a request: texts as they are, or token ids."""
    renderer, given = service.renderer_of(body.model), body.prompt
    many: list[Any] = (
        [given] if isinstance(given, str) or (given and type(given[0]) is int) else list(given)
    )
    if not many:
        raise Refusal("prompt: expected at least one prompt, got none", param="prompt")
    service.check_number(len(many) * (body.n or 1))
    prompts = []
    for prompt in many:
        if not isinstance(prompt, str):
            service.check_ids(prompt)
            text = str(renderer.tokenizer.decode(prompt)) if body.echo else ""
            prompts.append(Prompt(list(prompt), text))
            continue
        service.check_text(prompt, "prompt")
        if renderer.chat:
            ids = encoded(renderer.tokenizer, prompt)
            bare = encoded(renderer.tokenizer, prompt, add_special_tokens=False)
            # without the end that the tokenizer adds, with one that the prompt holds
            ended = ids[-1 - len(bare) :] == [*bare, renderer.turn_end]
            prompts.append(Prompt(ids[:-1] if ended else ids, prompt))
        else:  # the model was trained on bare text, perhaps with a system prompt
            prompts.append(Prompt(rendered(renderer, {"prompt": prompt}, "prompt"), prompt))
    return prompts


def chat_prompt(service: Service, body: ChatBody) -> Prompt:
    """Return the prompt of a chat, rendered as in training; raise Refusal if it cannot be."""
    renderer = service.renderer_of(body.model)
    if not renderer.chat:
        raise Refusal(
            f"{body.model or service.name} has no chat template: use /v1/completions",
            param="messages",
        )
    for place, message in enumerate(body.messages):
        if (role := message.get("role")) not in ROLES:
            raise Refusal(
                f"messages.{place}: the role must be one of {', '.join(ROLES)}; got {short(role)}",
                param="messages",
            )
        # templates leave thoughts of earlier answers out
        if role != "assistant" and isinstance(text := message.get("content"), str):
            service.check_text(text, "messages")
    if body.messages[-1]["role"] == "assistant":
        raise Refusal(
            "messages: the last one is the assistant's: end with one to answer", param="messages"
        )
    row: dict[str, Any] = {"messages": body.messages}
    row |= {} if body.tools is None else {"tools": body.tools}
    kwargs = body.chat_template_kwargs
    row |= {} if kwargs is None else {"chat_template_kwargs": kwargs}
    return Prompt(rendered(renderer, row, "messages"))


def rendered(renderer: Renderer, row: dict[str, Any], param: str) -> list[int]:
    """Return the ids of a row's prompt as in training; raise Refusal if there are none."""
    try:
        return renderer.prompt_ids(row)
    except ValueError as error:
        raise Refusal(f"{param}: {error}", param=param) from None
    except Exception as error:  # of a template that meets what its author did not think of
        problem = f"the chat template fails: {type(error).__name__}: {error}"
        raise Refusal(f"{param}: {problem}", param=param) from None


def rows_of(
    service: Service, body: Sampled, prompts: list[Prompt], wanted: Wanted, limit: int | None
) -> list[Row]:
    """Return the rows of a request, n for each prompt; raise Refusal for what does not fit."""
    room = service.bounds.max_length
    adapter = service.adapter_of(body.model)
    seed = secrets.randbits(63) if body.seed is None else body.seed
    if wanted.echo and wanted.logprobs and service.worker.policy.edited is not None:
        raise Refusal(
            "echo: the model edits the states of its prompts (ReFT), so that log-probs of a prompt "
            "would not be those of a completion: score with `posttrain eval`",
            param="echo",
        )
    stops = set() if body.ignore_eos else set(service.renderer_of(body.model).stop_token_ids)
    stops |= set(body.stop_token_ids or ())
    rows = []
    for prompt in prompts:
        length = len(prompt.ids)
        if not prompt.ids:
            raise Refusal("prompt: the tokenizer makes no token of it", param="prompt")
        service.check_ids(prompt.ids)
        new = room - length if limit is None else limit
        if length + new > room:
            raise Refusal(
                f"the prompt has {length} tokens and max_tokens is {new}, but the model takes "
                f"{room}: shorten the prompt or lower max_tokens",
                param="max_tokens",
            )
        if new < 1 and not wanted.echo:
            raise Refusal(
                "max_tokens: nothing would be sampled: expected at least 1, or echo: true and a "
                "prompt shorter than the model takes",
                param="max_tokens",
            )
        params = SamplingParams(
            new,
            tuple(sorted(stops)),
            1.0 if body.temperature is None else body.temperature,
            1.0 if body.top_p is None else body.top_p,
            max(0, body.top_k or 0),
            body.min_p or 0.0,
        )
        for number in range(body.n or 1):
            rows.append(
                Row(
                    prompt.ids,
                    params,
                    seed if number == 0 else mix(seed, number),
                    None if adapter is None else adapter.key,
                    top=min(wanted.top, service.vocab_size),
                    scored=wanted.echo and wanted.logprobs,
                )
            )
    return rows


async def respond(
    service: Service,
    request: Any,
    body: Sampled,
    prompts: list[Prompt],
    wanted: Wanted,
    limit: int | None,
) -> Any:
    """Sample, and return the answer in one piece or as a stream."""
    rows = rows_of(service, body, prompts, wanted, limit)
    decode = service.decoders[bool(body.skip_special_tokens)]
    choices = [Choice(row, TextStream(decode, body.stops)) for row in rows]
    n = body.n or 1
    texts = [prompt.text for prompt in prompts for _ in range(n)]
    head = Head(wanted.chat, body.model or service.name)
    service.meters.read.inc(sum(len(prompt.ids) for prompt in prompts))
    usage = bool(body.stream_options and body.stream_options.include_usage)
    parts = sampled(service, request, choices, bool(body.stream or body.stops))
    if body.stream:
        if body.stream_options and body.stream_options.continuous_usage_stats:
            raise Refusal("stream_options.continuous_usage_stats is not supported: leave it out")
        # the first part is awaited here, so that a refusal has its status
        first = await anext(parts, None)
        events = chunks(service, parts, first, choices, texts, head, wanted, usage, n)
        return stream(events)
    async for _ in parts:
        pass
    found = []
    for index, (choice, text) in enumerate(zip(choices, texts)):
        part = choice.whole()
        part = joined(echoed(choice.row, text), part) if wanted.echo else part
        ids = choice.row.prompt_ids
        found.append(choice_json(index, part, wanted, service.piece, 0, ids) | choice.labels())
    tree = head.object(found)
    tree["usage"] = usage_of(choices, n)
    if service.worker.version is not None:
        tree["weight_version"] = service.worker.version
    return json_answer(tree)


def usage_of(choices: list[Choice], n: int) -> dict[str, int]:
    """Return the usage of a request; a prompt counts once for its `n` completions."""
    read = sum(len(choice.row.prompt_ids) for choice in choices[::n])
    return usage_json(read, sum(len(choice.ids) for choice in choices))


async def sampled(
    service: Service, request: Any, choices: list[Choice], live: bool
) -> AsyncIterator[tuple[int, Part]]:
    """Yield (index, part) as the choices grow, until all have ended; raise Gone if nobody waits."""
    async with AsyncExitStack() as stack:
        rows = [choice.row for choice in choices]
        job, news = await stack.enter_async_context(service.sampling(rows, live))
        watch = asyncio.create_task(_watch(request, job))
        stack.callback(watch.cancel)
        left = len(choices)
        async for item in news:
            choice = choices[item.row]
            if choice.finish_reason is not None:
                continue  # it ended at a stop string, and its row a little later
            part = choice.take(item)
            if choice.finish_reason is not None:
                left -= 1
                if item.finish_reason is None:
                    service.worker.cancel_row(job, item.row)
            yield item.row, part
            if not left:
                return


async def _watch(request: Any, job: Any) -> None:
    """End a job once its client has left."""
    with suppress(asyncio.CancelledError):
        while (await request.receive())["type"] != "http.disconnect":
            pass
        job.news.put_nowait(Gone())


async def chunks(
    service: Service,
    parts: AsyncIterator[tuple[int, Part]],
    first: tuple[int, Part] | None,
    choices: list[Choice],
    texts: list[str],
    head: Head,
    wanted: Wanted,
    usage: bool,
    n: int,
) -> AsyncIterator[str]:
    """Yield the events of a stream of `n` completions of each prompt."""

    def event(found: list[dict[str, Any]]) -> str:
        return f"data: {json.dumps(head.object(found, chunk=True), ensure_ascii=False)}\n\n"

    begun: set[int] = set()
    try:
        while first is not None:
            index, part = first
            choice = choices[index]
            ids = None
            if index not in begun:
                begun.add(index)
                ids = choice.row.prompt_ids
                if wanted.chat:
                    role = {"role": "assistant", "content": ""}
                    yield event([{"index": index, "delta": role, "finish_reason": None}])
                if wanted.echo:
                    part = joined(echoed(choice.row, texts[index]), part)
            if (
                part.text
                or part.finish_reason
                or ((wanted.logprobs or wanted.token_ids) and part.ids)
            ):
                offset = choice.shown
                choice.shown += sum(len(service.piece(token)) for token in part.ids)
                tree = choice_json(index, part, wanted, service.piece, offset, ids, chunk=True)
                yield event([tree | choice.labels() if part.finish_reason else tree])
            first = await anext(parts, None)
        if usage:
            tree = head.object([], chunk=True) | {"usage": usage_of(choices, n)}
            yield f"data: {json.dumps(tree)}\n\n"
    except Refusal as refusal:  # too late for a status
        yield f"data: {json.dumps(refusal.body())}\n\n"
    except (Gone, GeneratorExit, asyncio.CancelledError) as error:  # who of us noticed it first
        service.meters.left.inc()
        if not isinstance(error, Gone):
            raise
        return
    finally:
        await parts.aclose()  # type: ignore[attr-defined]
    yield "data: [DONE]\n\n"
