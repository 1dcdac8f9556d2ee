"""Process reward models: the loss, the rows, the tokens at which steps end, the folder, the
reward."""

from __future__ import annotations

import json
import math
from itertools import chain, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_render import TOKENIZERS, build, renderer, text
from test_rewards import make
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from posttrain.algorithms.base import algorithm_named
from posttrain.common.batch import Batch, Sequence, pack
from posttrain.data.kinds.steps import steps_of
from posttrain.data.kinds.steps import to_examples as to_steps
from posttrain.data.render import make_renderer
from posttrain.model.folder import STEPS_FILE, checkpoints_in, saved_separator
from posttrain.model.forward import Output, forward
from posttrain.rewards.reward_model import COMBINE
from posttrain.rewards.scoring import score
from posttrain.runs.config import parse_config
from posttrain.runs.data import Data, texts_of
from posttrain.runs.train import train
from posttrain.training.trainer import Trainer

METHOD = "process_reward_model"
LENGTHS = [5, 3, 6]
ENDS, LABELS = [2, 4, 7, 9, 10, 13], [1, 0, 1, 1, 0, 0]  # places in the packed row


def batch() -> Batch:
    rows = [
        Sequence(torch.ones(n, dtype=torch.int64), torch.zeros(n, dtype=torch.bool))
        for n in LENGTHS
    ]
    whole = pack(rows)
    whole.loss_mask[ENDS] = True
    whole.per_token["label"] = torch.zeros(14).double()
    whole.per_token["label"][ENDS] = torch.tensor(LABELS).double()
    return whole


def loss_of(values: torch.Tensor) -> Any:
    """The loss on values [T] of the states after each token; its other tensors are never read."""
    zeros = torch.zeros(14)
    out = Output(zeros, values=zeros + 7, scores=values, last_values=zeros[:3] + 7)
    return algorithm_named(METHOD).loss(out, batch(), tiny.config_of(METHOD))


def drawn() -> torch.Tensor:
    return torch.randn(14, generator=torch.Generator().manual_seed(0)).double()


# --- the loss -------------------------------------------------------------------------------------


def test_loss_written_out():
    values = drawn().requires_grad_()
    loss = loss_of(values)
    p = 1 / (1 + torch.exp(-values))
    expected = -sum(torch.log(p[t] if y else 1 - p[t]) for t, y in zip(ENDS, LABELS))
    assert set(loss.terms) == {"token"}
    assert float(loss.terms["token"].detach()) == pytest.approx(float(expected.detach()))
    found, wanted = (torch.autograd.grad(x, values)[0] for x in (loss.terms["token"], expected))
    torch.testing.assert_close(found, wanted)
    assert found.nonzero()[:, 0].tolist() == ENDS
    metrics = {name: float(value) / float(n) for name, (value, n) in loss.metrics.items()}
    at = p.detach()[ENDS].tolist()
    assert metrics == {
        "accuracy": pytest.approx(sum((x > 0.5) == y for x, y in zip(at, LABELS)) / 6),
        "probability/right": pytest.approx((at[0] + at[2] + at[3]) / 3),
        "probability/wrong": pytest.approx((at[1] + at[4] + at[5]) / 3),
    }


def test_loss_by_hand():
    """Odds of 3 to 1 for each step: -ln 3/4 for the three right ones, -ln 1/4 for the others."""
    loss = loss_of(torch.full((14,), math.log(3)).double())
    assert float(loss.terms["token"]) == pytest.approx(3 * math.log(4 / 3) + 3 * math.log(4))
    accuracy, count = loss.metrics["accuracy"]
    assert float(accuracy) / count == 0.5


def test_gradient_by_finite_differences():
    values = drawn().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(values).terms["token"], values)
    step = 1e-6
    for t in range(14):
        shift = torch.zeros(14).double()
        shift[t] = step
        up, down = (float(loss_of(values.detach() + s).terms["token"]) for s in (shift, -shift))
        assert (up - down) / (2 * step) == pytest.approx(float(gradient[t]), rel=1e-5, abs=1e-8)


