"""The server over real HTTP, asked by the openai client and by bare requests."""

from __future__ import annotations

import http.client
import json
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import openai
import pytest
import serving
import torch
from damage import save_adapter_folder
from serving import Live, chat_model, served

from posttrain.common.seeds import mix
from posttrain.evaluation.loading import as_trained, load_for_sampling, load_renderer
from posttrain.rollout.sampler import SamplingParams
from posttrain.runs.config import parse_config
from posttrain.runs.generate import generate
from posttrain.runs.train import train
from posttrain.serving import serve
from posttrain.serving.bodies import CompletionBody
from posttrain.serving.completions import completion_prompts

CHAT = [{"role": "user", "content": "What is 12 plus 5?"}]
KEYS = {"max_tokens": 24, "seed": 5}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="module")
def live(model: Path):
    with served(model, name="tiny", max_num_seqs=8, max_waiting=24) as server:
        yield server
        assert server.idle(), "rows are left behind"


@pytest.fixture(scope="module")
def client(live: Live):
    return live.client()


# equal to generate


@pytest.mark.parametrize("keys", [{}, {"temperature": 0}, {"temperature": 0.7, "top_p": 0.9}])
def test_a_chat_equals_generate(keys, model, client):
    prompts = [[{"role": "user", "content": f"What is {i} plus 5?"}] for i in range(3)]
    wanted = generate(model, prompts, max_new_tokens=24, seed=3, device="cpu", **keys)
    for i, (prompt, completion) in enumerate(zip(prompts, wanted)):
        answer = client.chat.completions.create(
            model="tiny", messages=prompt, max_tokens=24, seed=mix(3, i), logprobs=True, **keys,
            extra_body={"return_token_ids": True},
        )  # fmt: skip
        (choice,) = answer.choices
        assert choice.message.content == completion.text
        assert choice.finish_reason == completion.finish_reason
        assert choice.token_ids == completion.token_ids
        found = [entry.logprob for entry in choice.logprobs.content]
        assert found == pytest.approx(completion.logprobs, abs=1e-4)
        assert answer.usage.completion_tokens == len(completion.token_ids)
        assert answer.usage.prompt_tokens == len(choice.prompt_token_ids)


def test_ids_in_and_out(model, live):
    _, sampler, _ = load_for_sampling(str(model), "auto", "cpu", "float32")
    prompts = [[40 + i, 51, 62] for i in range(4)]
    params = SamplingParams(12, (7, 9), 0.8, top_k=20)
    wanted = sampler.generate(prompts, params, [11] * 4)
    answer = live.complete(
        model="tiny", prompt=prompts, max_tokens=12, temperature=0.8, top_k=20, seed=11,
        stop_token_ids=[9, 7], ignore_eos=True, return_token_ids=True, logprobs=1,
    )  # fmt: skip
    for i, (choice, rollout) in enumerate(zip(answer["choices"], wanted)):
        assert choice["index"] == i
        assert choice["token_ids"] == rollout.response_ids
        assert choice["prompt_token_ids"] == prompts[i]
        assert choice["finish_reason"] == rollout.finish_reason
        logprobs = choice["logprobs"]["token_logprobs"]
        assert logprobs == pytest.approx(rollout.logprobs, abs=1e-4)


def test_completions_of_one_prompt_differ_and_the_first_is_that_of_the_seed(client):
    keys = KEYS | {"model": "tiny", "prompt": "the cat"}
    many = client.completions.create(n=4, **keys)
    again = client.completions.create(n=4, **keys)
    one = client.completions.create(**keys)
    texts = [choice.text for choice in many.choices]
    assert texts == [choice.text for choice in again.choices]
    assert len(set(texts)) > 1
    assert one.choices[0].text == texts[0]
    unseeded = {client.completions.create(**keys | {"seed": None}).choices[0].text for _ in "abc"}
    assert len(unseeded) > 1


# streams


