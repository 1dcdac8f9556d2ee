"""What a source's settings and defaults mean here, key by key, against figures written out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from foreign import (
    AXOLOTL,
    EXPERIMENT,
    FINE_TUNING,
    LLAMA_FACTORY,
    OPEN_INSTRUCT,
    PIPELINE,
    SCRATCH,
    TORCHTUNE,
    TRL,
    VERL,
    VERL_SFT,
    imported,
    text_of,
)

from posttrain.imports.draft import Draft

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"


@pytest.mark.parametrize(
    ("source", "method", "tree", "expected"),
    [
        # batches: rows of a device x accumulation x processes
        (
            "llamafactory",
            None,
            {**LLAMA_FACTORY, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3},
            {"trainer.batch_size": 24},
        ),
        (
            "axolotl",
            None,
            {**AXOLOTL, "gradient_accumulation_steps": 5},
            {"trainer.batch_size": 40},
        ),
        ("trl", "sft", TRL, {"trainer.batch_size": 32}),
        (
            "torchtune",
            None,
            {**TORCHTUNE, "gradient_accumulation_steps": 8},
            {"trainer.batch_size": 64},
        ),
        ("open_instruct", "finetune", OPEN_INSTRUCT, {"trainer.batch_size": 32}),
        ("verl", None, VERL_SFT, {"trainer.batch_size": 256}),
        # TRL counts completions: 8 x 2 x 4 / 8 = 8 prompts
        (
            "trl",
            "grpo",
            {**TRL, "gradient_accumulation_steps": 2},
            {"trainer.batch_size": 8, "rollout.group_size": 8},
        ),
        # verl counts prompts
        (
            "verl",
            None,
            {
                **VERL,
                "data": {"train_files": "a", "train_batch_size": 512},
                f"{ACTOR}.ppo_mini_batch_size": 128,
                f"{ROLLOUT}.n": 5,
            },
            {"trainer.batch_size": 128, "trainer.num_minibatches": 4, "rollout.group_size": 5},
        ),
        (
            "open_instruct",
            "grpo",
            {
                **OPEN_INSTRUCT,
                "num_unique_prompts_rollout": 8,
                "num_mini_batches": 2,
                "num_samples_per_prompt_rollout": 4,
                "total_episodes": 320,
            },
            {"trainer.batch_size": 4, "trainer.num_minibatches": 2, "trainer.max_steps": 10},
        ),
        # defaults that differ from posttrain's
        (
            "llamafactory",
            None,
            LLAMA_FACTORY,
            {
                "model.adapter.r": 8,
                "model.adapter.alpha": 16,
                "trainer.learning_rate": 5e-5,
                "trainer.scheduler": "linear",
                "trainer.warmup": 0,
                "length.max_length": 2048,
                "trainer.num_epochs": 3.0,
                "trainer.seed": 42,
            },
        ),
        ("llamafactory", None, {**LLAMA_FACTORY, "lora_rank": 32}, {"model.adapter.alpha": 64}),
        (
            "trl",
            "dpo",
            TRL,
            {
                "trainer.beta": 0.1,
                "trainer.learning_rate": 1e-6,
                "trainer.scheduler": "linear",
                "length.max_length": 1024,
                "model.adapter.type": "none",
            },
        ),
        ("trl", "reward", TRL, {"trainer.learning_rate": 1e-4}),
        (
            "trl",
            "grpo",
            TRL,
            {
                "trainer.reduction": "token",
                "trainer.scale_eps": 1e-4,
                "trainer.beta": 0.0,
                "trainer.epsilon": 0.2,
            },
        ),
        ("trl", "rloo", TRL, {"trainer.beta": 0.05, "rollout.group_size": 2}),
        (
            "trl",
            "cpo",
            {**TRL, "loss_type": "simpo"},
            {
                "trainer.type": "simpo",
                "trainer.sft_coef": 1.0,
                "trainer.gamma": 0.5,
                "trainer.beta": 0.1,
            },
        ),
        (
            "axolotl",
            None,
            AXOLOTL,
            {
                "length.max_length": 512,
                "length.on_overlong": "drop",
                "trainer.warmup": 0.03,
                "trainer.num_epochs": 1.0,
                "trainer.scheduler": "cosine",
            },
        ),
        (
            "torchtune",
            None,
            TORCHTUNE,
            {
                "trainer.weight_decay": 0.01,
                "trainer.max_grad_norm": None,
                "trainer.scheduler": "constant",
            },
        ),
        (
            "open_instruct",
            "dpo",
            OPEN_INSTRUCT,
            {
                "trainer.beta": 5.0,
                "trainer.warmup": 0.1,
                "trainer.average_logprobs": True,
                "trainer.max_grad_norm": None,
            },
        ),
        (
            "open_instruct",
            "grpo",
            OPEN_INSTRUCT,
            {
                "trainer.scale_rewards": "none",
                "trainer.epsilon_high": 0.272,
                "trainer.kl_estimator": "k3",
                "trainer.beta": 0.05,
            },
        ),
        (
            "verl",
            None,
            VERL,
            {
                "trainer.dual_clip": 3.0,
                "trainer.scale_rewards": "none",
                "trainer.weight_decay": 0.01,
                "trainer.scheduler": "constant",
                "trainer.beta": 0.0,
            },
        ),
        (
            "verl",
            None,
            VERL_SFT,
            {
                "trainer.adam_betas": [0.9, 0.95],
                "trainer.warmup": 0.1,
                "trainer.scheduler": "cosine",
                "trainer.weight_decay": 0.01,
            },
        ),
        # losses
        (
            "llamafactory",
            None,
            {**LLAMA_FACTORY, "stage": "dpo", "dpo_label_smoothing": 0.1},
            {"trainer.loss_type": "cdpo", "trainer.label_smoothing": 0.1},
        ),
        (
            "llamafactory",
            None,
            {**LLAMA_FACTORY, "stage": "dpo", "pref_loss": "orpo"},
            {"trainer.type": "orpo", "trainer.nll_over": "completion"},
        ),
        (
            "trl",
            "dpo",
            {**TRL, "loss_type": ["sigmoid", "sft"], "loss_weights": [0.8, 0.2]},
            {
                "trainer.loss_type": "sigmoid",
                "trainer.loss_weights": [0.8],
                "trainer.sft_coef": 0.2,
            },
        ),
        (
            "torchtune",
            None,
            {**TORCHTUNE, "loss": {"_component_": "x.DPOLoss", "label_smoothing": 0.1}},
            {"trainer.loss_type": "cdpo", "trainer.beta": 0.1},
        ),
        (
            "open_instruct",
            "dpo",
            {**OPEN_INSTRUCT, "loss_type": "simpo", "beta": 2.0, "gamma_beta_ratio": 0.3},
            {"trainer.type": "simpo", "trainer.gamma": 0.6},
        ),
        # surrogates and reductions
        (
            "trl",
            "grpo",
            {**TRL, "loss_type": "dr_grpo", "scale_rewards": False},
            {"trainer.reduction": "constant", "trainer.scale_rewards": "none"},
        ),
        (
            "trl",
            "grpo",
            {**TRL, "loss_type": "cispo", "epsilon_high": 5.0},
            {"trainer.surrogate": "cispo", "trainer.epsilon": 1.0, "trainer.epsilon_high": 4.0},
        ),
        (
            "verl",
            None,
            {
                **VERL,
                f"{ACTOR}.clip_ratio_high": 0.28,
                f"{ACTOR}.clip_ratio_low": 0.2,
                f"{ACTOR}.loss_agg_mode": "seq-mean-token-sum-norm",
            },
            {"trainer.epsilon_high": 0.28, "trainer.reduction": "constant"},
        ),
        (
            "verl",
            None,
            {**VERL, "algorithm": {"adv_estimator": "grpo", "norm_adv_by_std_in_grpo": False}},
            {"trainer.scale_rewards": "none"},
        ),
        (
            "verl",
            None,
            {**VERL, f"{ACTOR}.use_kl_loss": True},
            {"trainer.beta": 0.001, "trainer.kl_in": "loss", "trainer.kl_estimator": "k3"},
        ),
        (
            "verl",
            None,
            {**VERL, "algorithm": {"adv_estimator": "gae", "use_kl_in_reward": True}},
            {
                "trainer.kl_in": "token_reward",
                "trainer.kl_estimator": "k1",
                "trainer.gae_lambda": 1.0,
                "trainer.value_clip": 0.5,
            },
        ),
        # verl's critic has its own loss of half the square; torchtune's coefficient has no half
        (
            "torchtune",
            None,
            {**TORCHTUNE, "loss": {"_component_": "x.PPOLoss", "value_coeff": 0.1}},
            {"trainer.value_coef": 0.2},
        ),
        # the five projects
        (
            "fine_tuning",
            None,
            FINE_TUNING,
            {
                "model.adapter.r": 8,
                "model.adapter.alpha": 32,
                "model.adapter.dropout": 0.05,
                "rollout.group_size": 8,
                "trainer.learning_rate": 1e-6,
                "trainer.batch_size": 16,
            },
        ),
        ("preference_pipeline", None, PIPELINE, {"trainer.beta": 0.2, "trainer.batch_size": 32}),
        (
            "experiments",
            None,
            EXPERIMENT,
            {
                "model.adapter.r": 2,
                "model.adapter.alpha": 16,
                "model.adapter.dropout": 0.1,
                "trainer.type": "classification",
            },
        ),
        (
            "from_scratch",
            None,
            SCRATCH,
            {"trainer.learning_rate": 1e-4, "length.max_length": 64, "trainer.batch_size": 16},
        ),
    ],
)
def test_settings_and_defaults(
    source: str, method: str | None, tree: dict[str, Any], expected: dict[str, Any]
) -> None:
    recipe = imported(tree, source, method, processes=4).recipe
    assert {key: recipe[key] for key in expected} == expected


def test_a_default_is_marked_and_a_given_key_is_not() -> None:
    text = text_of(imported({**TRL, "beta": 0.3}, "trl", "dpo"))
    assert "beta: 0.3\n" in text
    assert "max_length: 1024  # default of TRL 1.16\n" in text


def test_names_of_dataset_info_are_looked_up(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    entries = {
        "mine": {"file_name": "mine.json", "columns": {"prompt": "ask", "response": "reply"}},
        "chats": {"hf_hub_url": "org/chats", "formatting": "sharegpt"},
    }
    (tmp_path / "data/dataset_info.json").write_text(json.dumps(entries))
    draft = imported({**LLAMA_FACTORY, "dataset": "mine,chats,gone"}, folder=tmp_path)
    mine, chats, gone = draft.recipe["data"]
    assert mine["path"] == str(tmp_path / "data/mine.json")
    assert mine["columns"] == {"instruction": "ask", "completion": "reply"}
    assert chats == {"path": "org/chats", "columns": {"messages": "conversations"}}
    assert gone["path"].startswith("<set this")
    assert draft.lines["dataset"].fate == "changed"
    assert "gone" in draft.lines["dataset"].note


@pytest.mark.parametrize(
    ("source", "tree", "key", "others"),
    [
        ("llamafactory", {**LLAMA_FACTORY, "lora_rank": 4}, "adapter_name_or_path", ["lora_rank"]),
        ("axolotl", {**AXOLOTL, "adapter": "lora", "lora_r": 4}, "lora_model_dir", ["lora_r"]),
        ("verl", VERL, "actor_rollout_ref.model.lora_adapter_path", []),
        ("fine_tuning", FINE_TUNING, "model.resume_from", ["model.lora.r"]),
    ],
)
def test_an_adapter_at_the_start_has_its_own_settings(
    source: str, tree: dict[str, Any], key: str, others: list[str]
) -> None:
    draft = imported({**tree, key: "runs/adapter"}, source)
    assert draft.recipe["model.resume_from"] == "runs/adapter"
    assert draft.lines[key].fate == "mapped"
    assert not [target for target in draft.recipe if target.startswith("model.adapter")]
    assert {draft.lines[other].fate for other in others} <= {"without effect"}


def test_columns_of_axolotl_are_mapped_and_strange_speakers_refused() -> None:
    rows = {"path": "rows.jsonl", "type": "chatml.intel", "field_chosen": "good"}
    draft = imported({**AXOLOTL, "rl": "dpo", "datasets": [rows]}, "axolotl")
    assert draft.recipe["data"]["columns"] == {"chosen": "good"}
    for name, fate in (("from", "without effect"), ("who", "refused")):
        chats = {"path": "rows.jsonl", "type": "chat_template", "message_field_role": name}
        draft = imported({**AXOLOTL, "datasets": [chats]}, "axolotl")
        assert draft.lines["datasets.0.message_field_role"].fate == fate


def test_what_is_off_is_without_effect_and_what_is_on_is_refused() -> None:
    for value, fate in ((0, "without effect"), (None, "without effect"), (5, "refused")):
        draft = imported({**TRL, "neftune_noise_alpha": value}, "trl", "sft")
        assert draft.lines["neftune_noise_alpha"].fate == fate


def test_an_unknown_value_is_refused_and_something_near_is_written() -> None:
    draft = imported({**TRL, "lr_scheduler_type": "polynomial"}, "trl", "sft")
    assert draft.lines["lr_scheduler_type"].fate == "refused"
    assert draft.recipe["trainer.scheduler"] == "cosine"
    draft = imported({**VERL, "algorithm": {"adv_estimator": "remax"}}, "verl")
    assert draft.lines["algorithm.adv_estimator"].fate == "refused"


def test_packing_changes_what_a_batch_is() -> None:
    draft = imported({**AXOLOTL, "sample_packing": True}, "axolotl")
    assert draft.lines["micro_batch_size"].fate == "changed"
    assert imported(AXOLOTL, "axolotl").lines["micro_batch_size"].fate == "mapped"


def trl_default(config: Any, name: str) -> Any:
    field = next(f for f in dataclasses.fields(config) if f.name == name)
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


@pytest.mark.slow  # importing TRL takes longer than everything else
def test_defaults_of_trl_are_those_of_the_installed_one() -> None:
    trl = pytest.importorskip("trl")
    keys = {
        "sft": (
            "SFTConfig",
            {"learning_rate": "trainer.learning_rate", "max_length": "length.max_length"},
        ),
        "dpo": (
            "DPOConfig",
            {
                "learning_rate": "trainer.learning_rate",
                "beta": "trainer.beta",
                "max_length": "length.max_length",
            },
        ),
        "kto": (
            "KTOConfig",
            {
                "beta": "trainer.beta",
                "desirable_weight": "trainer.desirable_weight",
                "learning_rate": "trainer.learning_rate",
            },
        ),
        "reward": ("RewardConfig", {"learning_rate": "trainer.learning_rate"}),
        "grpo": (
            "GRPOConfig",
            {
                "learning_rate": "trainer.learning_rate",
                "beta": "trainer.beta",
                "epsilon": "trainer.epsilon",
                "num_generations": "rollout.group_size",
                "max_completion_length": "rollout.max_new_tokens",
                "temperature": "rollout.temperature",
                "num_iterations": "trainer.num_inner_epochs",
                "scale_rewards": "trainer.scale_rewards",
            },
        ),
        "rloo": (
            "RLOOConfig",
            {
                "beta": "trainer.beta",
                "num_generations": "rollout.group_size",
                "learning_rate": "trainer.learning_rate",
            },
        ),
    }
    shared = {
        "num_train_epochs": "trainer.num_epochs",
        "seed": "trainer.seed",
        "weight_decay": "trainer.weight_decay",
        "max_grad_norm": "trainer.max_grad_norm",
        "lr_scheduler_type": "trainer.scheduler",
        "save_steps": "trainer.save_steps",
        "logging_steps": "trainer.logging_steps",
        "gradient_checkpointing": "model.gradient_checkpointing",
    }
    for method, (name, own) in keys.items():
        recipe = imported(TRL, "trl", method).recipe
        for theirs, ours in {**shared, **own}.items():
            assert recipe[ours] == trl_default(getattr(trl, name), theirs), (method, theirs)


def read(draft: Draft) -> Any:
    return yaml.safe_load(text_of(draft))


def test_comments_and_odd_values_leave_the_yaml_whole() -> None:
    odd = "a: b # c {x} [y] 'q' \"p\" \\ \u00fc\nsecond"
    draft = imported({**TRL, "run_name": "x", "note": odd, "dataset_name": odd}, "trl", "sft")
    assert read(draft)["data"]["path"] == odd
    assert draft.lines["note"].fate == "refused"
