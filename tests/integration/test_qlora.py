"""Adapters on quantised weights: every promise of a run holds for them."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import pytest
import tiny
import torch
from peft.tuners.tuners_utils import BaseTuner
from repeats import choice
from test_distributed import launch
from test_resume import assert_same_bits, metrics, run, run_killed_and_resumed
from tiny import CPU

from posttrain.algorithms import ALGORITHMS
from posttrain.common.batch import pack
from posttrain.evaluation.loading import weights_hash
from posttrain.export.run import export
from posttrain.model.config import QuantizationConfig
from posttrain.model.folder import QUANTIZATION_FILE, checkpoints_in
from posttrain.model.forward import forward
from posttrain.model.kernels.quantized import quantised, quantised_layers, stored_as
from posttrain.model.load import load_classifier, load_policy, prepare_policy
from posttrain.model.merge import merge_adapter
from posttrain.model.models import Models
from posttrain.model.quantized import quantise
from posttrain.rewards import classifier_scores
from posttrain.rewards.base import RewardFailure
from posttrain.runs.config import parse_config
from posttrain.runs.generate import generate
from posttrain.runs.loading import load_trained
from posttrain.runs.memory import measure
from posttrain.runs.plan import plan
from posttrain.runs.train import train

pytest.importorskip("bitsandbytes")
WIDE = {"hidden_size": 64, "intermediate_size": 128}
TYPES = ("nf4", "fp4", "int8")
ADAPTERS = ("lora", "rslora", "dora", "loreft", "direft")


def models_of(kind: str = "nf4", adapter: str = "lora", **keys) -> Models:
    model = tiny.causal_lm("llama", **WIDE)
    quantise(model, QuantizationConfig.model_validate({"type": kind}), CPU, torch.float32)
    config = tiny.model_config("tiny", adapter=adapter, **keys)
    policy = prepare_policy(model, config, CPU, torch.float32, 0)
    assert len(quantised_layers(policy)) == 14
    return Models(policy, tokenizer=None, stop_token_ids=[tiny.STOP])


def moved(trainer, batch=None):
    torch.manual_seed(5)
    with torch.no_grad():
        for p in trainer.models.trainable().values():
            p.add_(0.02 * torch.randn_like(p))
    return batch


def dpo_loss(trainer, batch):
    """The mean over the pairs."""
    out = forward(trainer.models.policy, batch)
    (total,) = trainer.algorithm.loss(out, batch, trainer.config).terms.values()
    return float(total.detach()) / (batch.num_sequences // 2)


# one of each kind of row and of head
DIFFERENT = ("sft", "dpo", "kto", "grpo", "ppo", "reward_model", "classification")


@pytest.mark.parametrize("name", choice(ALGORITHMS, DIFFERENT))
def test_gradient_does_not_depend_on_micro_batch_size_or_packing(name):
    trainer = tiny.trainer_of(name, models_of(), micro_batch_tokens=10**6)
    batch = tiny.prepared(
        trainer, tiny.raw_batch(trainer.algorithm, trainer.models, trainer.config)
    )
    moved(trainer)
    expected = tiny.gradients(trainer, batch)
    for tokens in (1, 40):
        trainer.config = trainer.config.model_copy(update={"micro_batch_tokens": tokens})
        tiny.assert_same(expected, tiny.gradients(trainer, batch))


# every adapter on one type, and the other types with one of PEFT and one of ours
TRAINED = [(adapter, kind) for kind in TYPES for adapter in ADAPTERS]
FAST = [*TRAINED[: len(ADAPTERS)], ("lora", "fp4"), ("lora", "int8"), ("loreft", "int8")]


@pytest.mark.parametrize(("adapter", "kind"), choice(TRAINED, FAST))
def test_adapters_train_on_quantised_weights_and_gradient_checkpointing_changes_nothing(
    adapter, kind
):
    plain = tiny.trainer_of("sft", models_of(kind, adapter))
    batch = tiny.raw_batch(plain.algorithm, plain.models)
    moved(plain)
    expected = tiny.gradients(plain, batch)
    again = tiny.trainer_of("sft", models_of(kind, adapter, gradient_checkpointing=True))
    for name, p in again.models.trainable().items():
        p.data = plain.models.trainable()[name].detach().clone()
    tiny.assert_same(expected, tiny.gradients(again, batch), rtol=1e-6)


@pytest.mark.parametrize("kind", TYPES)
def test_the_reference_is_the_quantised_base(kind):
    trainer = tiny.trainer_of("dpo", models_of(kind))
    batch = pack(tiny.sequences_of(tiny.random_pairs()))
    base = trainer.models.logprobs(batch, 10**6)
    prepared = tiny.prepared(trainer, batch)
    assert torch.equal(prepared.per_token["ref_logprobs"], base)
    assert dpo_loss(trainer, prepared) == pytest.approx(math.log(2), abs=1e-6)
    moved(trainer)
    assert not torch.equal(trainer.models.logprobs(batch, 10**6), base)
    with trainer.models.reference():
        assert torch.equal(trainer.models.logprobs(batch, 10**6), base)


def test_a_value_network_of_its_own_shares_the_quantised_weights():
    trainer = tiny.trainer_of("ppo", models_of())
    policy = trainer.models.policy
    ours = {id(m.weight) for m in quantised_layers(policy.model)}
    theirs = {id(m.weight) for m in quantised_layers(policy.value_network)}
    assert ours == theirs
    trained = [n for n in trainer.models.trainable() if n.startswith("value_network.")]
    assert trained
    assert all("lora" in name for name in trained)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A folder with a tokenizer and weights that are a whole number of blocks wide."""
    folder = tmp_path_factory.mktemp("base")
    tree = tiny.run_config(folder, "sft", max_steps=2)
    tree["model"]["scratch"] |= WIDE | {"num_heads": 4, "num_kv_heads": 2}
    return checkpoints_in(run(tree))[-1]


