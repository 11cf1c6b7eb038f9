"""What a release uploads, and the files by which other people's programs know the project."""

from __future__ import annotations

import email
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import tomllib

import gradwatch
from gradwatch.errors import DISTRIBUTION, MissingExtra

ROOT = Path(__file__).parent.parent
REPOSITORY = "https://code.example/team/gradwatch"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def command(name, *words, **environment):
    """The output of a command of this environment, which must succeed."""
    done = subprocess.run(
        [Path(sys.executable).parent / name, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A folder with the wheel and the source archive of a release whose repository is known."""
    folder = tmp_path_factory.mktemp("dist")
    command("hatchling", "build", "-d", folder, GRADWATCH_REPOSITORY=f"{REPOSITORY}/")
    return folder


@pytest.fixture(scope="module")
def metadata(release):
    with zipfile.ZipFile(next(release.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(wheel.read(name))


def test_the_index_would_take_the_release_and_show_its_readme(release):
    assert "PASSED" in command("twine", "check", "--strict", *release.iterdir())


def test_the_wheel_holds_the_package_and_nothing_beside_it(release):
    command("check-wheel-contents", next(release.glob("*.whl")))


def test_the_source_archive_holds_what_builds_and_tests_it_but_no_results_of_benchmarks(release):
    with tarfile.open(next(release.glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    assert {"Makefile", "mkdocs.yml", "hatch_build.py", "docs/index.md", "tests/test_packaging.py"} <= names
    assert not [name for name in names if name.startswith("benchmarks/results/")]


def test_the_version_has_one_source(metadata):
    assert metadata["Version"] == gradwatch.__version__
    assert "version" not in PROJECT["project"]
    assert f"## {gradwatch.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_name_that_hints_tell_to_install_is_the_name_of_the_distribution(metadata):
    assert metadata["Name"] == DISTRIBUTION == PROJECT["project"]["name"]
    assert f"pip install '{DISTRIBUTION}[live]'" in str(MissingExtra("bokeh", "live", "The live page"))


def test_extras_of_the_project_are_asked_for_by_the_name_of_the_distribution():
    own = re.compile(r"gradwatch[\w-]*(?=\[)")
    for requirements in PROJECT["project"]["optional-dependencies"].values():
        for requirement in requirements:
            found = own.match(requirement)
            assert found is None or found[0] == DISTRIBUTION, requirement


def test_every_link_and_picture_of_the_readme_leads_somewhere_from_the_index(metadata):
    text = re.sub(r"^```.*?^```", "", metadata.get_payload(), flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)\s]+)[^)]*\)", text)
    assert targets
    for target in targets:
        if not target.startswith("#"):
            assert re.match(r"https://", target), target
    ref = f"v{gradwatch.__version__}"
    pictures = re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", text)
    assert pictures
    assert all(picture.startswith(f"{REPOSITORY}/raw/{ref}/docs/pictures/") for picture in pictures)


def test_the_project_page_on_the_index_links_to_the_repository(metadata):
    urls = dict(line.split(", ") for line in metadata.get_all("Project-URL"))
    assert {"Homepage", "Documentation", "Source", "Issues", "Changelog"} == set(urls)
    assert all(url.startswith(REPOSITORY) for url in urls.values())


def test_a_picture_that_is_a_link_is_made_absolute_on_both_levels():
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    hatch_build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hatch_build)
    text = "[![run](docs/a.png)](docs/a.md#b) [here](#x) [there](https://code.example) ![p](b.png)"
    assert hatch_build.absolute(text, "https://r", "v1") == (
        "[![run](https://r/raw/v1/docs/a.png)](https://r/blob/v1/docs/a.md#b) [here](#x) [there](https://code.example) "
        "![p](https://r/raw/v1/b.png)"
    )


def test_the_groups_of_a_developer_hold_what_make_needs():
    groups = PROJECT["dependency-groups"]
    assert [entry["include-group"] for entry in groups["dev"]] == ["lint", "test", "package"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "--group dev" in makefile
    assert "--group docs" in makefile


# -- the files of the repository's host --------------------------------------------------------------------------

SCHEMAS = {
    "vendor.github-workflows": ".github/workflows/*.yml",
    "vendor.github-issue-forms": ".github/ISSUE_TEMPLATE/[!c]*.yml",
    "vendor.github-issue-config": ".github/ISSUE_TEMPLATE/config.yml",
    "vendor.dependabot": ".github/dependabot.yml",
    "vendor.citation-file-format": "CITATION.cff",
    "vendor.compose-spec": "examples/team/compose*.yaml",
}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_the_file_follows_its_schema(schema):
    command("check-jsonschema", "--builtin-schema", schema, *ROOT.glob(SCHEMAS[schema]))


def test_the_workflows_offer_nothing_to_an_attacker():
    command("zizmor", "--offline", "--quiet", ".github")


def test_every_make_target_of_a_workflow_exists():
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for workflow in (ROOT / ".github" / "workflows").glob("*.yml"):
        named = re.findall(r"\bmake ([a-z0-9]+)", workflow.read_text(encoding="utf-8"))
        assert named
        assert set(named) <= targets, workflow.name


def test_a_review_of_the_repository_finds_no_failure():
    """By the development guide of Scientific Python; pyproject.toml says what is left out, and why."""
    command("sp-repo-review", "--format", "json", ".")


def test_no_page_speaks_of_people_or_addresses_that_do_not_exist():
    for name in ("SECURITY.md", "CODE_OF_CONDUCT.md", "CITATION.cff"):
        assert not re.search(r"[\w.]+@[\w.]+", (ROOT / name).read_text(encoding="utf-8")), name


# -- make ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", ["ruff format", "ruff check", "codespell", "mypy", "python tests/typing"])
def test_make_check_stops_at_the_first_fault_and_says_how_to_mend_it(tmp_path, failing):
    """With commands that do nothing, but for one that fails."""
    (tmp_path / "bin").mkdir()
    (tmp_path / ".ready").touch()
    for name in ("ruff", "codespell", "mypy", "python"):
        script = tmp_path / "bin" / name
        script.write_text(f'#!/bin/sh\ncase "{name} $*" in "{failing}"*) exit 1;; esac\n')
        script.chmod(0o755)
    # Inside `make test` a make that inherits these counts itself as a part of it, and says so in other lines.
    alone = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    call = ["make", "check", f"VENV={tmp_path}"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=60, env=alone)
    assert done.returncode != 0
    assert re.search(r"\nmake check stopped\. To mend it: \w+ .{5,}\n$", done.stdout), done.stdout
    assert done.stdout.strip().splitlines()[-3].startswith(failing)


def test_every_target_of_make_says_what_it_does():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.search(r"^\.PHONY: (.*)$", text, re.M)[1].split())
    told = set(re.findall(r"^([a-z0-9]+):.*## \S", text, re.M))
    assert phony == told | {"help"}
