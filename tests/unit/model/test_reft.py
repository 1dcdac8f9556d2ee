"""ReFT against formulas written out here, and its places in a model."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import architectures
import pytest
import tiny
import torch
from damage import save_model_folder
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

from posttrain.common.batch import Sequence, pack
from posttrain.model.adapters.saved import with_adapter
from posttrain.model.config import ModelConfig
from posttrain.model.folder import REFT_CONFIG, REFT_WEIGHTS
from posttrain.model.forward import forward
from posttrain.model.heads import add_scoring_head
from posttrain.model.load import load_policy, load_tokenizer
from posttrain.model.merge import merge_adapter
from posttrain.model.models import Models
from posttrain.model.reft.forms import FORMS, Edit, orthonormal, starts_as_identity
from posttrain.model.reft.positions import Positions, parse_positions
from posttrain.model.reft.pyreft import CLASSES, read_pyreft, write_pyreft
from posttrain.model.reft.pyreft import COMPONENTS as COMPONENTS_OF_PYVENE
from posttrain.model.save import gather_weights, save_model
from posttrain.rollout.native.sampler import NativeSampler
from posttrain.rollout.sampler import SamplingParams
from posttrain.runs.loading import load_trained

D, R = 12, 3
COMPONENTS = (
    "block_output",
    "block_input",
    "mlp_output",
    "attention_output",
    "query",
    "key",
    "value",
)


def paper(edit: Edit, h: torch.Tensor, name: str) -> torch.Tensor:
    """h [d] after an edit, term by term in fp64; R by Gram-Schmidt, not by Cholesky."""
    rows = edit.directions.detach().double()
    if name not in ("direft", "noreft"):
        done: list[torch.Tensor] = []
        for row in rows:
            for other in done:
                row = row - (row @ other) * other
            done.append(row / row.norm())
        rows = torch.stack(done)
    b, h = edit.bias.detach().double(), h.double()
    source = b if name in ("consreft", "lobireft") else edit.weight.detach().double() @ h + b
    if edit.activation == "tanh":
        source = source.tanh() if name not in ("consreft", "lobireft") else source
    minus = rows @ h if name in ("loreft", "noreft", "consreft") else 0.0
    return h + rows.T @ (source - minus)


@pytest.mark.parametrize("name", list(FORMS))
@pytest.mark.parametrize("activation", ["linear", "tanh"])
def test_an_edit_is_the_papers_formula(name: str, activation: str) -> None:
    torch.manual_seed(1)
    edit = Edit(D, R, name, activation, dropout=0.0, identity=False)
    for p in edit.parameters():
        p.data.add_(torch.randn_like(p))
    states = torch.randn(5, D)
    for h, change in zip(states, edit(states)):
        torch.testing.assert_close(
            (h + change).double(), paper(edit, h, name), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", list(FORMS))
@pytest.mark.parametrize("activation", ["linear", "relu", "gelu", "silu", "tanh"])
def test_an_edit_begins_as_the_identity_with_a_gradient(name: str, activation: str) -> None:
    torch.manual_seed(1)
    edit = Edit(D, R, name, activation, dropout=0.0, identity=True)
    states = torch.randn(5, D)
    change = edit(states)
    assert (change == 0).all() == starts_as_identity(FORMS[name], activation)
    (change - torch.randn(5, D)).square().sum().backward()
    assert any(p.grad.abs().max() > 0 for p in edit.parameters() if p.grad is not None)


def test_orthonormal_rows_span_the_same_and_have_the_right_gradient() -> None:
    torch.manual_seed(0)
    a = torch.randn(R, D, dtype=torch.float64, requires_grad=True)
    rows = orthonormal(a)
    torch.testing.assert_close(rows @ rows.T, torch.eye(R, dtype=torch.float64))
    q, _ = torch.linalg.qr(a.T)
    torch.testing.assert_close(rows.T @ rows, q @ q.T)  # the same projection
    assert torch.autograd.gradcheck(orthonormal, (a,))
    torch.testing.assert_close(orthonormal(rows), rows)


@pytest.mark.parametrize(
    ("layers", "rank", "width", "edits", "published"),
    [
        (32, 8, 4096, 1, 2_097_408),  # LLaMA-7B, 0.031 %, and Llama-3-8B, 0.026 %
        (40, 8, 5120, 1, 3_277_120),  # LLaMA-13B, 0.025 %
        (4, 4, 4096, 2, 262_176),  # Llama-2-7B, f5+l5 unshared, 0.0039 %
        (12, 1, 768, 1, 18_444),  # RoBERTa-base, 0.015 %
        (24, 1, 1024, 1, 49_176),  # RoBERTa-large, 0.014 %
        (1, 4, 4096, 1, 32_772),  # pyreft's README
    ],
)
def test_the_number_of_parameters_is_the_published_one(
    layers: int, rank: int, width: int, edits: int, published: int
) -> None:
    """L(2rd + r), arXiv 2404.03592, tables 1 to 4."""
    edit = Edit(width, rank, "loreft", "linear", 0.0, identity=True)
    assert layers * edits * sum(p.numel() for p in edit.parameters()) == published


@given(st.integers(0, 9), st.integers(0, 9), st.integers(1, 40))
def test_no_position_is_edited_twice_and_none_is_missed(f: int, last: int, length: int) -> None:
    if f + last == 0:
        return
    first, end = Positions(f, last).split(length)
    chosen = [*first, *end]
    assert len(chosen) == len(set(chosen)) == min(length, f + last)
    assert list(first) == list(range(len(first)))
    assert list(end) == list(range(length - len(end), length))
    assert len(first) <= f
    assert len(end) <= last


@pytest.mark.parametrize(
    ("text", "length", "first", "end"),
    [
        ("l1", 1, [], [0]),  # pyreft's min(n // 2, 1) would edit nothing
        ("f1", 1, [0], []),
        ("f1+l1", 1, [], [0]),
        ("f7+l7", 5, [0, 1], [2, 3, 4]),  # pyreft leaves out the middle one
        ("f7+l7", 14, list(range(7)), list(range(7, 14))),
        ("f1+l3", 3, [0], [1, 2]),
        ("f9+l1", 4, [0, 1, 2], [3]),
        ("f2+l1", 10, [0, 1], [9]),
    ],
)
def test_short_prompts(text: str, length: int, first: list[int], end: list[int]) -> None:
    assert [list(part) for part in parse_positions(text).split(length)] == [first, end]


@pytest.mark.parametrize(
    "text", ["", "7", "f", "f0", "f0+l0", "l7+f7", "f7l7", "f7+", "+l7", "all"]
)
def test_other_positions_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="first and the last tokens"):
        parse_positions(text)


def sequences() -> list[Sequence]:
    """Prompts of 9, 9 (the same), 3 and 1 tokens."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for prompt, rest in ((9, 4), (9, 7), (3, 6), (1, 5)):
        ids = torch.randint(4, tiny.VOCAB, (prompt + rest,), generator=generator)
        ids[:9] = torch.arange(9) + 4 if prompt == 9 else ids[:9]
        rows.append(Sequence(ids, torch.arange(prompt + rest) >= prompt))
    return rows


