"""What holds for every registered method: a new one is tested by being registered."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from repeats import choice

from posttrain.algorithms import ALGORITHMS
from posttrain.algorithms.base import algorithm_named
from posttrain.algorithms.pair_losses import PAIR_LOSSES, SMOOTHED
from posttrain.common.batch import pack
from posttrain.model.forward import Output, forward
from posttrain.training.trainer import global_counts

METHODS = list(ALGORITHMS)
# Each method as it is by default, and with every switch that changes its loss.
VARIANTS = [
    *((name, {}) for name in METHODS),
    ("grpo", {"beta": 0.1}),
    ("grpo", {"reduction": "sequence", "scale_rewards": "none"}),
    ("grpo", {"reduction": "constant", "beta": 0.05, "epsilon_high": 0.4}),
    ("grpo", {"num_inner_epochs": 2, "beta": 0.1}),
    ("grpo", {"num_inner_epochs": 2, "epsilon": 0.01, "dual_clip": 1.05, "kl_estimator": "k2"}),
    ("grpo", {"num_inner_epochs": 2, "surrogate": "cispo", "entropy_coef": 0.01}),
    ("grpo", {"num_inner_epochs": 2, "surrogate": "sapo", "baseline": "leave_one_out"}),
    ("grpo", {"num_inner_epochs": 2, "surrogate": "vespo", "ratio_level": "sequence_sum"}),
    ("grpo", {"num_inner_epochs": 2, "ratio_level": "sequence", "reduction": "sequence_sum"}),
    ("grpo", {"sampler_correction": "token", "scale_rewards": "batch", "beta": 0.1}),
    ("grpo", {"sampler_correction": "sequence_sum", "sampler_correction_mode": "mask"}),
    ("grpo", {"preset": "nemo"}),
    ("grpo", {"beta": 0.1, "kl_in": "token_reward", "kl_estimator": "k1"}),
    ("rloo", {"beta": 0.1, "num_inner_epochs": 2}),
    ("rloo", {"beta": 0.1, "kl_logprobs": "policy"}),
    ("reinforce", {"beta": 0.1, "num_inner_epochs": 2}),
    ("ppo", {"value_model": "shared", "beta": 0.1}),
    ("ppo", {"value_clip": None, "gae_lambda": 0.7, "gamma": 0.9, "value_learning_rate": 0.1}),
    ("reinforce", {"beta": 0.1, "baseline": "group_mean", "kl_in": "loss", "kl_estimator": "k2"}),
    *(
        ("dpo", {"loss_type": name, "label_smoothing": 0.2 if name in SMOOTHED else 0.0})
        for name in PAIR_LOSSES
        if name not in ("sigmoid", "ipo", "kto_pair", "simpo", "orpo")
    ),
    ("dpo", {"loss_type": ["sigmoid", "ipo"], "loss_weights": [1.0, 0.3], "sft_coef": 0.5}),
    ("dpo", {"average_logprobs": True, "sft_coef": 1.0, "nll_over": "prompt_and_completion"}),
    ("dpo", {"reference_free": True}),
    ("orpo", {"nll_over": "completion"}),
    ("kto", {"loss_type": "apo_zero_unpaired", "undesirable_weight": 0.5}),
    ("kto", {"sft_coef": 0.7}),
    ("reward_model", {"center_coef": 0.1}),
    ("classification", {"multi_label": True, "class_weights": {"a": 2.0}}),
    ("classification", {"mode": "label_tokens", "class_weights": {"b": 3.0}}),
]
variants = pytest.mark.parametrize(("name", "keys"), VARIANTS)
# What a kind of model changes is before the loss: of the second kind, three methods.
KINDS = [(*variant, kind) for kind in ("qwen2", "llama") for variant in VARIANTS]
FAST = KINDS[: len(VARIANTS)] + [(name, {}, "llama") for name in ("sft", "grpo", "reward_model")]
TWINS = ("ipo", "simpo", "cpo", "orpo", "rloo")  # dpo's and grpo's code with other defaults
OFFLINE = [name for name in METHODS if not algorithm_named(name).online]


def reads_logprobs(name):
    return name not in ("reward_model", "process_reward_model", "classification")


def prepared_batch(trainer):
    raw = tiny.raw_batch(trainer.algorithm, trainer.models, trainer.config)
    return tiny.prepared(trainer, raw)


def updated_batch(trainer):
    """A prepared batch and a policy that has moved since: ratios and KL are not trivial."""
    batch = tiny.prepared(
        trainer, tiny.raw_batch(trainer.algorithm, trainer.models, trainer.config)
    )
    torch.manual_seed(5)
    with torch.no_grad():
        for p in trainer.models.trainable().values():
            p.add_(0.02 * torch.randn_like(p))
    return batch


@pytest.mark.parametrize(("name", "keys", "kind"), choice(KINDS, FAST))
def test_gradient_does_not_depend_on_micro_batch_size_or_packing(name, keys, kind):
    together = tiny.trainer_of(name, tiny.models(kind), micro_batch_tokens=10**6, **keys)
    batch = updated_batch(together)
    expected = tiny.gradients(together, batch)
    for tokens in (1, 40):  # 1: every sequence is a micro-batch of its own
        config = together.config.model_copy(update={"micro_batch_tokens": tokens})
        together.config = config
        tiny.assert_same(expected, tiny.gradients(together, batch))


@variants
def test_gradient_does_not_depend_on_the_order_of_sequences(name, keys):
    trainer = tiny.trainer_of(name, tiny.models(), **keys)
    batch = updated_batch(trainer)
    size = trainer.algorithm.group_size
    groups = [list(range(i, i + size)) for i in range(0, batch.num_sequences, size)]
    backwards = batch.select([i for group in reversed(groups) for i in group])
    tiny.assert_same(tiny.gradients(trainer, batch), tiny.gradients(trainer, backwards))


# how a layer is computed again does not depend on the loss that follows
@pytest.mark.parametrize(("name", "keys"), choice(VARIANTS, VARIANTS[: len(METHODS)]))
def test_gradient_checkpointing_changes_nothing(name, keys):
    plain = tiny.trainer_of(name, tiny.models(), **keys)
    batch = updated_batch(plain)
    expected = tiny.gradients(plain, batch)
    checkpointed = tiny.trainer_of(name, tiny.models(gradient_checkpointing=True), **keys)
    checkpointed.models.policy.load_state_dict(plain.models.policy.state_dict())
    tiny.assert_same(expected, tiny.gradients(checkpointed, batch), rtol=1e-6)


@variants
def test_matches_a_padded_model_with_no_code_of_ours(name, keys):
    """The loss of the whole batch from transformers' own padded forward, sequence by sequence."""
    trainer = tiny.trainer_of(name, tiny.models(), **keys)
    batch = updated_batch(trainer)
    whole = copy.deepcopy(trainer.models.policy)
    reference, head = whole.model, whole.head
    for network in (reference, whole.value_network):
        if network is not None:
            network.set_attn_implementation("eager")
    logprobs, entropies, values, scores, last_values, labels = [], [], [], [], [], []
    start = 0
    for length in batch.lengths:
        ids = batch.input_ids[start : start + length]
        logits = reference(ids[None], use_cache=False).logits[0]
        full = logits.log_softmax(-1)[:-1]
        rows = full.gather(1, ids[1:, None])[:, 0]
        logprobs.append(torch.cat([torch.zeros(1), rows]))
        entropies.append(torch.cat([torch.zeros(1), -(full.exp() * full).sum(-1)]))
        start += length
        if whole.label_tokens is not None:
            labels.append(logits[-1, whole.label_tokens])
        elif trainer.algorithm.rows == "labelled":
            states = reference.model(ids[None], use_cache=False).last_hidden_state
            labels.append(head(states[0, -1]))
        elif head is not None:
            states = (whole.value_network or reference).model(ids[None], use_cache=False)
            scores.append(head(states.last_hidden_state[0])[:, 0])
            values.append(scores[-1].roll(1))
            last_values.append(scores[-1][-1])
    mask = batch.loss_mask
    out = Output(torch.cat(logprobs) * mask, torch.cat(entropies) * mask)
    if labels:
        out.logits = torch.stack(labels)
    elif whole.head_kind == "value":
        out.values, out.last_values = torch.cat(values) * mask, torch.stack(last_values)
    elif head is not None:
        out.scores = torch.cat(scores)
    loss = trainer.algorithm.loss(out, batch, trainer.config)
    label = batch.per_seq.get("label", (torch.arange(len(batch.lengths)) + 1) % 2)
    of_chosen = [m for m, good in zip(mask.split(batch.lengths), label) if good]
    counts = {
        "token": int(mask.sum()),
        "sequence": len(batch.lengths),
        "pair": len(batch.lengths) / 2,
        "chosen_token": int(torch.cat(of_chosen).sum()),
    }
    total = sum(term / counts[unit] for unit, term in loss.terms.items())
    total.backward()
    theirs = {n: p.grad for n, p in whole.named_parameters() if p.requires_grad}
    tiny.assert_same(theirs, tiny.gradients(trainer, batch), rtol=2e-5)


