"""`posttrain data preview`: rendered rows with the trained tokens coloured."""

from __future__ import annotations

from rich.text import Text
from torch import Tensor

from posttrain.algorithms.classification import ClassificationConfig
from posttrain.common.batch import Sequence, sequences_of
from posttrain.common.console import CONSOLE
from posttrain.data.kinds.labelled import labels_in
from posttrain.data.kinds.prompt import Prompt
from posttrain.data.render import Renderer
from posttrain.runs.config import Config
from posttrain.runs.data import (
    build_renderer,
    build_tokenizer,
    length_limit,
    load_mixture,
    prepare_data,
    split_off,
    table_lines,
    with_label_set,
)
from posttrain.runs.dates import with_date


def show(config: Config, num_rows: int) -> None:
    """Print the first rows as the model sees them, then the lengths of all and what is dropped."""
    mixture, eval_rows = split_off(config, load_mixture(config))
    config = with_label_set(config, mixture)
    tokenizer, name = build_tokenizer(config, mixture)
    renderer = build_renderer(with_date(config, tokenizer, None), tokenizer, name)
    data = prepare_data(config, mixture, eval_rows, renderer, length_limit(config, name))
    CONSOLE.print(
        Text.assemble(
            ("trained tokens", "black on green"),
            "  ",
            ("context", "dim"),
            "  stop tokens: ",
            " ".join(tokenizer.convert_ids_to_tokens(list(renderer.stop_token_ids))),
        )
    )
    items: list[Sequence | Prompt] = [*sequences_of(data.examples), *data.prompts]
    for number, item in enumerate(items[:num_rows], 1):
        CONSOLE.rule(f"row {number}")
        # a pipe or a file shows no colours
        brackets = CONSOLE.color_system is None or CONSOLE.no_color
        CONSOLE.print(coloured(item, renderer, brackets))
        if isinstance(config.trainer, ClassificationConfig) and isinstance(item, Sequence):
            labels = labels_in(item, config.trainer.label_set)
            CONSOLE.print(f"label: {', '.join(labels) or 'none'}")
    CONSOLE.rule()
    for line in table_lines(data.tables):
        CONSOLE.print(line, markup=False)


def _completion_mask(sequence: Sequence) -> Tensor:
    """Return the completion's tokens, [T] bool; the trained ones if no completion is marked."""
    return sequence.per_token.get("completion", sequence.loss_mask).bool()


def coloured(item: Sequence | Prompt, renderer: Renderer, brackets: bool = False) -> Text:
    """Return a row's text with the trained tokens marked; a prompt alone has none."""
    ids = item.input_ids if isinstance(item, Prompt) else item.input_ids.tolist()
    mask = [False] * len(ids) if isinstance(item, Prompt) else _completion_mask(item).tolist()
    text = Text()
    start = 0
    for end in range(1, len(ids) + 1):
        # each span is decoded as a whole: a character may be spread over several tokens
        if end == len(ids) or mask[end] != mask[start]:
            piece = renderer.tokenizer.decode(ids[start:end])
            if mask[start]:
                piece = f"[[{piece}]]" if brackets else piece
            text.append(piece, style="black on green" if mask[start] else "dim")
            start = end
    tokens = f"\n[{len(ids)} tokens, {sum(mask)} trained]"
    return text.append(tokens, style="italic")