def moved(kind: str = "llama", **adapter: Any) -> Any:
    """A policy with edits that change something."""
    models = tiny.models(kind, adapter={"rank": 4, "positions": "f2+l2", **adapter})
    torch.manual_seed(3)
    with torch.no_grad():
        for p in models.trainable().values():
            p.add_(0.3 * torch.randn_like(p))
    return models.policy.eval()


def by_hand(policy: Any, row: Sequence, component: str, whole: bool = False) -> torch.Tensor:
    """The logits [T, V] of one row by transformers' own code, with edits put in by other hooks."""
    model = policy.causal_lm()
    length = len(row) if whole else int(row.loss_mask.nonzero()[0])
    first, end = policy.edited.split(length)
    handles = []

    def edited(states: torch.Tensor, edits: Any) -> torch.Tensor:
        states = states.clone()
        for at in (*first, *end):
            edit = edits.edits[-1] if at in end else edits.edits[0]
            states[0, at] = paper(edit, states[0, at], policy.causal_lm().reft_config.type).float()
        return states

    places = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
    for layer in model.model.layers:
        attn = layer.self_attn
        holder = {"mlp_output": layer.mlp, "attention_output": attn}.get(component, layer)
        holder = getattr(attn, places[component]) if component in places else holder
        if not hasattr(holder, "reft"):
            continue
        edits = holder.reft
        if component == "block_input":
            hook = lambda m, a, k, e=edits: ((edited(a[0], e), *a[1:]), k)  # noqa: E731
            handles.append(holder.register_forward_pre_hook(hook, with_kwargs=True))
        else:

            def out(m: Any, a: Any, o: Any, e: Any = edits) -> Any:
                return (edited(o[0], e), *o[1:]) if isinstance(o, tuple) else edited(o, e)

            handles.append(holder.register_forward_hook(out))
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return model(input_ids=row.input_ids[None], use_cache=False).logits[0]
    finally:
        model.set_attn_implementation("posttrain")
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("form", ["loreft", "direft"])
def test_packed_rows_are_edited_as_alone(component: str, share: bool, form: str) -> None:
    policy = moved(type=form, component=component, share_weights=share, layers=[0, 1])
    rows = sequences()
    with torch.no_grad():
        packed = forward(policy, pack(rows)).logprobs.split([len(row) for row in rows])
    for row, found in zip(rows, packed):
        logits = by_hand(policy, row, component).log_softmax(-1)
        wanted = logits[:-1].gather(1, row.input_ids[1:, None])[:, 0] * row.loss_mask[1:]
        torch.testing.assert_close(found[1:], wanted, rtol=1e-4, atol=2e-4)


