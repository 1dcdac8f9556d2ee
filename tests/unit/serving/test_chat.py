"""Conversations in the terminal, and the votes between two models."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from command import Capture, complaint, output_of
from serving import Live, chat_model, served

import posttrain
from posttrain.common.seeds import mix
from posttrain.serving import chat
from posttrain.serving.chat import Answer, ChatSettings, Talk, load_speaker
from posttrain.serving.votes import Votes

KEYS: dict[str, Any] = {"max_new_tokens": 12, "device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("talking") / "tiny")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("talking") / "other", hidden_size=48)


def speaking(*models: Path, votes: Votes | None = None) -> tuple[Talk, list[str]]:
    speakers = [load_speaker(str(m), "auto", None, "cpu", "float32", None) for m in models]
    said: list[str] = []
    return Talk(speakers, ChatSettings(max_new_tokens=12), None, said.append, votes), said


def expected(model: Path, messages: list[dict[str, str]], turn: int, **keys: Any) -> str:
    """The answer of a turn, by `generate`; the seeds of a turn are those of its place."""
    keys = KEYS | {"temperature": 0.7} | keys
    padding = [[{"role": "user", "content": "x"}]] * turn
    return posttrain.generate(model, [*padding, messages], **keys)[-1].text


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_answers_are_those_of_generate_with_the_whole_conversation(model: Path) -> None:
    conversation, said = speaking(model)
    chat.talk(conversation, iter(["What is 1?", "And 2?", "/system Be brief.", "And 3?"]))
    first = expected(model, [user("What is 1?")], 0)
    messages = [user("What is 1?"), assistant(first), user("And 2?")]
    second = expected(model, messages, 1)
    system = {"role": "system", "content": "Be brief."}
    third = expected(model, [system, *messages, assistant(second), user("And 3?")], 2)
    texts = "".join(said)
    for text in (first, second, third):
        assert chat.plain(text) in texts
        texts = texts.partition(chat.plain(text))[2]
    assert len(said) > 20, "an answer comes in pieces"


def test_commands(model: Path, tmp_path: Path) -> None:
    conversation, said = speaking(model)
    lines = [
        "/save x.txt",
        f"/save {tmp_path}/a.jsonl",
        "/sytem",
        "/set",
        "/set temperature",
        "/set tempo=1",
        "/set temperature=hot",
        "/set temperature=-1",
        "/set temperature=1e-42",
        "/set top_k=true",
        "/set max_new_tokens=2.5",
        "/better A",
        "/system  You count. ",
        "/set temperature=0",
        "/set max_new_tokens=3",
        "",
        "   ",
        "one?",
        f"/save {tmp_path}/a.jsonl",
        "/reset",
        "two?",
        f"/save {tmp_path}/a.jsonl",
        f"/save {tmp_path}/none/a.jsonl",
        "/help",
        "/quit",
        "never asked",
    ]
    chat.talk(conversation, iter(lines))
    errors = [text for text in said if text.startswith("error: ")]
    words = ["name of a .jsonl file", "nothing has been said", "did you mean /system", "/set takes"]
    words += ["/set takes", "keys are max_new_tokens", "expected a number, got 'hot'"]
    words += ["expected 0 (greedy) or at least"] * 2
    words += ["expected a number", "expected a number", "two models"]
    words += ["No such file"]
    assert len(errors) == len(words)
    for error, part in zip(errors, words):
        assert part in error
    saved = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    roles = [[message["role"] for message in row["messages"]] for row in saved]
    assert roles == [["system", "user", "assistant"]] * 2
    assert saved[0]["messages"][0]["content"] == "You count."
    assert any(chat.HELP in text for text in said)
    assert "never asked" not in str(conversation.messages)
    assert [row["messages"][-1]["train"] for row in saved] == [False, False], "cut at 3 tokens"
    conversation.messages, conversation.open = [user("1 and 1?")], [Answer("Two.", "stop")]
    chat.talk(conversation, iter([f"/save {tmp_path}/a.jsonl"]))
    tree = tiny.run_config(tmp_path / "sft") | {"model": {"name": str(model)}}
    tree["data"] = {"path": str(tmp_path / "a.jsonl")}
    posttrain.train(tree, trainer={"max_steps": 1, "batch_size": 2})


def test_several_lines_are_one_message(model: Path) -> None:
    conversation, _ = speaking(model)
    chat.talk(conversation, iter(['"""', "a", "", "/b", '"""', '"""one"""', '"""c', "d"]))
    texts = [m["content"] for m in conversation.messages if m["role"] == "user"]
    assert texts == ["a\n\n/b", "one", "c\nd"]


