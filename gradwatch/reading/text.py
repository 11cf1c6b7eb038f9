"""Names that come from a user's model, made safe to show.

A layer or monitor name may hold anything: quotes, line breaks, terminal escapes, ten thousand characters.
It ends up in label values, log lines and messages, so it passes through `clean` first.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence
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


def short_names(names: Sequence[str], limit: int = 40) -> dict[str, str]:
    """Name -> what is shown of it, at most `limit` (>= 16) characters; two names stay two.

    If one is longer than that, the whole parts between "/" with which all begin or end are left out of all, and "…"
    stands for them; a ":0" at the end of all goes without a mark. What is still too long loses its middle.
    """
    names = list(dict.fromkeys(names))
    kept = _without_common_parts(names) if max(map(len, names), default=0) > limit else names
    short = {name: clean(_without_middle(text, limit), limit) for name, text in zip(names, kept)}
    times = Counter(short.values())
    return {name: clean(name, limit) if times[text] > 1 else text for name, text in short.items()}


def _without_common_parts(names: Sequence[str]) -> list[str]:
    if all(name.endswith(":0") for name in names):
        names = [name.removesuffix(":0") for name in names]
    parts = [name.split("/") for name in names]
    spare = min(map(len, parts)) - 1 if len(parts) > 1 else 0  # one part is left of each
    begin = next((i for i in range(spare) if len({part[i] for part in parts}) > 1), spare)
    end = next((i for i in range(spare - begin) if len({part[-1 - i] for part in parts}) > 1), spare - begin)
    return [("…/" if begin else "") + "/".join(p[begin : len(p) - end]) + ("/…" if end else "") for p in parts]


def _without_middle(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    head = (limit - 1) // 3
    return f"{text[:head]}…{text[head + 1 - limit :]}"


def redact(url: str) -> str:
    """`scheme://host` of a URL: paths, queries and user names carry secrets, so they are never logged."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return "(a URL that cannot be read)"
    return clean(f"{parts.scheme}://{host}" if parts.scheme else "(a URL without a scheme)")
