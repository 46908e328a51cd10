"""The page in a real headless Chromium: submit, watch, cancel, play, error, keys, keyboard, phone."""

import shutil

import httpx
import pytest

from contract.adapter_store import AdapterFile, AdapterStore, Entry
from contract.parameters import SAMPLERS
from tests.service.fake_triton import FakeTriton
from tests.service.running import gateway, settings_for, wait_for, worker
from tests.service.slow_decoder import SlowDecoder

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium installed (Debian: apt-get install chromium)")
KEY = "wan_test_key"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    adapter = AdapterFile("ink.safetensors", "0" * 64, 1, 8)
    AdapterStore(str(folder / "loras")).add(Entry("ink", "wan-test", (adapter,), 0))
    settings = settings_for(folder, lora_dir=str(folder / "loras"))
    triton = FakeTriton(settings.runs, step_seconds=0.05)
    with gateway(settings) as url, worker(settings, triton):
        yield url


@pytest.fixture
def page(browser, site):
    context = browser.new_context(
        bypass_csp=True
    )  # wait_for_function evaluates strings; the test with keys keeps the policy
    opened = context.new_page()
    opened.problems = []
    opened.on("pageerror", lambda error: opened.problems.append(str(error)))
    opened.set_default_timeout(30000)
    opened.goto(site)
    opened.wait_for_selector("body[data-ready=yes]")
    yield opened
    assert opened.problems == []
    context.close()


def start(page, prompt, **fields):
    page.fill("#prompt", prompt)
    for name, value in fields.items():
        page.fill(f"#{name}", str(value))
    page.click("#submit")


def test_a_prompt_becomes_a_video_that_plays(page):
    start(page, "a red circle moves left", steps=30)
    job = page.locator(".job", has_text="a red circle moves left")
    job.wait_for()
    page.wait_for_function("document.querySelector('.job .state')?.textContent.startsWith('Step')")
    page.wait_for_selector(".job img:not([hidden])", state="attached")
    card = page.locator(".video", has_text="a red circle moves left").first
    card.wait_for()
    assert job.count() == 0
    assert "30 steps" in card.locator(".about").inner_text()
    played = card.locator("video").evaluate(
        "async v => { await v.play(); await new Promise(r => setTimeout(r, 400)); return [v.currentTime, v.videoWidth] }"
    )
    assert played[0] > 0
    assert played[1] == 64


def test_an_adapter_is_chosen_by_its_name_and_comes_back_with_the_job(page):
    page.click("summary")
    assert page.locator("#adapters option").all_inner_texts() == ["ink"]
    start(page, "drawn with ink", steps=2, lora="ink:0.5")
    card = page.locator(".video", has_text="drawn with ink").first
    card.wait_for()
    page.fill("#lora", "nope")
    page.click("#submit")
    page.locator("#form-error", has_text="registered adapters of the model: ink").wait_for()
    card.locator(".again").click()
    assert page.input_value("#lora") == "ink:0.5"


def test_a_running_job_can_be_cancelled(page):
    start(page, "something long", steps=900)
    job = page.locator(".job", has_text="something long")
    page.wait_for_function("[...document.querySelectorAll('.job .state')].some(e => e.textContent.startsWith('Step'))")
    job.locator(".cancel").click()
    job.locator(".state", has_text="Cancelled").wait_for()
    job.get_by_role("button", name="Dismiss").click()
    assert job.count() == 0


def test_a_waiting_job_shows_its_position(page):
    start(page, "first of two", steps=900)
    page.wait_for_function("[...document.querySelectorAll('.job .state')].some(e => e.textContent.startsWith('Step'))")
    start(page, "second of two")
    second = page.locator(".job", has_text="second of two")
    second.locator(".state", has_text="Waiting, position 1").wait_for()
    for prompt in ("second of two", "first of two"):
        job = page.locator(".job", has_text=prompt)
        job.locator(".cancel").click()
        job.locator(".state", has_text="Cancelled").wait_for()


def test_an_error_names_the_field_and_leads_to_it(page):
    start(page, "x", width=70)
    error = page.locator("#form-error")
    error.wait_for()
    assert "width is 70" in error.inner_text()
    assert "nearest 64" in error.inner_text()
    assert page.evaluate("document.activeElement.id") == "width"
    assert page.get_attribute("#width", "aria-invalid") == "true"


def test_limits_and_defaults_come_from_the_server(page):
    assert page.input_value("#steps") == "20"
    assert page.get_attribute("#steps", "max") == "1000"
    assert page.locator("#sampler option").all_text_contents() == list(SAMPLERS)
    assert page.locator("#cache option").all_text_contents() == ["teacache", "magcache"]
    assert page.input_value("#guidance_end") == "1"
    assert page.get_attribute("#guidance_end", "max") == "1"


