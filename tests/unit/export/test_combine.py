"""Several adapters as one: by what they add to the weights, against dense matrices."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Capture, command, complaint, output_of, recipe
from gguf_models import TEXTS, model_folder
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from posttrain.export.combine import agreed, combine, dropped, nearest, pruned
from posttrain.export.run import export, merge
from posttrain.model.folder import saved_quantization

SPECS: list[dict[str, Any]] = [
    {"r": 2, "lora_alpha": 3.0, "target_modules": ["q_proj", "down_proj"]},
    {"r": 4, "lora_alpha": 2.0, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    {
        "r": 3,
        "lora_alpha": 1.0,
        "target_modules": ["q_proj", "v_proj"],
        "alpha_pattern": {"q_proj": 6.0},
        "rank_pattern": {"v_proj": 1},
    },
]


def base_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A base and three LoRA adapters of it, of other ranks, scales and layers."""
    folder = tmp_path_factory.mktemp("made")
    base = model_folder(folder / "base", "qwen2")
    adapters = []
    for number, spec in enumerate(SPECS):
        torch.manual_seed(number)
        model = get_peft_model(base_model(base), LoraConfig(task_type="CAUSAL_LM", **spec))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data = torch.randn(parameter.shape) * 0.05
        model.save_pretrained(str(folder / f"a{number}"))
        adapters.append(folder / f"a{number}")
    return base, adapters


def added(base: Path, adapter: Path) -> dict[str, Tensor]:
    """What PEFT itself adds to each weight."""
    before = base_model(base).state_dict()
    after = PeftModel.from_pretrained(base_model(base), str(adapter)).merge_and_unload()
    return {name: x - before[name] for name, x in after.state_dict().items()}


def close(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return got.keys() == wanted.keys() and all(
        torch.allclose(got[name], wanted[name], atol=1e-5) for name in wanted
    )


@pytest.mark.parametrize("weights", [None, [0.5, 0.5, 1.0], [1.0, -2.0, 0.0]])
def test_linear_adds_up_what_the_adapters_add(
    made: Any, tmp_path: Path, weights: list[float] | None
) -> None:
    base, adapters = made
    merge([str(a) for a in adapters], tmp_path / "x", weights, say=lambda line: None)
    deltas = [added(base, adapter) for adapter in adapters]
    by = weights or [1 / 3] * 3
    wanted = {n: sum(w * d[n] for w, d in zip(by, deltas)) for n in deltas[0]}
    assert close(added(base, tmp_path / "x"), wanted)
    config = json.loads((tmp_path / "x/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (9, 9)


def test_peft_itself_adds_cross_terms(made: Any) -> None:
    """Why its `linear` is not used: of two adapters it adds A1 B2 and A2 B1 too."""
    base, adapters = made
    model = PeftModel.from_pretrained(base_model(base), str(adapters[0]), "a")
    model.load_adapter(str(adapters[0]), "b")
    for name, parameter in model.named_parameters():
        if ".b." in name:
            parameter.data = torch.randn(parameter.shape) * 0.05
    ours = {}
    for layer, module in model.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "get_delta_weight"):
            ours[layer] = (module.get_delta_weight("a") + module.get_delta_weight("b")) / 2
    model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "c", combination_type="linear")
    theirs = {
        layer: module.get_delta_weight("c")
        for layer, module in model.named_modules()
        if layer in ours
    }
    assert all(not torch.allclose(theirs[n], ours[n], rtol=0.1, atol=1e-4) for n in ours)


def test_svd_is_the_nearest_of_its_rank(made: Any, tmp_path: Path) -> None:
    base, adapters = made
    merge([str(a) for a in adapters], tmp_path / "x", [1.0] * 3, "svd", 2, say=lambda line: None)
    deltas = [added(base, adapter) for adapter in adapters]
    for name, got in added(base, tmp_path / "x").items():
        if got.dim() == 2:
            wanted = torch.stack([d[name] for d in deltas]).sum(0)
            values = torch.linalg.svdvals(wanted)
            left = float((got - wanted).norm())
            assert left == pytest.approx(float(values[2:].norm()), rel=1e-3, abs=1e-5), name


def test_svd_of_the_whole_rank_is_exact(made: Any, tmp_path: Path) -> None:
    base, adapters = made
    for number, method in enumerate(("svd", "linear")):
        rank = 9 if method == "svd" else None
        names = [str(a) for a in adapters]
        merge(names, tmp_path / str(number), None, method, rank, say=lambda line: None)  # type: ignore[arg-type]
    assert close(added(base, tmp_path / "0"), added(base, tmp_path / "1"))


def test_ties_by_hand() -> None:
    """Yadav et al. 2023: the sign of the sum, then the mean of those that have it."""
    a, b = torch.tensor([4.0, -1.0, 2.0, 0.0]), torch.tensor([2.0, 3.0, -2.0, 5.0])
    assert agreed([a, b], [1.0, 1.0]).tolist() == [3.0, 3.0, 0.0, 5.0]
    assert agreed([a, b], [0.5, 0.5]).tolist() == [3.0, 3.0, 0.0, 5.0]
    assert agreed([a, b], [3.0, 1.0]).tolist() == [3.5, 0.0, 2.0, 5.0]


def test_pruning_and_dropping_by_hand() -> None:
    x = torch.tensor([[1.0, -5.0], [0.5, 2.0]])
    assert pruned(x, 0.5).tolist() == [[0.0, -5.0], [0.0, 2.0]]
    assert pruned(x, 0.01).tolist() == [[0.0, -5.0], [0.0, 0.0]]
    assert torch.equal(pruned(x, 1.0), x)
    big = torch.ones(200, 200)
    kept = dropped(big, 0.25, torch.Generator().manual_seed(0))
    assert set(kept.unique().tolist()) == {0.0, 4.0}
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.02)


