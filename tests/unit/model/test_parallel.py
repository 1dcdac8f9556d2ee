"""Ranks that split a model or its rows compute what one process computes, gradients included."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from rank_calls import on_ranks

from posttrain.common import distributed, shards
from posttrain.common.batch import Sequence, pack
from posttrain.common.mesh import arrange
from posttrain.common.share_batch import joined
from posttrain.model.forward import forward
from posttrain.model.language_model import LanguageModel
from posttrain.model.parallel.split import split
from posttrain.model.probe import choose_packing, expected, probe_rows

pytestmark = pytest.mark.distributed
SIZES = {
    "vocab_size": 131,  # no multiple of the ranks
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
NARROW: dict[str, Any] = {"head_dim": 8}
GEMMA = NARROW | {"query_pre_attn_scalar": 8, "sliding_window": 8}
CUT: dict[str, dict[str, Any]] = {
    "Qwen2": {"tie_word_embeddings": True},
    "Llama": {"attention_bias": True},
    "Qwen3": NARROW,  # norms of single heads, whose gradients are parts
    "Gemma3Text": GEMMA,  # a scaled embedding
    "Phi3": {},  # queries, keys and values in one matrix, gathered
    "Olmo2": {},  # norms over all heads
    "Gemma2": GEMMA,  # capped logits
    "Mistral": {"sliding_window": 8},
    "SmolLM3": {},
    "GPTNeoX": {},
    "Starcoder2": {},
    "Cohere": {},
    "Granite": {},
}
SHARED = CUT | {
    "GPT2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "Mixtral": {},
    "GptOss": NARROW | {"num_local_experts": 4},  # sinks, one of each head
}
FAST = ("Qwen3", "Phi3", "GptOss")


def policy_of(
    name: str, keys: dict[str, Any], lora: bool = False, dropout: float = 0.0
) -> LanguageModel:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES | keys)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape), alpha=0.05)
    policy = LanguageModel(model)
    choose_packing(policy, expected(model, policy))
    if lora:
        import peft

        section = peft.LoraConfig(r=4, target_modules="all-linear", lora_dropout=dropout)
        policy.model = peft.get_peft_model(model, section)
        for n, parameter in policy.named_parameters():
            if "lora_B" in n:  # which is 0 at first
                parameter.data.normal_(std=0.1)
    return policy


def rows() -> list[Sequence]:
    """The probe's, and one whose prompt fills whole parts of the rows."""
    from transformers import LlamaConfig

    long = Sequence(torch.arange(90) % 131, torch.arange(90) >= 80)
    return [*probe_rows(LlamaConfig(**SIZES)), long]


