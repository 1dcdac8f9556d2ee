"""Runs model-written programs against hidden tests, without trusting them (docs/sandbox.md).

pool.py       the trainer's side: starts lanes, sends them jobs, reads their verdicts
lane.py       one lane: checks the isolation, starts sandboxes ahead of time, enforces time limits
isolation.py  the levels of isolation: how each starts a process, and how the process is ended
view.py       what a sandbox shows of the file system
room.py       the sandbox of the tests, which may evaluate what a candidate returned
confine.py    what the kernel offers by system call: seccomp, landlock, namespaces, mounts
calls.py      the system calls that are refused, and why
tester.py     the tests of one row, in a trusted process; remote.py stands in for the candidate
child.py      the candidate's process; wire.py encodes what may pass between the two
extract.py    from a completion to a program
"""
