"""The demo in a real browser: a recording uploaded, its transcript read."""

import shutil

import pytest

from espnet_dus.app.transcription import Transcript, Word
from espnet_dus.app.transcription import answer as answer_on
from espnet_dus.app.transcription import transcribe

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture
def page(loaded):
    """The demo, open in headless Chromium; every request that leaves is an error."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on PATH (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    from espnet_dus.app.demo import build

    _, url, _ = build(loaded).launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True
    )
    outside = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(120_000)  # for the slowest of machines

        def on_request(request):
            if not request.url.startswith((url, "data:", "blob:")):
                outside.append(request.url)

        page.on("request", on_request)
        page.goto(url)
        yield page
        browser.close()
    assert outside == []


def printable(text):
    """Leave out what a browser may change: line ends and control characters."""
    return "".join(filter(str.isprintable, text))


def test_a_recording_is_transcribed_and_a_question_answered_twice(
    page, loaded, recording, tmp_path
):
    expected = transcribe(loaded, recording)
    assert expected.words
    page.set_input_files("input[type=file]", str(recording))
    page.wait_for_selector("#transcript")
    words = page.locator("#transcript b")
    assert words.all_inner_texts() == [word.word for word in expected.words]
    first = page.locator("#transcript span").first.get_attribute("title")
    word = expected.words[0]
    assert first == (
        f"{word.start:.2f} to {word.end:.2f} s, confidence {word.confidence:.0%}"
    )

    page.get_by_label("Instruction").fill("Translate it.")
    page.get_by_role("button", name="Follow the instruction").click()
    followed = page.get_by_label("Answer")
    answer = printable(answer_on(loaded, recording, "Translate it."))
    box = followed.element_handle()
    page.wait_for_function("(box) => box.value !== ''", arg=box)
    assert printable(followed.input_value()) == answer

    page.get_by_label("Question").fill("the cat sat")
    page.get_by_role("button", name="Ask").click()
    page.get_by_text("The two answers are").wait_for()
    adapted = loaded.generate_text("the cat sat", added_layers="kept")
    base = loaded.generate_text("the cat sat", added_layers="dropped")
    for label, answer in (("Adapted model", adapted), ("Base LM", base)):
        shown = page.get_by_label(label).input_value()
        assert printable(shown) == printable(answer)
    page.screenshot(path=tmp_path / "demo.png")
    assert (tmp_path / "demo.png").stat().st_size > 10_000


def test_what_is_in_a_transcript_is_not_taken_for_html():
    from espnet_dus.app.demo import transcript_html

    words = [Word("<b>&", 0.25, 0.0, 0.5), Word("two", 1.0, None, None)]
    page = transcript_html(Transcript("x.wav", 2.0, "<b>& two", words))
    assert "&lt;b&gt;&amp;" in page and "<b><b>" not in page
    assert "0.00 to 0.50 s, confidence 25%" in page and "'confidence 100%'" in page
    assert "no words in 2.0 s" in transcript_html(Transcript("x.wav", 2.0, "", []))
