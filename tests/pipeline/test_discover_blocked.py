"""Block lists of domains."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, InputError
from pipeline.stage import Counts
from pipeline.stages.discover import DiscoverConfig, DiscoverStage
from pipeline.stages.discover.blocked import BlockedDomains, read_domains
from tests.pipeline import web_archives as made
from tests.pipeline.effort import calls

LIST = """# nobody wants these
bad.example
*.worse.example   # with a remark
.Bücher.example

10.0.0.1
2001:db8::1
"""


@pytest.mark.parametrize(
    ("url", "blocked"),
    [
        ("http://bad.example/i.jpg", True),
        ("https://BAD.example:8443/i.jpg", True),
        ("http://bad.example.", True),
        ("http://cdn.img.bad.example?x", True),
        ("http://notbad.example/i.jpg", False),
        ("http://bad.example.org/i.jpg", False),
        ("http://a.example/bad.example/", False),
        ("http://worse.example#bad", True),
        ("http://www.worse.example/", True),
        ("http://xn--bcher-kva.example/i.jpg", True),
        ("http://www.bücher.example/i.jpg", True),
        ("http://10.0.0.1/i.jpg", True),
        ("http://10.0.0.10/i.jpg", False),
        ("http://[2001:DB8::1]:80/i.jpg", True),
        ("http://example/", False),
        ("data:bad.example", False),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_a_domain_means_itself_and_what_is_below_it(
    tmp_path: Path, url: str, blocked: bool, packed: bool
) -> None:
    (tmp_path / "list").write_bytes(gzip.compress(LIST.encode()) if packed else LIST.encode())
    assert BlockedDomains(read_domains(str(tmp_path / "list"))).blocks(url) is blocked


_names = st.lists(st.sampled_from(["a", "b", "example", "x-1"]), min_size=1, max_size=4).map(".".join)


@given(st.sets(_names, max_size=6), _names)
def test_looking_up_suffixes_is_comparing_with_every_domain(domains: set[str], host: str) -> None:
    expected = any(host == domain or host.endswith("." + domain) for domain in domains)
    assert BlockedDomains(domains).blocks(f"http://{host}/") == expected


def test_a_link_costs_the_same_however_long_the_list_and_the_name(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("\n".join(f"site{n}.example" for n in range(200_000)))
    blocked = BlockedDomains(read_domains(str(tmp_path / "list")))
    few = BlockedDomains({"site0.example"})
    least = calls(lambda: few.blocks("http://a.site0x.example/i.jpg"))
    for n, end in itertools.product(range(20), ("", "x")):
        answers: list[bool] = []
        url = "http://" + "a." * 50_000 + f"site{n}{end}.example/i.jpg"
        # a label at a time, of no more than a host's name may have
        assert calls(lambda url=url, to=answers: to.append(blocked.blocks(url))) < least + 200
        assert answers == [not end]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"http://bad.example/\n", "line 1 'http://bad.example/' is no domain; write example.org"),
        (b"ok.example\n0.0.0.0 bad.example\n", "line 2 '0.0.0.0 bad.example' is no domain"),
        (b"bad.example:80\n", "is no domain"),
        (b"\xff\xfe\n", "is not readable"),
        (gzip.compress(b"bad.example\n" * 500)[:-9], "is not readable"),
    ],
)
def test_what_is_no_list_of_domains_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "list").write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        read_domains(str(tmp_path / "list"))


PAGE = b"""<img src=http://cdn.bad.example/a.jpg alt="one"> <img src=/b.jpg alt="two">
<img src=http://fine.example/c.jpg alt="three">"""


def stage(folder: Path, text: str, *, block_pages: bool = False) -> DiscoverStage:
    (folder / "list.txt").write_text(text)
    pages = {"http://site.example/": PAGE, "http://www.bad.example/": PAGE}
    if not (folder / "x.warc.gz").exists():
        (folder / "x.warc.gz").write_bytes(made.warc(pages))
    return DiscoverStage(
        DiscoverConfig(
            input=str(folder / "x.warc.gz"), block_domains=str(folder / "list.txt"), block_pages=block_pages
        )
    )


def run(built: DiscoverStage) -> Counts:
    (unit,) = built.plan([])
    counts = built.run(unit, Path()).counts
    counts.check()
    return counts


def test_pictures_of_blocked_domains_are_dropped_and_pages_where_asked(tmp_path: Path) -> None:
    counts = run(stage(tmp_path, "bad.example"))
    assert counts.to_json() == {"in": 6, "out": 3, "dropped": {"blocked_domain": 3}}
    counts = run(stage(tmp_path, "bad.example", block_pages=True))
    assert counts.to_json() == {"in": 6, "out": 2, "dropped": {"blocked_domain": 4}}
    assert run(stage(tmp_path, "# none")).kept == 6


def test_what_a_list_blocks_is_part_of_the_digest_and_how_it_is_written_is_not(tmp_path: Path) -> None:
    def digest(text: str, *, block_pages: bool = False) -> str:
        built = stage(tmp_path, text, block_pages=block_pages)
        return built.plan([])[0].digest(built)

    base = digest("bad.example\nworse.example")
    assert digest("# changed\nworse.example\n\nBAD.example") == base
    assert digest("bad.example") != base
    assert digest("bad.example\nworse.example", block_pages=True) != base


def test_a_list_that_changes_during_the_run_is_refused(tmp_path: Path) -> None:
    built = stage(tmp_path, "bad.example")
    (unit,) = built.plan([])
    (tmp_path / "list.txt").write_text("worse.example")
    with pytest.raises(InputError, match="was changed since the run began"):
        built.run(unit, tmp_path)


def test_options_without_a_list_and_a_missing_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is none; add --block_domains"):
        DiscoverStage(DiscoverConfig(input="x", block_pages=True))
    built = stage(tmp_path, "")
    (tmp_path / "list.txt").unlink()
    with pytest.raises(ConfigError, match="is not there; mend --block_domains"):
        built.plan([])
