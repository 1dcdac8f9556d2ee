"""What a run leaves on disk: loads anywhere, survives a full disk, says what it is."""

from __future__ import annotations

import errno
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from trainer_states import moments

from posttrain.common.files import sha256
from posttrain.model import save
from posttrain.model.adapters.names import saved_names
from posttrain.model.config import ModelConfig
from posttrain.model.folder import CHECKPOINT_INFO, best_or_newest, checkpoints_in
from posttrain.model.heads import add_value_head
from posttrain.model.load import load_policy
from posttrain.runs.config import parse_config
from posttrain.runs.plan import plan
from posttrain.runs.train import train
from posttrain.training import checkpoint, staging
from posttrain.training.trainer import Trainer
from posttrain.training.trainer_state import STATE

PROBE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from safetensors.torch import save_file
folder, out, adapter = sys.argv[1:]
if adapter == "True":
    from peft import AutoPeftModelForCausalLM
    model = AutoPeftModelForCausalLM.from_pretrained(folder)
else:
    model = AutoModelForCausalLM.from_pretrained(folder)
model.eval()
AutoTokenizer.from_pretrained(folder)
ids = torch.arange(5, 25)[None]
save_file({"logits": model(ids).logits.detach().contiguous()}, out)
"""


def run(tree: dict) -> Path:
    tree["model"]["device"] = "cpu"  # compared with other libraries there
    return train(parse_config(tree, "test"))


def lora_tree(tmp_path: Path, base: Path, **keys) -> dict:
    tree = tiny.run_config(tmp_path, "sft", **keys)
    tree["model"] = {"name": str(base), "use_lora": True, "lora": {"r": 4}}
    return tree


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [False, True])
def test_a_fresh_process_loads_the_same_logits(adapter, tmp_path, monkeypatch):
    """With transformers' and PEFT's own loaders, exactly."""
    kept = {}
    fit = Trainer.fit

    def keep(self):
        fit(self)
        model = self.models.policy.model.eval()
        model.set_attn_implementation("sdpa")
        ids = torch.arange(5, 25)[None]
        kept["logits"] = model(input_ids=ids, use_cache=False).logits.detach()

    folder = run(tiny.run_config(tmp_path / "full", "sft", max_steps=3))
    tree = tiny.run_config(tmp_path / "full2", "sft", max_steps=3)
    if adapter:
        tree = lora_tree(tmp_path / "lora", folder, max_steps=3)
    monkeypatch.setattr(Trainer, "fit", keep)
    saved = checkpoints_in(run(tree))[-1]
    out = tmp_path / "logits.safetensors"
    subprocess.run([sys.executable, "-c", PROBE, saved, out, str(adapter)], check=True)
    torch.testing.assert_close(load_file(out)["logits"], kept["logits"], rtol=0, atol=0)


def test_continuing_an_adapter_keeps_it_and_its_reference(tmp_path):
    """LoRA on top of a trained LoRA: trained further, and the reference is the trained one."""
    base = run(tiny.run_config(tmp_path / "base", "sft", max_steps=3))
    first = run(lora_tree(tmp_path / "first", base, max_steps=3, learning_rate=3e-2))
    tree = tiny.run_config(tmp_path / "second", "grpo", beta=0.1, max_steps=1)
    tree["model"] = {"name": str(first)}
    second = run(tree)
    (line,) = (second / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["kl"] == 0.0  # policy and reference agree exactly at step 0
    a, b = (load_file(checkpoints_in(r)[-1] / "adapter_model.safetensors") for r in (first, second))
    assert a.keys() == b.keys()
    assert any(not torch.equal(a[k], b[k]) for k in a)
    assert max((a[k] - b[k]).abs().max() for k in a) < 0.05, "not continued but started anew"
    # what was saved names the base model, not the adapter that it continued, and loads as it is
    saved = checkpoints_in(second)[-1]
    config = json.loads((saved / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(best_or_newest(base))
    loaded = load_policy(ModelConfig(name=str(saved), use_lora=False), str(saved), tiny.CPU, seed=0)
    lora = {n: p for n, p in loaded.named_parameters() if "lora_" in n}
    assert len(lora) == len(b)
    names = saved_names(loaded.model)
    for name, value in b.items():
        assert torch.equal(lora[f"model.{names[name]}"], value)


def test_the_value_models_adapter_is_not_in_the_policys(tmp_path):
    """Neither in a checkpoint nor in what is handed to a server: it would not load there."""
    models = tiny.models(use_lora=True)
    names = []
    for folder in ("before", "after"):
        (tmp_path / folder).mkdir()
        weights = save.gather_weights(models)
        save.save_adapter(tmp_path / folder, models.policy.model, weights)
        names.append(set(load_file(tmp_path / folder / "adapter_model.safetensors")))
        add_value_head(models.policy, own_network=True)
    assert names[0] == names[1]
    assert any(name.startswith("value_network") for name in weights), (
        "there was nothing to leave out"
    )


def test_what_is_saved_stops_where_training_stopped(tmp_path):
    """Overfit short answers, reload with the generic loader: all end by the stop token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = [{"prompt": f"say {w}", "completion": f"{w} it is"} for w in ["red", "blue", "green"]]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    tree = tiny.run_config(tmp_path, max_steps=80, batch_size=3, learning_rate=1e-2)
    tree["data"] = {"path": str(file)}
    folder = best_or_newest(run(tree))
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    for row in rows:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        out = model.generate(**ids, max_new_tokens=20, do_sample=False)[
            0, ids["input_ids"].shape[1] :
        ]
        assert out[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(out[:-1]) == row["completion"]
    stops = {
        json.loads((folder / f"{n}.json").read_text())["eos_token_id"]
        for n in ("config", "generation_config")
    }
    assert stops == {tokenizer.eos_token_id}


def evaluate_to(monkeypatch, losses):
    """Make the evaluations of a run give these losses."""
    values = iter([0.0, *losses])  # the first call is to see which metrics there are
    monkeypatch.setattr(
        "posttrain.runs.evaluation.evaluate_loss", lambda *a: {"eval_loss": next(values)}
    )


def test_keeps_the_newest_and_the_best(tmp_path, monkeypatch):
    evaluate_to(monkeypatch, [3.0, 1.0, 2.0, 2.5, 2.6, 2.7])
    tree = tiny.run_config(
        tmp_path,
        eval_steps=1,
        save_steps=1,
        keep_checkpoints=2,
        early_stopping={"metric": "eval_loss", "patience": 4},
    )
    tree["eval"] = {"max_samples": 3}
    folder = run(tree)
    assert [p.name for p in checkpoints_in(folder)] == [f"checkpoint-{n}" for n in (2, 5, 6)]
    assert best_or_newest(folder).name == "checkpoint-2"


def test_stops_early(tmp_path, monkeypatch):
    evaluate_to(monkeypatch, [3.0, 1.0, 2.0, 2.5])
    tree = tiny.run_config(
        tmp_path, eval_steps=1, max_steps=50, early_stopping={"metric": "eval_loss", "patience": 2}
    )
    tree["eval"] = {"max_samples": 3}
    assert [p.name for p in checkpoints_in(run(tree))] == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.parametrize(
    ("losses", "saved"),
    [
        ([math.nan, 3.0, 1.0, math.nan, 2.0], [3, 5]),
        ([math.nan, math.nan], [2]),
    ],
)
def test_what_is_no_number_is_no_gain(losses, saved, tmp_path, monkeypatch):
    """A first NaN must not be the best for ever."""
    evaluate_to(monkeypatch, losses)
    tree = tiny.run_config(
        tmp_path, eval_steps=1, max_steps=50, early_stopping={"metric": "eval_loss", "patience": 2}
    )
    tree["eval"] = {"max_samples": 3}
    assert [p.name for p in checkpoints_in(run(tree))] == [f"checkpoint-{step}" for step in saved]


@pytest.mark.parametrize("saved_by", ["this version", "an older one"])
def test_keys_that_the_version_which_saved_did_not_have(saved_by, tmp_path, caplog):
    folder = run(tiny.run_config(tmp_path, save_steps=1, max_steps=2))
    file = folder / "checkpoint-2" / CHECKPOINT_INFO
    info = json.loads(file.read_text())
    del info["config"]["trainer"]["adam_eps"]
    if saved_by != "this version":
        info["versions"]["posttrain"] = "0.0.1"
    file.write_text(json.dumps(info))
    tree = tiny.run_config(tmp_path, save_steps=1, max_steps=2, resume_from_checkpoint=str(folder))
    if saved_by == "this version":
        with pytest.raises(ValueError, match=r"trainer.adam_eps was None, now 1e-08"):
            run(tree)
    else:
        run(tree)
        assert "did not have trainer.adam_eps" in caplog.text


@pytest.mark.parametrize("where", ["weight", "loss"])
def test_nan_stops_the_run_and_keeps_the_last_checkpoint(where, tmp_path, monkeypatch):
    step = Trainer.train_step

    def poisoned(self):
        if self.step == 2:
            parameter = list(self.models.trainable().values())[3]
            with torch.no_grad():
                if where == "weight":
                    parameter.fill_(math.nan)
                else:  # finite loss, infinite gradient
                    parameter.register_hook(lambda g: g * math.inf)
        return step(self)

    monkeypatch.setattr(Trainer, "train_step", poisoned)
    with pytest.raises(ValueError, match=r"step 3: the .* is not finite.*checkpoint-2"):
        run(tiny.run_config(tmp_path, save_steps=1))
    (folder,) = tmp_path.glob("sft_*")
    assert [p.name for p in checkpoints_in(folder)] == ["checkpoint-1", "checkpoint-2"]
    saved = load_file(folder / "checkpoint-2" / "model.safetensors")
    assert all(x.isfinite().all() for x in saved.values())


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    save = torch.save

    def full(value, path):
        if "checkpoint-2" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(value, path)

    monkeypatch.setattr(staging.torch, "save", full)
    with pytest.raises(ValueError, match=r"checkpoint-2 could not be written.*checkpoint-1"):
        run(tiny.run_config(tmp_path, save_steps=1))
    (folder,) = tmp_path.glob("sft_*")
    assert [p.name for p in folder.iterdir() if "checkpoint" in p.name] == ["checkpoint-1"]
    torch.load(folder / "checkpoint-1" / STATE, weights_only=True)


def test_a_disk_known_to_be_too_small_is_refused_before_the_run(tmp_path, monkeypatch):
    usage = checkpoint.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda p: usage._replace(free=10**5))
    with pytest.raises(ValueError, match=r"has 0\.1 MB free, a checkpoint needs [\d.]+ MB"):
        run(tiny.run_config(tmp_path))
    assert not list(tmp_path.glob("sft_*/config.yaml"))


