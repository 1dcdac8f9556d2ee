"""RMSNorm and SwiGLU in one step each: the values and gradients of the modules they stand for."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.mistral.configuration_mistral import MistralConfig
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config

from posttrain.model.kernels.fused import MLP, RMSNorm, rms_norm, swiglu, use_fused

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
}


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()


def test_norm_is_the_formula_and_its_gradient_that_of_finite_differences() -> None:
    x, weight = draw(3, 5, 8), draw(8)
    wanted = weight * x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(rms_norm(x, weight, 1e-3), wanted)
    assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, 1e-3), (x, weight))


def test_norm_of_a_row_of_zeros_is_zero_with_a_finite_gradient() -> None:
    x, weight = torch.zeros(1, 4, requires_grad=True), torch.ones(4)
    out = rms_norm(x, weight, 1e-6)
    out.sum().backward()
    assert out.tolist() == [[0.0] * 4]
    # at 0 the norm is x / sqrt(eps)
    torch.testing.assert_close(x.grad, torch.full((1, 4), 1e3))


def test_norm_by_hand() -> None:
    # mean of squares of (3, 4) is 12.5; with eps 12.5 the root is 5
    out = rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 10.0]), 12.5)
    torch.testing.assert_close(out, torch.tensor([[0.6, 8.0]]))


def test_swiglu_is_the_formula_and_its_gradient_that_of_finite_differences() -> None:
    gate, up = draw(3, 5), draw(5, 3).T.contiguous().detach().requires_grad_()
    torch.testing.assert_close(swiglu(gate, up), gate / (1 + torch.exp(-gate)) * up)
    assert torch.autograd.gradcheck(swiglu, (gate, up))


@pytest.mark.parametrize("frozen", [False, True])
def test_modules_give_the_values_and_gradients_of_transformers(frozen: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.Sequential(
        LlamaRMSNorm(32), LlamaMLP(LlamaConfig(**SIZES, hidden_act="silu")), LlamaRMSNorm(32)
    )
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
        parameter.requires_grad_(not frozen)
    ours = copy.deepcopy(theirs)
    use_fused(ours)
    assert [type(module) for module in ours] == [RMSNorm, MLP, RMSNorm]
    inputs = [torch.randn(2, 7, 32, requires_grad=True)]
    inputs.append(inputs[0].detach().clone().requires_grad_())
    outputs = [module(x) for module, x in zip((theirs, ours), inputs)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
    for out in outputs:
        (out * torch.linspace(-1, 1, 32)).sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-4, atol=1e-4)
    for mine, other in zip(ours.parameters(), theirs.parameters()):
        if frozen:
            assert mine.grad is None
        else:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_less_is_kept_for_the_backward_pass() -> None:
    def kept(module: nn.Module) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: sizes.append(x.numel()) or x, lambda x: x
        ):
            module(torch.randn(64, 32, requires_grad=True))
        return sum(sizes)

    theirs = nn.Sequential(LlamaRMSNorm(32), LlamaMLP(LlamaConfig(**SIZES, hidden_act="silu")))
    ours = copy.deepcopy(theirs)
    use_fused(ours)
    assert kept(ours) < 0.75 * kept(theirs)


def test_bf16_rounds_as_transformers_does() -> None:
    theirs = LlamaRMSNorm(32).bfloat16()
    nn.init.normal_(theirs.weight)
    ours = copy.deepcopy(theirs)
    use_fused(ours)
    x = torch.randn(4, 32, dtype=torch.bfloat16)
    assert torch.equal(ours(x), theirs(x))


def test_what_computes_something_else_is_left_alone() -> None:
    gelu = LlamaMLP(LlamaConfig(**SIZES, hidden_act="gelu"))
    for module in (GemmaRMSNorm(32), gelu, nn.LayerNorm(32)):
        before = type(module)
        use_fused(module)
        assert type(module) is before


@pytest.mark.parametrize("config", [LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config])
def test_models_of_the_llama_type_are_served(config: type) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**SIZES, head_dim=8))
    ids = torch.arange(10)[None]
    before = model(ids).logits
    use_fused(model)
    kinds = [type(module) for module in model.modules()]
    norms = 9 if config is Qwen3Config else 5
    assert (kinds.count(RMSNorm), kinds.count(MLP)) == (norms, 2)
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-4, atol=1e-5)
    assert type(copy.deepcopy(model).model.norm) is RMSNorm