@pytest.mark.parametrize("keys", [{}, {"n": 3}, {"stop": ["e", "the"]}, {"logprobs": True}])
def test_a_streamed_chat_equals_one_in_a_piece(keys, client):
    keys = KEYS | keys | {"model": "tiny", "messages": CHAT}
    whole = client.chat.completions.create(**keys)
    stream = client.chat.completions.create(
        stream=True, stream_options={"include_usage": True}, **keys
    )
    texts = [""] * len(whole.choices)
    reasons = [None] * len(whole.choices)
    logprobs = [[] for _ in whole.choices]
    usage, pieces = None, 0
    for chunk in stream:
        assert chunk.object == "chat.completion.chunk"
        usage = chunk.usage or usage
        for choice in chunk.choices:
            pieces += 1
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
            if choice.logprobs:
                logprobs[choice.index] += [x.logprob for x in choice.logprobs.content]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage
    assert pieces > 2 * len(texts)
    for choice, values in zip(whole.choices, logprobs):
        if choice.logprobs is not None:
            # the second request finds its prompt in the cache, which rounds otherwise
            expected = [x.logprob for x in choice.logprobs.content]
            assert values == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("logprobs", [None, 0, 2])
@pytest.mark.parametrize("echo", [False, True])
def test_a_streamed_completion_equals_one_in_a_piece(echo, logprobs, client):
    keys = KEYS | {"model": "tiny", "prompt": ["the cat", "on the mat"], "echo": echo}
    keys |= {"logprobs": logprobs, "extra_body": {"return_token_ids": True, "ignore_eos": True}}
    whole = client.completions.create(**keys)
    texts, ids, values, prompts = ["", ""], [[], []], [[], []], {}
    for chunk in client.completions.create(stream=True, **keys):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            ids[choice.index] += choice.token_ids
            if choice.logprobs:
                values[choice.index] += choice.logprobs.token_logprobs
            if given := getattr(choice, "prompt_token_ids", None):
                prompts[choice.index] = given
    assert texts == [choice.text for choice in whole.choices]
    assert ids == [choice.token_ids for choice in whole.choices]
    assert prompts == {choice.index: choice.prompt_token_ids for choice in whole.choices}
    if logprobs is not None:
        for choice, found in zip(whole.choices, values):
            expected = choice.logprobs.token_logprobs  # None for the first token of a prompt
            assert [x is None for x in found] == [x is None for x in expected]
            numbers = [[x or 0.0 for x in each] for each in (found, expected)]
            assert numbers[0] == pytest.approx(numbers[1], abs=1e-4)
    assert all(text.startswith("the cat") or not echo for text in texts[:1])