def test_equals_the_loss_of_a_classifier_of_tokens_with_two_classes():
    """What TRL's trainer minimises is transformers' loss for token classification: a softmax of two
    logits is the sigmoid of their difference."""
    from transformers.loss.loss_utils import ForTokenClassification

    logits = torch.stack([drawn(), drawn().flip(0)], -1).float().requires_grad_()
    labels = torch.full((14,), -100)
    labels[ENDS] = torch.tensor(LABELS)
    theirs = ForTokenClassification(logits[None], labels[None], SimpleNamespace(num_labels=2))
    difference = (logits[:, 1] - logits[:, 0]).detach().requires_grad_()
    ours = loss_of(difference).terms["token"] / len(ENDS)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-6)
    (wanted,) = torch.autograd.grad(theirs, logits)
    (found,) = torch.autograd.grad(ours, difference)
    torch.testing.assert_close(found, wanted[:, 1])
    torch.testing.assert_close(-found, wanted[:, 0])


def test_a_batch_of_one_kind_has_no_probability_of_the_other():
    whole = batch()
    whole.per_token["label"][:] = 1.0
    out = Output(torch.zeros(14), scores=drawn())
    loss = algorithm_named(METHOD).loss(out, whole, tiny.config_of(METHOD))
    assert float(loss.metrics["probability/wrong"][1]) == 0


def test_step_0():
    trainer = tiny.trainer_of(METHOD, tiny.models())
    torch.nn.init.zeros_(trainer.models.policy.head.weight)
    totals = trainer.update(tiny.raw_batch(trainer.algorithm, trainer.models))
    assert totals["loss"][0] / totals["loss"][1] == pytest.approx(math.log(2), rel=1e-5)
    assert totals["probability/right"][0] == pytest.approx(totals["probability/right"][1] / 2)


# --- tokens ---------------------------------------------------------------------------------------

steps = st.lists(text.filter(lambda s: s.strip() != ""), min_size=1, max_size=4)


def marked(sequence: Sequence) -> list[list[int]]:
    """The ids up to each marked token, from the one before on; the first begin with the prompt."""
    ends = [-1, *sequence.loss_mask.nonzero()[:, 0].tolist()]
    return [sequence.input_ids[a + 1 : b + 1].tolist() for a, b in pairwise(ends)]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=40)
@given(prompt=text, steps=steps, separator=st.sampled_from(["\n", "\n\n", " ;; ", "ки"]))
def test_the_mask_marks_exactly_the_ends_of_steps(
    name: str, prompt: str, steps: list[str], separator: str
) -> None:
    it, tokenizer = renderer(name), TOKENIZERS[name]
    if name == "plain" and not prompt:
        return
    sequence = it.step_sequence({"prompt": prompt, "completions": steps}, separator)
    runs = marked(sequence)
    prompt_ids = it.prompt_ids({"prompt": prompt})
    assert runs[0][: len(prompt_ids)] == prompt_ids
    runs[0] = runs[0][len(prompt_ids) :]
    assert len(runs) == len(steps)
    for run, step in zip(runs[:-1], steps):
        assert tokenizer.decode(run) == step + separator
    assert runs[-1][-1] == it.turn_end
    assert it.decode(runs[-1]) == steps[-1]
    # what follows the stop token is the template's
    rest = sequence.input_ids[sum(map(len, runs)) + len(prompt_ids) :].tolist()
    whole = it.training_sequence({"prompt": prompt, "completion": separator.join(steps)})
    assert whole.input_ids.tolist()[len(whole) - len(rest) :] == rest
    assert not whole.loss_mask[len(whole) - len(rest) :].any()


SOLUTION = ["Tom has 3*4 = 12 apples.", "So (he) has 12-5 = 7 left!", "#### 7"]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("separator", ["\n", "\n\n"])
def test_lines_have_the_tokens_that_the_whole_text_has(name, separator):
    """So a model is asked about the tokens that another samples."""
    it = renderer(name)
    found = it.step_sequence({"prompt": "How many?", "completions": SOLUTION}, separator)
    whole = it.training_sequence({"prompt": "How many?", "completion": separator.join(SOLUTION)})
    assert torch.equal(found.input_ids, whole.input_ids)
    assert found.loss_mask.sum() == 3
    assert not (found.loss_mask & ~whole.loss_mask).any()


