"""The page of `attn example` in headless Chromium: its arithmetic against the library's, and everything that a reader does.

    cargo run --release -p candle-attention --example layer_cases > cases.json
    attn example --out example.html
    python3 tests/browser/example.py example.html cases.json [screenshots-folder]

Ends with exit code 1 and a message at the first failure. What the page shows is compared with tests/fixtures/chapter.json,
computed by numpy.
"""
import json, math, pathlib, re, sys

from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.interaction import POINTER_TOUCH
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.by import By

from example_bounds import bounds_of
from headless import DESK, PHONE, browser, check, check_console_and_network, screen

CHAPTER = json.loads((pathlib.Path(__file__).parent.parent / "fixtures/chapter.json").read_text())
PAPER = (688, 972)  # A4 without its margins, in CSS pixels
STEPS = "words matrices queries keys values scores mask softmax sum future translation".split()

# ---- the arithmetic


def check_arithmetic(driver, cases_path):
    text = pathlib.Path(cases_path).read_text()
    cases = json.loads(text)
    check(len(cases) == 1000, f"expected 1000 cases, got {len(cases)}")
    kinds = {(case["scale"], case["causal"]) for case in cases}
    check(len(kinds) == 4, f"the cases have only {kinds}")
    largest = [max(case["expected"]["weights"][-1]) for case in cases if len(case["x"]) > 1]
    check(sum(w == 1 for w in largest) > 50 and sum(w < 0.6 for w in largest) > 50, "softmax neither saturates nor is flat")
    script = "return JSON.stringify(JSON.parse(arguments[0]).map((c) => window.attentionExample.compute(c)))"
    worst = 0
    for number, (case, got) in enumerate(zip(cases, json.loads(driver.execute_script(script, text)), strict=True)):
        bounds = bounds_of(case)
        for name, matrix in case["expected"].items():
            for i, row in enumerate(matrix):
                for j, value in enumerate(row):
                    mine, bound = got[name][i][j], bounds[name][i][j]
                    difference = math.nan if mine is None else abs(mine - value)
                    place = f"case {number}: {name}[{i}][{j}] is {mine}, the library's {value}, allowed {bound}"
                    check(difference <= bound, place)
                    worst = max(worst, difference / bound if bound else 0)
    print(f"arithmetic: 1000 cases within the bounds of f64; the worst difference is {worst:.2f} of its bound")


# ---- the page, as a reader sees it


class Page:
    def __init__(self, driver, path):
        self.driver, self.url = driver, pathlib.Path(path).resolve().as_uri()

    def open(self, step):
        self.driver.get("about:blank")
        self.driver.get(f"{self.url}#{step}")

    def go(self, step):
        """To another step, keeping what has been changed."""
        self.driver.execute_script("location.hash = arguments[0]", step)
        self.until(lambda: self.visible() == [step], f"step {step} does not show")

    def until(self, holds, what):
        for _ in range(200):
            if holds():
                return
            self.driver.execute_async_script("setTimeout(arguments[0], 10)")
        check(False, what)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        found = [node for node in self.all(selector) if node.is_displayed()]
        check(len(found) == 1, f"{len(found)} visible {selector}")
        return found[0]

    def visible(self):
        return self.driver.execute_script("""return [...document.querySelectorAll("section.step")]
            .filter((section) => section.checkVisibility()).map((section) => section.dataset.step)""")

    def matrix(self, caption, of_cell):
        """What the script `of_cell` says of each cell `td` of the visible matrix with this caption."""
        script = f"""return [...document.querySelectorAll("table.matrix")]
            .filter((table) => table.checkVisibility() && table.caption.textContent === arguments[0])
            .map((table) => [...table.tBodies[0].rows].map((row) => [...row.cells].slice(1).map((td) => {of_cell})))"""
        matrices = self.driver.execute_script(script, caption)
        check(len(matrices) == 1, f"{len(matrices)} visible matrices {caption}")
        return matrices[0]

    def marked(self, caption, name):
        """The places of the cells that are marked with the class `name`."""
        marks = self.matrix(caption, f'td.classList.contains("{name}")')
        return [(i, j) for i, row in enumerate(marks) for j, is_marked in enumerate(row) if is_marked]

    def button(self, caption, i, j):
        return self.matrix(caption, 'td.querySelector("button")')[i][j]

    def box(self, caption, i, j):
        return self.matrix(caption, 'td.querySelector("input")')[i][j]

    def why(self):
        return self.one(".why p:last-child").text

    def press(self, label, option):
        """Presses the visible switch `label`."""
        group = self.one(f".switch[aria-label='{label}']")
        [button] = [b for b in group.find_elements(By.TAG_NAME, "button") if b.text.startswith(option)]
        self.driver.execute_script("arguments[0].click()", button)
        check(button.get_attribute("aria-pressed") == "true", f"{label} {option} is not pressed")

    def shows(self, caption, expected):
        """The visible matrix has these numbers, to the four digits that are shown."""
        texts = self.matrix(caption, "td.innerText")
        for i, row in enumerate(expected):
            for j, value in enumerate(row):
                text = texts[i][j]
                shown = 0.0 if text == "–" else float(text.replace("−", "-").replace("∞", "inf"))
                close = shown == value or (text != "–" and abs(shown - value) <= 0.5e-4 + 1e-9)
                check(close, f"{caption}[{i}][{j}] shows {text}, expected {value}")

    def write(self, box, text):
        box.click()
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(text)