def test_events_end_with_done(live):
    connection = http.client.HTTPConnection("127.0.0.1", live.port)
    body = json.dumps(KEYS | {"prompt": "the", "stream": True})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    reply = connection.getresponse()
    assert reply.getheader("Content-Type").startswith("text/event-stream")
    lines = [line for line in reply.read().decode().split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    reasons = [json.loads(line[6:])["choices"][0]["finish_reason"] for line in lines[:-1]]
    assert len(reasons) > 2
    assert reasons == [None] * (len(reasons) - 1) + [reasons[-1]]
    assert reasons[-1] in ("stop", "length")


# what ends a text, and its log-probs


def test_a_stop_string_ends_the_text_before_it(client):
    keys = KEYS | {"model": "tiny", "prompt": "the cat", "max_tokens": 60}
    whole = client.completions.create(**keys).choices[0].text
    for start in range(2, len(whole) - 4, 5):
        stop = whole[start : start + 3]
        end = whole.find(stop)
        answer = client.completions.create(stop=stop, extra_body={"return_token_ids": True}, **keys)
        (choice,) = answer.choices
        assert choice.text == whole[:end]
        assert choice.finish_reason == "stop"
        assert answer.usage.completion_tokens == len(choice.token_ids) < 60


def test_echo_scores_the_prompt(model, client):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain = AutoModelForCausalLM.from_pretrained(model).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    text = "the cat sat on the mat"
    ids = tokenizer(text)["input_ids"]
    with torch.no_grad():
        expected = plain(torch.tensor([ids])).logits[0].log_softmax(-1)
    for limit in (0, 1):
        answer = client.completions.create(
            model="tiny", prompt=text, max_tokens=limit, echo=True, logprobs=3, temperature=0
        )
        (choice,) = answer.choices
        logprobs = choice.logprobs
        values = [float(expected[i, token]) for i, token in enumerate(ids[1:])]
        assert logprobs.token_logprobs[0] is None
        assert logprobs.token_logprobs[1 : len(ids)] == pytest.approx(values, abs=1e-4)
        assert len(logprobs.tokens) == len(ids) + limit == len(logprobs.text_offset)
        assert choice.text.startswith(text)
        for i, best in enumerate(logprobs.top_logprobs[1 : len(ids)]):
            assert max(best.values()) == pytest.approx(float(expected[i].max()), abs=1e-4)
        assert answer.usage.completion_tokens == limit


@pytest.mark.parametrize("top", [0, 3])
def test_lists_of_logprobs_are_of_equal_length(top, client):
    for keys in ({"echo": True, "max_tokens": 4}, {"echo": True, "max_tokens": 0}, {}):
        (choice,) = client.completions.create(
            model="tiny", prompt="the cat sat", logprobs=top, seed=1,
            extra_body={"return_token_ids": True}, **keys,
        ).choices  # fmt: skip
        count = len(choice.token_ids)
        assert count > 2
        logprobs = choice.logprobs
        for values in (logprobs.tokens, logprobs.token_logprobs, logprobs.text_offset):
            assert len(values) == count
        assert logprobs.top_logprobs is None if top == 0 else len(logprobs.top_logprobs) == count


def test_logprobs_that_are_no_numbers_are_not_sent(model):
    with served(model) as live:
        sampling = live.service.worker.engine
        sampling.logits = lambda hidden: torch.full((len(hidden), 300), torch.nan)
        body = {"prompt": "the", "max_tokens": 3, "logprobs": 1}
        status, answer = live.ask("POST", "/v1/completions", body)
        assert status == 500
        assert "log-probs are no numbers" in answer["error"]["message"]


def test_a_prompt_keeps_the_end_of_a_turn_that_it_holds(live):
    """And loses the one that a tokenizer adds of itself."""
    renderer = live.service.renderer
    end, tokenizer = renderer.turn_end, renderer.tokenizer
    ended = tokenizer.decode([end])
    plain = tokenizer("hi", add_special_tokens=False)["input_ids"]

    def read(prompt: str) -> list[int]:
        (prompt_read,) = completion_prompts(live.service, CompletionBody(prompt=prompt, echo=True))
        assert prompt_read.text == prompt
        return prompt_read.ids

    def adding(text, add_special_tokens=True, **keys):
        found = tokenizer(text, add_special_tokens=False, **keys)
        found["input_ids"] += [end] if add_special_tokens else []
        return found

    for _ in range(2):
        assert read("hi") == plain
        assert read("hi" + ended) == [*plain, end]
        assert read(ended) == [end]
        assert read(ended * 2) == [end, end]
        live.service.renderer = replace(renderer, tokenizer=adding)
    live.service.renderer = renderer


def test_other_tokens_are_listed_with_their_logprobs(client):
    answer = client.chat.completions.create(
        model="tiny", messages=CHAT, logprobs=True, top_logprobs=4, temperature=0, max_tokens=5
    )
    for entry in answer.choices[0].logprobs.content:
        assert len(entry.top_logprobs) == 4
        assert entry.logprob == max(other.logprob for other in entry.top_logprobs)
        assert entry.bytes is None or bytes(entry.bytes).decode() == entry.token


# refusals

BAD = {
    "no prompt": {"max_tokens": 3},
    "prompt of nothing": {"prompt": ""},
    "prompt of no texts": {"prompt": []},
    "prompt with an empty one": {"prompt": ["a", ""]},
    "prompt of mixed kinds": {"prompt": ["a", 3]},
    "prompt of ids and lists": {"prompt": [3, [4]]},
    "prompt as a number": {"prompt": 7},
    "prompt as an object": {"prompt": {"a": 1}},
    "a negative id": {"prompt": [-1]},
    "an id too large": {"prompt": [10**6]},
    "an id beyond int64": {"prompt": [2**70]},
    "an id beyond int64, repeated": {"prompt": [2**70], "echo": True},
    "an id beyond int32, repeated": {"prompt": [2**40], "echo": True},
    "ids as floats": {"prompt": [1.5]},
    "booleans as ids": {"prompt": [True, False]},
    "half a surrogate pair": {"prompt": "\ud800"},
    "too long": {"prompt": "cat " * 500},
    "too many tokens": {"prompt": "a", "max_tokens": 10**6},
    "no tokens": {"prompt": "a", "max_tokens": 0},
    "negative tokens": {"prompt": "a", "max_tokens": -1},
    "tokens as text": {"prompt": "a", "max_tokens": "5"},
    "tokens as a float": {"prompt": "a", "max_tokens": 5.5},
    "tokens as a boolean": {"prompt": "a", "max_tokens": True},
    "cold": {"prompt": "a", "temperature": -1},
    "almost greedy": {"prompt": "a", "temperature": 1e-7},
    "a temperature that float32 lacks": {"prompt": "a", "temperature": 1e-42},
    "hot": {"prompt": "a", "temperature": 1e9},
    "temperature as text": {"prompt": "a", "temperature": "1"},
    "top_p of 0": {"prompt": "a", "top_p": 0},
    "top_p above 1": {"prompt": "a", "top_p": 1.1},
    "top_k below -1": {"prompt": "a", "top_k": -2},
    "min_p above 1": {"prompt": "a", "min_p": 2},
    "no choices": {"prompt": "a", "n": 0},
    "many choices": {"prompt": "a", "n": 10**9},
    "more choices than the queue": {"prompt": "a", "n": 100},
    "a seed too large": {"prompt": "a", "seed": 2**64},
    "a seed as text": {"prompt": "a", "seed": "x"},
    "many log-probs": {"prompt": "a", "logprobs": 1000},
    "log-probs as a boolean": {"prompt": "a", "logprobs": True},
    "an empty stop": {"prompt": "a", "stop": ""},
    "an empty stop among others": {"prompt": "a", "stop": ["a", ""]},
    "many stops": {"prompt": "a", "stop": ["a"] * 1000},
    "a stop as a number": {"prompt": "a", "stop": 3},
    "a negative stop id": {"prompt": "a", "stop_token_ids": [-1]},
    "a stop id beyond int64": {"prompt": "a", "stop_token_ids": [2**63]},
    "another model": {"prompt": "a", "model": "other"},
    "a model as a number": {"prompt": "a", "model": 3},
    "an unknown field": {"prompt": "a", "temprature": 1},
    "a penalty": {"prompt": "a", "presence_penalty": 0.5},
    "another penalty": {"prompt": "a", "repetition_penalty": 1.2},
    "a bias": {"prompt": "a", "logit_bias": {"5": 100}},
    "the best of": {"prompt": "a", "best_of": 4},
    "a suffix": {"prompt": "a", "suffix": "b"},
    "a grammar": {"prompt": "a", "guided_json": {}},
    "stream as text": {"prompt": "a", "stream": "yes"},
    "unknown options of a stream": {"prompt": "a", "stream": True, "stream_options": {"x": 1}},
    "usage in every chunk": {
        "prompt": "a", "stream": True, "stream_options": {"continuous_usage_stats": True}
    },
}  # fmt: skip
BAD_CHATS = {
    "no messages": {"messages": []},
    "messages as text": {"messages": "hello"},
    "messages as texts": {"messages": ["hello"]},
    "messages with nothing in them": {"messages": [{}]},
    "no role": {"messages": [{"content": "a"}]},
    "an unknown role": {"messages": [{"role": "wizard", "content": "a"}]},
    "a role as a number": {"messages": [{"role": 3, "content": "a"}]},
    "content as a number": {"messages": [{"role": "user", "content": 3}]},
    "an image": {
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]
    },
    "the assistant last": {"messages": [*CHAT, {"role": "assistant", "content": "a"}]},
    "top_logprobs alone": {"messages": CHAT, "top_logprobs": 3},
    "a schema": {"messages": CHAT, "response_format": {"type": "json_object"}},
    "a forced tool": {"messages": CHAT, "tool_choice": "required"},
    "tools as text": {"messages": CHAT, "tools": "x"},
    "functions": {"messages": CHAT, "functions": [{"name": "f"}]},
    "sound": {"messages": CHAT, "modalities": ["audio"]},
    "echo": {"messages": CHAT, "echo": True},
    "half a surrogate pair": {"messages": [{"role": "user", "content": "\udfff"}]},
    "effort": {"messages": CHAT, "reasoning_effort": "high"},
}
RAW = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "no UTF-8": b'{"prompt": "\xff"}',
    "NaN": b'{"prompt": "a", "temperature": NaN}',
    "infinity": b'{"prompt": "a", "temperature": Infinity}',
    "a number that overflows": b'{"prompt": "a", "temperature": 1e999}',
    "deep": b'{"prompt": ' + b"[" * 100_000,
    "deep and closed": b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "many digits": b'{"prompt": "a", "seed": ' + b"9" * 10_000 + b"}",
    "form": b"prompt=a",
    "a name twice": b'{"prompt": "a", "prompt": "b"}',
    "a name twice, deep": b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}',
    "many names": json.dumps(dict.fromkeys(map(str, range(500_000)), 1)).encode(),
    "a million wrong items": b'{"prompt": [' + b"7," * 10**6 + b'"x"]}',
    "a million texts": b'{"prompt": [' + b'"a",' * 10**6 + b'"a"]}',
    "millions of lists": b'{"prompt": [' + b"[]," * (2 * 10**6) + b"[]]}",
    "one word of megabytes": b'{"prompt": "' + b"a" * (8 * 10**6) + b'"}',
    "a chat of megabytes": b'{"messages": [{"role": "user", "content": "' + b"a" * 8**7 + b'"}]}',
}


def refused(live: Live, path: str, body) -> str:
    status, answer = live.ask("POST", path, body)
    assert 400 <= status < 500, answer
    error = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == status
    assert error["message"]
    assert "\n" not in error["message"]
    assert "Traceback" not in error["message"]
    return error["message"]


@pytest.mark.parametrize("name", list(BAD))
def test_a_bad_completion_is_refused_in_one_line(name, live):
    refused(live, "/v1/completions", BAD[name])


@pytest.mark.parametrize("name", list(BAD_CHATS))
def test_a_bad_chat_is_refused_in_one_line(name, live):
    refused(live, "/v1/chat/completions", BAD_CHATS[name])


@pytest.mark.parametrize("name", list(RAW))
def test_a_body_that_is_no_request_is_refused(name, live):
    """And soon, since the server does nothing else meanwhile."""
    before = time.process_time()
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/load_lora_adapter"):
        refused(live, path, RAW[name])
    assert time.process_time() - before < 4


def test_messages_say_what_to_do(live):
    def said(**body) -> str:
        return refused(live, "/v1/completions", {"prompt": "a"} | body)

    assert "did you mean temperature?" in said(temprature=1)
    assert "leave it out, or send 0" in said(presence_penalty=1)
    assert "served: tiny" in said(model="other")
    assert "temperature: expected 0 (greedy) or at least 1e-06" in said(temperature=1e-30)
    assert "max_tokens is 1000, but the model takes 256" in said(max_tokens=1000)


