"""The house rules: who may import whom, what the documents promise, what must never be in the repository."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import in_parts
import pytest
import seconds

import gradwatch

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gradwatch"
MODULES = sorted(PACKAGE.rglob("*.py"))

#: The floors, from the ground up. A module imports only from its own floor and from those below it.
FLOORS = ("errors", "core", "diagnosis", "reading", "exporters", "report", "record", "recovery", "tf", "gradwatch")

#: Who may import these at module level or inside a function; the first part of the module's path.
ONLY = {
    "tensorflow": {"tf", "demo", "testing"},
    "keras": {"tf", "demo", "testing"},
    "prometheus_client": {"exporters"},
    "matplotlib": {"demo"},
}

#: Exceptions to the rules above, with the reason.
EXCEPTIONS = {
    ("exporters/tensorboard.py", "tensorflow"): "it writes TensorBoard's own files",
    ("cli/rows.py", "prometheus_client"): "it reads an exposition, with the parser of the library that wrote it",
}


def imports(path):
    """Absolute names of the modules that a file imports, inside functions and for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor(name):
    """The floor of a gradwatch module by its dotted name; whatever is not named above stands at the top."""
    parts = name.split(".")
    if parts[1:2] == ["rooms"]:
        return 0  # on the ground, beside the errors
    return FLOORS.index(parts[1]) if len(parts) > 1 and parts[1] in FLOORS else len(FLOORS) - 1


def dotted(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path):
    own = floor(dotted(path))
    for name in imports(path):
        if name.startswith("gradwatch."):
            assert floor(name) <= own, f"{path.name} ({FLOORS[own]}) imports {name} from a floor above it"
        if name == "gradwatch":
            assert own == len(FLOORS) - 1, f"{path.name} imports the package's own front door"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_imports_relatively_or_a_library_of_another_floor(path):
    assert not any(isinstance(n, ast.ImportFrom) and n.level for n in ast.walk(ast.parse(path.read_text())))
    place = path.relative_to(PACKAGE).as_posix()
    for name in imports(path):
        library = name.split(".")[0]
        allowed = ONLY.get(library)
        if allowed is not None and (place, library) not in EXCEPTIONS:
            assert place.split("/")[0] in allowed, f"{place} imports {library}"


def test_the_picture_of_the_house_shows_the_floors():
    picture = (ROOT / "docs" / "pictures" / "house.svg").read_text()
    shown = [name.split(",")[0] for name in re.findall(r'class="floor"[^>]*>([^<]+)<', picture)]
    assert tuple(reversed(shown)) == FLOORS


#: Imported where the distribution has another name. keras and ml_dtypes come with TensorFlow; tf_keras is the user's
#: choice.
DISTRIBUTIONS = {
    "yaml": "pyyaml",
    "mlflow": "mlflow-skinny",
    "keras": "tensorflow",
    "ml_dtypes": "tensorflow",
    "tf_keras": "tensorflow",
    "IPython": "the notebook itself",
}


def test_the_package_imports_only_what_its_distribution_asks_for():
    text = (ROOT / "pyproject.toml").read_text()
    asked = set(re.findall(r'"([a-z_-]+)>=', text.split("[dependency-groups]")[0]))
    for path in MODULES:
        for name in imports(path):
            library = name.split(".")[0]
            if library != "gradwatch" and library not in sys.stdlib_module_names:
                wanted = DISTRIBUTIONS.get(library, library.replace("_", "-"))
                assert wanted in asked, (
                    f"{path.relative_to(ROOT)} imports {library}, which pyproject.toml does not ask for"
                )


def test_no_module_imports_one_that_imports_it():
    known = {dotted(path): path for path in MODULES}

    def needs(path):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):  # a module out of a package is not the package
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                yield from (name if name in known else node.module for name in whole)
            elif isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)

    done = set()

    def follow(name, way):
        assert name not in way, " imports ".join((*way[way.index(name) :], name))
        if name not in done:
            for found in sorted({found for found in needs(known[name]) if found in known}):
                follow(found, (*way, name))
            done.add(name)

    for name in known:
        follow(name, ())


#: Longer than that, a module has more than one subject; these are tables.
TABLES = {"exporters/metrics.py", "grafana/health.py", "grafana/rule_tests.py"}
ROOMS = (
    "cli",
    "demo",
    "diagnosis",
    "exporters",
    "grafana",
    "reading",
    "record",
    "recovery",
    "report",
    "sinks",
    "telemetry",
)


