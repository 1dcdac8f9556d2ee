"""One YAML file is one run: the schema that composes the sections, and its reading and writing.

The sections lie beside what reads them. No includes, no interpolation, no dotted class paths. The
resolved config is saved in the run directory and can itself be run.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel
from pydantic.functional_validators import field_validator, model_validator

from posttrain.algorithms.base import Algorithm, TrainerSection, algorithm_named
from posttrain.config.base import AlsoCalled, StrictConfig
from posttrain.config.errors import parse
from posttrain.config.recipe import read_yaml, with_overrides
from posttrain.data.config import DataConfig, LengthConfig, Mixture, sections
from posttrain.evaluation.config import EvalConfig
from posttrain.model.config import ModelConfig, ReferenceConfig
from posttrain.rewards import REWARDS
from posttrain.rewards.build import RewardSection
from posttrain.rollout.config import RolloutConfig
from posttrain.training.config import DistributedConfig


class Config(StrictConfig):
    """One run."""

    model: ModelConfig
    """The model that is trained, and where it starts."""
    data: Annotated[Mixture, AlsoCalled(datasets="data (a list makes a mixture)")]
    """Where rows come from: one section, or a list of them to mix."""
    length: LengthConfig = LengthConfig()
    """How long a sequence may be, and what becomes of a longer one."""
    trainer: TrainerSection
    """The method by its `type`, with that method's keys."""
    rollout: RolloutConfig | None = None
    """How completions are sampled, for the online methods."""
    reward: Annotated[RewardSection | None, AlsoCalled(reward_funcs="reward.type")] = None
    """What scores completions, by its `type`, with that reward's keys."""
    reference: ReferenceConfig | None = None
    """The reference policy, if it is not the policy as it was at the start of the run."""
    eval: EvalConfig | None = None
    """Evaluation during training."""
    distributed: DistributedConfig = DistributedConfig()
    """How several ranks share the work."""

    @property
    def algorithm(self) -> Algorithm:
        return algorithm_named(self.trainer.type)

    @property
    def mixture(self) -> list[DataConfig]:
        return sections(self.data)

    @field_validator("data")
    @classmethod
    def _some_data(cls, data: Any) -> Any:
        if data == []:
            raise ValueError("the mixture is empty")
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        """A section or key that this method would not read is an error."""
        trainer, method = self.trainer, self.trainer.type
        if (trainer.num_epochs is None) == (trainer.max_steps is None):
            raise ValueError(
                "give either trainer.num_epochs or trainer.max_steps; the other is null"
            )
        if self.algorithm.online:
            if self.reward is None:
                example = next(iter(REWARDS))
                raise ValueError(f"{method} needs a reward section, for example type: {example}")
            self.rollout = self.rollout or RolloutConfig()
            if self.rollout.group_size == 1 and trainer.compares_completions:
                raise ValueError(
                    f"{method} compares the completions of a prompt: rollout.group_size must be 2 "
                    "or more, or the trainer's baseline and scale_rewards none"
                )
            if self.rollout.one_step_off and not trainer.corrects_for_sampler:
                raise ValueError(
                    "rollout.one_step_off trains on completions of older weights: set "
                    "trainer.sampler_correction, for example token"
                )
            if "length" in self.model_fields_set and self.length.on_overlong == "truncate":
                raise ValueError("a prompt can not be truncated: length.on_overlong: error or drop")
        elif self.rollout is not None:
            raise ValueError(f"{method} samples nothing: remove the rollout section")
        at_once = None if self.eval is None else self.eval.max_num_seqs
        if self.rollout is not None and at_once is not None:
            raise ValueError(f"eval.max_num_seqs: for {method} it is rollout.max_num_seqs")
        generates = self.eval is not None and (self.eval.generate or self.algorithm.online)
        if self.reward is not None and not self.algorithm.online and not generates:
            raise ValueError(f"{method} uses a reward with eval.generate: true only")
        if generates and self.reward is None:
            raise ValueError("eval.generate needs a reward section")
        if self.reference is not None:
            in_advance = trainer.precomputes_reference
            if not (trainer.needs_reference or in_advance):
                raise ValueError(f"{method} has no reference here: remove the reference section")
            if in_advance and self.reference.sync_steps is not None:
                raise ValueError("reference.sync_steps: precompute_reference holds it still")
        if self.length.on_overlong == "split" and self.algorithm.rows != "text":
            raise ValueError("length.on_overlong: split is for texts (trainer.type: pretrain)")
        if trainer.eval_steps is not None and self.eval is None:
            raise ValueError("trainer.eval_steps needs an eval section")
        if self.eval is not None and trainer.eval_steps is None:
            raise ValueError("the eval section needs trainer.eval_steps")
        if trainer.early_stopping is not None and self.eval is None:
            raise ValueError("trainer.early_stopping needs an eval section")
        return self


def load_config(
    source: str | Path | Mapping[str, Any], overrides: list[str] | None = None
) -> Config:
    """Return the config of a YAML file or a nested dict, with `section.key=value` overrides.

    Raises ValueError with one line that says what to fix.
    """
    if isinstance(source, Mapping):
        tree, name = copy.deepcopy(dict(source)), "config"
    else:
        tree, name = read_yaml(source), str(source)
    return parse_config(with_overrides(tree, overrides or []), name)


def parse_config(tree: Mapping[str, Any], source: str) -> Config:
    """Return the config of a tree of sections; errors begin with `source`."""
    return parse(Config, tree, source)


def save_config(config: Config, path: Path) -> None:
    """Write the resolved config, which can be run as it is."""
    path.write_text(yaml.safe_dump(dump(config), sort_keys=False))


def dump(config: BaseModel) -> dict[str, Any]:
    """The resolved tree: what was given and every default that applies."""
    tree = config.model_dump(mode="json")
    _drop_default_nones(config, tree)
    if not tree.get("model", {}).get("use_lora", True):
        tree["model"].pop("lora", None)
    if (rollout := getattr(config, "rollout", None)) is not None:
        for key in rollout.keys_of_other_engines():
            tree["rollout"].pop(key, None)
    return tree


def _drop_default_nones(model: BaseModel, tree: dict[str, Any]) -> None:
    """None is left out where it is the default; elsewhere it is a choice (max_grad_norm: null)."""
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
        if value is None and info.default is None:
            tree.pop(name, None)
        elif isinstance(value, BaseModel):
            _drop_default_nones(value, tree[name])
        elif isinstance(value, list):
            for item, part in zip(value, tree[name]):
                if isinstance(item, BaseModel):
                    _drop_default_nones(item, part)
