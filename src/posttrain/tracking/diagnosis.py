"""Diagnoses in words of what a run's metrics show, once they have shown it for a while.

Each sign is a function that takes the metrics of the last steps and returns a sentence or None. A
sentence is reported when its sign appears, and again only if the sign has been gone in between.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence

Metrics = dict[str, float]
Sign = Callable[[Sequence[Metrics]], str | None]

LASTING = 3  # steps that a sign must last
WINDOW = 60  # steps that are remembered
MISMATCH = "sampling/sampling_logp_difference/mean"


class Diagnosis:
    """The metrics of the last steps and evaluations, and the signs that have been reported."""

    def __init__(self) -> None:
        self.steps: deque[Metrics] = deque(maxlen=WINDOW)
        self.evaluations: deque[Metrics] = deque(maxlen=WINDOW)
        self.reported: set[str] = set()

    def replay(self, lines: Iterable[Metrics]) -> None:
        """Take in the lines of metrics.jsonl that a resumed run wrote before."""
        for metrics in lines:
            if "loss" in metrics:
                self.step(metrics)
            else:
                self.evaluation(metrics)

    def step(self, metrics: Metrics) -> list[str]:
        """Return the sentences to report after a training step."""
        self.steps.append(metrics)
        return self._news({name: sign(self.steps) for name, sign in SIGNS.items()})

    def evaluation(self, metrics: Metrics) -> list[str]:
        """Return the sentences to report after an evaluation."""
        rewards = [m["reward"] for m in self.steps if "reward" in m]
        accuracy = metrics.get("eval_accuracy")
        if accuracy is None or not rewards:
            return []
        self.evaluations.append({"accuracy": accuracy, "reward": mean(rewards[-10:])})
        return self._news({"overfitted reward": reward_without_accuracy(self.evaluations)})

    def _news(self, signs: dict[str, str | None]) -> list[str]:
        """Return the sentences of the signs that have appeared since the last look at them."""
        news = [text for name, text in signs.items() if text and name not in self.reported]
        for name, text in signs.items():
            (self.reported.add if text else self.reported.discard)(name)
        return news


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return sum(values) / len(values)


def lasting(steps: Sequence[Metrics], name: str) -> list[float] | None:
    """Return the last LASTING values of a metric, or None if there are fewer."""
    values = [m[name] for m in steps if name in m]
    return values[-LASTING:] if len(values) >= LASTING else None


def drift(steps: Sequence[Metrics], name: str) -> tuple[float, float] | None:
    """Return the means of the window's first and last ten steps, or None until it is full."""
    values = [m[name] for m in steps if name in m]
    return (mean(values[:10]), mean(values[-10:])) if len(values) >= WINDOW else None


def no_signal(steps: Sequence[Metrics]) -> str | None:
    """Report that the completions of each group have equal rewards."""
    flat = lasting(steps, "frac_reward_zero_std")
    if flat is None or min(flat) < 1:
        return None
    last = steps[-1]
    reward = last.get("reward", 0.0)
    problem = (
        f"no learning signal for {LASTING} steps: in every group all completions got the same "
        f"reward, so every advantage is 0 (mean reward {reward:.2f}); "
    )
    spreads = [m.get("reward_std", 0.0) for m in list(steps)[-LASTING:]]
    if last.get("completions/clipped_ratio", 0.0) > 0.9:
        return problem + "most completions are cut off: raise rollout.max_new_tokens"
    if max(spreads) > 0:
        return problem + (
            "some prompts are always solved and the others never: mix in prompts of a difficulty "
            "in between"
        )
    correct = sum(v for k, v in last.items() if k == "verdicts/correct")
    judged = sum(v for k, v in last.items() if k.startswith("verdicts/"))
    if judged and correct == judged:
        return problem + "all completions are right: the prompts are too easy"
    if judged and correct == 0:
        return problem + (
            "all completions are wrong: use easier prompts, do more SFT first, or look in "
            "samples.jsonl for an answer format that the reward does not read"
        )
    return problem + "the prompts are all too hard or all too easy, or the reward is constant"


def loss_without_size(steps: Sequence[Metrics]) -> str | None:
    """Explain a loss of 0 with a gradient that is not 0."""
    loss, norm = lasting(steps, "loss"), lasting(steps, "grad_norm")
    if loss is None or norm is None or "reward" not in steps[-1]:
        return None
    if max(map(abs, loss)) < 1e-6 and min(norm) > 0:
        return (
            "the loss is 0 while the gradient is not: with one update per batch the ratio is 1 and "
            "the advantages of a group sum to 0. This is expected: watch the reward instead"
        )
    return None


def kl_blow_up(steps: Sequence[Metrics]) -> str | None:
    """Report a KL of at least 1 nat per token; without rollouts (kto), `kl` is per completion."""
    kl = lasting(steps, "kl")
    if kl is None or min(kl) < 1 or "reward" not in steps[-1]:
        return None
    return (
        f"the policy is {kl[-1]:.1f} nats per token away from its reference: lower "
        "trainer.learning_rate or raise trainer.beta"
    )


