"""An S3 on loopback (moto) in a process of its own, and a wire before it that can be cut."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator

from tests.loopback import await_port

BUCKET = "s3://pairs"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving_s3() -> Iterator[int]:
    """The server while the block runs, with one empty bucket; yields its port."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            await_port(port, "moto's server")
            with speaking_to(port):
                import fsspec

                fsspec.filesystem("s3").mkdir(BUCKET)
            yield port
        finally:
            process.terminate()


@contextlib.contextmanager
def speaking_to(port: int, **more: str) -> Iterator[dict[str, str]]:
    """Credentials and endpoint as a user sets them, by environment variables; yields them."""
    import fsspec
    from s3fs import S3FileSystem

    settings = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        **more,
    }
    before = dict(os.environ)
    os.environ.update(settings)
    fsspec.config.set_conf_env(fsspec.config.conf)
    S3FileSystem.clear_instance_cache()  # an instance keeps the endpoint that it was made with
    try:
        yield settings
    finally:
        os.environ.clear()
        os.environ.update(before)
        fsspec.config.conf.pop("s3", None)
        S3FileSystem.clear_instance_cache()


class Wire:
    """A TCP proxy. Requests of more than `most` bytes are cut off there, or never answered.

    trouble: "" for none, "cut" or "silence". left: how many requests still meet it. met: how many have.
    """

    def __init__(self, port: int, *, most: int = 16_000) -> None:
        self.target, self.most = port, most
        self.trouble, self.left, self.met = "", 1 << 30, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            sent = [0]  # since the last answer
            threading.Thread(target=self._up, args=(client, server, sent), daemon=True).start()
            threading.Thread(target=self._down, args=(client, server, sent), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket, sent: list[int]) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(4096):
                sent[0] += len(data)
                if self.trouble and self.left > 0 and sent[0] > self.most:
                    self.left -= 1
                    self.met += 1
                    self._disturb(client)
                    break
                server.sendall(data)
        for end in (server, client):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it
            end.close()

    def _disturb(self, client: socket.socket) -> None:
        if self.trouble == "silence":
            while self.trouble and client.recv(1 << 16):
                pass
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _down(self, client: socket.socket, server: socket.socket, sent: list[int]) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                sent[0] = 0
                client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.trouble = ""
        self.listener.close()
