"""The registry of data sets. To add one: a file here with `load(split, ...)` and a line below."""

from collections.abc import Callable

from posttrain.data import gsm8k, word_problems
from posttrain.data.load import Row

DATASETS: dict[str, Callable[..., list[Row]]] = {
    "gsm8k": gsm8k.load,
    "word_problems": word_problems.load,
}
