"""Numbers for the page's script: JSON inside a `<script>` element that no browser runs.

Such an element ends at the first `</script`, and `<!--` turns its rules around, whatever JSON thinks of them;
so `<`, `>` and `&` are written as escapes, and so is all that is not ASCII (U+2028 ends a line).
"""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
from markupsafe import Markup

_ESCAPES = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}


def json_in_script(value: Any) -> Markup:
    """JSON that means the same and holds nothing that HTML could take for its own.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.translate(_ESCAPES))


def packed(codes: np.ndarray) -> str:
    """Whole numbers below 65536 as base64 of little-endian pairs of bytes, column after column."""
    return base64.b64encode(np.ascontiguousarray(codes.T).astype("<u2").tobytes()).decode()