def check_steps(page):
    page.open("")
    driver = page.driver
    for number, step in enumerate(STEPS):
        check(page.visible() == [step], f"step {number + 1} shows {page.visible()}, expected {step}")
        check(f"{number + 1} of {len(STEPS)}" in page.one("#where").text, "the number of the step is not told")
        check(page.one("nav [aria-current]").text.startswith(str(number + 1)), "the list of steps marks another")
        is_last = number == len(STEPS) - 1
        check(page.one("#next").is_enabled() != is_last, f"next, on step {number + 1}")
        if not is_last:
            page.one("#next").click()
            page.until(lambda: page.visible() != [step], f"next does nothing on {step}")
    page.one("#back").click()
    page.until(lambda: page.visible() == [STEPS[-2]], "back does not go back")
    page.all("nav [href='#scores']")[0].click()
    page.until(lambda: page.visible() == ["scores"], "the list of steps does not lead to the scores")
    body = driver.find_element(By.TAG_NAME, "body")
    for key, step in [(Keys.ARROW_RIGHT, "mask"), (Keys.ARROW_LEFT, "scores")]:
        body.send_keys(key)
        page.until(lambda: page.visible() == [step], f"an arrow key does not lead to {step}")
    page.open("words")
    for key, step in [(Keys.PAGE_DOWN, "matrices"), (Keys.PAGE_UP, "words")]:
        driver.find_element(By.TAG_NAME, "body").send_keys(key)
        page.until(lambda: page.visible() == [step], f"a presenter's remote does not lead to {step}")
    for step in STEPS:
        page.open(step)
        check(driver.execute_script("return scrollY") == 0, f"{step} does not begin at its top")
    page.open("queries")
    page.one("#all").click()
    page.until(lambda: page.visible() == STEPS, "all steps at once shows only some")
    page.one("#all").click()
    page.until(lambda: len(page.visible()) == 1, "all steps stay")


def check_numbers(page):
    """What each step shows, against numpy's."""
    page.open("queries")
    for step, caption, name in [("queries", "Q", "q"), ("keys", "K", "k"), ("values", "V", "v")]:
        page.go(step)
        page.shows(caption, CHAPTER[name])
    for causal, scale, name in [("on", "none", "unscaled"), ("on", "1", "scaled"), ("off", "none", "unmasked")]:
        page.go("sum")
        page.press("Mask", causal)
        page.press("Scaling", scale)
        page.shows("Weights α", CHAPTER[f"{name}_weights"])
        page.shows("A", CHAPTER[f"{name}_output"])
        page.go("softmax")
        page.shows("Weights α", CHAPTER[f"{name}_weights"])
        page.go("mask")
        masked = "Masked scores" if causal == "on" else "Scores, not masked"
        hidden = page.matrix(masked, 'td.innerText === "−∞"')
        check(hidden == [[causal == "on" and j > i for j in range(3)] for i in range(3)], f"hidden: {hidden}")


