"""Headless Chromium by Debian's packages chromium-driver and python3-selenium, and what is asked of every page."""
import contextlib, json, shutil, sys

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

PHONE, DESK = (360, 740), (1400, 900)


def check(holds, what):
    """Ends the run with exit code 1 at the first thing that does not hold."""
    if not holds:
        sys.exit(f"failed: {what}")


@contextlib.contextmanager
def browser():
    options = webdriver.ChromeOptions()
    for argument in ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]:
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(service=Service(shutil.which("chromedriver")), options=options)
    try:
        yield driver
    finally:
        driver.quit()


def screen(driver, size, theme="light", media=""):
    """Makes the window a phone's or a desk's, for a reader who prefers `theme`; `media` "print" lays out for paper."""
    width, height = size
    metrics = dict(width=width, height=height, deviceScaleFactor=1, mobile=size == PHONE)
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": size == PHONE})
    features = [{"name": "prefers-color-scheme", "value": theme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def check_console_and_network(driver):
    """No message of the console, and no request but for the page itself."""
    messages = [entry["message"] for entry in driver.get_log("browser")]
    check(not messages, f"the console says {messages}")
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    check(urls, "the browser has noted no request at all")
    others = [url for url in urls if not url.startswith(("file:", "data:", "blob:"))]
    check(not others, f"the page asks the network for {others}")
