"""`posttrain doctor` says what there is, and how to get what there is not."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
from command import Capture, output_of

from posttrain.common.http import HttpError, Reply
from posttrain.runs import doctor


def findings(folder: Path) -> dict[str, doctor.Finding]:
    return {found.name: found for found in doctor.examine(folder)}


def test_it_speaks_of_everything_a_bug_report_needs(tmp_path: Path) -> None:
    found = findings(tmp_path)
    assert found["python"].text.startswith(".".join(map(str, sys.version_info[:3])))
    assert torch.__version__ in found["torch"].text
    assert found["threads"].text.startswith(f"{torch.get_num_threads()} of ")
    assert "GB free in" in found["disk"].text
    assert found["same bits"].state == "ok"
    names = {"platform", "libraries", "model.dtype auto", "attention", "fp32 products"}
    assert names | {"sandbox", "hub"} <= found.keys()


def test_the_sandbox_has_the_level_that_code_execution_gets(tmp_path: Path) -> None:
    from posttrain.rewards.code import CodeExecution, build

    try:
        level = build(CodeExecution()).pool.level
    except ValueError:
        assert findings(tmp_path)["sandbox"].state == "missing"
    else:
        assert findings(tmp_path)["sandbox"].text.startswith(level)


def test_an_extra_that_is_missing_comes_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_vllm(name: str) -> str:
        if name == "vllm":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "version", without_vllm)
    found = findings(tmp_path)["vllm"]
    assert found.state == "note"
    assert found.text.endswith("pip install 'posttrain[vllm]'")


@pytest.mark.parametrize(
    ("answer", "state", "text"),
    [
        (Reply(200, "[]"), "ok", "answers; no HF_TOKEN"),
        (HttpError("unreachable", "no such host", 1), "note", "does not answer (no such host)"),
        (HttpError("busy", "busy", 1, Reply(503, "")), "note", "answers 503"),
    ],
)
def test_the_hub_is_asked(
    monkeypatch: pytest.MonkeyPatch, answer: Reply | HttpError, state: str, text: str
) -> None:
    def request(*_: object) -> Reply:
        if isinstance(answer, HttpError):
            raise answer
        return answer

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(doctor, "request", request)
    found = doctor._hub()
    assert found.state == state
    assert text in found.text


def test_a_token_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    monkeypatch.setattr(doctor, "request", lambda *_: Reply(200, "[]"))
    assert doctor._hub().text.endswith("a token is set")
    assert "canary" not in str(doctor._hub())


def test_offline_is_said_without_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(doctor, "request", None)
    assert "HF_HUB_OFFLINE is set" in doctor._hub().text


def test_the_command_prints_a_line_each(capfd: Capture) -> None:
    lines = output_of(capfd, "doctor").splitlines()
    assert all(line[0] in " -!" for line in lines)
    assert len(lines) >= 15