def test_earlier_turns_belong_to_the_prompt():
    it = renderer("chatml")
    prompt = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "earlier"},
        {"role": "user", "content": "b"},
    ]
    sequence = it.step_sequence({"prompt": prompt, "completions": ["c", "d"]}, "\n")
    first, second = marked(sequence)
    assert first[: len(it.prompt_ids({"prompt": prompt}))] == it.prompt_ids({"prompt": prompt})
    assert TOKENIZERS["chatml"].decode(first).endswith("assistant\nc\n")
    assert it.decode(second) == "d"


def with_template(content: str) -> Any:
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ CONTENT }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ).replace("CONTENT", content)
    added = ["<|im_start|>", "<|im_end|>"]
    return make_renderer(build(added, eos_token="<|im_end|>", chat_template=template))


def test_a_template_that_trims_what_is_said():
    it = with_template("m['content'] | trim")
    for steps in ([" a ", " b "], [" a "]):
        runs = marked(it.step_sequence({"prompt": "q", "completions": steps}, "\n"))
        assert len(runs) == len(steps)
        trimmed = "\n".join(steps).strip()
        assert it.tokenizer.decode(list(chain(*runs))).endswith(f"assistant\n{trimmed}<|im_end|>")


def test_a_template_that_changes_what_is_said():
    it = with_template("m['content'] | upper")
    with pytest.raises(ValueError, match="template changes the completion"):
        it.step_sequence({"prompt": "q", "completions": ["a", "b"]}, "\n")


# --- rows -----------------------------------------------------------------------------------------

ROW = {"prompt": "q", "completions": ["a", "b c", "d"], "labels": [True, False, False]}


def converted(*rows: dict[str, Any], limit: int = 64, policy: Any = "error") -> Any:
    return to_steps(list(rows), renderer("own"), "set", limit, policy, "\n")


def test_labels_stand_where_the_mask_does():
    other = ROW | {"completions": ["e"], "labels": [True]}
    examples, table = converted(ROW, other)
    (first,), (second,) = examples
    assert [len(marked(row)) for row in (first, second)] == [3, 1]
    assert first.per_token["label"][first.loss_mask].tolist() == [1.0, 0.0, 0.0]
    assert second.per_token["label"][second.loss_mask].tolist() == [1.0]
    for row in (first, second):
        assert (row.per_token["label"][~row.loss_mask] == 0).all()
    assert (table.kept, table.trained_tokens) == (2, 4)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"labels": [True]}, "expected one label per step, got 1 for 3 steps"),
        ({"labels": [True, 1, False]}, "labels must be a list of true and false; got .*True, 1"),
        ({"labels": ["+", "-", "+"]}, "labels must be a list of true and false"),
        ({"labels": True}, "labels must be a list of true and false; got 'True'"),
        ({"completions": "a b"}, "completions must be a list of strings; got 'a b'"),
        ({"completions": ["a", 2, "b"]}, "completions must be a list of strings"),
        ({"completions": [], "labels": []}, "completions is empty"),
        ({"completions": ["a", " \n", "b"]}, "step 2 of completions is empty"),
        ({"completions": ["a", "b\nc", "d"]}, "a step contains '\\\\n'.*trainer.step_separator"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": 3}, "prompt must be a string"),
    ],
)
def test_malformed_rows(change, problem):
    with pytest.raises(ValueError, match=f"^set, row 2: .*{problem}") as caught:
        to_steps([ROW, ROW | change], renderer("plain"), "set", 64, "error", "\n")
    assert "\n" not in str(caught.value)


def test_missing_columns():
    row = {"prompt": "q", "completion": "a", "label": True}
    with pytest.raises(ValueError, match=r"columns prompt\+completions\+labels; got prompt, comp"):
        converted(row)


def test_a_separator_that_overlaps_with_a_step_is_refused():
    row = {"prompt": "q", "completions": ["a\n", "b"], "labels": [True, True]}
    with pytest.raises(ValueError, match="a step contains"):
        to_steps([row], renderer("own"), "set", 64, "error", "\n\n")


