#!/usr/bin/env python3
"""The attention map in a browser: `python3 tests/browser/map.py map.html map.safetensors [folder for screenshots]`.

Needs selenium 4 and chromedriver with its Chromium (Debian: python3-selenium, chromium-driver), and pdftoppm (poppler-utils) to
look at prints. Both files are made from one run and prompt, the second with the weights of the page's last frame. Stops at the
first failure with exit code 1."""

import base64
import math
import pathlib
import random
import sys

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

import map_readers
from map_page import Failure, Page, Tensors, check, wait_for

# The page holds weights as u16, and shows three digits.
STORED = 0.5 / 65535 + 1e-7
SHOWN = STORED + 0.0005 + 1e-7


def places(tensors, count):
    """The same few (layer, head, query, key) in every run of the test."""
    layers, heads, length, _ = tensors.shape("attention")
    draw = random.Random(1)
    for _ in range(count):
        query = draw.randrange(length)
        yield draw.randrange(layers), draw.randrange(heads), query, draw.randrange(query + 1)


def check_weights(page, tensors):
    """The numbers for scripts, and what lists, text and table show."""
    frame = page.state()["frame"]
    layers, heads, length, _ = tensors.shape("attention")
    wanted = [(layers - 1, heads - 1, length - 1, length - 1), (0, 0, 0, 0), *places(tensors, 300)]
    asked = [[frame, *(place + 1 for place in at)] for at in wanted]
    found = page.promise("Promise.all(arguments[0].map((at) => attentionMap.weight(...at)))", asked)
    for at, value in zip(wanted, found, strict=True):
        check(abs(value - tensors.at("attention", *at)) <= STORED, f"weight{at} is {value}, in the file {tensors.at('attention', *at)}")

    for layer, head, token, _ in [*places(tensors, 4), (layers - 1, 0, length - 1, 0)]:
        page.select(units="tokens", layer=layer + 1, head=head + 1, token=token + 1)
        check_lists(page, tensors, layer, head, token)
    page.select(head="all")
    means = [sum(tensors.at("attention", layer, h, token, key) for h in range(heads)) / heads for key in range(token + 1)]
    close(page.texts("#back .value"), sorted(means, reverse=True), 2 * SHOWN, "mean of the heads")


def close(texts, values, tolerance, where):
    check(len(texts) == min(len(values), 6), f"{where}: {len(texts)} rows for {len(values)} weights")
    for text, value in zip(texts, values):
        check(abs(float(text) - value) <= tolerance, f"{where}: shows {text}, should be {value}")


def check_lists(page, tensors, layer, head, token):
    length = len(tensors.tokens)
    where = f"layer {layer + 1}, head {head + 1}, token {token + 1}"
    back = [tensors.at("attention", layer, head, token, key) for key in range(token + 1)]
    forth = [tensors.at("attention", layer, head, query, token) for query in range(token, length)]
    close(page.texts("#back .value"), sorted(back, reverse=True), SHOWN, f"{where} looks at")
    close(page.texts("#forth .value"), sorted(forth, reverse=True), SHOWN, f"{where} is looked at")
    if not page.js("return document.getElementById('all-weights').open"):
        page.js("document.getElementById('all-weights').open = true")
    wait_for(lambda: len(page.texts("#all-weights tbody tr")) == length, "the table of all weights")
    page.settle()
    columns = [page.texts(f"#all-weights tbody td:nth-child({column})") for column in (3, 4)]
    for column, values in zip(columns, (back, forth), strict=True):
        numbers = [float(text) for text in column if text != "–"]
        check(len(numbers) == len(values), f"{where}: the table holds {len(numbers)} weights of {len(values)}")
        for number, value in zip(numbers, values, strict=True):
            check(abs(number - value) <= SHOWN, f"{where}: the table shows {number}, should be {value}")
    check(page.js("return document.querySelectorAll('.unit-text').length") == length, "one node a token")
    check_colours(page, back, forth, where)


