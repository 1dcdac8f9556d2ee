"""Imported first by a fork server: its children, the ranks of a test, have the pretended device."""

import pretend_cuda

if not pretend_cuda.installed():
    pretend_cuda.install()
