"""A local S3 with users, behind a gate that can be closed or slow, as a network is."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import boto3


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


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


@contextlib.contextmanager
def s3_server() -> Iterator[tuple[Gate, dict[str, str]]]:
    """A server with an empty bucket `results`: its gate, and the environment of a user with all rights."""
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "--port", str(port := free_port())], stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert server.poll() is None and time.monotonic() < end, "the server does not start"
            time.sleep(0.1)
        gate = Gate(port)
        keys = {"aws_access_key_id": "none", "aws_secret_access_key": "none", "region_name": "us-east-1"}
        local = {"endpoint_url": f"http://127.0.0.1:{port}", **keys}
        boto3.client("s3", **local).create_bucket(Bucket="results")
        users = boto3.client("iam", **local)
        users.create_user(UserName="user")
        rights = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}'
        users.put_user_policy(UserName="user", PolicyName="all", PolicyDocument=rights)
        key = users.create_access_key(UserName="user")["AccessKey"]
        with socket.create_connection(("127.0.0.1", port)) as plain:  # from now on the server looks at the keys
            request = "POST /moto-api/reset-auth HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n"
            plain.sendall(f"{request}Connection: close\r\n\r\n0".encode())
            assert b" 200 " in plain.recv(100)
        yield (
            gate,
            {
                "SNAKEMAKE_STORAGE_S3_ENDPOINT_URL": f"http://127.0.0.1:{gate.port}",
                "SNAKEMAKE_STORAGE_S3_ACCESS_KEY": key["AccessKeyId"],
                "SNAKEMAKE_STORAGE_S3_SECRET_KEY": key["SecretAccessKey"],
            },
        )
    finally:
        server.kill()
        server.wait()