@variants
def test_loss_gradient_by_finite_differences(name, keys):
    if not reads_logprobs(name):
        pytest.skip("no log-prob is read; the head's gradient has its own tests")
    if keys.get("surrogate") in ("cispo", "vespo"):
        pytest.skip("the weight is held still in the gradient: it is no derivative of the loss")
    trainer = tiny.trainer_of(name, tiny.models(), **keys)
    batch = updated_batch(trainer)
    batch.per_token = {k: v.double() for k, v in batch.per_token.items()}
    values = trainer.models.policy.head is not None
    now = forward(trainer.models.policy, batch, head=values)
    logprobs = now.logprobs.detach().double()
    still = now.values.detach().double() if values else None

    def loss_at(x: torch.Tensor) -> torch.Tensor:
        out = Output(x, values=still)
        return sum(trainer.algorithm.loss(out, batch, trainer.config).terms.values())

    x = logprobs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_at(x), x)
    assert gradient.abs().max() > 0
    step = 1e-6
    for t in batch.loss_mask.nonzero()[:12, 0].tolist():
        if trainer.algorithm.online:
            # on-policy, the old log-probs are the current ones: hold them still while moving
            batch.per_token.setdefault("old_logprobs", logprobs)
        up, down = logprobs.clone(), logprobs.clone()
        up[t] += step
        down[t] -= step
        numeric = float(loss_at(up) - loss_at(down)) / (2 * step)
        assert numeric == pytest.approx(float(gradient[t]), rel=1e-4, abs=1e-7)


