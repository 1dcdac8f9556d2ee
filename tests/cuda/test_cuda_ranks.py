"""Two ranks, each with a pretended GPU, exchange over a pretended NCCL what NCCL would take, and
give the numbers of one process on a CPU."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pretend_cuda
import pytest
import ranks
import test_served_ranks as served_ranks
import tiny
import torch
import torch.distributed as dist
from rank_calls import on_ranks
from serving import Live, chat_model, served
from test_distributed import launch, steps, weights_of
from test_meshes import apart, assert_same_run_of_adapters, distributed, recipe
from test_resume import metrics
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from posttrain.common.distributed import all_gather, from_rank_0, sum_gradients
from posttrain.common.mesh import arrange
from posttrain.common.shards import full
from posttrain.model.parts import local
from posttrain.training.config import DistributedConfig
from posttrain.training.sharding import shard

pretend_cuda.only_here()
ranks.context.set_forkserver_preload(["pretend_preload", *ranks.PRELOAD])

CLOSE = 1e-5
MESHES = {
    "ddp 2": ("ddp", 2, 1, 1),
    "fsdp 2": ("fsdp", 2, 1, 1),
    "tp 2": ("ddp", 2, 2, 1),
    "sp 2": ("ddp", 2, 1, 2),
    "hsdp 2 x 2": ("hsdp", 4, 1, 1),
    "fsdp 2 x tp 2": ("fsdp", 4, 2, 1),
    "tp 2 x sp 2": ("ddp", 4, 2, 2),
}
"""Strategy, ranks, tensor_parallel and sequence_parallel."""
OFF_POLICY = {"sampler_correction": "sequence"}


# --- the pretended NCCL ---------------------------------------------------------------------------


def is_nccl() -> None:
    own = torch.device("cuda", dist.get_rank())
    mine, both = torch.full((3,), 1.0 + own.index, device="cuda"), torch.zeros(6, device="cuda")
    assert mine.device == own
    assert dist.get_backend() == "nccl"
    dist.all_gather_into_tensor(both.view(2, 3), mine)  # NCCL looks at numbers of elements alone
    assert both.tolist() == [1.0] * 3 + [2.0] * 3
    dist.all_reduce(mine, op=dist.ReduceOp.AVG)
    assert mine.tolist() == [1.5] * 3
    assert all_gather(own.index) == [0, 1]
    assert from_rank_0(own.index) == 0
    both_ways = init_device_mesh("cuda", (1, 2), mesh_dim_names=("replicate", "shard"))
    rows = distribute_tensor(torch.arange(8.0).view(4, 2), both_ways["shard"], [Shard(0)])
    assert rows.to_local().device == own
    assert rows.full_tensor().flatten().tolist() == [*map(float, range(8))]
    alone = dist.new_group([0])  # which rank 1 does not enter, but has to know of
    if own.index == 0:
        dist.all_reduce(mine, group=alone)


def refuses_what_nccl_refuses() -> None:
    with pytest.raises(RuntimeError, match="another rank's GPU"):
        torch.ones(3, device=f"cuda:{1 - dist.get_rank()}")
    del os.environ["PRETEND_OWN_GPU"]
    there = torch.device("cuda", 1 - dist.get_rank())
    here = torch.ones(2, 3, device="cuda")
    for wrong, message in (
        (torch.ones(3), "No backend type associated with device type cpu"),
        (here.T, "must be contiguous"),
        (here.to(there), "bound to"),
    ):
        with pytest.raises(RuntimeError, match=message):
            dist.all_reduce(wrong)
        with pytest.raises(RuntimeError, match=message):
            dist.broadcast(wrong, src=0)
    with pytest.raises(RuntimeError, match="must be CUDA"):
        dist.all_gather([torch.empty(2, 3), torch.empty(2, 3)], here)
    with pytest.raises(RuntimeError, match="two devices"):
        here + here.to(there)
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.ones(3, device="cuda:2")
    on_host = torch.nn.Parameter(torch.ones(4))
    with pytest.raises(RuntimeError, match="No backend type"):
        sum_gradients([on_host], sharded=False)
    spec = distribute_tensor(torch.ones(4), init_device_mesh("cuda", (2,)), [Shard(0)])._spec
    offloaded = DTensor(torch.ones(2), spec, requires_grad=False)
    with pytest.raises(RuntimeError, match="No backend type"):
        offloaded.full_tensor()


def groups_end_in_time() -> None:
    """Also those of a mesh, which torch would let wait for 10 minutes, with gloo 30."""
    device = "cpu" if dist.get_backend() == "gloo" else "cuda"
    formed = arrange(device, tensor=2)
    groups = (*formed.ranks.get_all_groups(), formed.share_group, formed.replicas)
    assert {g._get_backend(torch.device(device)).options._timeout.seconds for g in groups} == {60}


def parameters_are_the_cpus() -> None:
    policy = tiny.models("llama").policy.to("cuda")
    shard(policy, DistributedConfig(strategy="fsdp", offload="parameters"))
    assert {local(p).device.type for p in policy.parameters()} == {"cpu"}
    assert policy.device == torch.device("cuda", dist.get_rank())
    assert {full(p).device.type for p in policy.parameters()} == {"cuda"}


@pytest.mark.parametrize("function", [is_nccl, refuses_what_nccl_refuses, parameters_are_the_cpus])
def test_the_pretended_nccl(function, tmp_path):
    on_ranks(2, tmp_path, function, device="cuda")


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), "cuda"])
def test_the_timeout_holds_in_every_group(device, tmp_path):
    on_ranks(2, tmp_path, groups_end_in_time, device=device)


@pytest.fixture(autouse=True)
def own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that computes on another's GPU, where it would take memory, fails."""
    monkeypatch.setenv("PRETEND_OWN_GPU", "1")


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: Any) -> Callable[[str], Path]:
    """A method's run in one process on a CPU, made once."""

    @functools.cache
    def of(method: str) -> Path:
        folder = tmp_path_factory.mktemp(method)
        return launch(short(folder, method), folder / "runs", 1)

    return of


