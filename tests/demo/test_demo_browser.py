"""The demo page in a browser: every control is used once, and nothing is loaded from anywhere else."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image
from tiny_blip import make_image

from padapter.demo.examples import write_examples
from padapter.demo.extra import require_gradio
from padapter.demo.session import Session

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url(runs, tmp_path_factory):
    pytest.importorskip("gradio", reason="needs the extra [demo]")
    require_gradio()
    from padapter.demo.app import build, settings

    folder = tmp_path_factory.mktemp("examples")
    chosen = [runs(name) for name in ("first", "low-rank", "labels")]
    session = Session(chosen, device="cpu")
    page = build(session, write_examples(chosen, list(session.sources.values()), folder, each=2))
    _, place, _ = page.launch(prevent_thread_lock=True, quiet=True, allowed_paths=[str(folder)], **settings())
    yield place
    page.close(verbose=False)


def said(page):
    return page.locator("#result .said").inner_text()


def who(page, title):
    """Waits until an answer of this model stands there."""
    page.locator("#result .who", has_text=re.compile(f"^{re.escape(title)}$")).wait_for()


def drawn(page, context):
    page.locator("#map img").wait_for()
    address = page.locator("#map img").get_attribute("src")
    return address, Image.open(io.BytesIO(context.request.get(address).body())).convert("RGB")


def test_click_through(url, browser, tmp_path):
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.set_default_timeout(40_000)
    hosts, complaints = set(), []
    page.on("request", lambda request: hosts.add(re.sub(r"^(blob:)?(https?://[^/]*|data:).*", r"\2", request.url)))
    page.on("pageerror", lambda problem: complaints.append(str(problem)))
    page.goto(url)

    page.locator("#ask").click()
    page.locator("#result .problem", has_text="Choose a picture first.").wait_for()

    photo = tmp_path / "photo.png"
    make_image(2).resize((700, 420)).save(photo)
    page.locator("#picture input[type=file]").set_input_files(str(photo))
    page.locator("#picture img").wait_for()
    page.locator("#ask").click()
    page.locator("#result .problem", has_text="needs a question about the picture").wait_for()

    page.locator("#text textarea, #text input").fill("what color is the dog ?")
    page.locator("#ask").click()
    who(page, "first (p-adapter, vqa)")
    address, first = drawn(page, context)
    assert first.size == (700, 420)
    assert page.locator("#result .odds").count() == 0

    page.get_by_label("Base model (vqa)").check()
    who(page, "Base model (vqa)")
    page.get_by_label("low-rank (lora, vqa)").check()
    who(page, "low-rank (lora, vqa)")
    page.wait_for_function("old => document.querySelector('#map img').src !== old", arg=address)

    page.locator("#strength input[type=range]").fill("0")
    page.locator("#strength input[type=range]").dispatch_event("pointerup")
    page.wait_for_timeout(2000)
    _, plain = drawn(page, context)
    np.testing.assert_array_equal(np.asarray(plain), np.asarray(Image.open(photo).convert("RGB")))

    # A statement about an example goes to the model for statements, which has probabilities.
    page.locator("#examples-entailment").get_by_text("the dog is red").click()
    who(page, "labels (p-adapter, entailment)")
    page.wait_for_function("document.getElementById('result').getBoundingClientRect().top >= 0")
    shares = page.locator("#result .odds .row").all_inner_texts()
    assert {text.split()[0] for text in shares} == {"correct", "incorrect"}
    assert sum(float(re.search(r"([\d.]+) %", text)[1]) for text in shares) == pytest.approx(100, abs=0.11)
    assert page.locator("#text label span").first.inner_text() == "Hypothesis"

    broken = tmp_path / "broken.png"
    broken.write_bytes(b"this is no picture")
    page.locator("#picture").get_by_role("button", name=re.compile("clear|remove", re.IGNORECASE)).first.click()
    page.locator("#picture input[type=file]").set_input_files(str(broken))
    page.wait_for_timeout(1500)
    page.locator("#ask").click()
    page.locator("#result .problem", has_text="broken.png: is not an image in a known format").wait_for()
    assert str(tmp_path) not in page.locator("#result").inner_text()
    assert page.locator("#map img").count() == 0

    assert hosts <= {url.rstrip("/"), "data:"}
    assert complaints == []
