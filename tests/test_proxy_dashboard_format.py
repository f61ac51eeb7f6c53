"""What people read: visible text, short numbers, CSV that no spreadsheet runs, shades, small charts."""

import csv
import io
import math
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import dashboard_format as form
from proxy.dashboard_chart import HEIGHT, WIDTH, sparkline
from storage.history import MatchRate


@given(st.text())
def test_visible_text_has_no_character_that_hides_or_moves(text):
    import unicodedata

    shown = form.visible(text)
    assert all(unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Cn") or c in "\n\t\u200d" for c in shown)
    assert form.visible(shown) == shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.0004, "0 ms"), (0.85, "850 ms"), (12.34, "12.3 s"), (60, "1 min"), (245, "4 min 5 s"),
     (12000, "3 h 20 min"), (792000, "9 d 4 h")],
)  # fmt: skip
def test_durations(seconds, text):
    assert form.duration(seconds) == text


@pytest.mark.parametrize(
    ("log_e", "text"),
    [(0.0, "1"), (math.log(1000), "1e+03"), (math.log(12), "12"), (188.6, "8e+81"), (math.log(9.7e9), "1e+10"),
     (690000.0, "2e+299663")],
)
def test_e_values(log_e, text):
    assert form.e_value(log_e) == text


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_no_csv_cell_begins_like_a_formula(cells):
    text = form.as_csv([{str(i): cell for i, cell in enumerate(cells)}], [str(i) for i in range(len(cells))])
    (_, row) = list(csv.reader(io.StringIO(text, newline="")))
    for cell, written in zip(cells, row, strict=True):
        assert not written.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r"))
        assert written.replace("'", "", 1) == cell or written == cell


def points(*means):
    at = datetime(2026, 11, 24, tzinfo=timezone.utc)
    return [MatchRate(at + timedelta(minutes=i), m, m - 0.1, min(1, m + 0.1), 0.95) for i, m in enumerate(means)]


@given(st.lists(st.floats(0.1, 1.0), max_size=9))
def test_a_sparkline_stays_in_its_box(means):
    drawn = sparkline(points(*means))
    if not means:
        assert drawn is None
        return
    for path in (drawn.band.rstrip("Z"), drawn.mean, drawn.tolerated):
        for pair in path.lstrip("M").split("L"):
            x, y = map(float, pair.split())
            assert 0 <= x <= WIDTH
            assert -0.1 <= y <= HEIGHT + 0.1


@pytest.mark.parametrize("count", [120, 121, 1000])
def test_a_sparkline_of_many_points_thins_them_and_keeps_the_last(count):
    drawn = sparkline(points(*[0.9] * (count - 1), 0.6)).mean.split("L")
    assert 60 <= len(drawn) <= 120
    assert drawn[-1] == sparkline(points(0.9, 0.6)).mean.split("L")[-1]


@pytest.mark.parametrize(
    ("reference", "name"),
    [("/root/.cache/seedproof/models/SmolLM2", "SmolLM2"), ("./models/m/", "m"), ("~/m", "m"), ("/", "/"),
     ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"), ("smollm2-bf16", "smollm2-bf16")],
)  # fmt: skip
def test_a_reference_is_called_by_its_name_not_by_its_place(reference, name):
    assert form.reference_name(reference) == name
