"""All weights replaced while the server runs: which are taken, when, and what answers say of it."""

from __future__ import annotations

import json
import pickle
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import save_adapter_folder
from serving import Live, chat_model, served
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM

from posttrain.common.errors import SettingError
from posttrain.evaluation.loading import load_sampler
from posttrain.rollout.sampler import Rollout, SamplingParams
from posttrain.serving.serve import ServeSettings, check

PROMPT = [5, 9, 11, 7]
KEYS = {"temperature": 1.0, "ignore_eos": True, "logprobs": 1, "return_token_ids": True}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and two of the same shape with other weights."""
    folder = tmp_path_factory.mktemp("models")
    chat_model(folder / "first")
    for place, name in enumerate(("second", "third"), 1):
        model = AutoModelForCausalLM.from_pretrained(folder / "first")
        torch.manual_seed(place)
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        model.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def unmoved(models: Path) -> Iterator[Live]:
    """A server whose weights no test replaces."""
    with served(models / "first", name="tiny", allow_weight_updates=str(models)) as server:
        yield server
        assert version_of(server) == "default"


@pytest.fixture
def live(models: Path) -> Iterator[Live]:
    settings = {"name": "tiny", "max_num_seqs": 8, "allow_weight_updates": str(models)}
    with served(models / "first", **settings) as server:
        yield server


def update(live: Live, folder: Path | str, version: str = "v1") -> tuple[int, Any]:
    """The first answer that is no success, or the last."""
    steps: list[tuple[str, dict[str, Any]]] = [
        ("/init_weight_transfer_engine", {"init_info": {}}),
        ("/start_weight_update", {}),
        ("/update_weights", {"update_info": {"path": str(folder)}}),
        ("/finish_weight_update", {"weight_version": version}),
    ]
    answer: tuple[int, Any] = (0, None)
    for path, body in steps:
        answer = live.ask("POST", path, body)
        if answer[0] != 200:
            break
    return answer


def sample(folder: Path, prompt: list[int], tokens: int, seed: int) -> Rollout:
    sampler = load_sampler(str(folder), "cpu", "float32", 1)
    return sampler.generate([prompt], SamplingParams(tokens, ()), [seed])[0]


def version_of(live: Live) -> str:
    status, info = live.ask("GET", "/weight_info")
    assert status == 200
    return str(info["weight_version"])


def test_answers_come_from_the_new_weights_and_say_so(models, live):
    for name, version in (("first", "default"), ("second", "run-v1"), ("third", "run-v2")):
        if name != "first":
            assert update(live, models / name, version)[0] == 200
        answer = live.complete(model="tiny", prompt=PROMPT, max_tokens=20, seed=4, **KEYS)
        expected = sample(models / name, PROMPT, 20, 4)
        (choice,) = answer["choices"]
        assert choice["token_ids"] == expected.response_ids
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected.logprobs, abs=1e-5)
        assert choice["weight_versions"] == [{"version": version, "start": 0, "end": 20}]
        assert answer["weight_version"] == version_of(live) == version
        _, listed = live.ask("GET", "/v1/models")
        assert listed["data"][0]["weight_version"] == version


def test_a_completion_that_is_under_way_goes_on_with_the_new_weights(models, live):
    """Each token's log-prob is that of the version that the answer names for it."""
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 240, "seed": 4, **KEYS}
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(live.complete, **(body | {"seed": seed})) for seed in (4, 5, 6)]
        while not (live.service.worker.jobs and live.service.worker.engine.running.rows):
            time.sleep(0.001)
        assert update(live, models / "second")[0] == 200
        choices = [future.result()["choices"][0] for future in asked]
    mixed = [choice for choice in choices if len(choice["weight_versions"]) == 2]
    assert mixed, "all of them were faster than the update"
    for choice in mixed:
        first, second = choice["weight_versions"]
        assert (first["version"], second["version"]) == ("default", "v1")
        assert first["start"] == 0 < first["end"] == second["start"] < second["end"] == 240
        ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        assert len(ids) == len(logprobs) == 240
        for span, name in ((first, "first"), (second, "second")):
            model = AutoModelForCausalLM.from_pretrained(models / name).eval()
            with torch.no_grad():
                logits = model(torch.tensor([PROMPT + ids])).logits[0].log_softmax(-1)
            where = range(span["start"], span["end"])
            expected = [float(logits[len(PROMPT) - 1 + i, ids[i]]) for i in where]
            assert [logprobs[i] for i in where] == pytest.approx(expected, abs=2e-4)
    assert live.idle()


def test_a_stream_names_the_versions_at_its_end(unmoved):
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 5, "seed": 4, "stream": True}
    body |= {"ignore_eos": True}
    _, text = unmoved.ask("POST", "/v1/completions", body)
    events = [json.loads(x[6:]) for x in text.split("\n\n") if x.startswith("data: {")]
    spans = [e["choices"][0].get("weight_versions") for e in events]
    assert spans[-1] == [{"version": "default", "start": 0, "end": 5}]
    assert set(map(str, spans[:-1])) <= {"None"}


