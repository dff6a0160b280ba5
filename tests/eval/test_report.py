"""The report: its first line, its tables in three languages, what it warns of, and what it does without."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess

import pytest
from made_up import RECIPE, figure, report, score, three_groups

from eval import harness, published
from eval.datasets import DATASETS
from eval.tables import delta_table

STRONG = {"base": (50.0, 40.0, 60.0), "better": (60.0, 50.0, 66.0), "worse": (40.0, 30.0, 54.0)}
HOSTILE = r"50% of a_b & #1 {x|y} ~^\ <i>"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return report(tmp_path_factory.mktemp("plain"), three_groups(STRONG))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Three models, one with an awkward name and a group missing, and groups that do not count."""
    scores = three_groups(STRONG | {HOSTILE: (55.0, 45.0, 63.0)})
    scores = [each for each in scores if (each.model, each.task) != (HOSTILE, "pairs")]
    for number, model in enumerate([*STRONG, HOSTILE]):
        scores.append(score(model, "pairs_large", {"R@1": figure(30.0 + number, counts=False)}, group="Retrieval",
                            counts=False))  # fmt: skip
        error = figure(0.5 + 0.1 * number, 0.01, direction="lower", unit="", chance=1.0, counts=False)
        scores.append(score(model, "match", {"error": error}, group="Teacher match", counts=False))
    return report(tmp_path_factory.mktemp("mixed"), scores, drawn=True)


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Tables of rows of cells; a pipe behind a backslash is text."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    return [[re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()] for block in blocks]


def section(text: str, title: str) -> str:
    """What stands below a heading of the markdown, to the next one of its kind or above."""
    return re.search(rf"^##+ {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1]


def test_first_line_is_baseline_and_coverage(plain, mixed):
    assert plain["report.md"].splitlines()[0] == "Baseline: **base**. Coverage: all 3 models have all 3 metrics."
    body = plain["report.html"].split("<body>")[1]
    text = re.sub(r"<[^>]+>", "", body).strip().splitlines()[0]
    assert text == "Baseline: base. Coverage: all 3 models have all 3 metrics."
    assert "3 of 4 models have all 3 metrics" in mixed["report.md"].splitlines()[0]
    assert "2 of 3; missing: Retrieval / R@1" in mixed["report.md"].splitlines()[0]


def test_the_page_loads_nothing(mixed):
    page = mixed["report.html"]
    sources = re.findall(r'(?:src|href|srcset|data|action|poster)\s*=\s*["\']?([^"\'\s>]+)', page)
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"<(script|link|iframe|object|embed|base)\b|@import|url\(", page)


def test_markdown_tables_have_equal_rows(plain, mixed):
    for text, least in ((plain["report.md"], 4), (mixed["report.md"], 5)):
        tables = markdown_tables(text)
        assert len(tables) >= least
        for table in tables:
            assert len({len(row) for row in table}) == 1 and len(table) > 2
            assert all(set(cell) <= {"-", ":"} for cell in table[1])


def test_html_tables_have_equal_rows(mixed):
    for table in re.findall(r"<table>.*?</table>", mixed["report.html"], re.DOTALL):
        rows = re.findall(r"<tr.*?</tr>", table, re.DOTALL)
        widths = {sum(int(span or 1) for span in re.findall(r"<t[hd](?: colspan=\"(\d+)\")?[ >]", row)) for row in rows}
        assert len(widths) == 1


def test_figures_have_arrows_errors_marks_and_escapes(mixed):
    scores = section(mixed["report.md"], "Scores")
    assert "top-1 ↑ (%) | 200 | – | 50.0 ± 0.5 | **60.0** ± 0.5 | 40.0 ± 0.5 | <u>55.0</u> ± 0.5 |" in scores
    assert "error ↓ | 200 | 1.000 | **0.500** ± 0.010" in section(mixed["report.md"], "Shown, not in Δm%")
    assert "<i>" not in mixed["report.html"].split("</style>")[1] and "&lt;i&gt;" in mixed["report.html"]
    assert "{x\\|y}" in mixed["report.md"]