def test_harmless_and_neutral_fields_are_taken(live):
    plain = live.complete(prompt="the", **KEYS)
    same = live.complete(
        prompt="the", user="me", presence_penalty=0, frequency_penalty=0.0, logit_bias={},
        best_of=1, suffix=None, stop=None, top_k=-1, min_p=0, repetition_penalty=1.0, **KEYS,
    )  # fmt: skip
    assert same["choices"] == plain["choices"]


def test_other_routes_methods_and_types(live):
    assert live.ask("GET", "/v1/nothing")[0] == 404
    assert live.ask("GET", "/v1/completions")[0] == 405
    assert live.ask("POST", "/v1/embeddings", {})[0] == 404
    assert live.ask("POST", "/v1/completions/", {"prompt": "a"})[0] == 404
    body = {"prompt": "a"}
    assert live.ask("POST", "/v1/completions", body, **{"Content-Type": "text/plain"})[0] == 415
    long = b'{"prompt": "' + b"a" * (9 << 20) + b'"}'
    assert live.ask("POST", "/v1/completions", long)[0] == 413
    for status, answer in (live.ask("GET", "/v1/nothing"), live.ask("PUT", "/v1/models")):
        assert answer["error"]["code"] == status


def test_random_bodies_never_fail(live):
    """Fields of random kinds: each is answered, or refused in one line."""
    chance = random.Random(0)
    values = [
        None, True, False, 0, 1, -1, 3, 2**40, 0.5, -0.5, 1e30, "", "a", "the cat", [], [1], [[1]],
        ["a"], {}, {"a": 1}, [{"role": "user", "content": "a"}], [None], "\u0000", "\U0001f600" * 3,
    ]  # fmt: skip
    fields = [
        "prompt", "messages", "model", "max_tokens", "temperature", "top_p", "top_k", "n", "seed",
        "stop", "logprobs", "echo", "stop_token_ids", "return_token_ids", "ignore_eos", "tools",
    ]  # fmt: skip
    statuses = []
    for _ in range(150):
        chat = chance.random() < 0.5
        body = {"messages": CHAT} if chat else {"prompt": "a"}
        body |= {
            name: chance.choice(values) for name in chance.sample(fields, chance.randint(0, 4))
        }
        path = "/v1/chat/completions" if chat else "/v1/completions"
        status, answer = live.ask("POST", path, {"max_tokens": 2} | body)
        statuses.append(status)
        assert status == 200 or 400 <= status < 500, (body, answer)
        assert status == 200 or "\n" not in answer["error"]["message"]
    assert {200, 400} <= set(statuses)