def test_prompts_of_old_weights_are_forgotten(models, live):
    prompt = list(range(4, 104))
    live.complete(model="tiny", prompt=prompt, max_tokens=2, seed=1, **KEYS)
    assert live.service.worker.engine.prefixes.blocks
    update(live, models / "second")
    answer = live.complete(model="tiny", prompt=prompt, max_tokens=8, seed=1, **KEYS)
    assert answer["choices"][0]["token_ids"] == sample(models / "second", prompt, 8, 1).response_ids


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda models: chat_model(models / "wide", hidden_size=64), "another shape: .* is \\["),
        (lambda models: chat_model(models / "deep", num_hidden_layers=3), "another model's"),
        (lambda models: chat_model(models / "flat", num_hidden_layers=1), "lacks 9 tensors"),
        (lambda models: models / "nowhere", "no folder that the server sees"),
        (lambda models: models / ".." / "elsewhere", "not within"),
        (lambda models: "/etc", "^/etc is not within"),
        (
            lambda models: "first",
            f"^path must be absolute: 'first' would be {Path.cwd()}/first in",
        ),
        (lambda models: "~/first", "path must be absolute: '~/first' would be /.*/~/first in"),
        (lambda models: "/\0", "path: "),
        (lambda models: pickled(models / "pickled"), "no safetensors, and nothing else is read"),
        (lambda models: damaged(models / "damaged"), "model.safetensors is damaged"),
        (lambda models: linked(models / "linked"), "model.safetensors is a link to elsewhere"),
    ],
)
def test_what_is_not_this_models_changes_nothing(make, expected, models, unmoved):
    live = unmoved
    before = live.complete(model="tiny", prompt=PROMPT, max_tokens=9, seed=4, **KEYS)["choices"]
    status, answer = update(live, make(models))
    assert status in (400, 403, 404)
    assert re.search(expected, answer["error"]["message"]), answer
    assert "\n" not in answer["error"]["message"]
    status, answer = live.ask("POST", "/finish_weight_update", {"weight_version": "v9"})
    assert (status, version_of(live)) == (409, "default")
    after = live.complete(model="tiny", prompt=PROMPT, max_tokens=9, seed=4, **KEYS)["choices"]
    assert after == before


class Runs:
    def __reduce__(self) -> Any:
        return (print, ("this must never run",))


def pickled(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Runs()))
    return folder


def damaged(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"\x10" * 100)
    return folder


def linked(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    if not (folder / "model.safetensors").exists():
        (folder / "model.safetensors").symlink_to(folder.parent / "second" / "model.safetensors")
    return folder


def test_the_order_of_an_update(models, unmoved):
    live = unmoved
    finish = ("POST", "/finish_weight_update", {"weight_version": "v1"})
    path = {"update_info": {"path": str(models / "second")}}
    assert live.ask(*finish)[0] == 409
    assert live.ask("POST", "/update_weights", path)[0] == 409
    assert live.ask("POST", "/start_weight_update", {})[0] == 200
    assert live.ask("POST", "/update_weights", path)[0] == 200
    assert live.ask("POST", "/start_weight_update", {})[0] == 200, "of a trainer after a killed one"
    assert live.ask(*finish)[0] == 409, "what the killed one had sent is dropped"
    assert version_of(live) == "default"
    for body in ({}, {"weight_version": ""}, {"weight_version": "a b"}, {"weight_version": 3}):
        assert live.ask("POST", "/finish_weight_update", body)[0] == 400


def test_folders_of_the_trainer_are_seen_or_not(models, unmoved):
    live = unmoved
    assert live.ask("GET", f"/weight_info?path={models}/second")[0] == 200
    assert live.ask("GET", f"/weight_info?path={models}/nowhere")[0] == 404
    assert live.ask("GET", "/weight_info?path=/etc")[0] == 403
    status, answer = live.ask("GET", "/weight_info?path=second")
    assert (status, answer["error"]["param"]) == (400, "path")
    assert "path must be absolute" in answer["error"]["message"]


def test_nothing_is_taken_unless_it_was_allowed(models):
    with served(models / "first", name="tiny") as live:
        status, answer = update(live, models / "second")
        assert status == 403
        assert "takes no weight updates: start it with allow_weight_updates" in str(answer)
        assert live.ask("GET", "/weight_info")[0] == 403
        answer = live.complete(model="tiny", prompt=PROMPT, max_tokens=2, seed=4)
        assert "weight_version" not in json.dumps(answer)


def test_an_adapter_is_not_updated(models, tmp_path):
    adapter = save_adapter_folder(tmp_path / "adapter", models / "first")
    with (
        pytest.raises(SettingError, match="is an adapter or quantised"),
        served(adapter, allow_weight_updates=str(models)),
    ):
        pass


def test_a_folder_that_is_none(tmp_path):
    settings = ServeSettings(allow_weight_updates=str(tmp_path / "no"))
    with pytest.raises(SettingError, match="no is no folder: make it first"):
        check(settings)


def test_weights_that_are_saved_under_other_names(models, tmp_path):
    """transformers writes each expert apart and holds them in one tensor."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(models / "first")
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    for name in ("one", "two"):
        MixtralForCausalLM(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    with served(tmp_path / "one", name="tiny", allow_weight_updates=str(tmp_path)) as live:
        assert update(live, tmp_path / "two") == (200, {"message": "Weight update finished"})
        answer = live.complete(model="tiny", prompt=PROMPT, max_tokens=12, seed=4, **KEYS)
    expected = sample(tmp_path / "two", PROMPT, 12, 4).response_ids
    assert answer["choices"][0]["token_ids"] == expected
