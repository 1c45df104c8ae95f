"""The page of `attn inspect --weights` in headless Chromium: what it shows against the numbers in it.

    attn inspect RUN --weights --out weights.html
    python3 tests/browser/weights.py weights.html [screenshots-folder]

Ends with exit code 1 and a message at the first failure.
"""
import json, pathlib, re, sys, tempfile

from selenium.webdriver import Keys
from selenium.webdriver.common.by import By

from headless import DESK, PHONE, browser, check, check_console_and_network, screen

# A4 without its margins, at 96 pixels an inch.
PAPER = (688, 1017)
NUMBERS = ["frobenius", "spectral", "rank"]


def shown(text):
    """The number in a text of the page."""
    return float(text.replace(",", "").replace("−", "-"))


def is_same(text, value):
    """Whether a text is a number to the three digits that the page gives, or two where it needs an exponent."""
    return abs(shown(text) - value) <= (0.05 if "e" in text else 0.005) * abs(value) + 1e-12


def cells(driver, table):
    rows = driver.find_elements(By.CSS_SELECTOR, f"#{table} tbody tr")
    return [[cell.text for cell in row.find_elements(By.TAG_NAME, "td")] for row in rows]


def check_heads(driver, data):
    heads = data["heads"]
    buttons = driver.find_elements(By.CSS_SELECTOR, ".multiple")
    check(len(buttons) == sum(map(len, heads)), f"{len(buttons)} pictures of heads")
    layer, head = len(heads) - 1, len(heads[0]) - 1
    # By keyboard as well as by mouse.
    buttons[0].click()
    buttons[-1].send_keys(Keys.ENTER)
    check(buttons[-1].get_attribute("aria-pressed") == "true", "the chosen head is not marked")
    title = driver.find_element(By.CSS_SELECTOR, "#head h3").text
    check(title == f"Layer {layer + 1}, head {head + 1}", f"the head shown is {title}")
    for row, matrix in zip(cells(driver, "head"), ["qk", "vo"], strict=True):
        expected = [heads[layer][head][matrix][number] for number in NUMBERS]
        check(all(map(is_same, row, expected)), f"{matrix}: {row} instead of {expected}")
    # The lines of the large picture, read back through its logarithmic scale.
    start = data["heads_at_start"]
    largest = max(one[matrix]["spectral"] for row in heads + (start or []) for one in row for matrix in one)
    lines = {f"line {matrix}": heads[layer][head][matrix]["values"] for matrix in ["qk", "vo"]}
    if start:
        known = {f"line {matrix} start": start[layer][head][matrix]["values"] for matrix in ["qk", "vo"]}
        lines.update({name: values for name, values in known.items() if values[0] > 0})
    drawn = driver.find_elements(By.CSS_SELECTOR, "#head polyline")
    check(sorted(line.get_attribute("class") for line in drawn) == sorted(lines), f"not the lines {list(lines)}")
    for line in drawn:
        values, points = lines[line.get_attribute("class")], line.get_attribute("points").split()
        check(len(points) == len(values), f"{len(points)} points for {len(values)} singular values")
        for point, value in zip(points, values):
            part = (float(point.split(",")[1]) - 3) / (182 - 6)
            expected = max(value / largest, 1e-4)
            check(abs(10 ** (-4 * part) / expected - 1) < 0.01, f"{point} for {value} of {largest}")
    before = driver.find_element(By.ID, "before").text
    check(("before training" in before) == bool(start), f"of the lines before training: {before!r}")


def check_norms(driver, data):
    for matrix in ["qk", "vo"]:
        for number in NUMBERS:
            for key, value in [("matrix", matrix), ("number", number)]:
                driver.find_element(By.CSS_SELECTOR, f"button[data-{key}={value}]").click()
            for row, heads in zip(cells(driver, "norms-table"), data["heads"], strict=True):
                expected = [head[matrix][number] for head in heads]
                check(all(map(is_same, row, expected)), f"{matrix} {number}: {row} instead of {expected}")
            # Also on paper, where there are no buttons.
            name = driver.find_element(By.CSS_SELECTOR, f"button[data-matrix={matrix}]").text
            check(name in driver.find_element(By.ID, "norms-meaning").text, f"the page does not say that it shows {name}")