def test_overlong_rows():
    long = ROW | {"completions": ["a", "b" * 40], "labels": [True, False]}
    first = ROW | {"completions": ["b" * 40], "labels": [True]}
    kept, table = converted(ROW, long, first, limit=30, policy="truncate")
    assert [int(row.loss_mask.sum()) for (row,) in kept] == [3, 1]
    assert len(kept[1][0]) == 30
    assert len(kept[1][0].per_token["label"]) == 30
    assert (table.truncated, table.reasons) == (1, {"without a step, after the cut": 1})
    kept, table = converted(ROW, long, first, limit=30, policy="drop")
    assert (len(kept), table.reasons) == (1, {"overlong": 2})
    with pytest.raises(ValueError, match="set, row 2: the row has"):
        converted(ROW, long, limit=30)


def test_other_labels_are_other_data():
    hashes = {
        Data(converted(ROW | {"labels": labels})[0], [], [], [], []).hash()
        for labels in ([True, True, True], [True, True, False], [False, True, True])
    }
    assert len(hashes) == 3


def test_a_tokenizer_is_trained_on_the_steps():
    assert texts_of(ROW) == ["q", "a", "b c", "d"]


def test_steps_of_a_completion():
    assert steps_of("a\n\n b\n \nc\n", "\n") == ["a", " b", "c"]
    assert steps_of(" \n", "\n") == []


# --- the folder, and the reward -------------------------------------------------------------------


def trained(folder: Path, lora: bool = False, method: str = METHOD, **keys: Any) -> Path:
    tree = tiny.run_config(folder, method, learning_rate=1e-2, **keys)
    if lora:
        base = train(parse_config(tiny.run_config(folder / "base", "sft", max_steps=2), "test"))
        tree["model"] = {"name": str(checkpoints_in(base)[-1]), "use_lora": True, "lora": {"r": 4}}
    tree["model"]["device"] = "cpu"  # compared with other libraries there
    return train(parse_config(tree, "test"))


PROMPTS = ["1 and 2?", "4 and 5?", "4 and 5?", "1 and 2?"]
COMPLETIONS = ["1 + 2\n3", "4 + 5\n\n12 maybe\n4 + 5\n9", "9", "\n"]


@pytest.mark.parametrize("lora", [False, True])
def test_loads_elsewhere_and_says_the_same_of_every_step(lora, tmp_path, monkeypatch):
    kept = {}
    fit = Trainer.fit

    def keep(self):
        fit(self)
        self.models.policy.eval()
        kept["policy"] = self.models.policy
        kept["batch"], _ = self.source.next_batch()

    monkeypatch.setattr(Trainer, "fit", keep)
    folder = checkpoints_in(trained(tmp_path, lora))[-1]
    assert saved_separator(folder) == "\n"
    whole = kept["batch"]
    with torch.no_grad():
        ours = forward(kept["policy"], whole, head=True).scores
    if lora:
        from peft import PeftModel

        base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        model = PeftModel.from_pretrained(model, folder).merge_and_unload()
    else:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder, output_loading_info=True
        )
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
    model.eval()

    def logits(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return model.score(model.model(torch.tensor([ids])).last_hidden_state)[0, :, 0]

    theirs = torch.cat([logits(ids.tolist()) for ids in whole.input_ids.split(whole.lengths)])
    torch.testing.assert_close(theirs[whole.loss_mask], ours[whole.loss_mask], rtol=1e-4, atol=1e-5)
    assert theirs[whole.loss_mask].std() > 0
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)  # outside the mask too
    # the last step is read where a reward model of whole completions is
    ends = whole.cu_seqlens[1:].long() - 1
    assert whole.loss_mask[ends].all()

    # and as a reward, with the tokens and the probabilities worked out here
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = []
    for prompt, completion in zip(PROMPTS[:3], COMPLETIONS):
        lines = [line for line in completion.split("\n") if line]
        pieces = [*(line + "\n" for line in lines[:-1]), lines[-1] + "<|end|>"]
        ids = tokenizer(f"<|user|>{prompt}<|end|><|assistant|>")["input_ids"]
        ends = []
        for piece in pieces:
            ids = [*ids, *tokenizer(piece)["input_ids"]]
            ends.append(len(ids) - 1)
        expected.append(logits(ids)[ends].sigmoid().tolist())
    assert [len(p) for p in expected] == [2, 4, 1]
    by_hand = {
        "product": [math.prod(p) for p in expected],
        "min": [min(p) for p in expected],
        "mean": [sum(p) / len(p) for p in expected],
        "last": [p[-1] for p in expected],
    }
    for how, values in by_hand.items():
        for tokens in (16384, 1):  # together, and each in a pass of its own
            settings = {"path": str(folder), "steps": how, "micro_batch_tokens": tokens}
            reward = make(type="reward_model", dtype="float32", **settings)
            found = score(reward, PROMPTS, COMPLETIONS, [[1]] * 4, [{}] * 4)
            assert found == pytest.approx([*values, 0.0], abs=1e-5), how


