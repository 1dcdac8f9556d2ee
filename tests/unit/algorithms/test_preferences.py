"""Preference methods: equal to TRL where it has the loss, else to formulas written out here; by
hand; at step 0."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F

from posttrain.algorithms.base import UNITS, algorithm_named
from posttrain.algorithms.pair_losses import SMOOTHED, log1mexp
from posttrain.common.batch import Batch, Sequence, pack
from posttrain.model.forward import Output
from posttrain.training.trainer import total_of

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

PROMPT = 3
LENGTHS = [4, 6, 1, 3, 7, 2]  # chosen, rejected, chosen, ...
WIDTH = PROMPT + max(LENGTHS)
TOTAL = torch.tensor([PROMPT + n for n in LENGTHS])
REAL = torch.arange(WIDTH) < TOTAL[:, None]
COMPLETION = REAL & (torch.arange(WIDTH) >= PROMPT)


def drawn(seed: int, scale: float = 0.5) -> torch.Tensor:
    """Log-probs [6, WIDTH]; column 0 belongs to no token."""
    generator = torch.Generator().manual_seed(seed)
    values = -torch.rand(6, WIDTH, generator=generator).double() * 2 * scale - 0.05
    return values * REAL * (torch.arange(WIDTH) > 0)


def laid_out(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([row[:n] for row, n in zip(x, TOTAL.tolist())])


def batch_of(train_prompt: bool = False, scores: bool = False, **per_token: torch.Tensor) -> Batch:
    rows = []
    for i, n in enumerate(TOTAL.tolist()):
        own = torch.arange(n) >= PROMPT
        mask = torch.arange(n) > 0 if train_prompt and i % 2 == 0 else own
        row = Sequence(torch.ones(n, dtype=torch.int64), mask & (not scores))
        row.per_token = {"completion": own.double()}
        row.per_seq = {"margin": 0.0}
        rows.append(row)
    batch = pack(rows)
    batch.per_token |= {name: laid_out(x) for name, x in per_token.items()}
    batch.per_seq = {name: x.double() for name, x in batch.per_seq.items()}
    return batch


def ours(
    method: str, new: torch.Tensor, ref: torch.Tensor | None = None, **keys: Any
) -> tuple[float, torch.Tensor, dict[str, float]]:
    """Loss, gradient [6, WIDTH] and metrics on log-probs `new`."""
    config = tiny.config_of(method, **keys)
    more = {} if ref is None else {"ref_logprobs": ref}
    batch = batch_of(**config.row_options, **more)
    new = new.clone().requires_grad_()
    loss = algorithm_named(method).loss(Output(laid_out(new) * batch.loss_mask), batch, config)
    total = sum(term / UNITS[unit](batch) for unit, term in loss.terms.items())
    total.backward()
    metrics = {name: float(value) / float(count) for name, (value, count) in loss.metrics.items()}
    return float(total), new.grad, metrics


def padded_first(x: torch.Tensor) -> torch.Tensor:
    """Chosen rows, then rejected ones, as TRL has them."""
    return torch.cat([x[0::2], x[1::2]])


def theirs_dpo(new: torch.Tensor, ref: torch.Tensor, loss_types: list[str], **keys: Any) -> Any:
    """Loss, gradient and metrics by `_compute_loss` of TRL's DPOTrainer, with its fused head given
    our log-probs."""
    trl = pytest.importorskip("trl")
    leaf = new.clone().requires_grad_()
    mask = padded_first(COMPLETION)

    def model(**inputs: Any) -> Any:
        return outputs(leaf)

    def outputs(x: torch.Tensor) -> Any:
        shifted = padded_first(x)[:, 1:] * mask[:, 1:]
        zeros = torch.zeros_like(shifted)
        return SimpleNamespace(
            log_probs=shifted, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), aux_loss=0.0
        )

    metrics: Any = {"train": defaultdict(list)}
    fake = SimpleNamespace(
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=loss_types,
        loss_weights=keys.pop("loss_weights", [1.0] * len(loss_types)),
        use_weighting=False,
        beta=keys.pop("beta", 0.1),
        label_smoothing=keys.pop("label_smoothing", 0.0),
        args=SimpleNamespace(),
        _metrics=metrics,
        _total_train_tokens=0,
        _tp_size=1,
        accelerator=SimpleNamespace(
            device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x
        ),
    )
    ref_logps = (padded_first(ref) * mask).sum(1)
    inputs = {
        "input_ids": torch.ones_like(mask, dtype=torch.int64),
        "completion_mask": mask.long(),
        "attention_mask": padded_first(REAL).long(),
        "ref_chosen_logps": ref_logps[:3],
        "ref_rejected_logps": ref_logps[3:],
    }
    loss = trl.DPOTrainer._compute_loss(fake, model, inputs, False)
    loss.backward()
    return float(loss), leaf.grad, {k: v[-1] for k, v in metrics["train"].items()}


def assert_equal(a: Any, b: Any) -> None:
    assert a[0] == pytest.approx(b[0], rel=1e-6)
    torch.testing.assert_close(a[1], b[1], rtol=1e-6, atol=1e-10)
    assert (a[1] != 0).sum() > 4, "little is tested"
    shared = [k for k in a[2] if k in b[2]]
    assert {"rewards/chosen", "rewards/accuracies", "logps/rejected"} <= {*shared}
    for name in shared:
        assert a[2][name] == pytest.approx(b[2][name], rel=1e-6, abs=1e-9), name


SHARED = [
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
]


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("loss_type", SHARED)
def test_dpo_equals_trl(loss_type, beta):
    new, ref = drawn(1), drawn(2)
    keys = {"beta": beta, "label_smoothing": 0.2 if loss_type in SMOOTHED else 0.0}
    expected = theirs_dpo(new, ref, [loss_type], **keys)
    assert_equal(ours("dpo", new, ref, loss_type=loss_type, **keys), expected)


def test_several_losses_and_the_sft_term_equal_trl():
    new, ref = drawn(3), drawn(4)
    expected = theirs_dpo(new, ref, ["sigmoid", "ipo", "sft"], loss_weights=[0.7, 0.2, 1.5])
    found = ours(
        "dpo", new, ref, loss_type=["sigmoid", "ipo"], loss_weights=[0.7, 0.2], sft_coef=1.5
    )
    assert_equal(found, expected)


@pytest.mark.parametrize(
    ("method", "loss_type", "keys"),
    [
        ("simpo", "simpo", {"beta": 2.0, "gamma": 0.8}),
        ("cpo", "sigmoid", {"beta": 0.3}),
        ("cpo", "hinge", {"beta": 0.3}),
        ("cpo", "cdpo", {"beta": 0.3, "label_smoothing": 0.1}),
    ],
)
def test_simpo_and_cpo_equal_trl(method, loss_type, keys):
    cpo = pytest.importorskip("trl.experimental.cpo")
    new = drawn(5)
    leaf = new.clone().requires_grad_()
    logps = (leaf * COMPLETION).sum(1)
    if loss_type == "simpo":
        logps = logps / COMPLETION.sum(1)
    fake = SimpleNamespace(
        alpha=0.0,
        loss_type="sigmoid" if loss_type == "cdpo" else loss_type,
        beta=keys["beta"],
        simpo_gamma=keys.get("gamma", 0.0),
        label_smoothing=keys.get("label_smoothing", 0.0),
        accelerator=SimpleNamespace(device="cpu"),
    )
    losses, chosen, rejected = cpo.CPOTrainer.cpo_loss(fake, logps[0::2], logps[1::2])
    nll = -(leaf * COMPLETION)[0::2].sum() / COMPLETION[0::2].sum()
    total = losses.mean() + (1.0 if method == "cpo" else 0.0) * nll
    total.backward()
    found = ours(method, new, loss_type=loss_type, **keys)
    assert found[0] == pytest.approx(float(total), rel=1e-6)
    torch.testing.assert_close(found[1], leaf.grad, rtol=1e-6, atol=1e-10)
    assert found[2]["rewards/chosen"] == pytest.approx(float(chosen.mean()), rel=1e-6)
    assert found[2]["rewards/rejected"] == pytest.approx(float(rejected.mean()), rel=1e-6)


@pytest.mark.parametrize("nll_over", ["completion", "prompt_and_completion"])
def test_orpo_equals_trl(nll_over):
    """The odds ratio by TRL's code; the NLL over the tokens that TRL and LLaMA-Factory take."""
    orpo = pytest.importorskip("trl.experimental.orpo")
    new = drawn(6)
    leaf = new.clone().requires_grad_()
    logps = (leaf * COMPLETION).sum(1) / COMPLETION.sum(1)
    fake = SimpleNamespace(beta=0.2, accelerator=SimpleNamespace(device="cpu"))
    losses, *_, ratio, log_odds = orpo.ORPOTrainer.odds_ratio_loss(fake, logps[0::2], logps[1::2])
    tokens = COMPLETION if nll_over == "completion" else REAL & (torch.arange(WIDTH) > 0)
    nll = -(leaf * tokens)[0::2].sum() / tokens[0::2].sum()
    (nll - losses.mean()).backward()
    loss, gradient, metrics = ours("orpo", new, beta=0.2, nll_over=nll_over)
    # TRL's odds are fp32
    assert loss == pytest.approx(float(nll - losses.mean()), rel=1e-6)
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-5, atol=1e-8)
    assert metrics["log_odds_ratio"] == pytest.approx(float(ratio), rel=1e-5)
    assert metrics["log_odds_chosen"] == pytest.approx(float(log_odds), rel=1e-5)
    assert metrics["nll_loss"] == pytest.approx(float(nll), rel=1e-6)


