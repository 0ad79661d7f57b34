"""The sources of the book: clean notebooks, whole links and citations, described pictures, one repository address."""

import json
import re
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "_ext"))
import repository  # noqa: E402

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROSE = sorted((ROOT / "book").rglob("*.md"))
PAPERS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# Paths of a machine, and hosts of package registries (requirements that name one do not install elsewhere), put
# together at run time so that this file does not hold what it looks for.
FORBIDDEN = [rf"(?<![\w.])/{p}/" for p in ("root", "work", "home/(?!me)[a-z]+", "Users/[a-z]+", "tmp")]
FORBIDDEN += [
    re.escape(h) for h in ("py" + "pi.org", "registry." + "npmjs", "files." + "pythonhosted", "download." + "pytorch")
]


def name(path):
    return str(path.relative_to(ROOT))


def cells(path, kind=None):
    found = json.loads(path.read_text(encoding="utf8"))["cells"]
    return [c for c in found if kind in (None, c["cell_type"])]


def source(cell):
    return "".join(cell["source"])


def markdown(path):
    """The page's Markdown without code blocks and inline code."""
    text = (
        "\n\n".join(map(source, cells(path, "markdown")))
        if path.suffix == ".ipynb"
        else path.read_text(encoding="utf8")
    )
    text = re.sub(r"^(```|~~~)(?!\{).*?^\1\s*$", "", text, flags=re.M | re.S)
    return re.sub(r"`[^`\n]+`", lambda m: m[0] if text[m.start() - 1] == "}" else "", text)


def toc(part=None):
    part = part if part is not None else yaml.safe_load((ROOT / "_toc.yml").read_text())
    if isinstance(part, dict):
        yield from (part[k] for k in ("root", "file") if k in part)
        part = [v for v in part.values() if isinstance(v, list)]
    if isinstance(part, list):
        for child in part:
            yield from toc(child)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
class TestNotebook:
    def test_is_stored_without_outputs(self, path):
        for cell in cells(path, "code"):
            assert cell["outputs"] == [] and cell["execution_count"] is None, cell["id"]

    def test_metadata_is_normal(self, path):
        notebook = json.loads(path.read_text(encoding="utf8"))
        assert notebook["metadata"] == METADATA
        assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)

    def test_cell_ids_are_unique(self, path):
        ids = [c["id"] for c in cells(path)]
        assert all(re.fullmatch(r"[\w-]{1,64}", i) for i in ids) and len(ids) == len(set(ids))

    def test_cells_are_short(self, path):
        long = {c["id"]: source(c).count("\n") + 1 for c in cells(path, "code") if source(c).count("\n") >= 15}
        assert not long, f"lines in a cell (15 at most): {long}"

    def test_text_is_plain_markdown(self, path):
        """Colab and GitHub show MyST directives and roles as raw text."""
        for cell in cells(path, "markdown"):
            assert not re.search(r"^(```+|:::+)\s*\{|(?<![\w`$\\])\{[a-z:-]+\}`", source(cell), re.M), source(cell)[
                :200
            ]

    def test_figures_are_described(self, path):
        for cell in cells(path, "code"):
            if re.search(r"plt\.(subplots|show|figure)|viz\.(grid|forest|overlay)|sns\.|seaborn\.\w+\(", source(cell)):
                alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
                defines = re.match(r"\s*(def|class|import|from) ", source(cell))
                assert len(alt) > 20 or defines, f"{cell['id']}: a figure without mystnb.image.alt"

    def test_begins_with_the_setup_cell(self, path):
        first = cells(path, "code")[0]
        assert first["id"] == "setup" and "setup" in first["metadata"]["tags"]
        assert source(first) == repository.first_cell(repository.address()), "run `python _ext/repository.py`"

    def test_solutions_end_in_their_check(self, path):
        for cell in cells(path, "code"):
            if "solution" in cell["metadata"].get("tags", []):
                assert re.search(r"checks\.\w+\(|assert ", source(cell)), cell["id"]