def test_an_interrupt_stops_the_answer_and_not_the_conversation(model: Path) -> None:
    conversation, said = speaking(model)
    pieces = 0

    def say(text: str) -> None:
        nonlocal pieces
        said.append(text)
        pieces += 1
        if pieces == 4:
            raise KeyboardInterrupt

    conversation.say = say
    chat.talk(conversation, iter(["one?", "two?"]))
    assert " [stopped]\n" in said
    assert conversation.open[0].finish_reason != "stopped"
    assert conversation.messages[1]["role"] == "assistant"


def test_an_answer_without_text_leaves_its_turn_out(model: Path) -> None:
    conversation, _ = speaking(model)
    conversation.messages = [user("a")]
    conversation.open = [Answer("", "stop")]
    chat.settle(conversation)
    assert conversation.messages == []


def test_control_characters_of_a_model_do_not_reach_the_terminal() -> None:
    assert chat.plain("a\x1b[31mb\x9bc\x07\r\n\td\x00") == "a�[31mb�c��\n\td�"


def test_a_conversation_that_is_too_long_says_what_to_do(model: Path) -> None:
    conversation, said = speaking(model)
    chat.talk(conversation, iter(["word " * 300, "/reset", "1?"]))
    assert "takes 256: begin anew with /reset" in said[0]
    assert len(conversation.messages) == 1, "the long message is not kept"
    almost = "a " * 60
    conversation, said = speaking(model)
    conversation.settings = ChatSettings(max_new_tokens=100_000)
    chat.talk(conversation, iter([almost]))
    assert conversation.open[0].finish_reason in ("stop", "length")


def test_a_model_without_a_template_takes_each_message_alone(model: Path) -> None:
    conversation, said = speaking(model)
    speaker = load_speaker(str(model), "plain", None, "cpu", "float32", None)
    conversation.speakers = [speaker]
    chat.talk(conversation, iter(["/system Hm.", "1 and 2?", "3?"]))
    assert "has no chat template: each message is a prompt of its own" in said[0]
    keys = KEYS | {"template": "plain", "temperature": 0.7, "system_prompt": "Hm."}
    answers = posttrain.generate(model, ["1 and 2?", "3?"], **keys)
    assert conversation.messages[1]["content"] == answers[0].text
    assert conversation.open[0].text == answers[1].text


def test_two_models_answer_and_the_better_answer_stays(
    model: Path, other: Path, tmp_path: Path
) -> None:
    votes = Votes(tmp_path / "votes.jsonl")
    conversation, said = speaking(model, other, votes=votes)
    conversation.settings = ChatSettings(max_new_tokens=200, temperature=0.7)
    chat.talk(conversation, iter(["1?"]))
    a, b = conversation.open
    assert (a.text, b.text) == (
        expected(model, [user("1?")], 0, max_new_tokens=200),
        expected(other, [user("1?")], 0, max_new_tokens=200),
    )
    b.finish_reason = "stop"
    chat.talk(conversation, iter(["/better c", "/better b", "/better a"]))
    assert "error: /better takes A or B, got 'c'\n" in said
    assert said[-1].startswith("error: /better chooses between the last answers")
    assert conversation.messages == [user("1?"), assistant(b.text)]
    (row,) = map(json.loads, (tmp_path / "votes.jsonl").read_text().splitlines())
    assert (row["prompt"], row["chosen"], row["rejected"]) == ([user("1?")], b.text, a.text)
    assert row["meta"]["chosen_model"] == "other"
    conversation.open = [Answer("x", "length"), Answer("y", "stop")]
    conversation.messages.append(user("2?"))
    chat.talk(conversation, iter(["/better A"]))
    assert "the better answer is not whole" in said[-1]
    chat.talk(conversation, iter(["/better B"]))
    assert Votes(tmp_path / "votes.jsonl").count == 2


