"""The gallery in Chromium: filters, comparison, download of all, languages, many videos, and what axe-core says."""

import io
import subprocess
import time
import zipfile
from pathlib import Path

import httpx
import pytest

from contract import PARAMETERS
from contract.media import MEDIA
from tests.service.fake_triton import FakeTriton
from tests.service.running import gateway, settings_for, wait_for, worker
from tests.service.web.test_page import CHROMIUM, browser, pytestmark  # noqa: F401

AXE = "axe-core@4.14.1"
WORDS = Path(__file__).resolve().parents[3] / "service" / "web" / "words.js"
MADE = 30  # more than a page of them


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    settings = settings_for(tmp_path_factory.mktemp("site"))
    with gateway(settings) as url, worker(settings, FakeTriton(settings.runs, step_seconds=0.001)):
        with httpx.Client(base_url=url) as client:
            for number in range(MADE):
                body = {"prompt": f"scene {number}", "steps": 1, "num_frames": 5, "seed": number}
                last = client.post("/v1/videos", json=body | ({"output_format": "gif"} if number == 1 else {})).json()
            stopped = client.post("/v1/videos", json={"prompt": "stopped", "steps": 900}).json()
            wait_for(client, last["id"], seconds=90)
            client.post(f"/v1/videos/{stopped['id']}/cancel")
            wait_for(client, stopped["id"])
        yield url


def open_page(browser, site, **options):  # noqa: F811
    context = browser.new_context(bypass_csp=True, **options)
    page = context.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda line: page.problems.append(line.text) if line.type == "error" else None)
    page.set_default_timeout(30000)
    page.goto(site)
    page.wait_for_selector("body[data-ready=yes]")
    return page


@pytest.fixture
def page(browser, site):  # noqa: F811
    opened = open_page(browser, site)
    yield opened
    assert opened.problems == []
    opened.context.close()


def shown(page):
    return page.locator(".video:not([hidden])")


def test_filters_look_at_all_videos_not_only_the_loaded_ones(page):
    assert shown(page).count() < MADE
    page.fill("#filter-text", "SCENE 2")
    page.wait_for_function("document.querySelectorAll('.video:not([hidden])').length === 11")
    page.fill("#filter-text", "")
    page.select_option("#filter-status", "unmade")
    shown(page).filter(has_text="Cancelled").wait_for()
    assert shown(page).count() == 1
    page.fill("#filter-text", "nothing like it")
    page.get_by_text("Nothing fits the filter.").wait_for()


def test_files_are_loaded_when_they_come_near_the_window(page):
    page.wait_for_selector(".video video[poster]")
    assert page.locator(".video video:not([src])").count() > 0
    page.locator(".video").last.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('.video:last-child video').src")


def test_two_videos_are_compared_side_by_side(page):
    for number in (0, 1):
        shown(page).nth(number).locator(".compare").click()
    page.wait_for_selector("#compare-dialog[open]")
    page.wait_for_function("[...document.querySelectorAll('#pair video')].every(v => v.readyState > 0)")
    assert page.locator("#differences tbody th").all_inner_texts() == ["Prompt", "Seed"]
    assert page.locator("#differences tbody td").all_inner_texts() == ["scene 29", "scene 28", "29", "28"]
    page.click("#play-both")
    page.wait_for_function("[...document.querySelectorAll('#pair video')].every(v => !v.paused)")
    page.keyboard.press("Escape")
    page.wait_for_selector("#compare-dialog", state="hidden")


def test_all_that_is_shown_comes_as_one_file(page):
    page.fill("#filter-text", "scene 1")
    page.wait_for_function("document.querySelectorAll('.video:not([hidden])').length === 11")
    with page.expect_download() as download:
        page.click("#download-all")
    with zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes())) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert sorted(Path(name).suffix for name in names) == [".gif", *[".mp4"] * 10]
        mp4 = next(name for name in names if name.endswith(".mp4"))
        assert archive.read(mp4)[4:8] == b"ftyp"


def test_a_gif_is_shown_as_a_picture(page):
    page.fill("#filter-text", "scene 1")
    page.wait_for_function("document.querySelectorAll('.video:not([hidden])').length === 11")
    picture = shown(page).filter(has=page.locator("img"))
    picture.scroll_into_view_if_needed()
    page.wait_for_function("[...document.querySelectorAll('.video img')].some(i => i.naturalWidth === 64)")


def test_again_with_changes_fills_the_form(page):
    shown(page).first.locator(".again").click()
    assert (page.input_value("#prompt"), page.input_value("#seed"), page.input_value("#steps")) == (
        "scene 29",
        "29",
        "1",
    )


def test_chinese_is_taken_from_the_browser_or_chosen(browser, site):  # noqa: F811
    page = open_page(browser, site, locale="zh-CN")
    assert (page.inner_text("#submit"), page.get_attribute("html", "lang")) == ("生成", "zh-Hans")
    assert page.locator("label[for=seed]").inner_text() == "随机种子"
    assert page.locator("#steps-hint").inner_text() == "1 到 1000"
    assert shown(page).first.locator(".again").inner_text() == "修改后重做"
    page.click("#language")
    page.wait_for_selector("body[data-ready=yes]")
    assert page.inner_text("#submit") == "Generate"
    page.reload()
    page.wait_for_selector("body[data-ready=yes]")
    assert page.inner_text("#submit") == "Generate"
    assert page.problems == []
    page.context.close()


def test_every_label_of_a_parameter_has_a_chinese_word():
    words = WORDS.read_text(encoding="utf-8")
    assert [m.name for m in MEDIA if any(f'"{said}": ' not in words for said in (m.label, m.help))] == []
    assert [p.label for p in PARAMETERS if f'"{p.label}": ' not in words] == []


@pytest.fixture(scope="session")
def axe(tmp_path_factory):
    """The script of axe-core, by npm."""
    folder = tmp_path_factory.mktemp("axe")
    try:
        subprocess.run(["npm", "pack", AXE], cwd=folder, check=True, capture_output=True, timeout=60)
        subprocess.run(["tar", "xzf", next(folder.glob("*.tgz")).name], cwd=folder, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"axe-core could not be had: {error}")
    return (folder / "package" / "axe.min.js").read_text()


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (820, "dark"), (1440, "light")])
def test_nothing_serious_for_people_who_hear_or_enlarge_the_page(browser, site, axe, width, scheme):  # noqa: F811
    page = open_page(browser, site, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.click("summary")
    page.evaluate(axe)
    found = [page.evaluate("axe.run(document)")["violations"]]
    for number in (0, 1):
        shown(page).nth(number).locator(".compare").click()
    page.wait_for_selector("#compare-dialog[open]")
    time.sleep(0.2)
    found.append(page.evaluate("axe.run(document)")["violations"])
    serious = [v["id"] for violations in found for v in violations if v["impact"] in ("serious", "critical")]
    assert serious == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.context.close()
