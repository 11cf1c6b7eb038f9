"""What the metadata of a release says beyond pyproject.toml: where the repository is, and a README with working links.

The README links to files beside it. On the package index these links lead nowhere, so they become links into the
repository, at the tag of the version. The address of the repository comes from the environment variable
`GRADWATCH_REPOSITORY`, which the release workflow sets, so that a fork publishes its own address. Without it the README
stays as it is and the metadata holds no address.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)\[((?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\((?![a-z]+:|#)([^)\s]+)\)")


def absolute(text: str, repository: str, ref: str) -> str:
    """Markdown whose links to files of the repository lead into `repository` at `ref`, pictures to their bytes."""

    def link(match: re.Match[str]) -> str:
        picture, label, target = match.groups()
        kind = "raw" if picture else "blob"
        return f"{picture}[{LINK.sub(link, label)}]({repository}/{kind}/{ref}/{target})"

    return LINK.sub(link, text)


def urls(repository: str, ref: str) -> dict[str, str]:
    """`[project.urls]`, by the labels that the package index knows."""
    return {
        "Homepage": repository,
        "Documentation": f"{repository}/blob/{ref}/docs/index.md",
        "Source": repository,
        "Issues": f"{repository}/issues",
        "Changelog": f"{repository}/blob/{ref}/CHANGELOG.md",
    }


class ReleaseMetadata(MetadataHookInterface):
    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository = os.environ.get("GRADWATCH_REPOSITORY", "").rstrip("/")
        if repository:
            ref = f"v{metadata['version']}"
            readme = absolute(readme, repository, ref)
            metadata["urls"] = urls(repository, ref)
        metadata["readme"] = {"content-type": "text/markdown", "text": readme}
