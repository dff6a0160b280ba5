"""Names in the report's Markdown: what means something there is escaped, what does not stays as it is."""

from __future__ import annotations

import html
import re

import pytest
from made_up import report, three_groups

from eval.report.markdown import code, plain

ORDINARY = (
    "quickstart_baseline", "teacher:tabletop_clip", "sharpened:bilinear?teacher=x&factor=2", "runs/a-seed0",
    "C-RADIOv4", "k-NN top-1", "R@1 (pairs_large)", "a__b", "größe_1", "50 %", "Δm% +3.1 ± 0.2",
)  # fmt: skip
HOSTILE = (
    "<b>", "*x*_y_ `c`", "**", "_x_", "__init__", "a_b_", "[a](b)", "![a", "a]", "~~x~~", "$x$", "x|y", "\\", "a\\|b",
    "&lt;", "&#60;", "``", "`a", "<script>alert(1)</script>", "<!-- x",
)  # fmt: skip


def rendered(text: str) -> str:
    """HTML of Markdown with GitHub's tables and strikes."""
    markdown_it = pytest.importorskip("markdown_it")
    return markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)


def shown(page: str) -> str:
    """The text of a piece of HTML."""
    return html.unescape(re.sub(r"<[^>]+>", "", page)).strip()


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_names_stay_as_they_are(name):
    assert plain(name) == name and code(name) == f"`{name}`"


@pytest.mark.parametrize("name", [*ORDINARY, *HOSTILE])
def test_every_name_is_shown_as_it_stands(name):
    for text in (f"as **{plain(name)}**.", f"# as {plain(name)}", f"- as ({plain(name)})."):
        assert shown(rendered(text)).strip("as ().") == name.strip("as ().")
    (cell,) = re.findall("<td>(.*)</td>", rendered(f"| a |\n|---|\n| {plain(name)} |\n"))
    assert html.unescape(cell) == name and not re.search("<[a-z]", cell)
    (alt,) = re.findall('<img src="x.png" alt="(.*?)"', rendered(f"![of {plain(name)}, {plain(name)}](x.png)"))
    assert html.unescape(alt) == f"of {name}, {name}"
    (cell,) = re.findall("<td><code>(.*)</code></td>", rendered(f"| a |\n|---|\n| {code(name)} |\n"))
    assert html.unescape(cell).strip() == name


def test_signs_that_mean_something_are_escaped():
    assert plain("<b>|*x*_y_ `c`") == r"\<b>\|\*x\*\_y\_ \`c\`" and plain("$a~[b]&lt;\n") == r"\$a\~\[b\]\&lt;"
    assert code("a`b|c") == "`` a`b\\|c ``"


def test_a_report_of_models_with_odd_names(tmp_path):
    names = ("<b>", "*x*_y_ `c`", "a|b_c")
    scores = three_groups({name: (50.0 + i, 40.0, 60.0) for i, name in enumerate(names)}, n=20)
    text = report(tmp_path, scores, "<b>", drawn=True)["report.md"]
    page = rendered(text)
    assert text.startswith(r"Baseline: **\<b>**. Coverage") and "<h2>Δm% against &lt;b&gt;</h2>" in page
    assert not re.search("<b>|<em>", page) and "cannot tell *x*_y_ `c`, a|b_c from <b>" in html.unescape(page)
    assert len(re.findall("<table>", page)) == 4 and page.count("<img") == 2