def check_pointing(page):
    page.open("scores")
    driver = page.driver
    ActionChains(driver).move_to_element(page.button("Scores", 0, 1)).perform()
    expected = "q1 · k2 = 0.2 × 0.4 + 0.6 × 0.8 + 0.4 × (−0.1) + 0.7 × 0.7 = 1.01"
    check(page.why() == expected, f"hovering: {page.why()}, expected {expected}")
    for caption, name, row in [("Q", "first", 0), ("K", "second", 1), ("Scores", "chosen", 0)]:
        expected = [(row, j) for j in range(4)] if name != "chosen" else [(0, 1)]
        check(page.marked(caption, name) == expected, f"in {caption}, marked: {page.marked(caption, name)}")
    button = page.button("Scores", 2, 0)
    driver.execute_script("arguments[0].focus()", button)
    check(page.why().startswith("q3 · k1 = "), f"focus: {page.why()}")
    button.send_keys(Keys.ARROW_RIGHT)
    check(page.why().startswith("q3 · k2 = "), f"an arrow key in the matrix: {page.why()}")
    driver.switch_to.active_element.send_keys(Keys.ARROW_UP)
    check(page.why().startswith("q2 · k2 = "), f"an arrow key in the matrix: {page.why()}")
    check(page.visible() == ["scores"], "an arrow key in the matrix turns the page")

    page.open("sum")
    ActionChains(driver).move_to_element(page.button("A", 1, 0)).perform()
    check(page.why() == "0.6271 × 0.2 + 0.3729 × 0.6 ≈ 0.3491", page.why())
    marks = page.marked("Weights α", "first"), page.marked("V", "second")
    check(marks == ([(1, 0), (1, 1)], [(0, 0), (1, 0)]), f"marked are {marks}, and the sum has two terms")
    page.open("queries")
    ActionChains(driver).move_to_element(page.button("Q", 2, 1)).perform()
    check(page.why() == "1 × 0.2 + 1 × 0.1 + 0 × 0.3 + 2 × (−0.2) = −0.1", page.why())
    page.open("softmax")
    ActionChains(driver).move_to_element(page.button("Weights α", 1, 1)).perform()
    check(page.why() == "α22 = e0.36 / (e0.88 + e0.36) ≈ 1.4333 / (2.4109 + 1.4333) ≈ 0.3729", page.why())

    screen(driver, PHONE)
    page.open("scores")
    button = page.button("Scores", 1, 2)
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    finger = ActionBuilder(driver, mouse=PointerInput(POINTER_TOUCH, "finger"))
    finger.pointer_action.move_to(button).pointer_down().pointer_up()
    finger.perform()
    check(page.why().startswith("q2 · k3 = "), f"a tap: {page.why()}")
    screen(driver, DESK)


def product(a, b):
    return [[sum(x * y for x, y in zip(row, column)) for column in zip(*b)] for row in a]


def check_editing(page):
    page.open("matrices")
    matrices = {"x": CHAPTER["x"], "wq": CHAPTER["w_q"], "wk": CHAPTER["w_k"], "wv": CHAPTER["w_v"]}
    matrices = {name: [list(row) for row in rows] for name, rows in matrices.items()}
    results = [("queries", "Q", "wq", "WQ"), ("keys", "K", "wk", "WK"), ("values", "V", "wv", "WV")]
    check(not page.one("#reset").is_enabled(), "reset is offered before anything has changed")
    for at, (step, caption, name, shown) in enumerate(results):
        page.go(step)
        check(page.one("details.printed").is_displayed(), f"what the chapter prints is missing at {step}")
        page.write(page.box(shown, at, 3), str(at + 0.5))
        matrices[name][at][3] = at + 0.5
        page.shows(caption, product(matrices["x"], matrices[name]))
        check(not [d for d in page.all("details.printed") if d.is_displayed()], "printed numbers beside changed ones")
        check(page.marked(shown, "changed") == [(at, 3)], f"marked as changed: {page.marked(shown, 'changed')}")
    page.go("words")
    page.write(page.box("X", 1, 2), "-7.25")
    matrices["x"][1][2] = -7.25
    for step, caption, name, shown in results:
        page.go(step)
        check(page.box("X", 1, 2).get_attribute("value") == "-7.25", f"X at {step} is as it was")
        page.shows(caption, product(matrices["x"], matrices[name]))
    page.one("#reset").click()
    page.shows("V", CHAPTER["v"])
    check(page.box("X", 1, 2).get_attribute("value") == "1", "reset leaves a box as it was")


