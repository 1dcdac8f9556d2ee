"""The console that everything is printed on."""

from rich.console import Console

CONSOLE = Console(highlight=False, soft_wrap=True)
