"""`pairmill bench crawl`: CPU and memory of a crawled picture, beside img2dataset, over http and https.

    pairmill bench crawl --sizes 1000 4000 --repeat 3

Both fetch the same list from the same server (loopback, a process of its own) with the same output options,
in turn. Beside them the bare cost: the same decoding, resizing and encoding in as many threads, from memory.
"""

from __future__ import annotations

import argparse
import json
import ssl
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.bench.environment import FOLDER, ensure, version
from jobs.bench.measure import Cost, marginal, measure
from jobs.bench.pictures import MIX
from jobs.bench.webserver import host, serving
from pipeline.errors import ConfigError

PEER = "img2dataset==1.47.0"
SHARD = 1000
#: requests at a time, on both sides
CONCURRENCY = 64
#: pictures of one host, as lists that are spread over the web have few
PER_HOST = 50
MEGABYTE = 1 << 20

_BARE = """
import sys
from concurrent.futures import ThreadPoolExecutor
from jobs.bench.pictures import make_pictures
from pipeline import memory
from pipeline.stages.crawl.config import CrawlConfig
from pipeline.stages.crawl.images import Processor
memory.keep_freed()
config = CrawlConfig(image_size=256, resize_mode="keep_ratio", {options})
process, pictures = Processor(config), make_pictures({only!r})
with ThreadPoolExecutor(config.decode_threads) as threads:
    bodies = (pictures[number % len(pictures)] for number in range(int(sys.argv[1])))
    assert all(found.data for found in threads.map(process, bodies))
"""


