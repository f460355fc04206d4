"""The rows that a column stage is asked about: of images or candidates, with the columns it needs, those that
`where` names.

    asked = Asked(input="images", columns=["columns/language"], where="language = 'en'", needs=("uid",))
    units = asked.units(shared)              # one for each shard of images, or part of candidates
    table, refused = asked.read(units[0])    # its rows, and why a row is not asked about (null: it is)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import candidates, columns, inputs
from pipeline.errors import ConfigError
from pipeline.predicate import NOT_SELECTED, Predicate
from pipeline.stage import Input, Unit

#: what candidates are not stored with, and what it is made from
_MADE = {"uid": ("caption", "url")}
#: what every input has, so that no column folder is needed for it
_OWN = frozenset({"key", "caption", "url", "uid"})


class Asked:
    """Plans and reads the rows; cheap to build and to pickle."""

    def __init__(
        self,
        *,
        input: str,
        columns: Sequence[str] | str,
        where: str | None,
        needs: Collection[str],
        uses: Collection[str] = (),
    ) -> None:
        """Raises ConfigError for a predicate that is none, or columns that nothing asks for.

        needs: columns that each row must bring beside its key. uses: those that it brings where they are.
        """
        self.input, self.folders, self.needs, self.uses = input, columns, tuple(needs), tuple(uses)
        self.where = Predicate(where) if where is not None else None
        if columns and where is None and not set(needs) - _OWN:
            raise ConfigError(f"columns {columns!r} are there for --where, which is not given")

    def units(self, shared: Sequence[Input] = ()) -> list[Unit]:
        """One unit for each shard or part: its file, what all units share, its sidecars.

        Raises:
            ConfigError: the input or a sidecar is missing, or a column that is asked for.
        """
        of_candidates = candidates.is_candidates(self.input)
        found = candidates.parts(self.input) if of_candidates else inputs.shards(self.input, ".tar")
        name = "part" if of_candidates else "shard"
        folders = columns.open_folders(self.folders)
        units = [
            Unit(
                number=s.number,
                source={name: s.number},
                inputs=(s.input, *shared, *(folder.shard(s.number) for folder in folders)),
            )
            for s in found
        ]
        if self.where is not None or set(self.needs) - _OWN:
            self._check(self.schema(units[0]))
        return units

    def _check(self, schema: pa.Schema) -> None:
        if self.where is not None:
            self.where.check(schema)
        missing = [name for name in self.needs if name not in schema.names and name not in _MADE]
        if missing:
            raise ConfigError(
                f"{self.input}: column {missing[0]!r} is needed, which neither the input nor --columns has; "
                f"known columns: {', '.join(schema.names)}"
            )

    def schema(self, unit: Unit) -> pa.Schema:
        """What the rows of a unit may bring, from footers alone."""
        url = unit.inputs[0].url
        if "part" in unit.source:
            return candidates.joined_schema(url, self._sidecars(unit))
        return columns.joined_schema(inputs.sibling(url, ".parquet"), self._sidecars(unit))

    def _sidecars(self, unit: Unit) -> list[str]:
        own = len(unit.inputs) - len(columns.listed(self.folders))
        return [i.url for i in unit.inputs[own:]]

    def read(self, unit: Unit) -> tuple[pa.Table, pa.StringArray]:
        """The successes of a shard, or all rows of a part, with their columns; and for each row the reason
        why it is not asked about, null where it is.

        Raises:
            InputError: a file is missing or damaged.
        """
        url = unit.inputs[0].url
        wanted = {name.lower() for need in self.needs for name in _MADE.get(need, (need,))}
        named = {*wanted, *self.uses, *(self.where.columns if self.where is not None else ())}
        if "part" in unit.source:
            table = candidates.read_part(url, named)
        else:
            table = columns.read_images(inputs.sibling(url, ".parquet"))
        table = columns.join(table, ((s, columns.read_column(s, named)) for s in self._sidecars(unit)))
        if "uid" in self.needs and "uid" not in table.column_names:
            table = columns.add_uid(table)
        if "status" in table.column_names:
            table = table.filter(pc.equal(table["status"], columns.SUCCESS))
        if self.where is None:
            return table, pa.nulls(len(table), pa.string())
        return table, self.where.refusals(table, NOT_SELECTED)
