"""Draw the picture of the layers in docs/architecture.md.

    python scripts/layers.py

One row for each folder of src/posttrain, the lowest at the bottom. A test holds the names to the
order of the layers, and the file to what is drawn here.
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "layers.svg"
BLUE, YELLOW, ORANGE, GREEN, GREY = "#ddf4ff", "#fff8c5", "#ffe8d6", "#dafbe1", "#eef1f4"
INK, SOFT, LINE, FRAME = "#1b1f24", "#424a53", "#57606a", "#d0d7de"
LAYERS = {
    "common": (GREY, "batch, ranks, files, HTTP, seeds, registries"),
    "config": (GREY, "what a section of a recipe is"),
    "sandbox": (GREY, "programs that a model wrote"),
    "tracking": (GREY, "metrics, console, trackers, report"),
    "model": (GREEN, "the network: load, run, heads, read and write folders"),
    "data": (GREEN, "rows to token ids and masks; kinds of rows, data sets"),
    "rewards": (GREEN, "completions to scores: rules, code, models, servers"),
    "algorithms": (ORANGE, "a method: its keys, its loss, its preparation"),
    "rollout": (ORANGE, "prompts to scored completions; the sampler, engines"),
    "training": (ORANGE, "the loop, optimiser, checkpoints, sharding"),
    "evaluation": (YELLOW, "tasks, the one evaluator, scores, statistics"),
    "serving": (YELLOW, "a model behind OpenAI's routes; the chat page"),
    "runs": (BLUE, "one run: config, plan, train; series, the Python API"),
    "sizing": (BLUE, "memory, traffic and time of a run on ranks that are not there"),
    "board": (BLUE, "a local web page over run folders"),
    "export": (BLUE, "files for other programs: merged, GGUF, model card, hub"),
    "imports": (BLUE, "other frameworks' configs as recipes"),
    "cli": (BLUE, "the commands; the only layer that says --options"),
}
"""Colour and content of each layer, the lowest first."""
TOP, STEP, HEIGHT, LEFT, WIDTH = 64, 46, 40, 24, 650  # pixels
FONT = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"
COUNTED = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
COUNTED += " fifteen sixteen seventeen eighteen nineteen twenty"


def text(x: int, y: int, size: int, weight: int, colour: str, content: str) -> str:
    """Return a line of text that starts at a point."""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" fill="{colour}" '
        f'text-anchor="start">{escape(content)}</text>'
    )


def picture() -> str:
    """Return the picture as SVG."""
    height = TOP + STEP * len(LAYERS) + 24
    last = TOP + STEP * len(LAYERS) - 20
    number = COUNTED.split()[len(LAYERS)].capitalize()
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" role="img" '
        f'aria-labelledby="t d" font-family="{FONT}">',
        '<title id="t">The layers of posttrain</title>',
        f'<desc id="d">{number} folders, one above the other. Each imports only from those below '
        "it.</desc>",
        f'<rect width="760" height="{height}" fill="#ffffff"/>',
        text(24, 34, 18, 600, INK, "Layers: a folder imports only from the folders below it"),
    ]
    for place, (name, (colour, content)) in enumerate(reversed(LAYERS.items())):
        y = TOP + STEP * place
        lines += [
            f'<rect x="{LEFT}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{colour}" '
            f'stroke="{FRAME}"/>',
            text(LEFT + 18, y + 26, 16, 600, INK, name),
            text(LEFT + 144, y + 26, 14, 400, SOFT, content),
        ]
    middle = (TOP + last) // 2
    lines += [
        f'<line x1="708" y1="{TOP + 6}" x2="708" y2="{last}" stroke="{LINE}" stroke-width="2"/>',
        f'<path d="M701 {last - 4} L708 {last + 10} L715 {last - 4} Z" fill="{LINE}"/>',
        f'<text x="732" y="{middle}" font-size="13" fill="{LINE}" text-anchor="middle" '
        f'transform="rotate(90 732 {middle})">imports</text>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(picture())
