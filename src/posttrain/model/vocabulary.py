"""A tokenizer's tokens and the rows that the embedding and the output head have for them."""

from __future__ import annotations

from typing import Any

import torch

from posttrain.model.config import ModelConfig
from posttrain.model.folder import ADAPTER_PREFIX
from posttrain.model.quirks import are_tied


def num_tokens(tokenizer: Any) -> int:
    """Return the number of rows that a tokenizer's ids need."""
    return 1 + max(tokenizer.get_vocab().values(), default=-1)


def num_rows(model: Any) -> int:
    """Return the number of tokens that a model's embedding has rows for."""
    return int(model.get_input_embeddings().weight.shape[0])


def check_ids(model: Any, highest: int, tokenizer: Any = None) -> None:
    """Raise ValueError if the highest id of the data has no row in the model's embedding."""
    if highest >= (rows := num_rows(model)):
        token = "" if tokenizer is None else f" {tokenizer.convert_ids_to_tokens(highest)}"
        raise ValueError(
            f"the tokenizer has more tokens than the model has rows, {rows}: the token{token} with "
            f"the id {highest} has none; train with model.resize_embeddings: true, or use the "
            "tokenizer that belongs to the model"
        )


def size_notes(model: Any, tokenizer: Any) -> list[str]:
    """Return a line if the tokenizer and the embedding differ in size, else none."""
    rows, tokens = num_rows(model), num_tokens(tokenizer)
    if tokens == rows:
        return []
    rest = "the other rows belong to no token"
    if tokens > rows:
        rest = "this data needs none of the tokens without a row"
    return [
        f"note: the tokenizer has {tokens:,} tokens and the model {rows:,} rows for them: {rest}"
    ]


def vocabulary_names(model: Any) -> list[str]:
    """Return the names of a causal LM's input embedding and, unless tied, of its output head."""
    found = [model.get_input_embeddings()]
    if not are_tied(model):
        found.append(model.get_output_embeddings())
    return [name for name, module in model.named_modules() if any(module is x for x in found)]


def rows_for(config: ModelConfig, tokenizer: Any) -> int:
    """Return the number of rows that model.resize_embeddings gives a tokenizer."""
    multiple = config.resize_multiple or 1
    return -(-num_tokens(tokenizer) // multiple) * multiple


def check_rows_of_adapter(model: Any, config: ModelConfig, name: str, tokenizer: Any) -> None:
    """Raise ValueError if new rows would not be saved: an adapter saves only what it trains."""
    if not config.resize_embeddings or tokenizer is None:
        return
    if (rows := rows_for(config, tokenizer)) != (have := num_rows(model.get_base_model())):
        raise ValueError(
            f"model.resize_embeddings: the adapter {name} has {have} rows and would not save "
            f"others ({rows} for this tokenizer): merge it into its base first"
        )


def resize(model: Any, config: ModelConfig, tokenizer: Any, seed: int) -> bool:
    """Give the embedding and the output head a row for each token; return whether they changed.

    Nothing is changed without model.resize_embeddings or without a tokenizer. The number of rows is
    rounded up to a multiple of model.resize_multiple. New rows are drawn around the mean of the old
    ones (Hewitt 2021), with the seed; torch's own state is kept.
    """
    if not config.resize_embeddings or tokenizer is None:
        return False
    if (rows := rows_for(config, tokenizer)) == num_rows(model):
        return False
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model.resize_token_embeddings(rows)
    torch.set_rng_state(state)
    return True


def resize_for(model: Any, name: str, base: str, shapes: dict[str, list[int]]) -> None:
    """Give the base as many rows as the adapter's embedding and output head have.

    Raises ValueError if the adapter holds only one of them and they are not the same matrix.
    """
    rows = {}
    modules = vocabulary_names(model) if model.get_output_embeddings() is not None else []
    for module in modules:
        for end in (".weight", ".modules_to_save.weight"):
            if (shape := shapes.get(f"{ADAPTER_PREFIX}{module}{end}")) is not None:
                rows[module] = shape[0]
    if not rows or set(rows.values()) == {num_rows(model)}:
        return
    if len(set(rows.values())) > 1 or len(rows) < len(modules):
        raise ValueError(
            f"model.name: {name} does not fit its base {base}: "
            f"{', '.join(f'{m} has {n} rows' for m, n in rows.items())} in the adapter, and "
            f"{num_rows(model)} in the base"
        )
    model.resize_token_embeddings(next(iter(rows.values())), mean_resizing=False)