def check_refusals(page):
    """A box takes exactly the number that is written in it, or says that it takes none."""
    page.open("values")
    x = [list(row) for row in CHAPTER["x"]]
    box = page.box("X", 0, 0)
    said = lambda: " ".join(p.text for p in page.all("[role=alert]") if p.is_displayed())
    for text, number in [("1,5", 1.5), ("−0.25", -0.25), (".5", 0.5), ("1e2", 100), ("-1000", -1000), ("+3", 3)]:
        page.write(box, text)
        check(box.get_attribute("value") == text, f"{text!r} becomes {box.get_attribute('value')!r} while it is written")
        page.shows("V", product([[number, *x[0][1:]], *x[1:]], CHAPTER["w_v"]))
        box.send_keys(Keys.TAB)
        check(float(box.get_attribute("value")) == number, f"{text!r} becomes {box.get_attribute('value')!r}")
        check(not said() and box.get_attribute("aria-invalid") is None, f"{text!r} is refused: {said()}")
        check(page.driver.execute_script("return arguments[0].scrollWidth <= arguments[0].clientWidth", box), f"{text} is cut off")
    for text in ["5000", "1e308", "1e999", "1/3", "0x10", "1,5,3", "1.000,5", "abc", "NaN", "Infinity", "-", ""]:
        page.one("#reset").is_enabled() and page.one("#reset").click()
        page.write(box, text or Keys.DELETE)
        box.send_keys(Keys.TAB)
        check(box.get_attribute("value") == text, f"{text!r} becomes {box.get_attribute('value')!r}")
        check(box.get_attribute("aria-invalid") == "true", f"{text!r} passes as a number")
        check((text or "empty") in said() and "−1000 to 1000" in said(), f"of {text!r} the page says {said()!r}")
        page.shows("V", CHAPTER["v"])
        page.write(page.box("X", 2, 3), "7")
        check(box.get_attribute("value") == text, "another number undoes what is refused")
    page.write(box, "2")
    check(not said() and box.get_attribute("aria-invalid") is None, f"mended, and the page says {said()!r}")
    page.write(box, "x")
    page.one("#reset").click()
    check(not said() and box.get_attribute("value") == "1", f"after reset: {box.get_attribute('value')}, {said()!r}")
    page.write(box, "-")
    check(not said(), f"a sign is refused before its number can follow: {said()!r}")


def check_signs(page):
    """"=" only where nothing is rounded; a share that is not 0 is not written as 0."""
    page.open("scores")
    page.press("Scaling", "none")
    page.go("queries")
    page.write(page.box("X", 1, 0), "40")
    page.go("softmax")
    ActionChains(page.driver).move_to_element(page.button("Weights α", 1, 0)).perform()
    texts = page.matrix("Weights α", "td.innerText")
    check(texts[0] == ["1", "–", "–"] and texts[1][0] == "<0.0001", f"the shares are {texts}")
    check(page.why().startswith("α21 = e") and page.why().endswith("< 0.0001"), page.why())
    ActionChains(page.driver).move_to_element(page.button("Weights α", 1, 1)).perform()
    check(page.why().endswith("≈ 1"), page.why())
    ActionChains(page.driver).move_to_element(page.button("Weights α", 0, 0)).perform()
    check(page.why().endswith("= 1"), page.why())
    page.go("sum")
    ActionChains(page.driver).move_to_element(page.button("A", 1, 0)).perform()
    check(page.why().startswith("<0.0001 × ") and " ≈ " in page.why() and "=" not in page.why(), page.why())
    page.go("queries")
    page.write(page.box("X", 1, 0), "0.12345678")
    ActionChains(page.driver).move_to_element(page.button("Q", 1, 0)).perform()
    check("0.1235 × 0.1" in page.why() and " ≈ " in page.why(), page.why())