def test_differences_metric_by_metric(mixed):
    lines = {tuple(cell.strip() for cell in row[:2]): [cell.strip() for cell in row[2:]]
             for row in markdown_tables(section(mixed["report.md"], "Δm% against base"))[-1]}  # fmt: skip
    # errors to first order, drawn independently: 100/50 · √(0.5² + (60/50 · 0.5)²) of k-NN
    spread = 2 * (0.5**2 + (1.2 * 0.5) ** 2) ** 0.5
    value, error = lines["Classification", "top-1"][0].split(" ± ")
    assert value == "+20.0" and float(error) == pytest.approx(spread, rel=0.15)
    assert lines["Classification", "top-1"][1].startswith("−20.0 ± ")
    assert lines["Retrieval", "R@1"][2] == "n/a"
    assert lines["Retrieval (not in Δm%)", "R@1 (pairs_large)"][0].startswith("+3.33 ± ")
    assert lines["Teacher match (not in Δm%)", "error"][1].startswith("−40.0 ± ")  # a larger error is worse


def test_what_does_not_count_is_shown_and_changes_nothing(mixed, tmp_path):
    without = report(tmp_path, three_groups(STRONG))
    line = next(row for row in mixed["report.md"].splitlines() if row.startswith("| better |"))
    assert next(row for row in without["report.md"].splitlines() if row.startswith("| better |"))[:60] == line[:60]
    shown = section(mixed["report.md"], "Shown, not in Δm%")
    assert "| Retrieval | R@1 (pairs_large) ↑" in shown and "| Teacher match | error ↓" in shown
    assert "Shown, not in Δm%" not in without["report.md"] and "Shown, not in Δm%" not in without["report.html"]
    assert "match" not in mixed["delta.csv"] and "pairs_large" not in mixed["delta.csv"]
    rows = list(csv.DictReader(io.StringIO(mixed["scores.csv"])))
    assert {row["task"] for row in rows if row["in_delta"] == "no"} == {"match", "pairs_large"}


def tabular(tex: str) -> tuple[str, list[str]]:
    """The column letters of the table, and its rows."""
    columns, body = re.search(r"\\begin\{tabular\}\{(\w+)\}\n(.*)\\end\{tabular\}", tex, re.DOTALL).groups()
    return columns, [line for line in body.splitlines() if line.endswith(r"\\")]


def test_tex_is_a_booktabs_table(mixed):
    tex = mixed["scores.tex"]
    begun, ended = re.findall(r"\\begin\{(\w+)\}", tex), re.findall(r"\\end\{(\w+)\}", tex)
    assert begun == ended[::-1] == ["table", "tabular"]
    depth = 0
    for character in re.sub(r"\\\\|\\[{}]", "", tex):  # line ends and escaped braces apart
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    columns, rows = tabular(tex)
    assert columns == "l" + "r" * 6
    for row in rows:
        spans = sum(int(span) - 1 for span in re.findall(r"\\multicolumn\{(\d+)\}", row))
        assert len(re.split(r"(?<!\\)&", row)) + spans == len(columns), row
    assert [tex.count(rule) for rule in (r"\toprule", r"\bottomrule", r"\midrule")] == [1, 1, 3]


def test_tex_says_what_the_page_says(mixed):
    tex = mixed["scores.tex"]
    _, rows = tabular(tex)
    headings = [re.search(r"\\textit\{(.*?)\}( \(not .*\))?\}", row) for row in rows if r"\multicolumn" in row]
    assert [found[1] for found in headings] == [
        "Classification", "Dense", "Retrieval", r"$\Delta$m\%", "Retrieval", "Teacher match",
    ]  # fmt: skip
    top = next(row for row in rows if row.startswith("top-1"))
    assert r"[\%] $\uparrow$" in top and r"\textbf{60.0} {\scriptsize $\pm$ 0.5}" in top and r"\underline{55.0}" in top
    assert any(row.startswith(r"error $\downarrow$") for row in rows)
    assert r"50\% of a\_b \& \#1 \{x\textbar{}y\} \textasciitilde{}\textasciicircum{}\textbackslash{}" in rows[0]
    overall = next(row for row in rows if row.startswith("overall"))
    assert [cell.split(" {")[0].strip() for cell in overall.split("&")[2:6]] == ["0", "+18.3", "$-$18.3", r"n/a"]
    caption = re.search(r"\\caption\{(.*)\}\n", tex)[1]
    assert "against base" in caption and "$n = 200$" in caption and re.search(r"\d{4}-\d\d-\d\d", caption)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_tex_compiles(mixed, tmp_path):
    (tmp_path / "scores.tex").write_text(mixed["scores.tex"])
    page = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{scores}\end{document}"
    (tmp_path / "page.tex").write_text(page)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]