def check_change(driver, data):
    missing = driver.find_element(By.ID, "change-missing")
    if "missing" in data["start"]:
        check(data["start"]["missing"] in missing.text, "the page does not say why the start is missing")
        return
    check(not missing.is_displayed(), "the start is there, and the page gives a reason")
    is_change = lambda text, change: text == "was 0" if change is None else is_same(text, change)
    kinds = list(dict.fromkeys(t["kind"] for t in data["tensors"] if t["layer"] is not None))
    changes = {(t["layer"], t["kind"]): t["change"] for t in data["tensors"]}
    for row, kind in zip(cells(driver, "change-table table:first-child"), kinds, strict=True):
        for layer, text in enumerate(row):
            check(is_change(text, changes[layer, kind]), f"{kind}, layer {layer}: {text}")
    # What belongs to no layer stands below none.
    outside = [t for t in data["tensors"] if t["layer"] is None]
    for row, tensor in zip(cells(driver, "change-table table:last-child"), outside, strict=True):
        check(len(row) == 1 and is_change(row[0], tensor["change"]), f"{tensor['name']}: {row}")
    columns = driver.find_elements(By.CSS_SELECTOR, "#change-table table:last-child thead th")
    check([column.text for column in columns] == ["outside the layers"], "tensors of no layer stand in a layer")
    names = [node.text for node in driver.find_elements(By.CSS_SELECTOR, "#change-table tbody th")]
    check(all(re.match(r"[a-z][^_.]* ", name) for name in names), f"not in plain words: {names}")
    zero = driver.find_element(By.ID, "change-zero").is_displayed()
    check(zero == any(t["change"] is None for t in data["tensors"]), "“was 0” is not explained where it stands")


def check_flow(driver, data):
    missing = driver.find_element(By.ID, "flow-missing")
    if "missing" in data["gradients"]:
        check(data["gradients"]["missing"] in missing.text, "the page does not say why the gradient is missing")
        return
    places = [node.text for node in driver.find_elements(By.CSS_SELECTOR, ".flow .place")]
    layers = [f"layer {layer}" for layer in range(data["layers"], 0, -1)]
    check(places == ["output", *layers, "embedding"], f"the way is {places}")
    # Blue and brown mean the two matrices of a head.
    colours = driver.execute_script("""
        const colour = (node) => getComputedStyle(node)[node.matches(".fill") ? "backgroundColor" : "color"];
        return [".flow .fill", ".qk", ".vo"].map((which) => [...document.querySelectorAll(which)].map(colour));""")
    check(len(set(colours[0])) == 1 and not set(colours[0]) & set(colours[1] + colours[2]), f"bars in {set(colours[0])}")
    bars = driver.find_elements(By.CSS_SELECTOR, ".flow .bar")
    parts = [(float(re.match(r"([\d.]+)%", bar.find_element(By.CSS_SELECTOR, ".fill").get_attribute("style").split("width: ")[1])[1]),
              shown(bar.text.split()[0])) for bar in bars]
    most = max(norm for _, norm in parts)
    for width, norm in parts:
        check(abs(width - 100 * norm / most) < 1.1, f"a bar of {width} % for {norm} of {most}")
    # All of it together is the whole gradient.
    whole = sum(t["gradient"] ** 2 for t in data["tensors"] if t["gradient"] is not None)
    check(abs(sum(norm**2 for _, norm in parts) / whole - 1) < 0.02, "the bars leave out a part of the gradient")


def check_all(driver, data):
    driver.find_element(By.CSS_SELECTOR, "#all summary").click()
    rows = cells(driver, "tensors")
    for row, tensor in zip(rows, data["tensors"], strict=True):
        check("undefined" not in row[0], f"no plain words for {tensor['name']}")
        for text, key in zip(row[2:], ["norm", "change", "gradient"], strict=True):
            unknown = ["–", "was 0", "not finite"]
            check(text in unknown if tensor[key] is None else is_same(text, tensor[key]), f"{tensor['name']}: {key} {text}")


