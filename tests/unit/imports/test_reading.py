"""Config files, shell scripts and commands as they are written, and errors in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from foreign import from_command, imported, text_of

from posttrain.imports.read import flatten, interpolated, read_file, read_words, source_of
from posttrain.imports.run import import_request
from posttrain.imports.shell import calculate, read_script


def words(text: str, **given: str) -> list[list[str]]:
    return read_script(text, given).commands


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b", [["a", "b"]]),
        ("a \\\n  b # c\n#d\n\ne", [["a", "b"], ["e"]]),
        ("a 'b c' \"d e\" f\\ g", [["a", "b c", "d e", "f g"]]),
        ("X=1\nY=$X$X\na ${Y} \"$Y\" '$Y'", [["a", "11", "11", "$Y"]]),
        ("X='p q'\na $X \"$X\"", [["a", "p", "q", "p q"]]),
        ("A=(1 2 'x y')\na \"${A[@]}\" z", [["a", "1", "2", "x y", "z"]]),
        ("A=(1)\nA+=(2)\na ${A[@]}", [["a", "1", "2"]]),
        ("a ${X:-8} ${Y:-p/q}", [["a", "8", "p/q"]]),
        ("N=4\na $((128/$N/2)) $(( (N + 2) * 3 ))", [["a", "16", "18"]]),
        ("a $1 ${2} $@ ${@:2}", [["a", "${1}", "${2}"]]),
        ("a $(date) `b`", [["a", "$(date)", "`b`"]]),
        ("export X=1 && a $X; b | c &", [["a", "1"], ["b"], ["c"]]),
        ("X=1\nif [ -z $1 ]; then\n X=2\nfi\na $X", [["[", "-z", "${1}", "]"], ["a", "${X}"]]),
        ("for i in 1 2; do a $i; done", [["a", "${i}"]]),
        ("cat <<EOF\nx=1 a b\nEOF\na", [["cat"], ["a"]]),
        ('CMD="run \\\n  --x 1"\n$CMD --y', [["run", "--x", "1", "--y"]]),
        ("a ~/x k=~/y", [["a", "${HOME}/x", "k=~/y"]]),
        ("a ''", [["a", ""]]),
        ("a 'unclosed", [["a", "unclosed"]]),
        ("a #b", [["a"]]),
        ("a b#c", [["a", "b#c"]]),
        ("", []),
    ],
)
def test_commands_of_a_script(text: str, expected: list[list[str]]) -> None:
    assert words(text) == expected


def test_given_variables_win() -> None:
    assert words("X=1\na $X $1", X="9") == [["a", "9", "${1}"]]


@pytest.mark.parametrize("text", ["1/0", "__import__('os')", "2**9**9", "x", "(" * 500, ""])
def test_only_sums_are_calculated(text: str) -> None:
    assert calculate(text) is None


def test_flatten_and_interpolation() -> None:
    tree = {"a": {"b": 1, "c": []}, "d": [{"e": 2}, {"f": {}}], "g": [1, 2]}
    assert flatten(tree) == {"a.b": 1, "a.c": [], "d.0.e": 2, "d.1.f": {}, "g": [1, 2]}
    assert interpolated({"a": "${b}/x", "b": "${c}", "c": 3})["a"] == "3/x"
    assert interpolated({"a": "${a}"}) == {"a": "${a}"}


TRL_LINE = "trl dpo --model_name_or_path org/m --dataset_name org/d"


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        (f"{TRL_LINE} --beta 0.3", "trainer.beta", 0.3),
        (f"{TRL_LINE} --beta=0.3", "trainer.beta", 0.3),
        (f"{TRL_LINE} --loss_type sigmoid ipo", "trainer.loss_type", ["sigmoid", "ipo"]),
        (f"{TRL_LINE} --gradient-checkpointing false", "trainer.beta", 0.1),
        (f"accelerate launch --num_processes 4 {TRL_LINE}", "trainer.batch_size", 32),
        (
            "python -m verl.trainer.main_ppo data.train_files=a actor_rollout_ref.model.path=m "
            "+algorithm.adv_estimator=rloo",
            "trainer.type",
            "rloo",
        ),
        (
            "torchrun --nnodes=2 --nproc_per_node=4 src/train.py --stage sft --model_name_or_path "
            "m --dataset d --finetuning_type full",
            "trainer.batch_size",
            64,
        ),
        (
            "python open_instruct/reward_modeling.py --model_name_or_path m --dataset_mixer_list d "
            "1.0 e 40",
            "trainer.type",
            "reward_model",
        ),
        (
            "python script_train.py --ft_config=reft_mlp --train_on=gsm8k",
            "model.adapter.component",
            "mlp_output",
        ),
        ("TOKENIZERS_PARALLELISM=false WANDB_MODE=offline " + TRL_LINE, "trainer.type", "dpo"),
    ],
)
def test_commands(text: str, key: str, value: Any) -> None:
    draft = from_command(text)
    assert draft.recipe[key] == value


def test_a_command_reads_its_config_and_changes_it(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model_name_or_path: m\ndataset_name: d\nbeta: 0.5\nseed: 3\n")
    script = tmp_path / "run.sh"
    script.write_text("trl dpo --config c.yaml --beta 0.7\n")
    draft = import_request(read_file(script, {}))
    assert (draft.recipe["trainer.beta"], draft.recipe["trainer.seed"]) == (0.7, 3)
    script.write_text("trl dpo --config other.yaml\n")
    with pytest.raises(ValueError, match=r"reads other\.yaml, which is not at hand"):
        read_file(script, {})


def test_yaml_json_and_toml_are_the_same(tmp_path: Path) -> None:
    texts = {
        "c.yaml": "model_name_or_path: m\ndataset_name: d\nbeta: 0.5\n",
        "c.json": '{"model_name_or_path": "m", "dataset_name": "d", "beta": 0.5}',
        "c.toml": 'model_name_or_path = "m"\ndataset_name = "d"\nbeta = 0.5\n',
    }
    found = []
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        found.append(import_request(read_file(tmp_path / name, {}), None, "dpo").recipe)
    assert found[0] == found[1] == found[2]


def test_a_key_given_twice_is_said(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model_name_or_path: m\ndataset_name: d\nbeta: 0.5\nseed: 1\nseed: 2\n")
    draft = import_request(read_file(file, {}), None, "dpo")
    assert draft.recipe["trainer.seed"] == 2
    assert "given twice" in draft.lines["seed"].note


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        (
            "x.yaml",
            "a: 1\nb: 2\n",
            r"no known format \(its first keys: a, b\); known: llamafactory",
        ),
        ("x.yaml", "- 1\n", "holds no settings"),
        ("x.yaml", "a: [", "not valid YAML"),
        ("x.yaml", "", "holds no settings"),
        ("x.json", "{", "not valid JSON"),
        ("x.toml", "a =", "not valid TOML"),
        ("x.sh", "echo hello\n", "starts no training of llamafactory.*echo"),
        ("x.sh", "", "starts no training.*none"),
        ("x.sh", f"{TRL_LINE}\n{TRL_LINE} --beta 1\n", "2 training commands: choose one"),
        ("x.yaml", "stage: eval\nfinetuning_type: lora\nmodel_name_or_path: m\n", "stage: eval"),
        (
            "x.yaml",
            "model_name_or_path: m\ndataset_name: d\n",
            "does not name the method.*sft, dpo",
        ),
    ],
)
def test_errors_are_one_line(tmp_path: Path, name: str, text: str, match: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=match) as caught:
        import_request(read_file(tmp_path / name, {}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "key", "value"),
    [
        ("trl", "beta", "text"),
        ("trl", "learning_rate", [1]),
        ("trl", "per_device_train_batch_size", "two"),
        ("axolotl", "micro_batch_size", [2]),
        ("llamafactory", "lora_rank", "x"),
        ("verl", "actor_rollout_ref.rollout.n", "many"),
        ("open_instruct", "gradient_accumulation_steps", "x"),
    ],
)
def test_a_value_of_no_use_is_named(source: str, key: str, value: Any) -> None:
    tree = {"model_name_or_path": "m", "dataset_name": "d", key: value}
    with pytest.raises(ValueError, match=key) as caught:
        imported(tree, source, {"trl": "dpo", "open_instruct": "dpo"}.get(source))
    assert "\n" not in str(caught.value)


def test_a_flag_is_no_number_and_no_settings_are_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="beta: expected a number, got true"):
        from_command(f"{TRL_LINE} --beta")
    with pytest.raises(ValueError, match="gives no settings"):
        from_command("trl sft")
    with pytest.raises(ValueError, match=r"a\.b is given twice"):
        flatten({"a.b": 1, "a": {"b": 2}})
    file = tmp_path / "c.yaml"
    file.write_text("model_name_or_path: m\ndataset_name: d\nbeta: ${B}\n")
    with pytest.raises(ValueError, match="holds no commands"):
        read_file(file, {}, 2)
    assert import_request(read_file(file, {"B": "0.4"}), None, "dpo").recipe["trainer.beta"] == 0.4


def test_an_ambiguous_config_asks_for_from() -> None:
    tree = {"model_name": "m", "lr": 1, "epochs": 1, "ft_config": "lora"}
    with pytest.raises(ValueError, match="experiments or from_scratch: say which"):
        imported(tree)
    assert imported(tree, "from_scratch").title
    with pytest.raises(ValueError, match="did you mean axolotl"):
        imported(tree, "axolotll")


def test_a_command_of_none_is_refused() -> None:
    with pytest.raises(ValueError, match="starts no training"):
        source_of(read_words(["python", "x.py"], {}), None)


SECRETS = [
    ("hub_token", "hf_abcdefghijklmnopqrstuv", "HF_TOKEN"),
    ("hf_hub_token", "whatever", "HF_TOKEN"),
    ("wandb_api_key", "0123456789abcdef0123456789abcdef01234567", "WANDB_API_KEY"),
    ("swanlab_api_key", "abc", "SWANLAB_API_KEY"),
    ("nvidia_api_key", "nvapi-abcdefghijklmnopqrst", "NVIDIA_API_KEY"),
    ("note", "see hf_abcdefghijklmnopqrstuv there", "HF_TOKEN"),
    ("nested.deep", ["x", "sk-abcdefghijklmnopqrstuvwx"], "DEEP"),
    ("vllm_server_base_url", "http://me:passw0rd@host:8000", "VLLM_SERVER_BASE_URL"),
    ("swanlab_lark_secret", "s3cr3t-value", "SWANLAB_LARK_SECRET"),
]


@pytest.mark.parametrize(("key", "value", "variable"), SECRETS)
def test_secrets_are_never_written(key: str, value: Any, variable: str) -> None:
    from posttrain.imports.write import table_text

    tree = {"model_name_or_path": "m", "dataset_name": "d", key: value}
    draft = imported(tree, "trl", "dpo")
    written = text_of(draft) + table_text(draft)
    secret = value if isinstance(value, str) else value[-1]
    secret = (
        "passw0rd" if "passw0rd" in secret else secret.removeprefix("see ").removesuffix(" there")
    )
    assert secret not in written
    assert variable in draft.lines[key].note


@pytest.mark.parametrize(
    "key", ["pad_token", "eos_token", "prompt_key", "special_tokens.bos_token"]
)
def test_tokens_of_the_tokenizer_are_no_secrets(key: str) -> None:
    draft = imported({"model_name_or_path": "m", "dataset_name": "d", key: "<x>"}, "trl", "dpo")
    assert draft.lines[key].value == "<x>"


def test_exported_secrets_and_variables_are_keys_too(tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text(
        "export WANDB_API_KEY=abcdef\nexport CUDA_VISIBLE_DEVICES=0\nexport JUDGE=x\nexport B=0.4\n"
        f"{TRL_LINE} --beta $B\n"
    )
    draft = import_request(read_file(script, {}))
    fates = {k: line.fate for k, line in draft.lines.items() if k.startswith("env.")}
    assert fates == {
        "env.WANDB_API_KEY": "without effect",
        "env.CUDA_VISIBLE_DEVICES": "without effect",
        "env.JUDGE": "refused",
    }
    assert "abcdef" not in text_of(draft)
    assert draft.recipe["trainer.beta"] == 0.4


def test_values_of_the_shell_are_refused_until_they_are_given(tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text(f"{TRL_LINE} --beta $BETA --output_dir $HOME/x\n")
    draft = import_request(read_file(script, {}))
    assert draft.lines["beta"].fate == "refused"
    assert "set the variable" in draft.lines["beta"].note
    assert draft.recipe["trainer.output_dir"] == "${HOME}/x"
    assert import_request(read_file(script, {"BETA": "0.9"})).recipe["trainer.beta"] == 0.9