def entropy_collapse(steps: Sequence[Metrics]) -> str | None:
    """Report that the entropy fell to a fifth or less, and is at most 0.05 nats per token."""
    change = drift(steps, "entropy")
    if change is None:
        return None
    before, now = change
    if now > 0.2 * before or now > 0.05:
        return None
    return (
        f"entropy fell from {before:.3f} to {now:.3f} nats per token: the policy hardly explores "
        "any more; raise trainer.epsilon_high or trainer.entropy_coef, or lower "
        "trainer.learning_rate"
    )


def clipped_share(steps: Sequence[Metrics]) -> str | None:
    """Report that at least 30% of the tokens are outside the clip range."""
    low = lasting(steps, "clip_ratio/low_mean")
    high = lasting(steps, "clip_ratio/high_mean")
    if low is None or high is None:
        return None
    shares = [a + b for a, b in zip(low, high)]
    if min(shares) < 0.3:
        return None
    return (
        f"{shares[-1]:.0%} of the tokens are outside the clip range: lower trainer.learning_rate, "
        "trainer.num_inner_epochs or trainer.num_minibatches"
    )


def length_drift(steps: Sequence[Metrics]) -> str | None:
    """Report that the completions became at least twice or at most half as long."""
    change = drift(steps, "completions/mean_length")
    if change is None:
        return None
    before, now = change
    if before == 0 or 0.5 < now / before < 2:
        return None
    verb = "grew" if now > before else "shrank"
    return (
        f"completions {verb} from {before:.0f} to {now:.0f} tokens over {WINDOW} steps: check in "
        "samples.jsonl whether the reward favours a length"
    )


def sampler_left_behind(steps: Sequence[Metrics]) -> str | None:
    """Report a sudden rise of the mismatch between sampler and trainer."""
    values = [m[MISMATCH] for m in steps if MISMATCH in m]
    if len(values) < 2 or steps[-1].get("sampling/staleness"):
        return None
    before = mean(values[:-1])
    if values[-1] < max(1e-3, 10 * before):
        return None
    return (
        f"sampler and trainer disagree by {values[-1]:.2g} nats per token on the log-probs of the "
        f"same completions, up from {before:.2g}: check that new weights still reach the sampler"
    )


def old_completions(steps: Sequence[Metrics]) -> str | None:
    """Report that the policy moves far in the steps that completions are behind."""
    values = lasting(steps, MISMATCH)
    if values is None or not steps[-1].get("sampling/staleness") or min(values) < 0.05:
        return None
    return (
        f"log-probs of the weights that sampled and of the policy differ by {values[-1]:.2g} nats "
        "per token: a step moves the policy so far that rollout.one_step_off costs more than it "
        "saves; switch it off (or max_staleness), or lower trainer.learning_rate"
    )


def both_rewards_fall(steps: Sequence[Metrics]) -> str | None:
    """Report that the implicit rewards of both chosen and rejected completions fall."""
    chosen, rejected = drift(steps, "rewards/chosen"), drift(steps, "rewards/rejected")
    if chosen is None or rejected is None or max(chosen[1], rejected[1]) > -0.5:
        return None
    if chosen[1] > chosen[0] - 0.1 or rejected[1] > rejected[0] - 0.1:
        return None
    return (
        f"the rewards of chosen and of rejected completions both fall (to {chosen[1]:.2f} and "
        f"{rejected[1]:.2f}): the policy moves away from both, which the loss allows as long as "
        "their difference grows; if the task suffers, set trainer.sft_coef or lower "
        "trainer.learning_rate"
    )


def told_apart_at_once(steps: Sequence[Metrics]) -> str | None:
    """Report that every pair is ranked correctly in the first steps."""
    values = [m["rewards/accuracies"] for m in steps if "rewards/accuracies" in m]
    if len(steps) > 2 * LASTING or values.count(1.0) < LASTING:
        return None
    return (
        "every pair is ranked correctly from the start: the pairs are too easy, or something other "
        "than quality gives the rejected ones away (length, format, a template)"
    )


def reward_without_accuracy(evaluations: Sequence[Metrics]) -> str | None:
    """Report that the reward rose and the held-out accuracy fell in the last evaluations."""
    if len(evaluations) < LASTING:
        return None
    last = list(evaluations)[-LASTING:]
    pairs = list(itertools.pairwise(last))
    rising = all(b["reward"] > a["reward"] for a, b in pairs)
    falling = all(b["accuracy"] < a["accuracy"] for a, b in pairs)
    if not (rising and falling):
        return None
    return (
        "the reward rises while held-out accuracy falls: the policy may exploit the reward instead "
        "of solving the task; read samples.jsonl before you continue"
    )


SIGNS: dict[str, Sign] = {
    "no signal": no_signal,
    "loss without size": loss_without_size,
    "KL blow-up": kl_blow_up,
    "entropy collapse": entropy_collapse,
    "clipped share": clipped_share,
    "length drift": length_drift,
    "sampler left behind": sampler_left_behind,
    "old completions": old_completions,
    "both rewards fall": both_rewards_fall,
    "told apart at once": told_apart_at_once,
}
