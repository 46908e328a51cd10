"""A real Chromium that opens report files and says what it drew."""

from pathlib import Path

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
LOOK = """() => [...document.querySelectorAll('svg[data-plot]')].map(svg => ({
    name: svg.dataset.plot,
    marks: [...svg.querySelectorAll('.mark')].filter(mark => {
        const box = mark.getBoundingClientRect();
        const paint = getComputedStyle(mark);
        return box.width + box.height > 0.2 && (paint.fill !== 'none' || paint.stroke !== 'none');
    }).length,
    inside: [...svg.querySelectorAll('.mark')].every(mark => {
        const box = mark.getBoundingClientRect(), frame = svg.getBoundingClientRect();
        return box.left >= frame.left - 5 && box.right <= frame.right + 5
            && box.top >= frame.top - 5 && box.bottom <= frame.bottom + 5;
    }),
    width: svg.getBoundingClientRect().width,
}))"""


def look(path: Path) -> tuple[list[dict], list[str], list[str]]:
    """(plots with their number of visible marks, addresses that were asked for, errors of the page)."""
    from playwright.sync_api import sync_playwright

    requests, errors = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path.absolute().as_uri())
        plots = page.evaluate(LOOK)
        browser.close()
    return plots, [url for url in requests if not url.startswith(("file:", "data:"))], errors