def test_a_half_written_checkpoint_has_no_name(tmp_path):
    folder = run(tiny.run_config(tmp_path, save_steps=2))
    half = folder / "checkpoint-99"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert half not in checkpoints_in(folder)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    tree = tiny.run_config(tmp_path, save_steps=2, max_steps=4)
    folder = run(tree)
    file = checkpoints_in(folder)[-1] / "model.safetensors"
    weights = load_file(file)
    weights.pop(next(iter(weights)))
    save_file(weights, file, metadata={"format": "pt"})
    tree["trainer"]["resume_from_checkpoint"] = str(file.parent)
    with pytest.raises(ValueError, match=r"damaged: model.safetensors"):
        run(tree)


def test_state_loads_without_pickle_and_lists_every_trained_tensor(tmp_path):
    built = plan(parse_config(tiny.run_config(tmp_path), "test"))
    folder = checkpoints_in(run(tiny.run_config(tmp_path)))[-1]
    torch.load(folder / STATE, weights_only=True)
    info = json.loads((folder / CHECKPOINT_INFO).read_text())
    trained = set(built.models.trainable())
    assert set(info["trained_tensors"]) == trained
    expected = {f"{name}/{key}" for name in trained for key in ("step", "exp_avg", "exp_avg_sq")}
    assert set(moments(folder)) == expected
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert files == {*info["files"], CHECKPOINT_INFO}
    assert info["files"] == {n: sha256(folder / n) for n in info["files"]}


