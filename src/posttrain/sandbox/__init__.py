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
    instrument.py      how the code of a test is rewritten; names.py: where its names come from
    session.py         the channel to one candidate; guard.py: no text of it becomes code here
    remote.py          stand-ins for its objects; raised.py: for what it raises
    lending.py         what the tests pass to it besides plain values
Both, sent to the sandbox as text
    wire.py            messages; containers.py: shared mutable values; values.py: immutable ones
    operations.py      what one side may do with an object of the other; frames.py: the channel
The candidate's process
    child.py           programs of functions; script.py: programs that read stdin
Completions
    extract.py         from a completion to a program; fences.py, pieces.py: its parts
    stdin_programs.py  judges programs that read stdin, on the lane's side
"""
