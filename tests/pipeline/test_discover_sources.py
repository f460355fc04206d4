"""Lists of paths, and remote archives whose connections break: HTTP and S3 on loopback."""

from __future__ import annotations

import gzip
import http.server
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import session, storage
from pipeline.errors import ConfigError, InputError
from pipeline.runner import run_stage
from pipeline.runner_options import RunOptions
from pipeline.stage import Unit
from pipeline.stages.discover import DiscoverConfig, DiscoverStage, streams
from pipeline.stages.discover.sources import archives, read_paths
from pipeline.stages.discover.streams import ReadConfig, ResumedStream, open_stream
from tests.pipeline import web_archives as made
from tests.pipeline.object_store import s3_bucket

IMPATIENT = ReadConfig(attempts=6, wait=0.001, timeout=5)


def wat(pages: int = 800) -> bytes:
    records = [made.wat_info()]
    for number in range(pages):
        noise = random.Random(number).randbytes(3000).hex()  # so that gzip does not make it small
        links = [{"path": "IMG@/src", "url": f"/{number}/{n}.jpg", "alt": f"text {n}"} for n in range(3)]
        html = {"Head": {"Title": noise}, "Links": links}
        records.append(made.wat_record(f"http://site.example/{number}", html))
    return made.members(records)


WAT = wat()