def test_metrics_have_the_names_users_expect(tmp_path):
    tree = tiny.run_config(tmp_path / "g", "grpo", beta=0.1, eval_steps=6)
    tree["eval"] = {"max_samples": 3, "max_new_tokens": 8}
    lines = [json.loads(x) for x in (run(tree) / "metrics.jsonl").read_text().splitlines()]
    expected = {
        "loss",
        "grad_norm",
        "learning_rate",
        "num_tokens",
        "step_time",
        "memory/resident",
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "kl",
        "entropy",
        "clip_ratio/low_mean",
        "clip_ratio/high_mean",
        "completions/mean_length",
        "completions/min_length",
        "completions/max_length",
        "completions/clipped_ratio",
        "sampling/sampling_logp_difference/mean",
    }
    assert expected <= lines[0].keys()
    assert {"eval_accuracy", "eval_reward"} <= lines[-1].keys()


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_the_saved_tokenizer_is_the_trained_one(architecture, tmp_path):
    """AutoTokenizer picks a class by the model's type: the ids must be the same all the same."""
    from transformers import AutoTokenizer

    tree = tiny.run_config(tmp_path, max_steps=1)
    tree["model"]["scratch"]["architecture"] = architecture
    config = parse_config(tree, "test")
    trained = plan(config).models.tokenizer
    loaded = AutoTokenizer.from_pretrained(checkpoints_in(train(config))[-1])
    assert len(loaded) == len(trained)
    texts = [
        "Tom has 12 apples.\n<<12-5=7>>7\n#### 7",
        "  don't\t\r\n\n12a-b_c",
        "café cafe\u0301 日本 ½",
        "<|user|>hi<|end|>",
        "x" * 50 + " \u200b\u00a0 1,234.50%",
    ]
    for text in texts:
        assert loaded(text)["input_ids"] == trained(text)["input_ids"], text
        assert loaded.decode(trained(text)["input_ids"]) == trained.decode(
            trained(text)["input_ids"]
        )


def test_an_adapter_names_its_base_from_everywhere(tmp_path, monkeypatch):
    """A base that was given by a relative path is found from another folder too."""
    base = run(tiny.run_config(tmp_path / "base", "sft", max_steps=1))
    monkeypatch.chdir(tmp_path)
    adapter = run(lora_tree(tmp_path / "lora", base.relative_to(tmp_path), max_steps=1))
    monkeypatch.chdir("/")
    saved = checkpoints_in(adapter)[-1]
    load_policy(ModelConfig(name=str(saved), use_lora=False), str(saved), tiny.CPU, seed=0)
