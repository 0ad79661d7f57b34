"""What the book needs beyond Jupyter Book: offline pages, a build without solutions, links once the owner set them."""

import html
import json
import os
import re
from pathlib import Path

from PIL import Image

# In a notebook, transformers draws its progress bars as widgets, and a page with widgets loads their scripts.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def drop_scripts(app, pagename, templatename, context, doctree):
    """Leave out sphinx-thebe's scripts on every page: they name a CDN."""

    def unwanted(script):
        text = f"{getattr(script, 'filename', script)}{getattr(script, 'attributes', {})}".lower()
        return "thebe" in text

    for kind in ("script_files", "css_files"):
        context[kind] = [file for file in context[kind] if not unwanted(file)]


def escape_widget_state(app, pagename, templatename, context, doctree):
    """Labels and photo names stand in the saved widgets' JSON: whatever they hold, they do not end its script element.

    myst-nb escapes `</script>` in lower case only; a browser also ends the element at `</SCRIPT >`, and reads `<!--`.
    """
    for file in context["script_files"]:
        attributes = getattr(file, "attributes", {})
        if str(attributes.get("type", "")).endswith("+json") and attributes.get("body"):
            attributes["body"] = attributes["body"].replace("<", "\\u003c")


def drop_solutions(app, docname, source):
    """`make book SOLUTIONS=0`: a class sheet without the cells tagged `solution`."""
    if app.config.book_solutions or not str(app.env.doc2path(docname)).endswith(".ipynb"):
        return
    notebook = json.loads(source[0])
    notebook["cells"] = [c for c in notebook["cells"] if "solution" not in c["metadata"].get("tags", [])]
    source[0] = json.dumps(notebook)


def theme_options(app, config):
    """Repository link, issue and launch buttons exist once `repository.url` in _config.yml is set, and not before."""
    options = config.html_theme_options
    options["logo"] = {"text": config.project}
    url = options.get("repository_url")
    options.update(use_repository_button=bool(url), use_issues_button=bool(url))
    if url:
        owner, name = url.rstrip("/").split("/")[-2:]
        config.html_baseurl = f"https://{owner.lower()}.github.io/{name}/"
    else:
        options.pop("repository_url", None)
        options["launch_buttons"] = {}


def summary(body, most=180):
    """The first paragraph of a page, in plain words: in a chapter, what the reader will be able to do."""
    texts = (html.unescape(re.sub("<[^>]*>", "", p)) for p in re.findall(r"<p>(.*?)</p>", body, re.S))
    said = next((text for text in texts if len(text) > 20), "").removeprefix("You will be able to")
    said = re.sub(r"\s+", " ", said).strip()
    said = said[:1].upper() + said[1:]
    return said if len(said) <= most else said[: most + 1].rsplit(" ", 1)[0].rstrip(",;:") + " …"


def social_preview(app, pagename, templatename, context, doctree):
    """What search engines and links elsewhere say of a page; its picture needs the site's address."""
    title = re.sub("<[^>]*>", "", context.get("title", ""))
    said = html.escape(summary(context.get("body", "")) or app.config.project)
    tags = [f'<meta name="description" content="{said}">', '<meta property="og:type" content="article">']
    tags += [f'<meta property="og:title" content="{title}">', f'<meta property="og:description" content="{said}">']
    tags += [f'<meta property="og:site_name" content="{html.escape(app.config.project)}">']
    if app.config.html_baseurl:
        tags += [
            f'<meta property="og:url" content="{app.config.html_baseurl}{pagename}.html">',
            f'<meta property="og:image" content="{app.config.html_baseurl}_static/social.png">',
            '<meta name="twitter:card" content="summary_large_image">',
        ]
    context["metatags"] = context.get("metatags", "") + "".join(tags)


def plain_words(app, what, name, obj, options, lines):
    """Docstrings are Google's style with plain words in it: |Δy| and **options mean what they say, `x` is code, and a
    key such as [jo2025gmar] becomes a link to its entry."""
    for i, line in enumerate(lines):
        if line.lstrip().startswith((">>>", "...")):
            continue
        parts = re.split(r"(`+[^`]*`+)", line)  # text and code in turn
        parts[::2] = (re.sub(r"([*|])", r"\\\1", text) for text in parts[::2])
        parts[::2] = (re.sub(r"\[([a-z]+\d{4}[a-z]+)\]", r":cite:p:`\1`", text) for text in parts[::2])
        lines[i] = "".join(parts)


def shrink_pictures(app, exception):
    """Maps on photos take half a megabyte each as PNG and a tenth of it as WebP: a page stays light."""
    out = Path(app.outdir)
    heavy = [path for path in (out / "_images").glob("*.png") if path.stat().st_size > 40_000]
    for path in heavy:
        with Image.open(path) as picture:
            picture.convert("RGB").save(path.with_suffix(".webp"), quality=62, method=6)
    for page in out.rglob("*.html") if heavy else ():
        text = page.read_text(encoding="utf8")
        light = re.sub("|".join(re.escape(path.name) for path in heavy), lambda name: name[0][:-3] + "webp", text)
        if light != text:
            page.write_text(light, encoding="utf8")
    for path in heavy:
        path.unlink()


def setup(app):
    app.add_config_value("book_solutions", os.environ.get("SOLUTIONS") != "0", "env")
    app.connect("config-inited", theme_options)
    app.connect("html-page-context", social_preview)
    app.connect("source-read", drop_solutions)
    app.connect("autodoc-process-docstring", plain_words, priority=400)  # before napoleon
    app.connect("build-finished", shrink_pictures)
    app.connect("html-page-context", drop_scripts, priority=900)
    app.connect("html-page-context", escape_widget_state, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
