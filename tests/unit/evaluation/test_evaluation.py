"""Evaluation of completions: statistics, answers, what is sampled and counted, shots."""

from __future__ import annotations

import io
import itertools
import math
from fractions import Fraction
from functools import partial
from typing import Any

import numpy
import pytest
from conftest import shared
from rich.console import Console

from posttrain.data.render import Renderer, make_renderer
from posttrain.data.sets import fever, liar
from posttrain.evaluation import TASKS, Task, ready
from posttrain.evaluation.answers import majority, math_answer, reader_of
from posttrain.evaluation.console import lines_of, table
from posttrain.evaluation.generation import ask, powers_up_to
from posttrain.evaluation.problems import check_shots, problem_ids, to_problems, with_shots
from posttrain.evaluation.ready import Loaded, prepare_task
from posttrain.evaluation.statistics import interval, sign_flip_test, wilson
from posttrain.evaluation.tasks import Settings, find_task, rows_of
from posttrain.model.scratch import train_tokenizer
from posttrain.rollout.sampler import Rollout

MATH, FEVER = TASKS["gsm8k"].reward, TASKS["fever"].reward
ROWS = [
    {"prompt": f"{i} + 1?", "completion": f"#### {i + 1}", "answer": str(i + 1)} for i in range(4)
]


def renderer(template: str = "plain") -> Renderer:
    return make_renderer(
        train_tokenizer(["What is 1 + 1? #### 2 Question: Answer:"], 300, 64), template
    )


@pytest.mark.parametrize("data_set", [fever, liar], ids=["fever", "liar"])
def test_a_task_lists_the_labels_of_its_data_set(data_set) -> None:
    """The table of tasks repeats them, so that printing it imports no data set."""
    name = data_set.__name__.rpartition(".")[2]
    assert TASKS[name].reward == {"type": "classification", "labels": list(data_set.LABELS)}


class Says:
    """A sampler whose completions are given: texts[prompt][number of the completion]. Those that
    end in three dots are cut off."""

    def __init__(self, it: Renderer, texts: dict[str, list[str]]) -> None:
        self.it, self.texts = it, texts
        self.seeds: list[int] = []

    def update_weights(self) -> None:
        pass

    def generate(self, prompts: Any, params: Any, seeds: Any) -> list[Rollout]:
        self.seeds += seeds
        left = {prompt: iter(texts) for prompt, texts in self.texts.items()}
        found = []
        for ids in prompts:
            text = next(left[self.it.tokenizer.decode(ids)])
            reason = "length" if text.endswith("...") else "stop"
            found.append(Rollout(ids, self.it.text_ids(text), [], reason, 0))
        return found


