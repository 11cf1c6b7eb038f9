"""Names that come from a user's model, made safe to show.

A layer or monitor name may hold anything: quotes, line breaks, terminal escapes, ten thousand characters.
It ends up in label values, log lines and messages, so it passes through `clean` first.
"""

from __future__ import annotations

import hashlib
import unicodedata
from urllib.parse import urlsplit

#: Longest label value that leaves this process, in characters.
LABEL_LIMIT = 200

# Controls, format characters (bidirectional overrides), lone surrogates, line and paragraph separators.
_UNSAFE = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def clean(text: object, limit: int = LABEL_LIMIT) -> str:
    """`text` on one line, printable and at most `limit` (>= 16) characters long.

    A text that had to be changed ends in `~` and eight hexadecimal digits of its hash: two different names
    stay different, so no label set appears twice in one exposition.
    """
    original = str(text)
    safe = "".join("\ufffd" if unicodedata.category(c) in _UNSAFE else c for c in original[: limit + 1])
    if safe == original and len(original) <= limit:
        return original
    digest = hashlib.sha256(original.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{safe[: limit - 9]}~{digest}"


def redact(url: str) -> str:
    """`scheme://host` of a URL: paths, queries and user names carry secrets, so they are never logged."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return "(a URL that cannot be read)"
    return clean(f"{parts.scheme}://{host}" if parts.scheme else "(a URL without a scheme)")