@pytest.mark.parametrize("labels", [[1, 0, 1, 1, 0, 0], [1] * 6, [0] * 6])
def test_kto_equals_trl(labels):
    """TRL's `_compute_loss` with the same KL completions; batches of one class too."""
    trl = pytest.importorskip("trl")
    new, ref, kl_new, kl_ref = (drawn(seed) for seed in (7, 8, 9, 10))
    kl_new = kl_new * 0.6  # more likely than under the reference: z > 0
    leaf = new.clone().requires_grad_()
    zeros = torch.zeros(6, WIDTH - 1)
    answer = SimpleNamespace(
        log_probs=(leaf * COMPLETION)[:, 1:], entropy=zeros, mean_logits=zeros, aux_loss=0.0
    )
    metrics: Any = {"train": defaultdict(list)}

    def summed(x: torch.Tensor) -> torch.Tensor:
        return (x * COMPLETION).sum(1)

    fake = SimpleNamespace(
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        loss_type="kto",
        beta=0.3,
        _compute_kl_logps=lambda model, batch: summed(kl_new),
        precompute_ref_logps=True,
        calculate_KL=True,
        desirable_weight=1.3,
        undesirable_weight=0.8,
        _metrics=metrics,
        _total_train_tokens=0,
        _tp_size=1,
        accelerator=SimpleNamespace(
            device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x
        ),
    )
    inputs = {
        "input_ids": torch.ones(6, WIDTH, dtype=torch.int64),
        "attention_mask": REAL.long(),
        "completion_mask": COMPLETION.long(),
        "label": torch.tensor(labels),
        "ref_logps": summed(ref),
        "ref_KL_logps": summed(kl_ref),
    }
    loss = trl.KTOTrainer._compute_loss(fake, lambda **k: answer, inputs, False)
    loss.backward()

    kl = max(0.0, float((summed(kl_new) - summed(kl_ref)).mean()))
    assert kl > 0
    batch = batch_of(ref_logprobs=ref)
    batch.per_seq |= {"label": torch.tensor(labels), "kl": torch.full((6,), kl).double()}
    config = tiny.config_of("kto", beta=0.3, desirable_weight=1.3, undesirable_weight=0.8)
    mine = new.clone().requires_grad_()
    found = algorithm_named("kto").loss(Output(laid_out(mine) * batch.loss_mask), batch, config)
    total = found.terms["sequence"] / 6
    total.backward()
    assert float(total) == pytest.approx(float(loss), rel=1e-6)
    torch.testing.assert_close(mine.grad, leaf.grad, rtol=1e-6, atol=1e-10)
    for name, (value, count) in found.metrics.items():
        if count and name != "nll_loss":
            assert float(value) / float(count) == pytest.approx(metrics["train"][name][-1]), name


