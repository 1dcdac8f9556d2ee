"""A model whose ranks read their own parts is the model that each rank reads whole, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from architectures import causal_lm
from damage import save_model_folder
from huggingface_hub import constants
from rank_calls import on_ranks
from safetensors.torch import load_file, save_file
from test_distributed import assert_same_run, launch

from posttrain.common import distributed
from posttrain.common.batch import pack
from posttrain.common.errors import SettingError
from posttrain.model import empty
from posttrain.model.forward import forward
from posttrain.model.heads import add_scoring_head, add_value_head
from posttrain.model.load import load_policy
from posttrain.model.loaded import start_hash
from posttrain.model.parallel.split import split
from posttrain.model.parts import Part, local, part_of
from posttrain.runs import by_shards
from posttrain.runs.config import parse_config
from posttrain.training.sharding import arrange_ranks, shard

pytestmark = pytest.mark.distributed


def config_for(folder: Path, method: str = "sft", **model: Any) -> Any:
    tree = tiny.run_config(folder.parent / "recipe", method)
    full = {} if model.keys() & {"use_lora", "adapter"} else {"adapter": "none"}
    tree["model"] = {"name": str(folder), "device": "cpu", **full, **model}
    tree["distributed"] = {"strategy": "fsdp"}
    if method == "ppo":  # the native sampler would have a copy of the whole model
        tree["rollout"] |= {"engine": "server", "servers": ["http://127.0.0.1:1"]}
    return parse_config(tree, "test")


def heads(policy: Any, method: str, name: str) -> None:
    if method == "ppo":
        add_value_head(policy, own_network=True)
    if method == "reward_model":
        add_scoring_head(policy, name)


def both(config: Any, method: str) -> tuple[Any, Any]:
    """The policy that is read in parts, and the one that is read whole."""
    name, scores = config.model.name, method == "reward_model"
    parts, why = by_shards.begin(config, name, tiny.CPU, scores)
    assert parts is not None, why
    assert all(p.is_meta != ("lora_" in n) for n, p in parts.named_parameters())
    heads(parts, method, name)
    by_shards.complete(parts, config, tiny.CPU)
    whole = load_policy(config.model, name, tiny.CPU, config.trainer.seed, scores)
    heads(whole, method, name)
    return parts, whole


def same_bits(config: Any, method: str) -> None:
    parts, whole = both(config, method)
    assert distributed.is_sharded(parts)
    expected = dict(whole.named_parameters(remove_duplicate=False))
    found = dict(parts.named_parameters(remove_duplicate=False))
    assert found.keys() == expected.keys()
    for name, parameter in found.items():
        box = part_of(parameter).box
        assert local(parameter).numel() < parameter.numel() or len(parameter) == 1, name
        assert torch.equal(local(parameter), expected[name].detach()[box]), name
        assert parameter.requires_grad == expected[name].requires_grad, name
        assert parameter.dtype == expected[name].dtype, name
    buffers = dict(whole.named_buffers())
    for name, buffer in parts.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    ties = [{n for n, p in d.items() if p is q} for d in (found, expected) for q in d.values()]
    assert ties[: len(found)] == ties[len(found) :]
    assert start_hash(parts.causal_lm()) == start_hash(whole.causal_lm()) != ""
    a, b = parts.probe, whole.probe
    assert all(torch.equal(x, y) for x, y in zip(a.logprobs, b.logprobs))
    assert (a.noise, parts.tolerance, parts.unpacked) == (b.noise, whole.tolerance, None)
    arrange_ranks(config.distributed, tiny.CPU)
    shard(whole)
    kinds = [
        {
            n: (type(m), getattr(getattr(m, "config", None), "_attn_implementation", None))
            for n, m in p.named_modules()
        }
        for p in (parts, whole)
    ]
    assert kinds[0] == kinds[1]
    batch, outputs = pack(parts.probe.rows), []
    for policy in (parts.eval(), whole.eval()):
        with torch.no_grad():
            for parameter in () if policy.head is None else policy.head.parameters():
                local(parameter).fill_(0.5)
            outputs.append(forward(policy, batch, head=policy.head is not None))
    for name in ("logprobs", "values", "scores"):
        ours, theirs = (getattr(out, name) for out in outputs)
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs), name


def same_parts(config: Any, method: str) -> None:
    """A policy cut as it is read, and the one that is read whole and cut then."""
    parts, whole = both(config, method)
    a, b = parts.probe, whole.probe
    assert all(torch.equal(x, y) for x, y in zip(a.logprobs, b.logprobs))
    assert (a.noise, parts.tolerance) == (b.noise, whole.tolerance)
    assert start_hash(parts.causal_lm()) == start_hash(whole.causal_lm()) != ""
    ranks = arrange_ranks(config.distributed, tiny.CPU)
    split(whole, ranks)
    split(parts, ranks)
    if config.distributed.strategy == "fsdp":
        shard(whole)
    expected = dict(whole.named_parameters(remove_duplicate=False))
    found = dict(parts.named_parameters(remove_duplicate=False))
    assert found.keys() == expected.keys()
    for name, parameter in found.items():
        assert part_of(parameter) == part_of(expected[name]), name
        assert torch.equal(local(parameter), local(expected[name])), name
    cut = list(parts.model.parameters())  # a value network's embedding is whole
    assert sum(local(p).numel() for p in cut) < 0.6 * sum(p.numel() for p in cut)
    batch, outputs = pack(parts.probe.rows), []
    for policy in (parts, whole):
        out = forward(policy.train(), batch, head=policy.head is not None)
        out.logprobs.sum().backward()
        grads = {n: local(p.grad) for n, p in policy.named_parameters() if p.grad is not None}
        outputs.append((out, grads))
    (ours, our_grads), (theirs, their_grads) = outputs
    assert torch.equal(ours.logprobs, theirs.logprobs)
    assert our_grads.keys() == their_grads.keys()
    assert all(torch.equal(grad, their_grads[n]) for n, grad in our_grads.items())


@pytest.mark.slow  # the fast ones load by parts without a cut
@pytest.mark.parametrize(
    "case",
    [
        "tied",
        *(
            pytest.param(c, marks=pytest.mark.slow)
            for c in ("full", "lora", "value network, several files", "reward model")
        ),
    ],
)
def test_of_a_model_that_is_cut_each_rank_reads_its_part(case, tmp_path):
    method, model = CASES[case]
    config = config_for(folder_for(case, tmp_path / "model"), method, **model)
    section = config.distributed.model_copy(update={"strategy": "ddp", "tensor_parallel": 2})
    config = config.model_copy(update={"distributed": section})
    on_ranks(2, tmp_path / "ranks", same_parts, config, method)


@pytest.mark.slow
@pytest.mark.parametrize("sequence", [1, 2])
def test_of_a_model_that_is_cut_and_shared_each_rank_reads_its_part(sequence, tmp_path):
    config = config_for(folder_for("tied", tmp_path / "model"))
    section = config.distributed.model_copy(
        update={"tensor_parallel": 2, "sequence_parallel": sequence}
    )
    config = config.model_copy(update={"distributed": section})
    on_ranks(4, tmp_path / "ranks", same_parts, config, "sft")


CASES = {
    "full": ("sft", {}),
    "lora": ("sft", {"use_lora": True, "lora": {"r": 4}}),
    "value network, several files": ("ppo", {}),
    "reward model": ("reward_model", {}),
    "tied": ("sft", {}),
}


def folder_for(case: str, place: Path) -> Path:
    folder = save_model_folder(place, sharded="several" in case)
    if case == "tied":
        tiny.causal_lm("qwen2").to(torch.bfloat16).save_pretrained(folder)
    return folder


# untied and in one file, with a scoring head: parts of the others
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, marks=pytest.mark.slow if c in ("full", "reward model") else ())
        for c in CASES
    ],
)
def test_parts_are_the_whole(case, tmp_path):
    """Weights, buffers, ties, dtypes, kernels, the probe's log-probs and the hash of the start."""
    method, model = CASES[case]
    folder = folder_for(case, tmp_path / "model")
    on_ranks(2, tmp_path / "ranks", same_bits, config_for(folder, method, **model), method)