def evaluated(
    rows: list[dict[str, Any]],
    texts: list[list[str]],
    reward: dict[str, Any] = MATH,
    shots: list[dict[str, Any]] = (),  # type: ignore[assignment]
    **settings: Any,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Result and records of a task whose completions are given."""
    it = renderer()
    shown = [str(with_shots(row["prompt"], list(shots), chat=False)) for row in rows]
    sampler: Any = Says(it, dict(zip(shown, texts)))
    chosen = Settings(num_samples=len(texts[0]), shots=len(shots), **settings)
    task = Task({"name": "word_problems", "split": "test"}, reward)
    loaded = Loaded(it, None, 100_000, {})  # type: ignore[arg-type]
    prepared = prepare_task("task", task, rows, list(shots), loaded, chosen)
    return prepared.run(sampler, None)


# --- statistics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_the_paired_test_is_that_of_a_direct_enumeration(seed: int) -> None:
    values = [Fraction((seed * 7 + i * i * 5) % 9 - 4, 2 + i % 3) for i in range(9)]
    observed = abs(sum(values))
    ways = list(itertools.product((-1, 1), repeat=len(values)))
    extreme = sum(abs(sum(s * v for s, v in zip(signs, values))) >= observed for signs in ways)
    assert sign_flip_test(values) == pytest.approx(extreme / len(ways))


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (5, 0), (3, 9), (40, 61), (7, 7)])
def test_with_one_sample_each_it_is_mcnemars(only_a: int, only_b: int) -> None:
    differences = [Fraction(1)] * only_a + [Fraction(-1)] * only_b + [Fraction(0)] * 10
    n = only_a + only_b
    tail = sum(math.comb(n, i) for i in range(min(only_a, only_b) + 1)) / 2**n
    assert sign_flip_test(differences) == pytest.approx(min(1.0, 2 * tail))


@pytest.mark.parametrize(("successes", "n"), [(0, 20), (1, 29), (81, 263), (7, 7)])
def test_wilsons_bounds_by_their_definition(successes: int, n: int) -> None:
    """Shares of which what was found is 1.96 of their own standard deviations away."""
    low, high = wilson(successes, n)
    assert low <= successes / n <= high
    assert low < high
    for bound in (low, high):
        away = 1.959964 * math.sqrt(bound * (1 - bound) / n)
        assert abs(successes / n - bound) == pytest.approx(away, abs=1e-12)


def test_intervals_have_the_problem_as_their_unit() -> None:
    assert interval([1.0, 0.0, 1.0, 1.0]) == interval([1.0, 0.0, 1.0, 1.0], 8) == wilson(3, 4)
    assert interval([0.0, 0.0], 8) == wilson(0, 2)
    assert interval([]) == [0.0, 1.0]
    # completions of a problem that are not alike at all are as good as independent ones
    assert interval([0.5] * 6, 4) == pytest.approx(wilson(12, 24))
    assert interval([0.5], 2) == pytest.approx(wilson(1, 2))
    means = [0.5, 0.25, 1.0, 0.75, 0.0, 1.0, 1.0, 0.25]
    share = sum(means) / 8
    error = math.sqrt(sum((x - share) ** 2 for x in means)) / 8
    for bound in interval(means, 4):  # Wilson's, the uncertainty scaled from the share to the bound
        away = 1.959964 * error * math.sqrt(bound * (1 - bound) / (share * (1 - share)))
        assert abs(share - bound) == pytest.approx(away, abs=1e-12)
    assert [powers_up_to(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.95])
def test_intervals_hold_the_true_share_as_often_as_they_say(share: float) -> None:
    """50 problems of 4 completions, some problems easier than others."""
    generator = numpy.random.default_rng(0)
    chances = generator.beta(share, 1 - share, (2000, 50))
    means = generator.binomial(4, chances) / 4
    bounds = [interval(row.tolist(), 4) for row in means]
    held = sum(low <= share <= high for low, high in bounds) / len(bounds)
    assert 0.92 <= held <= 0.98  # 0.88 at 2 % by the normal interval of the means


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so\n#### 1,200", "1200"),
        (r"it is $\boxed{0.5}$", "1/2"),
        ("The answer is 7.", "7"),
        ("first 3, then 12 apples", "12"),
        (r"\boxed{x + 1}", "x+1"),
        ("25 %", "25%"),
        ("I can not say", None),
    ],
)
def test_what_a_completion_votes_for(text: str, answer: str | None) -> None:
    assert math_answer(text) == answer


def test_a_majority_and_its_ties() -> None:
    assert majority(["3", "4", None, "4"]) == 1
    assert majority([None, "5", "4", "4", "5"]) == 1  # given first
    assert majority([None, None]) is None


def test_strict_is_an_answer_in_the_format_asked_for() -> None:
    numbers, labels = reader_of(MATH), reader_of(FEVER)
    assert numbers is not None
    assert labels is not None
    texts = ("#### 4", r"\boxed{4}", "The answer is 4.", "4")
    assert [numbers.in_format(text) for text in texts] == [True, True, False, False]
    assert labels.in_format(" Not enough info.")
    assert not labels.in_format("It SUPPORTS the claim.")
    assert labels.vote("It SUPPORTS the claim.") == "supports"
    assert labels.vote("SUPPORTS or REFUTES") is None
    assert reader_of(TASKS["mbpp"].reward) is None


# --- counting -------------------------------------------------------------------------------------

SAID = [
    ["#### 1", "#### 2", "#### 1", "The answer is 1."],  # answer 1
    ["#### 9", "#### 2", "#### 9", "none"],  # answer 2
    ["#### 4", "#### 3", "#### 3", "#### 4"],  # answer 3: a tie, of which 4 came first
    ["who knows", "no", "hm", "well"],  # answer 4
]


def test_pass_at_k_and_the_majority_by_hand() -> None:
    result, records = evaluated(ROWS, SAID, temperature=1.0)
    right = [3, 1, 2, 0]
    assert result["num_problems"] == 4
    assert result["num_correct"] == 6
    assert result["accuracy"] == result["pass@1"] == 6 / 16
    assert result["ci95"] == interval([n / 4 for n in right], 4)
    assert result["strict_accuracy"] == 5 / 16
    for k in (1, 2, 4):  # by trying every choice of k completions
        chances = []
        for row in range(4):
            flags = [r["correct"] for r in records if r["id"] == records[4 * row]["id"]]
            choices = list(itertools.combinations(flags, k))
            chances.append(sum(map(any, choices)) / len(choices))
        assert result[f"pass@{k}"] == pytest.approx(sum(chances) / 4)
    assert result["maj@4"] == 1 / 4  # the first problem alone
    assert result["maj@4_ci95"] == wilson(1, 4)
    assert result["parse_failures"] == 5 / 16
    assert result["verdicts"] == {"correct": 6, "wrong": 5, "unparseable_prediction": 5}
    assert result["mean_score"] == 6 / 16
    assert [record["number"] for record in records] == [0, 1, 2, 3] * 4
    assert result["outcomes"] == dict(zip(problem_ids(ROWS), ["1011", "0100", "0110", "0000"]))
    assert "best@4" not in result
    assert "pass@1" not in evaluated(ROWS, [said[:1] for said in SAID])[0]


def test_what_is_cut_off_and_what_has_no_score() -> None:
    """Shares of the completions of problems that count; those without a gold answer do not."""
    rows = [ROWS[0], ROWS[1] | {"answer": None}, ROWS[2]]
    said = [[answer, "0 and then ..."] for answer in ("#### 1", "#### 2", "#### 3")]
    result, records = evaluated(rows, said, temperature=1.0)
    assert [r["correct"] for r in records] == [True, False, None, None, True, False]
    assert (result["num_problems"], result["accuracy"]) == (2, 0.5)
    assert (result["unscored"], result["truncated"]) == (2 / 6, 0.5)
    assert list(result["outcomes"].values()) == ["10", "10"]


def test_the_best_by_a_reward_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """It prefers long completions here, and the first of equally long ones."""
    asked = []

    def build(config: Any) -> Any:
        def reward(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> Any:
            asked.append((config.path, list(zip(prompts, completions))))
            return [float(len(text)) for text in completions]

        return reward if config.type == "reward_model" else build_reward(config)

    build_reward = ready.build_reward
    monkeypatch.setattr(ready, "build_reward", build)
    said = [SAID[0], ["#### 9", "#### 2", "#### 9", "The answer is 2."], *SAID[2:]]
    result, records = evaluated(ROWS, said, temperature=1.0, best_of="rm")
    assert result["best@4"] == 2 / 4  # "The answer is 1.", and 2.; "#### 4"; "who knows"
    assert {path for path, _ in asked} == {"rm"}
    assert records[3]["reward_model"] == 16.0
    # equal completions of a problem are asked about once
    assert len(asked[0][1]) == 3 + 3 + 2 + 4


def test_completions_have_noise_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the chunks."""
    seeds = []
    for size in (256, 4, 8):
        monkeypatch.setattr(ready, "ask", partial(ask, chunk=size))
        it = renderer()
        sampler = Says(it, {row["prompt"]: said for row, said in zip(ROWS, SAID)})
        loaded = Loaded(it, None, 1000, {})  # type: ignore[arg-type]
        chosen = Settings(num_samples=4, temperature=1.0, seed=3)
        prepared = prepare_task("t", Task({"split": "x"}, MATH), ROWS, [], loaded, chosen)
        prepared.run(sampler, None)  # type: ignore[arg-type]
        seeds.append(sampler.seeds)
    assert seeds[0] == seeds[1] == seeds[2]
    assert len(set(seeds[0])) == 16


@pytest.mark.slow  # the reward itself is held to these solutions in test_code_reward.py
@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_canonical_solutions_are_right_by_the_tasks_own_path(name: str) -> None:
    it = renderer()
    task = find_task(f"{name}={shared(f'data/{name}')}")
    rows, _ = rows_of(name, task, Settings())
    sampler = Says(it, {row["prompt"]: [row["completion"]] for row in rows})
    loaded = Loaded(it, None, 100_000, {})  # type: ignore[arg-type]
    try:
        prepared = prepare_task(name, task, rows, [], loaded, Settings())
    except ValueError as error:
        if "isolation" not in str(error):
            raise
        pytest.skip(f"programs can not be run here: {error}")
    result, _ = prepared.run(sampler, None)  # type: ignore[arg-type]
    assert result["accuracy"] == 1.0
    assert result["num_problems"] == {"humaneval": 164, "mbpp": 500}[name]
    assert "strict_accuracy" not in result


@pytest.mark.parametrize(("name", "folder"), [("math500", "math"), ("fever", "fever")])
def test_reference_completions_of_real_rows_are_right(name: str, folder: str) -> None:
    task = find_task(f"{name}={shared(f'data/{folder}')}")
    rows, shots = rows_of(name, task, Settings(max_samples=20, shots=2))
    assert len(shots) == 2
    result, _ = evaluated(rows, [[row["completion"]] for row in rows], task.reward)
    assert result["accuracy"] == result["strict_accuracy"] == 1.0


# --- shots ----------------------------------------------------------------------------------------


def test_shots_are_turns_of_a_chat_or_marked_text() -> None:
    shots = check_shots(ROWS, 2, "task")
    assert with_shots("3 + 1?", shots, chat=True) == [
        {"role": "user", "content": "0 + 1?"},
        {"role": "assistant", "content": "#### 1"},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "#### 2"},
        {"role": "user", "content": "3 + 1?"},
    ]
    text = with_shots("3 + 1?", shots[:1], chat=False)
    assert text == "Question: 0 + 1?\nAnswer: #### 1\n\nQuestion: 3 + 1?\nAnswer:"
    assert with_shots("3 + 1?", [], chat=True) == "3 + 1?"
    for template in ("plain", "chat"):
        it = renderer(template)
        (with_them,), _ = to_problems(ROWS[3:], shots, it, "task", 1000)
        (without,), _ = to_problems(ROWS[3:], [], it, "task", 1000)
        assert with_them.id == without.id
        assert with_them.row == ROWS[3]
        assert len(with_them.input_ids) > len(without.input_ids)


