"""
What the service manager hears: ready, what it does, stopping.

Source:
    ``sd_notify(3)``: one datagram of lines to the socket that NOTIFY_SOCKET names; ``@`` stands for an abstract one.
"""

from __future__ import annotations

import contextlib
import os
import socket


def notify(*lines: str) -> None:
    """Say *lines*, such as ``READY=1``; nothing happens where no service manager listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.sendto("\n".join(lines).encode(), address)
