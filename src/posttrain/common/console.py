"""The console that all output goes to."""

import warnings

from rich.console import Console

IN_NOTEBOOK = Console().is_jupyter
"""Whether a Jupyter kernel runs this process."""

# In a notebook rich would show every line as an output of its own, and a progress bar only with
# ipywidgets; as text with colours, all lines of a cell are one output.
CONSOLE = Console(
    highlight=False,
    soft_wrap=True,
    force_jupyter=False,
    color_system="standard" if IN_NOTEBOOK else "auto",
)

if IN_NOTEBOOK:  # transformers loads tqdm, which misses ipywidgets and then does without
    warnings.filterwarnings("ignore", message="IProgress not found")
