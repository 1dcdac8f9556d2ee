"""Notes that are printed before a run: what a user might not expect of it."""

from __future__ import annotations

from posttrain.common.batch import Example
from posttrain.data.kinds.prompt import Prompt
from posttrain.data.origin import downloaded
from posttrain.runs.config import Config
from posttrain.runs.data import Data, eval_label, eval_sections


def notes(config: Config, data: Data) -> list[str]:
    """Return all notes about a run."""
    return [*local_copies(config), *other_prompts(config), *trained_on(config, data)]


def local_copies(config: Config) -> list[str]:
    """Return a note for each named data set that is read from where it was downloaded to."""
    parts = [*config.mixture, *(eval_sections(config) if config.eval is not None else ())]
    names = dict.fromkeys(part.name for part in parts if part.name and part.path is None)
    folders = [(name, downloaded(name)) for name in names]
    return [f"note: {name} is read from {folder}" for name, folder in folders if folder]


def other_prompts(config: Config) -> list[str]:
    """Return a note if the evaluation uses a prompt template that no training row has."""
    trained = {section.prompt_template for section in config.mixture}
    if config.eval is None:
        return []
    separate = config.eval.has_rows and config.eval.held_out is None
    evaluated: dict[str, str | None] = {
        s.label: s.prompt_template for s in (eval_sections(config) if separate else ())
    }
    evaluated |= dict.fromkeys(config.eval.tasks, None)
    names = [name for name, template in evaluated.items() if template not in trained]
    if not names:
        return []
    return [
        f"note: {', '.join(names)}: evaluated with another prompt template than the training rows "
        f"({', '.join(sorted(t or 'none' for t in trained))})"
    ]


def trained_on(config: Config, data: Data) -> list[str]:
    """Return a note if rows of the evaluation are also trained on, token for token."""
    if data.eval_examples:
        trained = {_key(example) for example in data.examples}
        shared, total = sum(_key(x) in trained for x in data.eval_examples), len(data.eval_examples)
    else:
        trained = {_key(prompt) for prompt in data.prompts}
        shared, total = sum(_key(x) in trained for x in data.eval_prompts), len(data.eval_prompts)
    if not shared:
        return []
    return [
        f"note: {shared:,} of the {total:,} evaluation rows ({eval_label(config)}) are also "
        "trained on: they do not show how the model does on new ones"
    ]


def _key(row: Example | Prompt) -> int:
    """Return a hash of the tokens of a prompt or of all sequences of an example."""
    if isinstance(row, Prompt):
        return hash(tuple(row.input_ids))
    return hash(tuple(s.input_ids.numpy().tobytes() for s in row))