def gradients(policy: LanguageModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probs and entropies, and the gradients of a loss that reads both."""
    out = forward(policy.train(), pack(rows()), entropy=True)
    assert out.entropy is not None
    (out.logprobs.square().sum() + 0.3 * (out.entropy * out.logprobs).sum()).backward()
    found = {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}
    return torch.stack([out.logprobs, out.entropy]).detach(), found


def compare(
    models: dict[str, dict[str, Any]], tensor: int, sequence: int, lora: bool = False
) -> None:
    mesh = arrange("cpu", tensor, sequence)
    for name, keys in models.items():
        policy = policy_of(name, keys, lora)
        before, wanted = gradients(policy)
        policy.zero_grad(set_to_none=True)
        split(policy, mesh)
        after, _ = gradients(policy)
        torch.testing.assert_close(after, before, rtol=2e-5, atol=2e-5, msg=name)
        trained = [p for p in policy.parameters() if p.requires_grad]
        distributed.sum_gradients(trained, False, mesh.replicas)
        shares = distributed.num_ranks() // (tensor * sequence)
        largest = max(float(grad.abs().max()) for grad in wanted.values())
        for n, parameter in policy.named_parameters():
            if n in wanted:
                assert parameter.grad is not None
                grad = shards.full(parameter.grad) / shares
                torch.testing.assert_close(
                    grad, wanted[n], rtol=1e-4, atol=1e-5 * largest, msg=f"{name} {n}"
                )
        numbers = sum(p.to_local().numel() for p in policy.parameters() if hasattr(p, "to_local"))
        if tensor > 1:
            assert numbers < 0.6 * sum(p.numel() for p in policy.parameters()), "nothing is cut"


def of(models: dict[str, dict[str, Any]], fast: bool) -> dict[str, dict[str, Any]]:
    return {name: keys for name, keys in models.items() if (name in FAST) == fast}


@pytest.mark.parametrize(
    ("models", "tensor", "sequence", "shares"),
    [
        pytest.param(of(CUT, True), 2, 1, 1, id="tensor"),
        pytest.param(of(SHARED, True), 1, 2, 1, id="sequence"),
        pytest.param(of(CUT, False), 2, 1, 1, id="tensor, others", marks=pytest.mark.slow),
        pytest.param(of(SHARED, False), 1, 2, 1, id="sequence, others", marks=pytest.mark.slow),
        pytest.param(CUT, 2, 2, 1, id="both", marks=pytest.mark.slow),
        pytest.param(SHARED, 1, 4, 1, id="more ranks than heads of keys", marks=pytest.mark.slow),
        pytest.param(CUT, 2, 1, 2, id="two shares", marks=pytest.mark.slow),
    ],
)
def test_architectures(models, tensor, sequence, shares, tmp_path):
    on_ranks(tensor * sequence * shares, tmp_path, compare, models, tensor, sequence)


@pytest.mark.parametrize(("tensor", "sequence"), [(2, 1), (1, 2)])
def test_an_adapter_is_cut_with_its_layers(tensor, sequence, tmp_path):
    on_ranks(2, tmp_path, compare, {"Qwen2": {}, "Phi3": {}}, tensor, sequence, True)


def drop_together() -> None:
    """What every rank holds whole gets the same gradient on each, with other units dropped."""
    mesh = arrange("cpu", 2)
    policy = policy_of("Qwen2", {}, lora=True, dropout=0.3)
    split(policy, mesh)
    torch.manual_seed(7)  # as a run seeds the ranks of a tensor group
    _, found = gradients(policy)
    whole = {n: grad for n, grad in found.items() if not hasattr(grad, "to_local")}
    assert any("lora_A" in n for n in whole)
    assert any("lora_B" in n for n in whole)
    one, other = distributed.all_gather(whole)
    for n in one:
        assert torch.equal(one[n], other[n]), n


def test_ranks_drop_the_same_units_of_what_they_all_hold(tmp_path):
    on_ranks(2, tmp_path, drop_together)


def drift() -> None:
    """Ranks whose kernels round otherwise still take the same step of what they all hold."""
    mesh = arrange("cpu", 2)
    policy = policy_of("Qwen2", {}, lora=True)
    split(policy, mesh)
    _, found = gradients(policy)
    whole = {n: grad for n, grad in found.items() if not hasattr(grad, "to_local")}
    parts = {n: shards.full(grad) for n, grad in found.items() if n not in whole}
    expected = {n: grad.clone() for n, grad in whole.items()}
    for grad in whole.values():
        grad += mesh.tensor_group.rank()
    shards.agree(policy.parameters(), mesh.tensor_group)
    for n, grad in whole.items():
        assert torch.equal(grad, expected[n]), n
    for n, grad in parts.items():
        assert torch.equal(shards.full(found[n]), grad), n


def test_ranks_agree_on_the_gradient_of_what_they_all_hold(tmp_path):
    on_ranks(2, tmp_path, drift)


def refused(name: str, keys: dict[str, Any], tensor: int, sequence: int, message: str) -> None:
    mesh = arrange("cpu", tensor, sequence)
    with pytest.raises(ValueError, match=re.escape(message)):
        split(policy_of(name, keys), mesh)


CASES: list[tuple[str, dict[str, Any], int, int, str]] = [
    ("GPT2", {}, 2, 1, "no plan for GPT2LMHeadModel"),
    ("Mixtral", {}, 2, 1, "moe_tp_experts"),
    ("Llama", {"num_key_value_heads": 1}, 2, 1, "do not divide the 1 heads of keys and values"),
    ("Llama", {"num_attention_heads": 2, "head_dim": 8}, 1, 4, "4 ranks do not divide the 2"),
    ("StableLm", {}, 1, 2, "runs sequences one at a time"),
]


def refuse_all() -> None:
    for name, keys, tensor, sequence, message in CASES:
        if tensor * sequence <= distributed.num_ranks():
            refused(name, keys, tensor, sequence, message)


def test_what_cannot_be_split_is_refused(tmp_path):
    on_ranks(4, tmp_path, refuse_all)


def fail_in_a_part() -> None:
    """A model whose layers read more than their own part is found out before training."""
    policy = policy_of("Llama", {})
    layer = policy.backbone().layers[0].self_attn
    whole = layer.forward

    def forward_with_mean(*args: Any, **kwargs: Any) -> Any:
        states, weights = whole(*args, **kwargs)
        return states + states.mean(1, keepdim=True), weights

    layer.forward = forward_with_mean
    with pytest.raises(ValueError, match="gives other log-probs"):
        split(policy, arrange("cpu", 1, 2))


def test_a_model_that_mixes_tokens_elsewhere_is_refused(tmp_path):
    on_ranks(2, tmp_path, fail_in_a_part)


def test_batches_of_a_share_are_joined_in_order():
    first, second = rows()[:2], rows()[2:]
    whole, parts = pack(rows()), joined([pack(first), pack(second)])
    assert parts.lengths == whole.lengths
    assert parts.prompts == whole.prompts
    for name in ("input_ids", "position_ids", "cu_seqlens", "loss_mask"):
        assert torch.equal(getattr(parts, name), getattr(whole, name)), name
    empty = joined([pack(first).select([]), pack(first)])
    assert torch.equal(empty.input_ids, pack(first).input_ids)


def test_ranks_that_form_no_mesh_are_refused():
    with pytest.raises(ValueError, match="tensor_parallel: 2 does not divide the 1 rank"):
        arrange("cpu", 2)


def one_step() -> None:
    """The head's rows of other ranks get no gradient from this rank's targets."""
    mesh = arrange("cpu", 2)
    policy = policy_of("Llama", {"tie_word_embeddings": False})
    split(policy, mesh)
    shard = policy.vocab_shard
    assert shard is not None
    row = Sequence(torch.tensor([5, 7, 9]), torch.tensor([False, True, True]))
    (-forward(policy, pack([row])).logprobs.sum()).backward()
    grad = policy.causal_lm().get_input_embeddings().weight.grad.to_local()
    touched = grad.abs().sum(1).nonzero()[:, 0].tolist()
    assert touched == ([5, 7] if shard.first == 0 else [])  # the last token is never read


def test_each_rank_holds_its_rows_of_the_embedding(tmp_path):
    on_ranks(2, tmp_path, one_step)
