"""The page is one well-formed file without outside requests, shows every number once, and leaves
out what is not there.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from taskdistill.evaluate.compression import CompressionResult
from taskdistill.evaluate.datasets import TASK_TYPES
from taskdistill.evaluate.results import summarize, to_record
from taskdistill.evaluate.score import SetScore
from taskdistill.evaluate.task_type import Score
from taskdistill.report import scores, tables
from taskdistill.report.page import NO_RESULTS, Example, ReportData, render_report
from taskdistill.report.plots import Series, dot_plot, line_chart
from taskdistill.report.tables import Section, SourceRow, SpeedRow, Table, as_text, duration

VOID = {"meta", "br", "wbr", "img", "line", "path", "polyline"}


class Page(HTMLParser):
    """Fails on tags that do not close, and collects text and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.ids: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def record(name: str, kind: str, value: float, spread: float = 0.1, cells=()):
    units = np.clip(value + spread * np.linspace(-1, 1, 50), 0, 1)
    return to_record(
        SetScore(
            set=name,
            kind=kind,
            metric=TASK_TYPES[kind].metric,
            score=Score(float(units.mean()), {}, {"": units}),
            n=50,
            dim=8,
            texts=60,
            encode_seconds=1.0,
            score_seconds=0.1,
        ),
        cells,
    )


CELLS = [
    CompressionResult(
        dim=dim,
        precision=p,
        rescored=False,
        score=0.5,
        retention=retention,
        bytes=dim,
        query_ms=0.1,
    )
    for dim in (8, 4)
    for p, retention in (("float32", 1.0), ("binary", 0.9))
]
RESULTS = summarize(
    {
        "teacher": {
            "retrieval/a": record("retrieval/a", "retrieval", 0.5, cells=CELLS),
            "sts/b": record("sts/b", "sts", 0.8),
        },
        "<b>student": {
            "retrieval/a": record("retrieval/a", "retrieval", 0.4),
            "sts/b": record("sts/b", "sts", 0.82),
        },
    },
    "teacher",
)
LOG = [
    {"phase": "stage1", "step": i, "terms": {"embedding_distance": 1 / (i + 1), "other": None}}
    for i in range(300)
]
FULL = ReportData(
    title="A & B <run>",
    facts=[("81 %", "kept")],
    results=RESULTS,
    models={"teacher": "the big one"},
    log=LOG,
    speeds=[SpeedRow("teacher", 100.0, 22_700_000, 90.0), SpeedRow("student", 250.0, None, None)],
    data=[SourceRow(name="docs", kind="pairs", read=10, used=8, repaired=1, rejected=1)],
    times=[("train", 90.0), ("evaluate", 30.0)],
    examples=[Example("how <fast>", ["one", "two"])],
    sections=[
        Section(
            "Languages",
            "By language.",
            [Table(title="nDCG", columns=["language", "score"], rows=[["en", 0.5], ["fr", None]])],
        )
    ],
    seen={"sts/b": {"texts": 5, "exact": 1, "near": 0, "teacher": None}},
    settings="seed: 17\n# <&>",
    commands=["taskdistill train a.yaml --out b"],
    warnings=["Mind the gap."],
    versions={"python": "3.11"},
)


def test_page_is_well_formed_and_asks_for_nothing():
    html = render_report(FULL)
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    assert not [value for name, value in page.attributes if name in ("src", "srcset", "action")]
    assert all(
        value.startswith("#") and value[1:] in page.ids
        for name, value in page.attributes
        if name == "href"
    )
    assert (
        "://" not in html and "@import" not in html and "url(" not in html and "<script" not in html
    )
    assert "default-src 'none'" in html and "prefers-color-scheme: dark" in html


def test_text_of_users_is_escaped():
    html = render_report(FULL)
    assert "<b>student" not in html and "&lt;b&gt;student" in html
    assert (
        "A &amp; B &lt;run&gt;" in html and "how &lt;fast&gt;" in html and "# &lt;&amp;&gt;" in html
    )


