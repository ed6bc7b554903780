"""The page without a browser: structure, words, escaping, the same bytes."""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from example import (
    exact,
    failed,
    realistic,
    small,
    small_exposed,
    small_finding,
    small_risk,
    unresolved,
)
from hostile import LONG, SCRIPT, hostile
from outline import outline, read

from vestige.exchangeability import Exchangeability
from vestige.report import render
from vestige.report.html import summary
from vestige.report.wording import sentence

REPORTS = {"small": small, "realistic": realistic, "hostile": hostile}
GOLDEN = Path(__file__).parent / "golden"


@cache
def html(name):
    return render(REPORTS[name]())


@pytest.fixture(params=REPORTS)
def page(request):
    return read(html(request.param))


def words(html):
    return read(html).all("body")[0].words


def test_golden_outline():
    assert outline(html("small")) == (GOLDEN / "outline.txt").read_text()


def test_the_same_bytes_every_time():
    assert html("small") == render(small())


def test_it_is_light():
    assert len(html("realistic").encode()) < 600_000


def test_it_is_a_whole_page(page):
    assert page.doctype == "doctype html"
    assert page.all("html")[0].attributes["lang"] == "en"
    assert (
        len(page.all("main"))
        == len(page.all("h1"))
        == len(page.all("title")) - len(page.all("svg"))
    )


def test_headings_do_not_skip_a_level(page):
    levels = [int(e.tag[1]) for e in page.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))


def test_everything_is_labeled(page):
    assert all(e.attributes["alt"] for e in page.all("img"))
    assert all(e.attributes["role"] == "img" for e in page.all("svg"))
    for table in page.all("table"):
        assert table.find("caption")[0].words
        assert all(e.attributes["scope"] in ("col", "row") for e in table.find("th"))
        assert all(row.find("th") for row in table.find("tr"))


def test_wide_content_scrolls_by_itself_and_by_keyboard(page):
    for element in page.all("table", "pre"):
        boxes = [element, *element.parents]
        region = next(e for e in boxes if e.attributes.get("role") == "region")
        assert region.attributes["tabindex"] == "0" and region.attributes["aria-label"]


def test_ids_are_unique_and_links_lead_somewhere(page):
    ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    links = [e.attributes["href"] for e in page.all("a")]
    assert links[0] == "#verdict"
    assert all(link[0] == "#" and link[1:] in ids for link in links)
    labels = [
        e.attributes["aria-labelledby"] for e in page.elements if "aria-labelledby" in e.attributes
    ]
    assert set(labels) <= set(ids)


def test_nothing_runs_and_nothing_is_fetched(page):
    assert not page.all("script", "iframe", "object", "embed", "form", "base")
    names = {name for e in page.elements for name in e.attributes}
    assert not [name for name in names if name.startswith("on")]
    sources = [e.attributes["src"] for e in page.all("img")]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert [e.attributes["href"] for e in page.all("link")] == ["data:,"]
    policy = page.all("meta")[1].attributes["content"]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    styles = "".join(e.text for e in page.all("style"))
    assert "url(" not in styles and "@import" not in styles
    assert len(page.all("style")) == 1


def test_hostile_names_are_shown_as_they_are():
    text = words(html("hostile"))
    assert text.count("alert(1)") > 20
    assert SCRIPT in text and LONG in text and "{{ 7*7 }}" in text and "49" not in text


def test_the_verdict_comes_first_with_its_interval():
    text = words(html("small"))
    start = text.index("Verdict")
    assert "moderate" in text[start : start + 80]
    assert "0.71 (0.68 to 0.74)" in text[start : start + 400]


def test_every_number_of_the_tables_has_its_interval():
    for cell in read(html("realistic")).all("td"):
        values = [e for e in cell.find("span") if e.attributes.get("class") == "v"]
        if values and "at least" not in cell.words:
            assert re.fullmatch(r"-?[\d.]+%? \(-?[\d.]+%? to -?[\d.]+%?\)", cell.words), cell.words