@variants
def test_tokens_outside_the_mask_get_no_gradient(name, keys):
    if not reads_logprobs(name):
        pytest.skip("no log-prob is read")
    trainer = tiny.trainer_of(name, tiny.models(), **keys)
    batch = updated_batch(trainer)
    logprobs = torch.randn(batch.num_tokens).sub(2).requires_grad_()
    out = Output(logprobs * batch.loss_mask, values=torch.zeros(batch.num_tokens))
    loss = trainer.algorithm.loss(out, batch, trainer.config)
    sum(loss.terms.values()).backward()
    assert (logprobs.grad[~batch.loss_mask] == 0).all()
    assert (logprobs.grad[batch.loss_mask] != 0).any()


@pytest.mark.parametrize("name", METHODS)
def test_every_trainable_tensor_gets_a_gradient(name):
    for model_keys in ({}, {"use_lora": True}):
        trainer = tiny.trainer_of(name, tiny.models("llama", **model_keys))
        with torch.no_grad():  # a fresh adapter's B is zero, and with it the gradient of A
            for p in trainer.models.trainable().values():
                p.add_(0.01 * torch.randn_like(p))
        batch = tiny.prepared(
            trainer, tiny.raw_batch(trainer.algorithm, trainer.models, trainer.config)
        )
        for tensor, gradient in tiny.gradients(trainer, batch).items():
            assert gradient.abs().max() > 0, tensor


