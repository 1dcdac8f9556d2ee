"""The servers of a run: which of them answer, with which weights, and who gets the next request.

A server that fails is left out and looked at again every PROBE_SECONDS; once it answers, it is
given the present weights and gets requests again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from posttrain.rollout.engines.client import Server, ServerError, concurrently
from posttrain.rollout.sampler import EngineError

PROBE_SECONDS = 5.0
PROBE_TIMEOUT = 10.0  # seconds for a server that was left out to say which model it has
MOST_STRIKES = 2  # failures in a row, each after the present weights were delivered again
LONGEST_BAN = 600.0  # seconds


@dataclass(eq=False)
class Member:
    """A server of the pool."""

    server: Server
    version: int | None = None
    """Of the weights that it was given; None while it gets no requests."""
    model: str = ""
    """What requests call these weights."""
    running: list[int] = field(default_factory=list)
    """The versions for which its unanswered requests were sent."""
    reason: EngineError | None = None
    """Why it was left out."""
    strikes: int = 0
    """How often it came back and failed without one good completion, or with other weights."""
    banned_until: float = 0.0
    """By the monotonic clock: it is not looked at before."""
    joined: int = 0
    """How often it has come into the pool."""
    once: Server = field(init=False)
    """The server without retries, for what another server can do as well."""

    def __post_init__(self) -> None:
        self.once = self.server.hurried()

    @property
    def trusted(self) -> bool:
        """Whether it is worth waiting for."""
        return self.strikes < MOST_STRIKES

    def strike(self) -> None:
        """Note a failure; after several in a row it is left alone, each time for longer."""
        self.strikes += 1
        if not self.trusted:
            ban = min(PROBE_SECONDS * 2**self.strikes, LONGEST_BAN)
            self.banned_until = time.monotonic() + ban


@dataclass(frozen=True)
class Lease:
    """A server's place for one request."""

    member: Member
    version: int
    """Of the weights that the server has."""
    model: str
    """What requests call them."""
    others: bool
    """Whether another server could take the request."""
    joined: int