def test_a_vote_holds_what_its_answers_were_made_with(
    model: Path, other: Path, tmp_path: Path
) -> None:
    conversation, _ = speaking(model, other, votes=Votes(tmp_path / "votes.jsonl"))
    chat.talk(conversation, iter(["/system Be brief.", "1?"]))
    for answer in conversation.open:
        answer.finish_reason = "stop"
    chat.talk(conversation, iter(["/system You are a pirate.", "/set temperature=0", "/better B"]))
    (row,) = map(json.loads, (tmp_path / "votes.jsonl").read_text().splitlines())
    assert row["prompt"] == [{"role": "system", "content": "Be brief."}, user("1?")]
    assert row["meta"]["settings"]["temperature"] == 0.7
    assert row["meta"]["settings"]["max_new_tokens"] == 12


def test_a_vote_holds_the_system_prompt_of_the_training(
    model: Path, other: Path, tmp_path: Path
) -> None:
    """A prompt that the user has not written is still what the answers were made with."""
    conversation, _ = speaking(model, other, votes=Votes(tmp_path / "votes.jsonl"))
    conversation.speakers = [
        replace(s, renderer=replace(s.renderer, system_prompt=f"I am {s.name}."))
        for s in conversation.speakers
    ]
    chat.talk(conversation, iter(["1?"]))
    for answer in conversation.open:
        answer.finish_reason = "stop"
    chat.talk(conversation, iter(["/better B", f"/save {tmp_path / 'talk.jsonl'}"]))
    (row,) = map(json.loads, (tmp_path / "votes.jsonl").read_text().splitlines())
    assert row["prompt"] == [{"role": "system", "content": "I am other."}, user("1?")]
    (saved,) = map(json.loads, (tmp_path / "talk.jsonl").read_text().splitlines())
    assert saved["messages"][0] == {"role": "system", "content": f"I am {model.name}."}


def test_a_vote_without_a_template_is_a_bare_text(model: Path, tmp_path: Path) -> None:
    conversation, _ = speaking(model, model, votes=Votes(tmp_path / "votes.jsonl"))
    plain = load_speaker(str(model), "plain", None, "cpu", "float32", None)
    conversation.speakers, conversation.system = [plain, plain], "Hm."
    chat.talk(conversation, iter(["1?"]))
    conversation.open = [Answer("one", "stop"), Answer("two", "stop")]
    chat.talk(conversation, iter(["/better A"]))
    (row,) = map(json.loads, (tmp_path / "votes.jsonl").read_text().splitlines())
    assert {k: row[k] for k in ("prompt", "system", "chosen", "rejected")} == {
        "prompt": "1?",
        "system": "Hm.",
        "chosen": "one",
        "rejected": "two",
    }
    ids = plain.renderer.prompt_ids(row)
    assert ids == chat.prompt_of(plain, [user("1?")], conversation)


def test_an_answer_that_is_not_whole_is_saved_as_context(model: Path, tmp_path: Path) -> None:
    conversation, _ = speaking(model)
    conversation.messages = [user("1?")]
    conversation.open = [Answer("on", "length")]
    chat.talk(conversation, iter([f"/save {tmp_path / 'talk.jsonl'}"]))
    (saved,) = map(json.loads, (tmp_path / "talk.jsonl").read_text().splitlines())
    assert saved["messages"] == [user("1?"), assistant("on") | {"train": False}]
    assert conversation.asked == [user("1?"), assistant("on")]


@pytest.mark.parametrize(
    "line", ["/save x.txt", "/save {}/none/a.jsonl", "word " * 300, "/sav", "/set seed=x"]
)
def test_what_is_refused_takes_no_choice_away(
    model: Path, other: Path, tmp_path: Path, line: str
) -> None:
    conversation, said = speaking(model, other, votes=Votes(tmp_path / "votes.jsonl"))
    chat.talk(conversation, iter(["1?"]))
    for answer in conversation.open:
        answer.finish_reason = "stop"
    better = conversation.open[1].text
    said.clear()
    chat.talk(conversation, iter([line.format(tmp_path), "/better B"]))
    assert said[0].startswith("error: ")
    assert said[1].startswith("saved as row 1 ")
    assert conversation.messages == [user("1?"), assistant(better)]