def test_every_part_is_there():
    text = " ".join(Page(render_report(FULL)).text)
    for words in (
        "50.0",
        "80.0 %",
        "Mind the gap.",
        "22.7 M",
        "2.5 ×",
        "1 min 30 s",
        "75 %",
        "To keep 99 % or 97 % or 95 % of the score",
        "seen word for word",
    ):
        assert words in text, words


def test_an_empty_report_is_a_page_too():
    page = Page(render_report(ReportData(title="empty")))
    assert page.ids == [] and "empty" in page.text


def test_summary_is_written_from_the_results_unless_given():
    expected = "2 models on 2 sets: <b>student keeps 91.3 % of teacher’s score on average."
    assert scores.summary_sentence(RESULTS) == expected
    assert scores.summary_sentence(NO_RESULTS) == ""


def test_tables_mark_the_best_and_say_how_much_is_kept():
    retrieval, sts = scores.score_tables(RESULTS)
    assert retrieval.columns == ["set", "teacher", "<b>student"]
    teacher, student = retrieval.cells()[0][1:]
    assert (teacher.main, teacher.best, student.main, student.small, student.best) == (
        "50.0",
        True,
        "40.0",
        "80.0 %",
        False,
    )
    assert sts.cells()[0][2].best
    overview = scores.overview(RESULTS).cells()
    assert [cell.main for cell in overview[1]] == ["<b>student", "40.0", "82.0", "61.0", "91.3 %"]


def test_differences_say_whether_they_are_beyond_chance():
    rows = scores.significance_table(RESULTS).cells()
    assert [cell.main for cell in rows[0]][:2] == ["retrieval/a", "-10.0"] and rows[0][
        4
    ].main == "yes"
    assert rows[0][0].small == "<b>student"


def test_loss_curves_average_long_logs():
    curves = scores.loss_charts([*LOG, {"phase": "stage1", "event": "saved"}])
    assert [(curve.phase, curve.term, curve.steps) for curve in curves] == [
        ("stage1", "embedding_distance", 300)
    ]
    points = re.search(r'points="([^"]*)"', curves[0].chart).group(1).split()
    assert len(points) == 100 and "from 0.6111 at the start to " in curves[0].chart


def test_charts_stay_inside_their_box():
    chart = line_chart(
        [Series("a", [(1, 5.0), (100, 7.0)]), Series("b", [(1, 4.9), (100, 7.1)])],
        label="",
        x_label="x",
        y_label="y",
        marks=True,
    )
    numbers = [
        tuple(map(float, point.split(",")))
        for points in re.findall(r'points="([^"]*)"', chart)
        for point in points.split()
    ]
    assert all(44 <= x <= 348 and 10 <= y <= 190 for x, y in numbers)
    assert "stroke-dasharray" in chart and chart.count("<text") > 8
    flat = line_chart([Series("a", [(1, 2.0), (2, 2.0)])], label="", x_label="x", y_label="y")
    assert "nan" not in flat
    halves = line_chart([Series("a", [(0, 50.0), (10, 60.5)])], label="", x_label="x", y_label="y")
    assert ">52.5<" in halves and ">52<" not in halves and ">2.5<" in halves, (
        "a tick is written as it is"
    )
    dots = dot_plot(
        [("sts", [10.0, None]), ("retrieval", [20.0, 30.0])], ["m", "n"], label="", x_label="score"
    )
    assert dots.count('class="mark') == 3 + 2


@pytest.mark.parametrize(
    ("seconds", "words"), [(4.21, "4.2 s"), (48, "48 s"), (185, "3 min 05 s"), (4805, "1 h 20 min")]
)
def test_durations_read_well(seconds, words):
    assert duration(seconds) == words


def test_cells_read_well():
    assert [as_text(value).main for value in (0.1234, 12345, None, "x")] == [
        "12.3",
        "12,345",
        "–",
        "x",
    ]
    assert (
        tables.time_table([]) is None
        and tables.speed_table([]) is None
        and tables.source_table([]) is None
        and tables.seen_table({}) is None
    )
