"""verl 0.8 (trainer/config/*.yaml): Hydra overrides of main_ppo and of the SFT trainers.

ppo_mini_batch_size counts prompts. The dual clip is always on (clip_ratio_c 3). A group of one gets
the advantage R there and 0 here; the leave-one-out estimator clips token by token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.imports.draft import Draft, Source
from posttrain.imports.keys.verl import REFUSED, WITHOUT_EFFECT
from posttrain.imports.parts import listed, truth
from posttrain.imports.verl_parts import model, schedule, trainer, training_rows
from posttrain.imports.verl_rl import reinforcement


def recognise(settings: Mapping[str, Any]) -> bool:
    """Return whether settings are of verl."""
    rl = any(key.startswith("actor_rollout_ref.") for key in settings)
    return rl or (
        "data.train_files" in settings
        and any(k.startswith(("optim.", "model.", "trainer.")) for k in settings)
    )


def convert(draft: Draft) -> None:
    """Write the recipe of verl's settings."""
    if any(key.startswith(("actor_rollout_ref.", "algorithm.")) for key in draft.settings):
        reinforcement(draft)
    else:
        sft(draft)
    finish(draft)


def finish(draft: Draft) -> None:
    """Decide on the keys that both kinds share."""
    own = ("ppo_trainer", "ppo_megatron_trainer", "sft_trainer", "sft_trainer_engine")
    if str(draft.get("config_name", default="ppo_trainer")).removesuffix(".yaml") in own:
        draft.skip("verl's own", "config_name", "config_path")
    draft.table(WITHOUT_EFFECT)
    draft.table(REFUSED, refuse=True)


def sft(draft: Draft) -> None:
    """Write the recipe of verl's SFT trainers."""
    path = "model.path" if draft.has("model.path") else "model.partial_pretrain"
    model(draft, "model", path)
    turns = truth(draft.get("data.multiturn.enable", default=False))
    key = "data.messages_key" if draft.has("data.messages_key") else "data.multiturn.messages_key"
    if turns or draft.has("data.messages_key"):
        name = str(draft.get(key, default="messages"))
        training_rows(
            draft, {"messages": name} if name != "messages" else {}, key, "data.multiturn.enable"
        )
        draft.skip("messages", "data.prompt_key", "data.response_key")
    else:
        named = {}
        for ours, theirs, default in (
            ("prompt", "prompt", "question"),
            ("completion", "response", "answer"),
        ):
            inner = draft.get(f"data.{theirs}_dict_keys")
            column = str(
                listed(inner)[0]
                if inner is not None
                else draft.get(f"data.{theirs}_key", default=default)
            ).strip("'\"")
            if column != ours:
                named[ours] = column
        nested = draft.has("data.prompt_dict_keys") or draft.has("data.response_dict_keys")
        training_rows(draft, named)
        draft.put(
            "data",
            draft.recipe["data"],
            "data.prompt_key",
            "data.response_key",
            "data.prompt_dict_keys",
            "data.response_dict_keys",
            why="a column within a column: the rows have to have it at the top" if nested else "",
        )
    draft.skip("the default", "data.multiturn.*")
    draft.copy("length.max_length", "data.max_length", default=1024, convert=int)
    cut = str(draft.get("data.truncation", default="error"))
    draft.put(
        "length.on_overlong",
        "error" if cut == "error" else "truncate",
        "data.truncation",
        why="the first tokens are kept" if cut in ("left", "middle") else "",
    )
    draft.put("trainer.type", "sft")
    draft.comments.pop("trainer.type", None)
    draft.copy(
        "trainer.batch_size",
        "data.train_batch_size",
        default=256,
        convert=int,
        note="over all processes",
    )
    schedule(draft, "optim", 1e-5, 0.1, "cosine", 0.01)
    draft.copy("trainer.seed", "trainer.seed", default=1, convert=int)
    trainer(draft, 4)


SOURCE = Source(
    "verl 0.8",
    recognise,
    convert,
    programs=(
        r"-m (?:verl\.trainer|recipe\.\w+)\.(?:main_\w+|fsdp_sft_trainer|sft_trainer)",
        r"verl/trainer/(?:main_ppo|fsdp_sft_trainer|sft_trainer)\.py",
    ),
)
