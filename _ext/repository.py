"""Write the repository's address, and the first cell of every notebook, everywhere at once: make set-repository URL=…

The address stands in _config.yml (repository.url). README.md, CITATION.cff and pyproject.toml repeat it between the
markers below; a notebook's first code cell installs from it what Colab lacks. Run without an address to write what
_config.yml says, for example into a new notebook.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+")
COLAB = "https://colab.research.google.com/github"
FIRST = "notebooks/00_first_map.ipynb"
UNSET = {
    "README.md": "To read it: `make book`, then open `_build/html/index.html`.",
    "CITATION.cff": "",
    "pyproject.toml": "",
}

# Colab brings all that the module needs, but the module: nothing that is there is replaced. Then say what runs here.
INSTALL = """\
# Installs what is missing (on Colab: the module) and says what runs here.
import importlib.util
if importlib.util.find_spec("gmar_utils") is None:
    %pip install --quiet --no-deps "gmar-utils @ {url}/archive/refs/tags/v{version}.zip"
if importlib.util.find_spec("anywidget") is None:
    %pip install --quiet --no-deps anywidget psygnal
"""
LOCAL = """\
# Says what runs here. If it fails, the module is missing: `pip install -e .` in the project's folder.
"""
VERSIONS = """\
import platform
import gmar_utils, torch, transformers
print("gmar_utils", gmar_utils.__version__, "| torch", torch.__version__, "| transformers", transformers.__version__)
print("Python", platform.python_version(), "on", torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU")
"""


def address() -> str:
    """The repository's address in _config.yml; empty until the owner sets it."""
    found = re.search(r'^repository:\n  url: "(.*)"$', (ROOT / "_config.yml").read_text(), re.M)
    return found[1]


def version() -> str:
    return re.search(r'^__version__ = "(.+)"$', (ROOT / "gmar_utils/__init__.py").read_text(), re.M)[1]


def first_cell(url: str) -> str:
    return ((INSTALL if url else LOCAL).format(url=url, version=version()) + VERSIONS).rstrip("\n")


def fenced(url: str) -> dict[str, str]:
    """What stands between the markers `repository` and `/repository` of each file."""
    if not url:
        return UNSET
    owner_name = url.removeprefix("https://github.com/")
    owner, _, name = owner_name.partition("/")
    pages = f"https://{owner.lower()}.github.io/{name}/"
    return {
        "README.md": f"[Read the book]({pages}) · [Try it on Colab]({COLAB}/{owner_name}/blob/main/{FIRST}) · "
        f"[Offline zip]({url}/releases/latest/download/book-offline.zip) · "
        f"![Tests]({url}/actions/workflows/tests.yml/badge.svg)",
        "CITATION.cff": f'repository-code: "{url}"',
        "pyproject.toml": f'[project.urls]\nRepository = "{url}"\nBook = "{pages}"',
    }


def write(url: str) -> None:
    config = ROOT / "_config.yml"
    config.write_text(re.sub(r'^(repository:\n  url: )".*"$', rf'\1"{url}"', config.read_text(), count=1, flags=re.M))
    for name, text in fenced(url).items():
        path = ROOT / name
        parts = re.split(r"(^(?:<!--|#) /?repository(?: -->)?$)", path.read_text(), flags=re.M)
        if len(parts) != 5:
            raise SystemExit(f"{name}: the two marker lines `repository` and `/repository` are not there.")
        parts[2] = f"\n{text}\n" if text else "\n"
        path.write_text("".join(parts))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf8"))
        cell = next((c for c in notebook["cells"] if c["id"] == "setup"), None)
        if cell is None:
            cell = {"cell_type": "code", "execution_count": None, "id": "setup", "metadata": {}, "outputs": []}
            first = next(
                (i for i, c in enumerate(notebook["cells"]) if c["cell_type"] == "code"), len(notebook["cells"])
            )
            notebook["cells"].insert(first, cell)
        cell["metadata"] = {"tags": ["setup", "hide-cell"]}
        cell["source"] = first_cell(url).splitlines(keepends=True)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf8")


if __name__ == "__main__":
    url = sys.argv[1].rstrip("/").removesuffix(".git") if len(sys.argv) > 1 and sys.argv[1] else address()
    if url and not ADDRESS.fullmatch(url):
        raise SystemExit(f"Expected https://github.com/OWNER/REPOSITORY, got {url!r}.")
    write(url)
    print(f"Repository: {url or 'not set'}")
