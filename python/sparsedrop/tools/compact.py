"""JSON that reads as a table: a line for each list or object that holds plain values alone."""

from __future__ import annotations

import json
import re
from typing import Any

_INNERMOST = re.compile(r"[\[{]\n[^\[\]{}]*[\]}]")
_AT_AN_END = re.compile(r"\A\n\s*|\n\s*\Z")
_BREAK = re.compile(r"\n\s*")


def dumps(data: Any) -> str:
    """The JSON of data. No string in JSON has a line break of its own, so none is changed."""
    return _INNERMOST.sub(_on_a_line, json.dumps(data, indent=1)) + "\n"


def _on_a_line(found: re.Match[str]) -> str:
    text = found.group()
    return text[0] + _BREAK.sub(" ", _AT_AN_END.sub("", text[1:-1])) + text[-1]
