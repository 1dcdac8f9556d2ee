"""Record what each method asks of a GPU: kernels, waits of the host, products in fp32.

    python scripts/gpu_costs.py

Runs on the pretended CUDA device of tests/helpers/pretend_cuda.py, and writes the budget that
tests/cuda holds the methods to, and its table in docs/guide/gpus.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "guide" / "gpus.md"
BUDGET = ROOT / "tests" / "cuda" / "budget.json"
BEGIN, END = "<!-- gpu costs: begin -->", "<!-- gpu costs: end -->"


def measure() -> dict[str, dict[str, list[float]]]:
    """Return kernels, waits and fp32 share of each method by its form."""
    sys.path[:0] = [str(ROOT / "tests" / "helpers"), str(ROOT / "tests")]
    import pretend_cuda

    pretend_cuda.install()
    import device_steps

    found: dict[str, dict[str, list[float]]] = {}
    for name in device_steps.METHODS:
        found[name] = {}
        for dtype, lora in device_steps.FORMS:
            cost = device_steps.step(name, "cuda", dtype, lora).cost
            figures = [round(cost.kernels, 1), round(cost.waits, 1), round(cost.fp32_share, 4)]
            found[name][device_steps.form_name(dtype, lora)] = figures
            print(f"{name:21} {device_steps.form_name(dtype, lora):14} {figures}")
    return found


def table(costs: dict[str, dict[str, list[float]]]) -> str:
    """Return the table as Markdown."""
    forms = list(next(iter(costs.values())))
    rows = [
        f"| method | {' | '.join(forms)} | waits | fp32 products in bf16 |",
        "|---" * (len(forms) + 3) + "|",
    ]
    for name, by_form in costs.items():
        kernels = " | ".join(f"{figures[0]:,.0f}" for figures in by_form.values())
        waits = max(figures[1] for figures in by_form.values())
        share = max(figures[2] for form, figures in by_form.items() if form.startswith("bf"))
        rows.append(f"| `{name}` | {kernels} | {waits:.0f} | {100 * share:.1f} % |")
    return "\n".join(rows)


def page(costs: dict[str, dict[str, list[float]]]) -> str:
    """Return docs/guide/gpus.md with the table."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n\n{table(costs)}\n\n{END}{after}"


if __name__ == "__main__":
    recorded = measure()
    lines = [f'"{name}": {json.dumps(forms)}' for name, forms in recorded.items()]
    BUDGET.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    PAGE.write_text(page(recorded))