# bounds


def slow(live: Live, **body) -> http.client.HTTPConnection:
    """A stream that has begun."""
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=30)
    body = {"prompt": "the cat", "max_tokens": 200, "ignore_eos": True, "stream": True} | body
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    return connection


def test_a_client_that_leaves_frees_its_rows(live):
    left = counted(live, "disconnects_total")
    streamed = slow(live, n=4)
    streamed.getresponse().read(100)
    whole = slow(live, n=4, stream=False)
    time.sleep(0.05)
    assert live.service.in_flight == 8
    for connection in (streamed, whole):
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
    assert live.idle()
    deadline = time.monotonic() + 10
    while counted(live, "disconnects_total") < left + 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert counted(live, "disconnects_total") == left + 2
    assert counted(live, 'requests_total{route="/v1/completions",status="499"}') == 1
    assert 'status="500"' not in live.ask("GET", "/metrics")[1]
    assert live.complete(prompt="the", **KEYS)


def delay(live: Live, seconds: float = 0.02) -> None:
    """Make every step of the server slow."""
    engine = live.service.worker.engine
    decode = engine.decode

    def late(*arguments):
        time.sleep(seconds)
        return decode(*arguments)

    engine.decode = late


def test_a_full_queue_refuses_and_recovers(model):
    with served(model, max_num_seqs=2, max_waiting=2) as live:
        delay(live)
        connections = [slow(live, n=2) for _ in range(2)]
        connections[0].getresponse()  # the second waits for a place
        while live.service.in_flight < 4:
            time.sleep(0.01)
        status, answer = live.ask("POST", "/v1/completions", {"prompt": "a"})
        assert status == 429, answer
        assert "try again later" in answer["error"]["message"]
        with pytest.raises(openai.RateLimitError):
            live.client().completions.create(model=str(model), prompt="a")
        for connection in connections:
            connection.close()
        assert live.idle()
        assert live.complete(prompt="a")


def test_a_time_limit(model):
    with served(model, time_limit=0.3, max_num_seqs=2) as live:
        delay(live)
        started = time.monotonic()
        body = {"prompt": "the", "max_tokens": 200, "ignore_eos": True, "n": 4}
        status, answer = live.ask("POST", "/v1/completions", body)
        assert status == 504, answer
        assert "time limit of 0.3 s" in answer["error"]["message"]
        assert time.monotonic() - started < 10
        reply = slow(live, max_tokens=200).getresponse().read().decode()
        assert '"code": 504' in reply
        assert reply.endswith("data: [DONE]\n\n")
        assert live.idle()


def test_a_step_that_fails_fails_its_requests_alone(model, monkeypatch):
    with served(model) as live:
        engine = live.service.worker.engine
        decode = engine.decode

        def broken(*arguments):
            raise RuntimeError("out of memory, says torch")

        engine.decode = broken
        status, answer = live.ask("POST", "/v1/completions", {"prompt": "the"})
        assert status == 500
        assert "out of memory" in answer["error"]["message"]
        engine.decode = decode
        assert live.complete(prompt="the")
        assert live.idle()


# keys, health, metrics


def test_a_key_is_asked_for(model):
    with served(model, key="s3cret") as live:
        assert live.complete(prompt="a")
        for wrong in ("", "Bearer", "Bearer s3cre", "s3cret", "Bearer s3cret2", "Basic s3cret"):
            status, answer = live.ask(
                "POST", "/v1/completions", {"prompt": "a"}, Authorization=wrong
            )
            assert status == 401, wrong
            assert "s3cret" not in answer["error"]["message"]
        with pytest.raises(openai.AuthenticationError):
            live.client(api_key="other").models.list()
        assert live.ask("GET", "/metrics", Authorization="")[0] == 401
        assert live.ask("GET", "/health", Authorization="") == (200, {"status": "ok"})