def test_combining_by_hand():
    p = [0.5, 0.8, 0.25]
    found = {how: combine(p) for how, combine in COMBINE.items()}
    assert found == pytest.approx({"product": 0.1, "min": 0.25, "mean": 1.55 / 3, "last": 0.25})


def test_the_separator_is_the_trainers(tmp_path):
    folder = checkpoints_in(trained(tmp_path, max_steps=1, step_separator=" ;; "))[-1]
    reward = make(type="reward_model", path=str(folder), steps="product", dtype="float32")
    two, one = score(reward, ["q"] * 2, ["1 ;; 2", "1\n2"], [[1]] * 2, [{}] * 2)
    alone = make(type="reward_model", path=str(folder), steps="min", dtype="float32")
    assert score(alone, ["q"], ["1\n2"], [[1]], [{}]) == [one], "a step more than there is"
    assert score(alone, ["q"], ["1 ;; 2"], [[1]], [{}])[0] > two


def test_what_scores_steps_is_not_taken_for_what_scores_completions(tmp_path):
    process = trained(tmp_path / "process", max_steps=1)
    with pytest.raises(
        ValueError, match=r"is a process reward model, .* set reward.steps to one of prod"
    ):
        make(type="reward_model", path=str(process))
    whole = trained(tmp_path / "whole", method="reward_model", max_steps=1)
    assert not (checkpoints_in(whole)[-1] / STEPS_FILE).exists()
    with pytest.raises(ValueError, match=r"reward.steps: .* is not a process reward model"):
        make(type="reward_model", path=str(whole), steps="min")
    with pytest.raises(ValueError, match="steps"):
        make(type="reward_model", path=str(process), steps="max")


def test_a_sequence_that_is_too_long_is_refused_not_cut(tmp_path):
    folder = trained(tmp_path, max_steps=1)
    reward = make(type="reward_model", path=str(folder), steps="min", max_length=12)
    with pytest.raises(ValueError, match=r"row 2 has .* tokens, but the reward model"):
        score(reward, ["1"] * 2, ["1\n2", "1\n2\n3\n4\n5\n6\n7"], [[1]] * 2, [{}] * 2)


def test_training_goes_on_from_a_process_reward_model(tmp_path):
    from posttrain.runs.plan import plan

    folder = checkpoints_in(trained(tmp_path))[-1]
    tree = tiny.run_config(tmp_path / "more", METHOD)
    tree["model"] = {"name": str(folder)}
    run = plan(parse_config(tree, "test"))
    assert run.models.policy.head.weight.abs().max() > 0


def test_learns_its_steps_and_evaluates_on_others(tmp_path):
    tree = tiny.run_config(tmp_path, METHOD, learning_rate=1e-2, max_steps=60, eval_steps=60)
    tree["eval"] = {"data": tree["data"]}
    run = train(parse_config(tree, "test"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert lines[-1]["eval_accuracy"] == 1.0
    assert lines[-1]["eval_probability/right"] > 0.9
    assert lines[-1]["eval_probability/wrong"] < 0.1