def main(argv: Sequence[str]) -> int:
    """Prints one table a scheme; returns 0."""
    parser = argparse.ArgumentParser(prog="pairmill bench crawl", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--sizes", type=int, nargs=2, default=(1000, 4000), metavar=("SMALL", "LARGE"))
    parser.add_argument("--repeat", type=int, default=3, help="runs of each size, in turn")
    parser.add_argument("--schemes", nargs="+", default=["http", "https"], choices=["http", "https"])
    parser.add_argument("--only", help="one size of the mix alone, such as 640x480")
    parser.add_argument("--environments", type=Path, default=FOLDER, help="folder for the peer's environment")
    parser.add_argument("--json", help="file for the figures as JSON")
    known = parser.parse_args(list(argv))
    small, large = known.sizes
    if not 0 < small < large or known.repeat < 1:
        raise ConfigError(f"--sizes {small} {large} must be growing, and --repeat at least 1")
    mix = [e for e in MIX if known.only in (None, f"{e.width}x{e.height}")]
    if not mix:
        raise ConfigError(f"--only {known.only} is no size of the mix: {', '.join(map(str, MIX))}")
    peer = ensure(known.environments / "img2dataset", [PEER])
    print(f"mix: {', '.join(map(str, mix))}")
    print("to: shorter side 256, JPEG quality 95, all encoded anew; one worker; " + _versions(peer))
    with tempfile.TemporaryDirectory(prefix="pairmill-bench-") as folder:
        work = Path(folder)
        figures: dict[str, Any] = {"bare": _bare(known.sizes, known.repeat, known.only)}
        for scheme in known.schemes:
            figures[scheme] = _scheme(work, scheme, peer, known.sizes, known.repeat, known.only)
    for scheme in known.schemes:
        print(_table(scheme, figures))
    if known.json:
        Path(known.json).write_text(json.dumps(figures, indent=1))
    return 0


def _versions(peer: Path) -> str:
    return f"pairmill {metadata.version('pairmill')}, img2dataset {version(peer, 'img2dataset')}"


def _bare(sizes: Sequence[int], repeat: int, only: str | None) -> dict[str, float]:
    script = _BARE.format(options=_OPTIONS_AS_CODE, only=only)
    env = {"OMP_NUM_THREADS": "1"}
    runs = _in_turn(
        {"bare": lambda size: measure([sys.executable, "-c", script, str(size)], env=env)}, sizes, repeat
    )
    return _figures(runs["bare"], sizes)


def _scheme(
    work: Path, scheme: str, peer: Path, sizes: Sequence[int], repeat: int, only: str | None
) -> dict[str, dict[str, float]]:
    hosts = -(-sizes[1] // PER_HOST)
    with serving(work, hosts=hosts, https=scheme == "https", only=only) as (port, certificate):
        lists = {size: _write_list(work, scheme, port, size) for size in sizes}
        trusted = _bundle(work, certificate) if certificate else None
        sides: dict[str, Callable[[int], Cost]] = {
            "pairmill": lambda size: _ours(work, lists[size], size, port, certificate),
            "img2dataset": lambda size: _theirs(work, lists[size], size, peer, trusted),
        }
        runs = _in_turn(sides, sizes, repeat)
    return {name: _figures(found, sizes) for name, found in runs.items()}


def _in_turn(
    sides: dict[str, Callable[[int], Cost]], sizes: Sequence[int], repeat: int
) -> dict[str, dict[int, list[Cost]]]:
    runs: dict[str, dict[int, list[Cost]]] = {name: {size: [] for size in sizes} for name in sides}
    for turn in range(repeat):
        for size in sizes:
            for name, run in sides.items():
                cost = run(size)
                runs[name][size].append(cost)
                print(f"  run {turn + 1}: {name}, {size} pictures: {cost.cpu:.1f} s of CPU", flush=True)
    return runs


def _figures(runs: dict[int, list[Cost]], sizes: Sequence[int]) -> dict[str, float]:
    """ms: CPU of a picture; start: CPU seconds of a run without pictures; process, tree: peak MB."""
    small, large = sizes
    each = marginal(runs[small], runs[large], large - small)
    return {
        "ms": each * 1e3,
        "start": median(c.cpu for c in runs[small]) - each * small,
        "process": max(c.process for c in runs[large]) / MEGABYTE,
        "tree": max(c.tree for c in runs[large]) / MEGABYTE,
    }


def _write_list(work: Path, scheme: str, port: int, size: int) -> Path:
    """Every picture has a URL of its own; hosts take turns."""
    hosts = -(-size // PER_HOST)
    urls = [f"{scheme}://{host(n % hosts)}:{port}/{n}" for n in range(size)]
    captions = [f"a picture of things, number {n}" for n in range(size)]
    path = work / f"{scheme}-{size}.parquet"
    pq.write_table(pa.table({"url": urls, "caption": captions}), path)
    return path


def _bundle(work: Path, certificate: Path) -> Path:
    """The system's authorities and the run's own certificate in one file, as a client of the web has them."""
    system = ssl.get_default_verify_paths().cafile or ssl.get_default_verify_paths().openssl_cafile
    bundle = work / "bundle.pem"
    own = certificate.read_bytes().partition(b"-----BEGIN PRIVATE")[0]
    bundle.write_bytes(Path(system).read_bytes() + own)
    return bundle


_OPTIONS = {
    "resize_only_if_bigger": "true", "encode_format": "jpg", "encode_quality": "95", "skip_reencode": "false",
}  # fmt: skip
_OPTIONS_AS_CODE = 'resize_only_if_bigger=True, encode_format="jpg", encode_quality=95, skip_reencode=False'


def _ours(work: Path, urls: Path, size: int, port: int, certificate: Path | None) -> Cost:
    hosts = [f"{host(n)}:{port}" for n in range(-(-size // PER_HOST))]
    with tempfile.TemporaryDirectory(dir=work) as output:
        command = [sys.executable, "-m", "jobs.cli", "crawl", "--input", str(urls), "--output", output]
        command += ["--shard_size", str(SHARD), "--image_size", "256", "--resize_mode", "keep_ratio"]
        command += [word for name, value in _OPTIONS.items() for word in (f"--{name}", value)]
        command += ["--workers", "1", "--ray.cpus", "1", "--fetch.allow_private", json.dumps(hosts)]
        command += ["--fetch.concurrency", str(CONCURRENCY), "--fetch.max_per_host", str(CONCURRENCY)]
        command += ["--fetch.ca_file", str(certificate)] if certificate else []
        cost = measure(command)
        _check(Path(output), size)
    return cost


def _theirs(work: Path, urls: Path, size: int, peer: Path, trusted: Path | None) -> Cost:
    with tempfile.TemporaryDirectory(dir=work) as folder:
        output = Path(folder) / "out"
        options = {
            "url_list": urls, "output_folder": output, "input_format": "parquet", "url_col": "url",
            "caption_col": "caption", "output_format": "webdataset", "number_sample_per_shard": SHARD,
            "image_size": 256, "resize_mode": "keep_ratio", "processes_count": 1,
            "thread_count": CONCURRENCY, "enable_wandb": False, "retries": 0, **_OPTIONS,
        }  # fmt: skip
        command = [
            str(peer.parent / "img2dataset"),
            *(f"--{name}={value}" for name, value in options.items()),
        ]
        env = {"NO_ALBUMENTATIONS_UPDATE": "1", **({"SSL_CERT_FILE": str(trusted)} if trusted else {})}
        cost = measure(command, env=env)
        _check(output, size)
    return cost


def _check(output: Path, size: int) -> None:
    """Both sides must have got every picture, or the figures compare different work."""
    got = sum(json.loads(path.read_text())["successes"] for path in output.glob("*_stats.json"))
    if got != size:
        raise RuntimeError(f"{got} of {size} pictures were got; the figures would compare different work")


def _table(scheme: str, figures: dict[str, Any]) -> str:
    bare, ours, theirs = figures["bare"], figures[scheme]["pairmill"], figures[scheme]["img2dataset"]
    rows = [
        f"\n{scheme:<12}  CPU ms a picture   start, CPU s   largest process, MB   all processes, MB",
        f"{'bare':<12}  {bare['ms']:>16.2f}",
    ]
    for name, side in (("pairmill", ours), ("img2dataset", theirs)):
        rows.append(
            f"{name:<12}  {side['ms']:>16.2f}   {side['start']:>12.1f}   {side['process']:>19.0f}   "
            f"{side['tree']:>17.0f}"
        )
    rows.append(f"pairmill / bare {ours['ms'] / bare['ms']:.2f}")
    rows.append(f"img2dataset / pairmill {theirs['ms'] / ours['ms']:.2f}")
    return "\n".join(rows)
