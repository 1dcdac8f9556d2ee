"""Saving is tried before training, checkpoints are whole, and dropout is where it belongs."""

from __future__ import annotations

from types import SimpleNamespace

import architectures
import pytest
import tiny
import torch
from architectures import models_of, policy

from posttrain.algorithms import ALGORITHMS
from posttrain.model import save
from posttrain.model.config import ModelConfig
from posttrain.model.load import load_causal_lm, prepare_policy
from posttrain.model.trial import check_saving
from posttrain.runs.network import dropout_applies, network_notes, settle_dropout


@pytest.mark.parametrize("name", ["Mixtral", "GPT-NeoX, Pythia", "DeepSeek-V3", "Llama 3"])
def test_a_checkpoint_is_read_back_whatever_names_transformers_gives_it(name, tmp_path):
    """Experts are saved one by one, and Pythia's head as embed_out."""
    models = models_of(policy(name))
    save.save_model(tmp_path, models, save.gather_weights(models))
    before = {key: p.detach().clone() for key, p in models.trainable().items()}
    with torch.no_grad():
        for p in models.trainable().values():
            p.add_(1.0)
    save.restore_weights(models, tmp_path)
    assert all(torch.equal(p, before[key]) for key, p in models.trainable().items())


@pytest.mark.parametrize("name", ["DeepSeek-V3", "GLM-4-MoE"])
def test_persistent_buffers_are_in_the_checkpoint(name, tmp_path):
    models = models_of(policy(name))
    save.save_model(tmp_path, models, save.gather_weights(models))
    read, own = load_causal_lm(str(tmp_path), torch.float32), models.policy.causal_lm()
    buffers = {key: x for key, x in own.named_buffers() if key in own.state_dict()}
    assert any(x.abs().max() > 0 for x in buffers.values()), "all are 0: nothing is tested"
    assert all(torch.equal(read.state_dict()[key], x) for key, x in buffers.items())


def test_what_a_checkpoint_would_lose_is_found_before_the_first_step(monkeypatch):
    models = models_of(policy("DeepSeek-V3"))
    check_saving(models)
    monkeypatch.setattr(save, "buffers", lambda causal_lm: {})
    with pytest.raises(ValueError, match=r"could not be read back: .*e_score_correction_bias"):
        check_saving(models)


def test_a_tokenizer_that_cannot_be_saved_is_found_before_the_first_step():
    def fail(folder):
        raise OSError("no such template")

    models = models_of(policy("Llama 3"))
    models.tokenizer = SimpleNamespace(pad_token_id=0, save_pretrained=fail)
    with pytest.raises(ValueError, match="could not be read back: no such template"):
        check_saving(models)


@pytest.mark.parametrize("change", [{"positions": "f1+l1"}, {"layers": [0]}, {"dropout": 0.5}])
def test_settings_of_edits_that_are_not_those_trained_are_found(change, monkeypatch):
    tokenizer = SimpleNamespace(pad_token_id=0, save_pretrained=lambda folder: None)
    models = tiny.models("llama", adapter={"type": "loreft", "rank": 2})
    models.tokenizer = tokenizer
    check_saving(models)
    trained = models.policy.model.reft_config
    models.policy.model.reft_config = trained.model_copy(update=change)
    dump = type(trained).model_dump
    monkeypatch.setattr(type(trained), "model_dump", lambda self, **keys: dump(trained, **keys))
    with pytest.raises(ValueError, match=r"reft_config\.json does not describe the edits"):
        check_saving(models)


def test_a_dry_run_tries_it(tmp_path, monkeypatch):
    from posttrain.runs import plan
    from posttrain.runs.config import Config

    tried = []
    monkeypatch.setattr(plan, "check_saving", tried.append)
    planned = plan.plan(Config.model_validate(tiny.run_config(tmp_path)))
    assert tried == [planned.models]


def test_other_logits_are_found_before_the_first_step():
    """A config that does not say what the model computes."""
    models = models_of(policy("Llama 3"))
    models.policy.causal_lm().config.rms_norm_eps = 1e-1
    with pytest.raises(ValueError, match="its log-probs are not those of the start model"):
        check_saving(models)


COMPARING = {"dpo", "ipo", "kto_pair", "kto", "simpo", "cpo", "orpo"}
COMPARING |= {"grpo", "rloo", "reinforce", "ppo"}


@pytest.mark.parametrize("method", ALGORITHMS)
@pytest.mark.parametrize("key", [None, True, False])
def test_dropout_is_off_by_default_where_log_probs_are_compared(method, key):
    from posttrain.algorithms.base import algorithm_named

    algorithm, trainer = algorithm_named(method), tiny.config_of(method)
    model = ModelConfig(name="tiny", dropout=key, use_lora=False)
    config = SimpleNamespace(model=model, trainer=trainer, algorithm=algorithm)
    expected = key if key is not None else method not in COMPARING
    assert dropout_applies(config) is expected
    noisy = prepare_policy(
        architectures.causal_lm("GPT-2", dropout=True), model, tiny.CPU, torch.float32, 0
    )
    settle_dropout(noisy, config)
    assert noisy.dropout is expected
    (note,) = network_notes(noisy, config)
    assert ("on while training" in note) is expected
    assert "resid_pdrop 0.1" in note


def test_lora_dropout_is_turned_off_as_well():
    config = ModelConfig(name="tiny", use_lora=True, lora={"dropout": 0.5})
    method = SimpleNamespace(online=True, rows="prompt")
    trainer = SimpleNamespace(type="grpo", writes_text=True)
    noisy = prepare_policy(tiny.causal_lm(), config, tiny.CPU, torch.float32, 0)
    settle_dropout(noisy, SimpleNamespace(model=config, trainer=trainer, algorithm=method))
    with torch.no_grad():
        for name, p in noisy.named_parameters():
            if "lora_B" in name:
                p.normal_()
    from posttrain.common.batch import pack
    from posttrain.model.forward import forward

    batch = pack(tiny.random_sequences())
    quiet = forward(noisy.eval(), batch).logprobs
    torch.testing.assert_close(forward(noisy.train(), batch).logprobs, quiet, rtol=0, atol=0)