def check_keyboard(page):
    """A matrix is one stop of the Tab key; the chosen number is told; a remote turns the page wherever the focus is."""
    page.open("queries")
    stops = page.driver.execute_script("""return [...document.querySelectorAll("main :is(input, button, summary)")]
        .filter((node) => node.checkVisibility() && node.tabIndex === 0).length""")
    check(stops == 4, f"{stops} stops of the Tab key: expected X, W, Q and what the chapter prints")
    pressed = lambda: [(i, j) for i, row in enumerate(page.matrix("Q", 'td.firstChild.ariaPressed === "true"'))
                       for j, is_pressed in enumerate(row) if is_pressed]
    check(pressed() == [(1, 0)], f"pressed: {pressed()}")
    page.button("Q", 0, 2).click()
    check(pressed() == [(0, 2)], f"pressed: {pressed()}")
    active = lambda: page.driver.switch_to.active_element
    page.box("X", 0, 0).click()
    for key, at in [(Keys.ARROW_DOWN, (1, 0)), (Keys.ARROW_RIGHT, (1, 1)), (Keys.ARROW_UP, (0, 1)), (Keys.ARROW_LEFT, (0, 0))]:
        active().send_keys(key)
        check(active() == page.box("X", *at), f"an arrow key does not lead to number {at}")
    active().send_keys("12", Keys.ARROW_LEFT, "3")
    check(page.box("X", 0, 0).get_attribute("value") == "132", "an arrow key does not move the caret of a box")
    check(page.visible() == ["queries"], "an arrow key in a box turns the page")
    page.driver.execute_script("scrollTo(0, 1e5)")
    active().send_keys(Keys.PAGE_DOWN)
    page.until(lambda: page.visible() == ["keys"], "in a box a presenter's remote does not turn the page")


def check_printed(page):
    counts = {"queries": (11, 12), "keys": (10, 12), "values": (1, 4), "scores": (6, 6), "softmax": (5, 5), "sum": (8, 8)}
    for step, (struck, of) in counts.items():
        page.open(step)
        printed = page.one("details.printed")
        check(printed.get_attribute("open") is None, f"{step}: what the chapter prints stands open")
        printed.find_element(By.TAG_NAME, "summary").click()
        count = len(printed.find_elements(By.TAG_NAME, "s"))
        told = f"None of the {of} numbers" if struck == of else f"{struck} of the {of} numbers"
        check(count == struck and told in printed.text, f"{step}: {count} struck through, {printed.text}")
        if step == "scores":
            own = [t.text for t in printed.find_elements(By.CSS_SELECTOR, "table:last-child td > span") if t.text]
            check(own == "1.32 1.40 0.99 1.11 0.88 1.16".split(), f"scores from the printed q and k: {own}")
    page.go("queries")
    page.until(lambda: page.one("details.printed").get_attribute("open"), "opened once, it is closed at the next step")
    page.open("queries")
    is_open = "return document.querySelector('details.printed').open"
    for event, expected in [("beforeprint", True), ("afterprint", False)]:
        page.driver.execute_script("dispatchEvent(new Event(arguments[0]))", event)
        check(page.driver.execute_script(is_open) == expected, f"what the chapter prints, {event}")


def check_trials(page):
    page.open("future")
    moved = lambda: [i for i, j in page.marked("A after", "moved") if j == 0]
    check(moved() == [2], f"Theorem 1: rows {moved()} move")
    page.write(page.box("Another last word", 0, 1), "900")
    check(moved() == [2], f"Theorem 1, 900: rows {moved()} move")
    page.shows("A before", CHAPTER["unscaled_output"])
    page.shows("A after", CHAPTER["unscaled_output"][:2])
    check("the same to the last bit" in page.one(".verdict").text, page.one(".verdict").text)
    page.press("Mask", "off")
    check(moved() == [0, 1, 2], f"Corollary 1.1: rows {moved()} move")

    page.open("translation")
    terms = lambda: [row.text.split()[-1] for row in page.all(".terms tbody tr")]
    page.shows("Weights after", CHAPTER["translated_weights"])
    check("0.0721" in page.one(".verdict").text and "false" in page.one(".verdict").text, page.one(".verdict").text)
    check([t for t in terms() if not t[-1].isdigit()] == ["cancels", "stays", "cancels"], f"terms: {terms()}")
    page.press("Add t to", "keys")
    page.shows("Weights after", CHAPTER["unscaled_weights"])
    page.shows("A after − A before", [[0.0] * 4] * 3)
    check("nothing" in page.one(".verdict").text, page.one(".verdict").text)
    check([t for t in terms() if not t[-1].isdigit()] == ["cancels"], f"terms: {terms()}")
    page.press("Add t to", "values")
    shift = product([CHAPTER["translation"]], CHAPTER["w_v"])
    page.shows("Weights after", CHAPTER["unscaled_weights"])
    page.shows("A after − A before", shift * 3)
    page.shows("For comparison", shift)
    check("exactly" in page.one(".verdict").text, page.one(".verdict").text)
    page.press("Add t to", "all")
    for j in range(4):
        page.write(page.box("The translation", 0, j), "0")
    check("nothing" in page.one(".verdict").text, f"no translation: {page.one('.verdict').text}")