def warnings(files: dict[str, str]) -> dict[str, str]:
    """Head → rest of every warning of the markdown."""
    found = re.findall(r"^> - \*\*(.*?)\*\* (.*\n(?:>   - .*\n)*)", files["report.md"], re.MULTILINE)
    heads = dict(found)
    assert all(head in files["report.html"] for head in heads) and ("Read with care" in files["report.html"]) == bool(
        heads
    )
    return heads


def test_models_trained_once_are_warned_of(plain, tmp_path):
    assert set(warnings(plain)) == {"One training run a model."}
    runs = [three_groups({name: tuple(x + 0.1 * run for x in row) for name, row in STRONG.items()}) for run in range(3)]
    repeated = [each.model_copy(update={"replicate": run, "identity": f"{each.model}-{run}"})
                for run, own in enumerate(runs) for each in own]  # fmt: skip
    files = report(tmp_path / "repeated", repeated)
    assert warnings(files) == {} and "3 training runs" in files["report.md"]
    some = [each for each in repeated if each.model != "worse" or each.replicate == 0]
    assert set(warnings(report(tmp_path / "some", some))) == {"One training run of worse."}


def test_test_sets_too_small_to_tell(tmp_path):
    close = three_groups({"base": (50.0, 40.0, 60.0), "close": (50.5, 44.0, 90.0)}, spread=1.0, n=20)
    found = warnings(report(tmp_path, close))
    assert found["Too small to tell."].startswith("1 of 3 differences")
    assert "Classification / top-1, n = 20: cannot tell close from base" in found["Too small to tell."]
    assert found["The sign, and little more."].startswith("1 of 3 differences")  # of Dense
    assert "Dense" not in found["Too small to tell."] and "Retrieval" not in found["Too small to tell."]
    assert "n = 20: all metrics" in found["Fewer than 100 test pictures."]


def test_many_comparisons_are_counted(tmp_path):
    rows = {"base": (50.0, 40.0, 60.0), **{f"m{i}": (50.0, 40.1, 90.0) for i in range(8)}}
    found = warnings(report(tmp_path / "many", three_groups(rows, spread=1.0, n=200)))
    assert found["Many comparisons."].startswith("8 of 24 differences from base are not 0")
    assert "about 1 would still look so" in found["Many comparisons."]
    few = dict(list(rows.items())[:7])  # 18 differences: nothing is expected by chance
    assert "Many comparisons." not in warnings(report(tmp_path / "few", three_groups(few, spread=1.0, n=200)))


def test_figures_without_an_interval_are_warned_of(tmp_path):
    found = warnings(
        report(tmp_path, three_groups({"base": (50.0, 40.0, 60.0), "other": (51.0, 41.0, 61.0)}, spread=None))
    )
    assert found["No interval."].startswith("3 of 3 differences") and "Too small to tell." not in found


def test_what_is_no_better_than_chance_is_marked(tmp_path):
    rows = {"base": 50.0, "at": 11.0, "below": 5.0}
    scores = [score(model, metrics={"top-1": figure(value, chance=10.0)}) for model, value in rows.items()]
    for model, value in {"base": 0.5, "at": 0.99, "below": 1.2}.items():
        error = figure(value, 0.02, direction="lower", unit="", chance=1.0)
        scores.append(score(model, "probe", {"error": error}, group="Dense"))
    files = report(tmp_path, scores)
    expected = "<u>11.0</u> ± 1.0 (≈ chance) | 5.0 ± 1.0 (below chance) |"
    assert (
        expected in files["report.md"]
        and "<u>0.990</u> ± 0.020 (≈ chance) | 1.200 ± 0.020 (below chance)" in files["report.md"]
    )
    assert files["report.html"].count('class="level"') == 4
    assert r"\underline{11.0}$^{\approx}$" in files["scores.tex"] and r"5.0$^{<}$" in files["scores.tex"]
    chance = warnings(files)["No better than chance."]
    assert "Classification / top-1, chance 10.0: at (≈ chance), below (below chance)" in chance and "base" not in chance
    assert "The baseline is at chance." not in warnings(files)


