"""The attention map for its readers: what is named, marked and explained, on a desk, a phone and paper, and strange data."""

import base64
import json
import pathlib
import re
import shutil
import subprocess
import tempfile

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from map_page import Page, check, wait_for


def check_desk(page, tensors, data):
    check_losses(page, data)
    check_sums(page, tensors)
    check_titles(page, data)
    check_follows(page, tensors)
    check_keys(page)
    check_hearing(page, data)


def check_losses(page, data):
    """A frame tells the training loss nearest to its own step, and the last the validation loss at its step."""
    if len(data["frames"]) < 2 or not data["losses"]:
        return
    for index, frame in enumerate(data["frames"]):
        page.select(frame=index + 1)
        label = page.texts("#frame-label")[0]
        step = frame["step"]
        near = min(abs(at - step) for at, _ in data["losses"]["training"])
        told = re.search(r"training loss ([0-9.]+)", label)
        losses = [loss for at, loss in data["losses"]["training"] if abs(at - step) == near]
        check(told and any(f"{loss:.2f}" == told[1] for loss in losses), f"step {step} is called {label!r}, its losses are {losses}")
        validation = [loss for at, loss in data["losses"]["validation"] if at == step and frame is data["frames"][-1]]
        told = re.findall(r"validation loss ([0-9.]+)", label)
        check(told == [f"{loss:.2f}" for loss in validation], f"step {step} is called {label!r}, its validation losses are {validation}")
    frames = f"{len(data['frames'])} steps of training"
    check(frames in page.texts("#size")[0], f"the page says that it holds {frames}")


def check_sums(page, tensors):
    """A list that stops says how much it leaves out: with what it shows, a row adds up to 1."""
    length = len(tensors.tokens)
    page.select(units="tokens", layer=1, head=1, token=length)
    rest = page.texts("#back .more")
    check((length > 6) == bool(rest), f"{length} weights, and the list ends with {rest}")
    if rest:
        check(f"and {length - 6} more" in rest[0], f"of {length} weights, 6 are listed: {rest[0]}")
        total = sum(float(text) for text in page.texts("#back .value") + page.texts("#back .sum"))
        check(abs(total - 1) < 0.005, f"the weights listed and those left out add up to {total}")


def check_titles(page, data):
    """A heading begins with a whole word, and names what belongs to readers of the field stay behind their explanation."""
    words = [word.strip() for word in data["word_texts"]]
    for token in range(1, len(data["tokens"]) + 1):
        page.select(units="tokens", token=token)
        title = page.texts("#lens-title")[0]
        beginning = re.search("“(.*)”", title)[1]
        if "…" in beginning:
            first = re.split("[ ↵]", beginning.lstrip("… "))[0]
            check(any(word.startswith(first) for word in words) or len(first) > 25, f"the heading {title!r} cuts a word")
    told = " ".join(page.texts("main > p, section p, section h3, #model"))
    for word in ("entropy", "bits", "embedding", "qwen3", "vocabulary"):
        check(word not in told, f"nobody explains {word!r}: {told}")


