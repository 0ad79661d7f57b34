"""The house stands: imports point down, rooms stay small, names are clear, and nothing points at what is not there."""

import ast
import io
import json
import re
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "gmar_utils"
sys.path.insert(0, str(ROOT / "_ext"))
import house  # noqa: E402

FLOOR = {room: level for level, floor in enumerate(house.FLOORS) for room in floor}
FILES = sorted(PACKAGE.rglob("*.py"))
LIBRARY = [p for p in FILES if p.relative_to(PACKAGE).parts[0] != "teaching"]
CODE = sorted(p for f in ("gmar_utils", "tests", "_ext", "book") for p in (ROOT / f).rglob("*.*"))
PYTHON = [p for p in CODE if p.suffix == ".py"]
BROWSER = [p for p in CODE if p.suffix in (".js", ".css") and "vendor" not in p.parts]
TEXTS = [*PYTHON, *(ROOT / "book").rglob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]
TEXTS += [ROOT / n for n in ("README.md", "CONTRIBUTING.md", "Makefile", "GPU_JOBS.md", "pyproject.toml", ".ci/run")]


def name(path):
    return str(path.relative_to(ROOT))


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def lines_of_code(path):
    """Without blank lines, comments and docstrings."""
    text = path.read_text(encoding="utf8")
    tree, kept = ast.parse(text), set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.string.strip() and token.type not in (tokenize.COMMENT, tokenize.ENCODING):
            kept |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            kept -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(kept)


def size(chosen):
    return sum(lines_of_code(path) for path in FILES if chosen(room(path)))


# --- imports ----------------------------------------------------------------------------------------------------------


def test_every_room_has_its_floor():
    assert set(house.rooms()) <= set(FLOOR), "give the new room its floor in _ext/house.py"
    assert set(FLOOR) == set(house.SIGNS)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_point_down(path):
    """Nothing imports a room above it or beside it. The package's own names are for the roof: `cli` and `teaching`."""
    mine = room(path)
    for other in house.imports(path) - {mine, "__version__"}:
        if mine == "__init__":
            assert other in FLOOR and FLOOR[other] < FLOOR["cli"], f"the door opens on {other}"
        elif mine == "__main__":
            assert other == "cli"
        elif other in FLOOR:
            assert FLOOR[other] < FLOOR[mine], f"{mine} imports {other}, which stands above or beside it"
        else:
            assert mine in ("cli", "teaching"), f"{mine} imports gmar_utils.{other}: import it from its own room"


def test_only_the_book_imports_teaching():
    """In the library's words and in its code: an import that is put together at run time shows as a word."""
    for path in LIBRARY:
        if room(path) != "__init__":
            assert "teaching" not in path.read_text(encoding="utf8"), name(path)


def test_an_upward_import_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(house, "PACKAGE", tmp_path / "gmar_utils")
    inside = tmp_path / "gmar_utils/capture/deep.py"
    inside.parent.mkdir(parents=True)
    for line, rooms in {
        "from ..viz import grid": {"viz"},
        "from .. import viz": {"viz"},
        "from . import target": {"capture"},
        "from .target import score": {"capture"},
        "import gmar_utils.metrics.heads as h": {"metrics"},
        "from gmar_utils.model import Vit": {"model"},
        "from gmar_utils import trace": {"trace"},
        "def f():\n    from ..evaluation.run import evaluate": {"evaluation"},
        "import torch": set(),
    }.items():
        inside.write_text(line)
        assert house.imports(inside) == rooms, line


def test_the_picture_of_the_house_is_current():
    found = re.search(r"<dc:description>(.*?)</dc:description>", house.PICTURE.read_text(encoding="utf8"), re.S)
    drawn = json.loads(found[1].replace("&quot;", '"'))
    assert drawn == json.loads(house.plan()), "run `python _ext/house.py`"


# --- sizes and names --------------------------------------------------------------------------------------------------


def test_the_maps_are_an_evenings_reading():
    assert size(lambda r: r in ("capture", "methods")) <= 1400


def test_the_library_stays_small():
    assert size(lambda r: r not in ("teaching", "explorer", "export", "trustcard")) <= 4600


@pytest.mark.parametrize("path", [*PYTHON, *BROWSER], ids=name)
def test_no_file_is_long(path):
    assert path.read_text(encoding="utf8").count("\n") <= 400


def definitions(tree):
    return {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}


NAMESAKES = {"gmar_utils/cli/main.py"}  # a program starts in main, and no package exports it


@pytest.mark.parametrize("path", [p for p in FILES if name(p) not in NAMESAKES], ids=name)
def test_no_module_has_the_name_of_what_it_holds(path):
    """Else a package that exports the function hides the module: `gmar_utils.explain` was a function and a file."""
    tree = ast.parse(path.read_text(encoding="utf8"))
    assert path.stem not in definitions(tree)
    if path.name == "__init__.py":
        beside = {p.stem for p in path.parent.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
        bound = {a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) and n.module for a in n.names}
        assert path.parent.name not in definitions(tree)
        assert not beside & (definitions(tree) | bound), "a name that this package exports hides its module"


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_the_formatter_formats(path):
    text = path.read_text(encoding="utf8")
    assert not re.search(r"#\s*fmt: (?:skip|off)", text)


def public(body, prefix=""):
    """(name, function) of every public function and method, those of a public class included."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public(node.body, f"{prefix}{node.name}.")


def arguments(function):
    a = function.args
    found = [*a.posonlyargs, *a.args, *a.kwonlyargs, *(x for x in (a.vararg, a.kwarg) if x)]
    return [x for x in found if x.arg not in ("self", "cls")]


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_public_functions_say_what_they_take(path):
    wanting = []
    for title, function in public(ast.parse(path.read_text(encoding="utf8")).body):
        bare = [a.arg for a in arguments(function) if a.annotation is None]
        if bare or function.returns is None or not ast.get_docstring(function):
            wanting.append(title)
    assert not wanting


MADE = {"book/_static/social.png"}  # an address of the built site
FOLDERS = "gmar_utils|notebooks|tests|_ext|book/(?:reference|assets|teach|start)"
PATHS = rf"(?<![\w/.-])(?:{FOLDERS})/[\w/.-]+\.(?!html)\w+\b"  # .html: an address of the built site


@pytest.mark.parametrize("path", [p for p in TEXTS if p != Path(__file__)], ids=name)
def test_no_word_points_at_a_file_that_is_not_there(path):
    """Capital names such as `CONTRIBUTING.md`, and paths that begin with a folder of the project."""
    text = path.read_text(encoding="utf8")
    capital = set(re.findall(r"(?<![\w/.])[A-Z][A-Z_-]{3,}\.(?:md|cff)\b", text))
    found = sorted(capital | set(re.findall(PATHS, text)) - MADE)
    assert not [p for p in found if not (ROOT / p).exists()]


def test_no_property_locks_its_class():
    """functools.cached_property holds a lock of the class until Python 3.12, and a model's lock may be inside."""
    imported = re.compile(r"^(from|import) .*\bcached_property", re.M)
    assert not [name(p) for p in LIBRARY if imported.search(p.read_text(encoding="utf8"))]
