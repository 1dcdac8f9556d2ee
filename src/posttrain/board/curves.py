"""The curves of runs, whole or of some steps, and the scores of single labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from posttrain.board.digest import Digest, preview
from posttrain.board.growing import AT_ONCE, Summaries, Workers, lines_at, lines_from
from posttrain.tracking.report import classification_of

ZOOM = 16 << 20  # bytes that are read for a finer look at some steps


class Curves:
    """The digests of the runs that were looked at, and what the page asks of them."""

    def __init__(self, workers: Workers) -> None:
        self.digests: Summaries[Digest] = Summaries(Digest, workers)
        self.previews: dict[Path, Digest] = {}

    def curves(
        self, run_dir: Path, names: list[str], start: int | None = None, end: int | None = None
    ) -> dict[str, Any]:
        """Return metrics of a run by name, between two steps if given.

        While a large file is still being read, they are a preview.
        """
        file = run_dir / "metrics.jsonl"
        if not file.is_file():
            return {"progress": 1.0, "names": [], "last_step": 0, "metrics": {}}
        digest, progress = self.digests.look(file)
        if progress < 1 and file.stat().st_size - digest.offset > AT_ONCE:
            if file not in self.previews:
                self.previews[file] = preview(file)
            digest = self.previews[file]
        else:
            self.previews.pop(file, None)
        shown = digest
        if start is not None and end is not None and digest.width > 1:
            shown = finer(file, digest, start, end) or digest
        curves = {name: shown.curve(name, start or 0, end) for name in names}
        return {
            "progress": round(progress, 4),
            "names": sorted(digest.metrics),
            "last_step": digest.last_step,
            "metrics": {name: curve for name, curve in curves.items() if curve is not None},
        }

    def classification(self, run_dir: Path, step: int | None) -> dict[str, Any]:
        """Return the scores of each label and the confusion matrix at an evaluated step.

        By default it is the last. Raise ValueError if the run has none.
        """
        file = run_dir / "metrics.jsonl"
        places = self.digests.look(file)[0].labelled if file.is_file() else {}
        if not places:
            raise ValueError("this run has no scores of single labels")
        step = max(places) if step is None else step
        if step not in places:
            raise ValueError(
                f"no evaluation at step {step}: there are {', '.join(map(str, places))}"
            )
        metrics = json.loads(next(lines_at(file, [places[step]])))
        found = classification_of({step: metrics})
        if found is None:
            raise ValueError(f"the evaluation at step {step} has no scores of single labels")
        return found | {"steps": sorted(places)}


def finer(file: Path, digest: Digest, start: int, end: int) -> Digest | None:
    """Return a digest of some steps alone; None if that would read too much of the file."""
    before = [at for at in digest.places if at <= start // digest.width]
    after = [at for at in digest.places if at > end // digest.width]
    first = digest.places[max(before)] if before else 0
    last = digest.places[min(after)] if after else digest.offset
    if not first < last <= first + ZOOM:
        return None
    part = Digest(begun=digest.begun)
    lines, _ = lines_from(file, first, last - first)
    part.add([(place, line) for place, line in lines if place < last])
    return part