def same_bits_of_the_cache(cache: Path, config: Any) -> None:
    constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE = str(cache), True
    same_bits(config, "sft")


@pytest.mark.slow
def test_of_a_model_of_the_hub_each_rank_reads_its_part_in_the_cache(tmp_path):
    cached = tmp_path / "hub" / "models--someone--model"
    save_model_folder(cached / "snapshots" / "0123abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123abc")
    config = config_for(tmp_path / "model", name="someone/model")
    on_ranks(2, tmp_path / "ranks", same_bits_of_the_cache, tmp_path / "hub", config)


def wrong_part(config: Any) -> None:
    """Each rank reads the rows of the other."""
    read = empty.TensorFiles.read

    def other(self, name, part):
        shape = self.shape(name)
        if len(part.shape) == 2 and part.shape[0] < shape[0] and part.shape[0] > 1:
            part = Part((shape[0] - part.offset[0] - part.shape[0], 0), part.shape)
        return read(self, name, part)

    empty.TensorFiles.read = other
    policy, _ = by_shards.begin(config, config.model.name, tiny.CPU, scores=False)
    said = r"^distributed\.strategy: .* is not in the model as it is in .*: set it to ddp$"
    with pytest.raises(SettingError, match=said):
        by_shards.complete(policy, config, tiny.CPU)