def test_the_sft_term_of_kto():
    """TRL has none. The good completions' tokens alone, and one mean over all of them."""
    new, label = drawn(7), torch.tensor([1, 0, 1, 1, 0, 0])
    batch = batch_of(ref_logprobs=drawn(8))
    batch.per_seq |= {"label": label, "kl": torch.zeros(6).double()}
    terms = {}
    for coef in (0.0, 0.7):
        config = tiny.config_of("kto", sft_coef=coef)
        out = Output(laid_out(new) * batch.loss_mask)
        loss = algorithm_named("kto").loss(out, batch, config)
        counts = {unit: count(batch) for unit, count in UNITS.items()}
        terms[coef] = float(total_of(loss, counts))
    good = COMPLETION.bool() & label.bool()[:, None]
    assert terms[0.7] - terms[0.0] == pytest.approx(0.7 * -float(new[good].mean()), rel=1e-9)


def test_kto_measures_its_kl_on_unrelated_completions():
    trainer = tiny.trainer_of("kto", tiny.models())
    raw = tiny.raw_batch(trainer.algorithm, trainer.models)
    torch.manual_seed(5)
    with torch.no_grad():
        for p in trainer.models.trainable().values():
            p.add_(0.05 * torch.randn_like(p))
    unrelated = raw.select(range(1, raw.num_sequences, 2))
    now = trainer.models.logprobs(unrelated, 10**6)
    with trainer.models.reference():
        ref = trainer.models.logprobs(unrelated, 10**6)
    expected = max(0.0, float(unrelated.sum_per_seq(now - ref).mean()))
    batch = tiny.prepared(trainer, raw)
    assert batch.num_sequences == raw.num_sequences // 2
    assert batch.per_seq["kl"].tolist() == pytest.approx([expected] * batch.num_sequences, abs=1e-5)