def test_lossy_options_are_sent_from_the_folded_part(page, site):
    page.fill("#prompt", "with a step cache")
    page.click("summary")
    page.select_option("#cache", "magcache")
    page.fill("#cache_threshold", "0.1")
    page.fill("#guidance_end", "0.75")
    with page.expect_request(lambda request: request.method == "POST") as sent:
        page.click("#submit")
    body = sent.value.post_data_json
    assert (body["cache"], body["cache_threshold"], body["guidance_end"]) == ("magcache", 0.1, 0.75)
    page.locator(".video", has_text="with a step cache").wait_for()


def test_videos_survive_a_reload_and_can_be_deleted(page, site):
    made = httpx.post(f"{site}/v1/videos", json={"prompt": "kept over a reload", "steps": 2}).json()
    wait_for(httpx.Client(base_url=site), made["id"])
    page.reload()
    card = page.locator(".video", has_text="kept over a reload")
    card.wait_for()
    card.get_by_role("button", name="Delete").click()
    card.wait_for(state="detached")
    assert httpx.get(f"{site}/v1/videos/{made['id']}").status_code == 404


def test_a_seed_beyond_the_numbers_of_javascript_keeps_its_digits(page, site):
    seed = 2**63 - 1
    prompt = 'the "seed": 12345 in a prompt stays'
    start(page, prompt, seed=seed, steps=2)
    card = page.locator(".video", has_text=prompt)
    card.wait_for()
    assert f"seed {seed}" in card.locator(".about").inner_text()
    page.reload()
    card = page.locator(".video", has_text=prompt)
    card.locator(".again").click()
    assert page.input_value("#seed") == str(seed)
    assert page.input_value("#prompt") == prompt
    page.fill("#prompt", "once more, the same")
    page.click("#submit")
    page.locator(".video", has_text="once more").wait_for()
    videos = httpx.get(f"{site}/v1/videos").json()["data"]
    assert [video["seed"] for video in videos if video["prompt"] in (prompt, "once more, the same")] == [seed, seed]


def test_the_keyboard_alone_is_enough(page):
    page.keyboard.press("Tab")
    assert "Skip" in page.evaluate("document.activeElement.textContent")
    page.keyboard.press("Enter")
    page.focus("#prompt")
    page.keyboard.type("typed and sent")
    page.keyboard.press("Control+Enter")
    page.locator(".video", has_text="typed and sent").wait_for()


def test_it_fits_a_phone_in_light_and_dark(page):
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    colours = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours[0] != colours[1]
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == colours[0]


def test_frames_play_while_later_ones_are_still_decoded(browser, tmp_path):
    settings = settings_for(tmp_path)
    triton = SlowDecoder(settings.runs)
    with gateway(settings) as url, worker(settings, triton):
        context = browser.new_context()
        page = context.new_page()
        problems = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
        page.set_default_timeout(30000)
        page.goto(url)
        page.wait_for_selector("body[data-ready=yes]")
        start(page, "seen early", steps=3)
        early = page.locator(".job video")
        early.wait_for()
        assert early.evaluate("video => video.videoWidth") == 64
        assert early.get_attribute("aria-label") == "Frames so far of seen early"
        triton.go_on.set()
        page.locator(".video", has_text="seen early").wait_for()
        assert page.locator(".job").count() == 0
        assert problems == []
        context.close()


def test_a_server_with_keys_asks_for_one(browser, tmp_path):
    import hashlib

    digest = hashlib.sha256(KEY.encode()).hexdigest()
    settings = settings_for(tmp_path, api_keys=f"alice:{digest}")
    with gateway(settings) as url, worker(settings):
        context = browser.new_context()
        page = context.new_page()
        problems = []
        page.on("console", lambda line: problems.append(line.text) if "Content Security" in line.text else None)
        page.set_default_timeout(30000)
        page.goto(url)
        page.wait_for_selector("#key-dialog[open]")
        page.fill("#key-input", KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector("body[data-ready=yes]")
        start(page, "with a key", steps=3)
        card = page.locator(".video", has_text="with a key")
        card.wait_for()
        page.wait_for_selector(".video video[src^='blob:']")
        loaded = "v => v.videoWidth || new Promise(done => v.onloadedmetadata = () => done(v.videoWidth))"
        assert card.locator("video").evaluate(loaded) == 64
        assert problems == []
        context.close()
