"""The rollouts and evaluated completions of a run: found by step, by prompt, and one by one."""

from __future__ import annotations

import hashlib
import json
import math
import re
from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posttrain.board.growing import Lines, Summaries, Workers, lines_at
from posttrain.runs.listing import is_number, is_step

MOST_AT_STEP = 2000  # completions of a step that are sent to the page
MOST_PROMPTS = 500
MOST_OF_PROMPT = 400
START_OF_PROMPT = 2000  # characters of a prompt in a list

COLUMNS = {"step": "q", "kind": "q", "prompt": "q", "offset": "q", "reward": "d"}
Place = tuple[int, int]
"""Number of the file among a run's files of samples, and the line's offset in it."""


@dataclass
class Index:
    """Step, kind, prompt, offset and reward of every line of a file of samples.

    Columns of numbers, since a file may have a million lines. Lines are in the order of steps.
    """

    offset: int = 0
    tail: bytes = b""
    kinds: list[str] = field(default_factory=list)
    columns: dict[str, array[Any]] = field(
        default_factory=lambda: {name: array(code) for name, code in COLUMNS.items()}
    )

    def add(self, lines: Lines) -> None:
        """Take in the next lines; those that are damaged are left out."""
        for offset, line in lines:
            record = parsed(line)
            if record is None:
                continue
            kind = str(record.get("kind"))
            if kind not in self.kinds:
                self.kinds.append(kind)
            reward = record.get("reward")
            row = (
                record["step"],
                self.kinds.index(kind),
                int.from_bytes(key_of(record), signed=True),
                offset,
                float(reward) if is_number(reward) else math.nan,
            )
            for name, value in zip(COLUMNS, row):
                self.columns[name].append(value)

    def lines(self, kind: str, **wanted: int) -> dict[str, NDArray[Any]]:
        """Return the columns of the lines of a kind, and of a step or a prompt if given."""
        columns = {name: np.array(column) for name, column in self.columns.items()}
        chosen = columns["kind"] == (self.kinds.index(kind) if kind in self.kinds else -1)
        for name, value in wanted.items():
            chosen &= columns[name] == value
        return {name: column[chosen] for name, column in columns.items()}


