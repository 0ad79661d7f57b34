"""The book's own Sphinx extension."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "_ext"))
import book  # noqa: E402


def app(**config):
    return SimpleNamespace(config=SimpleNamespace(**config), env=SimpleNamespace(doc2path=lambda name: f"{name}.ipynb"))


def test_solutions_are_left_out_on_request():
    cells = [{"id": "a", "metadata": {}}, {"id": "b", "metadata": {"tags": ["solution", "hide-cell"]}}]
    for wanted, ids in ((True, ["a", "b"]), (False, ["a"])):
        source = [json.dumps({"cells": cells})]
        book.drop_solutions(app(book_solutions=wanted), "chapter", source)
        assert [c["id"] for c in json.loads(source[0])["cells"]] == ids


def test_no_button_leads_anywhere_until_the_repository_is_known():
    def options(url):
        config = SimpleNamespace(
            project="Book",
            html_baseurl="",
            html_theme_options={"repository_url": url, "launch_buttons": {"colab_url": "x"}},
        )
        book.theme_options(None, config)
        return config.html_theme_options, config.html_baseurl

    unset, address = options("")
    assert not unset["use_repository_button"] and not unset["use_issues_button"] and not address
    assert unset["launch_buttons"] == {} and "repository_url" not in unset
    known, address = options("https://github.com/Someone/book")
    assert known["use_repository_button"] and known["launch_buttons"] and address == "https://someone.github.io/book/"


def test_previews_need_the_sites_address():
    for address, shown in (("", False), ("https://someone.github.io/book/", True)):
        context = {"title": "A <em>map</em>"}
        book.social_preview(app(html_baseurl=address, project="Book"), "page", "page.html", context, None)
        assert ("https://someone.github.io/book/_static/social.png" in context.get("metatags", "")) == shown


def test_a_page_describes_itself():
    """By its promise, or by its first paragraph; in plain words, cut between words."""
    note = (
        "<p>Note.</p><p><strong>You will be able to</strong> say &quot;why&quot;.</p><p>More of it, at some length.</p>"
    )
    assert book.summary(note) == 'Say "why".'
    assert book.summary("<h1>A</h1><p>" + "word " * 60 + "</p>") == "Word " + "word " * 35 + "…"
    context = {"title": "A <em>map</em>", "body": note}
    book.social_preview(app(html_baseurl="", project="Book"), "page", "page.html", context, None)
    assert '<meta name="description" content="Say &quot;why&quot;.">' in context["metatags"]
    assert '<meta property="og:title" content="A map">' in context["metatags"]


def test_heavy_pictures_become_light_and_pages_follow(tmp_path):
    (tmp_path / "_images").mkdir()
    noise = Image.effect_noise((600, 600), 60).convert("RGB")
    noise.save(tmp_path / "_images/map.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "_images/icon.png")
    (tmp_path / "page.html").write_text('<img src="_images/map.png"><img src="_images/icon.png">')
    book.shrink_pictures(SimpleNamespace(outdir=tmp_path), None)
    assert (tmp_path / "page.html").read_text() == '<img src="_images/map.webp"><img src="_images/icon.png">'
    assert Image.open(tmp_path / "_images/map.webp").size == (600, 600)


def test_docstrings_may_hold_plain_words():
    lines = [
        "GMAR [jo2025gmar]: |Δy| * 2.",
        "Args:",
        "    **options: shape (B, R, C), values in [0, 1], labels [cat, cup], `a * b | c`.",
        ">>> f(**options)",
    ]
    book.plain_words(None, "function", "f", None, None, lines)
    assert lines[0] == r"GMAR :cite:p:`jo2025gmar`: \|Δy\| \* 2."
    assert lines[2] == r"    \*\*options: shape (B, R, C), values in [0, 1], labels [cat, cup], `a * b | c`."
    assert lines[3] == ">>> f(**options)"


NASTY = ["</SCRIPT >", "</script>", "<!-- <script>", "a < b", "$x$", "\\u003c\\\\", "</Script\n>"]


@pytest.mark.parametrize("label", NASTY)
def test_a_label_cannot_end_the_saved_widgets(label):
    """Nothing in the JSON can end its script element or open a comment in it, and it says what it said before."""
    state = {"state": {"1": {"labels": [label], label: 1}}}
    body = json.dumps(state).replace("</script>", r"<\/script>")  # as myst-nb writes it
    script = SimpleNamespace(attributes={"type": "application/vnd.jupyter.widget-state+json", "body": body})
    plain = SimpleNamespace(attributes={"body": "if (a < b) run()"})
    book.escape_widget_state(None, "p", "p.html", {"script_files": [script, plain, "plain.js"]}, None)
    assert "<" not in script.attributes["body"] and json.loads(script.attributes["body"]) == state
    assert plain.attributes["body"] == "if (a < b) run()"
