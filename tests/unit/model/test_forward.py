"""The one call into the network: chunked head, packing, and the checks made when a model loads."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn

from posttrain.common.batch import pack
from posttrain.model import attention, output_head
from posttrain.model.config import ModelConfig
from posttrain.model.forward import forward
from posttrain.model.language_model import LanguageModel
from posttrain.model.load import prepare_policy
from posttrain.model.output_head import HeadLogprobs


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("read", [["logprobs", "entropy"], ["logprobs"], ["entropy"]], ids="+".join)
def test_chunked_head_equals_whole_logits(softcap, bias, chunk, read, monkeypatch):
    """Log-probs, entropy and every gradient, in chunks of 1, 3 and all rows."""
    monkeypatch.setattr(output_head, "CHUNK_ELEMENTS", chunk * 11)
    torch.manual_seed(1)
    hidden = torch.randn(7, 5, dtype=torch.float64).float().requires_grad_()
    weight = torch.randn(11, 5).requires_grad_()
    offset = torch.randn(11).requires_grad_() if bias else None
    targets = torch.randint(0, 11, (7,))
    scale = 0.7
    inputs = [x for x in (hidden, weight, offset) if x is not None]
    logprobs, entropy = HeadLogprobs.apply(hidden, weight, offset, targets, scale, softcap, True)

    def total(logprobs: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
        parts = {"logprobs": (logprobs * weights_a).sum(), "entropy": (entropy * weights_b).sum()}
        return torch.stack([parts[name] for name in read]).sum()

    weights_a, weights_b = torch.randn(7), torch.randn(7)
    ours = torch.autograd.grad(total(logprobs, entropy), inputs)

    logits = nn.functional.linear(hidden, weight, offset) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logp = logits.log_softmax(-1)
    picked, ent = logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)
    theirs = torch.autograd.grad(total(picked, ent), inputs)
    torch.testing.assert_close(logprobs, picked, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(entropy, ent, rtol=1e-5, atol=1e-6)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_logits_are_never_held_whole(monkeypatch):
    """The largest tensor that the head makes has CHUNK_ELEMENTS elements, forward and backward."""
    from torch.utils._python_dispatch import TorchDispatchMode

    vocab, rows = 1000, 64
    monkeypatch.setattr(output_head, "CHUNK_ELEMENTS", 4 * vocab)

    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for x in result if isinstance(result, tuple | list) else [result]:
                if isinstance(x, torch.Tensor):
                    Largest.seen = max(Largest.seen, x.numel())
            return result

    hidden, weight = torch.randn(rows, 4, requires_grad=True), torch.randn(vocab, 4)
    with Largest():
        logprobs, _ = HeadLogprobs.apply(
            hidden, weight, None, torch.zeros(rows, dtype=torch.int64), 1.0, None, False
        )
        logprobs.sum().backward()
    assert Largest.seen == 4 * vocab


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_equal_transformers_own(kind, temperature):
    models = tiny.models(kind)
    rows = tiny.random_sequences(4)
    out = forward(models.policy, pack(rows), entropy=True, temperature=temperature)
    plain = tiny.causal_lm(kind)
    start = 0
    for row in rows:
        logits = plain(row.input_ids[None], use_cache=False).logits[0] / temperature
        logp = logits.log_softmax(-1)[:-1]
        expected = logp.gather(1, row.input_ids[1:, None])[:, 0] * row.loss_mask[1:]
        entropy = -(logp.exp() * logp).sum(-1) * row.loss_mask[1:]
        span = slice(start + 1, start + len(row))
        torch.testing.assert_close(out.logprobs[span], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(out.entropy[span], entropy, rtol=1e-4, atol=1e-5)
        start += len(row)


def test_sliding_window_equals_transformers_own():
    keys = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0}
    keys["layer_types"] = ["sliding_attention", "sliding_attention"]
    model = tiny.causal_lm(**keys)
    model.set_attn_implementation("eager")
    ids = torch.randint(4, tiny.VOCAB, (19,))
    expected = model(ids[None], use_cache=False).logits[0].log_softmax(-1)
    policy = LanguageModel(tiny.causal_lm(**keys))
    attention.use_attention(policy.causal_lm())
    from posttrain.common.batch import Sequence

    got = forward(policy, pack([Sequence(ids, torch.arange(19) > 0)])).logprobs[1:]
    torch.testing.assert_close(
        got, expected[:-1].gather(1, ids[1:, None])[:, 0], rtol=1e-4, atol=1e-5
    )


def test_a_model_whose_packed_rows_see_each_other_runs_them_one_at_a_time(monkeypatch):
    def contaminated(query, key, value, layout, form):
        whole = attention.Packed([query.shape[2]], layout.cu_seqlens[[0, -1]])
        return per_sequence(query, key, value, whole, form)

    per_sequence = attention._per_sequence
    monkeypatch.setattr(attention, "_per_sequence", contaminated)
    models, packed = tiny.models(), tiny.random_sequences(3)
    assert "packed, its log-probs would differ" in models.policy.unpacked
    got = forward(models.policy, pack(packed)).logprobs
    apart = torch.cat([forward(models.policy, pack([row])).logprobs for row in packed])
    torch.testing.assert_close(got, apart, rtol=0, atol=1e-5)


@pytest.mark.parametrize("measured", [True, False])
def test_rounding_that_depends_on_the_batch_is_no_reason_to_run_rows_alone(measured, monkeypatch):
    """A trained model of 135M parameters differs by 1.1e-3 nats between products of other sizes."""
    model = tiny.causal_lm()

    def rounds_by_size(module, args, out):
        return out * (1 + 4e-3 * (args[0].numel() > 40))

    model.get_input_embeddings().register_forward_hook(rounds_by_size)
    if not measured:
        monkeypatch.setattr("posttrain.model.load.rounding", lambda policy, probe: 0.0)
    config = ModelConfig(name="x", use_lora=False)
    policy = prepare_policy(model, config, tiny.CPU, torch.float32, 0)
    assert (policy.unpacked is None) == measured
    assert policy.tolerance <= 1e-2


def test_an_unknown_output_head_is_refused():
    model = tiny.causal_lm()
    plain = type(model).forward

    def scaled(self, *args, **kwargs):
        out = plain(self, *args, **kwargs)
        out.logits = out.logits * 0.5
        return out

    model.forward = scaled.__get__(model)
    with pytest.raises(ValueError, match="output head"):
        prepare_policy(model, ModelConfig(name="x", use_lora=False), tiny.CPU, torch.float32, 0)


def test_attention_without_a_layout_is_an_error():
    model = tiny.models().policy.causal_lm()
    with pytest.raises(ValueError, match="sequence layout"):
        model(torch.tensor([[4, 5, 6]]), use_cache=False)


def test_bfloat16_autocast_trains_in_fp32():
    """bf16 compute, fp32 weights: tiny updates are kept (a bf16 weight would not move)."""
    policy = prepare_policy(
        tiny.causal_lm(), ModelConfig(name="x", use_lora=False), tiny.CPU, torch.bfloat16, seed=0
    )
    assert all(p.dtype == torch.float32 for p in policy.parameters())
    assert policy.unpacked is None
    batch = pack(tiny.random_sequences())
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, weight_decay=0.0)
    for _ in range(20):
        loss = -forward(policy, batch).logprobs.sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = [(p != before[n]).float().mean() for n, p in policy.named_parameters() if p.dim() == 2]
    assert min(moved[1:]) > 0.99  # the embedding's unused rows get no gradient
