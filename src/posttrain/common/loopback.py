"""Servers on this machine alone: the socket, and the names under which a browser reaches them."""

from __future__ import annotations

import socket

from posttrain.common.errors import SettingError

LOCAL = ("localhost", "127.0.0.1", "::1")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound, so that a port in use is found before anything is loaded.

    Raise SettingError if it cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise SettingError(
            "port", f"cannot listen on {host}, port {port}: {error.strerror}: choose another"
        ) from None


def hostname(host: str) -> str:
    """Return the name in a Host header, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host


def is_local_name(host: str) -> bool:
    """Return whether a Host header names this machine, under any port."""
    return hostname(host) in LOCAL