def test_what_was_read_is_compared_with_the_files(tmp_path):
    config = config_for(save_model_folder(tmp_path / "model"))
    on_ranks(2, tmp_path / "ranks", wrong_part, config)


class Asked:
    """Two ranks, as far as a question about the config goes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(by_shards.distributed, "num_ranks", lambda: 2)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"adapter": "dora"}, "an adapter of the type dora with these settings needs whole"),
        ({"adapter": {"type": "lora", "modules_to_save": ["lm_head"]}}, "needs whole weights"),
        ({"resize_embeddings": True}, "model.resize_embeddings needs the whole embedding"),
        ({"name": None, "scratch": {}}, "random weights are drawn in one piece"),
    ],
)
def test_what_is_read_whole_says_why(keys, reason, tmp_path, monkeypatch):
    config = config_for(save_model_folder(tmp_path / "model"), **keys)
    Asked(monkeypatch)
    policy, why = by_shards.begin(config, config.model.name, tiny.CPU, scores=False)
    assert policy is None
    assert reason in why


def test_a_run_says_that_ranks_have_read_the_whole_model(tmp_path):
    """With what else is said before the first step, after all that may be refused."""
    tree = tiny.run_config(tmp_path, "sft", max_steps=1)
    tree["distributed"] = {"strategy": "fsdp"}
    launch(tree, tmp_path / "runs", 2)
    said = (tmp_path / "runs" / "output-2" / "0.stdout").read_text()
    line = "every rank has read the whole model before it is sharded: random weights are drawn"
    assert said.count(line) == 1


def test_missing_and_foreign_weights_are_refused_as_ever(tmp_path, monkeypatch):
    """By the headers alone: the messages of a model that is read whole."""
    Asked(monkeypatch)
    changes = {
        "lacks weights of the model": lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
        "is \\[3, 2\\] in the weights": lambda t: t.update(
            {"model.norm.weight": torch.zeros(3, 2)}
        ),
        "describes fewer layers": lambda t: t.update(
            {"model.layers.7.mlp.up_proj.weight": torch.zeros(2)}
        ),
    }
    for k, (message, change) in enumerate(changes.items()):
        folder = save_model_folder(tmp_path / str(k))
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        config = config_for(folder)
        for load in (
            lambda c: by_shards.begin(c, c.model.name, tiny.CPU, scores=False),
            lambda c: load_policy(c.model, c.model.name, tiny.CPU, seed=0),
        ):
            with pytest.raises(ValueError, match=message):
                load(config)


@pytest.mark.parametrize("name", ["Mixtral", "GPT-2"])
def test_weights_under_other_names_are_read_whole(name, tmp_path, monkeypatch):
    """Mixtral's experts are one tensor in the model; GPT-2's file has no prefix of the backbone."""
    Asked(monkeypatch)
    folder = save_model_folder(tmp_path / "model")
    model = causal_lm(name)
    model.save_pretrained(folder)
    if name == "GPT-2":
        file = folder / "model.safetensors"
        tensors = {n.removeprefix("transformer."): x for n, x in load_file(file).items()}
        save_file(tensors, file, {"format": "pt"})
    config = config_for(folder)
    policy, why = by_shards.begin(config, config.model.name, tiny.CPU, scores=False)
    assert policy is None
    assert why


@pytest.mark.slow
def test_a_run_in_parts_resumes_in_one_piece(tmp_path):
    """dpo under fsdp, with a second model as its reference; then resumed by one process."""
    base = launch(tiny.run_config(tmp_path, "sft", max_steps=1), tmp_path / "base", ranks=1)
    tree = tiny.run_config(tmp_path, "dpo", max_steps=4, save_steps=2, learning_rate=1e-3)
    tree["model"] = {"name": str(base), "adapter": "none"}
    tree["reference"] = {"name": str(base)}
    tree["distributed"] = {"strategy": "fsdp"}
    one, two = (launch(tree, tmp_path / "runs", ranks) for ranks in (1, 2))
    said = (tmp_path / "runs" / "output-2" / "0.stdout").read_text()
    assert "read the whole model" not in said
    assert_same_run(one, two)
    shutil.rmtree(two / "checkpoint-4")
    tree["trainer"]["resume_from_checkpoint"] = str(two)
    assert_same_run(one, launch(tree, tmp_path / "runs", 1, two))
    said = (tmp_path / "runs" / "output-1" / "0.stderr").read_text()
    assert "resuming on one process a run that was saved on 2 ranks (fsdp): results are" in said


@pytest.mark.slow
def test_a_checkpoint_of_boxes_resumes_in_one_piece(tmp_path):
    """2 x 2 ranks that hold rows of parts of the matrices, and moments like them."""
    tree = tiny.run_config(tmp_path, "sft", max_steps=4, save_steps=2, learning_rate=1e-3)
    tree["model"]["scratch"]["num_kv_heads"] = 2
    one = launch(tree, tmp_path / "runs", 1)
    tree["distributed"] = {"strategy": "fsdp", "tensor_parallel": 2}
    four = launch(tree, tmp_path / "runs", 4)
    assert_same_run(one, four)
    shutil.rmtree(four / "checkpoint-4")
    del tree["distributed"]
    tree["trainer"]["resume_from_checkpoint"] = str(four)
    assert_same_run(one, launch(tree, tmp_path / "runs", 1, four))
    said = (tmp_path / "runs" / "output-1" / "0.stderr").read_text()
    assert "saved on 4 ranks (fsdp, tensor_parallel 2)" in said


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_a_run_from_parts_is_that_of_one_process(adapter, tmp_path):
    """Also with rows split over ranks; the adapter is saved and resumed."""
    folder = save_model_folder(tmp_path / "model")
    tree = tiny.run_config(tmp_path / "x", "dpo", max_steps=4, save_steps=2, batch_size=5)
    tree["model"] = {"name": str(folder), "adapter": adapter}
    one = launch(tree, tmp_path / "runs", 1)
    tree["distributed"] = {"strategy": "fsdp", "sequence_parallel": 2}
    four = launch(tree, tmp_path / "runs", 4)
    shutil.rmtree(four / "checkpoint-4")
    tree["trainer"]["resume_from_checkpoint"] = str(four)
    tree["distributed"] = {"strategy": "fsdp"}
    launch(tree, tmp_path / "runs", 2, four)
    assert_same_run(one, four)


IN_PARTS = [  # the method, the adapter, the strategy and the ranks
    ("grpo", "lora", "ddp", 2),
    ("reward_model", "none", "ddp", 2),
    ("sft", "none", "fsdp", 4),
    ("dpo", "none", "auto", 2),
    ("ppo", "none", "ddp", 2),
    ("classification", "lora", "ddp", 2),
    ("process_reward_model", "none", "ddp", 2),
    ("reward_model", "lora", "fsdp", 4),
    ("orpo", "none", "fsdp", 2),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "adapter", "strategy", "ranks"),
    [pytest.param(*case, marks=pytest.mark.slow if k else ()) for k, case in enumerate(IN_PARTS)],
)
def test_a_run_from_parts_of_matrices_is_that_of_one_process(
    method, adapter, strategy, ranks, tmp_path
):
    """No rank reads the whole model. It samples, is saved, and goes on in one process."""
    start = tiny.run_config(tmp_path / "start", "sft", max_steps=1)
    start["model"]["scratch"]["num_kv_heads"] = 2
    folder = launch(start, tmp_path / "start", 1) / "checkpoint-1"
    tree = tiny.run_config(tmp_path / "x", method, max_steps=4, save_steps=2, batch_size=4)
    if method == "grpo":
        tree["trainer"]["beta"] = 0.05
    tree["model"] = {"name": str(folder), "adapter": adapter}
    if method == "dpo":
        tree["reference"] = {"name": str(folder)}
    one = launch(tree, tmp_path / "runs", 1)
    tree["distributed"] = {"strategy": strategy, "tensor_parallel": 2}
    two = launch(tree, tmp_path / "runs", ranks)
    said = (tmp_path / "runs" / f"output-{ranks}" / "0.stdout").read_text()
    assert "read the whole model" not in said
    assert_same_run(one, two)
    shutil.rmtree(two / "checkpoint-4")
    del tree["distributed"]
    tree["trainer"]["resume_from_checkpoint"] = str(two)
    launch(tree, tmp_path / "runs", 1, two)
    assert_same_run(one, two)