def recipe(folder: Path, base: Path, method: str = "sft", kind: object = "nf4", **keys):
    adapter = keys.pop("adapter", {"type": "lora", "r": 4})
    tree = tiny.run_config(folder, method, **keys)
    tree["model"] = {"name": str(base), "adapter": adapter, "dtype": "float32"}
    if kind is not None:
        tree["model"]["quantization"] = kind
    return tree


def evaluated(tree):
    tree["eval"] = {"split": 0.2}
    tree["trainer"] |= {"eval_steps": 1, "save_steps": 1, "keep_checkpoints": 9}
    return tree


EVALUATED = [(method, kind) for method in ("sft", "dpo") for kind in TYPES]


@pytest.mark.parametrize(("method", "kind"), choice(EVALUATED, [("dpo", "nf4")]))
def test_resume_after_an_evaluation_bit_for_bit(kind, method, base, tmp_path, monkeypatch):
    tree = evaluated(recipe(tmp_path, base, method, kind))
    tree["trainer"]["output_dir"] = str(tmp_path / "whole")
    whole = run(tree)
    tree["trainer"]["output_dir"] = str(tmp_path / "parts")
    parts = run_killed_and_resumed(tree, 3, monkeypatch)
    assert_same_bits(whole, parts)
    assert metrics(whole)[1:] == metrics(parts)[1:]


@pytest.mark.slow
@pytest.mark.parametrize("method", list(ALGORITHMS))
def test_every_method_trains_and_resumes_bit_for_bit(method, base, tmp_path, monkeypatch):
    tree = recipe(tmp_path, base, method, "nf4", save_steps=1, keep_checkpoints=9)
    tree["trainer"]["output_dir"] = str(tmp_path / "whole")
    whole = run(tree)
    tree["trainer"]["output_dir"] = str(tmp_path / "parts")
    assert_same_bits(whole, run_killed_and_resumed(tree, 2, monkeypatch))


