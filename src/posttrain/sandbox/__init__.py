"""Runs model-written programs against hidden tests, without trusting them (docs/sandbox.md).

The trainer's side
    pool.py            starts lanes, sends them jobs, reads their verdicts
    lane.py            one lane: starts sandboxes ahead of time, enforces limits, makes the verdict
    isolation.py       the levels of isolation: how a process is started and ended at each
    view.py            what a sandbox shows of the file system
    room.py            the sandbox of the tests, which may evaluate what a candidate returned
    confine.py         what the kernel offers by system call; calls.py: those that are refused
The tests' process
    tester.py          the tests of one row; stubs.py: the same against stubs, before training
    recording.py       how each test of check is recorded
    names.py           where the names of a test come from
    instrument.py      how its code is rewritten; origins.py: what in it comes from the candidate
    session.py         the channel to one candidate; guard.py: no text of it becomes code here
    arithmetic.py      evaluates texts of it that are pure arithmetic
    changes.py         what it changed of arguments, and values computed from these as passed
    remote.py          stand-ins for its objects; operators.py, mixed.py: their operators
    witness.py         holds such objects to one story; library.py: library functions about them
    raised.py          what it raises, as exceptions of this process
    lending.py         what the tests pass to it besides plain values
Both, sent to the sandbox as text
    wire.py            messages; values.py: immutable values; frames.py: the channel
    containers.py      shared mutable values; shared.py: the record of them
    operations.py      what one side may do with an object of the other
The candidate's process
    child.py           programs of functions; borrowed.py: what the tests lend to them
    script.py          programs that read stdin
Completions
    extract.py         from a completion to a program; fences.py, pieces.py: its parts
    stdin_programs.py  judges programs that read stdin, on the lane's side
"""
