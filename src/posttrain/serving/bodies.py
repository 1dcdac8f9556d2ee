"""The bodies of requests: every field that changes the answer is obeyed or refused.

Names and defaults are OpenAI's, and vLLM's where OpenAI has none.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from posttrain.common.suggest import did_you_mean
from posttrain.rollout.check import drawable
from posttrain.serving.errors import Refusal

Body = TypeVar("Body", bound=BaseModel)
Item = TypeVar("Item")

MOST_NAMES = 10_000  # in one object
MOST_PARTS = 100_000  # lists and objects; millions of them stop the server for a minute
MOST_TOP = 20  # alternatives of a token
MOST_STOPS = 16
MOST_CHOICES = 128

Many = Annotated[list[Item], Field(fail_fast=True)]
"""A list of which one wrong item is reported, since millions of them would fill the memory."""
TokenId = Annotated[int, Field(ge=0, lt=2**63)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]
Text = Annotated[str, Field(min_length=1)]
Temperature = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False), AfterValidator(drawable)]

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "best_of": (1,),
    "suffix": ("",),
    "use_beam_search": (False,),
    "min_tokens": (0,),
    "include_stop_str_in_output": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "modalities": (["text"],),
    "store": (False,),
    "spaces_between_special_tokens": (True,),
}
"""Fields that are taken only if they change nothing, with the values that do not."""
HARMLESS = ("user", "metadata", "service_tier", "priority", "request_id", "safety_identifier")
"""Fields that are not read, since no answer depends on them."""


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Sampled(BaseModel):
    """The fields that completions and chats share."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    seed: Seed | None = None
    stop: Text | Annotated[Many[Text], Field(max_length=MOST_STOPS)] | None = None
    stop_token_ids: Annotated[Many[TokenId], Field(max_length=256)] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None

    @property
    def stops(self) -> list[str]:
        """Return the stop strings."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class CompletionBody(Sampled):
    """A request to /v1/completions."""

    prompt: Text | Many[TokenId] | Many[Text] | Many[Many[TokenId]]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None


class ChatBody(Sampled):
    """A request to /v1/chat/completions."""

    messages: Annotated[Many[dict[str, Any]], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    tools: Many[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class AdapterBody(BaseModel):
    """A request to load or unload an adapter."""

    model_config = ConfigDict(extra="forbid", strict=True)

    lora_name: Annotated[str, Field(min_length=1, max_length=256)]
    lora_path: Text | None = None
    lora_int_id: int | None = None


def read_body(kind: type[Body], data: bytes) -> Body:
    """Return the body in JSON text; raise Refusal for anything else."""
    tree = read_json(data)
    for name, neutral in NEUTRAL.items():
        if (value := tree.pop(name, None)) is not None and value not in neutral:
            raise Refusal(
                f"{name} is not supported: leave it out, or send {json.dumps(neutral[0])}; "
                f"got {short(value)}",
                param=name,
            )
    for name in HARMLESS:
        tree.pop(name, None)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise explained(error, kind) from None


def read_json(data: bytes) -> dict[str, Any]:
    """Return a JSON object; raise Refusal for anything else."""

    def refuse(name: str) -> None:
        raise Refusal(f"the body holds {name}, which is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        tree = dict(pairs)
        if len(pairs) > MOST_NAMES:
            raise Refusal(f"an object of the body has more than {MOST_NAMES} names")
        if len(tree) < len(pairs):
            name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
            raise Refusal(f"the body has {short(name)} twice in one object")
        return tree

    if data.count(b"[") + data.count(b"{") > MOST_PARTS:
        raise Refusal(f"the body holds more than {MOST_PARTS} lists and objects")
    try:
        tree = json.loads(data.decode(), parse_constant=refuse, object_pairs_hook=unique)
        json.dumps(tree, ensure_ascii=False).encode()  # refuses half of a surrogate pair
    except UnicodeDecodeError as error:
        raise Refusal(f"the body is not UTF-8, at byte {error.start}") from None
    except UnicodeEncodeError:
        raise Refusal("a text holds half of a surrogate pair, which is no character") from None
    except json.JSONDecodeError as error:
        raise Refusal(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except (ValueError, RecursionError):
        raise Refusal("the body is not JSON that can be read: it nests or counts too far") from None
    if not isinstance(tree, dict):
        raise Refusal(f"expected a JSON object, got {short(tree)}")
    return tree


def explained(error: ValidationError, kind: type[BaseModel]) -> Refusal:
    """Return the first problem of a body in one line."""
    details = error.errors()
    detail = details[0]
    name = str(detail["loc"][0]) if detail["loc"] else ""
    if detail["type"] == "extra_forbidden":
        where = ".".join(map(str, detail["loc"]))
        known = [*kind.model_fields, *NEUTRAL, *HARMLESS]
        return Refusal(
            f"{where} is not supported; {did_you_mean(name, known, 'supported')}", param=where
        )
    if detail["type"] == "missing":
        return Refusal(f"{name} is missing", param=name)
    if name == "prompt":
        return Refusal(
            "prompt: expected a text, a list of texts, a list of token ids or a list of such "
            f"lists, none of them empty; got {short(detail['input'])}",
            param=name,
        )
    # of a field that takes several kinds, the complaints about each
    reasons = dict.fromkeys(
        d["msg"].removeprefix("Value error, ") for d in details if d["loc"][:1] == detail["loc"][:1]
    )
    where = ".".join(str(part) for part in detail["loc"] if not str(part).startswith("constrained"))
    return Refusal(f"{where}: {'; or '.join(reasons)}; got {short(detail['input'])}", param=name)


def short(value: Any) -> str:
    """Return the beginning of a value, on one line."""
    text = " ".join(str(value)[:200].split())
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
