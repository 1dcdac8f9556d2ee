"""The registry of data sets. To add one: a file here with `load(split, ...)` and a line below."""

from collections.abc import Callable

from posttrain.data import (
    competition_math,
    fever,
    gsm8k,
    hh_rlhf,
    humaneval,
    mbpp,
    programs,
    stack_exchange_paired,
    ultrafeedback,
    word_problem_steps,
    word_problems,
)
from posttrain.data.load import Row

DATASETS: dict[str, Callable[..., list[Row]]] = {
    "fever": fever.load,
    "gsm8k": gsm8k.load,
    "hh_rlhf": hh_rlhf.load,
    "humaneval": humaneval.load,
    "math": competition_math.load,
    "mbpp": mbpp.load,
    "programs": programs.load,
    "stack_exchange_paired": stack_exchange_paired.load,
    "ultrafeedback": ultrafeedback.load,
    "word_problem_steps": word_problem_steps.load,
    "word_problems": word_problems.load,
}
