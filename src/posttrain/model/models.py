"""The policy, its tokenizer and settings, and its reference.

The reference is the policy with its trainable tensors as they were at the start of the run;
exchanging them gives it for any start (docs/decisions/0003): a full model, a fresh adapter (whose
start is the base model), or an adapter that was trained before. These tensors may follow the
policy, or the reference may be another model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.common.batch import Batch
from posttrain.model.config import HEAD_PREFIXES
from posttrain.model.forward import Output, forward, in_lockstep
from posttrain.model.language_model import LanguageModel
from posttrain.model.workers import micro_batches, run_parts


@dataclass
class Models:
    """The models of a run."""

    policy: LanguageModel
    """Sharded or not."""
    tokenizer: Any
    stop_token_ids: list[int]
    temperature: float = 1.0
    """Temperature of the log-probs, that with which rollouts are sampled."""
    step_separator: str | None = None
    """Separator of the steps of a process reward model; saved with it."""
    labels: dict[str, Any] | None = None
    """A classifier's `labels` in order, `multi_label`, and `tokens` if it has no head; saved."""
    lr_ratio: float = 1.0
    """Learning rate of a LoRA's B divided by that of its A."""
    read_whole: str | None = None
    """Why each rank has read the whole policy before it is sharded; None if no rank had to."""
    start: dict[str, Tensor] = field(default_factory=dict)
    """Trainable tensors at the start of the run, kept if a reference is needed."""
    other: LanguageModel | None = None
    """A reference that is not an earlier state of the policy."""

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the policy's trainable parameters by name."""
        return {name: p for name, p in self.policy.named_parameters() if p.requires_grad}

    def keep_reference(self) -> None:
        """Copy the language model's trainable tensors as the reference."""
        kept = {n: p for n, p in self.trainable().items() if not n.startswith(HEAD_PREFIXES)}
        self.start = {name: p.detach().clone() for name, p in kept.items()}

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Make `policy` the reference inside a with block."""
        if self.other is not None:
            policy, self.policy = self.policy, self.other
            try:
                yield
            finally:
                self.policy = policy
            return
        assert self.start, "keep_reference() was not called"
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        # contents are exchanged in place, so optimiser, FSDP shards and hooks keep their tensors
        trainable = self.trainable()
        for name in self.start:
            parameter = trainable[name]
            current = parameter.detach().clone()
            parameter.copy_(self.start[name])
            self.start[name].copy_(current)

    @torch.no_grad()
    def move_reference(self, alpha: float) -> None:
        """Move the reference towards the policy: start <- (1 - alpha) start + alpha policy."""
        trainable = self.trainable()
        for name, tensor in self.start.items():
            tensor.lerp_(trainable[name].detach(), alpha)

    def logprobs(self, batch: Batch, max_tokens: int) -> Tensor:
        """Return the policy's current log-probs [T], without gradients or dropout."""
        return self.outputs(batch, max_tokens).logprobs

    @torch.no_grad()
    def outputs(self, batch: Batch, max_tokens: int, values: bool = False) -> Output:
        """Return log-probs [T], and with `values` also values [T] and last_values [N].

        Without gradients or dropout. A collective if the policy is sharded."""
        was_training = self.policy.training
        self.policy.eval()
        parts = micro_batches(self.policy, batch, max_tokens)

        def run(network: LanguageModel, micro_batch: tuple[Batch, float]) -> Output | None:
            out = forward(network, micro_batch[0], head=values, temperature=self.temperature)
            return out if micro_batch[1] else None

        lockstep = in_lockstep(self.policy, parts, parts[0] if parts else None)
        outputs = list(filter(None, run_parts(self.policy, lockstep, run, max_tokens)))
        self.policy.train(was_training)

        nothing = torch.zeros(0, device=batch.input_ids.device)  # a rank may have no sequences

        def joined(name: str) -> torch.Tensor:
            return torch.cat([nothing, *(getattr(out, name) for out in outputs)])

        names = ("logprobs", "values", "last_values") if values else ("logprobs",)
        return Output(**{name: joined(name) for name in names})
