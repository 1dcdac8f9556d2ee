"""Whatever is wrong with a recipe is one ValueError that names the key and the nearest fix."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from posttrain.algorithms import ALGORITHMS
from posttrain.algorithms.base import algorithm_named
from posttrain.config.base import keys
from posttrain.config.errors import hints_of
from posttrain.config.recipe import with_overrides
from posttrain.runs.config import Config, dump, load_config, parse_config, save_config
from posttrain.runs.pipeline import load_pipeline, stage_config
from posttrain.runs.synthesize import load_making

PATHS = list(dict.fromkeys(key.path for key in keys(Config)))
HINTS = hints_of(list(keys(Config)))
RECIPES = sorted((ROOT / "recipes").glob("**/*.yaml"))
MATH = {"type": "math_correctness"}
SFT: dict[str, Any] = {
    "model": {"name": "somebody/model"},
    "data": {"path": "rows.jsonl"},
    "trainer": {"type": "sft", "max_steps": 1},
}
GRPO = SFT | {"trainer": {"type": "grpo", "max_steps": 1}, "reward": MATH}
PRETRAIN = SFT | {"trainer": {"type": "pretrain", "max_steps": 1}}
MATH_WITH = "{type: math_correctness, %s: 1}"
LENGTH_WITH = f"{{type: length, kind: cosine, max_length: 8, reward: {MATH_WITH}}}"
# a place inside another reward -> as it is shown, and the override that puts a key there
INSIDE = {
    "reward.reward": ("reward.reward", f"reward={LENGTH_WITH}"),
    "eval.gate": ("eval.gate.0", "eval.gate=[{%s: 1}]"),
    "reward.rewards": ("reward.rewards.0", f"reward={{type: weighted, rewards: [{MATH_WITH}]}}"),
    "reward.rewards.reward": (
        "reward.rewards.0.reward",
        f"reward={{type: weighted, rewards: [{LENGTH_WITH}]}}",
    ),
}


@pytest.mark.parametrize("method", list(ALGORITHMS))
def test_the_saved_config_can_be_run(method: str, tmp_path: Path) -> None:
    """What `train` writes as config.yaml reads back as the same config, method by method."""
    config = Config.model_validate(tiny.run_config(tmp_path, method))
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml", []) == config


def parse(*overrides: str, base: dict[str, Any] = SFT) -> Config:
    return parse_config(with_overrides(copy.deepcopy(base), list(overrides)), "run.yaml")


def problem(*overrides: str, base: dict[str, Any] = SFT) -> str:
    with pytest.raises(ValueError, match=r"run\.yaml|override") as caught:
        parse(*overrides, base=base)
    assert type(caught.value) is ValueError
    text = str(caught.value)
    assert "\n" not in text
    assert "function-after" not in text, "pydantic's inner names are not the user's"
    return text


@pytest.mark.parametrize(
    ("base", "override", "key", "nearest"),
    [
        (SFT, "mdoel.name=x", "mdoel", "model"),
        (SFT, "trainr.seed=1", "trainr", "trainer"),
        (SFT, "model.dtyp=auto", "model.dtyp", "dtype"),
        (SFT, "model.lora.alpa=3", "model.lora.alpa", "alpha"),
        (SFT, "model.scratch.num_layer=3", "model.scratch.num_layer", "num_layers"),
        (SFT, "data.colums={}", "data.colums", "columns"),
        (SFT, "length.max_lenght=3", "length.max_lenght", "max_length"),
        (SFT, "trainer.learning_rat=1", "trainer.learning_rat", "learning_rate"),
        (
            SFT,
            "trainer.early_stopping.patienc=1",
            "trainer.early_stopping.patienc",
            "patience",
        ),
        (SFT, "eval.generat=true", "eval.generat", "generate"),
        (SFT, "eval.data={path: x, spilt: y}", "eval.data.spilt", "split"),
        (SFT, "distributed.stratgy=ddp", "distributed.stratgy", "strategy"),
        (GRPO, "rollout.group_siz=3", "rollout.group_siz", "group_size"),
        (GRPO, "trainer.epsilo=0.1", "trainer.epsilo", "epsilon"),
        (GRPO, "reward.positiv=1", "reward.positiv", "positive"),
        (SFT, "data=[{path: x}, {path: y, wieght: 2}]", "data.1.wieght", "weight"),
        (SFT, "eval.data=[{path: x, templat: chat}]", "eval.data.0.templat", "template"),
        (GRPO, "reward={type: weighted, rewardz: []}", "reward.rewardz", "rewards"),
        (GRPO, INSIDE["reward.rewards"][1] % "weigt", "reward.rewards.0.weigt", "weight"),
        (GRPO, INSIDE["reward.reward"][1] % "positiv", "reward.reward.positiv", "positive"),
        (GRPO, "reward={type: http, api_key: sk-1}", "reward.api_key", "api_key_env"),
    ],
)
def test_typo_at_every_depth(base: dict[str, Any], override: str, key: str, nearest: str) -> None:
    assert f"unknown key {key}: did you mean {nearest}?" in problem(override, base=base)


@given(st.sampled_from([p for p in PATHS if "." in p]), st.data())
def test_no_misspelt_key_is_accepted(path: str, data: st.DataObject) -> None:
    known = {p.rpartition(".")[2] for p in PATHS}
    section, _, key = path.rpartition(".")
    place = data.draw(st.integers(0, len(key) - 1))
    typo = key[:place] + key[place + 1 :] + data.draw(st.sampled_from(["", "x", key[place] * 2]))
    if typo in known or not typo:
        return
    base = GRPO if path.startswith(("rollout", "reward", "trainer")) else SFT
    where, override = INSIDE.get(section, (section, f"{section}.%s=1"))
    assert f"{where}.{typo}" in problem(override % typo, base=base)


def test_unknown_key_without_neighbour_lists_what_is_known() -> None:
    text = problem("length.zzz=1")
    assert "unknown key length.zzz: known keys: max_length, on_overlong" in text


@pytest.mark.parametrize("key", HINTS)
@pytest.mark.parametrize("section", ["", "trainer.", "model."])
def test_keys_of_other_frameworks_give_the_hint(key: str, section: str) -> None:
    # a key of the preference methods by now; of the others a peer's name still
    base = GRPO if (section, key) == ("trainer.", "loss_type") else SFT
    text = problem(f"{section}{key}=1", base=base)
    assert f"unknown key {section}{key}: write {HINTS[key]}" in text


@pytest.mark.parametrize(("key", "hint"), HINTS.items())
def test_hints_name_real_keys(key: str, hint: str) -> None:
    known = set(PATHS)
    named = re.findall(
        r"\b(?:model|data|trainer|length|rollout|reward|eval|distributed)\.[a-z_.]+", hint
    )
    assert [path for path in named if path not in known] == []
    assert key not in known


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ("model.epsilon=0.1", "trainer.epsilon"),
        ("trainer.group_size=3", "rollout.group_size"),
        ("trainer.max_length=512", "length.max_length"),
        ("trainer.r=3", "model.adapter.r"),
        ("trainer.lora=3", "model.lora"),
        ("max_steps=3", "trainer.max_steps"),
        ("model.learning_rate=1", "trainer.learning_rate"),
        ("model.hidden_size=64", "model.scratch.hidden_size"),
        ("trainer.strategy=fsdp", "distributed.strategy"),
        ("length.columns={}", "data.columns"),
    ],
)
def test_key_of_another_section_says_where_it_belongs(override: str, place: str) -> None:
    assert f"it belongs at {place}" in problem(override)


@pytest.mark.parametrize("base", [SFT, PRETRAIN])
def test_every_key_of_another_method_is_rejected_by_name(base: dict[str, Any]) -> None:
    method = base["trainer"]["type"]
    others = {key for name in ALGORITHMS for key in algorithm_named(name).config.model_fields}
    foreign = others - algorithm_named(method).config.model_fields.keys()
    assert "epsilon" in foreign
    for key in foreign:
        text = problem(f"trainer.{key}=1", base=base)
        assert f"trainer.{key} is a key of another trainer type, not of {method}" in text


def test_key_of_another_reward_is_rejected_by_name() -> None:
    text = problem("reward.path=x.py", base=GRPO)
    assert "reward.path is a key of another reward type, not of math_correctness" in text
    text = problem(INSIDE["reward.rewards"][1] % "path", base=GRPO)
    assert "reward.rewards.0.path is a key of another reward.rewards type, not of math_corr" in text
    text = problem("reward.weight=2", base=GRPO)
    assert "weight is not a key of reward: it belongs at reward.rewards.weight" in text


@pytest.mark.parametrize("section", ["trainer", "reward", "model"])
def test_unknown_key_with_the_name_of_a_type(section: str) -> None:
    text = problem(f"{section}.format=x", f"{section}.sft=x", base=GRPO)
    assert f"unknown key {section}.format: " in text
    assert f"unknown key {section}.sft: " in text


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("trainer.batch_size=abc", "trainer.batch_size", "'abc'"),
        ("trainer.learning_rate=fast", "trainer.learning_rate", "'fast'"),
        ("trainer.learning_rate=-1", "trainer.learning_rate", "-1"),
        ("trainer.max_steps=1.5", "trainer.max_steps", "1.5"),
        ("trainer.max_steps=0", "trainer.max_steps", "0"),
        ("trainer.logger=[swanlab]", "trainer.logger.0", "'swanlab'"),
        ("trainer.scheduler=cosin", "trainer.scheduler", "'cosin'"),
        ("model.use_lora=maybe", "model.use_lora", "'maybe'"),
        ("model.dtype=bf16", "model.dtype", "'bf16'"),
        ("model=3", "model", "3"),
        ("length.on_overlong=cut", "length.on_overlong", "'cut'"),
        ("data.max_samples=many", "data.max_samples", "'many'"),
        ("data=[{path: x}, {path: y, weight: heavy}]", "data.1.weight", "'heavy'"),
    ],
)
def test_type_error_names_key_and_value(override: str, key: str, value: str) -> None:
    assert re.search(rf"{re.escape(key)}: .*\(got {re.escape(value)}\)", problem(override))


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({k: v for k, v in SFT.items() if k != "model"}, "model is missing"),
        ({k: v for k, v in SFT.items() if k != "trainer"}, "trainer is missing"),
        (
            SFT | {"trainer": {"max_steps": 1}},
            "trainer.type is missing; expected one of pretrain, sft",
        ),
        (SFT | {"trainer": {"type": "sftt"}}, "type 'sftt' is not known; did you mean sft?"),
        (
            SFT | {"trainer": {"type": "zzz"}},
            "trainer.type 'zzz' is not known; expected one of pretrain",
        ),
        (
            GRPO | {"reward": {"type": "zzz"}},
            "reward.type 'zzz' is not known; expected one of math_correct",
        ),
        (GRPO | {"reward": {"type": "custom"}}, "reward.path is missing"),
        (
            GRPO | {"reward": {"type": "weighted", "rewards": [MATH, {"type": "formt"}]}},
            "reward.rewards.1.type 'formt' is not known; did you mean format?",
        ),
        (
            GRPO | {"reward": {"type": "weighted", "rewards": [{"weight": 1}]}},
            "reward.rewards.0.type is missing; expected one of math_correctness",
        ),
        (
            GRPO | {"reward": {"type": "weighted", "rewards": [{"type": "weighted"}]}},
            "reward.rewards.0.type 'weighted' is not known; expected one of math_correctness",
        ),
        (SFT | {"data": {"split": "train"}}, "set data.name or data.path"),
        (SFT | {"data": []}, "the mixture is empty"),
        (SFT | {"model": {}}, "give either model.name or model.scratch"),
        (SFT | {"model": {"name": "m", "scratch": {}}}, "give either model.name or model.scratch"),
    ],
)
def test_missing_parts(tree: dict[str, Any], expected: str) -> None:
    assert expected in problem(base=tree)


@pytest.mark.parametrize(
    ("base", "overrides", "expected"),
    [
        (SFT, ["rollout.group_size=2"], "sft samples no completions: remove the rollout section"),
        (PRETRAIN, ["rollout={}"], "pretrain samples no completions"),
        (SFT, ["reward.type=math_correctness"], "uses a reward only with eval.generate: true"),
        (
            SFT,
            ["reward.type=math_correctness", "eval.max_samples=3", "trainer.eval_steps=1"],
            "uses a reward only with eval.generate: true",
        ),
        (GRPO, ["reward=null"], "grpo needs a reward section"),
        (SFT, ["eval.generate=true", "trainer.eval_steps=1"], "eval.generate needs a reward"),
        (SFT, ["eval.max_samples=1"], "the eval section needs trainer.eval_steps"),
        (SFT, ["trainer.eval_steps=1"], "trainer.eval_steps needs an eval section"),
        (SFT, ["trainer.early_stopping.patience=1"], "early_stopping needs an eval section"),
        (SFT, ["trainer.num_epochs=1"], "set either trainer.num_epochs or trainer.max_steps"),
        (SFT, ["trainer.run_name=no"], "a valid string (got False): put it in quotes"),
        (SFT, ["trainer.max_steps=null"], "set either trainer.num_epochs or trainer.max_steps"),
        (SFT, ["length.on_overlong=split"], "split is only for texts"),
        (GRPO, ["length.on_overlong=truncate"], "cannot truncate prompts"),
        (
            SFT,
            ["model.lora.r=8", "model.use_lora=false"],
            "model.lora is set but model.use_lora is false",
        ),
        (SFT, ["model.lora.r=8", "model.adapter=dora"], "either model.adapter or model.lora"),
        (SFT, ["model.use_lora=false", "model.adapter=loreft"], "but model.adapter is loreft"),
        (
            SFT,
            ["model.use_lora=false", "model.adapter=lora"],
            "leave model.use_lora out, or set it",
        ),
        (SFT, ["model.use_lora=true", "model.adapter=none"], "true, but model.adapter is none"),
        (SFT, ["model.quantization=true"], "'nf4', 'fp4' or 'int8' (got True)"),
        (SFT, ["model.quantization=4"], "'nf4', 'fp4' or 'int8' (got 4)"),
        (SFT, ["model.adapter=lore"], "type 'lore' is not known; did you mean loreft?"),
        (SFT, ["model.adapter={rank: 4}"], "model.adapter.rank is a key of another"),
        (
            SFT,
            ["model.adapter={type: loreft, positions: f7-l7}"],
            "expected the first and the last",
        ),
        (SFT, ["model.adapter={type: loreft, layers: [1, 1]}"], "different layers from 0"),
        (SFT, ["model={scratch: {}, use_lora: true}"], "needs a pre-trained model"),
        (SFT, ["data.options={a: 1}"], "data.options are those of a named data set"),
    ],
)
def test_what_the_method_would_not_read_is_rejected(
    base: dict[str, Any], overrides: list[str], expected: str
) -> None:
    assert expected in problem(*overrides, base=base)


@pytest.mark.parametrize("written", ["5e-7", "5.0e-7", "0.0000005", "5E-07"])
def test_floats_in_yaml_and_overrides(tmp_path: Path, written: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        f"model: {{name: m}}\ndata: {{path: d}}\n"
        f"trainer: {{type: sft, max_steps: 1, learning_rate: {written}}}\n"
    )
    assert load_config(file).trainer.learning_rate == 5e-7
    config = load_config(file, [f"trainer.weight_decay={written}"])
    assert config.trainer.weight_decay == 5e-7
    assert isinstance(config.trainer.weight_decay, float)


def test_nested_overrides_create_sections_and_win() -> None:
    config = parse(
        "model.use_lora=true",
        "model.lora.r=8",
        "model.lora.target_modules=[q_proj, v_proj]",
        "data.columns.prompt=question",
        "trainer.max_steps=7",
        "trainer.run_name=a=b",
    )
    assert config.model.adapter.r == 8
    assert config.model.adapter.target_modules == ["q_proj", "v_proj"]
    assert config.mixture[0].columns == {"prompt": "question"}
    assert config.trainer.max_steps == 7
    assert config.trainer.run_name == "a=b"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainer.seed", "is not of the form section.key=value"),
        ("=3", "is not of the form section.key=value"),
        ("model.name.x=3", "name is not a section with keys"),
        ("data.path=[a", "the value is not valid YAML"),
    ],
)
def test_malformed_override_is_quoted(override: str, expected: str) -> None:
    text = problem(override)
    assert repr(override) in text
    assert expected in text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"model: [", "not valid YAML"),
        (b"- a\n- b\n", "must hold sections"),
        (b"", "must hold sections"),
        (b"model: \xff\xfe", "is not UTF-8 text"),
    ],
)
def test_unreadable_recipe_is_one_line_with_its_name(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=expected) as caught:
        load_config(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("base", "overrides"),
    [
        (SFT, []),
        (SFT, ["trainer.max_grad_norm=null", "trainer.adam_betas=[0.8, 0.99]"]),
        (SFT, ["eval.max_samples=null", "trainer.eval_steps=2", "eval.data={name: gsm8k}"]),
        (SFT, ["model.use_lora=true", "model.lora.r=4"]),
        (SFT, ["data=[{path: a}, {name: gsm8k, weight: 0.5, options: {path: null}}]"]),
        (PRETRAIN, ["length.on_overlong=split", "length.max_length=8"]),
        (SFT, ["model={scratch: {hidden_size: 64}}", "trainer.run_name='007'"]),
        (GRPO, ["rollout.group_size=4", "trainer.learning_rate=5e-7", "trainer.seed=3"]),
        (GRPO, ["reward={type: custom, path: r.py}", "eval={}", "trainer.eval_steps=5"]),
        (GRPO, ["reward={type: length, kind: penalty, max_length: 8, cache_length: 2}"]),
        (GRPO, [INSIDE["reward.rewards.reward"][1] % "negative"]),
        (GRPO, ["reward={type: weighted, rewards: [{type: format, pattern: x, weight: -0.5}]}"]),
    ],
)
def test_saved_config_is_runnable_and_equal(
    tmp_path: Path, base: dict[str, Any], overrides: list[str]
) -> None:
    config = parse(*overrides, base=base)
    save_config(config, tmp_path / "config.yaml")
    again = load_config(tmp_path / "config.yaml")
    assert again == config
    assert dump(again) == dump(config)


def test_saved_config_shows_defaults_and_leaves_the_unset_out(tmp_path: Path) -> None:
    save_config(parse(), tmp_path / "config.yaml")
    tree = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert tree["trainer"]["batch_size"] == 16
    assert "num_epochs" not in tree["trainer"]
    assert "lora" not in tree["model"]
    assert "rollout" not in tree


def test_null_in_a_stage_of_a_pipeline_is_null(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(SFT))
    stage = {"name": "one", "recipe": "run.yaml", "set": {"trainer.max_grad_norm": None}}
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump({"output_dir": "out", "stages": [stage]}))
    pipeline = load_pipeline(str(file))
    assert stage_config(pipeline, pipeline.stages[0], None).trainer.max_grad_norm is None


def test_typo_in_a_pipeline_file(tmp_path: Path) -> None:
    evaluate = {"reward": MATH, "splits": {"held out": {"name": "gsm8k", "spilt": "test"}}}
    tree = {"output_dir": "out", "stages": [{"name": "a", "recipe": "r"}], "evaluate": evaluate}
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(
        ValueError, match=r"unknown key evaluate\.splits\.held out\.spilt: did you mean split\?"
    ):
        load_pipeline(str(file))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: str(p.relative_to(ROOT)))
def test_recipes_parse(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    tree = yaml.safe_load(recipe.read_text())
    if "make" in tree:
        assert load_making(recipe).make.type in ("preferences", "filter")
        return
    if "stages" not in tree:
        assert load_config(recipe).trainer.type in ALGORITHMS
        return
    pipeline = load_pipeline(str(recipe))
    for i, stage in enumerate(pipeline.stages):
        config = stage_config(pipeline, stage, Path("results/before") if i else None)
        assert (config.model.name == "results/before") == bool(i)


def test_loss_type_is_a_key_of_some_and_a_peers_name_for_others() -> None:
    assert "unknown key trainer.loss_type: write trainer.reduction" in problem(
        "trainer.loss_type=dapo", base=GRPO
    )
    assert "trainer.loss_type is a key of another trainer type, not of sft" in problem(
        "trainer.loss_type=ipo"
    )


def test_a_key_written_twice_is_an_error(tmp_path):
    recipe = tmp_path / "twice.yaml"
    recipe.write_text("trainer: {type: sft}\ntrainer: {type: grpo}\n")
    with pytest.raises(ValueError, match="duplicate key trainer"):
        load_config(recipe)


def mixture() -> dict[str, Any]:
    return {"data": [{"path": "a.jsonl"}, {"path": "b.jsonl", "options": {"level": 1}}]}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "data.1.path=c.jsonl",
            [{"path": "a.jsonl"}, {"path": "c.jsonl", "options": {"level": 1}}],
        ),
        ("data.0.weight=2", [{"path": "a.jsonl", "weight": 2}, mixture()["data"][1]]),
        (
            "data.1.options.level=3",
            [{"path": "a.jsonl"}, {"path": "b.jsonl", "options": {"level": 3}}],
        ),
        ("data.0={path: d}", [{"path": "d"}, mixture()["data"][1]]),
    ],
)
def test_an_override_reaches_into_a_list(override: str, expected: Any) -> None:
    assert with_overrides(mixture(), [override]) == {"data": expected}


@pytest.mark.parametrize("index", ["2", "-1", "first", ""])
def test_an_override_of_an_item_that_is_not_there(index: str) -> None:
    for rest in ("", ".path"):
        with pytest.raises(
            ValueError, match=f"the 2 items of the list, counted from 0; got {index}$"
        ):
            with_overrides(mixture(), [f"data.{index}{rest}=c.jsonl"])


def test_weights_to_resume_from_are_the_start() -> None:
    config = parse("model.resume_from=results/run/checkpoint-3")
    assert config.model.name == "results/run/checkpoint-3"
    assert "resume_from" not in dump(config)["model"]
    with pytest.raises(ValueError, match=r"either model\.name or model\.scratch"):
        parse("model={scratch: {hidden_size: 64}, resume_from: x}")
