"""The opt-out matrix: what a site says x how it says it -> what becomes of the picture, and no request for it
after a refusal."""

from __future__ import annotations

import asyncio
import gzip
import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.stages.crawl.config import FetchConfig
from pipeline.stages.crawl.fetch import Fetched, Fetcher
from pipeline.stages.crawl.robots import MAX_BYTES
from tests.pipeline.crawl_web import Script, Web, loopback, reply, running

JPEG = b"\xff\xd8 a picture, as far as the fetcher is concerned"
ALL = b"User-agent: *\nDisallow: /\n"
OURS = b"User-agent: pairmill\nDisallow: /\n"
RESERVED = json.dumps([{"location": "/", "tdm-reservation": 1}]).encode()
QUICK = {"connect_timeout": 2.0, "read_timeout": 1.0, "total_timeout": 2.0, "retries": 1, "backoff": 0.01}
TAKEN: tuple[str | None, str | None] = (None, None)


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with running(Web()) as found:
        yield found


async def silence(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(8)


async def cut(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nUser-agent: *\n")


async def garbage(writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x00\x01\x02 is this HTTP?\r\n\r\n")


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + ALL)
    while True:
        writer.write(b"# more\n" * 10_000)
        await writer.drain()


def fetch_all(
    web: Web, keys: Sequence[str], folder: Path, *, refused: Sequence[str] = (), **options: Any
) -> tuple[list[Fetched], dict[str, float | int]]:
    """Fetches `host/path` keys; all hosts are allowed but the refused ones."""
    hosts = {key.partition("/")[0] for key in [*web.answers, *keys]} - set(refused)
    config = FetchConfig(
        **{**QUICK, **options},  # type: ignore[arg-type]
        allow_private=[f"{host}:{web.port}" for host in hosts],
        node_folder=str(folder),
    )
    config.check()

    async def run() -> tuple[list[Fetched], dict[str, float | int]]:
        fetcher = Fetcher(config, lookup=loopback)
        try:
            found = await asyncio.gather(*(fetcher.fetch(web.url(key)) for key in keys))
            return found, fetcher.take_figures()
        finally:
            await fetcher.close()

    return asyncio.run(run())


def outcome(found: Fetched) -> tuple[str | None, str | None]:
    return found.reason, found.message


# name, robots.txt, options of the crawl, path, (reason, message)
ROBOTS: list[tuple[str, bytes | Script | None, dict[str, Any], str, tuple[str | None, str | None]]] = [
    ("missing", None, {}, "a.jpg", TAKEN),
    ("everybody", reply(body=ALL), {}, "a.jpg", ("opt_out", "robots.txt")),
    ("us", reply(body=OURS), {}, "a.jpg", ("opt_out", "robots.txt")),
    ("us in capitals", reply(body=OURS.upper()), {}, "A.JPG", ("opt_out", "robots.txt")),
    ("others", reply(body=b"User-agent: GPTBot\nDisallow: /"), {}, "a.jpg", TAKEN),
    ("others, and we are they", reply(body=b"User-agent: GPTBot\nDisallow: /"), {"agents": ["gptbot"]},
     "a.jpg", ("opt_out", "robots.txt")),
    ("all but us", reply(body=ALL + b"\nUser-agent: pairmill\nAllow: /"), {}, "a.jpg", TAKEN),
    ("one folder", reply(body=b"User-agent: *\nDisallow: /private/"), {}, "private/a.jpg",
     ("opt_out", "robots.txt")),
    ("another folder", reply(body=b"User-agent: *\nDisallow: /private/"), {}, "public/a.jpg", TAKEN),
    ("a suffix", reply(body=b"User-agent: *\nDisallow: /*.jpg$"), {}, "x/a.jpg", ("opt_out", "robots.txt")),
    ("longest wins", reply(body=b"User-agent: *\nDisallow: /\nAllow: /p"), {}, "p/a.jpg", TAKEN),
    ("queries", reply(body=b"User-agent: *\nDisallow: /*?w="), {}, "a.jpg?w=3", ("opt_out", "robots.txt")),
    ("not asked", reply(body=ALL), {"robots": False}, "a.jpg", TAKEN),
    ("no cap", reply(body=b"#" * (MAX_BYTES + 10) + b"\n" + ALL), {}, "a.jpg", TAKEN),
    ("large", reply(body=ALL + b"#" * (MAX_BYTES + 10)), {}, "a.jpg", ("opt_out", "robots.txt")),
    ("endless", endless, {}, "a.jpg", ("opt_out", "robots.txt")),
    ("packed", reply(body=gzip.compress(ALL), content_encoding="gzip"), {}, "a.jpg",
     ("opt_out", "robots.txt")),
    ("a bomb", reply(body=gzip.compress(ALL + b"#" * 50_000_000), content_encoding="gzip"), {}, "a.jpg",
     ("opt_out", "robots.txt")),
    ("a page", reply(body=b"<html>User-agent: *\nDisallow"), {}, "a.jpg", TAKEN),
    ("with mark", reply(body=b"\xef\xbb\xbf" + ALL), {}, "a.jpg", ("opt_out", "robots.txt")),
    *((f"status {s}", reply(s, ALL), {}, "a.jpg", TAKEN) for s in (400, 401, 403, 404, 410, 451)),
    *((f"status {s}", reply(s, b""), {}, "a.jpg", ("rules_unavailable", f"robots.txt: HTTP {s}"))
      for s in (429, 500, 503, 504)),
    ("signal", reply(body=b"User-agent: *\nContent-Signal: ai-train=no\nAllow: /"), {}, "a.jpg",
     ("opt_out", "Content-Signal")),
    ("signal unheard", reply(body=b"User-agent: *\nContent-Signal: ai-train=no"), {"tdm": False}, "a.jpg",
     TAKEN),
    ("silence", silence, {}, "a.jpg", ("timeout", "robots.txt: no answer in time")),
    ("cut", cut, {}, "a.jpg", ("connection", "robots.txt: the connection failed or was cut")),
    ("garbage", garbage, {}, "a.jpg", ("bad_answer", "robots.txt: the answer is not valid HTTP")),
    ("redirect to file", reply(302, location="file:///etc/passwd"), {}, "a.jpg",
     ("bad_url", "robots.txt: only http and https are fetched")),
    ("redirect to a private host", reply(302, location="http://127.0.0.1/robots.txt"), {}, "a.jpg",
     ("refused_address", "robots.txt: the host has an address that is not public")),
    ("redirects without end", reply(302, location="/robots.txt"), {}, "a.jpg", TAKEN),
    ("redirect", reply(301, location="/rules/robots.txt"), {}, "a.jpg", ("opt_out", "robots.txt")),
    ("redirect nowhere", reply(301, location="/nothing"), {}, "a.jpg", TAKEN),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "robots", "options", "path", "expected"), ROBOTS, ids=[c[0] for c in ROBOTS]
)
def test_robots_txt(
    web: Web,
    tmp_path: Path,
    name: str,
    robots: bytes | Script | None,
    options: dict[str, Any],
    path: str,
    expected: tuple[str | None, str | None],
) -> None:
    host = f"{name.replace(' ', '-').replace(',', '')}.robots.example"
    picture = f"{host}/{path}".partition("?")[0]
    web.answers |= {picture: reply(body=JPEG), f"{host}/rules/robots.txt": reply(body=ALL)}
    if robots is not None:
        web.answers[f"{host}/robots.txt"] = robots
    began = time.monotonic()
    [found, again], figures = fetch_all(web, [f"{host}/{path}"] * 2, tmp_path, **options)
    assert outcome(found) == outcome(again) == expected
    assert found.attempts == 1
    assert web.hits[picture] == (2 if expected == TAKEN else 0), "no request after a refusal"
    assert web.hits[f"{host}/robots.txt"] <= (6 if "redirects" in name else 2)
    assert figures["bytes"] < 2 * MAX_BYTES
    assert time.monotonic() - began < 12


def tdm(*rules: tuple[str, int]) -> bytes:
    return reply(body=json.dumps([{"location": a, "tdm-reservation": b} for a, b in rules]).encode())


TDM: list[tuple[str, bytes | Script | None, dict[str, Any], str, tuple[str | None, str | None]]] = [
    ("missing", None, {}, "a.jpg", TAKEN),
    ("all", tdm(("/", 1)), {}, "a.jpg", ("opt_out", "tdmrep.json")),
    ("nothing", tdm(("/", 0)), {}, "a.jpg", TAKEN),
    ("pictures", tdm(("/*.jpg", 1)), {}, "x/a.jpg", ("opt_out", "tdmrep.json")),
    ("another folder", tdm(("/private/", 1)), {}, "a.jpg", TAKEN),
    ("the first decides", tdm(("/free/", 0), ("/", 1)), {}, "free/a.jpg", TAKEN),
    ("not asked", tdm(("/", 1)), {"tdm": False}, "a.jpg", TAKEN),
    ("without robots", tdm(("/", 1)), {"robots": False}, "a.jpg", ("opt_out", "tdmrep.json")),
    ("redirect", reply(302, location="/rules/tdm.json"), {}, "a.jpg", ("opt_out", "tdmrep.json")),
    ("no json", reply(body=b"<html>"), {}, "a.jpg", TAKEN),
    ("status 500", reply(500), {}, "a.jpg", TAKEN),
    ("status 403", reply(403, RESERVED), {}, "a.jpg", TAKEN),
    ("silence", silence, {}, "a.jpg", TAKEN),
    ("private", reply(302, location="http://169.254.169.254/latest"), {}, "a.jpg", TAKEN),
]


@pytest.mark.parametrize(("name", "rules", "options", "path", "expected"), TDM, ids=[c[0] for c in TDM])
def test_tdmrep_json(
    web: Web,
    tmp_path: Path,
    name: str,
    rules: bytes | Script | None,
    options: dict[str, Any],
    path: str,
    expected: tuple[str | None, str | None],
) -> None:
    host = f"{name.replace(' ', '-')}.tdm.example"
    web.answers |= {f"{host}/{path}": reply(body=JPEG), f"{host}/rules/tdm.json": tdm(("/", 1))}
    if rules is not None:
        web.answers[f"{host}/.well-known/tdmrep.json"] = rules
    [found], _ = fetch_all(web, [f"{host}/{path}"], tmp_path, **options)
    assert outcome(found) == expected
    assert web.hits[f"{host}/{path}"] == (1 if expected == TAKEN else 0)


@pytest.mark.parametrize(
    ("headers", "options", "expected"),
    [
        ({"x_robots_tag": "noai"}, {}, ("opt_out", "X-Robots-Tag")),
        ({"X_Robots_Tag": "noindex, NoImageAI"}, {}, ("opt_out", "X-Robots-Tag")),
        ({"x_robots_tag": "noindex"}, {}, TAKEN),
        ({"x_robots_tag": "noindex"}, {"opt_out": ["noai", "noindex"]}, ("opt_out", "X-Robots-Tag")),
        ({"x_robots_tag": "noai"}, {"opt_out": []}, TAKEN),
        ({"x_robots_tag": "mybot: noai"}, {}, TAKEN),
        ({"x_robots_tag": "mybot: noai"}, {"agents": ["MyBot"]}, ("opt_out", "X-Robots-Tag")),
        ({"x_robots_tag": "other: noindex", "X_Robots_Tag": "noai"}, {}, ("opt_out", "X-Robots-Tag")),
        ({"x_robots_tag": "unavailable_after: 25 Jun 2030 15:00:00 PST"}, {}, TAKEN),
        ({"tdm_reservation": "1", "tdm_policy": "https://x.example/p"}, {}, ("opt_out", "tdm-reservation")),
        ({"TDM_Reservation": "0"}, {}, TAKEN),
        ({"tdm_reservation": "1"}, {"tdm": False}, TAKEN),
        ({"content_usage": "train-ai=n, search=y"}, {}, ("opt_out", "Content-Usage")),
        ({"content_usage": "train-ai=y"}, {}, TAKEN),
        ({"content_usage": "train-ai=n"}, {"tdm": False}, TAKEN),
        ({"tdm_reservation": "1"}, {"tdm": True, "robots": False}, ("opt_out", "tdm-reservation")),
    ],
)
def test_headers(
    web: Web,
    tmp_path: Path,
    headers: dict[str, str],
    options: dict[str, Any],
    expected: tuple[str | None, str | None],
) -> None:
    web.answers["headers.example/a.jpg"] = reply(body=JPEG, **headers)
    web.hits.clear()
    [found], _ = fetch_all(web, ["headers.example/a.jpg"], tmp_path, retries=2, **options)
    assert outcome(found) == expected
    assert found.http_status == 200
    assert web.hits["headers.example/a.jpg"] == 1, "an opt-out is never asked again"


def test_every_hop_asks_its_own_host(web: Web, tmp_path: Path) -> None:
    target = web.url("refusing.hop.example/a.jpg")
    web.answers |= {
        "refusing.hop.example/robots.txt": reply(body=ALL),
        "refusing.hop.example/a.jpg": reply(body=JPEG),
        "reserving.hop.example/.well-known/tdmrep.json": reply(body=RESERVED),
        "reserving.hop.example/a.jpg": reply(body=JPEG),
        "open.hop.example/to-refusing": reply(302, location=target),
        "open.hop.example/to-reserving": reply(307, location=web.url("reserving.hop.example/a.jpg")),
        "open.hop.example/to-open": reply(301, location="/a.jpg"),
        "open.hop.example/to-folder": reply(301, location="/closed/a.jpg"),
        "open.hop.example/robots.txt": reply(body=b"User-agent: *\nDisallow: /closed/"),
        "open.hop.example/a.jpg": reply(body=JPEG),
        "open.hop.example/closed/a.jpg": reply(body=JPEG),
        "open.hop.example/noai": reply(302, location="/a.jpg", x_robots_tag="noai"),
    }
    names = ("to-refusing", "to-reserving", "to-open", "to-folder", "noai")
    found, _ = fetch_all(web, [f"open.hop.example/{n}" for n in names], tmp_path)
    said = [outcome(f) for f in found]
    assert said == [
        ("opt_out", "robots.txt"),
        ("opt_out", "tdmrep.json"),
        TAKEN,
        ("opt_out", "robots.txt"),
        ("opt_out", "X-Robots-Tag"),
    ]
    assert [web.hits[f"{h}.hop.example/a.jpg"] for h in ("refusing", "reserving", "open")] == [0, 0, 1]
    assert web.hits["open.hop.example/closed/a.jpg"] == 0


def test_robots_txt_of_another_host_counts_for_the_first(web: Web, tmp_path: Path) -> None:
    web.answers |= {
        "moved.example/robots.txt": reply(301, location=web.url("rules.example/r")),
        "rules.example/r": reply(body=b"User-agent: *\nDisallow: /no"),
        "moved.example/no.jpg": reply(body=JPEG),
        "moved.example/yes.jpg": reply(body=JPEG),
        "rules.example/no.jpg": reply(body=JPEG),
    }
    keys = ["moved.example/no.jpg", "moved.example/yes.jpg", "rules.example/no.jpg"]
    found, _ = fetch_all(web, keys, tmp_path)
    assert [f.reason for f in found] == ["opt_out", None, None]
    chain = {f"chain.example/{i}": reply(302, location=f"/{i + 1}") for i in range(1, 5)}
    web.answers |= {"chain.example/robots.txt": reply(302, location="/1"), **chain}
    web.answers["chain.example/5"] = reply(body=ALL)
    found, _ = fetch_all(web, ["chain.example/a.jpg"], tmp_path)
    assert found[0].reason == "opt_out", "five redirects are followed"


def test_rules_are_asked_once_and_kept_for_a_day(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.answers |= {f"kept.example/{i}.jpg": reply(body=JPEG) for i in range(30)}
    web.answers["kept.example/robots.txt"] = reply(body=b"User-agent: *\nDisallow: /9")
    keys = [f"kept.example/{i}.jpg" for i in range(30)]
    for _ in range(2):  # the second fetcher finds what the first has learnt
        found, _ = fetch_all(web, keys, tmp_path)
        assert [f.reason for f in found].count("opt_out") == 1
    assert web.hits["kept.example/robots.txt"] == 1
    assert web.hits["kept.example/.well-known/tdmrep.json"] == 1
    later = time.time() + 24 * 3600 + 60
    monkeypatch.setattr(time, "time", lambda: later)
    fetch_all(web, keys[:1], tmp_path)
    assert web.hits["kept.example/robots.txt"] == 2
    fetch_all(web, keys[:1], tmp_path, agents=["other"])
    assert web.hits["kept.example/robots.txt"] == 3, "other names, other rules"


def test_a_failure_counts_for_minutes_only(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web.answers |= {"ill.example/robots.txt": reply(503), "ill.example/a.jpg": reply(body=JPEG)}
    for _ in range(2):
        [found], _ = fetch_all(web, ["ill.example/a.jpg"], tmp_path)
        assert found.reason == "rules_unavailable"
    assert web.hits["ill.example/robots.txt"] == 2, "tried twice, then left alone"
    web.answers["ill.example/robots.txt"] = reply(404)
    later = time.time() + 130
    monkeypatch.setattr(time, "time", lambda: later)
    [found], _ = fetch_all(web, ["ill.example/a.jpg"], tmp_path)
    assert found.reason is None


def _worker(port: int, folder: str, count: int, results: Any) -> None:
    web = Web()
    web.port = port
    found, _ = fetch_all(web, [f"shared{i}.example/a.jpg" for i in range(count)], Path(folder))
    results.put([f.reason for f in found])


def test_workers_of_a_node_ask_once_together(web: Web, tmp_path: Path) -> None:
    hosts = 12
    for i in range(hosts):
        web.answers[f"shared{i}.example/a.jpg"] = reply(body=JPEG)
        web.answers[f"shared{i}.example/robots.txt"] = reply(body=ALL if i % 2 else b"")
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [
        context.Process(target=_worker, args=(web.port, str(tmp_path), hosts, results)) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    said = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(30)
    assert said == [[None, "opt_out"] * (hosts // 2)] * 3
    assert {web.hits[f"shared{i}.example/robots.txt"] for i in range(hosts)} == {1}


def test_the_shared_folder_is_ours_alone(web: Web, tmp_path: Path) -> None:
    fetch_all(web, ["x.example/a.jpg"], tmp_path / "made")
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o700
    open_to_all = tmp_path / "open"
    open_to_all.mkdir(mode=0o777)
    open_to_all.chmod(0o777)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "made")
    for folder in (open_to_all, link):
        with pytest.raises(ConfigError, match="node_folder"):
            fetch_all(web, ["x.example/a.jpg"], folder)


def test_a_spoilt_document_is_asked_anew(web: Web, tmp_path: Path) -> None:
    web.answers |= {"spoilt.example/a.jpg": reply(body=JPEG), "spoilt.example/robots.txt": reply(body=ALL)}
    fetch_all(web, ["spoilt.example/a.jpg"], tmp_path)
    documents = [p for p in (tmp_path / "documents").rglob("*") if p.is_file()]
    assert documents
    for spoilt in (b"", b"{", b"[]", b'{"version": 2, "name": "robots other", "document": {}}', b"\xff"):
        for document in documents:
            document.write_bytes(spoilt)
        [found], _ = fetch_all(web, ["spoilt.example/a.jpg"], tmp_path)
        assert outcome(found) == ("opt_out", "robots.txt")
