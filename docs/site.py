"""What the site does to a page: links to files outside of docs/ lead to the repository."""

from __future__ import annotations

import re
from typing import Any

OUTSIDE = re.compile(r"\]\(\.\./([^)\s]+)\)")


def on_page_markdown(markdown: str, *, config: dict[str, Any], **_: Any) -> str:
    return OUTSIDE.sub(rf"]({config['repo_url']}/blob/main/\1)", markdown)