def test_the_checkpoint_records_how_its_base_was_stored(base, tmp_path):
    run_dir = run(recipe(tmp_path, base))
    checkpoint = checkpoints_in(run_dir)[-1]
    record = json.loads((checkpoint / QUANTIZATION_FILE).read_text())
    assert record == {"type": "nf4", "double_quant": True}
    keys = {"max_new_tokens": 6, "temperature": 0.0, "dtype": "float32"}
    recorded = generate(str(run_dir), ["2 and 3?"], **keys)[0]
    same = generate(str(run_dir), ["2 and 3?"], quantization="nf4", **keys)[0]
    other = generate(str(run_dir), ["2 and 3?"], quantization="none", **keys)[0]
    assert recorded == same
    assert recorded.logprobs != other.logprobs
    whole = generate(str(base), ["2 and 3?"], quantization="int8", **keys)[0]
    assert whole.logprobs != generate(str(base), ["2 and 3?"], **keys)[0].logprobs
    assert quantised(load_trained(checkpoint))
    # trained further, on weights like those that it was trained on
    further = plan(parse_config(recipe(tmp_path, checkpoint, kind=None, adapter="lora"), "t"))
    assert further.config.model.quantization == QuantizationConfig(type="nf4")
    assert stored_as(further.models.policy) == record
    told = plan(parse_config(recipe(tmp_path, checkpoint, kind="none", adapter="lora"), "t"))
    assert stored_as(told.models.policy) is None


