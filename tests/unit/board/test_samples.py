"""Samples are found by step and by prompt, over the files of all ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.board import samples as module
from posttrain.board.growing import Workers
from posttrain.board.samples import Samples, key_of


def sample(step: int, prompt: str, k: int, kind: str = "rollout", **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "kind": kind,
        "prompt": prompt,
        "completion": f"{step} {prompt} {k}",
        "reward": float(k),
        **more,
    }


def run_dir(folder: Path) -> Path:
    first = [sample(s, p, k) for s in (1, 2) for p in ("a", "b") for k in (0, 1)]
    first += [sample(2, "held out", 1, "eval")]
    first += [sample(3, "a", 1, tokens={"ids": [1], "mask": [1]}, advantage=0.5, trained=True)]
    second = [sample(s, "ü", k) for s in (1, 2) for k in (0, 1)]
    for name, rows in (("samples.jsonl", first), ("samples-rank1.jsonl", second)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_steps_of_each_kind(tmp_path: Path) -> None:
    found = Samples(Workers()).steps(run_dir(tmp_path))
    assert found == {"progress": 1.0, "kinds": {"rollout": [1, 2, 3], "eval": [2]}}
    assert Samples(Workers()).steps(tmp_path / "no such") == {"progress": 1.0, "kinds": {}}


def test_a_step_has_the_samples_of_all_ranks_by_prompt(tmp_path: Path) -> None:
    samples = Samples(Workers())
    found = samples.at_step(run_dir(tmp_path), "rollout", 2)["samples"]
    assert sorted((s["prompt"], s["reward"]) for s in found) == [
        (p, k) for p in ("a", "b", "ü") for k in (0.0, 1.0)
    ]
    keys = [s["prompt_key"] for s in found]
    assert keys == [k for key in dict.fromkeys(keys) for k in [key] * 2], "neighbours"
    for one in found:
        assert samples.one(tmp_path, one["key"])["completion"] == one["completion"]
    assert samples.at_step(tmp_path, "rollout", 9) == {"samples": [], "left_out": 0}
    assert samples.at_step(tmp_path, "nothing", 1) == {"samples": [], "left_out": 0}


def test_tokens_come_with_one_sample_alone(tmp_path: Path) -> None:
    samples = Samples(Workers())
    (listed,) = samples.at_step(run_dir(tmp_path), "rollout", 3)["samples"]
    assert listed["has_tokens"]
    assert "tokens" not in listed
    whole = samples.one(tmp_path, listed["key"])
    assert whole["tokens"] == {"ids": [1], "mask": [1]}
    assert (whole["advantage"], whole["trained"]) == (0.5, True)


@pytest.mark.parametrize("key", ["", ":", "9:0", "0:3", "0:999999", "x:0", "0:-1", "1", "²:0"])
def test_a_key_of_no_sample_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this sample is gone"):
        Samples(Workers()).one(run_dir(tmp_path), key)


def test_prompts_with_their_rewards(tmp_path: Path) -> None:
    samples = Samples(Workers())
    found = samples.prompts(run_dir(tmp_path), "rollout", "")["prompts"]
    by_prompt = {p["prompt"]: (p["steps"], p["rewards"]) for p in found}
    assert by_prompt == {
        "a": ([1, 2, 3], [0.5, 0.5, 1.0]),
        "b": ([1, 2], [0.5, 0.5]),
        "ü": ([1, 2], [0.5, 0.5]),
    }
    assert found[0]["prompt"] == "a", "that of most steps first"
    assert [p["prompt"] for p in samples.prompts(tmp_path, "rollout", "Ü")["prompts"]] == ["ü"]


def test_the_same_prompt_over_the_steps(tmp_path: Path, monkeypatch: Any) -> None:
    samples = Samples(Workers())
    key = key_of({"prompt": "a"}).hex()
    found, left_out = samples.of_prompt(run_dir(tmp_path), key)
    assert [(s["step"], s["reward"]) for s in found] == [(1, 0), (1, 1), (2, 0), (2, 1), (3, 1)]
    assert left_out == 0
    monkeypatch.setattr(module, "MOST_OF_PROMPT", 2)
    found, left_out = samples.of_prompt(tmp_path, key)
    assert ([s["step"] for s in found], left_out) == ([1, 2], 3)
    for bad in ("", "zz", "12", key + "00", key.upper() + "g"):
        with pytest.raises(ValueError, match="no key of a prompt"):
            samples.of_prompt(tmp_path, bad)


def test_damaged_and_odd_lines(tmp_path: Path) -> None:
    rows = [
        "{", "[]", '{"kind": "rollout"}', '{"step": "1"}', '{"step": 1}',
        '{"step": 1, "kind": null, "prompt": null, "reward": null}',
        '{"step": 1, "kind": "rollout", "prompt": [{"role": "user"}], "reward": "x"}',
        '{"step": 1, "kind": "rollout", "prompt": "\\ud800", "completion": "</script>"}',
        '{"step": 1, "kind": "rollout", "prompt": "cut',
    ]  # fmt: skip
    (tmp_path / "samples.jsonl").write_text("\n".join(rows))
    samples = Samples(Workers())
    assert samples.steps(tmp_path)["kinds"] == {"None": [1], "rollout": [1]}
    found = samples.at_step(tmp_path, "rollout", 1)["samples"]
    assert [s["prompt"] for s in found] == [[{"role": "user"}], "\ud800"]
    rewards = [p["rewards"] for p in samples.prompts(tmp_path, "rollout", "")["prompts"]]
    assert rewards == [[None], [None]]
