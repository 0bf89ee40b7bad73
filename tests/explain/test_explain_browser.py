"""The page of an explanation in a browser: it draws, answers to clicks, names the patch under the pointer."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from padapter.explain import Explanation, Side, View
from padapter.explain.explanation import AttentionMap
from padapter.explain.page import render

pytestmark = pytest.mark.slow
ROWS, COLUMNS, HEADS = 2, 4, 3
HIGHEST = (1, 2)


def explanation(size):
    """Two tokens and three heads; the second head looks at one patch alone."""
    views = (View((0.0, 0.0, *map(float, size)), ROWS, COLUMNS),)
    relevance = np.full((2, ROWS, COLUMNS), 0.05)
    relevance[(1, *HIGHEST)] = 0.65
    heads = np.full((HEADS, ROWS, COLUMNS), 0.1)
    heads[1] = 0
    heads[(1, *HIGHEST)] = 0.4
    attention = AttentionMap("text.layer.3", "decoder", True, 3, views, (heads,), None, None)
    log_probs = np.log([0.5, 0.25])
    side = Side(
        "base model", "red", ("red", "dog"), log_probs, (relevance,), ("what",), np.full((2, 1), 0.1), (attention,)
    )
    return Explanation(Image.new("RGB", size, "white"), "what", "red dog", views, (side,))


@pytest.fixture(params=[(400, 200), (1600, 16), (20, 900)], ids=["photo", "very wide", "very high"])
def page(request, browser, tmp_path):
    """The page, wide open, and what went wrong in it."""
    file = tmp_path / "page.html"
    file.write_text(render(explanation(request.param)), encoding="utf-8")
    opened = browser.new_page(viewport={"width": 1200, "height": 900})
    complaints = []
    opened.on("pageerror", lambda problem: complaints.append(str(problem)))
    opened.goto(file.as_uri())
    opened.wait_for_selector("body[data-ready=true]")
    yield opened
    assert complaints == []
    opened.close()


def test_tokens_and_heads(page):
    facts = page.locator("#relevance-panes .facts").last
    assert "probability 13 %" in facts.inner_text()  # 0.5 * 0.25
    page.locator("#tokens button", has_text="dog").click()
    assert "probability 25 %" in facts.inner_text()
    facts = page.locator("#attention-panes .facts")
    # (0.1 + 0.4 + 0.1) / 3, and (0.8 + 0.4 + 0.8) / 3 over eight patches
    assert "brightest patch 20 %, if even 8.3 %" in facts.inner_text()
    page.locator("#heads button").nth(1).click()
    assert "brightest patch 40 %, if even 5.0 %" in facts.inner_text()
    assert page.locator("#head").input_value() == "1"


def test_the_patch_under_the_pointer(page):
    page.locator("#heads button").nth(1).click()
    canvas = page.locator("#attention-panes canvas")
    canvas.scroll_into_view_if_needed()
    # The box of the picture in the canvas, which is as high as fits.
    left, top, width, height = canvas.evaluate("""canvas => {
        const box = canvas.getBoundingClientRect();
        const fit = Math.min(box.width / canvas.width, box.height / canvas.height);
        const [width, height] = [canvas.width * fit, canvas.height * fit];
        return [box.left + (box.width - width) / 2, box.top + (box.height - height) / 2, width, height];
    }""")
    for row in range(ROWS):
        for column in range(COLUMNS):
            page.mouse.move(left + (column + 0.5) / COLUMNS * width, top + (row + 0.5) / ROWS * height)
            expected = "this patch: 0.400 (100 %)" if (row, column) == HIGHEST else "this patch: 0.00 (0.0 %)"
            assert page.locator("#attention-panes .facts").inner_text() == expected