def check_layout(driver, where, width):
    """Nothing is cut off, and all is large enough to read; on paper too, where the heads are pictures and no buttons."""
    wide = driver.execute_script("return document.documentElement.scrollWidth")
    check(wide <= width, f"the page is {wide} wide on a {where} of {width}")
    over = driver.execute_script("""
        return [...document.querySelectorAll(".flow .bar > span")].filter((span) => {
          const text = document.createRange();
          text.selectNodeContents(span);
          return text.getBoundingClientRect().right > document.querySelector("#flow").getBoundingClientRect().right;
        }).map((span) => span.textContent);""")
    check(not over, f"cut off on a {where}: {over}")
    table = driver.find_element(By.CSS_SELECTOR, "#head .scroll")
    check(table.get_property("scrollWidth") <= table.get_property("clientWidth"), f"a head's numbers are cut off on a {where}")
    heads = driver.find_elements(By.CSS_SELECTOR, ".multiple svg")
    check(all(head.is_displayed() for head in heads), f"no pictures of heads on a {where}")
    # As drawn: the picture's own units, scaled.
    sizes = driver.execute_script("""
        return [...document.querySelectorAll("#head svg text")].map((text) => parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a);""")
    check(min(sizes) >= 11, f"labels of {min(sizes)} px on a {where}")


def check_not_finite(driver, path, data, folder):
    """A gradient that is no number is no bar of length 0."""
    if "missing" in data["gradients"]:
        return
    changed = json.loads(json.dumps(data))
    next(t for t in changed["tensors"] if t["layer"] == 0)["gradient"] = None
    page = pathlib.Path(path).read_text(encoding="utf-8")
    begin = page.index('id="data">') + len('id="data">')
    end = page.index("</script>", begin)
    copy = pathlib.Path(folder) / "not-finite.html"
    copy.write_text(page[:begin] + json.dumps(changed).replace("<", "\\u003c") + page[end:], encoding="utf-8")
    driver.get(copy.as_uri())
    texts = [bar.text for bar in driver.find_elements(By.CSS_SELECTOR, ".flow .bar")]
    check(sum(text.startswith("not finite") for text in texts) == 1, f"bars of a gradient that is not finite: {texts}")


def main(path, folder=None):
    with browser() as driver:
        for theme in ["light", "dark"]:
            screen(driver, DESK, theme)
            driver.get(pathlib.Path(path).resolve().as_uri())
            data = json.loads(driver.find_element(By.ID, "data").get_attribute("textContent"))
            now = lambda: driver.execute_script("return document.documentElement.dataset.theme")
            check(now() == theme, f"the theme is {now()}, and the reader prefers {theme}")
            for part in [check_heads, check_norms, check_change, check_flow, check_all]:
                part(driver, data)
            colour = lambda: driver.execute_script("return getComputedStyle(document.querySelector('#norms-table td[style]')).backgroundColor")
            before = colour()
            driver.find_element(By.ID, "theme").click()
            check(now() != theme and colour() != before, "the button changes no colours")
            driver.find_element(By.ID, "theme").click()
            driver.execute_script("localStorage.clear()")
            for name, size in [("desk", DESK), ("phone", PHONE)]:
                screen(driver, size, theme)
                check_layout(driver, name, size[0])
                if folder:
                    height = driver.execute_script("return document.documentElement.scrollHeight")
                    screen(driver, (size[0], height), theme)
                    driver.save_screenshot(str(pathlib.Path(folder) / f"weights-{name}-{theme}.png"))
            screen(driver, PAPER, theme, "print")
            check_layout(driver, "sheet", PAPER[0])
        screen(driver, DESK)
        with tempfile.TemporaryDirectory() as scratch:
            check_not_finite(driver, path, data, scratch)
        check_console_and_network(driver)
    print("weights: the page shows its numbers, on a desk and on a phone, light and dark")


if __name__ == "__main__":
    main(*sys.argv[1:])
