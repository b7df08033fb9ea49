"""Pairs of connected stream sockets."""

from __future__ import annotations

import _socket
import sys

if sys.platform != "win32":

    def stream_pair() -> tuple[int, int]:
        """Return two descriptors, which children do not inherit."""
        ours, theirs = _socket.socketpair()
        return ours.detach(), theirs.detach()

else:

    def stream_pair() -> tuple[int, int]:
        """Return two descriptors, which children do not inherit.

        Windows has no pairs without a name. For a moment a socket listens on this
        machine alone. Whoever else connects to it is told by the address, which only
        one socket can have, and turned away.
        """
        listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        ours = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        try:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            ours.connect(listener.getsockname())
            while True:
                fd, address = listener._accept()  # type: ignore[attr-defined]
                theirs = _socket.socket(fileno=fd)
                if address == ours.getsockname():
                    break
                theirs.close()
            for end in (ours, theirs):
                end.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
            return ours.detach(), theirs.detach()
        finally:
            listener.close()
            ours.close()  # nothing is left of it after detach
