"""Continuous batching: rows enter at any time, every step gives each a token, finished ones leave.

A completion follows from its prompt, parameters and seed alone, whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from posttrain.model.language_model import LanguageModel
from posttrain.rollout.native.cache import KVCache
from posttrain.rollout.native.choose import Drawn, Groups, draw, groups_of, noise_of
from posttrain.rollout.native.decode import Step, decode_step
from posttrain.rollout.native.forms import Network, network_of
from posttrain.rollout.native.prefill import Prefilled, prefill, rows_of
from posttrain.rollout.native.prefixes import PrefixCache
from posttrain.rollout.native.row import Row, alternatives, scoring

COMPACT_BELOW = 0.8  # share of running rows below which rows leave and enter the cache
ROWS = 8  # on a CPU, compaction keeps a multiple of this many rows
GROW_BY = 128  # columns that the cache gains when it is full


@dataclass
class Running:
    """The rows of the cache; the tensors follow the order of `rows`.

    A finished completion may keep its row for a while; what is sampled after its end is dropped."""

    rows: list[Row]
    tokens: Tensor  # [B] the newest token, not in the cache yet
    ages: Tensor  # [B] number of tokens sampled so far
    spans: Tensor  # [B] columns of the cache that are the row's own
    alive: Tensor  # [B] bool, False once the completion has finished
    limits: Tensor  # [B] tokens that it may have
    stops: Tensor  # [B, S] its stop tokens, filled up with -1
    noise: Tensor  # [B, largest limit]
    adapters: Tensor | None  # [B] numbers of their adapters, None without any

    @classmethod
    def of(
        cls,
        rows: list[Row],
        tokens: Tensor,
        ages: Tensor,
        noise: Tensor,
        adapters: Tensor | None = None,
    ) -> Running:
        """Return the state of rows that have just got a token, their `ages`-th."""
        device, params = tokens.device, [row.params for row in rows]
        width = max((len(p.stop_token_ids) for p in params), default=0)
        stops = [[*p.stop_token_ids, *[-1] * width][:width] for p in params]
        spans = torch.tensor([len(row.ids) for row in rows], dtype=torch.int64, device=device)
        limits = torch.tensor([p.max_new_tokens for p in params], dtype=torch.int64, device=device)
        ends = torch.tensor(stops, dtype=torch.int64, device=device).view(len(rows), width)
        state = cls(rows, tokens, ages, spans, ages > 0, limits, ends, noise, adapters)
        state.retire()
        return state

    def retire(self) -> None:
        """Note which completions have ended with their newest token."""
        self.alive &= (self.tokens[:, None] != self.stops).all(1) & (self.ages < self.limits)

    def select(self, kept: Tensor) -> Running:
        """Return the state of these rows."""
        tensors: list[Any] = [x if x is None else x[kept] for x in self._tensors()]
        return Running([self.rows[i] for i in kept.tolist()], *tensors)

    def concat(self, new: Running) -> Running:
        """Return the state with the rows of another below."""
        tensors: list[Any] = list(map(_below, self._tensors(), new._tensors()))
        return Running(self.rows + new.rows, *tensors)

    def _tensors(self) -> list[Tensor | None]:
        return [getattr(self, field.name) for field in fields(self)[1:]]


class Engine:
    """Rows that are sampled together. The policy's weights must not change meanwhile."""

    network: Network | None
    decode: Step
    logits: Callable[[Tensor], Tensor]

    def __init__(
        self,
        policy: LanguageModel,
        max_num_seqs: int,
        longest: int,
        finished: Callable[[Row], None] = lambda row: None,
        max_cells: int | None = None,
        prefixes: PrefixCache | None = None,
        at_once: bool = False,
        like: Engine | None = None,
    ) -> None:
        """Take `longest`, the length of the longest prompt with its completion.

        `max_cells` bounds rows times columns of the cache, which a single row may exceed: rows
        wait, or are sent back to waiting, to keep it. Rows enter `at_once` if there is a place, or
        else, since that is cheaper, when a good share of places is free. An engine `like` this one,
        of the same weights, has its numbers to share.
        """
        self.policy, self.max_num_seqs, self.longest = policy, max_num_seqs, longest
        self.at_once, self.like = at_once, like
        self.finished, self.max_cells, self.prefixes = finished, max_cells, prefixes
        self.device = policy.device
        self.waiting: list[list[Row]] = []
        """Rows with equal prompts in groups, which are prefilled once; the last enters first."""
        self.clear()
        self.refresh()

    def clear(self) -> None:
        """Forget the running rows, and free the cache."""
        none = torch.empty(0, dtype=torch.int64, device=self.device)
        adapters = rows_of(self.policy, [])
        self.running = Running.of([], none, none, none[:, None].float(), adapters)
        self.cache, self.mask = KVCache(), torch.empty(0)
        self.drawn: list[Drawn] = []
        """What the running rows have got and not noted yet."""
        self.groups: Groups = []
        self.top = 0

    def refresh(self) -> None:
        """Take over another set of adapters; call it between two steps."""
        like = self.like
        if like is not None and like.network is not None:  # else modules, which are one's own
            self.network, self.decode, self.logits = like.network, like.decode, like.logits
        else:
            self.network = network_of(self.policy, self.longest)
            self.decode = decode_step(self.policy, self.network)
            self.logits = self.policy.sampling_head()
        if self.running.adapters is None:  # of rows that began before there was any adapter
            names = [row.adapter for row in self.running.rows]
            self.running.adapters = rows_of(self.policy, names)

    def add(self, rows: Sequence[Row]) -> None:
        """Let rows wait, behind those that wait already."""
        self.waiting = _grouped(rows, self.max_num_seqs) + self.waiting

    def cancel(self, row: Row) -> None:
        """End a row now, wherever it is."""
        row.finish_reason = "cancelled"
        groups = [[other for other in group if other is not row] for group in self.waiting]
        self.waiting = [group for group in groups if group]
        if row in self.running.rows:
            self.running.alive[self.running.rows.index(row)] = False

    @property
    def num_waiting(self) -> int:
        """Number of rows that wait."""
        return sum(map(len, self.waiting))

    def step(self) -> bool:
        """Give every row its next token, on a GPU its next few; return False if no row is left."""
        while self._rearrange():
            pass  # a completion may have finished with its first token
        running, cache = self.running, self.cache
        if not running.rows:
            return False
        for _ in range(min(steps_between_looks(self.device), cache.capacity - cache.columns)):
            cache.columns += 1
            # clamped, since finished rows may go beyond their last position
            positions = running.spans.clamp(max=self.longest - 1)
            hidden = self.decode(running.tokens, positions, cache, self.mask, running.adapters)
            noise = _at(running.noise, running.ages)
            drawn = draw(self.logits(hidden), self.groups, noise, self.top)
            self.drawn.append(drawn)
            running.tokens = drawn.tokens
            running.ages, running.spans = running.ages + 1, running.spans + 1
            running.retire()
        return True

    def collect(self) -> None:
        """Note in the rows what they have got since the last call."""
        drawn, self.drawn = self.drawn, []
        self._note(self.running.rows, drawn)

    def _note(self, rows: list[Row], drawn: list[Drawn]) -> None:
        if not drawn:
            return
        tokens = torch.stack([x.tokens for x in drawn], dim=1).tolist()
        logprobs = torch.stack([x.logprobs for x in drawn], dim=1).tolist()
        tops = [x.top and alternatives(*x.top) for x in drawn]
        for place, row in enumerate(rows):
            if row.finish_reason is not None:
                continue
            taken = row.note(tokens[place], logprobs[place])
            if row.top:
                row.tops += [best[place][: row.top] for best in tops[:taken] if best]
            if row.finish_reason is not None:
                self.finished(row)

    def _rearrange(self) -> bool:
        """Let rows leave and enter the cache if it is time; return whether any did."""
        running, cache = self.running, self.cache
        alive = running.alive.nonzero()[:, 0]
        entering = self._next(alive)
        if len(alive) == 0 and not entering:
            self.collect()
            self.clear()
            return False
        kept = alive if entering else _with_finished(alive, running.alive)
        num_leaving = len(running.rows) - len(kept)
        compact = num_leaving > 0 and len(kept) < COMPACT_BELOW * len(running.rows)
        if not (entering or compact or cache.columns == cache.capacity):
            return False
        self.collect()
        if not self._take_places(entering):
            kept = kept if entering else self._within_cells(kept)
            self.running = running.select(kept)
            self._enter(entering, kept)
        self.mask = cache.mask(self.running.spans)
        self.groups = groups_of([row.params for row in self.running.rows], self.device)
        self.top = max(row.top for row in self.running.rows)
        return True

    def _take_places(self, entering: list[Row]) -> bool:
        """Let rows take the places of finished ones, if the cache need not be rebuilt for that."""
        running, cache = self.running, self.cache
        places = (~running.alive).nonzero()[: len(entering), 0]
        longest = max((len(row.ids) for row in entering), default=0)
        full = cache.columns == cache.capacity
        if not (self.at_once and entering) or full or longest > cache.columns:
            return False
        if len(places) < len(entering):
            return False
        new = self._prefill(entering)
        cache.replace(places, new.past, new.source)
        others = torch.arange(len(running.rows), device=self.device)
        whole = running.concat(self._started(entering, new.hidden))
        self.running = whole.select(
            others.index_copy(0, places, len(others) + others[: len(places)])
        )
        return True

    def _enter(self, entering: list[Row], kept: Tensor) -> None:
        """Rebuild the cache from its kept rows and new ones."""
        span, room = self._columns(len(kept) > 0, entering)
        new = self._prefill(entering)
        self.cache.lay_out(kept, span, new.past, new.source, room)
        if entering:
            self.running = self.running.concat(self._started(entering, new.hidden))

    def _prefill(self, rows: list[Row]) -> Prefilled:
        names = [row.adapter for row in rows]
        seen = scoring(rows, self.logits)
        prompts = [row.ids for row in rows]
        return prefill(self.policy, prompts, names, self.prefixes, seen, self.network)

    def _started(self, rows: list[Row], hidden: Tensor) -> Running:
        """Return the state of rows that get their first token from the states of their prompts."""
        params, device = [row.params for row in rows], self.device
        noise = noise_of([row.seed for row in rows], params, device)
        ages = torch.tensor([len(row.response_ids) for row in rows], device=device)
        top = max(row.top for row in rows)
        drawn = draw(self.logits(hidden), groups_of(params, device), _at(noise, ages), top)
        adapters = rows_of(self.policy, [row.adapter for row in rows])
        state = Running.of(rows, drawn.tokens, ages + 1, noise, adapters)
        self._note(rows, [drawn])
        return state

    def _columns(self, kept: bool, entering: list[Row]) -> tuple[int, int]:
        """Return the columns of the longest running row, and those that the cache has to spare."""
        rows = [*self.running.rows, *entering]
        room = min(GROW_BY, max(row.params.max_new_tokens for row in rows))
        return int(self.running.spans.max()) if kept else 0, room

    def _next(self, alive: Tensor) -> list[Row]:
        """Remove and return the rows that enter now: none until a good share of rows is free."""
        entering: list[Row] = []
        if not self.at_once and len(alive) > COMPACT_BELOW * self.max_num_seqs:
            return entering
        free = self.max_num_seqs - len(alive)
        while self.waiting and len(entering) + len(self.waiting[-1]) <= free:
            group = self.waiting[-1]
            if self._fit(alive, entering + group):
                entering += self.waiting.pop()
            elif len(alive) or entering:
                break
            else:
                self.waiting[-1:] = [group[1:], group[:1]]
        return entering

    def _fit(self, alive: Tensor, entering: list[Row]) -> bool:
        """Whether rows may enter beside the running ones."""
        if self.max_cells is None or len(alive) + len(entering) == 1:
            return True
        span, room = self._columns(len(alive) > 0, entering)
        width = max(span, *(len(row.ids) for row in entering)) + room
        if not self._resumes:
            rows = [*self.running.rows, *entering]
            width = max(len(row.prompt_ids) + row.params.max_new_tokens for row in rows)
        return (len(alive) + len(entering)) * width <= self.max_cells

    @property
    def _resumes(self) -> bool:
        """Whether a prompt can be read again with what was sampled after it.

        ReFT edits states at places that are counted from the prompt's end."""
        return self.policy.edited is None

    def _within_cells(self, kept: Tensor) -> Tensor:
        """Return the rows for which the cache has room, and send the newest others back."""
        if self.max_cells is None or not self._resumes:
            return kept
        span, room = self._columns(True, [])
        fitting = max(1, self.max_cells // (span + room))
        for place in kept[fitting:].tolist():
            if self.running.alive[place]:
                self.waiting.append([self.running.rows[place]])
        return kept[:fitting]


def steps_between_looks(device: torch.device) -> int:
    """Return the steps between looks at what has finished; each makes the host wait for a GPU."""
    return 1 if device.type == "cpu" else 16


def _at(noise: Tensor, ages: Tensor) -> Tensor:
    """Return each row's noise [B] for the token after `ages`; a finished row's is never read."""
    return noise.gather(1, ages.clamp(max=noise.shape[1] - 1)[:, None])[:, 0]


def _below(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Return two tensors one below the other; a narrower matrix is filled up with -1."""
    if a is None or b is None:
        assert a is b, "rows with and without adapters: refresh() was not called"
        return None
    if a.dim() > 1:
        width = max(a.shape[1], b.shape[1])
        a, b = (torch.nn.functional.pad(x, (0, width - x.shape[1]), value=-1) for x in (a, b))
    return torch.cat([a, b])


def _with_finished(rows: Tensor, alive: Tensor) -> Tensor:
    """Return the running rows, padded with finished ones to a multiple of ROWS on a CPU.

    There a matrix product of a known shape needs no new kernel."""
    if alive.device.type != "cpu":
        return rows
    return torch.cat([rows, (~alive).nonzero()[: -len(rows) % ROWS, 0]])


def _grouped(rows: Sequence[Row], max_num_seqs: int) -> list[list[Row]]:
    """Return rows with equal prompts in groups, since they are prefilled once.

    The last group enters first. Neighbours have similar lengths, which wastes few columns of the
    cache; long prompts enter first.
    """
    groups: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: (len(row.ids), row.ids, row.adapter or "")):
        first = groups[-1][0] if groups else row
        alike = first.ids == row.ids and first.adapter == row.adapter
        if groups and alike and len(groups[-1]) < max_num_seqs:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups
