"""The page at /, in a real headless Chromium."""

import asyncio
import itertools
import json
import os
import signal

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options as ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.endpoint.conftest import serve
from tests.endpoint.test_balancer import balance

pytestmark = pytest.mark.process

CHROMEDRIVER = "/usr/bin/chromedriver"
"""Debian's chromium-driver package; builder/test_tools.sh installs it."""
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,1000"]
NASTY = "<img src=x onerror=\"document.title='taken over'\">"


@pytest.fixture(scope="module")
def browser():
    options = ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
async def shown():
    async with serve(api_key="page-key", worker_variables={"STREAM": "1", "AGGREGATE": "1"}) as client:
        client.session.headers["Authorization"] = "Bearer page-key"
        yield client


def text(browser, element_id):
    return browser.find_element(By.ID, element_id).text


def use(browser, url, worker_id):
    """What a person does: gives the key, looks around, sends a job and watches it."""
    wait = WebDriverWait(browser, 20)
    browser.get(url)
    wait.until(lambda _: browser.find_element(By.ID, "ask").get_attribute("open"))
    browser.find_element(By.ID, "key").send_keys("page-key")
    browser.find_element(By.CSS_SELECTOR, "#ask button").click()
    wait.until(lambda _: text(browser, "completed") == "3")
    assert text(browser, "name") == "/v2/local"
    assert text(browser, "queued") == "0"
    assert text(browser, "failed") == "1"
    assert worker_id in text(browser, "workers")
    assert "idle" in text(browser, "workers")
    assert text(browser, "jobs").count("COMPLETED") == 3
    assert text(browser, "jobs").count("FAILED") == 1
    wait.until(lambda _: "Finished." in text(browser, "logs"))
    assert browser.find_element(By.ID, "plot").get_attribute("data-points") == "4"
    field = browser.find_element(By.ID, "input")
    field.clear()
    field.send_keys(f'{{"chunks": 5, "pause_ms": 300, "echo": {json.dumps(NASTY)}}}')
    browser.find_element(By.ID, "send").click()
    # Streaming means that the first chunk is there while the job still runs.
    wait.until(lambda _: '"n": 0' in text(browser, "output"))
    assert '"n": 4' not in text(browser, "output")
    assert "COMPLETED" not in text(browser, "sent")
    wait.until(lambda _: "COMPLETED" in text(browser, "sent"))
    assert text(browser, "output").count("onerror") == 5
    assert "first chunk after" in text(browser, "sent")
    assert browser.title == "llmpod endpoint"
    assert not browser.find_elements(By.TAG_NAME, "img")
    drawn = browser.execute_script(
        "const c = document.getElementById('plot');"
        "return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v, i) => i % 4 === 2 && v > 150)"
    )
    assert drawn, "the plot shows points"
    for width in (1280, 500):
        browser.set_window_size(width, 1000)
        overflow = browser.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert overflow <= 0, f"nothing sticks out at {width} px"
    kill = browser.find_element(By.CSS_SELECTOR, "#workers button:last-child")
    browser.execute_script("arguments[0].focus()", kill)
    age = text(browser, "workers")
    wait.until(lambda _: text(browser, "workers") != age)
    assert browser.switch_to.active_element == kill, "a refresh leaves the focus where it is"
    kill.click()
    wait.until(lambda _: "crashed (137)" in text(browser, "workers"))
    assert "killed on request" in text(browser, "workers")
    severe = [entry for entry in browser.get_log("browser") if "401" not in entry["message"]]
    assert not severe, "no script error, nothing refused by the content policy"


async def test_the_page_shows_the_endpoint_and_streams_a_job(shown, browser):
    (worker_id,) = await shown.endpoint.ready()
    for _ in range(3):
        assert (await shown.runsync({"chunks": 1}))["status"] == "COMPLETED"
    assert (await shown.runsync({"chunks": 1, "fail_at": 0}))["status"] == "FAILED"
    await asyncio.to_thread(use, browser, shown.endpoint.base_url.removesuffix("v2"), worker_id)


def shown_jobs(browser):
    texts = browser.execute_script(
        "return [...document.querySelectorAll('#jobs td.state')].map((td) => td.textContent)"
    )
    return [status for status, _ in itertools.groupby(texts)]


def look_under_load(browser, url):
    wait = WebDriverWait(browser, 20)
    browser.get(url)
    wait.until(lambda _: int(browser.find_element(By.ID, "plot").get_attribute("data-points") or 0) >= 5)
    wait.until(lambda _: shown_jobs(browser) == ["IN_PROGRESS", "COMPLETED", "IN_QUEUE"])
    assert int(text(browser, "queued")) > 50
    for width in (400, 1400):
        screen = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        page = "document.documentElement"
        assert browser.execute_script(f"return {page}.scrollWidth - {page}.clientWidth") <= 0
        edge = "return document.querySelector('#workers').closest('.scroll').getBoundingClientRect().right"
        for button in browser.find_elements(By.CSS_SELECTOR, "#workers button"):
            assert button.rect["x"] + button.rect["width"] <= browser.execute_script(edge)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def look_at_ends(browser, url):
    """(text of the row, colour of its state, the page's grey and red) of each dead worker."""
    wait = WebDriverWait(browser, 20)
    browser.get(url)
    wait.until(lambda _: len(browser.find_elements(By.CSS_SELECTOR, ".stopped, .crashed")) == 3)
    colour = "return getComputedStyle(arguments[0]).color"
    rows = browser.find_elements(By.CSS_SELECTOR, "#workers tr:has(.stopped, .crashed)")
    red, grey = ("rgb(192, 54, 44)", "rgb(92, 104, 117)")
    names = {red: "red", grey: "grey"}
    found = []
    for row in rows:
        state = row.find_element(By.CSS_SELECTOR, ".state")
        note = row.find_element(By.CSS_SELECTOR, ".note").text
        found.append((state.text, names.get(browser.execute_script(colour, state)), note))
    return sorted(found)


async def test_under_load_the_page_shows_what_runs_what_ended_and_what_comes_next(browser):
    async with serve(worker_variables={"CONCURRENCY": "4"}) as client:
        for _ in range(200):
            await client.run({"sleep_ms": 400})
        await asyncio.to_thread(look_under_load, browser, client.endpoint.base_url.removesuffix("v2"))


async def test_a_worker_that_was_stopped_is_told_from_one_that_crashed(browser):
    async with serve(workers_min=3, workers_max=3) as client:
        stopped, killed, crashed = await client.endpoint.ready(3)
        fleet = client.endpoint.fleet
        fleet.look = lambda: None  # nobody is replaced
        fleet.kill(killed, "killed on request")
        os.kill(fleet.processes[crashed].pid, signal.SIGKILL)
        fleet.retire(client.endpoint.worker(stopped), "not needed")
        found = await asyncio.to_thread(look_at_ends, browser, client.endpoint.base_url.removesuffix("v2"))
    assert [(state, colour) for state, colour, _ in found] == [
        ("crashed (137)", "red"),
        ("crashed (137)", "red"),
        ("stopped", "grey"),
    ]
    notes = [note for _, _, note in found]
    assert notes[2] == "not needed: exited with code 0"
    assert sorted(note.partition(": exited")[0][:16] for note in notes[:2]) == ["exited with code", "killed on reques"]


def look(browser, client):
    """The page of a load balancer."""
    wait = WebDriverWait(browser, 20)
    browser.get(client.endpoint.page_url)
    browser.get_log("browser")  # of the pages before
    wait.until(lambda _: text(browser, "answered") == "3")
    assert text(browser, "name") == "local"
    assert (text(browser, "in_flight"), text(browser, "waiting"), text(browser, "up")) == ("0", "0", "1")
    assert "healthy 200, " in text(browser, "workers")
    assert "GET /<img src=x onerror" in text(browser, "requests")
    assert browser.title == "llmpod load balancer"
    assert not browser.find_elements(By.TAG_NAME, "img")
    assert browser.find_element(By.ID, "plot").get_attribute("data-points") == "3"
    wait.until(lambda _: "serving on" in text(browser, "logs"))
    browser.find_element(By.CSS_SELECTOR, "#workers button:last-child").click()
    wait.until(lambda _: "crashed (137)" in text(browser, "workers"))
    assert not browser.get_log("browser"), "no script error, nothing refused by the content policy"


async def test_the_page_of_a_load_balancer_shows_requests_health_checks_and_workers(browser):
    async with balance() as client:
        for path in ("/v1/models", "/x?key=secret", "/<img src=x onerror=alert(1)>"):
            assert (await client.get(path))[0] == 200
        await asyncio.to_thread(look, browser, client)