def test_nearest_keeps_the_largest_singular_values() -> None:
    matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    low, high, error = nearest(matrix, 2)
    assert torch.allclose(high @ low, torch.diag(torch.tensor([3.0, 2.0, 0.0])), atol=1e-6)
    assert error == pytest.approx((1 / 14) ** 0.5)
    assert nearest(torch.zeros(3, 2), 2)[2] == 0


def test_ties_against_peft_with_equal_weights(made: Any) -> None:
    """With weights of 1 PEFT's own function of dense matrices is the paper's too."""
    from peft.utils.merge_utils import ties

    generator = torch.Generator().manual_seed(0)
    deltas = [torch.randn(12, 8, generator=generator) for _ in range(3)]
    theirs = ties(deltas, torch.ones(3), 0.5)
    ours = agreed([pruned(d, 0.5) for d in deltas], [1.0] * 3)
    assert torch.allclose(theirs, ours, atol=1e-6)


def test_dare_is_drawn_with_the_seed(made: Any) -> None:
    names = [str(a) for a in made[1]]
    results = [combine(names, [1.0] * 3, "dare_ties", 3, 0.5, seed)[1] for seed in (0, 0, 1)]
    same = [all(torch.equal(results[0][n], r[n]) for n in results[0]) for r in results]
    assert same == [True, True, False]


def test_the_merged_adapter_goes_into_the_base(made: Any, tmp_path: Path, capsys: Capture) -> None:
    base, adapters = made
    arguments = ["merge", *adapters[:2], "--weights", "0.25,0.75", "--output", tmp_path / "x"]
    text = output_of(capsys, *arguments, "--into-base")
    assert "0.25 x a0, 0.75 x a1. Rank 6" in text
    deltas = [added(base, adapter) for adapter in adapters[:2]]
    before = base_model(base).state_dict()
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "x", dtype=torch.float32)
    for name, value in merged.state_dict().items():
        wanted = before[name] + 0.25 * deltas[0][name] + 0.75 * deltas[1][name]
        assert torch.allclose(value, wanted, atol=1e-5), name
    assert not list(tmp_path.glob("x/adapter*"))
    assert "Merged adapters (linear)" in (tmp_path / "x/README.md").read_text()


@pytest.mark.parametrize("into_base", [False, True])
@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        (("nf4", "nf4"), "nf4"),
        (("int8", "nf4"), "stored otherwise (int8, nf4)"),
        ((None, "nf4"), "stored otherwise (whole, nf4)"),
        ((None, None), ""),
    ],
)
def test_what_quantised_bases_mean_for_a_merge(
    kinds: tuple[str | None, ...], words: str, into_base: bool, made: Any, tmp_path: Path
) -> None:
    parts = []
    for number, kind in enumerate(kinds):
        parts.append(shutil.copytree(made[1][number], tmp_path / str(number)))
        if kind is not None:
            (parts[-1] / "quantization.json").write_text(json.dumps({"type": kind}))
    lines: list[str] = []
    output = tmp_path / "x"
    merge([str(p) for p in parts], output, into_base=into_base, say=lines.append)
    notes = [line for line in lines if "stored otherwise" in line or "a base in" in line]
    card = (output / "README.md").read_text()
    assert len(notes) == bool(words)
    assert all(words in note and note in card for note in notes)
    record = output / "quantization.json"
    assert record.exists() == (kinds == ("nf4", "nf4") and not into_base)
    if record.exists():
        assert saved_quantization(output) == {"type": "nf4"}
    if into_base and words == "nf4":
        assert "merged into the whole weights" in notes[0]
        assert "evaluate it (posttrain eval)" in notes[0]


