from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.distributed.fsdp
import torch.distributed.tensor
import torch.testing._internal.distributed.fake_pg
from transformers import LlamaConfig, LlamaForCausalLM

from posttrain.common import distributed, mesh
from posttrain.common.batch import Batch, Sequence, pack
from posttrain.runs.config import Config, parse_config
from posttrain.sizing.forecast import continued, sent
from posttrain.sizing.forked import forked
from posttrain.sizing.layout import Layout
from posttrain.sizing.ledger import Exchange, Ledger, Spans
from posttrain.sizing.rehearsal import ALLOCATOR, Counted, rehearse

VOCAB, WIDTH, INNER, HEADS, LAYERS = 512, 64, 128, 4, 3


def network(layers: int | None = None) -> Any:
    shape = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=layers or LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(shape)


PARAMETERS = 2 * VOCAB * WIDTH + WIDTH + LAYERS * (4 * WIDTH**2 + 3 * WIDTH * INNER + 2 * WIDTH)

TURNS = 2 * 4 * WIDTH // HEADS // 2  # bytes of the rotation's frequencies, which are held twice


def recipe(method: str = "sft", **model: Any) -> Config:
    tree: dict[str, Any] = {
        "model": {"name": "none", "adapter": "none", "dtype": "float32"} | model,
        "data": {"path": "none.jsonl"},
        "trainer": {"type": method, "max_steps": 2, "micro_batch_tokens": 256},
    }
    return parse_config(tree, "recipe")


def rows(pairs: bool = False) -> Batch:
    ids, mask = torch.arange(128), torch.arange(128) >= 20
    names = {"completion": mask.float()} if pairs else {}
    return pack([Sequence(ids + i, mask, names) for i in range(4)])


def counted(layout: Layout, config: Config | None = None, **keys: Any) -> Counted:
    config = config or recipe()
    batch = rows(config.algorithm.rows == "pair")
    run = partial(rehearse, config, network, [batch] * 2, layout, torch.float32, **keys)
    return forked(run)


def test_one_rank_holds_what_adamw_in_fp32_holds() -> None:
    update = counted(Layout(1)).phases["update"]
    assert update["weights"] - TURNS == update["gradients"] == 4 * PARAMETERS
    # a step count of 4 bytes for each parameter tensor
    assert 0 <= update["optimiser"] - 8 * PARAMETERS < 1000


def test_a_reference_is_one_more_copy() -> None:
    found = counted(Layout(1), recipe("dpo"))
    assert found.phases["update"]["reference"] == 4 * PARAMETERS


def test_shards_divide_what_is_kept_and_are_gathered_twice_a_pass() -> None:
    whole, found = counted(Layout(1)), counted(Layout(4, strategy="fsdp"))
    assert found.phases["update"]["weights"] - TURNS == 4 * PARAMETERS / 4
    assert found.phases["update"]["optimiser"] < whole.phases["update"]["optimiser"] / 3.9
    gathered = {x.kind: size for x, size in found.passes.items()}
    assert found.micro_batches == 2
    assert gathered["all-gather"] == 2 * 2 * 4 * PARAMETERS
    assert gathered["reduce-scatter"] == 2 * 4 * PARAMETERS


def test_on_a_gpu_offloaded_state_is_that_of_the_largest_parameter() -> None:
    config = recipe()
    away = config.distributed.model_copy(update={"offload": "optimizer"})
    for layout in (Layout(1), Layout(4, strategy="fsdp")):
        whole = counted(layout, config, device="cuda")
        found = counted(layout, config.model_copy(update={"distributed": away}), device="cuda")
        assert found.phases["update"].pop("optimiser") == 8 * VOCAB * WIDTH / layout.holders
        assert whole.phases["update"].pop("optimiser") >= 8 * PARAMETERS / layout.holders
        assert found.phases["update"] == whole.phases["update"]
        assert found.peak < whole.peak