@pytest.mark.parametrize("room", ROOMS)
def test_no_module_of_the_host_side_is_longer_than_400_lines(room):
    for path in (PACKAGE / room).rglob("*.py"):
        if path.relative_to(PACKAGE).as_posix() not in TABLES:
            assert len(path.read_text().splitlines()) <= 400, path.name


def test_the_core_loads_no_tensorflow():
    code = (
        "import pkgutil, importlib, sys, gradwatch.core as core\n"
        "for module in pkgutil.iter_modules(core.__path__): importlib.import_module('gradwatch.core.' + module.name)\n"
        "found = {'tensorflow', 'keras', 'prometheus_client'} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_front_door_opens_without_tensorflow_and_lists_what_is_behind_it():
    code = (
        "import sys, gradwatch\n"
        "assert 'tensorflow' not in sys.modules\n"
        "assert set(gradwatch.__all__) <= set(dir(gradwatch))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_public_name_can_be_had():
    for name in gradwatch.__all__:
        assert getattr(gradwatch, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        gradwatch.no_such_name  # noqa: B018


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").exists()


# -- what the documents promise -------------------------------------------------------------------------------

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_make_targets_and_gradwatch_commands_in_the_documents_exist(path):
    from gradwatch.cli import COMMANDS

    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.M))
    for line in "".join(blocks(path.read_text(), "(?:sh|console|bash)")).splitlines():
        words = line.removeprefix("$ ").split("#")[0].split()
        if words[:1] == ["make"] and len(words) > 1:
            assert words[1] in targets, line
        if words[:1] == ["gradwatch"] and len(words) > 1 and not words[1].startswith("-"):
            assert words[1] in COMMANDS, line
        if words[:1] == ["python"] and len(words) > 1 and words[1].endswith(".py") and "/" in words[1]:
            assert (ROOT / words[1]).exists(), line


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_in_the_documents_lead_to_files(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("block", blocks((ROOT / "README.md").read_text(), "python"))
def test_python_in_the_readme_compiles_and_uses_public_names(block):
    tree = ast.parse(block)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "gradwatch":
            assert hasattr(gradwatch, node.attr), node.attr


def test_the_table_of_the_policies_is_complete():
    text = (ROOT / "docs" / "policies.md").read_text()
    for name in gradwatch.policies.POLICIES:
        assert f"`{name}(" in text, name


# -- what must never be in the repository ---------------------------------------------------------------------


def tracked():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_nothing_of_the_machine_it_was_written_on_is_in_the_repository():
    # put together here, so that this file does not find itself
    folders = "|".join(re.escape("/" + name + "/") for name in ("work", "root", "home", "Users", "tmp"))
    options = "|".join("-".join(words) for words in (("index", "url"), ("find", "links"), ("", "", "hash=")))
    pattern = re.compile(rf"(?<![\w.~/}}$-])(?:{folders})|{options}")
    for path in tracked():
        if path.suffix in {".png", ".ico", ".woff2"} or path == Path(__file__):
            continue
        found = pattern.search(path.read_text(errors="replace"))
        assert not found, f"{path.relative_to(ROOT)} holds {found[0]!r}"


def test_no_file_is_large_that_no_test_and_no_page_reads():
    readers = [
        path for path in tracked() if path.suffix in {".py", ".md"} and path.parts[len(ROOT.parts)] != "gradwatch"
    ]
    for path in tracked():
        if path.stat().st_size > 500_000:
            assert any(path.name in reader.read_text(encoding="utf-8") for reader in readers), path


def test_constraints_are_exact_versions_and_nothing_else():
    for path in ROOT.glob("constraints*.txt"):
        for line in path.read_text().splitlines():
            assert re.fullmatch(r"(#.*|[A-Za-z0-9_.-]+==[A-Za-z0-9.!+]+|)", line.split("  #")[0].strip()), line


def test_make_test_runs_every_test_file_in_one_of_its_parts():
    files = [path for part in in_parts.parts() for path in part]
    everything = {path for path in (ROOT / "tests").rglob("test_*.py") if "e2e" not in path.parts}
    assert len(files) == len(set(files))
    assert set(files) == everything


def test_the_test_files_that_are_known_to_take_long_exist():
    stems = [path.stem for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(set(stems)) == len(stems)
    assert set(seconds.SECONDS) <= set(stems)