@pytest.mark.parametrize("name", choice(OFFLINE, set(OFFLINE) - set(TWINS)))
def test_overfits_one_batch(name):
    trainer = tiny.trainer_of(name, tiny.models(), weight_decay=0.0)
    batch = prepared_batch(trainer)
    losses = [trainer.update(batch)["loss"] for _ in range(100)]
    first, last = losses[0][0] / losses[0][1], losses[-1][0] / losses[-1][1]
    assert last < 0.1 * first


def test_sequences_of_a_packed_row_do_not_see_each_other():
    """Changing one sequence leaves the others' log-probs as they were, bit for bit."""
    policy = tiny.models().policy
    rows = tiny.random_sequences(5)
    before = forward(policy, pack(rows)).logprobs
    changed = copy.deepcopy(rows)
    changed[2].input_ids = (changed[2].input_ids + 7) % tiny.VOCAB
    after = forward(policy, pack(changed)).logprobs
    start = sum(len(r) for r in rows[:2])
    own = torch.zeros(len(before), dtype=torch.bool)
    own[start : start + len(rows[2])] = True
    assert torch.equal(before[~own], after[~own])
    assert not torch.equal(before[own], after[own])


@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce"])  # ppo: values still learn
def test_equal_rewards_give_no_gradient(name):
    trainer = tiny.trainer_of(name, tiny.models())
    batch = tiny.raw_batch(trainer.algorithm, trainer.models, trainer.config)
    batch.per_seq["rewards"] = torch.full_like(batch.per_seq["rewards"], 0.7)
    found = tiny.gradients(trainer, tiny.prepared(trainer, batch))
    assert all((g == 0).all() for g in found.values())


@pytest.mark.parametrize("name", [n for n in METHODS if algorithm_named(n).online])
@pytest.mark.parametrize("model_keys", [{}, {"use_lora": True}])
def test_policy_and_reference_agree_exactly_at_step_0(name, model_keys):
    trainer = tiny.trainer_of(name, tiny.models(**model_keys), beta=0.1)
    batch = tiny.prepared(
        trainer, tiny.raw_batch(trainer.algorithm, trainer.models, trainer.config)
    )
    totals = trainer.update(batch)
    assert totals["kl"][0] == 0.0
    # the sampler, the trainer and the reference are one distribution
    assert totals["sampling/sampling_logp_difference/mean"][0] / totals["entropy"][1] < 1e-5
    # and after the update the reference is still where it was
    with trainer.models.reference():
        again = trainer.models.logprobs(batch, 10**6)
    assert torch.equal(again, batch.per_token["ref_logprobs"])
    assert not torch.equal(again, trainer.models.logprobs(batch, 10**6))


@pytest.mark.parametrize(
    "name",
    [
        "pretrain",
        "sft",
        "simpo",
        "cpo",
        "orpo",
        "reward_model",
        "process_reward_model",
        "classification",
    ],
)
def test_a_rank_without_rows_counts_nothing(name):
    """The last step of an epoch may have fewer rows than there are ranks."""
    trainer = tiny.trainer_of(name, tiny.models())
    empty = tiny.prepared(trainer, pack([]))
    assert set(global_counts(empty).values()) == {0.0}
    assert list(trainer._micro_batches(empty)) == []


def test_skipping_rollouts_without_advantage_changes_nothing():
    """The last group has equal rewards: it is counted in the denominator but not run."""
    trainer = tiny.trainer_of("grpo", tiny.models())
    batch = updated_batch(trainer)
    assert not batch.per_seq["active"].all()
    skipped = tiny.gradients(trainer, batch)
    del batch.per_seq["active"]
    tiny.assert_same(skipped, tiny.gradients(trainer, batch))
