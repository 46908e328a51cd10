"""Pictures and clips on the page, in a real headless Chromium: choose, drop, paste, look, remove, send; phone and keyboard."""

import base64

import pytest

from tests.service import pictures
from tests.service.fake_triton import FakeTriton
from tests.service.running import gateway, worker
from tests.service.web.test_page import CHROMIUM, browser  # noqa: F401

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium installed (Debian: apt-get install chromium)")
PHOTO = {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": pictures.noise(300, 200, "JPEG")}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    settings = pictures.settings_with_media(tmp_path_factory.mktemp("site"), "image", "last_image", "video")
    triton = FakeTriton(settings.runs, step_seconds=0.01)
    with gateway(settings) as url, worker(settings, triton):
        yield url, triton


@pytest.fixture
def page(browser, site):  # noqa: F811
    context = browser.new_context(viewport={"width": 390, "height": 800})
    opened = context.new_page()
    opened.problems = []
    opened.on("pageerror", lambda error: opened.problems.append(str(error)))
    opened.on("console", lambda line: opened.problems.append(line.text) if "Content Security" in line.text else None)
    opened.set_default_timeout(30000)
    opened.goto(site[0])
    opened.wait_for_selector("body[data-ready=yes]")
    yield opened
    assert opened.problems == []
    context.close()


def shown(page, name):
    return page.locator(f".medium:has(#{name}) .view > *")


def finished(page, site, prompt):
    """What Triton was given for the video that the form asks for."""
    page.fill("#prompt", prompt)
    page.click("#submit")
    card = page.locator(".video", has_text=prompt).first
    card.wait_for()
    return card, site[1].media[f"{card.get_attribute('data-id')}-1"]


def hand_over(page, event, files, target=None):
    """A drop or a paste, as the browser tells of it."""
    page.evaluate(
        """([event, files, target]) => {
            const data = new DataTransfer();
            for (const {name, kind, text} of files) {
                const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
                data.items.add(new File([bytes], name, {type: kind}));
            }
            const about = {bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data};
            const kindOfEvent = event === "paste" ? ClipboardEvent : DragEvent;
            document.querySelector(target ?? "body").dispatchEvent(new kindOfEvent(event, about));
        }""",
        [event, [{**file, "text": base64.b64encode(file["text"]).decode()} for file in files], target],
    )


def test_a_chosen_picture_is_seen_and_sent_and_gives_the_video_its_shape(page, site):
    page.set_input_files("#image", PHOTO)
    assert shown(page, "image").evaluate("image => image.decode().then(() => image.naturalWidth)") == 300
    assert page.is_disabled("#width")
    card, received = finished(page, site, "begins with a photo")
    assert set(received) == {"image"}
    assert "64x48" in card.locator(".about").inner_text()  # 3:2, of the area of 64x64


def test_the_own_size_can_be_kept(page, site):
    page.set_input_files("#image", PHOTO)
    page.uncheck("#auto-size")
    assert page.is_enabled("#width")
    card, _ = finished(page, site, "of its own size")
    assert "64x64" in card.locator(".about").inner_text()


def test_what_is_removed_is_not_sent(page, site):
    page.set_input_files("#image", PHOTO)
    page.get_by_role("button", name="Remove: First picture").click()
    assert shown(page, "image").count() == 0
    assert page.evaluate("document.activeElement.id") == "image"
    assert page.is_enabled("#width")
    _, received = finished(page, site, "from text alone")
    assert received == {}


def test_files_can_be_dropped_and_pasted(page, site):
    png = {"name": "a.png", "kind": "image/png", "text": pictures.picture()}
    hand_over(page, "drop", [png], "#last_image")
    assert shown(page, "last_image").count() == 1
    assert shown(page, "image").count() == 0
    hand_over(page, "paste", [png])
    hand_over(page, "drop", [{"name": "c.mp4", "kind": "video/mp4", "text": pictures.clip()}])
    assert [shown(page, name).count() for name in ("image", "last_image", "video")] == [1, 1, 1]
    page.get_by_role("button", name="Remove: Clip").click()
    _, received = finished(page, site, "from here to there")
    assert set(received) == {"image", "last_image"}


def test_a_file_that_is_no_picture_is_named_at_its_place(page):
    page.set_input_files("#last_image", PHOTO | {"name": "x.png", "buffer": b"no picture"})
    page.fill("#prompt", "x")
    page.click("#submit")
    page.wait_for_selector("#form-error:not([hidden])")
    assert "last_image is" in page.inner_text("#form-error")
    assert page.evaluate("document.activeElement.id") == "last_image"
    page.set_input_files("#last_image", PHOTO)
    assert page.get_attribute("#last_image", "aria-invalid") is None


def test_the_keyboard_reaches_everything_and_it_is_visible(page):
    choosers = []
    page.on(
        "filechooser", lambda chooser: choosers.append(chooser)
    )  # early: the browser must know of it before the key is pressed
    page.focus("#prompt")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "image"
    outline = page.locator(".medium:has(#image)").evaluate("box => getComputedStyle(box).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Space")
    for _ in range(100):
        if not choosers:
            page.wait_for_timeout(100)
    choosers[0].set_files(PHOTO)
    shown(page, "image").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.ariaLabel") == "Remove: First picture"


def test_it_fits_a_phone(page):
    for name in ("image", "last_image"):
        page.set_input_files(f"#{name}", PHOTO | {"name": "a-name-without-any-place-to-break-" * 4 + ".jpg"})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    overlap = page.locator(".medium:has(#image)").evaluate(
        "box => box.querySelector('.words').getBoundingClientRect().right > box.querySelector('.remove').getBoundingClientRect().left"
    )
    assert not overlap


def test_a_model_of_text_alone_shows_no_place_for_pictures(browser, tmp_path):  # noqa: F811
    with gateway(pictures.settings_with_media(tmp_path)) as url:
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector("body[data-ready=yes]")
        assert page.is_hidden("#media")
        assert page.is_hidden("#auto-size-field")
        page.close()