def test_text_ends_where_the_next_question_begins() -> None:
    said = [["#### 4\n\nQuestion: 8 + 1?\nAnswer: easy\n#### 9\n\nQuestion: 2 ..."]]
    result, (record,) = evaluated(ROWS[3:], said, shots=ROWS[:2])
    assert result["accuracy"] == 1.0
    assert result["truncated"] == 0.0
    assert record["completion"] == "#### 4"
    assert evaluated(ROWS[3:], said)[0]["accuracy"] == 0.0  # without shots nothing is cut


def test_shots_that_can_not_be_shown() -> None:
    with pytest.raises(ValueError, match="shots: humaneval has no split to take them from"):
        rows_of("humaneval", find_task(f"humaneval={shared('data/humaneval')}"), Settings(shots=1))
    with pytest.raises(ValueError, match="a few-shot example is also among the problems"):
        to_problems(ROWS, ROWS[:1], renderer(), "task", 1000)
    with pytest.raises(ValueError, match=r"shots: expected at most 4 \(rows of task\), got 5"):
        check_shots(ROWS, 5, "task")
    with pytest.raises(ValueError, match="row 2: a shot needs a prompt and a completion"):
        check_shots([ROWS[0], {"prompt": "a"}], 2, "task")


def test_prompts_without_room_are_left_out_and_counted() -> None:
    longer = ROWS[0] | {"prompt": "and again " * 40}
    problems, dropped = to_problems([*ROWS, longer], [], renderer(), "task", 40)
    assert (len(problems), dropped) == (4, 1)
    assert [p.id for p in problems] == problem_ids(ROWS)
    longest = max(len(p.input_ids) for p in problems)
    assert to_problems(ROWS, [], renderer(), "task", longest)[1] == 0
    with pytest.raises(ValueError, match=r"no prompt fits: the shortest has \d+ tokens, and the"):
        to_problems([longer], [], renderer(), "task", 40)


