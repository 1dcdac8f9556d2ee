"""The schema of a recipe, which composes the sections, and how recipes are read and written.

One YAML file is one run: no includes, no interpolation, no dotted class paths. Each section is
declared beside the code that reads it. The resolved config is saved in the run directory and can
itself be run.
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
from posttrain.common.display import preformatted
from posttrain.config.base import AlsoCalled, Free, StrictConfig
from posttrain.config.errors import parse
from posttrain.config.recipe import read_yaml, with_overrides
from posttrain.data.config import DataConfig, LengthConfig, Mixture, sections
from posttrain.evaluation.config import EvalConfig
from posttrain.model.config import ModelConfig, ReferenceConfig
from posttrain.rewards import REWARDS
from posttrain.rewards.build import RewardSection
from posttrain.rollout.config import RolloutConfig
from posttrain.tracking.config import TrackingConfig
from posttrain.training.config import DistributedConfig


class Config(StrictConfig):
    """The config of one run."""

    model: Annotated[ModelConfig, AlsoCalled(models="model (train and sweep take a list, models)")]
    """The model to train, and the weights it starts from."""
    data: Annotated[Mixture, AlsoCalled(datasets="data (a list makes a mixture)")]
    """The training rows: one section, or a list of sections to mix."""
    length: LengthConfig = LengthConfig()
    """Maximum length of a sequence, and what happens to a longer one."""
    trainer: Annotated[TrainerSection, AlsoCalled(method="trainer.type", algorithm="trainer.type")]
    """The training method, chosen by `type`, and its keys."""
    rollout: RolloutConfig | None = None
    """How online methods sample completions."""
    reward: Annotated[RewardSection | None, AlsoCalled(reward_funcs="reward.type")] = None
    """The function that scores completions, chosen by `type`, and its keys."""
    reference: ReferenceConfig | None = None
    """The reference policy, if it is not the policy at the start of the run."""
    eval: EvalConfig | None = None
    """Evaluation during training."""
    distributed: DistributedConfig = DistributedConfig()
    """How several ranks share the work."""
    tracking: Annotated[TrackingConfig | None, Free()] = None
    """How the run appears in the trackers of `trainer.logger`."""

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm that `trainer.type` names."""
        return algorithm_named(self.trainer.type)

    @property
    def mixture(self) -> list[DataConfig]:
        """The sections of `data`, one or several."""
        return sections(self.data)

    def _repr_html_(self) -> str:  # a notebook's view
        return preformatted([yaml.safe_dump(dump(self), sort_keys=False)])

    @field_validator("data")
    @classmethod
    def _not_empty(cls, data: Any) -> Any:
        if data == []:
            raise ValueError("data: the mixture is empty; list at least one section")
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        """Raise ValueError for keys that contradict each other or that the run would not read."""
        trainer, method = self.trainer, self.trainer.type
        if (trainer.num_epochs is None) == (trainer.max_steps is None):
            raise ValueError(
                "set either trainer.num_epochs or trainer.max_steps; the other must be null"
            )
        if self.algorithm.online:
            if self.reward is None:
                example = next(iter(REWARDS))
                raise ValueError(f"{method} needs a reward section, for example type: {example}")
            self.rollout = self.rollout or RolloutConfig()
            if self.rollout.group_size == 1 and trainer.compares_completions:
                raise ValueError(
                    f"{method} compares the completions of a prompt: rollout.group_size must be 2 "
                    "or more, or trainer.baseline and trainer.scale_rewards none"
                )
            if self.rollout.one_step_off and not trainer.corrects_for_sampler:
                raise ValueError(
                    "rollout.one_step_off trains on completions sampled from older weights: set "
                    "trainer.sampler_correction, for example to token"
                )
            if (bound := self.rollout.max_staleness) > 0:
                passes, parts = trainer.updates
                if not trainer.corrects_for_sampler:
                    raise ValueError(
                        f"rollout.max_staleness: {bound} trains on completions sampled from older "
                        "weights: set trainer.sampler_correction, for example to token"
                    )
                if bound < passes * parts:
                    raise ValueError(
                        f"rollout.max_staleness: {bound} is less than the {passes * parts} "
                        f"optimiser steps on one batch: set 0, or at least {passes * parts}"
                    )
            if "length" in self.model_fields_set and self.length.on_overlong == "truncate":
                raise ValueError("length.on_overlong: cannot truncate prompts; use error or drop")
        elif self.rollout is not None:
            raise ValueError(f"{method} samples no completions: remove the rollout section")
        max_num_seqs = None if self.eval is None else self.eval.max_num_seqs
        if self.rollout is not None and max_num_seqs is not None:
            raise ValueError(f"eval.max_num_seqs: {method} uses rollout.max_num_seqs; remove it")
        generates = self.eval is not None and (self.eval.generate or self.algorithm.online)
        if self.reward is not None and not self.algorithm.online and not generates:
            raise ValueError(f"{method} uses a reward only with eval.generate: true")
        if generates and self.reward is None:
            raise ValueError("eval.generate needs a reward section")
        if self.reference is not None:
            precomputed = trainer.precomputes_reference
            if not (trainer.needs_reference or precomputed):
                raise ValueError(f"{method} uses no reference here: remove the reference section")
            if precomputed and self.reference.sync_steps is not None:
                raise ValueError(
                    "reference.sync_steps: trainer.precompute_reference keeps the reference fixed; "
                    "remove one of them"
                )
        if self.length.on_overlong == "split" and self.algorithm.rows != "text":
            raise ValueError("length.on_overlong: split is only for texts (trainer.type: pretrain)")
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
    """Return the config in a YAML file or a nested dict, with `section.key=value` overrides.

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
    """Return the resolved tree: the keys that were set and every default that applies."""
    tree = config.model_dump(mode="json")
    _drop_default_nones(config, tree)
    if (rollout := getattr(config, "rollout", None)) is not None:
        for key in rollout.keys_of_other_engines():
            tree["rollout"].pop(key, None)
    return tree


def _drop_default_nones(model: BaseModel, tree: dict[str, Any]) -> None:
    """Remove keys that are None by default; any other None is a choice (max_grad_norm: null)."""
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
