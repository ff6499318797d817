"""A gate before a server, which can be closed or slow, as a network is."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

from servers import free_port


class Gate:
    """Forwards connections to a port of this machine."""

    def __init__(self, target: int):
        self.target, self.port, self.delay = target, free_port(), 0.0
        self.listener: socket.socket | None = None
        self.connections: list[socket.socket] = []
        self.open()

    def open(self) -> None:
        """Take connections."""
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def close(self) -> None:
        """Refuse connections, and cut those that there are."""
        assert self.listener is not None
        for one in [self.listener, *self.connections]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self.connections.clear()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, far = listener.accept()[0], socket.create_connection(("127.0.0.1", self.target))
                self.connections += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(1 << 16):
                time.sleep(self.delay)
                sink.sendall(part)
            sink.shutdown(socket.SHUT_WR)
