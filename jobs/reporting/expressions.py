"""Expressions of a rule taken apart and evaluated: DuckDB reads, writes and computes them.

`pipeline.predicate` says whether a row is kept; the report also needs what stands on the two sides of a
comparison. The texts that come here have passed that module's check; the connection has no more rights than
the one there.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Set
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from pipeline.errors import ConfigError

_threads = threading.local()
Node = dict[str, Any]


def _connection() -> duckdb.DuckDBPyConnection:
    """This thread's connection, opened once: without files, network, extensions or Python's variables."""
    found = getattr(_threads, "connection", None)
    if found is None:
        found = duckdb.connect(
            ":memory:",
            config={
                "enable_external_access": "false",
                "autoload_known_extensions": "false",
                "python_enable_replacements": "false",
                "threads": "1",
                "memory_limit": "2GB",
                "lock_configuration": "true",
            },
        )
        _threads.connection = found
    return found


def parse(text: str) -> Node:
    """The syntax tree of one expression, as DuckDB serialises it."""
    row = _connection().execute("SELECT json_serialize_sql(?)", [f"SELECT (\n{text}\n)"]).fetchall()[0]
    tree = json.loads(row[0])
    if tree["error"]:
        raise ConfigError(f"expression {text!r}: {tree.get('error_message', 'cannot be read')}")
    node: Node = tree["statements"][0]["node"]["select_list"][0]
    return node


def text_of(node: Node) -> str:
    """A syntax tree as SQL again, without brackets around the whole."""
    row = _connection().execute("SELECT json_serialize_sql('SELECT 1')").fetchall()[0]
    tree = json.loads(row[0])
    tree["statements"][0]["node"]["select_list"] = [{**node, "alias": ""}]
    query = "SELECT json_deserialize_sql(?::JSON)"
    words = str(_connection().execute(query, [json.dumps(tree)]).fetchall()[0][0])
    return unwrapped(words.removeprefix("SELECT ").strip())


def unwrapped(text: str) -> str:
    """Without the brackets around the whole expression."""
    while text.startswith("(") and _closes(text) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def _closes(text: str) -> int:
    """Where the bracket that a text begins with is closed; brackets inside of quotes are none."""
    depth, quote = 0, ""
    for at, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "()":
            depth += 1 if character == "(" else -1
            if not depth:
                return at
    return -1


def conjuncts(where: str) -> list[str]:
    """The parts of a predicate that AND joins at its top, as DuckDB reads it and writes it again."""
    return [text_of(node) for node in _flattened(parse(where))]


def _flattened(node: Node) -> list[Node]:
    if node.get("type") != "CONJUNCTION_AND":
        return [node]
    return [part for child in node["children"] for part in _flattened(child)]


def columns_in(node: Any) -> Iterator[str]:
    """The columns that a tree names, in lower case."""
    if isinstance(node, dict):
        if node.get("class") == "COLUMN_REF":
            yield node["column_names"][-1].lower()
        for value in node.values():
            yield from columns_in(value)
    elif isinstance(node, list):
        for value in node:
            yield from columns_in(value)


def constant(text: str) -> float | None:
    """The number that an expression without columns is; None where it is null or no number."""
    try:
        (value,) = _connection().execute(f"SELECT CAST((\n{text}\n) AS DOUBLE)").fetchall()[0]
    except duckdb.Error:
        return None
    return None if value is None or not np.isfinite(value) else float(value)


def kind_of(text: str, schema: pa.Schema) -> str:
    """DuckDB's type of an expression over tables of this schema.

    Raises:
        ConfigError: it cannot be evaluated over them.
    """
    connection = _connection()
    try:
        connection.register("rows", schema.empty_table())
        kind = str(connection.sql(f"SELECT (\n{text}\n) AS value FROM rows").types[0])
        connection.unregister("rows")
        return kind
    except duckdb.Error as error:
        _threads.connection = None
        raise ConfigError(f"expression {text!r}: {str(error).splitlines()[0]}") from error


def flags(table: pa.Table, texts: list[str]) -> list[np.ndarray]:
    """For each boolean expression, where it is true: null is false.

    An expression that fails on some row (a cast on what an earlier rule drops) counts as null there.

    Raises:
        ConfigError: one cannot be evaluated over the table at all.
    """
    return [
        np.asarray(column.fill_null(False).combine_chunks()) for column in _columns(table, texts, "BOOLEAN")
    ]


def numbers(table: pa.Table, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each numeric expression its values (float64) and where they are null."""
    found = []
    for column in _columns(table, texts, "DOUBLE"):
        null = np.asarray(column.is_null().combine_chunks())
        found.append((np.asarray(column.fill_null(0.0).combine_chunks()), null))
    return found


def _columns(table: pa.Table, texts: list[str], cast: str) -> list[pa.ChunkedArray]:
    if not texts:
        return []
    if not len(table):
        kind = pa.bool_() if cast == "BOOLEAN" else pa.float64()
        return [pa.chunked_array([pa.array([], kind)]) for _ in texts]
    try:
        answer = _evaluated(table, [f"CAST((\n{text}\n) AS {cast})" for text in texts])
    except duckdb.Error:
        try:
            answer = _evaluated(table, [f"TRY(CAST((\n{text}\n) AS {cast}))" for text in texts])
        except duckdb.Error as error:
            message = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"the rule cannot be evaluated: {message}") from error
    return [answer[f"v{i}"] for i in range(len(texts))]


def _evaluated(table: pa.Table, texts: list[str]) -> pa.Table:
    listed = ", ".join(f"{text} AS v{i}" for i, text in enumerate(texts))
    rows = table.append_column("__row__", pa.array(range(len(table)), pa.int64()))
    connection = _connection()
    _threads.connection = None  # one that has met an error is not used again
    connection.register("rows", rows)
    answer = connection.sql(f"SELECT {listed} FROM rows ORDER BY __row__").to_arrow_table()
    connection.unregister("rows")
    _threads.connection = connection
    return answer


def selected(table: pa.Table, names: Set[str]) -> pa.Table:
    """The columns of these names (lower case) alone: DuckDB is shown what it needs and no more. One column at
    least, for a table without any has no length."""
    found = [n for n in table.column_names if n.lower() in names]
    return table.select(found or table.column_names[:1])