def test_what_is_not_resolved_says_why():
    text = words(html("small"))
    assert "not resolvable" in text
    assert "Not resolvable: an FPR of 0.001 needs 1000 non-members." in text


def test_the_second_curve_trains_no_model():
    figures = [e.attributes["aria-label"] for e in read(html("realistic")).all("svg")]
    assert figures[0] == "ROC curve of LiRA, online and Population (attack P)"
    cheap = replace(small(), findings=(small_finding("loss", 0.7, n_models=0),))
    figures = [e.attributes["aria-label"] for e in read(render(cheap)).all("svg")]
    assert figures[0] == "ROC curve of Loss threshold"


def test_pictures_are_a_gallery_and_rows_a_list():
    assert len(read(html("realistic")).all("img")) == 50
    assert "gallery" in [e.attributes.get("class") for e in read(html("realistic")).all("ul")]
    (record,) = [e for e in read(html("small")).all("li") if "no. b-12" in e.text]
    assert [e.words for e in record.find("dt")] == ["age", "workclass"]
    assert [e.words for e in record.find("dd")] == ["39", "State-gov"]


def test_the_reader_is_told_that_the_page_holds_training_data():
    assert "Handle this page as you handle them." in words(html("small"))
    neither = replace(small(), exposed_records=None, records_at_risk=None)
    assert "Handle this page" not in words(render(neither))


def risk(**changes):
    page = read(render(replace(small(), records_at_risk=replace(small_risk(), **changes))))
    (section,) = [e for e in page.all("section") if e.attributes.get("id") == "risk"]
    return section


def test_records_at_risk_are_counted_and_shown_beside_their_nearest():
    section = risk()
    assert "3 of 1,000 records stand out: they have fewer than 0.1 neighbors" in section.words
    assert "than 99 reference models that never saw it?" in section.words
    members, others = (
        [cell.words for cell in row.children] for row in section.find("tbody")[0].find("tr")
    )
    assert members == ["Members (training data)", "2", "100% (2% to 100%)", "1"]
    assert others == ["Non-members, wrongly", "1", "0% (0% to 98%)", "0"]
    recognized, spared, untested = section.find("li")
    assert [e.attributes["alt"] for e in recognized.find("img")] == [
        "Record 21, labeled cat",
        "Record c-3, labeled dog",
    ]
    assert "member p 0.010 q 0.020 smooth p 0.00020 expects 0.0 neighbors" in recognized.words
    assert "dog no. c-3 nearest, at 0.31" in recognized.words
    assert "class" not in recognized.attributes
    assert spared.attributes["class"] == untested.attributes["class"] == "spared"
    assert "not tested" in untested.words
    assert section.find("ol")[0].attributes["class"] == "risky pictures"


def test_nobody_at_risk_is_a_sentence():
    section = risk(n_standing_out=0, n_members_out=0, n_tested=0, n_models=0, records=())
    assert "No record of 1,000 stands out: each has 0.1 or more neighbors" in section.words
    assert not section.find("table") and not section.find("ol")


def test_records_at_risk_that_could_not_be_tested_have_no_table():
    section = risk(n_tested=0, records=small_risk().records[2:])
    assert "None of them could be tested." in section.words
    assert not section.find("table") and len(section.find("li")) == 1


def test_records_at_risk_are_kept_back_when_asked():
    hidden = tuple(replace(r, preview=None, nearest_preview=None) for r in small_risk().records)
    section = risk(records=hidden)
    assert not section.find("img") and "Handle this page" not in section.words
    assert section.find("ol")[0].attributes["class"] == "risky"


def test_one_at_risk_is_one():
    section = risk(n_standing_out=1, n_members_out=1, n_tested=1, records=small_risk().records[:1])
    assert "1 of 1,000 records stands out: it has fewer than 0.1 neighbors" in section.words
    assert "1 was tested" in section.words


