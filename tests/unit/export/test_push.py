"""Uploading, against a stand-in for the hub's interface."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command import Capture, complaint, output_of, state
from gguf_models import model_folder
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from posttrain.common.errors import SettingError
from posttrain.export.run import export, push

SECRET = "hf_secretsecret"


class Hub:
    """What of HfApi is used; repositories are names with whether they are private."""

    def __init__(self, **repositories: bool) -> None:
        self.private = repositories
        self.files: dict[str, dict[str, str]] = {}
        self.refuses: Exception | None = None

    def repo_info(self, repo: str, repo_type: str) -> Any:
        if repo not in self.private:
            raise RepositoryNotFoundError("404", response=response(404))
        return SimpleNamespace(private=self.private[repo])

    def create_repo(self, repo: str, private: bool, repo_type: str) -> None:
        assert repo_type == "model"
        self.private[repo] = private

    def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> Any:
        if self.refuses is not None:
            raise self.refuses
        self.files[repo_id] = state(Path(folder_path))
        return SimpleNamespace(repo_url=f"https://hub/{repo_id}")


def response(code: int) -> Any:
    return SimpleNamespace(status_code=code, headers={}, request=None)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    model_folder(tmp_path / "base")
    return export(str(tmp_path / "base"), output=tmp_path / "x", say=lambda line: None)


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)


def test_an_export_is_uploaded_as_it_is_and_private(exported: Path) -> None:
    hub, said = Hub(), []
    address = push(str(exported), "me/model", api=hub, say=said.append)
    assert address == "https://hub/me/model"
    assert hub.private == {"me/model": True}
    assert hub.files["me/model"] == state(exported)
    assert SECRET not in "".join(said)


def test_a_model_is_exported_on_the_way(exported: Path, tmp_path: Path) -> None:
    hub = Hub()
    push(str(tmp_path / "base"), "me/model", "gguf", public=True, api=hub, say=lambda line: None)
    assert hub.private == {"me/model": False}
    names = hub.files["me/model"]
    assert sorted(n.rpartition(".")[2] for n in names) == ["gguf", "json", "md"]


def test_a_dry_run_sends_nothing_and_shows_files_and_card(
    exported: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    text = output_of(capsys, "push", exported, "me/model", "--dry-run")
    for name in state(exported):
        assert name in text
    assert "# x" in text
    assert text.endswith("nothing was sent; me/model would be private\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "x"]


def test_a_public_repository_is_not_written_to_by_default(exported: Path) -> None:
    hub = Hub(**{"me/model": False})
    with pytest.raises(ValueError, match="exists and is public"):
        push(str(exported), "me/model", api=hub, say=lambda line: None)
    assert not hub.files
    push(str(exported), "me/model", public=True, api=hub, say=lambda line: None)
    assert hub.files


def test_without_a_token_nothing_is_written(
    exported: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("", "  "):
        monkeypatch.setenv("HF_TOKEN", value)
        text = complaint(capsys, "push", exported, "me/model")
        assert (
            "needs a token of the hub with write access in the environment variable HF_TOKEN"
            in text
        )


@pytest.mark.parametrize("name", ["a b/c", "a/b/c", "../x", "", "-x", "a--b", "x.git", "a" * 200])
def test_names_that_are_none_are_refused(name: str, exported: Path) -> None:
    with pytest.raises(ValueError, match="repo: "):
        push(str(exported), name, dry_run=True, say=lambda line: None)


@pytest.mark.parametrize(
    "error",
    [
        HfHubHTTPError(f"403 Forbidden for {SECRET}\nsecond line", response=response(403)),
        OSError(28, "No space left on device"),
    ],
)
def test_what_the_hub_says_is_one_line_without_the_token(error: Exception, exported: Path) -> None:
    hub = Hub()
    hub.refuses = error
    with pytest.raises(ValueError, match="the hub did not take me/model") as raised:
        push(str(exported), "me/model", api=hub, say=lambda line: None)
    assert SECRET not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_hub_that_cannot_be_reached_is_one_line(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the hub's own client, whose errors of a connection are no OSError."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        api = HfApi(f"http://127.0.0.1:{closed.getsockname()[1]}", SECRET)
        with pytest.raises(ValueError, match=r"the hub did not take me/model: .*refused") as raised:
            push(str(exported), "me/model", api=api, say=lambda line: None)
    assert SECRET not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_private_repository_is_not_written_to_as_public(exported: Path) -> None:
    hub = Hub(**{"me/model": True})
    with pytest.raises(SettingError, match="public: me/model exists and is private"):
        push(str(exported), "me/model", public=True, api=hub, say=lambda line: None)
    assert not hub.files


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--format", "gguf"),
        ("--format", "safetensors"),
        ("--base-model", "o/b"),
        ("--license", "mit"),
    ],
)
def test_what_is_settled_in_an_export_cannot_be_given_again(
    option: str, value: str, exported: Path, capsys: Capture
) -> None:
    text = complaint(capsys, "push", exported, "me/model", "--dry-run", option, value)
    assert f"{option}: {exported} is an export already" in text


def test_the_card_of_an_upload_loads_the_model_by_its_name_on_the_hub(
    exported: Path, tmp_path: Path
) -> None:
    hub = Hub()
    push(str(tmp_path / "base"), "me/model", api=hub, say=lambda line: None)
    said: list[str] = []
    push(str(tmp_path / "base"), "me/model", dry_run=True, say=said.append)
    assert 'AutoModelForCausalLM.from_pretrained("me/model")' in "".join(said)
    said.clear()
    push(str(exported), "me/model", api=hub, say=said.append)
    assert "its README.md loads the model as x: edit it to me/model" in said[-2]


@pytest.mark.parametrize("damage", ["changed", "missing", "added", "linked"])
def test_an_export_that_was_changed_is_not_uploaded(damage: str, exported: Path) -> None:
    hub = Hub()
    if damage == "changed":
        (exported / "config.json").write_text("{}")
    elif damage == "missing":
        (exported / "config.json").unlink()
    elif damage == "added":
        (exported / ".env").write_text("PASSWORD=1")
    else:
        (exported / "passwd").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match=r"is damaged|is no part of the export"):
        push(str(exported), "me/model", api=hub, say=lambda line: None)
    assert not hub.files


def test_the_card_may_be_edited(exported: Path) -> None:
    hub = Hub()
    (exported / "README.md").write_text("# mine\n")
    push(str(exported), "me/model", api=hub, say=lambda line: None)
    assert hub.files["me/model"] == state(exported)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, exported: Path) -> None:
    shutil.rmtree(tmp_path / "base")
    (tmp_path / "notes").mkdir()
    with pytest.raises(ValueError, match="is not a model folder"):
        push(str(tmp_path / "notes"), "me/model", api=Hub(), say=lambda line: None)
