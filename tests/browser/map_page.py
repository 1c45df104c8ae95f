"""A window with the attention map, and the file that its numbers come from."""

import base64
import json
import pathlib
import struct
import time

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

WAIT = 60  # seconds


class Failure(Exception):
    pass


def check(condition, message):
    if not condition:
        raise Failure(message)


def wait_for(condition, message):
    end = time.monotonic() + WAIT
    while not (value := condition()):
        check(time.monotonic() < end, f"{message}: not within {WAIT} s")
        time.sleep(0.02)
    return value


class Tensors:
    """A safetensors file, read by hand: values by name and indices."""

    def __init__(self, path):
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            self.header = json.loads(file.read(length))
            self.data = file.read()
        self.tokens = json.loads(self.header["__metadata__"]["tokens"])

    def shape(self, name):
        return self.header[name]["shape"]

    def at(self, name, *indices):
        entry = self.header[name]
        flat = 0
        for size, index in zip(entry["shape"], indices, strict=True):
            check(0 <= index < size, f"{name}{indices} is not in {entry['shape']}")
            flat = flat * size + index
        kind = {"F32": "<f", "U32": "<I"}[entry["dtype"]]
        return struct.unpack_from(kind, self.data, entry["data_offsets"][0] + 4 * flat)[0]


class Page:
    """The page in one window."""

    def __init__(self, path, width, height, dark=False, touch=False):
        options = webdriver.ChromeOptions()
        for argument in ["--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},{height}"]:
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        if touch:
            metrics = {"width": width, "height": height, "pixelRatio": 2.0, "touch": True}
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
        self.driver = webdriver.Chrome(service=Service("/usr/bin/chromedriver"), options=options)
        self.driver.set_page_load_timeout(WAIT)
        self.driver.set_script_timeout(WAIT)
        if not touch:
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [theme]})
        self.address = pathlib.Path(path).resolve().as_uri()
        self.driver.get(self.address)
        self.ready()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.driver.quit()

    def ready(self):
        done = "return document.documentElement.dataset.ready || document.querySelector('.failure[role=alert]')?.textContent"
        answer = wait_for(lambda: self.js(done), "the page is ready")
        check(answer == "true", f"the page says: {answer}")

    def js(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def promise(self, expression, *arguments):
        """The value of a promise."""
        script = f"""const done = arguments[arguments.length - 1];
            Promise.resolve({expression}).then((value) => done([value]), (error) => done(String(error)));"""
        answer = self.driver.execute_async_script(script, *arguments)
        check(isinstance(answer, list), f"{expression}: {answer}")
        return answer[0]

    def select(self, **wanted):
        self.promise("attentionMap.select(arguments[0])", wanted)

    def state(self):
        return self.js("return attentionMap.state")

    def find(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector):
        return self.js("return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent)", selector)

    def settle(self):
        """Two frames of the browser: what was wished for is drawn."""
        self.promise("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def into_view(self, node):
        self.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", node)
        self.settle()
        return node

    def width_fits(self, where):
        wide, room = self.js("return [document.documentElement.scrollWidth, innerWidth]")
        check(wide <= room, f"{where}: the page is {wide} px wide in a window of {room}")

    def screenshot(self, folder, name):
        if folder:
            (pathlib.Path(folder) / f"{name}.png").write_bytes(base64.b64decode(self.driver.get_screenshot_as_base64()))

    def quiet(self, where):
        """No errors on the console, no request but for the page itself."""
        entries = [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
        errors = [entry for entry in entries if "readback" not in entry]  # this test reads canvases back
        check(not errors, f"{where}: the console says {errors}")
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                own = url.split("#")[0] == self.address or url.startswith(("data:", "about:", "blob:"))
                check(own, f"{where}: the page asks for {url}")