def test_a_baseline_that_knows_nothing_is_warned_of(tmp_path):
    scores = [score(model, metrics={"top-1": figure(value, chance=10.0)}) for model, value in (("base", 11), ("a", 50))]
    scores += [score(model, "words", {"R@1": figure(value, chance=1.0)}, group="Retrieval")
               for model, value in (("base", 20.0), ("a", 30.0))]  # fmt: skip
    found = warnings(report(tmp_path, scores))["The baseline is at chance."]
    assert found.startswith("base knows nothing on 1 of 2 metrics") and "Classification / top-1" in found
    assert "Retrieval" not in found


def test_figures_without_an_interval_are_at_chance_only_where_they_equal_it(tmp_path):
    rows = {"base": 10.0, "above": 10.1, "below": 9.9}
    scores = [score(model, metrics={"top-1": figure(value, None, chance=10.0)}) for model, value in rows.items()]
    text = report(tmp_path, scores)["report.md"]
    assert "<u>10.0</u> (≈ chance) | **10.1** | 9.9 (below chance) |" in text


def test_published_baseline_without_a_model(tmp_path):
    row = published.load().tables["pascal_context_vit_b"]
    units = {column.metric: column.unit for column in row.columns}
    scores = [
        score("ours", c.name, {c.name: figure(value, 0.2, direction=c.direction, unit=c.unit)}, group=c.group)
        for c, value in zip(row.columns, row.models["SAK"])
    ]
    table = delta_table(scores[:-1])
    name = published.add_published(table, "pascal_context_vit_b/PRISM", {m: units[m] for m in table.metrics})
    files = report(tmp_path, scores[:-1], name, table, models=["ours"])
    assert files["report.md"].startswith(f"Baseline: **{name}**. Coverage: ")
    assert published.source_of(name) in files["report.md"] and f"| {name} | `figures only" in files["report.md"]
    lonely = next(line for line in files["report.md"].splitlines() if row.columns[-1].name + " ↑ " in line)
    assert f"{row.models['PRISM'][-1]:.1f}" in lonely and "n/a" in lonely  # a metric that only the published row has
    assert f"--baseline {name}" in files["report.md"]


def test_imported_scores_have_no_task_module(tmp_path):
    scores = three_groups(STRONG)
    for model, value in {"base": 60.0, "better": 62.0, "worse": 55.0}.items():
        facts = {"file": f"{model}.json", "harness": "lmms-eval", "version": "1.0"}
        scores.append(score(model, "gqa", {"gqa exact_match": figure(value, None)}, kind=harness.KIND, group="VQA",
                            settings={}, facts=facts))  # fmt: skip
    files = report(tmp_path, scores)
    protocols = section(files["report.md"], "Protocols")
    assert harness.PROTOCOL in protocols and "better.json (lmms-eval 1.0)" in protocols
    assert "| VQA | gqa exact_match ↑ (%) | 200 | – | <u>60.0</u> | **62.0** |" in files["report.md"]
    assert "gqa exact_match, n = 200: cannot tell better, worse from base" in warnings(files)["No interval."]


def test_nothing_counts(tmp_path):
    files = report(tmp_path, [score("a", metrics={"top-1": figure(5.0, counts=False)}, counts=False)])
    assert files["report.md"].startswith("Baseline: **a**. Coverage: no score.") and "top-1 ↑" in files["report.md"]
    assert r"\begin{tabular}{lrrr}" in files["scores.tex"]


def test_protocols_say_who_was_shown_another_size(tmp_path):
    scores = three_groups(STRONG)
    scores = [
        each.model_copy(update={"facts": {"size": [48, 64]}}) if each.model == "worse" else each for each in scores
    ]
    assert "Shown at 32×32; worse 48×64." in section(report(tmp_path, scores)["report.md"], "Protocols")


def test_a_reader_that_breaks_does_not_cost_the_report(tmp_path, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("of nothing")

    monkeypatch.setattr(DATASETS["tabletop"], "open_split", broken)
    recipe = RECIPE + "pictures: {data: tabletop, count: 2}\n"
    files = report(tmp_path, three_groups(STRONG), recipe=recipe, drawn=True)
    protocols = section(files["report.md"], "Protocols")
    assert "(tabletop) cannot be read: ZeroDivisionError: of nothing (test_report.py, line " in protocols
