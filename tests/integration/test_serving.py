"""`posttrain serve` as a process of its own: rollouts of a GRPO run, lm-eval, the command line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import test_server_engine
import tiny
from command import complaint
from lm_tasks import loglikelihood, sums_task
from serving import chat_model, served

from posttrain.model.folder import checkpoints_in
from posttrain.runs.config import parse_config
from posttrain.runs.train import train


@contextmanager
def process(model: Path | str, *options: str, **environment: str) -> Iterator[str]:
    """The URL of a server in another process, which must end at SIGINT without a word."""
    command = [sys.executable, "-m", "posttrain", "serve", str(model), "--port", "0", *options]
    command += ["--device", "cpu", "--dtype", "float32", "--cache-gib", "0.1"]
    started = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )
    try:
        assert started.stdout is not None
        line = started.stdout.readline()
        found = re.search(r"http://\S+(?=/v1)", line)
        assert found, line + started.stderr.read()
        yield found[0]
        started.send_signal(signal.SIGINT)
        _, errors = started.communicate(timeout=30)
        assert "Traceback" not in errors
    finally:
        started.kill()
        started.wait()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tree = tiny.run_config(folder, "sft", max_steps=2)
    return checkpoints_in(train(parse_config(tree, "test")))[-1]


@pytest.mark.slow  # the same with a server of one answer: test_server_engine.py
def test_a_grpo_run_samples_from_it_as_from_its_own_process(trained: Path, tmp_path: Path) -> None:
    """Adapters are delivered at every step, and the log-probs agree with the trainer's."""
    runs = []
    with process(trained, "--max-num-seqs", "16") as url:
        for name in ("here", "there"):
            tree = test_server_engine.grpo(tmp_path / name, trained, max_steps=3)
            if name == "there":
                tree["rollout"] |= {"engine": "server", "servers": [url]}
            runs.append(train(parse_config(tree, "test")))
    here, there = runs
    texts = [(run / "samples.jsonl").read_text().splitlines() for run in runs]
    assert [json.loads(x)["completion"] for x in texts[0]] == [
        json.loads(x)["completion"] for x in texts[1]
    ]
    steps = test_server_engine.steps
    for a, b in zip(steps(here), steps(there), strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-5)
    gaps = [s["sampling/sampling_logp_difference/mean"] for s in steps(there) if "loss" in s]
    assert max(gaps) < 1e-5


def test_lm_eval_scores_through_it(trained: Path, tmp_path: Path) -> None:
    """Its log-likelihoods are those of a forward pass."""
    lm_eval = pytest.importorskip("lm_eval", reason="needs pip install 'posttrain[lm-eval]'")
    pytest.importorskip("tenacity", reason="needs lm-eval's extra `api`")
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    choices = [str(n) for n in range(5)]
    rows = [{"question": f"{a}+{a} =", "choices": choices, "label": 2 * a} for a in range(3)]
    tasks = sums_task(tmp_path, "served_sums", rows)
    with served(trained, name="served", template="plain") as live:
        found = lm_eval.simple_evaluate(
            model="local-completions",
            model_args={
                "model": "served",
                "base_url": f"{live.url}/v1/completions",
                "tokenizer": str(trained),
                "tokenizer_backend": "huggingface",
                "num_concurrent": 1,
            },
            tasks=["served_sums"],
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            batch_size=3,
            bootstrap_iters=0,
        )
    model = AutoModelForCausalLM.from_pretrained(trained).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained)
    for sample in found["samples"]["served_sums"]:
        question = rows[sample["doc_id"]]["question"]
        for choice, response in zip(choices, sample["filtered_resps"]):
            expected, greedy = loglikelihood(model, tokenizer, question, choice)
            assert response[0] == pytest.approx(expected, abs=1e-4)
            assert response[1] == greedy


def test_a_checkpoint_with_an_adapter_is_served_as_generate_samples_it(
    trained: Path, tmp_path: Path
) -> None:
    from posttrain.runs.generate import generate

    tree = test_server_engine.grpo(tmp_path / "run", trained, max_steps=2)
    checkpoint = checkpoints_in(train(parse_config(tree, "test")))[-1]
    wanted = generate(checkpoint, "3 and 4?", max_new_tokens=12, device="cpu", temperature=0)
    with served(checkpoint) as live:
        answer = live.complete(prompt="3 and 4?", max_tokens=12, temperature=0)
        assert answer["choices"][0]["text"] == wanted[0].text
        body = {"lora_name": "x", "lora_path": str(checkpoint)}
        status, answer = live.ask("POST", "/v1/load_lora_adapter", body)
        assert status == 400
        assert "without an adapter" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--host", "0.0.0.0"], "needs an API key"),
        (["--host", "no.such.host.invalid"], "--host"),
        (["--api-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY is not set"),
        (["--port", "70000"], "--port"),
        (["--adapter", "folder"], "NAME=FOLDER"),
        (["--adapter", "a=nowhere"], "--adapter: a: "),
        (["--time-limit", "0"], "--time-limit"),
        (["--cache-gib", "-1"], "--cache-gib"),
        (["--max-length", "100000"], "--max-length"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(options, expected, tmp_path, capsys) -> None:
    model = chat_model(tmp_path / "tiny")
    capsys.readouterr()
    port = [] if "--port" in options else ["--port", "0"]
    assert expected in complaint(capsys, "serve", model, "--device", "cpu", *port, *options)


def test_a_port_in_use_is_named(tmp_path, capsys) -> None:
    model = chat_model(tmp_path / "tiny")
    with served(model) as live:
        said = complaint(capsys, "serve", model, "--port", live.port)
        assert f"port {live.port}" in said