REMOVED = {"setup", "remove-input", "remove-cell"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
class TestReading:
    """What a reader meets on the page."""

    def test_code_fits_the_page(self, path):
        shown = [c for c in cells(path, "code") if not REMOVED & set(c["metadata"].get("tags", []))]
        wide = {c["id"]: max(map(len, source(c).splitlines())) for c in shown}
        assert max(wide.values(), default=0) <= 88, wide

    def test_few_bars_hide_code(self, path):
        own = [set(c["metadata"].get("tags", [])) for c in cells(path) if c["metadata"].get("tags")]
        assert sum(bool(tags & {"hide-input", "hide-cell"} and "solution" not in tags) for tags in own) <= 8

    def test_folds_say_what_is_in_them(self, path):
        folds = [c for c in cells(path, "code") if "hide-output" in c["metadata"].get("tags", [])]
        assert all(c["metadata"].get("mystnb", {}).get("code_prompt_show") for c in folds)

    def test_figures_have_a_caption(self, path):
        """But for those that only paper shows, under the live picture, and those in a fold, which has its own line."""
        for cell in cells(path, "code"):
            about = cell["metadata"].get("mystnb", {})
            folded = {"still", "hide-output"} & set(cell["metadata"].get("tags", []))
            if "image" in about and not folded and cell["id"] != "map":  # a map's caption is its own
                assert about.get("figure", {}).get("caption"), cell["id"]


@pytest.mark.parametrize("path", [*NOTEBOOKS, *PROSE], ids=name)
class TestPage:
    def test_pictures_are_described(self, path):
        text = markdown(path)
        alts = [(m[2], m[1]) for m in re.finditer(r"!\[([^\]]*)\]\(([^)]+)\)", text)]
        for figure in re.finditer(r"^(`{3,}|:{3,})\{(?:image|figure)\} *(\S+)(.*?)^\1", text, re.M | re.S):
            alts.append((figure[2], (re.search(r"^:alt: (.+)$", figure[3], re.M) or ["", ""])[1]))
        for target, alt in alts:
            assert len(alt) > 10 and not re.search(r"\.(png|jpe?g|svg|webp)$|/", alt), f"{target}: {alt!r}"

    def test_links_inside_the_book_resolve(self, path):
        for target in re.findall(r"\]\(<?([^)\s>]+)>?\)|^:link: (\S+)", markdown(path), re.M):
            file = unquote("".join(target)).split("#")[0]
            if not file or re.match(r"[a-z]+:", file):
                continue
            place = path.parent / file
            assert any(place.with_name(place.name + end).exists() for end in ("", ".md", ".ipynb")), file

    def test_citations_have_their_entry(self, path):
        known = set(re.findall(r"^@\w+\{([^,]+),", (ROOT / "book/references.bib").read_text(encoding="utf8"), re.M))
        used = [k.strip() for m in re.finditer(r"\{cite(?::\w+)?\}`([^`]+)`", markdown(path)) for k in m[1].split(",")]
        assert set(used) <= known

    def test_is_reachable(self, path):
        if {"assets", "results"} & set(path.parts):
            pytest.skip("not a page")
        assert name(path.with_suffix("")) in set(toc())


def test_toc_names_only_what_exists():
    pages = list(toc())
    assert len(pages) == len(set(pages))
    for page in pages:
        assert (ROOT / f"{page}.md").exists() or (ROOT / f"{page}.ipynb").exists(), page


def test_method_citations_have_their_entry():
    from gmar_utils import METHODS

    bib = (ROOT / "book/references.bib").read_text(encoding="utf8")
    assert all(f"{{{m.citation}," in bib for m in METHODS.values() if m.citation)


def test_citations_in_docstrings_have_their_entry():
    """A key in brackets, such as [jo2025gmar], becomes a link on the API page."""
    bib = (ROOT / "book/references.bib").read_text(encoding="utf8")
    texts = [p.read_text(encoding="utf8") for p in (ROOT / "gmar_utils").rglob("*.py")]
    keys = {key for text in texts for key in re.findall(r"\[([a-z]+\d{4}[a-z]+)\]", text)}
    assert len(keys) > 5 and not [key for key in sorted(keys) if f"{{{key}," not in bib]


def tracked():
    folders = ("book", "notebooks", "gmar_utils", "tests", "_ext", ".github", ".ci")
    files = [p for f in folders for p in (ROOT / f).rglob("*") if p.is_file()]
    files += [
        p
        for p in ROOT.iterdir()
        if p.is_file() and p.suffix in {".md", ".toml", ".txt", ".yml", ".cff"} or p.name == "Makefile"
    ]
    return [p for p in files if p.suffix in TEXT and not {"vendor", "__pycache__"} & set(p.parts)]


TEXT = {".py", ".md", ".ipynb", ".toml", ".txt", ".yml", ".yaml", ".cff", ".csv", ".json", ".js", ".css", ".bib", ""}


def test_nothing_names_a_machine_or_a_registry():
    found = []
    for path in tracked():
        for i, line in enumerate(path.read_text(encoding="utf8", errors="replace").splitlines(), 1):
            found += [f"{name(path)}:{i}: {line.strip()[:120]}" for p in FORBIDDEN if re.search(p, line)]
    assert not found


def test_the_repository_is_the_same_everywhere():
    """The address in _config.yml rules; until it is set nothing links anywhere."""
    url = repository.address()
    for file, text in repository.fenced(url).items():
        parts = re.split(r"^(?:<!--|#) /?repository(?: -->)?$", (ROOT / file).read_text(encoding="utf8"), flags=re.M)
        assert parts[1].strip() == text.strip(), f"{file}: run `python _ext/repository.py`"
    if not url:
        for path in [*NOTEBOOKS, *PAPERS, ROOT / "pyproject.toml", ROOT / "CITATION.cff"]:
            badges = re.search(
                r"colab\.research\.google\.com/github|badge\.svg|github\.io", path.read_text(encoding="utf8")
            )
            assert not badges, f"{name(path)}: {badges[0]}"


def test_setting_the_repository_reaches_every_place(tmp_path, monkeypatch):
    for file in (
        "_config.yml",
        "README.md",
        "CITATION.cff",
        "pyproject.toml",
        "gmar_utils/__init__.py",
        name(NOTEBOOKS[0]),
    ):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text((ROOT / file).read_text(encoding="utf8"), encoding="utf8")
    monkeypatch.setattr(repository, "ROOT", tmp_path)
    repository.write("https://github.com/someone/some-book")
    assert repository.address() == "https://github.com/someone/some-book"
    for file in ("README.md", "CITATION.cff", "pyproject.toml", name(NOTEBOOKS[0])):
        assert "someone/some-book" in (tmp_path / file).read_text(encoding="utf8"), file
    repository.write("")
    for file in ("README.md", "CITATION.cff", "pyproject.toml", name(NOTEBOOKS[0])):
        assert "someone" not in (tmp_path / file).read_text(encoding="utf8"), file


def test_versions_agree():
    import gmar_utils

    assert f"version: {gmar_utils.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf8")
    assert f"## {gmar_utils.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf8")


def test_requirements_are_exact_and_cover_the_package():
    import tomllib

    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "requirements.txt").read_text(), re.M))
    pins = {k.lower().replace("_", "-"): v for k, v in pins.items()}
    lines = [x for x in (ROOT / "requirements.txt").read_text().splitlines() if x and not x.startswith("#")]
    assert len(lines) == len(pins), "every line is package==version"
    for need in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        package, low = re.fullmatch(r"([\w-]+)>=([\d.]+)", need).groups()
        assert package in pins, f"{package} is not pinned"
        assert tuple(map(int, re.findall(r"\d+", pins[package])[:2])) >= tuple(map(int, low.split("."))), need


def test_the_lowest_versions_are_those_that_the_package_admits():
    """`make compat` tests what pyproject.toml promises."""
    import tomllib

    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "tests/compat/lowest.txt").read_text(), re.M))
    newest = set(re.findall(r"^([\w-]+)", (ROOT / "tests/compat/newest.txt").read_text(), re.M))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for need in sum(project["optional-dependencies"].values(), project["dependencies"]):
        package, low = re.fullmatch(r"([\w-]+)>=([\d.]+)", need).groups()
        assert f"{pins[package]}.".startswith(f"{low}."), need
        assert package in newest