def test_only_chosen_layers_have_edits() -> None:
    models = tiny.models("llama", adapter={"type": "loreft", "layers": [1], "rank": 2})
    assert {name.split(".")[3] for name in models.trainable()} == {"1"}


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_checkpointing_recomputes_the_same_edits(kind: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        models = tiny.models(kind, adapter={"type": "loreft"}, gradient_checkpointing=checkpointing)
        models.policy.train()
        torch.manual_seed(3)
        for p in models.trainable().values():
            p.data.add_(0.1 * torch.randn_like(p))
        forward(models.policy, pack(sequences())).logprobs.sum().backward()
        gradients.append([p.grad for p in models.trainable().values()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_ten_examples_and_one_edit_of_rank_4() -> None:
    """pyreft's README: one edit at the last prompt token of one layer, ten examples, 100 epochs."""
    keys = {"type": "loreft", "rank": 4, "positions": "l1", "layers": [0]}
    models = tiny.models("llama", adapter=keys)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(10):
        ids = torch.randint(4, tiny.VOCAB, (9,), generator=generator)
        rows.append(Sequence(ids, torch.arange(9) == 8))
    optimizer = torch.optim.Adam(models.trainable().values(), lr=5e-2)
    losses = []
    for _ in range(200):
        loss = -forward(models.policy, pack(rows)).logprobs.sum() / 10
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 3
    assert losses[-1] < 0.15, losses[::50]


REFUSED = [
    ({"layers": [7]}, "has layers 0 to 1, not 7"),
    ({"rank": 99}, "99 is more than the"),
    ({"type": "lobireft", "activation": "relu"}, "lobireft computes no W h to apply it to"),
    ({"type": "consreft", "activation": "gelu"}, "consreft computes no W h to apply it to"),
]


@pytest.mark.parametrize(("keys", "message"), REFUSED)
def test_what_the_model_lacks_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.models("llama", adapter={"type": "loreft", **keys})


def test_a_component_that_an_architecture_lacks_is_refused() -> None:
    name = next(name for name in architectures.ARCHITECTURES if "GPT-2" in name)
    with pytest.raises(ValueError, match="GPT2LMHeadModel has no query"):
        architectures.policy(name, adapter={"type": "loreft", "component": "query"})


def test_sequences_that_run_one_at_a_time_are_refused() -> None:
    name = next(name for name in architectures.ARCHITECTURES if "Mamba" in name)
    with pytest.raises(ValueError, match="runs sequences one at a time"):
        architectures.policy(name, adapter={"type": "loreft", "rank": 2})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model_folder(tmp_path_factory.mktemp("base") / "model")


def load(folder: Path, **keys: Any) -> Any:
    config = tiny.model_config(str(folder), dtype="float32", device="cpu", **keys)
    return load_policy(config, str(folder), tiny.CPU, seed=0)


@pytest.fixture
def saved(base: Path, tmp_path: Path) -> Path:
    """A folder of trained edits of the base."""
    policy = load(base, adapter={"type": "loreft", "rank": 3, "positions": "f2+l2"})
    torch.manual_seed(2)
    with torch.no_grad():
        for p in policy.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn_like(p))
    folder = tmp_path / "edits"
    folder.mkdir()
    models = Models(policy, load_tokenizer(str(base)), [2])
    save_model(folder, models, gather_weights(models))
    return folder


def logprobs(policy: Any) -> torch.Tensor:
    with torch.no_grad():
        return forward(policy.eval(), pack(sequences())).logprobs


def test_edits_are_read_back_to_the_bit(base: Path, saved: Path) -> None:
    again = load(saved, adapter="none")
    fresh = load(base, adapter="none")
    assert (logprobs(again) - logprobs(fresh)).abs().max() > 0.01
    for name, tensor in load_file(saved / REFT_WEIGHTS).items():
        assert torch.equal(dict(again.causal_lm().named_parameters())[name], tensor), name
    config = ModelConfig(name=str(saved))
    section = with_adapter(config, str(saved))
    assert section.adapter.type == "loreft"
    with pytest.raises(ValueError, match=r"model.adapter is lora, but .* type loreft"):
        with_adapter(tiny.model_config(str(saved), adapter="lora"), str(saved))
    with pytest.raises(ValueError, match=r"model.adapter.rank is 5, but .* has 3"):
        with_adapter(
            tiny.model_config(str(saved), adapter={"type": "loreft", "rank": 5}), str(saved)
        )


def spoil(folder: Path, what: str) -> None:
    """Damage one thing in a folder of edits."""
    config, weights = folder / REFT_CONFIG, folder / REFT_WEIGHTS
    settings, tensors = json.loads(config.read_text()), load_file(weights)
    first = sorted(tensors)[0]
    if what == "no weights":
        weights.unlink()
        return
    if what == "cut":
        weights.write_bytes(weights.read_bytes()[:-8])
        return
    if what == "not json":
        config.write_text("{")
        return
    if what == "no base":
        del settings["base_model_name_or_path"]
    if what == "other rank":
        settings["adapter"]["rank"] = 2
    if what == "other form":
        settings["adapter"]["type"] = "rest"
    if what == "other layers":
        settings["adapter"]["layers"] = [9]
    if what == "other base":
        settings["base_parameters"] += 1
    if what == "unknown key":
        settings["adapter"]["colour"] = "red"
    if what == "missing":
        del tensors[first]
    if what == "extra":
        tensors["x"] = torch.zeros(1)
    if what == "not finite":
        tensors[first].view(-1)[0] = math.nan
    config.write_text(json.dumps(settings))
    save_file(tensors, weights)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no weights", "has no reft_model.safetensors"),
        ("cut", "reft_model.safetensors"),
        ("not json", "reft_config.json"),
        ("no base", "does not name its base"),
        ("other rank", r"is \[3\] in the file, \[2\] here"),
        ("other form", "reft_config.json: type"),
        ("other layers", "has layers 0 to 1, not 9"),
        ("other base", "it was trained on a model of"),
        ("unknown key", "colour"),
        ("missing", "absent in the file"),
        ("extra", "x is .* absent here"),
        ("not finite", "not finite"),
    ],
)
def test_damaged_edits_are_one_line(saved: Path, what: str, message: str) -> None:
    spoil(saved, what)
    with pytest.raises(ValueError, match=message) as error:
        load(saved, adapter="none")
    assert "\n" not in str(error.value)
    assert str(saved) in str(error.value)


