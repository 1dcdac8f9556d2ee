"""The command line. An error in the input is reported in one line, with exit code 2."""

from __future__ import annotations

import os
import re
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import typer

from posttrain import __version__
from posttrain.cli import (
    board,
    chat,
    data,
    export,
    generate,
    import_,
    launch,
    models,
    plan,
    runs,
    serve,
    track,
    weights,
)
from posttrain.common.disk import is_full
from posttrain.common.environment import tune_allocator
from posttrain.common.errors import SettingError
from posttrain.common.interrupt import Interrupted
from posttrain.common.secrets import hide, load_env_files

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "Cannot allocate memory")
"""What torch says of memory, of a GPU or of the machine, that is used up."""
AFTER_RANK_0 = 5.0
"""Seconds for which another rank of a machine waits, after its error in the input, to end."""

app = typer.Typer(
    help="Post-training of language models: train, evaluate, sample.\n\n"
    "Start with `posttrain doctor`, then `posttrain train RECIPE --dry-run`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
runs.add_to(app)
launch.add_to(app)
plan.add_to(app)
import_.add_to(app)
track.add_to(app)
board.add_to(app)
models.add_to(app)
generate.add_to(app)
chat.add_to(app)
serve.add_to(app)
export.add_to(app)
app.add_typer(data.app, name="data", rich_help_panel="Data")
app.add_typer(weights.app, name="models", rich_help_panel="Data")


def _version(requested: bool) -> None:
    if requested:
        print(f"posttrain {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Post-training of language models: train, evaluate, sample."""
    # before any command imports a library that reads the environment when it is imported
    recipes = [Path(word) for word in sys.argv[1:] if word.endswith((".yaml", ".yml"))]
    load_env_files(*[recipe.expanduser().parent for recipe in recipes if recipe.is_file()], Path())


def main() -> None:
    """Run a command and exit."""
    sys.excepthook = print_traceback
    tune_allocator()
    try:
        code = app(standalone_mode=False)
        if code == 130:  # typer returns this after an interrupt
            fail("interrupted", code)
        if not code:
            leave(0)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except (ValueError, OSError) as error:
        if os.environ.get("POSTTRAIN_TRACEBACK"):
            raise
        fail(as_option(error))
    except Interrupted as stop:
        print(f"interrupted: {stop}, or by the option --resume", file=sys.stderr)
        leave(stop.code)
    except KeyboardInterrupt:
        fail("interrupted", code=130)
    except Exception as error:
        usage: Any = getattr(error, "format_message", None)
        if usage is None:
            if os.environ.get("POSTTRAIN_TRACEBACK") or not (words := of_the_machine(error)):
                raise
            fail(words)
        if not usage():  # a bare `posttrain`, which has printed its help
            sys.exit(2)
        fail(usage() + without_dashes(usage()))


def print_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print the traceback of an error that is a fault of the program, without secrets."""
    print(hide("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def leave(code: int) -> None:
    """Exit, if this is a rank; a single process just ends, unless there is a code to return."""
    if "RANK" in os.environ:
        from posttrain.common import distributed

        distributed.leave(code)
    if code:
        sys.exit(code)


def of_the_machine(error: Exception) -> str:
    """Return what a machine lacks that made a library fail; empty for any other error."""
    said = str(error)
    if isinstance(error, MemoryError) or any(words in said for words in OUT_OF_MEMORY):
        asked = re.search(r"[Tt]ried to allocate ([\d.]+ (?:\w?i?B|bytes))", said)
        more = f" when {asked[1]} more were asked for" if asked else ""
        return (
            f"out of memory{more}: lower trainer.micro_batch_tokens (or --max-num-seqs), or use "
            "model.gradient_checkpointing, distributed.offload=optimizer or model.adapter=lora; "
            "--dry-run estimates the memory"
        )
    return f"the disk is full ({said.splitlines()[0]})" if is_full(error) else ""


def as_option(error: Exception) -> Exception:
    """Return the error with the option's name for the field, if the field is in no section."""
    if isinstance(error, SettingError) and error.field.isidentifier():
        return error.renamed(f"--{error.field.replace('_', '-')}")
    return error


def without_dashes(usage: str) -> str:
    """Return a hint if the unknown option is a key of a recipe with dashes in front."""
    found = re.search(r"No such option: --(\w+\.[\w.]+)", usage)
    return f" Write {found[1]}=VALUE, without the dashes." if found else ""


def fail(error: object, code: int = 2) -> None:
    """Print an error in one line and exit."""
    print(f"error: {' '.join(hide(str(error)).split())}", file=sys.stderr)
    if code == 2 and os.environ.get("LOCAL_RANK", "0") != "0":
        # the first rank that ends stops the others: the one on the console may say the same first
        time.sleep(AFTER_RANK_0)
    leave(code)
    sys.exit(code)