def test_the_command(
    model: Path, other: Path, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("1?\n/quit\n"))
    said = output_of(capfd, "chat", model, "--max-new-tokens", 5, "--temperature", 0)
    assert chat.plain(expected(model, [user("1?")], 0, max_new_tokens=5, temperature=0)) in said
    monkeypatch.setattr("sys.stdin", io.StringIO("1?\n"))
    said = output_of(capfd, "chat", model, other, "--votes", tmp_path / "v.jsonl")
    assert "[A: tiny]" in said
    assert "[B: other]" in said
    assert "--votes: votes are between two" in complaint(
        capfd, "chat", model, "--votes", tmp_path / "v.jsonl"
    )
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n')
    assert "bad.jsonl, line 1: expected the columns" in complaint(
        capfd, "chat", model, other, "--votes", tmp_path / "bad.jsonl"
    )
    assert "--top-p" in complaint(capfd, "chat", model, "--top-p", 0)
    assert "does not exist" in complaint(capfd, "chat", tmp_path / "none")


def test_a_classifier_is_refused(tmp_path: Path, capfd: Capture) -> None:
    run = posttrain.train(tiny.run_config(tmp_path, "classification"), trainer={"max_steps": 1})
    assert "is a classifier, which generates no text" in complaint(capfd, "chat", run.folder)


# votes over HTTP


@pytest.fixture(scope="module")
def live(
    model: Path, other: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Live, Path]]:
    file = tmp_path_factory.mktemp("votes") / "votes.jsonl"
    with served(model, name="tiny", beside=str(other), votes=str(file)) as server:
        yield server, file


def vote(**changes: Any) -> dict[str, Any]:
    body: dict[str, Any] = {
        "messages": [user("What is 2 + 2?")],
        "chosen": {"model": "a", "content": "4"},
        "rejected": {"model": "b", "content": "22", "finish_reason": "length"},
        "settings": {"temperature": 0.7, "seed": None},
    }
    return body | changes


ODD_VOTES: list[tuple[Any, str]] = [
    (b"", "JSON"),
    (b"[]", "object"),
    (b"{", "JSON"),
    (b"\xff", "UTF-8"),
    (b'{"chosen": NaN}', "not JSON"),
    ({}, "messages"),
    (vote(messages=[]), "messages"),
    (vote(messages="hello"), "messages"),
    (vote(messages=[{"content": "x"}]), "has no role"),
    (vote(messages=[{"role": "user"}]), "has no content"),
    (vote(messages=[user("x"), assistant("y")]), "the last one is the assistant's"),
    (vote(messages=[user("\ud800")]), ""),
    (vote(chosen={"model": "a", "content": " "}), "an answer is empty"),
    (vote(rejected={"model": "a", "content": ""}), "an answer is empty"),
    (vote(rejected={"model": "a", "content": "4"}), "are the same"),
    (vote(chosen={"model": "a", "content": 4}), "chosen"),
    (vote(chosen={"content": "4"}), "chosen"),
    (vote(chosen={"model": "a", "content": "4", "finish_reason": "length"}), "is not whole"),
    (vote(chosen={"model": "a", "content": "4", "finish_reason": "stopped"}), "is not whole"),
    (vote(more=1), "more"),
    (vote(settings={"a": {"b": 1}}), "settings"),
    (vote(chosen={"model": "a" * 600, "content": "4"}), "model"),
]


@pytest.mark.parametrize(("body", "words"), ODD_VOTES, ids=lambda value: str(value)[:40])
def test_a_vote_that_is_none_is_refused(live: tuple[Live, Path], body: Any, words: str) -> None:
    server, file = live
    before = file.read_bytes()
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, answer = server.ask("POST", "/votes", data)
    assert (status, file.read_bytes()) == (400, before)
    assert words in answer["error"]["message"]