@pytest.mark.parametrize(("form", "words"), [("peft", "load the base in"), ("merged", "evaluate")])
def test_an_export_of_an_adapter_names_the_quantised_base(
    form: str, words: str, made: Any, tmp_path: Path
) -> None:
    source = shutil.copytree(made[1][0], tmp_path / "adapter")
    for kind in (None, "fp4"):
        if kind is not None:
            (source / "quantization.json").write_text(json.dumps({"type": kind}))
        lines: list[str] = []
        export(str(source), form, tmp_path / f"{form}-{kind}", say=lines.append)
        notes = [line for line in lines if "trained beside a base in fp4" in line]
        assert len(notes) == (kind is not None)
        assert all(words in note for note in notes)


REFUSED = {
    "one": (["{a0}"], "--adapters: name two or more"),
    "weights": (["{a0}", "{a1}", "--weights", "1"], "--weights: 1 numbers for 2 adapters"),
    "words": (["{a0}", "{a1}", "--weights", "a,b"], "--weights: expected numbers like"),
    "nan": (["{a0}", "{a1}", "--weights", "nan,1"], "--weights: expected finite numbers"),
    "too large": (["{a0}", "{a0}", "--weights", "1e39,1e39"], "--weights: .* overflow"),
    "large": (["{a0}", "{a0}", "--weights", "3e38,3e38"], "merged, .*/x: .* its logits differ by"),
    "zeros": (["{a0}", "{a1}", "--weights", "0,0"], "not all 0"),
    "a method": (["{a0}", "{a1}", "--method", "slerp"], "--method: expected one of linear, svd"),
    "no density": (["{a0}", "{a1}", "--method", "ties"], "--density: ties, .* need a density"),
    "a density": (["{a0}", "{a1}", "--density", "0.5"], "the others have none"),
    "too dense": (["{a0}", "{a1}", "--method", "ties", "--density", "2"], "at most 1, got 2"),
    "a rank": (["{a0}", "{a1}", "--rank", "2"], "--rank: linear keeps all ranks"),
    "no rank": (["{a0}", "{a1}", "--method", "svd", "--rank", "0"], "at least 1"),
    "a dtype": (["{a0}", "{a1}", "--dtype", "f16"], "--dtype: only a model is cast"),
    "no dtype": (["{a0}", "{a1}", "--dtype", "fp16"], "--dtype: expected one of f32, bf16, f16"),
    "no dtype of a model": (
        ["{a0}", "{a1}", "--into-base", "--dtype", "fp16"],
        "--dtype: expected",
    ),
    "no adapter": (["{a0}", "{base}"], "holds no adapter"),
    "nowhere": (["{a0}", "{base}/x"], "no folder|does not exist"),
    "negative ties": (
        ["{a0}", "{a1}", "--method", "ties", "--density", "0.5", "--weights=1,-1"],
        "no weight may be negative",
    ),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_what_makes_no_sense_is_refused(
    what: str, made: Any, tmp_path: Path, capsys: Capture
) -> None:
    arguments, message = REFUSED[what]
    places = {"base": made[0]} | {f"a{n}": a for n, a in enumerate(made[1])}
    given = [a.format(**places) for a in arguments]
    text = complaint(capsys, "merge", *given, "--output", tmp_path / "x")
    assert re.search(message, text), text
    assert list(tmp_path.iterdir()) == []


def changed(folder: Path, source: Path, **keys: Any) -> Path:
    """A copy of an adapter with other settings."""
    folder.mkdir()
    config = json.loads((source / "adapter_config.json").read_text()) | keys
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(
        (source / "adapter_model.safetensors").read_bytes()
    )
    return folder


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"use_dora": True}, "is a DoRA, which cannot be merged with others"),
        ({"modules_to_save": ["lm_head"]}, "trains layers whole"),
        ({"lora_bias": True}, "a LoRA with biases"),
        ({"peft_type": "IA3"}, "kind IA3|does not know"),
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING"),
        ({"bias": "lora_only"}, "trains biases"),
        ({"task_type": "SEQ_CLS"}, "a reward model or classifier, whose head"),
        ({"r": 8}, "a matrix of the rank 4 for .*q_proj, and its .* names the rank 8"),
        ({"rank_pattern": {"v_proj": 3}}, "the rank 4 for .*v_proj, and its .* the rank 3"),
        ({"target_modules": ["q_proj"]}, "for .*v_proj, and its .* names other target_modules"),
        ({"layers_to_transform": [1]}, "for .*layers.0.* names other target_modules"),
        ({"base_model_name_or_path": "other/base"}, "are of different bases"),
    ],
)
def test_other_adapters_are_refused_by_name(
    keys: dict[str, Any], message: str, made: Any, tmp_path: Path
) -> None:
    other = changed(tmp_path / "other", made[1][1], **keys)
    with pytest.raises(ValueError, match=message):
        merge([str(made[1][0]), str(other)], tmp_path / "x", say=lambda line: None)
    assert not (tmp_path / "x").exists()


