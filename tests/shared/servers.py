"""Servers of this machine alone: S3, MLflow, and a proxy that is slow, refuses or goes down."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3

PATIENCE = 120
"""Seconds for a server to start, and for its page to show something: for machines that do much else at the time."""

BUCKET = "vaebm"

KEYS = {
    "AWS_ACCESS_KEY_ID": "vaebm",
    "AWS_SECRET_ACCESS_KEY": "vaebm",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""For MLflow's servers."""


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def started(command: list[str], address: str, folder: Path | None = None, **environment: str) -> Iterator[str]:
    """A server that answers at `address`, without its path, while the context lasts."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=folder, env=os.environ | environment, **quiet) as server:
        try:
            for _ in range(5 * PATIENCE):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(address, timeout=5).close()
                    break
                assert server.poll() is None, f"{command[0]} ended"
                time.sleep(0.2)
            else:
                raise TimeoutError(f"{command[0]} did not answer within {PATIENCE} s")
            yield address.rpartition("/")[0]
        finally:
            server.terminate()


@contextlib.contextmanager
def s3() -> Iterator[str]:
    """Address of an S3 server with an empty bucket."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "--port", str(port)]
    with started(command, f"http://127.0.0.1:{port}/moto-api") as address:
        urllib.request.urlopen(urllib.request.Request(f"{address}/{BUCKET}", method="PUT"), timeout=5).close()
        yield address


@contextlib.contextmanager
def checking_s3() -> Iterator[tuple[str, dict[str, str]]]:
    """An S3 server that checks keys, and the keys of its one user."""
    with s3() as address:
        ask = {"region_name": "us-east-1", "aws_access_key_id": "root", "aws_secret_access_key": "root"}
        iam = boto3.client("iam", endpoint_url=address, **ask)
        iam.create_user(UserName="me")
        rights = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
        iam.put_user_policy(UserName="me", PolicyName="store", PolicyDocument=json.dumps(rights))
        found = iam.create_access_key(UserName="me")["AccessKey"]
        check = urllib.request.Request(f"{address}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
        urllib.request.urlopen(check).close()
        keys = {"AWS_ACCESS_KEY_ID": found["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": found["SecretAccessKey"]}
        yield address, KEYS | keys


@contextlib.contextmanager
def mlflow_server(database: str, store: str) -> Iterator[str]:
    """Address of an MLflow server whose artifacts are on the S3 server `store`."""
    port = str(free_port())
    # one worker instead of four: each of them imports all of MLflow
    command = ["mlflow", "server", "--port", port, "--workers", "1", "--backend-store-uri", f"sqlite:///{database}"]
    command += ["--artifacts-destination", f"s3://{BUCKET}/mlflow"]
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
    environment = {**KEYS, **QUIET, "MLFLOW_S3_ENDPOINT_URL": store, "PATH": path}
    with started(command, f"http://127.0.0.1:{port}/health", **environment) as address:
        yield address


class Proxy(ThreadingHTTPServer):
    """A proxy before a server.

    Args:
        target: address of the server.
        password: `user:password` that requests need; empty: none.
    """

    daemon_threads = True

    def __init__(self, target: str, password: str = ""):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.password = target.removeprefix("http://"), password
        self.delay = 0.0
        """Seconds before an answer."""
        self.left = sys.maxsize
        """Requests until it goes down: the last of them is done, but not answered."""
        self.count = 0
        self.address = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: Proxy

    def _forward(self) -> None:
        """Forward one request, and close its connection."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.close_connection = True
        proxy, known = self.server, base64.b64encode(self.server.password.encode()).decode()
        proxy.left -= 1
        if proxy.left < 0:
            return
        if proxy.password and self.headers.get("Authorization") != f"Basic {known}":
            self.send_error(401)
            return
        proxy.count += 1
        time.sleep(proxy.delay)
        connection = http.client.HTTPConnection(proxy.target, timeout=PATIENCE)
        headers = {name: value for name, value in self.headers.items() if name not in ("Authorization", "Connection")}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        if proxy.left == 0:
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward

    def log_message(self, *_: object) -> None:
        """Print nothing."""