def check_colours(page, back, forth, where):
    """The text: a larger weight is never the paler (by the luminance of its colour, in the light theme)."""
    colours = page.js("return [...document.querySelectorAll('.unit-text')].map((node) => node.style.backgroundColor)")
    light = [sum(f * float(x) for f, x in zip((0.2126, 0.7152, 0.0722), c[4:-1].split(","))) for c in colours]
    for values, shades in ((back, light[: len(back)]), (forth[1:], light[len(back):])):
        order = sorted(range(len(values)), key=lambda i: values[i])
        for paler, darker in zip(order, order[1:]):
            check(shades[darker] <= shades[paler] + 1.5, f"{where}: weight {values[darker]} is paler than {values[paler]}")
        if values and max(values) > 0.02:
            check(max(shades) - min([*shades, 255]) >= 0 and min(shades) < 240, f"{where}: weight {max(values)} can't be seen")


def check_words(page, tensors, words):
    """The weight of a word on a word: the mean over its tokens of the sum over the other's."""
    size = max(words) + 1
    if size == len(words):
        return check(not page.find("#units").is_displayed(), "no switch where each token is a word")
    layers, heads, length, _ = tensors.shape("attention")
    word = words[length // 2]
    page.select(units="words", layer=layers, head=1, token=word + 1)
    queries = [t for t in range(length) if words[t] == word]
    sums = [0.0] * (word + 1)
    for query in queries:
        for key in range(query + 1):
            sums[words[key]] += tensors.at("attention", layers - 1, 0, query, key) / len(queries)
    # Each of a word's weights is rounded once more, after up to T stored ones were added.
    tolerance = SHOWN + length * STORED
    close(page.texts("#back .value"), sorted(sums, reverse=True), tolerance, f"word {word + 1} looks at")
    check(len(page.texts(".unit-text")) == size, "one node a word")
    for button, units in (("tokens", "tokens"), ("words", "words")):
        page.into_view(page.find(f"[data-units={button}]")).click()
        wait_for(lambda: page.state()["units"] == units, f"a click on {button}")


def check_lens(page, tensors):
    depths, length, each = tensors.shape("lens.ids")
    for token in sorted({0, length // 3, length - 2, length - 1} & set(range(length))):
        page.select(units="tokens", token=token + 1)
        values = page.texts("#lens .value")
        check(len(values) == depths * each, f"{len(values)} probabilities for {depths} depths of {each}")
        for i, text in enumerate(values):
            value = tensors.at("lens.probabilities", i // each, token, i % each)
            check(abs(float(text) - value) <= SHOWN, f"lens at {token + 1}, depth {i // each}: shows {text}, should be {value}")
        if token + 1 < length:
            line = page.find("#lens-line").get_attribute("aria-label").rsplit(": ", 1)[1].split(", ")
            for depth, text in enumerate(line):
                value = tensors.at("lens.next", depth, token)
                check(abs(float(text) - value) <= SHOWN, f"the next token's probability at depth {depth}: {text}, should be {value}")
    names = {}
    page.select(token=1)
    for i, name in enumerate(page.texts("#lens .name")):
        known = names.setdefault(tensors.at("lens.ids", i // each, 0, i % each), name)
        check(known == name, f"one id has two names: {known}, {name}")


def check_pointer(page, tensors):
    """Click and hover: in the text, in the matrix, on a head."""
    layers, heads, length, _ = tensors.shape("attention")
    page.select(units="tokens", layer=1, head=1, token=1)
    target = min(length - 1, 3)
    page.into_view(page.find(f"#unit-{target}")).click()
    wait_for(lambda: page.state()["token"] == target + 1, "a click on a token chooses it")
    page.settle()
    expected = page.texts("#back .value")
    ActionChains(page.driver).move_to_element(page.into_view(page.find("h1"))).perform()
    page.select(token=1)
    ActionChains(page.driver).move_to_element(page.into_view(page.find(f"#unit-{target}"))).perform()
    wait_for(lambda: page.texts("#back .value") == expected, "hovering shows a token's weights")
    check(page.state()["token"] == 1, "hovering does not choose")
    ActionChains(page.driver).move_to_element(page.into_view(page.find("h1"))).perform()
    wait_for(lambda: len(page.texts("#back .value")) == 1, "leaving shows the chosen token again")

    matrix = page.into_view(page.find("#matrix"))
    if cell := cell_centre(page, target, 0):
        ActionChains(page.driver).move_to_element_with_offset(matrix, *cell).perform()
        wait_for(lambda: page.js("return document.querySelector('.tooltip:not([hidden])') !== null"), "a tooltip over the matrix")
        check_tooltip(page, tensors.at("attention", 0, 0, target, 0))
        ActionChains(page.driver).move_to_element_with_offset(matrix, *cell).click().perform()
        wait_for(lambda: page.state()["token"] == target + 1, "a click in the matrix chooses its row")

    page.into_view(page.driver.find_elements(By.CSS_SELECTOR, ".thumb")[-1]).click()
    wait_for(lambda: (page.state()["layer"], page.state()["head"]) == (layers, heads), "a click on a head chooses it")
    painted = """const canvas = [...document.querySelectorAll(".thumb canvas")].at(-1);
        return canvas.width > 1 && canvas.getContext("2d").getImageData(0, 0, 1, 1).data[3] === 255"""
    wait_for(lambda: page.js(painted), "the small picture in view is drawn")
    Select(page.into_view(page.find("#order"))).select_by_value("distance")
    page.settle()
    distances = [float(text) for text in page.texts(".thumb > .value")]
    check(distances == sorted(distances, reverse=True), f"heads are in order of their distance: {distances}")
    Select(page.find("#order")).select_by_value("")
    page.settle()


def check_tooltip(page, value):
    number = float(page.find(".tooltip").get_attribute("textContent").rsplit(": ", 1)[1])
    check(abs(number - value) <= SHOWN, f"the tooltip shows {number}, should be {value}")


def cell_centre(page, query, key):
    """The centre of a cell, from the centre of the matrix, as it is drawn; None where cells are too small to point at."""
    side = page.js("const b = document.getElementById('matrix'); return [b.clientWidth, b.clientHeight]")
    length = len(page.texts(".unit-text"))
    drawn = page.js("return document.querySelector('#matrix canvas').getBoundingClientRect().width")
    # Cells end where the canvas does; labels of the width of `margin` come before them.
    margin = drawn - page.js("""const c = document.querySelector("#matrix canvas"); const pen = c.getContext("2d");
        const ratio = c.width / c.getBoundingClientRect().width; const row = pen.getImageData(0, c.height - 3, c.width, 1).data;
        let at = c.width; while (at > 0 && row[4 * at - 1] === 255) at--; return (c.width - at) / ratio""")
    cell = (drawn - margin) / length
    if cell < 3:
        return None
    return round(margin + (key + 0.5) * cell - side[0] / 2), round(margin + (query + 0.5) * cell - side[1] / 2)


def check_keyboard(page, tensors):
    layers, heads, length, _ = tensors.shape("attention")
    page.select(units="tokens", layer=1, head=1, token=1)
    press = lambda *keys: ActionChains(page.driver).send_keys(*keys).perform()  # noqa: E731
    page.js("document.querySelector('#unit-0').focus()")
    for key, name, value in [
        (Keys.ARROW_RIGHT, "token", min(2, length)), (Keys.END, "token", length), (Keys.ARROW_LEFT, "token", max(1, length - 1)),
        (Keys.HOME, "token", 1), (Keys.ARROW_DOWN, "head", min(2, heads)), (Keys.ARROW_UP, "head", 1),
        ("]", "layer", min(2, layers)), ("[", "layer", 1), ("a", "head", "all" if heads > 1 else 1), ("a", "head", 1),
    ]:
        press(key)
        wait_for(lambda: str(page.state()[name]) == str(value), f"key {key!r} makes the {name} {value}")
        page.settle()
        focused = page.js("return document.activeElement.id")
        check(focused == f"unit-{page.state()['token'] - 1}", f"the focus follows the token: it is on {focused!r}")
    check(page.find("#status").get_attribute("aria-live") == "polite", "the choice is spoken politely")
    check("Looks at" in page.find("#status").get_attribute("textContent"), "the choice is spoken")
    outline = page.js("return getComputedStyle(document.activeElement).outlineStyle")
    check(outline != "none", "the focus can be seen")
    # A click on the matrix gives it the focus; Tab passes it by.
    page.js("document.querySelector('#matrix').focus()")
    press(Keys.ARROW_RIGHT)
    wait_for(lambda: page.state()["token"] == min(2, length), "arrows work in the matrix")
    press(Keys.ARROW_DOWN)
    wait_for(lambda: page.state()["head"] == min(2, heads), "arrows choose heads in the matrix")
    page.js("document.querySelector('.thumb').focus()")
    press(Keys.END)
    wait_for(lambda: (page.state()["layer"], page.state()["head"]) == (layers, heads), "End in the heads chooses the last")


def check_address(page):
    page.select(units="tokens", layer=1, head=1, token=2)
    address = page.driver.current_url
    page.select(token=1, head="all")
    page.driver.get("about:blank")
    page.driver.get(address)
    page.ready()
    state = page.state()
    shown = {name: state[name] for name in ("units", "layer", "token")}
    check(shown == {"units": "tokens", "layer": 1, "token": 2} and str(state["head"]) == "1", f"{address} leads to {state}")
    page.driver.get(f"{page.address}#layer=99&head=-1&token=x&frame=0&units=letters")
    page.settle()
    check(page.state()["layer"] == 1, "an address that names nothing changes nothing")


def check_frames(page):
    count = page.js("return Number(document.getElementById('frame').max)")
    if not page.find("#play").is_displayed():
        return
    slider = page.into_view(page.find("#frame"))
    slider.send_keys(Keys.HOME)
    wait_for(lambda: page.state()["frame"] == 1, "the slider's first frame")
    page.select()  # changes nothing, and returns when all is drawn
    before = page.texts("#frame-label")
    slider.send_keys(Keys.END)
    wait_for(lambda: page.state()["frame"] == count and page.texts("#frame-label") != before, "the slider's last frame")
    page.select(frame=count - 1)
    page.find("#play").click()
    wait_for(lambda: page.state()["frame"] == count and page.find("#play").text == "Play", "playing stops at the last frame")
    page.find("#play").click()
    wait_for(lambda: page.state()["frame"] < count, "playing at the end starts again")
    page.find("#play").click()
    page.select(frame=count)


def check_svg(page):
    """The file that is saved is a drawing with text, not a picture."""
    page.js("""window.saved = new Promise((done) => {
        URL.createObjectURL = (blob) => { blob.text().then(done); return "data:,"; };
        HTMLAnchorElement.prototype.click = () => {}; })""")
    page.into_view(page.find("#save")).click()
    text = page.promise("window.saved")
    answer = page.js("""const svg = new DOMParser().parseFromString(arguments[0], "image/svg+xml");
        const box = [...svg.querySelectorAll("rect")].length;
        return [svg.querySelector("parsererror")?.textContent ?? null, box, svg.querySelectorAll("text").length, svg.querySelectorAll("image").length]""", text)
    check(answer[0] is None, f"the SVG is not well-formed: {answer[0]}")
    # The scale has a step for each of 64 colours; each row has at least one cell that is not white, if it is a row of its own.
    length = min(len(page.texts(".unit-text")), 128)
    check(answer[1] > 64 + length and answer[2] > 6 and answer[3] == 0, f"the SVG holds cells, a scale and labels: {answer}")


def luminance(page, script):
    rgb = page.js(f"return {script}")
    return sum(float(x) for x in rgb[rgb.index("(") + 1 : -1].split(",")[:3]) / 3


def check_themes(page, folder):
    background = "getComputedStyle(document.documentElement).backgroundColor"
    ink = "getComputedStyle(document.body).color"
    corner = """(() => { const c = document.querySelector("#matrix canvas");
        return `(${[...c.getContext("2d").getImageData(c.width - 3, c.height >> 1, 1, 1).data].slice(0, 3)})`; })()"""
    check(luminance(page, background) > 200 > luminance(page, ink), "the light theme is dark on light")
    check(luminance(page, corner) > 200, "the matrix is drawn for the light theme")
    light = shades(page)
    page.into_view(page.find("#theme")).click()
    page.settle()
    check(shades(page) != light, "the text is drawn for the dark theme")
    check(luminance(page, background) < 60 < luminance(page, ink), "the button makes the page dark")
    check(luminance(page, corner) < 60, "the matrix is drawn for the dark theme")
    map_readers.check_dark(page)
    page.screenshot(folder, "dark")
    check_print(page, background, corner, light)
    page.find("#theme").click()
    page.settle()
    check(luminance(page, background) > 200, "the button makes the page light again")


def shades(page):
    return page.js("return [...document.querySelectorAll('.unit-text')].map((node) => node.style.backgroundColor)")


def check_print(page, background, corner, light):
    """On paper: white, without controls, whatever the theme."""
    # A browser prints as soon as it has told the page: there is no later frame to draw in.
    drawn = page.js("""dispatchEvent(new Event('beforeprint'));
        return [...document.querySelectorAll('.thumb canvas')].every((canvas) => canvas.width > 1)""")
    check(drawn, "all heads are printed")
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    check(luminance(page, background) == 255, "paper is white")
    check(luminance(page, corner) > 200, "the matrix is printed on white")
    check(shades(page) == light, "the text is printed in the colours of the light theme")
    left = page.js("""return [...document.querySelectorAll("button:not(.thumb), select, input")]
        .filter((node) => node.offsetParent !== null).map((node) => node.id || node.textContent)""")
    check(not left, f"controls are printed: {left}")
    check(not page.find("footer").is_displayed(), "the footer is printed, on a page of its own")
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen"})
    page.js("dispatchEvent(new Event('afterprint'))")
    page.settle()
    check(luminance(page, background) < 60, "the screen is dark again after printing")
    pdf = base64.b64decode(page.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})["data"])
    check(pdf.startswith(b"%PDF"), "the page can be printed")


def check_phone(path, tensors, folder):
    with Page(path, 360, 740, dark=True, touch=True) as page:
        page.width_fits("on a phone")
        check(luminance(page, "getComputedStyle(document.documentElement).backgroundColor") < 60, "the system's dark theme is taken")
        page.screenshot(folder, "phone")
        map_readers.check_small_screen(page)
        page.select(units="tokens", token=1)
        target = min(2, len(tensors.tokens) - 1)
        node = page.into_view(page.find(f"#unit-{target}"))
        box = page.js("const b = arguments[0].getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]", node)
        tap(page, *box)
        wait_for(lambda: page.state()["token"] == target + 1, "a tap chooses a token")
        matrix = page.into_view(page.find("#matrix"))
        page.select(layer=1, head=1)
        if cell := cell_centre(page, target, 0):
            box = page.js("const b = arguments[0].getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]", matrix)
            tap(page, box[0] + cell[0], box[1] + cell[1])
            wait_for(lambda: page.js("return document.querySelector('.tooltip:not([hidden])') !== null"), "a tap in the matrix tells a weight")
            check_tooltip(page, tensors.at("attention", 0, 0, target, 0))
        for control in ("#layer-up", "#head-down", "#theme"):
            height = page.find(control).rect["height"]
            check(height >= 36, f"{control} is {height} px high: too small for a finger")
        for node in ("#matrix", "#heads", "#lens"):
            page.into_view(page.find(node))
            page.width_fits(f"on a phone at {node}")
            page.screenshot(folder, f"phone-{node[1:]}")
        page.js("document.querySelectorAll('details').forEach((node) => (node.open = true))")
        page.settle()
        page.width_fits("on a phone with all opened")
        page.quiet("on a phone")


def tap(page, x, y):
    point = [{"x": x, "y": y}]
    page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": point})
    page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def main(path, tensors_path, folder=None):
    tensors = Tensors(tensors_path)
    if folder:
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    with Page(path, 1400, 900) as page:
        data = page.js("return JSON.parse(document.getElementById('data').textContent)")
        check(data["tokens"] == tensors.tokens, "the page and the file are of one prompt")
        check(math.prod(tensors.shape("attention")) > 0, "the file holds weights")
        page.screenshot(folder, "light")
        steps = [
            ("readers", lambda: map_readers.check_desk(page, tensors, data)),
            ("weights", lambda: check_weights(page, tensors)), ("words", lambda: check_words(page, tensors, data["words"])),
            ("lens", lambda: check_lens(page, tensors)), ("pointer", lambda: check_pointer(page, tensors)),
            ("keyboard", lambda: check_keyboard(page, tensors)), ("frames", lambda: check_frames(page)),
            ("themes and print", lambda: check_themes(page, folder)), ("address", lambda: check_address(page)),
            ("quiet", lambda: page.quiet("on a desk")), ("svg", lambda: check_svg(page)),
            ("phone", lambda: check_phone(path, tensors, folder)),
            ("paper", lambda: map_readers.check_paper(path)), ("strange data", lambda: map_readers.check_strange(path, data)),
        ]
        for name, step in steps:
            step()
            print(f"{name}: ok", flush=True)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except Failure as failure:
        sys.exit(f"failed: {failure}")