def check_looks(page, folder):
    driver = page.driver
    background = lambda: driver.execute_script("return getComputedStyle(document.documentElement).backgroundColor")
    seen = {}
    for size in [DESK, PHONE]:
        for theme in ["light", "dark"]:
            screen(driver, size, theme)
            for step in [*STEPS, "all"]:
                page.open(step)
                width = driver.execute_script("return document.documentElement.scrollWidth")
                check(width <= size[0], f"{step} is {width} pixels wide on a screen of {size[0]}")
                if folder:
                    driver.save_screenshot(str(folder / f"{step}-{size[0]}-{theme}.png"))
            seen[theme] = background()
    check(seen["light"] != seen["dark"], f"both themes are {seen['light']}")
    screen(driver, DESK)
    page.open("words")
    page.one("#theme").click()
    check(background() == seen["dark"], "the button does not switch the theme")
    page.one("#theme").click()
    check(background() == seen["light"], "the button does not switch the theme back")
    screen(driver, DESK, media="print")
    page.open("words")
    check(page.visible() == STEPS, f"on paper only {page.visible()}")
    check(not [n for n in page.all("nav, #theme, .switch") if n.is_displayed()], "controls on paper")
    numbers = page.all(".matrix :is(input, td > button)")
    check(len(numbers) > 50 and all(n.is_displayed() for n in numbers), "numbers are missing on paper")
    screen(driver, PAPER, media="print")
    wide = driver.execute_script("""return [...document.querySelectorAll(".matrix :is(input, td > button, td > span)")]
        .filter((node) => node.scrollWidth > node.clientWidth).map((node) => node.value || node.textContent)""")
    check(not wide, f"numbers run into each other on paper: {wide}")
    scrolling = driver.execute_script("""return [...document.querySelectorAll(".operand")]
        .filter((node) => getComputedStyle(node).overflowX !== "visible").length""")
    check(scrolling == 0, f"{scrolling} matrices scroll on paper")
    states = page.all("[data-step=softmax] .on-paper")
    check([s.text for s in states if s.is_displayed()] == ["none", "on"], "paper does not tell scaling and mask")
    screen(driver, PHONE)
    page.open("words")
    small = [link.size for link in page.all("#steps a") if min(link.size.values()) < 40]
    check(not small, f"steps too small to touch: {small}")
    screen(driver, DESK)


def check_policy(page):
    """The Content-Security-Policy that all pages have."""
    template = pathlib.Path(__file__).parent.parent.parent / "attn/src/pages/page.html"
    [policy] = re.findall('http-equiv="Content-Security-Policy" content="(.*?)"', template.read_text())
    found = [meta.get_attribute("content") for meta in page.all("meta[http-equiv=Content-Security-Policy]")]
    check(found == [policy], f"policies: {found}")


def main(page_path, cases_path, screenshots=None):
    folder = screenshots and pathlib.Path(screenshots)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    with browser() as driver:
        screen(driver, DESK)
        page = Page(driver, page_path)
        page.open("words")
        check_arithmetic(driver, cases_path)
        parts = [check_policy, check_steps, check_numbers, check_pointing, check_editing, check_refusals, check_signs,
                 check_keyboard, check_printed, check_trials]
        for part in parts:
            part(page)
            print(f"{part.__name__.removeprefix('check_')}: good")
        check_looks(page, folder)
        check_console_and_network(driver)
        print("looks, console, network: good")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: python3 example.py example.html cases.json [screenshots-folder]")
    main(*sys.argv[1:])
