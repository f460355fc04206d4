"""What is asked of all samples together: at most N pairs with one text, at most N pictures of one domain,
the top by a column. Ordinary stages before pack's own, each of bounded memory, that hand files on:

    rows     a shard each     OUTPUT/_select_1_rows          what competes, and hashes of text and domain
    cap      a bucket each    OUTPUT/_select_2_text          which keys are too many
    settle   a shard each     OUTPUT/_select_3_text_left     what is left for the next limit
    cap                       OUTPUT/_select_4_domain
    settle                    OUTPUT/_select_5_domain_left
    top      one unit         OUTPUT/_select_6_top           the row at the cut
    settle   a shard each     OUTPUT/_select_7_verdicts      which keys are out, and why: what pack reads

Steps that are not asked for are left out. When shards were added, rows does the new ones and the others run
again; what pack does again are the groups for whose shards other verdicts came out.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.errors import ConfigError
from pipeline.stage import Stage
from pipeline.stages.pack.judge import Judge
from pipeline.stages.pack.rule import BELOW_TOP, PER_DOMAIN, PER_TEXT, Limits, RuleOptions
from pipeline.stages.pack.select.cap import Cap, CapConfig
from pipeline.stages.pack.select.rows import Rows, RowsConfig
from pipeline.stages.pack.select.settle import Settle, SettleConfig
from pipeline.stages.pack.select.state import CAPS
from pipeline.stages.pack.select.top import Top, TopConfig
from pipeline.storage import join

__all__ = ["Cap", "Rows", "Settle", "Top", "select_stages", "verdicts_folder"]

PREFIX = "_select_"
#: numbered in the order in which they are made from each other, which is also that of their names
_FOLDERS = {PER_TEXT: ("2_text", "3_text_left"), PER_DOMAIN: ("4_domain", "5_domain_left")}


def verdicts_folder(output: str) -> str:
    return join(output, f"{PREFIX}7_verdicts")


def select_stages(
    rule: RuleOptions,
    output: str,
    *,
    input: str,
    columns: Sequence[str],
    books: Sequence[str] | str,
    seed: int,
    buckets: int,
) -> list[tuple[Stage, str]]:
    """The stages with their output folders, in the order in which they are to be run, each after the one
    before it is finished; none where the rule asks nothing of all samples together.

    Raises:
        ConfigError: the rule cannot be read, or no bucket.
    """
    limits = Limits.of(rule)
    if not limits:
        return []
    if not 1 <= buckets <= 100_000:
        raise ConfigError(f"buckets {buckets} must be in 1..100000")
    caps = tuple(
        (reason, limit)
        for reason, limit in ((PER_TEXT, limits.per_text), (PER_DOMAIN, limits.per_domain))
        if limit
    )
    assert [reason for reason, _ in caps] == [reason for reason in CAPS if reason in dict(caps)]
    config = RowsConfig(
        where=rule.where,
        preset=rule.preset,
        captions=rule.captions,
        seed=seed,
        by=limits.by,
        of_all=limits.of_all,
        limits=caps,
        buckets=buckets,
    )
    states = join(output, f"{PREFIX}1_rows")
    judge = Judge(rule, books=books, seed=seed)
    found: list[tuple[Stage, str]] = [(Rows(config, judge, input=input, folders=columns), states)]
    for at, (reason, limit) in enumerate(caps):
        last = at == len(caps) - 1 and limits.top is None
        decided, left = (join(output, f"{PREFIX}{name}") for name in _FOLDERS[reason])
        left = verdicts_folder(output) if last else left
        cap = CapConfig(input=input, states=states, reason=reason, limit=limit, buckets=buckets)
        settle = SettleConfig(
            input=input,
            states=states,
            decided=decided,
            units=buckets,
            reason=reason,
            limits=caps[at + 1 :],
            buckets=buckets,
            last=last,
        )
        found += [(Cap(cap), decided), (Settle(settle), left)]
        states = left
    if limits.top is not None:
        assert rule.top is not None
        assert limits.by is not None
        decided = join(output, f"{PREFIX}6_top")
        top = TopConfig(input=input, states=states, top=rule.top, by=limits.by, of_all=limits.of_all)
        settle = SettleConfig(input=input, states=states, decided=decided, reason=BELOW_TOP, last=True)
        found += [(Top(top), decided), (Settle(settle), verdicts_folder(output))]
    return found