def test_without_a_key_other_hosts_are_refused(live):
    """What a page of another site sends under a name of its own that leads here."""
    assert live.ask("GET", "/v1/models", Host="evil.example:80")[0] == 403
    assert live.ask("GET", "/v1/models", Host="localhost:1")[0] == 200
    assert live.ask("GET", "/v1/models", Host="[::1]:1")[0] == 200


def counted(live: Live, name: str) -> float:
    """A value of /metrics."""
    status, text = live.ask("GET", "/metrics")
    assert status == 200
    lines = [line for line in text.splitlines() if line.startswith(f"posttrain_{name}")]
    assert lines, name
    return float(lines[0].rpartition(" ")[2])


def test_metrics_count(live):
    def value(name: str) -> float:
        return counted(live, name)

    before = value("completion_tokens_total")
    answer = live.complete(prompt="the cat", **KEYS)
    assert value("completion_tokens_total") - before == answer["usage"]["completion_tokens"]
    deadline = time.monotonic() + 30  # the answer is sent before its row leaves the batch
    while value("running") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert value("running") == 0
    assert value("prefix_tokens_asked") > 0
    assert (
        'posttrain_requests_total{route="/v1/completions",status="200"}'
        in (live.ask("GET", "/metrics")[1])
    )


def test_both_models_are_watched(model, monkeypatch):
    built = []
    build = serving.build_service

    def building(*arguments):
        built.append(build(*arguments))
        return built[-1]

    monkeypatch.setattr(serving, "build_service", building)
    with served(model, name="tiny", beside=str(model)) as live:
        _, second = built
        body = {"prompt": "the cat", "max_tokens": 5, "ignore_eos": True}
        assert live.ask("POST", "/beside/v1/completions", body)[0] == 200
        assert counted(live, "completion_tokens_total") == 5
        assert counted(live, 'requests_total{route="/beside/v1/completions",status="200"}') == 1
        assert live.complete(**body)
        assert counted(live, "completion_tokens_total") == 10
        assert counted(live, 'requests_total{route="/v1/completions",status="200"}') == 1
        second.in_flight += 3
        live.service.in_flight += 2
        assert counted(live, "in_flight") == 5
        second.in_flight -= 3
        live.service.in_flight -= 2
        assert live.ask("GET", "/health")[0] == 200
        second.worker.stop()
        second.worker.thread.join(20)
        status, answer = live.ask("GET", "/health")
        assert (status, str(model) in answer["error"]["message"]) == (503, True)


def test_two_models_share_the_memory_for_keys_and_values(model, monkeypatch):
    monkeypatch.setattr(serve, "free_memory", lambda device: 1 << 20)
    settings = serve.ServeSettings(device="cpu", dtype="float32")
    alone = serve.build_service(str(model), settings).worker.max_cells
    both = [serve.build_service(str(model), settings) for _ in range(2)]
    # what is free once both are loaded
    monkeypatch.setattr(serve, "free_memory", lambda device: 1 << 19)
    serve.share_memory(both, None)
    assert alone is not None
    assert alone // 2 - 1 <= sum(service.worker.max_cells for service in both) <= alone // 2
    serve.share_memory(both, 0.001)
    sizes = [service.worker.max_cells for service in both]
    assert sizes[0] == sizes[1] > alone


def test_models_are_listed(live, model, client):
    (card,) = client.models.list().data
    assert card.id == "tiny"
    assert card.max_model_len == 256
    assert Path(card.root) == model
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


# adapters


