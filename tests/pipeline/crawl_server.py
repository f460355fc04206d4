"""A small web on loopback for the crawler's tests: good pictures, and everything that servers do wrong."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import gzip
import ipaddress
import random
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from aiohttp import web

#: 2,000 x 2,000 million pixels in a header, and no more
BOMB = (
    b"\x89PNG\r\n\x1a\n" + b"\x00\x00\x00\rIHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
)


def picture(seed: int, *, width: int = 320, height: int = 240, kind: str = "jpg") -> bytes:
    """A smooth random picture, the same for the same seed."""
    import cv2

    small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(f".{kind}", image)[1].tobytes()


class Site:
    """hits: requests by path; port: where it listens; jitter: seconds of random delay at most."""

    def __init__(self) -> None:
        self.hits: Counter[str] = Counter()
        self.jitter = 0.0
        self.port = 0
        self.most_at_once = 0
        self._at_once = 0
        self.user_agents: set[str] = set()
        self.connections: set[object] = set()

    def url(self, path: str, *, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.hits[request.path] += 1
        self.user_agents.add(request.headers.get("User-Agent", ""))
        self.connections.add(request.transport.get_extra_info("peername") if request.transport else None)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if self.jitter:
                await asyncio.sleep(random.random() * self.jitter)
            return await self._answer(request)
        finally:
            self._at_once -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        kind, _, rest = request.path.strip("/").partition("/")
        if kind == "picture":  # /picture/7.jpg, /picture/7.png
            seed, _, suffix = rest.partition(".")
            return web.Response(body=picture(int(seed), kind=suffix), content_type=f"image/{suffix}")
        if kind == "noai":
            return web.Response(body=picture(1), headers={"X-Robots-Tag": rest})
        if kind == "status":
            return web.Response(status=int(rest), text="no")
        if kind == "flaky":  # twice 503, then the picture
            if self.hits[request.path] < 3:
                return web.Response(status=503)
            return web.Response(body=picture(2))
        if kind == "busy":
            return web.Response(status=429, headers={"Retry-After": rest})
        if kind == "to":
            return web.Response(status=302, headers={"Location": request.query["u"]})
        if kind == "chain":
            target = f"/chain/{int(rest) - 1}" if int(rest) else "/picture/3.jpg"
            return web.Response(status=301, headers={"Location": target})
        if kind == "loop":
            return web.Response(status=302, headers={"Location": request.path})
        if kind == "bytes":
            bodies = {
                "empty": b"",
                "html.jpg": b"<html>not found</html>" * 500,
                "truncated.jpg": picture(4)[:-2000],
                "bomb.png": BOMB + bytes(2000),
                "small.jpg": picture(5, width=20, height=15),
                "wide.jpg": picture(6, width=900, height=60),
                "gzip.jpg": gzip.compress(picture(7)),
            }
            headers = {"Content-Encoding": "gzip"} if rest.startswith("gzip") else {}
            return web.Response(body=bodies[rest], headers=headers)
        if kind == "stream":
            return await self._stream(request, rest)
        return web.Response(status=404, text="gone")

    async def _stream(self, request: web.Request, how: str) -> web.StreamResponse:
        response = web.StreamResponse()
        if how == "promises":  # says more than it sends
            response.content_length = 100_000
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            if how == "promises":
                await response.write(picture(1)[:1000])
                assert request.transport is not None
                request.transport.close()
            while how == "endless":
                await response.write(bytes(1 << 16))
            while how == "drip":
                await response.write(b"\xff")
                await asyncio.sleep(0.05)
            while how == "silence" and request.transport is not None:
                await asyncio.sleep(0.05)
        return response


@contextlib.contextmanager
def serving(site: Site, *, tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    """Runs the site on a free port of 127.0.0.1 in a thread of its own."""
    loop = asyncio.new_event_loop()
    ready = threading.Event()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", site.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        listener = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await listener.start()
        site.port = runner.addresses[0][1]
        return runner

    def run() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield site
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-made certificate for 127.0.0.1 and pictures.example: (certificate, key) as PEM files."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pictures.example")])
    names = [x509.DNSName("pictures.example"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "site.pem", folder / "site.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths
