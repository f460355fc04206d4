"""Serves the benchmark's pictures on many loopback addresses, over http or https, in a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import ipaddress
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from jobs.bench.pictures import make_pictures


def host(number: int) -> str:
    """Loopback addresses from 127.0.1.1 on stand for different hosts."""
    return f"127.0.{1 + number // 254}.{1 + number % 254}"


@contextlib.contextmanager
def serving(
    folder: Path, *, hosts: int, https: bool, only: str | None = None
) -> Iterator[tuple[int, Path | None]]:
    """Runs the server for the time of the block: (port, file with its certificate or None)."""
    certificate = make_certificate(folder, hosts) if https else None
    command = [sys.executable, "-m", "jobs.bench.webserver", "--hosts", str(hosts)]
    command += ["--only", only] if only else []
    if certificate:
        command += ["--certificate", str(certificate)]
    home = str(Path(__file__).resolve().parents[2])
    with subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield int(server.stdout.readline()), certificate
        finally:
            server.terminate()


def make_certificate(folder: Path, hosts: int) -> Path:
    """A self-signed certificate for all the addresses, good for a day; its key is in the file behind it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pairmill bench")])
    now = datetime.datetime.now(datetime.timezone.utc)
    names = [x509.IPAddress(ipaddress.ip_address(host(n))) for n in range(hosts)]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "certificate.pem"
    path.touch(mode=0o600)
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + secret)
    return path


class _Pictures(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, no more than the benchmark needs: GET /N gives picture N, all else is 404."""

    answers: list[bytes] = []  # noqa: RUF012 - one list for all connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.received = transport, b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        while b"\r\n\r\n" in self.received:
            head, _, self.received = self.received.partition(b"\r\n\r\n")
            path = head.split(b" ", 2)[1].lstrip(b"/")
            close = b"connection: close" in head.lower()
            if path.isdigit():
                self.transport.write(self.answers[int(path) % len(self.answers)])
            else:
                self.transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            if close:
                self.transport.close()


def _answer(body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def _serve(hosts: int, certificate: str | None, only: str | None) -> None:
    _Pictures.answers = [_answer(body) for body in make_pictures(only)]
    tls = None
    if certificate:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate)
    loop = asyncio.get_running_loop()
    first = await loop.create_server(_Pictures, host(0), 0, ssl=tls, backlog=1024)
    port = first.sockets[0].getsockname()[1]
    for number in range(1, hosts):
        await loop.create_server(_Pictures, host(number), port, ssl=tls, backlog=1024)
    print(port, flush=True)
    await first.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--hosts", type=int, default=1)
    parser.add_argument("--certificate")
    parser.add_argument("--only")
    known = parser.parse_args()
    asyncio.run(_serve(known.hosts, known.certificate, known.only))
