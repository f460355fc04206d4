"""A rule over columns: one SQL expression, such as `clip_score >= 0.28 AND language = 'en'`.

DuckDB parses and evaluates it. What it may be is checked on the parsed expression before anything runs: no
second statement, no subquery, no function that gives other values on another day. The connection that runs
it sees one Arrow table, and neither files, network, extensions nor Python's variables; its configuration is
locked. A row is kept where the expression is true; null keeps nothing, and is a drop reason of its own.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError

#: drop reason of a row that a predicate (as against a named rule) did not keep
PREDICATE = "predicate"
#: the same where a predicate says what is to be fetched or judged, which is no verdict about the row
NOT_SELECTED = "not_selected"

_FORBIDDEN = {
    "SUBQUERY": "a subquery",
    "WINDOW": "a window function",
    "STAR": "`*` or COLUMNS()",
    "PARAMETER": "a parameter",
    "DEFAULT": "DEFAULT",
}
#: lookups in the machine's own state, which DuckDB defines as macros without a stability of their own
_STATEFUL_PREFIXES = ("pg_", "inet_", "has_", "current_", "session_", "duckdb_")
_STATEFUL = frozenset({"user", "ago", "get_block_size"})


class Predicate:
    """One boolean SQL expression over columns; picklable, cheap to build.

    Attributes:
        text: the expression as given.
        columns: the columns it names, in lower case.
    """

    def __init__(self, text: str) -> None:
        """Raises ConfigError when the text is not a single expression that may be evaluated."""
        self.text = text
        nodes = list(_walk(_parse(text)))
        for node in nodes:
            kind = node.get("class")
            if kind in _FORBIDDEN:
                raise ConfigError(
                    f"predicate {text!r} holds {_FORBIDDEN[kind]}; give one expression over columns"
                )
            if kind == "FUNCTION":
                _check_function(node["function_name"], text)
        bound = {name for node in nodes if node.get("class") == "LAMBDA" for name in _lambda_names(node)}
        named = {n["column_names"][0].lower() for n in nodes if n.get("class") == "COLUMN_REF"}
        self.columns = frozenset(named - bound)

    def __repr__(self) -> str:
        return f"Predicate({self.text!r})"

    def check(self, schema: pa.Schema) -> None:
        """Raises ConfigError unless the expression is boolean over tables of this schema."""
        self.evaluate(schema.empty_table())

    def refusals(self, table: pa.Table, reason: str) -> pa.StringArray:
        """Null for every row that is kept; else `reason`, or `REASON_null` where the expression is null.

        Raises:
            ConfigError: as `evaluate`.
        """
        kept = self.evaluate(table)
        refused = pc.if_else(kept, pa.scalar(None, pa.string()), reason)
        return pc.if_else(pc.is_null(kept), f"{reason}_null", refused).cast(pa.string())

    def evaluate(self, table: pa.Table) -> pa.BooleanArray:
        """True, false or null for every row.

        Raises:
            ConfigError: a column is unknown, types do not go together, the result is not boolean, or a value
                cannot be computed (a failed cast).
        """
        known = {name.lower(): name for name in table.column_names}
        unknown = sorted(self.columns - known.keys())
        if unknown:
            raise ConfigError(_unknown_column(self.text, unknown[0], sorted(known)))
        # a table without columns has no length in SQL: a row number stands beside those that are named
        names = [known[name] for name in sorted(self.columns)]
        rows = _readable(table.select(names)).append_column(
            "__row__", pa.array(range(len(table)), pa.int64())
        )
        with _connection() as connection:
            connection.register("rows", rows)
            try:
                # the line break ends a trailing comment
                answer = connection.sql(f"SELECT (\n{self.text}\n) AS kept FROM rows ORDER BY __row__")
                kind = str(answer.types[0])
                if kind == '"NULL"' and names:  # a column without any value in this shard
                    return pa.nulls(len(table), pa.bool_())
                if kind != "BOOLEAN":
                    raise ConfigError(
                        f"predicate {self.text!r} gives {kind}, not true or false; compare it with a value"
                    )
                kept = answer.to_arrow_table()["kept"]
            except duckdb.Error as error:
                raise ConfigError(f"predicate {self.text!r}: {_first_line(error)}") from error
            finally:
                connection.unregister("rows")
        return kept.combine_chunks() if kept.num_chunks else pa.array([], pa.bool_())


def _readable(table: pa.Table) -> pa.Table:
    """DuckDB takes no 16-bit floats from Arrow: embeddings become lists of 32-bit ones."""
    for at, field in enumerate(table.schema):
        kind = field.type
        if not (pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)):
            continue
        if pa.types.is_float16(kind.value_type):
            size = kind.list_size if pa.types.is_fixed_size_list(kind) else -1
            wide = table.column(at).cast(pa.list_(pa.float32(), size))
            table = table.set_column(at, field.name, wide)
    return table


_threads = threading.local()


@contextlib.contextmanager
def _connection() -> Iterator[duckdb.DuckDBPyConnection]:
    """This thread's connection: opening one takes twenty times as long as asking ten thousand rows. One that
    has met an error is not used again."""
    connection = getattr(_threads, "connection", None) or _connect()
    _threads.connection = None
    yield connection
    _threads.connection = connection


def _connect() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(
        ":memory:",
        config={
            "enable_external_access": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "allow_community_extensions": "false",
            "python_enable_replacements": "false",
            "threads": "1",
            "memory_limit": "2GB",
            "lock_configuration": "true",
        },
    )


def _parse(text: str) -> dict[str, Any]:
    """The syntax tree of the expression; refuses whatever else the text makes of the statement around it."""
    if not text.strip():
        raise ConfigError("predicate '' is empty; give an expression such as clip_score >= 0.28, or none")
    try:
        with _connect() as connection:
            query = "SELECT json_serialize_sql(?)"
            row = connection.execute(query, [f"SELECT (\n{text}\n)"]).fetchone()
    except (duckdb.Error, UnicodeError) as error:
        raise ConfigError(f"predicate {text!r} cannot be read: {_first_line(error)}") from error
    tree: dict[str, Any] = json.loads(row[0]) if row else {"error": True}
    if tree["error"]:
        # DuckDB's own words first, where it has any
        raise ConfigError(
            f"predicate {text!r} is not one SQL expression: {tree.get('error_message', 'no tree')}"
        )
    statements = tree["statements"]
    select = statements[0]["node"]
    empty = ("modifiers", "where_clause", "group_expressions", "having", "sample", "qualify")
    alone = (
        len(statements) == 1
        and select["type"] == "SELECT_NODE"
        and len(select["select_list"]) == 1
        and select["from_table"]["type"] == "EMPTY"
        and not any(select.get(part) for part in empty)
    )
    if not alone:
        raise ConfigError(f"predicate {text!r} is more than one expression; give a single one, joined by AND")
    return select["select_list"][0]


def _walk(node: Any) -> Iterator[dict[str, Any]]:
    stack = [node]
    while stack:
        current = stack.pop()
        if isinstance(current, dict):
            yield current
            stack.extend(current.values())
        elif isinstance(current, list):
            stack.extend(current)


def _lambda_names(node: dict[str, Any]) -> Iterator[str]:
    """The parameters of a lambda: what stands left of its arrow, or its list of names."""
    for part in _walk(node.get("lhs")):
        if part.get("class") == "COLUMN_REF":
            yield part["column_names"][0].lower()


@functools.cache
def _functions() -> tuple[frozenset[str], frozenset[str]]:
    """Names of functions of a row's values alone, and names of those that depend on more than these."""
    query = "SELECT lower(function_name), function_type, stability FROM duckdb_functions()"
    with _connect() as connection:
        found = connection.execute(query).fetchall()
    scalar = {name for name, kind, _ in found if kind in ("scalar", "macro")}
    unstable = {name for name, kind, stability in found if kind == "scalar" and stability != "CONSISTENT"}
    return frozenset(scalar), frozenset(unstable)


def _check_function(name: str, text: str) -> None:
    name = name.lower()
    scalar, unstable = _functions()
    if name in unstable or name in _STATEFUL or name.startswith(_STATEFUL_PREFIXES):
        raise ConfigError(
            f"predicate {text!r} calls {name}(), whose value is not given by the columns; a rule must give "
            "the same answer on every day and machine"
        )
    if name not in scalar:
        near = difflib.get_close_matches(name, scalar, 1)
        hint = f"; did you mean {near[0]}()?" if near else "; only functions of single values may be used"
        raise ConfigError(f"predicate {text!r} calls {name}(), which is no function of a row{hint}")


def _unknown_column(text: str, name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"predicate {text!r} names the unknown column {name!r}{hint}; known columns: {', '.join(known)}"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