def check_follows(page, tensors):
    """Among the candidates, the next token of the prompt is marked, and nothing else."""
    depths, length, each = tensors.shape("lens.ids")
    for token in range(length - 1):
        page.select(units="tokens", token=token + 1)
        marked = page.js("return [...document.querySelectorAll('#lens li')].map((node) => node.classList.contains('right'))")
        for i, mark in enumerate(marked):
            follows = tensors.at("lens.ids", i // each, token, i % each) == tensors.at("ids", token + 1)
            check(mark == follows, f"candidate {i % each + 1} at depth {i // each} after token {token + 1}: marked {mark}, follows {follows}")


def check_keys(page):
    """Keys that belong to the browser or to speech input are left alone."""
    page.select(units="tokens", layer=1, head=1, token=2)
    prevented = page.js("""const event = new KeyboardEvent("keydown", {key: "ArrowLeft", altKey: true, bubbles: true, cancelable: true});
        document.querySelector("#unit-1").dispatchEvent(event); return event.defaultPrevented""")
    check(not prevented and page.state()["token"] == 2, "Alt and an arrow lead back to another page")
    page.js("document.activeElement.blur()")
    before = page.state()
    for key in "a[],.p":
        ActionChains(page.driver).send_keys(key).perform()
        page.settle()
        check(page.state() == before, f"{key!r} does something outside of text, matrix and heads")
    page.js("document.querySelector('.thumb').focus()")
    ActionChains(page.driver).send_keys("]").perform()
    wait_for(lambda: page.state()["layer"] == min(2, len(page.texts("#layer option"))), "']' works in the heads")
    check(page.find("#matrix").get_property("tabIndex") == -1, "Tab stops at the matrix, whose keys a screen reader keeps")


def check_hearing(page, data):
    """The slider tells its step; playing is silent."""
    if len(data["frames"]) < 4:
        return
    page.select(frame=1)
    name = page.find("#frame").get_attribute("aria-valuetext")
    check(name.startswith(data["frames"][0]["label"]), f"the slider is heard as {name!r}")
    name = page.js("""const slider = document.querySelector("#frame"); slider.value = 2;
        slider.dispatchEvent(new Event("input")); return slider.getAttribute("aria-valuetext")""")
    check(name.startswith(data["frames"][1]["label"]), f"the slider is heard as {name!r} when it is moved to the second step")
    page.select(frame=1)
    check(not page.js("return document.querySelector('output')"), "an output element is heard whenever it changes")
    before = page.texts("#status")
    page.find("#play").click()
    wait_for(lambda: page.state()["frame"] >= 3, "frames are played")
    check(page.texts("#status") == before, "the weights are spoken while playing")
    page.find("#play").click()
    page.select(frame=len(data["frames"]))


def check_dark(page):
    """Strong weights are blue and orange in the dark, and what stands on them can be read."""
    for ramp, (strong, weak) in zip(page.js("return [...document.querySelectorAll('.ramp')].map((node) => node.style.background)"), ((2, 0), (0, 2))):
        last = [int(x) for x in re.findall(r"rgb\((\d+), (\d+), (\d+)\)", ramp)[-1]]
        check(last[strong] - last[weak] > 100, f"the strongest colour is pale: {last}")
    for weight in page.js("return [...document.querySelectorAll('.unit-text')].map((node) => [node.style.backgroundColor, node.style.color])"):
        back, ink = (luminance(colour) for colour in weight)
        contrast = (max(back, ink) + 0.05) / (min(back, ink) + 0.05)
        check(contrast >= 4.5, f"text on {weight[0]} has a contrast of {contrast:.1f}")


def luminance(colour):
    """Of an rgb(..), by WCAG 2.1."""
    parts = [int(x) / 255 for x in re.findall(r"\d+", colour)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return sum(share * x for share, x in zip((0.2126, 0.7152, 0.0722), linear))


def check_small_screen(page):
    """On a phone: letters and buttons are large enough, and the controls lie at the foot, with Play."""
    sizes = page.js("""return [...document.querySelectorAll("svg .axis")].filter((node) => node.getBoundingClientRect().width)
        .map((node) => [node.textContent, parseFloat(getComputedStyle(node).fontSize) * node.getScreenCTM().a])""")
    for text, size in sizes:
        check(size >= 11, f"{text!r} is drawn {size:.1f} px high")
    outside = page.js("""return [...document.querySelectorAll("svg .axis")].filter((node) => {
        const [inner, outer] = [node.getBoundingClientRect(), node.ownerSVGElement.getBoundingClientRect()];
        return inner.left < outer.left - 1 || inner.right > outer.right + 1; }).map((node) => node.textContent)""")
    check(not outside, f"labels leave their charts: {outside}")
    for control in ("layer-down", "layer-up", "head-down", "head-up"):
        box = page.find(f"#{control}").rect
        check(min(box["width"], box["height"]) >= 40, f"{control} is {box['width']} x {box['height']} px: too small for a finger")
    page.into_view(page.find("#matrix"))
    top, bottom, height = page.js("const b = document.querySelector('#controls').getBoundingClientRect(); return [b.top, b.bottom, innerHeight]")
    check(top > 0.7 * height and abs(bottom - height) <= 1, f"the controls lie at {top} to {bottom} of {height} px")
    check(page.js("return document.querySelector('#controls').contains(document.querySelector('#play'))"), "Play is in sight with the controls")


def check_paper(path):
    """What is printed shows the cells of the matrix, whatever theme and paper."""
    if not shutil.which("pdftoppm"):
        print("(not looked at: prints, for want of pdftoppm of poppler-utils)")
        return
    for dark, (width, height) in ((False, (8.27, 11.69)), (True, (8.5, 11))):
        with Page(path, 1400, 900, dark=dark) as page:
            size = dict(printBackground=False, paperWidth=width, paperHeight=height)
            prints = []
            for visibility in ("visible", "hidden"):
                page.js("document.querySelector('#matrix').style.visibility = arguments[0]", visibility)
                prints.append(base64.b64decode(page.driver.execute_cdp_cmd("Page.printToPDF", size)["data"]))
            blue = [blue_points(pdf) for pdf in prints]
            page.js("document.querySelector('#matrix').style.visibility = ''")
            if dark:
                page.find("#theme").click()
                page.settle()
            # Of the screen's pixels, as many as the paper has at this resolution.
            drawn, wide = page.js("""const canvas = document.querySelector("#matrix canvas");
                const points = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
                let blue = 0;
                for (let i = 0; i < points.length; i += 4) blue += points[i + 3] > 0 && points[i + 2] - points[i] > 40;
                return [blue, canvas.width]""")
            scale = min(DOTS / 96, (width - 28 / 25.4) * DOTS / wide)
            expected = drawn * scale**2
            check(blue[0] - blue[1] > 0.7 * expected, f"of {expected:.0f} blue points of the matrix, {blue[0] - blue[1]} are printed")


DOTS = 60  # an inch


def blue_points(pdf):
    """Points of all pages that are clearly blue."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "page.pdf"
        file.write_bytes(pdf)
        subprocess.run(["pdftoppm", "-r", str(DOTS), file, file.with_suffix("")], check=True)
        count = 0
        for image in pathlib.Path(folder).glob("*.ppm"):
            _, size, _, points = image.read_bytes().split(b"\n", 3)
            count += sum(points[i + 2] - points[i] > 40 for i in range(0, len(points), 3))
        return count


def check_strange(path, data):
    """Texts that turn others around are shown as symbols, equal texts are told apart, and a broken frame is told."""
    text = "\u202eab"
    data = json.loads(json.dumps(data))
    data["tokens"][0], data["word_texts"][0] = text, text
    # The next token has the same text as all candidates, of which it is one.
    data["tokens"][1] = data["vocabulary_texts"][0]
    data["vocabulary_texts"] = [data["tokens"][1]] * len(data["vocabulary_texts"])
    data["frames"][0]["attention"] = "AAAA"
    with tempfile.TemporaryDirectory() as folder:
        strange = pathlib.Path(folder) / "strange.html"
        start, end = '<script type="application/json" id="data">', "</script>"
        before, rest = path_text(path).split(start, 1)
        strange.write_text(before + start + json.dumps(data).replace("<", "\\u003c") + rest[rest.index(end):], encoding="utf-8")
        with Page(strange, 1400, 900) as page:
            for units in ("tokens", "words"):
                page.select(units=units, token=1)
                page.settle()
                check("\u202e" not in page.js("return document.body.innerText"), f"a text in {units} turns others around")
            page.select(units="tokens", token=1)
            marked = page.js("return [...document.querySelectorAll('#lens ol')].map((list) => list.querySelectorAll('.right').length)")
            check(max(marked) <= 1, f"several candidates are said to follow: {marked}")
            if len(data["frames"]) > 1:
                page.find("#play").click()
                wait_for(lambda: page.texts(".failure[role=alert]"), "a frame that cannot be unpacked is told")
                check(page.texts("#play") == ["Play"], "playing ends at a frame that cannot be unpacked")


def path_text(path):
    return pathlib.Path(path).read_text(encoding="utf-8")
