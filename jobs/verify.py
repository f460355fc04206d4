"""Checks output folders against their manifests, and mends them: `pairmill verify images shards --fix`.

Prints one line for each damaged unit with what is wrong and the command that redoes it (`--json`: one JSON
object a line). `--fix` redoes just these units through the runner, as the folder's saved configuration says,
and checks them again. Exit code 0: all well, or mended; 1: damage is left.

A damaged unit of a crawl is fetched again from the web: pictures that the web has lost since are lost.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Collection, Sequence

from jobs.saved import Saved, load_saved
from jobs.stages import report_failed
from pipeline import commit, compacted, manifest, session, storage
from pipeline.progress import Progress
from pipeline.runner import run_stage
from pipeline.shards.format import shard_name
from pipeline.summary import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED
from pipeline.verify import Report, verify


def main(argv: Sequence[str]) -> int:
    """Checks folders one after the other; returns 0, 1 where damage is left, 75 stopped by a signal."""
    parser = argparse.ArgumentParser(
        prog="pairmill verify", description="Check every unit of output folders against its manifest."
    )
    parser.add_argument("folder", nargs="+", help="output folders of stages, or folders of img2dataset")
    parser.add_argument("--fix", action="store_true", help="redo the damaged units, and check them again")
    parser.add_argument("--quick", action="store_true", help="look at sizes only; read no part")
    parser.add_argument("--workers", type=int, default=0, help="units at a time; 0 takes all CPUs")
    parser.add_argument("--unit", type=int, action="append", help="only this unit; may be given again")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    known = parser.parse_args(list(argv))
    code = EXIT_DONE
    with session.shared_session():
        for folder in known.folder:
            found = _Check(folder, known).run()
            if found == EXIT_STOPPED:
                return found
            code = max(code, found)
    return code


class _Check:
    """One folder: checked, shown, mended, checked again."""

    def __init__(self, folder: str, options: argparse.Namespace) -> None:
        self.shown, self.folder, self.options = folder, storage.absolute(folder), options
        self.own = manifest.is_output(self.folder)

    def run(self) -> int:
        saved = load_saved(self.folder) if self.own and self.options.fix else None
        if saved is not None:
            for copy in manifest.list_folder(self.folder).lone_copies:
                compacted.restore(copy)
            if commit.roll_forward(self.folder):
                self._say("finished replacements that a crash had interrupted")
        report = self._verify(self.options.unit, quick=self.options.quick)
        self._show(report)
        if report.clean:
            return EXIT_DONE
        if not self.options.fix:
            return EXIT_FAILED
        if saved is None:
            self._say("no stage of ours wrote this folder: make the damaged shards again with what did")
            return EXIT_FAILED
        return self._mend(saved, report)

    def _verify(self, units: Collection[int] | None, *, quick: bool) -> Report:
        progress: list[Progress] = []

        def tell(done: int, total: int, detail: str) -> None:
            if not progress:
                progress.append(Progress("verify", total))
            progress[0].update(done, detail, force=done == total)

        report = verify(self.folder, units=units, quick=quick, workers=self.options.workers, tell=tell)
        if progress:
            progress[0].close(report.units)
        return report

    def _mend(self, saved: Saved, report: Report) -> int:
        for urls in manifest.list_folder(self.folder).compacted.values():
            for url in urls:
                compacted.mend(url)
        redo = {damage.unit for damage in report.damaged}
        before = self._contents(redo)
        if saved.verb == "crawl" and redo:
            self._say(self._told_of_fetching(saved, redo))
        summary = run_stage(saved.stage, self.folder, saved.options, redo=redo)
        report_failed(saved.verb, self.folder, summary)
        if summary.exit_code:
            return summary.exit_code
        again = self._verify(redo, quick=self.options.quick)
        whole = self._verify(None, quick=True)
        left = dataclasses.replace(
            whole, damaged=again.damaged + [d for d in whole.damaged if d.unit not in redo], missing=0
        )
        changed = sorted(
            n for n, content in self._contents(redo).items() if before.get(n, content) != content
        )
        if changed:
            names = ", ".join(shard_name(n) for n in changed[:5])
            self._say(f"{len(changed)} units have other content now ({names}): what was made of them before")
            self._say("is refused until its stage is run with --overwrite")
        self._say(f"{len(redo)} units redone" + ("" if left.clean else "; damage is left:"))
        if left.clean:
            return EXIT_DONE
        self._show(left)
        return EXIT_FAILED

    def _told_of_fetching(self, saved: Saved, redo: Collection[int]) -> str:
        sources = {u.number: u.source for u in manifest.read_units(self.folder)}
        rows = sum(stop - start for start, stop in (sources[n]["rows"] for n in redo if n in sources))
        what = f"{len(redo)} units ({rows:,} rows) will be"
        if saved.config.local_pictures:
            return f"{what} read from the folder of pictures again"
        return f"{what} fetched from the web again; pictures that it has lost since are lost"

    def _contents(self, units: Collection[int]) -> dict[int, str]:
        done = manifest.list_done(self.folder)
        return {number: done[number].content for number in units if number in done}

    def _show(self, report: Report) -> None:
        redo = f"pairmill verify {self.shown} --fix"
        if self.options.json:
            self._show_json(report, redo)
            return
        for damage in report.damaged:
            command = f"{redo} --unit {damage.unit}" if self.own else "make it again"
            print(f"{self.shown} {shard_name(damage.unit)}: {'; '.join(damage.wrong)} -> {command}")
        for text in (*report.unplanned, *report.indexes):
            print(f"{self.shown}: {text} -> {redo if text in report.indexes else 'remove it'}")
        for text in report.notes:
            print(f"{self.shown}: {text}")
        missing = f", {report.missing:,} planned and not done" if report.missing else ""
        print(
            f"{self.shown}: {report.units:,} units checked, {len(report.damaged):,} damaged{missing}, "
            f"{report.bytes / 1e9:,.2f} GB read"
        )

    def _show_json(self, report: Report, redo: str) -> None:
        for damage in report.damaged:
            row = {"folder": self.shown, "unit": damage.unit, "wrong": list(damage.wrong)}
            print(json.dumps({**row, "redo": f"{redo} --unit {damage.unit}"}))
        facts = dataclasses.asdict(report)
        facts |= {"folder": self.shown, "damaged": [d.unit for d in report.damaged], "clean": report.clean}
        print(json.dumps(facts))

    def _say(self, text: str) -> None:
        print(f"{self.shown}: {text}", file=sys.stderr if self.options.json else sys.stdout, flush=True)
