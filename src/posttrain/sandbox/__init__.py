"""Runs programs that a model wrote against hidden tests, without trusting them (docs/sandbox.md).

pool.py       the trainer's side: lanes, jobs in, verdicts out
lane.py       one lane: starts sandboxes ahead of time, keeps the clock, kills and reaps
isolation.py  the levels: how a process is started at each, and the check that it is isolated
confine.py    what the kernel offers: seccomp, landlock, namespaces, by system call
tester.py     the tests of one row, in a trusted process; remote.py stands in for the candidate
child.py      the candidate's process; wire.py what may pass between the two
extract.py    from a completion to a program
"""