def test_edits_are_not_taken_for_weights(saved: Path) -> None:
    with pytest.raises(ValueError, match="cannot be merged"):
        merge_adapter(str(saved))
    with pytest.raises(ValueError, match="cannot be run by transformers"):
        load_trained(saved)


def test_the_sampler_edits_prompts_once_and_agrees_with_the_trainer(saved: Path) -> None:
    policy = load(saved, adapter="none")
    prompts = [[5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 8, 9, 10, 11], [5], [9, 8, 7]]
    params = SamplingParams(max_new_tokens=9, stop_token_ids=())
    sampler = NativeSampler(policy, max_num_seqs=3)
    rollouts = sampler.generate(prompts, params, seeds=[0, 1, 2, 3])
    rows = [
        Sequence(torch.tensor(p + r.response_ids), torch.arange(len(p) + 9) >= len(p))
        for p, r in zip(prompts, rollouts)
    ]
    with torch.no_grad():
        trained = forward(policy, pack(rows)).logprobs
    sampled = torch.cat(
        [torch.tensor([0.0] * len(p) + r.logprobs) for p, r in zip(prompts, rollouts)]
    )
    torch.testing.assert_close(sampled, trained, rtol=1e-4, atol=2e-4)
    # a row does not depend on its neighbours
    alone = sampler.generate([prompts[2]], params, seeds=[2])[0]
    assert alone.response_ids == rollouts[2].response_ids