class Pool:
    """Servers that share the requests of one rank. All methods are thread-safe."""

    def __init__(
        self,
        servers: list[Server],
        load: Callable[[Server, int], str],
        welcome: Callable[[Server], None],
        patience: float,
        say: Callable[[str], None] | None,
    ) -> None:
        """Take how a server gets the weights of a version.

        `load` returns what requests call them, and raises EngineError. `welcome` raises it for a
        server that came back as another. `patience` is in seconds: how long to wait if no server
        is left. `say` gets a line for each server that leaves or joins.
        """
        self.members = [Member(server) for server in servers]
        self.load, self.welcome, self.patience = load, welcome, patience
        self.say = say or (lambda line: None)
        self.version: int | None = None
        """Of the weights that every server should have."""
        self.changed = threading.Condition()
        self.transfer = threading.Lock()  # one delivery, or one server that joins, at a time
        self.closed = False
        self.nudge = threading.Event()  # a server has just left
        self.prober: threading.Thread | None = None
        self.turn = 0

    def deliver(self, version: int) -> None:
        """Give all servers the weights of a version; raise EngineError if none has taken them.

        The first delivery must succeed on every server: what fails then was set up wrongly.
        """
        first = self.version is None
        with self.transfer:
            chosen = [m for m in self.members if m.version is not None]
            if not chosen:
                chosen = self.members
                for member in chosen:
                    member.strikes, member.banned_until = 0, 0.0
            alone = first or len(chosen) == 1
            concurrently(lambda member: self._bring(member, version, first, alone), chosen, 8)
            self.version = version
        with self.changed:
            self._wait_for_one()

    def adopt(self, version: int, models: list[str | None]) -> None:
        """Take over what another rank has delivered: what requests call it on each server."""
        with self.changed:
            self.version = version
        for member, model in zip(self.members, models):
            if model is None:
                member.version = None
            else:
                self._enter(member, version, model)
        with self.changed:
            self._look_after()

    def live(self) -> list[Server]:
        """Return the servers that have weights; before the first delivery, all."""
        with self.changed:
            new = self.version is None
            return [m.server for m in self.members if new or m.version is not None]

    def models(self) -> list[str | None]:
        """Return what requests call the weights on each server, None where there are none."""
        with self.changed:
            return [None if m.version is None else m.model for m in self.members]

    def oldest_running(self) -> int | None:
        """Return the oldest version that an unanswered request was sent for, None without any."""
        with self.changed:
            return min((v for m in self.members for v in m.running), default=None)

    def take(self) -> Lease:
        """Return a place at the server that has the fewest requests.

        Raises EngineError if there is no server, and none has come after `patience` seconds."""
        with self.changed:
            self._wait_for_one()
            live = [m for m in self.members if m.version is not None]
            self.turn += 1
            turn = live[self.turn % len(live) :] + live[: self.turn % len(live)]
            member = min(turn, key=lambda m: len(m.running))
            assert member.version is not None
            member.running.append(member.version)
            return Lease(member, member.version, member.model, len(live) > 1, member.joined)

    def give_back(self, lease: Lease) -> None:
        """Note that a request has ended."""
        with self.changed:
            lease.member.running.remove(lease.version)

    def trust(self, lease: Lease) -> None:
        """Note that a server has answered with the weights that it was given."""
        lease.member.strikes = 0

    def distrust(self, lease: Lease, error: EngineError) -> None:
        """Send a server no more requests until it has been given the present weights again."""
        if lease.member.joined == lease.joined:  # it has not come back in the meantime
            self._leave(lease.member, error)

    def _leave(self, member: Member, error: EngineError) -> None:
        with self.changed:
            if member.version is None:
                return  # another request has noticed it before
            member.version, member.reason = None, error
            if not (isinstance(error, ServerError) and error.kind == "unreachable"):
                member.strike()
            left = sum(m.version is not None for m in self.members)
            self._look_after()
        what = f"its requests go to the other {left}"
        if not left:
            what = f"no server is left, waiting for one for at most {self.patience:g} s"
        short = f"it {error.short}" if isinstance(error, ServerError) else str(error)
        self.say(f"server {member.server.url} is left out: {short}; {what}")

    def _enter(self, member: Member, version: int, model: str) -> None:
        with self.changed:
            member.joined += member.version is None
            member.version, member.model = version, model
            self.changed.notify_all()

    def close(self) -> None:
        """Look for no server any more."""
        self.closed = True
        self.nudge.set()

    def _bring(self, member: Member, version: int, must: bool, patient: bool) -> None:
        try:
            model = self.load(member.server if patient else member.once, version)
        except EngineError as error:
            if must:
                raise
            self._leave(member, error)
        else:
            self._enter(member, version, model)

    def _wait_for_one(self) -> None:
        def hopeless() -> bool:
            return not any(m.trusted for m in self.members)

        def ready() -> bool:
            return any(m.version is not None for m in self.members) or hopeless()

        if not ready():
            self._look_after()
            self.changed.wait_for(ready, self.patience)
        if any(m.version is not None for m in self.members):
            return
        reason = next((m.reason for m in self.members if m.reason is not None), None)
        waited = "" if hopeless() else f", also after {self.patience:g} s (rollout.server_patience)"
        raise EngineError(f"{reason}; no other server is left{waited}")

    def _look_after(self) -> None:
        """Start to look for the servers that are left out; `changed` is held."""
        self.nudge.set()
        out = any(m.version is None for m in self.members)
        if out and self.prober is None:
            self.prober = threading.Thread(target=self._probe, daemon=True)
            self.prober.start()

    def _probe(self) -> None:
        while True:
            with self.changed:
                out = [m for m in self.members if m.version is None]
                if not out or self.closed:
                    self.prober = None
                    return
                self.nudge.clear()
            for member in out:
                if time.monotonic() >= member.banned_until:
                    self._join(member)
            self.nudge.wait(PROBE_SECONDS)

    def _join(self, member: Member) -> None:
        """Give a server the present weights if it answers."""
        try:
            self.welcome(member.server.hurried(PROBE_TIMEOUT))
            with self.transfer:
                version = self.version
                if version is None or member.version is not None:
                    return
                self._enter(member, version, self.load(member.once, version))
        except EngineError as error:
            member.reason = error
            return
        self.say(f"server {member.server.url} has joined, with the weights of version {version}")
