"""The console that all output goes to."""

from rich.console import Console

CONSOLE = Console(highlight=False, soft_wrap=True)