@pytest.mark.parametrize("whole_text", [1, 4])
def test_a_reward_model_edits_the_whole_text(whole_text: int) -> None:
    """Its score is read after the last token; a text does not share a prompt with its pair."""
    models = tiny.models("llama", adapter={"type": "loreft", "positions": f"f1+l{whole_text}"})
    policy = models.policy
    add_scoring_head(policy, None)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in models.trainable().values():
            p.add_(0.3 * torch.randn_like(p))
    rows = sequences()
    with torch.no_grad():
        scores = forward(policy, pack(rows), head=True).scores[pack(rows).last_tokens()]
        alone = [forward(policy, pack([row]), head=True).scores[-1] for row in rows]
    torch.testing.assert_close(scores, torch.stack(alone), rtol=1e-4, atol=1e-4)
    end = policy.edited.split(len(rows[0]))[1]
    assert end[-1] == len(rows[0]) - 1


@pytest.mark.parametrize("form", list(FORMS))
def test_no_tensor_of_an_edit_shares_memory_with_another(form: str) -> None:
    edit = Edit(D, R, form, "linear", 0.0, identity=True)
    pointers = [p.data_ptr() for p in edit.parameters()]
    assert len(set(pointers)) == len(pointers)


def pyrefts(form: str, seed: int) -> tuple[dict[str, torch.Tensor], Any]:
    """The state that pyreft 0.1.0 saves for an edit of width D and rank R, and its formula."""
    g = torch.Generator().manual_seed(seed)
    w, w2 = torch.randn(R, D, generator=g), torch.randn(R, D, generator=g)
    b, b2 = torch.randn(R, generator=g), torch.randn(R, generator=g)
    linear = {"learned_source.weight": w, "learned_source.bias": b}
    if form in ("direft", "noreft"):
        state = {"proj_layer.weight": w2, "proj_layer.bias": b2, **linear}
        minus = (lambda h: h @ w2.T + b2) if form == "noreft" else (lambda h: 0.0)
        return state, lambda h: h + (h @ w.T + b - minus(h)) @ w2
    layer = nn.Module()
    layer.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(D, R)))
    layer = orthogonal(layer)
    with torch.no_grad():  # as training leaves it: the diagonal has no gradient
        layer.parametrizations.weight.original.add_(0.2 * torch.randn(D, R, generator=g).tril(-1))
    r = layer.weight.detach()  # [d, r]
    rotation = {f"rotate_layer.{key}": x.clone() for key, x in layer.state_dict().items()}
    if form == "loreft":
        state = {"weight": w, "bias": b, "rotate_layer": r}
        return state, lambda h: h + (h @ w.T + b - h @ r) @ r.T
    if form == "direft_orthogonal":
        return rotation | linear, lambda h: h + (h @ w.T + b) @ r.T
    state = rotation | {"learned_source": b}
    if form == "consreft":
        return state, lambda h: h + (b - h @ r) @ r.T
    return state, lambda h: h + b @ r.T


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("component", ["block_output", "query"])
def test_pyrefts_folder_is_read_and_written(form: str, component: str, tmp_path: Path) -> None:
    folder, back = tmp_path / "theirs", tmp_path / "back"
    formulas: dict[tuple[int, int], Any] = {}
    keys = []
    folder.mkdir()
    for number, layer in ((0, 0), (0, 1), (1, 0), (1, 1)):
        state, formulas[layer, number] = pyrefts(form, seed=10 * number + layer)
        keys.append(
            f"layer_{layer}_comp_{COMPONENTS_OF_PYVENE[component]}_unit_pos_nunit_1#{number}"
        )
        torch.save(state, folder / f"intkey_{keys[-1]}.bin")
    kind = f"<class 'pyreft.interventions.{CLASSES[form]}'>"
    config = {"intervention_types": [kind] * 4, "sorted_keys": keys, "mode": "parallel"}
    (folder / "config.json").write_text(json.dumps(config))
    section, edits = read_pyreft(str(folder), "f1+l1")
    assert (section.type, section.component, section.layers) == (form, component, [0, 1])
    assert (section.rank, section.share_weights) == (R, False)
    rows = {}
    for place, formula in formulas.items():
        edit = Edit(D, R, form, "linear", 0.0, identity=True)
        edit.load_state_dict(edits[place])
        h = torch.randn(4, D)
        torch.testing.assert_close(h + edit(h), formula(h), rtol=1e-4, atol=1e-5)
        rows[place] = edit.rows().detach()
    back.mkdir()
    write_pyreft(back, section, edits, rows)
    again, second = read_pyreft(str(back), "f1+l1")
    assert again == section
    for place in edits:
        for part, tensor in edits[place].items():
            torch.testing.assert_close(second[place][part], tensor, rtol=1e-4, atol=1e-5)


