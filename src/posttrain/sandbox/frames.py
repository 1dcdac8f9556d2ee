"""Messages on the channel: each is preceded by its length.

Both sides run this file; it reaches the sandbox over the channel, so it imports nothing beyond the
standard library.
"""

import os
import struct


class TooLarge(ValueError):
    """A message above the limit."""


def write_frame(fd: int, data: bytes) -> None:
    """Send one message; raise OSError if the other side is gone."""
    view = memoryview(struct.pack(">I", len(data)) + data)
    while view:
        view = view[os.write(fd, view) :]


def read_frame(fd: int, limit: int) -> bytes:
    """Receive one message.

    Raises:
        EOFError: The other side is gone.
        TooLarge: The message has more than `limit` bytes.
    """
    (size,) = struct.unpack(">I", _read(fd, 4))
    if size > limit:
        raise TooLarge(f"a message of {size} bytes; the limit is {limit}")
    return _read(fd, size)


def label(nonce: bytes, number: int) -> bytes:
    """Return what a reply begins with: it answers the message of this number, on this channel."""
    return nonce + struct.pack(">Q", number)


def _read(fd: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