class Samples:
    """The indices of the runs that were looked at, and what the page asks of them."""

    def __init__(self, workers: Workers) -> None:
        self.indices: Summaries[Index] = Summaries(Index, workers)

    def steps(self, run_dir: Path) -> dict[str, Any]:
        """Return the steps of each kind of sample, and the share of the files that is read."""
        kinds: defaultdict[str, set[int]] = defaultdict(set)
        progress = []
        for _, _, index, share in self._indices(run_dir):
            progress.append(share)
            for kind in index.kinds:
                kinds[kind] |= set(np.unique(index.lines(kind)["step"]).tolist())
        return {
            "progress": round(min(progress, default=1.0), 4),
            "kinds": {kind: sorted(steps) for kind, steps in sorted(kinds.items())},
        }

    def at_step(self, run_dir: Path, kind: str, step: int) -> dict[str, Any]:
        """Return the samples of a step, those of one prompt together, without their tokens."""
        found: dict[str, list[dict[str, Any]]] = {}
        count = 0
        for number, file, index, _ in self._indices(run_dir):
            offsets = index.lines(kind, step=step)["offset"].tolist()
            for offset, line in zip(offsets, lines_at(file, offsets)):
                sample = shown(line, (number, offset))
                count += 1
                if sample is not None and count <= MOST_AT_STEP:
                    found.setdefault(sample["prompt_key"], []).append(sample)
        samples = [sample for group in found.values() for sample in group]
        return {"samples": samples, "left_out": max(0, count - MOST_AT_STEP)}

    def one(self, run_dir: Path, key: str) -> dict[str, Any]:
        """Return a sample with its tokens. Raise ValueError if there is none of this key."""
        number, _, offset = key.partition(":")
        files = sample_files(run_dir)
        if number.isdecimal() and offset.isdecimal() and int(number) < len(files):
            line = next(lines_at(files[int(number)], [int(offset)]))
            sample = shown(line, (int(number), int(offset)))
            if sample is not None:
                return sample | {"tokens": json.loads(line).get("tokens")}
        raise ValueError("this sample is gone: the run has been resumed from before it")

    def prompts(self, run_dir: Path, kind: str, words: str) -> dict[str, Any]:
        """Return the prompts that contain some words, those of most steps first, and rewards."""
        prompts: dict[int, list[tuple[int, float]]] = {}
        first: dict[int, tuple[Path, int]] = {}
        for _, file, index, _ in self._indices(run_dir):
            lines = index.lines(kind)
            columns = [lines[name].tolist() for name in ("step", "prompt", "offset", "reward")]
            for step, key, offset, reward in zip(*columns):
                prompts.setdefault(key, []).append((step, reward))
                first.setdefault(key, (file, offset))
        order = sorted(prompts, key=lambda key: -len({step for step, _ in prompts[key]}))
        result: list[dict[str, Any]] = []
        more = 0
        for key in order:
            if len(result) == MOST_PROMPTS and not words:
                more = len(order) - MOST_PROMPTS
                break
            file, offset = first[key]
            record = parsed(next(lines_at(file, [offset]))) or {}
            prompt = str(record.get("prompt"))
            if words and words.casefold() not in prompt.casefold():
                continue
            if len(result) == MOST_PROMPTS:
                more += 1
                continue
            result.append(
                {
                    "prompt_key": hexadecimal(key),
                    "prompt": prompt[:START_OF_PROMPT],
                    **trend(prompts[key]),
                }
            )
        return {"prompts": result, "more": more}

    def of_prompt(self, run_dir: Path, prompt_key: str) -> tuple[list[dict[str, Any]], int]:
        """Return a run's samples of one prompt by step, and how many are left out."""
        if not re.fullmatch("[0-9a-f]{16}", prompt_key):
            raise ValueError(f"{prompt_key!r} is no key of a prompt")
        key = int.from_bytes(bytes.fromhex(prompt_key), signed=True)
        found = []
        for number, file, index, _ in self._indices(run_dir):
            for kind in index.kinds:
                lines = index.lines(kind, prompt=key)
                pairs = zip(lines["step"].tolist(), lines["offset"].tolist())
                found += [(step, kind, number, file, at) for step, at in pairs]
        found.sort(key=lambda entry: entry[:3])
        left_out = max(0, len(found) - MOST_OF_PROMPT)
        if left_out:  # the first and the last steps, and some between
            found = [found[i * len(found) // MOST_OF_PROMPT] for i in range(MOST_OF_PROMPT)]
        samples = []
        for _, _, number, file, offset in found:
            sample = shown(next(lines_at(file, [offset])), (number, offset))
            if sample is not None:
                samples.append(sample)
        return samples, left_out

    def _indices(self, run_dir: Path) -> list[tuple[int, Path, Index, float]]:
        files = enumerate(sample_files(run_dir))
        return [(number, file, *self.indices.look(file)) for number, file in files]


def sample_files(run_dir: Path) -> list[Path]:
    """Return a run's files of samples, one for each rank."""
    return [file for file in sorted(run_dir.glob("samples*.jsonl")) if file.is_file()]


def parsed(line: bytes) -> dict[str, Any] | None:
    """Return a line's record; None if it is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and is_step(record.get("step")) else None


def shown(line: bytes, place: Place) -> dict[str, Any] | None:
    """Return a sample without its tokens, and with keys; None if the line is damaged."""
    record = parsed(line)
    if record is None:
        return None
    tokens = record.pop("tokens", None)
    return record | {
        "key": f"{place[0]}:{place[1]}",
        "prompt_key": key_of(record).hex(),
        "has_tokens": tokens is not None,
        "advantage": record.get("advantage"),
        "trained": record.get("trained"),
        "num_tokens": record.get("num_tokens"),
    }


def key_of(record: dict[str, Any]) -> bytes:
    """Return eight bytes that stand for a record's prompt, the same in every run."""
    prompt = record.get("prompt")
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def hexadecimal(key: int) -> str:
    """Return a prompt's key as JSON has it, whose numbers are too small for it."""
    return key.to_bytes(8, signed=True).hex()


def trend(places: list[tuple[int, float]]) -> dict[str, Any]:
    """Return the steps at which a prompt was sampled, with the mean reward at each."""
    rewards: dict[int, list[float]] = {}
    for step, value in places:
        rewards.setdefault(step, []).extend([] if math.isnan(value) else [value])
    steps = sorted(rewards)
    means = [sum(rewards[s]) / len(rewards[s]) if rewards[s] else None for s in steps]
    return {"steps": steps, "rewards": means}