def test_kto_pair_written_out():
    """Chosen against the KL of the rejected, and the other way round."""
    new, ref = drawn(11), drawn(12)
    ratio = ((new - ref) * COMPLETION).sum(1)
    chosen, rejected = ratio[0::2], ratio[1::2]
    kl_chosen, kl_rejected = (x.mean().clamp(min=0) for x in (chosen, rejected))
    expected = (1 - torch.sigmoid(0.1 * (chosen - kl_rejected))).mean()
    expected += (1 - torch.sigmoid(0.1 * (kl_chosen - rejected))).mean()
    config = tiny.config_of("kto_pair")
    batch = batch_of()

    class Fixed:
        now = new

        def logprobs(self, batch: Batch, max_tokens: int) -> torch.Tensor:
            return laid_out(self.now)

        def reference(self) -> Any:
            return self

        def __enter__(self) -> None:
            self.now = ref

        def __exit__(self, *error: object) -> None:
            self.now = new

    models: Any = Fixed()
    batch = algorithm_named("kto_pair").prepare(batch, models, config)
    loss = algorithm_named("kto_pair").loss(Output(laid_out(new) * batch.loss_mask), batch, config)
    assert float(loss.terms["pair"]) / 3 == pytest.approx(float(expected))


def test_cdpo_is_the_mean_loss_under_flips():
    new, ref = drawn(13), drawn(14)
    kept = ours("dpo", new, ref, beta=0.4)[0]
    flipped = ours("dpo", -new, -ref, beta=0.4)[0]  # the sign of every difference
    found = ours("dpo", new, ref, beta=0.4, loss_type="cdpo", label_smoothing=0.3)[0]
    assert found == pytest.approx(0.7 * kept + 0.3 * flipped)


def by_hand(method: str, chosen: float, rejected: float, **keys: Any) -> float:
    """Loss of one pair of one-token completions with these log-probs, reference log-probs 0."""
    rows = []
    for _ in range(2):
        own = torch.tensor([False, False, True])
        rows.append(Sequence(torch.ones(3, dtype=torch.int64), own, {"completion": own.double()}))
        rows[-1].per_seq = {"margin": 0.5}
    batch = pack(rows)
    batch.per_token["ref_logprobs"] = torch.zeros(6).double()
    logprobs = torch.tensor([0, 0, chosen, 0, 0, rejected]).double()
    out = Output(logprobs, scores=torch.tensor([0, 0, chosen, 0, 0, rejected]).double())
    loss = algorithm_named(method).loss(out, batch, tiny.config_of(method, **keys))
    return float(sum(term / UNITS[unit](batch) for unit, term in loss.terms.items()))


def test_by_hand():
    """Log-probs -ln 2 and -ln 4: with beta 1 the odds of being preferred are 2 to 1."""
    half, quarter = -math.log(2), -math.log(4)
    assert by_hand("dpo", half, quarter, beta=1.0) == pytest.approx(math.log(3 / 2))
    assert by_hand("ipo", half, quarter, beta=1.0) == pytest.approx((math.log(2) - 0.5) ** 2)
    assert by_hand("dpo", half, quarter, beta=1.0, loss_type="hinge") == pytest.approx(
        1 - math.log(2)
    )
    # exp(gamma) = 2 takes the lead away
    assert by_hand("simpo", half, quarter, beta=1.0, gamma=math.log(2)) == pytest.approx(
        math.log(2)
    )
    # odds 1 and 1/3: the ratio is 3, sigmoid(ln 3) = 3/4; and the NLL of the chosen token
    found = by_hand("orpo", half, quarter, beta=0.5, nll_over="completion")
    assert found == pytest.approx(math.log(2) + 0.5 * math.log(4 / 3))
    # KTO's halves with z = 0: 1 - sigmoid(-ln 2) = 2/3 and 1 - sigmoid(ln 4) = 1/5
    assert by_hand("kto_pair", half, quarter, beta=1.0) == pytest.approx(2 / 3 + 1 / 5)
    # reward 2 against 0.5 with margin 0.5, and (2 + 0.5)^2 = 6.25
    found = by_hand("reward_model", 2.0, 0.5, center_coef=0.1)
    assert found == pytest.approx(-math.log(1 / (1 + math.exp(-1.0))) + 0.625)