def test_rows_that_are_not_orthonormal_are_refused(tmp_path: Path) -> None:
    key = "layer_0_comp_block_output_unit_pos_nunit_1#0"
    kind = "<class 'pyreft.interventions.LoreftIntervention'>"
    config = {"intervention_types": [kind], "sorted_keys": [key]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    state = pyrefts("loreft", 0)[0]
    state["rotate_layer"][:, 1] = 0
    torch.save(state, tmp_path / f"intkey_{key}.bin")
    with pytest.raises(ValueError, match="not orthonormal"):
        read_pyreft(str(tmp_path), "l1")


class Runs:
    """What a pickle could do."""

    def __reduce__(self) -> Any:
        return print, ("run",)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, capsys: Any) -> None:
    key = "layer_0_comp_block_output_unit_pos_nunit_1#0"
    kind = "<class 'pyreft.interventions.LoreftIntervention'>"
    config = {"intervention_types": [kind], "sorted_keys": [key]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save({"weight": Runs()}, tmp_path / f"intkey_{key}.bin")
    with pytest.raises(ValueError, match="holds no tensors that can be read safely"):
        read_pyreft(str(tmp_path), "l1")
    assert "run" not in capsys.readouterr().out


KEY = "layer_0_comp_block_output_unit_pos_nunit_1#0"
KIND = "<class 'pyreft.interventions.{}'>"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"intervention_types": None}, "no folder that pyreft saved: .* intervention_types"),
        ({"sorted_keys": None}, "no folder that pyreft saved: .* sorted_keys"),
        ({"intervention_types": "LoreftIntervention"}, "a list of texts, intervention_types"),
        ({"sorted_keys": [1, 2]}, "a list of texts, sorted_keys"),
        ({"sorted_keys": {}}, "a list of texts, sorted_keys"),
        ({"sorted_keys": []}, "a list of texts, sorted_keys"),
        ({"sorted_keys": ["layer_x"]}, "expected edits of one form and one component"),
        ({"sorted_keys": [KEY.replace("0", "1", 1)]}, "holds no tensors .*No such file"),
        ({"intervention_types": ["?"]}, "expected edits of one form and one component"),
    ],
)
def test_what_is_no_folder_of_pyreft_is_one_line(
    changes: Any, message: str, tmp_path: Path
) -> None:
    config = {"intervention_types": [KIND.format(CLASSES["loreft"])], "sorted_keys": [KEY]}
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    torch.save(pyrefts("loreft", 0)[0], tmp_path / f"intkey_{KEY}.bin")
    with pytest.raises(ValueError, match=message) as error:
        read_pyreft(str(tmp_path), "l1")
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def damaged_files(form: str) -> Any:
    """What a .bin may hold instead of an edit's tensors."""
    state = pyrefts(form, 0)[0]
    yield from ([], None, 3, "text", torch.ones(3), {}, {"a": 1}, {1: torch.ones(2)})
    unread = "proj_layer.bias" if form == "direft" else None
    for key, tensor in state.items():
        if key == unread:
            continue
        yield {name: x for name, x in state.items() if name != key}
        others = [torch.tensor(1.0), tensor[..., :1, None], torch.zeros(0), tensor + math.nan]
        yield from (state | {key: other} for other in (*others, None, [1.0], "text"))