@pytest.mark.parametrize("kind", TYPES)
def test_merging_goes_into_the_unquantised_base(kind, base, tmp_path):
    checkpoint = checkpoints_in(run(recipe(tmp_path, base, kind=kind, learning_rate=0.05)))[-1]
    result = merge_adapter(str(checkpoint))
    assert result.trained_on["type"] == kind
    assert result.difference < 1e-3
    assert not quantised(result.model)
    assert not hasattr(result.model, "peft_config")
    # the low-rank products of the file, added to the base's own weights
    from safetensors.torch import load_file

    files = load_file(checkpoint / "adapter_model.safetensors")
    weights, start = dict(result.model.named_parameters()), load_file(base / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    low, high = (files[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
    wanted = start[f"{name}.weight"] + 8 * high @ low  # alpha 32 / r 4
    assert torch.allclose(weights[f"{name}.weight"], wanted, atol=1e-6)
    assert (high @ low).abs().max() > 0


@pytest.mark.parametrize("kind", choice(TYPES, ("nf4",)))  # fp4 is stored as nf4 is
def test_an_export_into_the_rounded_weights_has_the_run_s_logits(kind, base, tmp_path):
    """Into the whole weights, it does not."""
    run_dir = run(recipe(tmp_path, base, kind=kind, learning_rate=0.05))
    keys = {"max_new_tokens": 8, "temperature": 0.0, "dtype": "float32"}
    (wanted,) = generate(str(run_dir), ["2 and 3?"], **keys)
    found = {}
    for dequantize in (False, True):
        lines: list[str] = []
        output = tmp_path / f"merged-{dequantize}"
        options = {"dtype": "f32", "dequantize": dequantize, "say": lines.append}
        export(str(run_dir), "merged", output, **options)
        assert ("rounded to" in " ".join(lines)) == dequantize
        assert not (output / QUANTIZATION_FILE).exists()
        (found[dequantize],) = generate(str(output), ["2 and 3?"], **keys)
    assert found[True].token_ids == wanted.token_ids
    rounded, whole = (
        max(abs(a - b) for a, b in zip(found[how].logprobs, wanted.logprobs))
        for how in (True, False)
    )
    assert rounded < 1e-5
    assert rounded < whole / 5, "quantising changed nothing: the test cannot fail"


def test_what_cannot_be_dequantised_is_refused(base, tmp_path):
    adapted = str(run(recipe(tmp_path, base, kind="none")))
    scores = str(run(recipe(tmp_path, base, "reward_model")))
    for name, form, reason in (
        (adapted, "merged", "was trained beside whole weights"),
        (scores, "merged", "scores instead of writing"),
        (adapted, "peft", "only for an adapter that is merged"),
        (str(base), "merged", "only for an adapter that is merged"),
    ):
        with pytest.raises(ValueError, match=f"dequantize.*{reason}"):
            export(name, form, tmp_path / "x", dequantize=True)
        assert not (tmp_path / "x").exists()


def test_what_cannot_be_merged_is_refused(base, tmp_path):
    with pytest.raises(ValueError, match="holds no adapter"):
        merge_adapter(str(base))
    run_dir = run(recipe(tmp_path, base, adapter={"type": "loreft", "positions": "l1"}))
    with pytest.raises(ValueError, match="cannot be merged into its base"):
        merge_adapter(str(run_dir))


def test_a_merged_head_that_was_the_embedding_is_a_weight_of_its_own(base, tmp_path):
    targets = ["lm_head", "q_proj"]
    tree = recipe(tmp_path, base, adapter={"type": "lora", "target_modules": targets})
    tree["trainer"]["learning_rate"] = 0.05
    model = merge_adapter(str(run(tree))).model
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    assert model.config.tie_word_embeddings is False
    model.save_pretrained(tmp_path / "merged")
    from transformers import AutoModelForCausalLM

    read = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ids = torch.arange(4, 20)[None]
    assert torch.equal(read.eval()(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_reward_model_scores_with_the_weights_that_it_was_trained_on(base, tmp_path):
    planned = plan(parse_config(recipe(tmp_path, base, "reward_model"), "test"))
    run_dir = train(parse_config(recipe(tmp_path, base, "reward_model"), "test"), tmp_path / "run")
    checkpoint = checkpoints_in(run_dir)[-1]
    model, lacking = load_classifier(str(checkpoint), torch.float32)
    assert lacking == []
    assert quantised(model)
    config = tiny.model_config(str(checkpoint), adapter="none", dtype="float32")
    policy = load_policy(config, str(checkpoint), CPU, 0, scores=True)
    from posttrain.model.heads import add_scoring_head

    add_scoring_head(policy, str(checkpoint))
    row = tiny.Sequence(torch.arange(4, 20), torch.zeros(16, dtype=torch.bool))
    wanted = forward(policy.eval(), pack([row]), head=True).scores[-1]
    found = model.eval()(input_ids=row.input_ids[None]).logits[0, 0]
    assert torch.allclose(found, wanted, atol=1e-4)
    assert wanted.abs() > 1e-6
    merged = merge_adapter(str(checkpoint))
    assert not quantised(merged.model)
    assert 0 < merged.difference < 1e-3, "nothing was compared"
    assert (merged.model(input_ids=row.input_ids[None]).logits[0, 0] - wanted).abs() > 1e-6
    assert planned.models.policy.head is not None


@pytest.mark.parametrize("method", ["reward_model", "classification"])
@pytest.mark.parametrize("adapter", [{"type": "lora", "r": 4}, {"type": "vera", "r": 8}], ids=str)
@pytest.mark.slow
def test_a_merged_classifier_is_compared_with_its_adapter(
    method, adapter, base, tmp_path, monkeypatch
):
    keys = {"kind": None, "adapter": adapter, "learning_rate": 0.05}
    checkpoint = checkpoints_in(run(recipe(tmp_path, base, method, **keys)))[-1]
    merged = merge_adapter(str(checkpoint))
    assert 0 < merged.difference < 1e-3, "nothing was compared"
    labels = {"reward_model": 1, "classification": 2}[method]
    assert merged.model.score.weight.shape[0] == merged.model.config.num_labels == labels
    if labels > 1:
        with pytest.raises(RewardFailure, match="has 2 outputs; a reward model has one"):
            classifier_scores.load(str(checkpoint), CPU, torch.float32)
    whole = BaseTuner.merge_and_unload

    def wrong(self, **keys):
        model = whole(self, **keys)
        model.model.layers[0].mlp.up_proj.weight.data.mul_(1.1)
        return model

    monkeypatch.setattr(BaseTuner, "merge_and_unload", wrong)
    with pytest.raises(ValueError, match="its logits differ by"):
        merge_adapter(str(checkpoint))


def test_the_sampler_trains_beside_a_copy(base, tmp_path):
    keys = {"sampler_correction": "token", "max_steps": 3}
    tree = recipe(tmp_path, base, "grpo", **keys)
    tree["rollout"] |= {"one_step_off": True}
    lines = metrics(run(tree))
    assert lines[-1]["step"] == 3


def test_the_estimate_counts_the_bytes_of_quantised_weights(base, tmp_path, capsys):
    whole = measure(plan(parse_config(recipe(tmp_path, base, kind=None), "test")))
    planned = plan(parse_config(recipe(tmp_path, base, kind="nf4"), "test"))
    small = measure(planned)
    count = sum(m.in_features * m.out_features for m in quantised_layers(planned.models.policy))
    saved = whole.fixed["weights"] - small.fixed["weights"]
    assert abs(saved - count * (4 - 4.127 / 8)) < 0.01 * saved + 8192
    assert small.fixed["gradients"] == whole.fixed["gradients"]
    from posttrain.runs.describe import describe

    text = describe(planned)
    assert "quantised: 14 linear layers, nf4 in blocks of 64" in text
    other = describe(plan(parse_config(recipe(tmp_path, base, kind=None), "test")))
    assert text.split(" parameters, ")[0].split()[-1] == other.split(" parameters, ")[0].split()[-1]


def test_all_weights_cannot_be_trained(base, tmp_path):
    with pytest.raises(ValueError, match=r"weights in nf4 are frozen, but model\.adapter is none"):
        plan(parse_config(recipe(tmp_path, base, adapter="none"), "test"))


def test_engines_that_load_the_files_are_refused(base, tmp_path):
    tree = recipe(tmp_path, base, "grpo")
    tree["rollout"] |= {"engine": "server", "servers": ["http://localhost:1"]}
    with pytest.raises(ValueError, match="as they are in the files, not in nf4"):
        plan(parse_config(tree, "test"))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_new_rows_are_trained_whole_beside_it(kind, base, tmp_path):
    tree = recipe(tmp_path, base, kind=kind)
    tree["model"] |= {"resize_embeddings": True, "resize_multiple": 64}
    run_dir = run(tree)
    checkpoint = checkpoints_in(run_dir)[-1]
    again = load_policy(tiny.model_config("x", adapter="none"), str(checkpoint), CPU, 0)
    assert again.causal_lm().get_input_embeddings().weight.shape[0] % 64 == 0
    assert quantised(again)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_two_ranks_give_what_one_gives(method, base, tmp_path):
    tree = recipe(tmp_path, base, method, max_steps=3, micro_batch_tokens=64)
    one = launch(tree, tmp_path / "a", 1)
    two = launch(tree, tmp_path / "b", 2)
    first, second = metrics(one), metrics(two)
    for a, b in zip(first, second):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3, abs=1e-6)


@pytest.mark.slow
def test_sharding_is_refused(base, tmp_path):
    tree = recipe(tmp_path, base) | {"distributed": {"strategy": "fsdp"}}
    with pytest.raises((subprocess.CalledProcessError, AssertionError)) as error:
        launch(tree, tmp_path / "c", 2)
    assert "quantised weights cannot be sharded" in str(error.value)


def test_the_quantised_start_is_the_same_in_two_loads(base):
    config = tiny.model_config("x", adapter="lora", quantization="nf4")
    hashes = {weights_hash(load_policy(config, str(base), CPU, 0)) for _ in range(2)}
    assert len(hashes) == 1


@pytest.mark.slow  # of unquantised bases in test_many_adapters
def test_several_adapters_beside_one_quantised_base(base, tmp_path):
    from posttrain.model.many_adapters import load_adapters
    from posttrain.rollout.native.sampler import NativeSampler
    from posttrain.rollout.sampler import SamplingParams

    folders = {}
    for name, rate in (("a", 0.02), ("b", 0.05)):
        run_dir = run(recipe(tmp_path / name, base, learning_rate=rate, max_steps=2))
        folders[name] = str(checkpoints_in(run_dir)[-1])
    config = tiny.model_config("x", adapter="none", quantization="nf4", dtype="float32")
    policy = load_policy(config, str(base), CPU, 0)
    load_adapters(policy, folders)
    params = SamplingParams(max_new_tokens=6, stop_token_ids=())
    prompts, names = [[5, 6, 7]] * 3, ["a", None, "b"]
    sampler = NativeSampler(policy, 8)
    together = sampler.generate(prompts, params, [0, 1, 2], adapters=names)
    for row, name, seed in zip(together, names, range(3)):
        alone = load_policy(config, folders[name] if name else str(base), CPU, 0)
        (wanted,) = NativeSampler(alone, 8).generate([[5, 6, 7]], params, [seed])
        assert row.response_ids == wanted.response_ids
        assert row.logprobs == pytest.approx(wanted.logprobs, abs=1e-4)
