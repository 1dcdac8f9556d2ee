"""Write the table of core files in docs/architecture.md, with their current line counts.

    python scripts/core_path.py

These are the files to read, in order, to trust the training. Together they have at most MAX_LINES.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- core path: begin -->", "<!-- core path: end -->"
MAX_LINES = 6000

CORE: dict[str, tuple[str, ...]] = {
    "what a run is": (
        "runs/train.py",
        "runs/plan.py",
        "runs/config.py",
        "config/base.py",
    ),
    "the loop": (
        "training/trainer.py",
        "common/batch.py",
        "common/metrics.py",
        "training/optim.py",
        "training/checkpoint.py",
        "common/distributed.py",
    ),
    "methods": (
        "algorithms/base.py",
        "algorithms/config.py",
        "algorithms/language_modeling.py",
        "algorithms/preference.py",
        "algorithms/pair_losses.py",
        "algorithms/policy_gradient.py",
        "algorithms/advantages.py",
        "algorithms/surrogates.py",
        "algorithms/kl.py",
    ),
    "the network": (
        "model/load.py",
        "model/models.py",
        "model/forward.py",
        "model/language_model.py",
        "model/output_head.py",
        "model/shared_prompts.py",
        "model/attention.py",
    ),
    "rows": (
        "data/load.py",
        "data/rows.py",
        "runs/data.py",
        "data/render.py",
        "data/messages.py",
        "data/kinds/kind.py",
        "data/kinds/language_modeling.py",
        "data/kinds/completion.py",
        "data/kinds/prompt.py",
        "data/lengths.py",
        "data/source.py",
    ),
    "rollouts and rewards": (
        "rollout/source.py",
        "rollout/generation.py",
        "rollout/sampler.py",
        "rollout/native/sampler.py",
        "rewards/base.py",
        "common/seeds.py",
    ),
}


def lines_of(file: str) -> int:
    """Return the number of lines of a file below src/posttrain."""
    return len((ROOT / "src" / "posttrain" / file).read_text().splitlines())


def table() -> str:
    """Return the table as Markdown, with a total."""
    rows = ["| | files | lines |", "|---|---|---|"]
    total = 0
    for part, files in CORE.items():
        count = sum(map(lines_of, files))
        total += count
        rows.append(f"| {part} | {', '.join(f'`{file}`' for file in files)} | {count:,} |")
    rows.append(f"| | {sum(map(len, CORE.values()))} files | {total:,} |")
    return "\n".join(rows)


def page() -> str:
    """Return docs/architecture.md with the current table."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page())
    total = sum(lines_of(file) for files in CORE.values() for file in files)
    if total > MAX_LINES:
        sys.exit(f"the core files have {total:,} lines, more than {MAX_LINES:,}")