def test_reward_model_written_out():
    rewards = torch.tensor([0.3, -0.4, 1.2, 1.5, -2.0, 0.1]).double().requires_grad_()
    batch = batch_of(scores=True)
    batch.per_seq["margin"] = torch.tensor([0.2, 0.2, 0.0, 0.0, 1.0, 1.0]).double()
    zeros = torch.zeros(batch.num_tokens)
    scores = zeros.double().index_copy(0, batch.last_tokens(), rewards)
    config = tiny.config_of("reward_model", center_coef=0.3)
    loss = algorithm_named("reward_model").loss(Output(zeros, scores=scores), batch, config)
    chosen, rejected = rewards[0::2], rewards[1::2]
    margin = torch.tensor([0.2, 0.0, 1.0]).double()
    expected = -F.logsigmoid(chosen - rejected - margin).mean()
    expected = expected + 0.3 * ((chosen + rejected) ** 2).mean()
    assert float(loss.terms["pair"]) / 3 == pytest.approx(float(expected))
    found, wanted = (torch.autograd.grad(x, rewards)[0] for x in (loss.terms["pair"] / 3, expected))
    torch.testing.assert_close(found, wanted)
    accuracy, count = loss.metrics["rewards/accuracies"]
    assert float(accuracy) / count == pytest.approx(1 / 3)


def test_log1mexp_near_both_ends():
    x = torch.tensor([-1e-6, -0.1, -0.6931, -0.6932, -5.0, -40.0, -800.0]).double()
    expected = [
        math.log(-math.expm1(v)) if v > -1 else math.log1p(-math.exp(v)) for v in x.tolist()
    ]
    x.requires_grad_()
    found = log1mexp(x)
    assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-300)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert gradient.isfinite().all()
    single = torch.tensor([-1e-6, -3e-4, -0.5, -0.7, -5.0])  # fp32, as in training
    exact = [math.log(-math.expm1(v)) for v in single.tolist()]
    assert log1mexp(single).tolist() == pytest.approx(exact, rel=1e-5)
    certain = torch.zeros(1, requires_grad=True)  # probability 1
    value = log1mexp(certain)
    assert value.isfinite()
    assert torch.autograd.grad(value, certain)[0].isfinite()


@pytest.mark.parametrize("model_keys", [{}, {"use_lora": True}])
@pytest.mark.parametrize(
    ("method", "loss"),
    [("dpo", math.log(2)), ("ipo", 25.0), ("kto_pair", 1.0), ("kto", 0.5), ("reward_model", None)],
)
def test_step_0(method, loss, model_keys):
    """Policy and reference are one: no reward, no KL."""
    trainer = tiny.trainer_of(method, tiny.models(**model_keys))
    if method == "reward_model":
        torch.nn.init.zeros_(trainer.models.policy.head.weight)
        loss = sum(math.log1p(math.exp(0.1 * i)) for i in range(5)) / 5  # of the margins
    batch = tiny.prepared(trainer, tiny.raw_batch(trainer.algorithm, trainer.models))
    totals = trainer.update(batch)
    # packed rows differ in rounding where the reference came from other micro-batches
    assert totals["loss"][0] / totals["loss"][1] == pytest.approx(loss, rel=1e-5)
    assert totals["rewards/chosen"][0] == pytest.approx(0.0, abs=1e-5)
    assert totals.get("kl", (0.0, 1.0))[0] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        (
            {"loss_type": "sigmoid", "label_smoothing": 0.1},
            "label_smoothing: not read by sigmoid.*cdpo",
        ),
        ({"loss_type": "robust"}, "robust needs trainer.label_smoothing"),
        ({"loss_type": []}, "names no loss"),
        ({"loss_type": ["sigmoid", "sigmoid"]}, "one twice"),
        ({"loss_weights": [1.0, 2.0]}, "2 weights for 1 losses"),
        ({"gamma": 0.5}, "a key of loss_type simpo"),
        ({"loss_type": "orpo"}, "uses no reference"),
        ({"nll_over": "prompt_and_completion"}, "nll_over has no effect: trainer.sft_coef is 0"),
        (
            {"reference_free": True, "precompute_reference": True},
            "reference_free uses no reference",
        ),
    ],
)
def test_contradictions_are_refused(keys, problem):
    with pytest.raises(ValueError, match=problem):
        tiny.config_of("dpo", **keys)