def test_adapters_come_and_go(model, live, client, tmp_path):
    folders = {}
    for name, rank in (("a", 2), ("b", 4)):
        folders[name] = save_adapter_folder(tmp_path / name, model, r=rank)
        answer = live.ask(
            "POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folders[name])}
        )
        assert answer == (200, f"Success: LoRA adapter '{name}' added successfully.")
    cards = {card.id: card for card in client.models.list().data}
    assert list(cards) == ["tiny", "a", "b"]
    assert cards["a"].parent == "tiny"
    texts = {}
    for name in ("tiny", "a", "b"):
        answer = client.completions.create(model=name, prompt="the cat", **KEYS)
        assert answer.model == name
        texts[name] = answer.choices[0].text
    assert len(set(texts.values())) == 3
    renderer, sampler, _ = load_for_sampling(str(folders["b"]), "auto", "cpu", "float32")
    ids = renderer.tokenizer("the cat")["input_ids"]
    params = SamplingParams(24, renderer.stop_token_ids)
    (rollout,) = sampler.generate([ids], params, [5])
    assert renderer.decode(rollout.response_ids) == texts["b"]
    again = {"lora_name": "a", "lora_path": str(folders["b"])}
    assert "already been loaded" in refused(live, "/v1/load_lora_adapter", again)
    for name in ("a", "b"):
        assert live.ask("POST", "/v1/unload_lora_adapter", {"lora_name": name})[0] == 200
    assert "does not exist" in refused(live, "/v1/completions", {"prompt": "a", "model": "a"})
    refused(live, "/v1/unload_lora_adapter", {"lora_name": "a"})
    answer = client.completions.create(model="tiny", prompt="the cat", **KEYS)
    assert answer.choices[0].text == texts["tiny"]
    # the name comes back with other weights: nothing is remembered of those before
    live.ask("POST", "/v1/load_lora_adapter", {"lora_name": "a", "lora_path": str(folders["b"])})
    answer = client.completions.create(model="a", prompt="the cat", **KEYS)
    assert answer.choices[0].text == texts["b"]
    live.ask("POST", "/v1/unload_lora_adapter", {"lora_name": "a"})


def test_an_adapter_is_asked_as_it_was_trained(tmp_path):
    """Given as a run, with a system prompt of its own; the base and foreign adapters have none."""
    base = chat_model(tmp_path / "tiny")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    tree = {
        "model": {"name": str(base), "adapter": {"type": "lora", "r": 2}},
        "data": {"path": str(rows), "system_prompt": "Answer in French."},
        "trainer": {"type": "sft", "max_steps": 1, "logger": []},
    }
    run_dir = train(parse_config(tree, "test"), tmp_path / "run")
    foreign = save_adapter_folder(tmp_path / "foreign", base)
    with served(base, name="tiny") as live:
        for name, folder in (("french", run_dir), ("foreign", foreign)):
            body = {"lora_name": name, "lora_path": str(folder)}
            assert live.ask("POST", "/v1/load_lora_adapter", body)[0] == 200
        asked = {"messages": [{"role": "user", "content": "cat"}], "max_tokens": 1}
        lengths = {}
        for name in ("tiny", "french", "foreign"):
            _, answer = live.ask("POST", "/v1/chat/completions", asked | {"model": name})
            lengths[name] = answer["usage"]["prompt_tokens"]
        renderer, _ = load_renderer(str(run_dir), *as_trained(str(run_dir)))
        own = renderer.prompt_ids({"messages": asked["messages"]})
    assert lengths["french"] == len(own) > lengths["tiny"] == lengths["foreign"]


@pytest.mark.parametrize("good", [True, False])
def test_rows_in_flight_do_not_notice_the_first_adapter(good, model, tmp_path):
    """Also one that is refused."""
    folder = save_adapter_folder(tmp_path / "a", model, r=2) if good else tmp_path / "none"
    body = {"prompt": "the cat", "max_tokens": 100, "seed": 1, "ignore_eos": True, "n": 3}
    body |= {"return_token_ids": True}
    later = {"model": "a" if good else "tiny", "max_tokens": 10, "n": 2}
    with served(model, name="tiny", max_num_seqs=8) as live:
        wanted = live.complete(**body)["choices"]
        delay(live)
        with ThreadPoolExecutor() as pool:
            begun = pool.submit(live.complete, **body)
            while not live.service.worker.engine.running.rows:
                time.sleep(0.01)
            load = {"lora_name": "a", "lora_path": str(folder)}
            status, _ = live.ask("POST", "/v1/load_lora_adapter", load)
            assert status == (200 if good else 400)
            beside = live.complete(**body | later)["choices"]
            assert not begun.done()
            assert begun.result()["choices"] == wanted
        assert live.complete(**body | later)["choices"] == beside
        same = [a["token_ids"] == b["token_ids"][:10] for a, b in zip(beside, wanted)]
        assert same == [not good] * 2


@pytest.mark.parametrize("path", [None, "", "nowhere", "/", "/etc/passwd", "a\u0000b", "~"])
def test_what_is_no_adapter_is_not_loaded(path, live):
    body = {"lora_name": "bad"} | ({} if path is None else {"lora_path": path})
    refused(live, "/v1/load_lora_adapter", body)
    assert list(live.service.adapters) == []
    assert live.complete(prompt="a")
