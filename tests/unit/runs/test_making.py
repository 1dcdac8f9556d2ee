"""Data made by a model: what goes into the files."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from test_preference_data import making_tree, scored, user
from test_render import renderer

from posttrain.data.files import read_file
from posttrain.data.kinds.prompt import Prompt
from posttrain.rewards.score import Score
from posttrain.rollout.sampler import Rollout, SamplingParams
from posttrain.runs import synthesize


def test_a_column_that_the_first_row_lacks_is_written(tmp_path):
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "answer": "4", "completion": "d"}]
    synthesize.write_parquet(tmp_path / "made.parquet", rows, {})
    found = list(read_file(tmp_path / "made.parquet"))
    assert found == [rows[0] | {"answer": None}, rows[1]]


@pytest.mark.parametrize(("name", "values"), [("prompt", ["a", [user("b")]]), ("answer", ["4", 4])])
def test_a_column_of_two_types_is_named(name, values):
    with pytest.raises(ValueError, match=f"data: {name} has values of different types"):
        synthesize.table_of([{name: value} for value in values])


def test_what_can_not_be_written_is_said_before_anything_is_sampled(tmp_path, monkeypatch):
    rows = [{"prompt": "a", "answer": answer} for answer in ("4", 4)]
    monkeypatch.setattr(synthesize, "load_rows", lambda section: rows)
    monkeypatch.setattr(synthesize, "load_for_sampling", lambda *a: (renderer("plain"), None, 64))
    config = synthesize.parse_making(making_tree(tmp_path, tmp_path, type="filter"), "test")
    with pytest.raises(ValueError, match="data: answer has values of different types"):
        synthesize.make(config)


def test_nothing_is_no_right_answer():
    """SFT refuses a row with an empty completion."""
    entries = scored(("", 1.0), (" ", 1.0), ("yes", 1.0))
    kept = synthesize.right_ones(entries, synthesize.FilterConfig(min_score=1.0))
    assert [row["completion"] for row in kept] == ["yes"]


def test_rows_of_equal_prompts_lie_in_one_file(tmp_path):
    tree = making_tree(tmp_path, tmp_path, type="filter", min_score=1.0)
    config = synthesize.parse_making(tree | {"output_dir": str(tmp_path), "val_split": 0.5}, "test")
    given = [{"prompt": [user(f"question {i % 5}")]} for i in range(40)]
    groups = [scored((f"answer {i}", 1.0)) for i in range(40)]
    synthesize.write(config, given, groups, {})
    prompts = [
        {row["prompt"][0]["content"] for row in read_file(tmp_path / f"{name}.parquet")}
        for name in ("train", "validation")
    ]
    assert len(prompts[0] | prompts[1]) == 5
    assert not prompts[0] & prompts[1]


def test_every_completion_has_noise_of_its_own_and_the_settings_of_the_recipe(tmp_path):
    """In all chunks; and the reward is asked about the prompt that was completed."""
    keys = {"num_completions": 3, "max_new_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 4}
    tree = making_tree(tmp_path, tmp_path, type="filter") | {"sampling": keys}
    config, it, drawn, asked = synthesize.parse_making(tree, "test"), renderer("plain"), [], []

    def generate(prompts, params, seeds):
        assert params == SamplingParams(7, it.stop_token_ids, 0.5, 0.9, 4)
        drawn.extend(seeds)
        numbers = [it.text_ids(f" {i % 3}") for i in range(len(prompts))]
        return [Rollout(ids, [*ids, *end], [], "stop", 0) for ids, end in zip(prompts, numbers)]

    def reward(prompts, completions, completion_ids, **columns):
        asked.extend(zip(prompts, completions))
        return [1.0] * len(prompts)

    questions = [f"question {i}" for i in range(8)]
    prompts = [Prompt(it.prompt_ids({"prompt": text}), {"prompt": text}) for text in questions]
    for first in (0, 4):
        chunk, sampler = prompts[first : first + 4], SimpleNamespace(generate=generate)
        made = synthesize.sample_and_score(chunk, first, config, it, sampler, reward)
        assert [len(group) for group in made] == [3] * 4
    assert len(set(drawn)) == 8 * 3
    assert asked == [(text, f"{text} {number}") for text in questions for number in range(3)]


def test_equal_completions_of_a_prompt_are_scored_once(tmp_path):
    tree = making_tree(tmp_path, tmp_path, type="preferences")
    tree |= {"sampling": {"num_completions": 4}}
    config, it, asked = synthesize.parse_making(tree, "test"), renderer("plain"), []
    texts = ["one", "two", "one", "three"]

    def generate(prompts, params, seeds):
        ids = [it.text_ids(texts[i % 4]) for i in range(len(prompts))]
        return [
            Rollout(prompt, answer, [], "stop" if i % 4 else "length", 0)
            for i, (prompt, answer) in enumerate(zip(prompts, ids))
        ]

    def reward(prompts, completions, completion_ids, **columns):
        asked.append((prompts, completions, columns["answer"]))
        scores = {"one": Score(1.0, "correct"), "two": Score(0.0, "wrong"), "three": None}
        return [scores[text] for text in completions]

    rows = [{"prompt": f"question {i}", "answer": str(i)} for i in range(2)]
    prompts = [Prompt(it.prompt_ids(row), row) for row in rows]
    sampler = SimpleNamespace(generate=generate)
    made = synthesize.sample_and_score(prompts, 0, config, it, sampler, reward)
    assert asked == [([f"question {i}"] * 3, ["one", "two", "three"], [str(i)] * 3) for i in (0, 1)]
    for group in made:
        assert [one["text"] for one in group] == texts
        assert [one["score"] for one in group] == [1.0, 0.0, 1.0, None]
        assert [one["verdict"] for one in group] == ["correct", "wrong", "correct", None]
        assert [one["finish_reason"] for one in group] == ["length", "stop", "stop", "stop"]