def test_votes_are_whole_lines_that_dpo_trains_on(
    live: tuple[Live, Path], model: Path, tmp_path: Path
) -> None:
    server, file = live
    texts = ["4", "four\u2028<b>🙂</b>", "ثلاث", "a\nb"]

    def send(i: int) -> None:
        system = {"role": "system", "content": "Count."}
        history = [system, user("1?"), assistant("1"), user(f"{i}?")]
        side = {"model": "a", "content": texts[i % 4] + str(i)}
        status, answer = server.ask("POST", "/votes", vote(messages=history, chosen=side))
        assert (status, answer["file"]) == (200, "votes.jsonl"), answer

    threads = [threading.Thread(target=send, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 16
    assert sorted(row["chosen"] for row in rows) == sorted(texts[i % 4] + str(i) for i in range(16))
    assert rows[0]["meta"]["rejected_model"] == "b"
    assert rows[0]["meta"]["rejected_finish_reason"] == "length"
    tree = tiny.run_config(tmp_path, "dpo")
    tree |= {"model": {"name": str(model), "adapter": "none"}, "data": {"path": str(file)}}
    run = posttrain.train(tree, trainer={"max_steps": 2, "learning_rate": 1e-3})
    losses = [line["loss"] for line in run.metrics if "loss" in line]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert losses[1] != losses[0]


def test_a_page_of_another_site_cannot_vote(live: tuple[Live, Path]) -> None:
    server, file = live
    before = file.read_bytes()
    body = json.dumps(vote()).encode()
    plain = {"Content-Type": "text/plain", "Origin": "http://evil.example"}
    assert server.ask("POST", "/votes", body, **plain)[0] == 415
    assert server.ask("OPTIONS", "/votes", None, Origin="http://evil.example")[0] in (404, 405)
    assert server.ask("POST", "/votes", body, Host="evil.example")[0] == 403
    assert file.read_bytes() == before


def test_votes_without_a_file_are_refused(model: Path) -> None:
    with served(model, key="secret") as server:
        status, answer = server.ask("POST", "/votes", vote())
        assert (status, "votes are not kept" in answer["error"]["message"]) == (404, True)
        assert server.ask("GET", "/setup")[1]["votes"] is None
        assert server.ask("GET", "/", None, Authorization="")[0] == 200
        assert server.ask("GET", "/setup", None, Authorization="")[0] == 401
        assert server.ask("POST", "/votes", vote(), Authorization="Bearer x")[0] == 401


def test_the_second_model_has_an_api_of_its_own(
    live: tuple[Live, Path], model: Path, other: Path
) -> None:
    server, _ = live
    setup = server.ask("GET", "/setup")[1]
    assert [(m["name"], m["at"]) for m in setup["models"]] == [
        ("tiny", "v1"),
        ("other", "beside/v1"),
    ]
    for (_, at), folder in zip([("tiny", "v1"), ("other", "beside/v1")], (model, other)):
        body = {"messages": [user("1?")], "max_tokens": 12, "seed": mix(0, 0), "temperature": 0.7}
        status, answer = server.ask("POST", f"/{at}/chat/completions", body)
        assert status == 200, answer
        assert answer["choices"][0]["message"]["content"] == expected(folder, [user("1?")], 0)
    status, answer = server.ask("GET", "/beside/nothing")
    assert (status, "no such route" in answer["error"]["message"]) == (404, True)


def test_a_line_without_an_end_is_ended_before_the_next(tmp_path: Path) -> None:
    file = tmp_path / "v.jsonl"
    file.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}')
    votes = Votes(file)
    assert votes.add({"prompt": "d", "chosen": "e", "rejected": "f"}) == 2
    assert [json.loads(line)["prompt"] for line in file.read_text().splitlines()] == ["a", "d"]


def test_a_full_disk_leaves_no_part_of_a_vote(
    live: tuple[Live, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    server, file = live
    before = file.read_bytes()

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    status, answer = server.ask("POST", "/votes", vote())
    assert (status, "No space left" in answer["error"]["message"]) == (503, True)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("v.csv", None, "expected the name of a .jsonl file"),
        ("v.jsonl", "{", "not valid JSON"),
        ("v.jsonl", '{"prompt": "a", "chosen": "b"}\n', "v.jsonl, line 1: expected the columns"),
    ],
)
def test_a_file_of_something_else_is_refused(
    tmp_path: Path, name: str, text: str | None, words: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"^votes: ") as caught:
        Votes(tmp_path / name)
    assert words in str(caught.value)