@pytest.fixture(scope="module")
def base(tmp_path_factory: Any) -> Path:
    """A model to put an adapter on."""
    folder = tmp_path_factory.mktemp("base")
    return launch(short(folder, "sft", max_steps=1), folder / "runs", 1)


def short(folder: Path, method: str, **keys: Any) -> dict[str, Any]:
    tree = recipe(folder, method, **{"max_steps": 2} | keys)
    tree["model"] |= {"device": "cpu", "dtype": "float32"}
    return tree


def on_cuda(tree: dict[str, Any], mesh: str, **keys: Any) -> dict[str, Any]:
    """The recipe of ranks that have GPUs."""
    strategy, _, tensor, sequence = MESHES[mesh]
    section = distributed(strategy, tensor, sequence) | keys
    return tree | {"model": tree["model"] | {"device": "cuda"}, "distributed": section}


def launched(tree: dict[str, Any], mesh: str, folder: Path, **keys: Any) -> Path:
    number = MESHES[mesh][1]
    machines = 2 if mesh.startswith("hsdp") else 1
    return launch(on_cuda(tree, mesh, **keys), folder / "runs", number, machines=machines)


def assert_equal(one: Path, two: Path) -> None:
    found = apart(one, two)
    assert max(found.values()) < CLOSE, found


METHODS = ("sft", "grpo", "dpo", "ppo", "kto", "reward_model", "classification")
RUNS = [
    (method, mesh)
    for mesh, (_, number, *_) in MESHES.items()
    for method in (METHODS if number == 2 else METHODS[:2])
]
FAST = [("sft", "ddp 2"), ("grpo", "fsdp 2")]


@pytest.mark.parametrize(
    ("method", "mesh"),
    [pytest.param(*x, marks=() if x in FAST else pytest.mark.slow) for x in RUNS],
)
def test_gpus_equal_a_cpu(method, mesh, tmp_path, on_cpu):
    assert_equal(on_cpu(method), launched(short(tmp_path, method), mesh, tmp_path))


