"""Files of safetensors written piece by piece, and parts of tensors read from them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from posttrain.model import save, tensor_files
from posttrain.model.folder import saved_head
from posttrain.model.heads import add_scoring_head
from posttrain.model.integrity import INDEX, check_folder
from posttrain.model.models import Models
from posttrain.model.parts import Part, holders, whole
from posttrain.model.tensor_files import NAMES, bytes_of, weights_in, write_tensors


def tensors_of_every_dtype() -> dict[str, Tensor]:
    shapes = [(), (0, 3), (5,), (3, 4), (2, 3, 2)]
    pairs = [(dtype, shape) for dtype in NAMES for shape in shapes]
    return {
        f'layer {(7 * i) % 50}.é"{i}': torch.arange(tiny.VOCAB)[: max(1, len(shape) * 6)]
        .sum()
        .expand(shape)
        .to(dtype)
        for i, (dtype, shape) in enumerate(pairs)
    }


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_files_are_those_of_safetensors(metadata, tmp_path, monkeypatch):
    """Byte for byte, and with the hash that was returned; pieces of 16 bytes."""
    monkeypatch.setattr(tensor_files, "AT_ONCE", 16)
    tensors = tensors_of_every_dtype()
    expected, file = tmp_path / "theirs", tmp_path / "ours"
    save_file({name: x.contiguous() for name, x in tensors.items()}, expected, metadata)
    found = write_tensors(file, tensors, metadata)
    assert file.read_bytes() == expected.read_bytes()
    assert found == hashlib.sha256(expected.read_bytes()).hexdigest()


def test_a_tensor_that_is_written_is_not_copied():
    tensor = torch.arange(6.0).view(2, 3)
    view = bytes_of(tensor)
    tensor[0, 0] = 5.0
    assert bytes(view[:4]) == torch.tensor(5.0).numpy().tobytes()
    assert bytes(bytes_of(tensor.T)) == tensor.T.contiguous().numpy().tobytes()


def test_what_the_disk_gives_back_is_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_files, "sha256", lambda file: "0" * 64)
    with pytest.raises(OSError, match="file is not on the disk as it was written"):
        write_tensors(tmp_path / "file", {"a": torch.ones(3)})


def test_parts_meet():
    a, b = Part((2, 0), (3, 4)), Part((4, 1), (5, 2))
    common = a.within(b)
    assert common == Part((4, 1), (1, 2))
    assert common.seen_from(b) == Part((0, 0), (1, 2))
    assert common.seen_from(a).box == (slice(2, 3), slice(1, 3))
    assert a.within(Part((7, 0), (2, 4))).is_empty
    assert not whole(()).is_empty


def test_each_part_has_one_holder():
    rows = [Part((0,), (2,)), Part((2,), (2,)), Part((0,), (2,)), Part((4,), (0,))]
    assert holders(rows) == {0: rows[0], 1: rows[1]}
    assert holders(rows, preferred=2) == {2: rows[0], 1: rows[1]}
    assert holders(rows, preferred=3) == {0: rows[0], 1: rows[1]}


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_a_model_is_saved_as_transformers_saves_it(kind, tmp_path):
    """In one file, with a tied head and without: the bytes of save_pretrained."""
    models = tiny.models(kind)
    models.tokenizer = Tokenizer()
    weights = save.gather_weights(models)
    (tmp_path / "ours").mkdir()
    save.save_model(tmp_path / "ours", models, weights)
    inner = {name.removeprefix("model."): value for name, value in weights.items()}
    models.policy.causal_lm().save_pretrained(tmp_path / "theirs", state_dict=inner)
    names = sorted(file.name for file in (tmp_path / "theirs").iterdir())
    assert "model.safetensors" in names
    assert names == sorted(file.name for file in (tmp_path / "ours").iterdir())
    for name in names:
        a, b = ((tmp_path / folder / name).read_bytes() for folder in ("ours", "theirs"))
        assert a == b, name


def test_a_large_model_has_several_files(tmp_path, monkeypatch):
    """Which transformers loads, the folder's checks pass, and a resumed run reads."""
    monkeypatch.setattr(save, "FILE_BYTES", 9000)
    models = tiny.models("llama")
    models.tokenizer = Tokenizer()
    weights = save.gather_weights(models)
    save.save_model(tmp_path, models, weights)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 3
    assert all(file.stat().st_size < 12_000 for file in files)
    check_folder(str(tmp_path))
    index = json.loads((tmp_path / INDEX).read_text())
    assert {n: f for f in files for n in load_file(f)} == {
        name: tmp_path / file for name, file in index["weight_map"].items()
    }
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(weights[f"model.{n}"], p) for n, p in loaded.named_parameters())
    other = Models(tiny.models("llama", seed=5).policy, None, [3])
    save.restore_weights(other, tmp_path)
    assert all(torch.equal(weights[name], p) for name, p in other.trainable().items())
    assert weights_in(tmp_path).read("lm_head.weight", Part((2, 0), (1, 5))).shape == (1, 5)


def test_a_large_reward_model_keeps_its_head(tmp_path, monkeypatch):
    monkeypatch.setattr(save, "FILE_BYTES", 9000)
    models = tiny.models("llama")
    models.tokenizer = Tokenizer()
    add_scoring_head(models.policy, None)
    with torch.no_grad():
        models.policy.head.weight.normal_()
    save.save_model(tmp_path, models, save.gather_weights(models))
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    head = saved_head(tmp_path)
    assert head is not None
    assert torch.equal(head, models.policy.head.weight)
    other = tiny.models("llama", seed=5).policy
    add_scoring_head(other, str(tmp_path))
    assert torch.equal(other.head.weight, head)


class Tokenizer:
    """A tokenizer without files."""

    pad_token_id = 0

    def save_pretrained(self, folder: Path) -> None:
        """Write nothing."""
