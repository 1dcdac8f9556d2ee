"""Says in words what a run's numbers mean, once they have meant it for a while.

Each sign is a function of the metrics of the last steps that gives a sentence or None. A sentence
is said when its sign appears and not again until it has been gone.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence

Metrics = dict[str, float]
Sign = Callable[[Sequence[Metrics]], str | None]

LASTING = 3  # steps that a sign must last
WINDOW = 60  # steps that are looked back on
MISMATCH = "sampling/sampling_logp_difference/mean"


class Diagnosis:
    def __init__(self) -> None:
        self.steps: deque[Metrics] = deque(maxlen=WINDOW)
        self.evaluations: deque[Metrics] = deque(maxlen=WINDOW)
        self.said: set[str] = set()

    def replay(self, lines: Sequence[Metrics]) -> None:
        """What a resumed run had seen before, and said."""
        for metrics in lines:
            if "loss" in metrics:
                self.step(metrics)
            else:
                self.evaluation(metrics)

    def step(self, metrics: Metrics) -> list[str]:
        """What is to be said after this training step."""
        self.steps.append(metrics)
        return self._look({name: sign(self.steps) for name, sign in SIGNS.items()})

    def evaluation(self, metrics: Metrics) -> list[str]:
        """What is to be said after this evaluation."""
        rewards = [m["reward"] for m in self.steps if "reward" in m]
        accuracy = metrics.get("eval_accuracy")
        if accuracy is None or not rewards:
            return []
        self.evaluations.append({"accuracy": accuracy, "reward": mean(rewards[-10:])})
        return self._look({"overfitted reward": reward_without_accuracy(self.evaluations)})

    def _look(self, found: dict[str, str | None]) -> list[str]:
        news = [text for name, text in found.items() if text and name not in self.said]
        for name, text in found.items():
            (self.said.add if text else self.said.discard)(name)
        return news


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def lasting(steps: Sequence[Metrics], name: str) -> list[float] | None:
    """The last LASTING values of a metric, where there are so many."""
    values = [m[name] for m in steps if name in m]
    return values[-LASTING:] if len(values) >= LASTING else None


def drift(steps: Sequence[Metrics], name: str) -> tuple[float, float] | None:
    """Mean of the first ten steps of the window, and of its last ten, once it is full."""
    values = [m[name] for m in steps if name in m]
    return (mean(values[:10]), mean(values[-10:])) if len(values) >= WINDOW else None


def no_signal(steps: Sequence[Metrics]) -> str | None:
    flat = lasting(steps, "frac_reward_zero_std")
    if flat is None or min(flat) < 1:
        return None
    last = steps[-1]
    reward = last.get("reward", 0.0)
    begin = (
        f"no learning signal for {LASTING} steps: in every group all completions got the same "
        f"reward, so every advantage is 0 (mean reward {reward:.2f}); "
    )
    rewards = [m.get("reward_std", 0.0) for m in list(steps)[-LASTING:]]
    if last.get("completions/clipped_ratio", 0.0) > 0.9:
        return begin + "most completions are cut off: raise rollout.max_new_tokens"
    if max(rewards) > 0:
        return begin + (
            "some prompts are always solved and the others never: mix in prompts between"
        )
    correct = sum(v for k, v in last.items() if k == "verdicts/correct")
    judged = sum(v for k, v in last.items() if k.startswith("verdicts/"))
    if judged and correct == judged:
        return begin + "all completions are right: the prompts are too easy"
    if judged and correct == 0:
        return begin + (
            "all completions are wrong: easier prompts, more SFT first, or look at samples.jsonl "
            "for an answer format that the reward does not read"
        )
    return begin + "the prompts are all too hard or all too easy, or the reward is constant"


def loss_without_size(steps: Sequence[Metrics]) -> str | None:
    loss, norm = lasting(steps, "loss"), lasting(steps, "grad_norm")
    if loss is None or norm is None or "reward" not in steps[-1]:
        return None
    if max(map(abs, loss)) < 1e-6 and min(norm) > 0:
        return (
            "the loss is 0 while the gradient is not: with one update per batch the ratio is 1 and "
            "the advantages of a group sum to 0. This is as it should be; watch the reward"
        )
    return None


def kl_blow_up(steps: Sequence[Metrics]) -> str | None:
    kl = lasting(steps, "kl")
    if kl is None or min(kl) < 1 or "reward" not in steps[-1]:
        return None
    return (
        f"the policy has left its reference by {kl[-1]:.1f} nats per token: lower "
        "trainer.learning_rate or raise trainer.beta"
    )


def entropy_collapse(steps: Sequence[Metrics]) -> str | None:
    found = drift(steps, "entropy")
    if found is None or found[1] > 0.2 * found[0] or found[1] > 0.05:
        return None
    return (
        f"entropy fell from {found[0]:.3f} to {found[1]:.3f} nats per token: the policy hardly "
        "explores any more; raise trainer.epsilon_high or trainer.entropy_coef, lower the rate"
    )


def clipped_share(steps: Sequence[Metrics]) -> str | None:
    low = lasting(steps, "clip_ratio/low_mean")
    high = lasting(steps, "clip_ratio/high_mean")
    if low is None or high is None:
        return None
    shares = [a + b for a, b in zip(low, high)]
    if min(shares) < 0.3:
        return None
    return (
        f"{shares[-1]:.0%} of the tokens lie outside the clip range and teach nothing: lower "
        "trainer.learning_rate, num_inner_epochs or num_minibatches"
    )


def length_drift(steps: Sequence[Metrics]) -> str | None:
    found = drift(steps, "completions/mean_length")
    if found is None or found[0] == 0 or 0.5 < found[1] / found[0] < 2:
        return None
    which = "grew" if found[1] > found[0] else "shrank"
    return (
        f"completions {which} from {found[0]:.0f} to {found[1]:.0f} tokens over {WINDOW} steps: "
        "see in samples.jsonl whether the reward pays for length"
    )


def sampler_left_behind(steps: Sequence[Metrics]) -> str | None:
    values = [m[MISMATCH] for m in steps if MISMATCH in m]
    if len(values) < 2 or steps[-1].get("sampling/staleness"):
        return None
    before = mean(values[:-1])
    if values[-1] < max(1e-3, 10 * before):
        return None
    return (
        f"sampler and trainer disagree by {values[-1]:.2g} nats per token on the log-probs of the "
        f"same completions, after {before:.2g} in the steps before: do the weights still arrive?"
    )


def old_completions(steps: Sequence[Metrics]) -> str | None:
    values = lasting(steps, MISMATCH)
    if values is None or not steps[-1].get("sampling/staleness") or min(values) < 0.05:
        return None
    return (
        f"the completions' weights are {values[-1]:.2g} nats per token from the policy's: one step "
        "moves it so far that rollout.one_step_off costs more than it saves: switch it off, or "
        "lower trainer.learning_rate"
    )


def both_rewards_fall(steps: Sequence[Metrics]) -> str | None:
    chosen, rejected = drift(steps, "rewards/chosen"), drift(steps, "rewards/rejected")
    if chosen is None or rejected is None or max(chosen[1], rejected[1]) > -0.5:
        return None
    if chosen[1] > chosen[0] - 0.1 or rejected[1] > rejected[0] - 0.1:
        return None
    return (
        f"the rewards of chosen and of rejected completions both fall (to {chosen[1]:.2f} and "
        f"{rejected[1]:.2f}): the policy leaves both behind and only their difference grows, which "
        "the loss allows; where the task suffers, set trainer.sft_coef or lower the rate"
    )


def told_apart_at_once(steps: Sequence[Metrics]) -> str | None:
    values = [m["rewards/accuracies"] for m in steps if "rewards/accuracies" in m]
    if len(steps) > 2 * LASTING or values.count(1.0) < LASTING:
        return None
    return (
        "every pair is told apart from the start: the pairs are too easy, or something besides "
        "quality gives the rejected ones away (length, format, a template)"
    )


def reward_without_accuracy(evaluations: Sequence[Metrics]) -> str | None:
    if len(evaluations) < LASTING:
        return None
    last = list(evaluations)[-LASTING:]
    pairs = list(itertools.pairwise(last))
    rising = all(b["reward"] > a["reward"] for a, b in pairs)
    falling = all(b["accuracy"] < a["accuracy"] for a, b in pairs)
    if not (rising and falling):
        return None
    return (
        "the reward rises while held-out accuracy falls: the policy has found something that pays "
        "and is not the task; read samples.jsonl before going on"
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