STARTS: tuple[Any, ...] = (True, False, "gaussian", "orthogonal", "eva", "mica", "olora")
STARTS += ("pissa", "pissa_niter_4", "corda", "loftq", "lora_ga")


@pytest.mark.parametrize("start", STARTS)
def test_starts_that_change_the_base_are_refused_and_no_others(
    start: Any, made: Any, tmp_path: Path
) -> None:
    """What an adapter adds is not its own product then: PEFT subtracts its start from the base."""
    other = changed(tmp_path / "other", made[1][0], init_lora_weights=start)
    names = [str(other), str(made[1][0])]
    if str(start).startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
        with pytest.raises(ValueError, match=f"init_lora_weights: {start}, which"):
            merge(names, tmp_path / "x", say=lambda line: None)
        assert not (tmp_path / "x").exists()
    else:
        merge(names, tmp_path / "x", say=lambda line: None)
        assert close(added(made[0], tmp_path / "x"), added(made[0], made[1][0]))


def test_an_adapter_of_peft_that_changes_the_base_is_refused(made: Any, tmp_path: Path) -> None:
    """PEFT's own olora: what it adds is far from its product, which is what would be merged."""
    config = LoraConfig(
        task_type="CAUSAL_LM", r=2, init_lora_weights="olora", target_modules=["q_proj"]
    )
    get_peft_model(base_model(made[0]), config).save_pretrained(str(tmp_path / "olora"))
    assert all(x.abs().max() < 1e-4 for x in added(made[0], tmp_path / "olora").values())
    tensors = load_file(tmp_path / "olora/adapter_model.safetensors")
    assert any(x.abs().max() > 0.1 for name, x in tensors.items() if "lora_B" in name)
    with pytest.raises(ValueError, match="changes the base, so that it cannot be merged"):
        merge([str(tmp_path / "olora")] * 2, tmp_path / "x", say=lambda line: None)


def test_a_pissa_of_posttrain_is_a_plain_lora_and_merges(made: Any, tmp_path: Path) -> None:
    rows = [{"prompt": text[:20], "completion": text[20:40]} for text in TEXTS]
    keys = {"type": "sft", "max_steps": 2, "batch_size": 4, "learning_rate": 1e-2}
    file = recipe(
        tmp_path,
        rows,
        model={"name": str(made[0]), "dtype": "float32", "adapter": {"type": "pissa", "r": 2}},
        trainer=keys | {"output_dir": str(tmp_path / "out")},
    )
    assert command("train", file) == 0
    pissa = next((tmp_path / "out").glob("*/checkpoint-*"))
    merge([str(pissa), str(made[1][0])], tmp_path / "x", [0.5, 2.0], say=lambda line: None)
    deltas = [added(made[0], pissa), added(made[0], made[1][0])]
    assert any(x.abs().max() > 1e-4 for x in deltas[0].values())
    wanted = {n: 0.5 * deltas[0][n] + 2.0 * deltas[1][n] for n in deltas[0]}
    assert close(added(made[0], tmp_path / "x"), wanted)


def test_whole_numbers_are_refused(made: Any, tmp_path: Path) -> None:
    """Eight bits without their scales would be taken for the numbers themselves."""
    other = changed(tmp_path / "other", made[1][1])
    file = other / "adapter_model.safetensors"
    save_file({name: (100 * x).to(torch.int8) for name, x in load_file(file).items()}, file)
    with pytest.raises(ValueError, match="has the dtype I8"):
        combine([str(made[1][0]), str(other)], [1, 1], "linear", None, None, 0)


def test_tensors_that_are_no_pairs_are_refused(made: Any, tmp_path: Path) -> None:
    other = changed(tmp_path / "other", made[1][1])
    file = other / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if "lora_B" in n)
    whole = tensors.pop(name)
    save_file(tensors, file)
    with pytest.raises(ValueError, match="no low-rank matrix of a linear layer"):
        combine([str(made[1][0]), str(other)], [1, 1], "linear", None, None, 0)
    save_file(tensors | {name: torch.cat([whole, whole])}, file)
    with pytest.raises(ValueError, match="do not fit together"):
        combine([str(made[1][0]), str(other)], [1, 1], "linear", None, None, 0)