OFFLOADED = {"offload": "parameters"}
OTHER_MESHES: list[tuple[str, dict[str, Any]]] = [
    *((mesh, {}) for mesh in ("ddp 2", "tp 2", "sp 2")),
    ("fsdp 2", OFFLOADED),
]


@pytest.mark.parametrize(
    ("mesh", "keys"),
    [("fsdp 2", {}), *(pytest.param(*x, marks=pytest.mark.slow) for x in OTHER_MESHES)],
)
def test_a_run_that_evaluates_resumes_with_the_same_bits(mesh, keys, tmp_path):
    """Held-out rows, sampled problems and their scores on the way."""
    tree = short(tmp_path, "sft", eval_steps=1, save_steps=1, keep_checkpoints=9)
    tree["eval"] = {"split": 0.1, "tasks": ["word_problems"], "max_samples": 3, "max_new_tokens": 4}
    one = launch(tree, tmp_path / "runs", 1)
    two = launched(tree, mesh, tmp_path, **keys)
    for a, b in zip(metrics(one), metrics(two), strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert b[name] == pytest.approx(value, rel=CLOSE, abs=1e-7), name
    before, whole = metrics(two), weights_of(two / "checkpoint-2")
    shutil.rmtree(two / "checkpoint-2")
    tree["trainer"]["resume_from_checkpoint"] = str(two)
    launch(on_cuda(tree, mesh, **keys), tmp_path / "runs", 2, two)
    assert metrics(two) == before
    assert all(torch.equal(x, whole[name]) for name, x in weights_of(two / "checkpoint-2").items())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "grpo", "dpo"])
@pytest.mark.parametrize("mesh", ["ddp 2", "fsdp 2", "tp 2", "sp 2"])
def test_lora(method, mesh, tmp_path, base):
    tree = short(tmp_path, method, learning_rate=1e-2)
    model = {"name": str(base), "adapter": {"type": "lora", "r": 4}}
    tree["model"] = model | {"device": "cpu", "dtype": "float32"}
    one = launch(tree, tmp_path / "runs", 1)
    assert_same_run_of_adapters(one, launched(tree, mesh, tmp_path))


OTHER: list[tuple[str, str, dict[str, Any]]] = [
    ("dpo", "fsdp 2", {"trainer": {"precompute_reference": True}}),
    ("kto", "fsdp 2", {"reference": {"sync_steps": 1, "sync_alpha": 0.5}}),
    ("kto", "tp 2", {"reference": {"sync_steps": 1, "sync_alpha": 0.5}}),
    ("grpo", "ddp 2", {"rollout": {"one_step_off": True}, "trainer": OFF_POLICY}),
    ("grpo", "fsdp 2", {"rollout": {"one_step_off": True}, "trainer": OFF_POLICY}),
    ("grpo", "fsdp 2", {"model": {"gradient_checkpointing": True}}),
    ("grpo", "tp 2", {"model": {"gradient_checkpointing": True}}),
    ("classification", "tp 2", {"trainer": {"mode": "label_tokens"}}),
    ("sft", "fsdp 2", {"distributed": {"reshard_after_forward": False}}),
    ("sft", "fsdp 2", {"distributed": {"offload": "optimizer"}}),
    ("dpo", "fsdp 2", {"distributed": OFFLOADED, "trainer": {"precompute_reference": True}}),
    ("kto", "fsdp 2", {"distributed": OFFLOADED, "reference": {"sync_steps": 1}}),
    ("grpo", "hsdp 2 x 2", {"distributed": OFFLOADED}),
    (
        "grpo",
        "fsdp 2",
        {"distributed": OFFLOADED, "rollout": {"one_step_off": True}, "trainer": OFF_POLICY},
    ),
    ("ppo", "fsdp 2", {"distributed": OFFLOADED}),
    ("reward_model", "fsdp 2", {"distributed": OFFLOADED}),
    (
        "classification",
        "fsdp 2",
        {"distributed": OFFLOADED, "model": {"gradient_checkpointing": True}},
    ),
    ("sft", "fsdp 2 x tp 2", {"distributed": OFFLOADED}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "mesh", "keys"), OTHER)