def test_all_tested_and_more_than_shown_are_told():
    section = risk(beta=None, n_standing_out=1000, recognized=unresolved("not resolvable: few"))
    assert "All 1,000 records are looked at." in section.words
    assert "The first 3 are shown." in section.words
    assert "Not resolvable: few." in section.words


def test_what_so_few_models_cannot_resolve_is_no_count():
    section = risk(n_discovered=None, n_members_discovered=None)
    rows = [[e.words for e in row.find("td")][-1] for row in section.find("tbody")[0].find("tr")]
    assert rows == ["not resolvable", "not resolvable"]
    assert "the false discovery rate takes is among the warnings" in section.words


def exposed(**changes):
    made = replace(small_exposed(), **changes)
    page = read(render(replace(small(), exposed_records=made)))
    (section,) = [e for e in page.all("section") if e.attributes.get("id") == "exposed"]
    return section.words


def test_the_exposed_are_of_the_models_members_and_of_one_attack():
    said = exposed(n_tested=273)
    assert "lira_online recognizes 2 of 500 members, 273 of them scored, one by one, of" in said
    assert "q_value and exposed are of lira_online." in said
    # another attack named one, of those that stand out
    assert "gmia, of the records that it tests, recognizes 1 member: see Records at risk" in said
    assert "see Records at risk" not in exposed(attack="gmia")


def test_where_nobody_is_exposed_there_is_no_luck():
    said = exposed(n_exposed=0, expected_false=0.0, records=())
    assert "recognizes 0 of 500 members one by one, at a false discovery rate of 5% (" in said
    assert "luck" not in said


def test_without_a_look_at_the_records_at_risk_there_is_no_section():
    text = words(render(replace(small(), records_at_risk=None)))
    assert "Records at risk" not in text and "Neighbor" not in text


def test_the_check_is_reported_in_each_of_its_three_outcomes():
    unknown = Exchangeability(unresolved("20 records"), None, "it takes 50 records a side.")
    assert "Yes, as far as can be told" in words(html("small"))
    text = words(render(replace(small(), exchangeability=failed(), warnings=())))
    assert f"No. {sentence(failed().reason)}" in text and "A check failed" in text
    text = words(render(replace(small(), exchangeability=unknown)))
    assert "This is not known. It takes 50 records a side." in text


def test_an_empty_report_is_a_page():
    empty = replace(
        small(),
        findings=(),
        exposed_records=None,
        records_at_risk=None,
        warnings=(),
        provenance=replace(small().provenance, training=None, seconds={}),
    )
    page = read(render(empty))
    assert not page.all("svg") and "No further warnings." in page.all("body")[0].words
    links = [e.attributes["href"][1:] for e in page.all("a")]
    assert set(links) <= {e.attributes.get("id") for e in page.elements}


def test_a_finding_without_classes_has_no_class_section():
    finding = replace(small_finding("loss", 0.6), per_class=())
    assert "By class" not in words(render(replace(small(), findings=(finding,))))


def test_few_of_many_classes_are_announced():
    item = small().findings[0].per_class[0]
    classes = tuple(replace(item, label=i, name=f"c{i}") for i in range(40))
    report = replace(small(), findings=(replace(small().findings[0], per_class=classes),))
    assert "30 of 40 classes are shown" in words(render(report))


def test_context_is_read_beside_a_value():
    assert "FPR 20.0%, share of members 50.0%" in words(html("small"))


def test_a_one_sided_bound_says_at_least():
    metrics = {**small().findings[0].metrics, "epsilon_lower_bound": exact(0.0, 0.0, 0.0)}
    assert "at least 0.80" in words(html("small"))
    assert replace(small().findings[0], metrics=metrics)


def test_the_notebook_gets_the_verdict_and_the_table():
    fragment = small()._repr_html_()
    assert fragment == summary(small())
    page = read(fragment)
    assert len(page.all("table")) == 1 and "gives away part" in page.all("section")[0].words
    assert not read(hostile()._repr_html_()).all("script", "img")