class Server:
    """Serves one file; `plan` says of the n-th request what to do with it.

    plan: number of the request -> None (serve it), a status, or a number of bytes after which to hang up
        (negative: with an error in the middle of a chunk).
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str | None]] = []
        self.plan: Callable[[int], int | None] = lambda number: None
        self.data, self.etag, self.ranges, self.length = WAT, '"one"', True, True
        self.headers: dict[str, str] = {}
        self.files: dict[str, bytes] = {}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def log_message(self, *args: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self._head(200, len(outer.files.get(self.path, outer.data)))

            def do_GET(self) -> None:
                outer.serve(self)

            def _head(self, status: int, size: int | None, **more: str) -> None:
                self.send_response(status)
                if outer.etag:
                    self.send_header("ETag", outer.etag)
                if size is not None:
                    self.send_header("Content-Length", str(size))
                for name, value in {**outer.headers, **more}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def serve(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        number, wanted = len(self.requests), handler.headers.get("Range")
        self.requests.append((handler.path, wanted))
        todo = self.plan(number)
        data = self.files.get(handler.path, self.data)
        if todo is not None and 300 <= todo < 600:
            handler._head(todo, 0)  # type: ignore[attr-defined]
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if start >= len(data) and wanted:
            handler._head(416, 0)  # type: ignore[attr-defined]
            return
        body = data[start:]
        more = (
            {"Content_Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if wanted and self.ranges else {}
        )
        status = 206 if more else 200
        handler._head(status, len(body) if self.length else None, **more)  # type: ignore[attr-defined]
        handler.wfile.write(body if todo is None else body[:todo])


@pytest.fixture
def server() -> Iterator[Server]:
    made_up = Server()
    yield made_up
    made_up.http.shutdown()
    made_up.http.server_close()


def table(place: str | Server, plan: Callable[[int], int | None] = lambda number: None) -> pa.Table:
    """What discover finds in a file, or in that of a server that follows the plan from the reading on."""
    url = place if isinstance(place, str) else f"{place.url}x.wat.gz"
    stage = DiscoverStage(DiscoverConfig(input=url, reading=IMPATIENT))
    (unit,) = stage.plan([])
    if not isinstance(place, str):
        place.requests.clear()
        place.plan = plan
    found = stage.run(unit, Path()).parts[".parquet"]
    assert isinstance(found, pa.Table)
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    path = tmp_path_factory.mktemp("wat") / "x.wat.gz"
    path.write_bytes(WAT)
    return table(str(path))


def test_an_undisturbed_read_takes_one_request(server: Server, undisturbed: pa.Table) -> None:
    assert table(server).equals(undisturbed)
    assert server.requests == [("/x.wat.gz", None)]
    assert len(undisturbed) == 2400
    assert len(WAT) > 2_500_000


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
@pytest.mark.parametrize("etag", ['"one"', ""], ids=["etag", "unmarked"])
def test_a_cut_connection_is_taken_up_where_it_was(
    server: Server, undisturbed: pa.Table, ranges: bool, etag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "PROGRESS", 1)
    server.ranges, server.etag = ranges, etag
    step = 300_001
    plan = (lambda number: step) if ranges else (lambda number: step * (number + 1))
    assert table(server, plan).equals(undisturbed)
    starts = [int(wanted.removeprefix("bytes=")[:-1]) for _, wanted in server.requests if wanted]
    assert starts == list(range(step, len(WAT), step))


@pytest.mark.parametrize("status", [403, 429, 500, 502, 503])
def test_a_busy_server_is_asked_again(server: Server, undisturbed: pa.Table, status: int) -> None:
    assert table(server, {0: status, 1: status, 2: 100_000, 3: status}.get).equals(undisturbed)
    assert len(server.requests) == 5


def test_waiting_doubles_and_obeys_retry_after(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    server.plan = lambda number: 503
    with pytest.raises(ConnectionError, match=r"5 attempts failed at byte 0, .*HTTP 503.*--reading.attempts"):
        open_stream(f"{server.url}x", ReadConfig(attempts=5, wait=2)).read(1)
    assert waits == [2, 4, 8, 16]
    waits.clear()
    server.headers["Retry-After"] = "30"
    with pytest.raises(ConnectionError):
        open_stream(f"{server.url}x", ReadConfig(attempts=3, wait=2)).read(1)
    assert waits == [30, 30]


def test_a_drip_of_bytes_is_no_progress_without_end(server: Server) -> None:
    server.plan = lambda number: 10
    with pytest.raises(ConnectionError, match="6 attempts failed at byte 60"):
        open_stream(f"{server.url}x", IMPATIENT).read()
    assert len(server.requests) == 6


def test_a_file_without_a_length_ends_where_it_ends(server: Server, undisturbed: pa.Table) -> None:
    server.length = False
    assert table(server).equals(undisturbed)


def test_a_file_that_is_exchanged_meanwhile_is_refused(server: Server) -> None:
    def plan(number: int) -> int | None:
        server.etag = f'"{number}"'
        return 100_000

    with pytest.raises(InputError, match="was exchanged while it was read"):
        table(server, plan)


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, FileNotFoundError), (410, FileNotFoundError), (401, InputError), (451, InputError)],
)
def test_a_missing_file_and_a_refusal_are_not_asked_for_again(
    server: Server, status: int, error: type[Exception]
) -> None:
    server.plan = lambda number: status
    with pytest.raises(error):
        open_stream(f"{server.url}x", IMPATIENT).read(1)
    assert len(server.requests) == 1


def test_a_redirect_leads_to_http_alone(server: Server, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    for place in (f"file://{tmp_path}/secret", "ftp://127.0.0.1/x"):
        server.plan, server.headers["Location"] = lambda number: 302, place
        with pytest.raises((InputError, ConnectionError)):
            open_stream(f"{server.url}x", ReadConfig(attempts=1)).read(1)


@pytest.mark.parametrize("size", [1, 777, 65536])
def test_the_stream_gives_every_byte_once(server: Server, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "PROGRESS", 1)
    server.data = WAT[: 200 * size]
    server.plan = lambda number: 37 * size + 1
    with open_stream(f"{server.url}x", IMPATIENT) as stream:
        assert isinstance(stream, ResumedStream)
        assert b"".join(iter(lambda: stream.read(size), b"")) == server.data


# lists of paths

PATHS = [f"crawl-data/CC-MAIN-2024-22/segments/1/wat/CC-{n:05d}.warc.wat.gz" for n in range(5)]


def paths_file(folder: Path, paths: list[str], name: str = "wat.paths.gz") -> Path:
    text = "\n".join(paths) + "\n"
    (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    return folder / name


def test_a_list_of_paths_is_planned_without_a_request_and_read_below_its_base(
    server: Server, tmp_path: Path, undisturbed: pa.Table
) -> None:
    listed = paths_file(tmp_path, PATHS)
    stage = DiscoverStage(DiscoverConfig(input=str(listed), base_url=server.url, reading=IMPATIENT))
    units = stage.plan([])
    assert server.requests == []
    assert [unit.source["archive"] for unit in units] == PATHS
    assert units[3].inputs[0].url == server.url + PATHS[3]
    found = stage.run(units[3], tmp_path).parts[".parquet"]
    assert isinstance(found, pa.Table)
    assert found.drop_columns("archive").equals(undisturbed.drop_columns("archive"))
    assert [path for path, _ in server.requests] == ["/" + PATHS[3]]


def test_a_list_over_http_is_read_once(server: Server) -> None:
    server.files["/wat.paths.gz"] = gzip.compress("\n".join(PATHS).encode())
    found = archives(f"{server.url}wat.paths.gz", "https://data.commoncrawl.org/", IMPATIENT)
    assert [name for name, _ in found] == PATHS
    assert found[0][1].url == "https://data.commoncrawl.org/" + PATHS[0]
    assert server.requests == [("/wat.paths.gz", None)]


def test_the_place_of_the_archives_is_no_part_of_a_unit(tmp_path: Path) -> None:
    listed = str(paths_file(tmp_path, PATHS, "warc.paths"))
    digests = set()
    for base in ("https://data.commoncrawl.org/", "s3://commoncrawl", str(tmp_path)):
        stage = DiscoverStage(DiscoverConfig(input=listed, base_url=base))
        digests.add(tuple(unit.digest(stage) for unit in stage.plan([])))
    assert len(digests) == 1
    absolute = str(paths_file(tmp_path, [f"s3://elsewhere/{PATHS[0]}"], "absolute.paths"))
    (found,) = archives(absolute, "https://data.commoncrawl.org/", IMPATIENT)
    assert (found[0], found[1].url) == (f"elsewhere/{PATHS[0]}", f"s3://elsewhere/{PATHS[0]}")


def test_appended_paths_redo_nothing(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    names = [f"{n}.wat.gz" for n in (2, 1, 3)]
    for name in names:
        (tmp_path / "base" / name).write_bytes(wat(3))
    output = str(tmp_path / "candidates")

    def run(paths: list[str]) -> tuple[int, int]:
        config = DiscoverConfig(input=str(paths_file(tmp_path, paths)), base_url=str(tmp_path / "base"))
        summary = run_stage(DiscoverStage(config), output, RunOptions(workers=1))
        assert summary.exit_code == 0
        return summary.done, summary.done_before

    with session.shared_session():
        assert run(names[:2]) == (2, 0)
        stamps = [path.stat().st_mtime_ns for path in sorted(Path(output).glob("*.parquet"))]
        assert run([names[2], *names[:2]]) == (1, 2)
    parts = sorted(Path(output).glob("*.parquet"))
    assert [path.stat().st_mtime_ns for path in parts[:2]] == stamps
    assert [pq.read_table(path)["archive"][0].as_py() for path in parts] == names


def test_ninety_thousand_paths_are_planned_in_seconds(tmp_path: Path) -> None:
    paths = [
        f"crawl-data/CC-MAIN-2024-22/segments/{n % 100}/wat/CC-{n:05d}.warc.wat.gz" for n in range(90_000)
    ]
    stage = DiscoverStage(DiscoverConfig(input=str(paths_file(tmp_path, paths))))
    before = time.process_time()
    units: list[Unit] = stage.plan([])
    assert len(stage.plan(units)) == 90_000
    assert time.process_time() - before < 20


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "names no archive"),
        (b"\n \n", "names no archive"),
        (b"a.wat.gz\ncrawl-data/x.warc.wet.gz\n", r"line 2 'crawl-data/x.warc.wet.gz' names no WARC or WAT"),
        (b"<html>busy</html>", "line 1 '<html>busy</html>' names no WARC"),
        (b"../../etc/x.warc.gz", "names no WARC"),
        (gzip.compress(b"a.wat.gz\n" * 999)[:-9], "not readable"),
        (b"\xff\xfe", "not readable"),
    ],
)
def test_what_is_no_list_of_archives_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "wat.paths.gz").write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        read_paths(str(tmp_path / "wat.paths.gz"), IMPATIENT)


# S3


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket("commoncrawl") as url:
        storage.write_bytes(storage.join(url, "wat/x.wat.gz"), WAT)
        yield f"{url}/"


def test_archives_on_s3_are_read_in_ranges_and_taken_up_again(
    bucket: str, tmp_path: Path, undisturbed: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    from s3fs.core import S3File

    monkeypatch.setattr(streams, "BLOCK", 100_000)
    asked: list[tuple[int, int]] = []
    real = S3File._fetch_range

    def failing(self: S3File, start: int, end: int) -> bytes:
        asked.append((start, end))
        if len(asked) in (2, 3, 6):
            raise ConnectionResetError("cut in the middle")
        return real(self, start, end)

    monkeypatch.setattr(S3File, "_fetch_range", failing)
    listed = str(paths_file(tmp_path, ["wat/x.wat.gz"]))
    stage = DiscoverStage(DiscoverConfig(input=listed, base_url=bucket, reading=IMPATIENT))
    (unit,) = stage.plan([])
    assert asked == []
    found = stage.run(unit, tmp_path).parts[".parquet"]
    assert isinstance(found, pa.Table)
    assert found.drop_columns("archive").equals(undisturbed.drop_columns("archive"))
    assert len(asked) > 6
    assert max(end - start for start, end in asked) < len(WAT) // 2  # never the whole


def test_a_missing_object_is_an_input_error(bucket: str, tmp_path: Path) -> None:
    listed = str(paths_file(tmp_path, ["wat/none.wat.gz"]))
    stage = DiscoverStage(DiscoverConfig(input=listed, base_url=bucket, reading=IMPATIENT))
    (unit,) = stage.plan([])
    with pytest.raises(InputError, match="is not there any more"):
        stage.run(unit, tmp_path)