def test_a_template_asks_and_leaves_the_problem_as_it_is() -> None:
    for template in ("plain", "chat"):
        it = renderer(template)
        (plain,), _ = to_problems(ROWS[3:], ROWS[:1], it, "task", 1000)
        (asked,), _ = to_problems(ROWS[3:], ROWS[:1], it, "task", 1000, "Q {prompt}")
        assert asked.id == plain.id
        assert asked.row == ROWS[3]
        text = it.tokenizer.decode(asked.input_ids)
        assert "Q 0 + 1?" in text, "the shot is asked in the same way"
        assert text.replace("Q ", "") == it.tokenizer.decode(plain.input_ids)
    with pytest.raises(ValueError, match=r"task, row 1: the prompt template 'claim' needs the col"):
        to_problems(ROWS, [], renderer(), "task", 1000, "claim")


def test_problems_have_an_id_of_their_own() -> None:
    ids = problem_ids([ROWS[0], ROWS[1], dict(reversed(ROWS[0].items()))])
    assert ids[2] == f"{ids[0]}-2"
    assert ids[0] != ids[1]


def test_what_is_shown_fits_into_80_columns() -> None:
    result = {
        "accuracy": 0.5,
        "ci95": [0.1, 0.9],
        "num_problems": 10_000,
        "truncated": 1.0,
        "parse_failures": 0.25,
        "unscored": 0.0,
        "mean_score": 0.5,
        "temperature": 1.0,
        "strict_accuracy": 0.25,
        "strict_accuracy_ci95": [0.0, 0.5],
        "pass@2": 0.75,
    }
    console = Console(width=80, file=io.StringIO())
    console.print(table({"word_problems_harder": result, "crows_pairs": {"num_pairs": 3}}))
    out = console.file.getvalue()  # type: ignore[attr-defined]
    cells = ["word_problems_harder", "10,000", "50.0 %", "10.0 to 90.0", "100.0 %", "25.0 %"]
    assert all(cell in out for cell in cells)
    assert "…" not in out
    assert "crows_pairs" not in out
    lines = [line.split() for line in lines_of("task", result)]
    assert lines == [
        ["task", "strict_accuracy", "0.2500", "[0.0000,", "0.5000]"],
        ["task", "pass@2", "0.7500"],
    ]
    assert lines_of("task", {"unscored": 0.5}) != []