def test_on_a_gpu_offloaded_parameters_are_gathered_layers_alone() -> None:
    config, layout = recipe(), Layout(4, strategy="fsdp")
    away = config.distributed.model_copy(update={"offload": "parameters"})
    away_config = config.model_copy(update={"distributed": away})
    whole = counted(layout, config, device="cuda").phases["update"]
    found = counted(layout, away_config, device="cuda").phases["update"]
    for part, each in (("weights", 4), ("gradients", 4), ("optimiser", 8)):
        assert 0 <= whole.pop(part) - found.pop(part) - each * PARAMETERS / 4 < 1000, part
    assert found == whole
    with pytest.raises(ValueError, match="is for sharded ones"):
        counted(Layout(1), away_config)


def test_replicas_exchange_gradients_once_a_step() -> None:
    found = counted(Layout(4, 2))
    assert not found.passes
    assert found.update == {Exchange("all-reduce", 8, apart=True): 4 * PARAMETERS}


def test_matrices_and_rows_are_split() -> None:
    whole = counted(Layout(1))
    tensor, sequence = counted(Layout(2, tensor=2)), counted(Layout(2, sequence=2))
    norms = (2 * LAYERS + 1) * WIDTH
    assert tensor.phases["update"]["weights"] - TURNS == 4 * ((PARAMETERS - norms) / 2 + norms)
    assert {x.kind for x in tensor.passes} == {"all-reduce"}
    kept = [f.phases["training: the output head"]["activations"] for f in (whole, sequence)]
    assert kept[1] < 0.7 * kept[0]
    assert "all-to-all" in {x.kind for x in sequence.passes}


@pytest.mark.slow
def test_a_deep_network_follows_from_shallow_ones() -> None:
    for layout in (Layout(1), Layout(4, strategy="fsdp")):
        four, seven, ten = (counted(layout, layers=n, device="cuda") for n in (4, 7, 10))
        found = continued(four, seven, 10)
        assert found.peak == pytest.approx(ten.peak, rel=0.01)
        for exchange, size in ten.passes.items():
            assert found.passes[exchange] == pytest.approx(size, abs=1000)


@pytest.mark.slow
def test_a_rehearsal_leaves_no_trace_and_takes_no_memory() -> None:
    counted(Layout(1024, strategy="fsdp"))
    assert not torch.distributed.is_initialized()
    assert distributed.num_ranks() == 1
    assert mesh.current() == mesh.Mesh()
    rehearse(recipe(), network, [rows()], Layout(2), torch.float32)  # in this process, too
    assert not torch.distributed.is_initialized()
    assert mesh.current() == mesh.Mesh()
    assert distributed.all_gather(1) == [1]


def test_a_cpu_keeps_what_its_allocator_cannot_reuse() -> None:
    found = counted(Layout(1))
    assert found.kept[ALLOCATOR] > 0
    assert counted(Layout(1), device="cuda").kept == {}


def test_tensors_without_contents_have_the_shapes_of_real_ones() -> None:
    def compute() -> torch.Tensor:
        torch.manual_seed(0)
        x = torch.randn(300, 40, requires_grad=True)
        y = torch.softmax(x @ x.T, -1).sum(0)
        y.sum().backward()
        assert x.grad is not None
        return x.grad[:, ::2].t()

    real = compute()
    with Ledger() as ledger:
        hollow = compute()
        assert ledger.is_hollow(hollow)
    assert (hollow.shape, hollow.stride(), hollow.dtype) == (real.shape, real.stride(), real.dtype)


def test_spans_count_each_page_once() -> None:
    spans = Spans()
    for address, size in ((0, 1), (8192, 4096), (4096, 10), (100, 50), (40960, 0)):
        spans.add(address, size)
    assert spans.total == 3 * 4096


def test_a_ring_passes_all_but_its_own_part() -> None:
    assert sent(Exchange("all-gather", 4, apart=False), 100.0) == 75.0
    assert sent(Exchange("all-reduce", 4, apart=False), 100.0) == 150.0