@pytest.mark.parametrize("form", list(FORMS))
def test_what_is_no_edit_of_pyreft_is_one_line(form: str, tmp_path: Path) -> None:
    config = {"intervention_types": [KIND.format(CLASSES[form])], "sorted_keys": [KEY]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    file = tmp_path / f"intkey_{KEY}.bin"
    torch.save(pyrefts(form, 0)[0], file)
    raw = file.read_bytes()
    for content in (b"", b"x", raw[:100], raw[:-200], *damaged_files(form)):
        torch.save(content, file)
        if isinstance(content, bytes):
            file.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(str(file))) as error:
            read_pyreft(str(tmp_path), "l1")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("positions", "activation"), [("x7", "linear"), ("l1", "sine")])
def test_what_pyreft_does_not_store_is_checked(
    positions: str, activation: str, tmp_path: Path
) -> None:
    config = {"intervention_types": [KIND.format(CLASSES["loreft"])], "sorted_keys": [KEY]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(pyrefts("loreft", 0)[0], tmp_path / f"intkey_{KEY}.bin")
    with pytest.raises(ValueError, match=r"positions|activation") as error:
        read_pyreft(str(tmp_path), positions, activation)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "component", "message"),
    [
        ("HRM-Text", "block_output", "several stacks of layers"),
        ("HRM-Text", "mlp_output", "several stacks of layers"),
        ("Gemma 3n", "block_output", r"2 states of a token .* use mlp_output"),
        ("Gemma 3n", "block_input", r"2 states of a token .* use mlp_output"),
    ],
)
def test_layers_without_one_state_of_a_token_are_refused(name, component, message):
    adapter = {"type": "loreft", "rank": 2, "positions": "f2+l2", "component": component}
    with pytest.raises(ValueError, match=message):
        architectures.policy(name, adapter=adapter)