def test_other_paths(method, mesh, keys, tmp_path):
    tree = short(tmp_path, method)
    for section, values in keys.items():
        if section != "distributed":
            tree[section] = tree.get(section, {}) | values
    one = launch(tree, tmp_path / "runs", 1)
    assert_equal(one, launched(tree, mesh, tmp_path, **keys.get("distributed", {})))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["ddp 2", "fsdp 2", "tp 2", "sp 2", "fsdp 2 x tp 2"])
@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_bf16(method, mesh, tmp_path):
    """As one GPU, up to its rounding: the flash kernel on every rank's own rows or heads."""
    tree = short(tmp_path, method)
    tree["model"]["dtype"] = "bfloat16"
    one = launch(on_cuda(tree, "ddp 2"), tmp_path / "runs", 1)
    two = launched(tree, mesh, tmp_path)
    for a, b in zip(steps(one)[:1], steps(two)[:1], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=0.02, abs=0.02)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2])
def test_models_are_asked(parts, tmp_path, base):
    """`eval` and `generate` on ranks that share the rows, and that split the model."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "{i} and {i}?"}}\n' for i in range(3)))
    results, texts = [], []
    for number, device in ((1, "cpu"), (2, "cuda")):
        out, split = tmp_path / str(number), ["--tensor-parallel", str(parts if number > 1 else 1)]
        split += ["--device", device, "--dtype", "float32"]
        asked = "--tasks word_problems --max-samples 5 --max-new-tokens 8 -n 2 --temperature 1"
        words = ["eval", str(base), *asked.split(), *split, "--output", str(out)]
        ranks.command(number, tmp_path / f"eval-{number}", words)
        results.append((out / "results.samples/word_problems.jsonl").read_text())
        asked = f"--max-new-tokens 8 -n 2 --file {rows} --output {out}.jsonl"
        words = ["generate", str(base), *asked.split(), *split]
        ranks.command(number, tmp_path / f"generate-{number}", words)
        texts.append(Path(f"{out}.jsonl").read_text())
    assert completions(results[0]) == completions(results[1])
    assert completions(texts[0]) == completions(texts[1])


GPUS = ["--device", "cuda", "--dtype", "float32", "--cache-gib", "0.05", "--port", "0"]


@pytest.mark.slow
def test_a_server(tmp_path):
    """Requests are taken in a thread of rank 0, and answered by both."""
    model = chat_model(tmp_path / "model")
    with served(model, max_num_seqs=4) as live:
        expected = [served_ranks.rounded(live.complete(**asked)) for asked in served_ranks.ASKED]
    found: list[Any] = []

    def ask(processes: list[Any]) -> None:
        live = Live(served_ranks.address(tmp_path), None)  # type: ignore[arg-type]
        found.extend(served_ranks.rounded(live.complete(**x)) for x in served_ranks.ASKED)
        for process in processes:
            os.kill(process.pid, signal.SIGINT)

    words = ["serve", str(model), "--tensor-parallel", "2", "--max-num-seqs", "4", *GPUS]
    codes = ranks.exit_codes(2, tmp_path, words, ask)
    assert found == expected
    assert codes == [130, 0]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["ddp 2", "fsdp 2", "tp 2"])
def test_a_reward_model(mesh, tmp_path):
    """Every rank has one of its own, on its GPU."""
    judge = launch(short(tmp_path / "judge", "reward_model"), tmp_path / "judge/runs", 1)
    tree = short(tmp_path, "grpo")
    tree["reward"] = {"type": "reward_model", "path": str(judge), "dtype": "float32"}
    one = launch(tree, tmp_path / "runs", 1)
    tree["reward"]["device"] = "cuda"
    assert_equal(one, launched(tree, mesh, tmp_path))


def completions(lines: str) -> list[str]:
    return [json.loads(line)["completion"] for line in lines.splitlines()]
