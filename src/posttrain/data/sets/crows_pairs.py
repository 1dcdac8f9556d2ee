"""CrowS-Pairs (Nangia et al. 2020, arXiv 2010.00133; CC BY-SA 4.0): pairs about stereotypes."""

from __future__ import annotations

from posttrain.data.files import find_file, read_file
from posttrain.data.origin import Origin
from posttrain.data.rows import Row, check_texts, numbered

URL = "https://github.com/nyu-mll/crows-pairs"
FILE = "crows_pairs_anonymized.csv"
ORIGIN = Origin(
    licence="CC BY-SA 4.0",
    page=URL,
    rows={"test": 1_508},
    uses=("evaluation",),
    urls=(f"https://raw.githubusercontent.com/nyu-mll/crows-pairs/master/data/{FILE}",),
)
DIRECTIONS = ("stereo", "antistereo")


def load(split: str, *, path: str | None = None) -> list[Row]:
    """Return rows with choices (the more stereotypical sentence first), direction and bias_type.

    There is no prompt: the sentences are compared as they are. `path` is crows_pairs_anonymized.csv
    or its folder. The only split is test, for evaluation. Blodgett et al. (2021) found many of the
    pairs unclear or not minimal; the authors link to their paper.
    """
    if split != "test":
        raise ValueError(f"crows_pairs has only the split test, not {split!r}")
    if path is None:
        raise ValueError(f"crows_pairs: set data.path to {FILE} or its folder; it is on {URL}")
    file = find_file(path, (FILE,))
    rows = []
    for where, row in numbered(read_file(file), file):
        check_texts(row, ("sent_more", "sent_less", "bias_type"), where)
        if row.get("stereo_antistereo") not in DIRECTIONS:
            raise ValueError(
                f"{where}: stereo_antistereo must be {' or '.join(DIRECTIONS)}; "
                f"got {row.get('stereo_antistereo')!r}"
            )
        rows.append(
            {
                "choices": [row["sent_more"], row["sent_less"]],
                "direction": row["stereo_antistereo"],
                "bias_type": row["bias_type"],
            }
        )
    return rows
