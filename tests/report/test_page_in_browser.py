"""What the page's controls do, in a headless Chromium."""

import pytest
from browser import CHROMIUM, Browser
from made_up import comparison_of_three, curves
from staged_gallery import six_scenes

from mmfuse.report.page import comparison_page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; on Debian: apt-get install chromium")

CURVES = {"rgb": [curves(0.5)], "both": [curves(0.8)]}
TRAINING = {"both": [[{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.5}]]}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(comparison_page(comparison_of_three(), six_scenes(), CURVES, {}, TRAINING))
    return path


@pytest.fixture
def page(browser, path):
    """A page that is opened anew, at desk width; nothing that a test does is an error, or asks for an address."""
    browser.problems.clear()
    browser.asked.clear()
    browser.size(1280, 900)
    browser.open(path)
    yield browser
    assert browser.problems == []
    assert {address for address in browser.asked if not address.startswith("data:")} == {path.as_uri()[:60]}


def name(page):
    return page.ask("document.querySelector('#scene-name').textContent").split(",")[0]


def facts(page):
    return page.ask("document.querySelector('#scene-facts').textContent")


def boxes(page, style, panel="thermal"):
    return page.ask(f"document.querySelectorAll('.panel[data-modality={panel}] .boxes .{style}').length")


def visible(page, selector):
    return page.ask(f"[...document.querySelectorAll({selector!r})].map(e => e.checkVisibility())")


def counts(page):
    return page.ask("[...document.querySelectorAll('.count')].map(e => e.textContent)")


def test_arrows_and_buttons_step_through_wins_and_losses(page):
    assert name(page) == "0.png"
    assert facts(page) == "Image 1 of 6: both makes 3 fewer errors than thermal"
    page.click("#next")
    assert facts(page) == "Image 2 of 6: both makes 2 fewer errors than thermal"
    page.press("ArrowRight")
    assert facts(page) == "Image 3 of 6: both and thermal make equally many errors"
    page.press("ArrowLeft")
    page.click("#previous")
    assert name(page) == "0.png"
    assert page.ask("document.querySelector('#previous').disabled")
    page.press("ArrowLeft")
    assert name(page) == "0.png"
    page.ask("document.activeElement.blur()")  # what is disabled loses the focus in the next frame, or the one after
    page.press("End")
    assert name(page) == "0.png", "the gallery hasn't the focus"
    page.click("#strip", across=0.99)
    assert facts(page) == "Image 6 of 6: both makes 3 more errors than thermal"
    assert page.ask("document.querySelector('#next').disabled")
    page.ask("document.querySelector('#previous').focus()")
    page.press("Home")
    assert name(page) == "0.png"


def test_wins_losses_and_conditions_are_chosen(page):
    page.click("[value=loss]")
    assert facts(page) == "Image 1 of 2: both makes 3 more errors than thermal"
    page.press("ArrowRight")
    assert facts(page) == "Image 2 of 2: both makes 1 more error than thermal", "the choice has the focus, yet stays"
    page.press("w")
    assert facts(page) == "Image 1 of 2: both makes 3 fewer errors than thermal"
    page.press("l")
    page.ask("(e => { e.value = 'day'; e.dispatchEvent(new Event('change')) })(document.querySelector('#condition'))")
    assert facts(page) == "Image 1 of 1: both makes 1 more error than thermal"
    page.press("w")
    page.press("a")
    assert facts(page).startswith("Image 1 of 3")


def test_models_sensors_and_ground_truth_go_on_and_off(page):
    assert (boxes(page, "truth"), boxes(page, "c2"), boxes(page, "c1"), boxes(page, "c0")) == (2, 2, 1, 0)
    assert (boxes(page, "c2.hit"), boxes(page, "c1.false")) == (2, 1)
    page.click("[name=model][value='2']")
    assert (boxes(page, "c2"), boxes(page, "c1")) == (0, 1)
    page.press("#", "Digit1")
    assert boxes(page, "c0") == 2
    page.press("#", "Digit3")
    assert boxes(page, "c2") == 2
    page.press("x")
    assert (boxes(page, "c0"), boxes(page, "c1"), boxes(page, "c2")) == (0, 0, 2)
    page.press("x")
    assert (boxes(page, "c1"), boxes(page, "c2")) == (1, 0)
    page.click("#truth")
    assert boxes(page, "truth") == 0
    page.press("g")
    assert boxes(page, "truth") == 2
    assert visible(page, ".panel") == [True, True]
    page.click("[name=sensor][value='0']")
    assert visible(page, ".panel") == [False, True]
    page.press("!", "Digit1", shift=True)
    page.press("@", "Digit2", shift=True)
    assert visible(page, ".panel") == [True, False]


def test_the_score_decides_what_is_shown_and_counted(page):
    notes = ", rgb left out, doubted, rgb shows another scene"
    assert counts(page) == ["2 of 2 found, 0 false" + notes, "0 of 2 found, 1 false", "2 of 2 found, 0 false"]
    page.press("+")
    page.press("+")
    assert page.ask("document.querySelector('#score-shown').textContent") == "0.40"
    assert counts(page) == ["1 of 2 found, 0 false" + notes, "0 of 2 found, 1 false", "1 of 2 found, 0 false"]
    assert boxes(page, "c2") == 1
    page.press("-")
    page.press("-")
    assert boxes(page, "c2") == 2
    page.click("#score", across=0.98)
    assert page.ask("Number(document.querySelector('#score').value)") > 0.85
    assert boxes(page, "c1") == 0


def test_names_and_scores_are_written_on_wish(page):
    words = "[...document.querySelectorAll('.panel[data-modality=rgb] text')].map(e => e.textContent)"
    assert page.ask(words) == []
    page.click("#names")
    assert page.ask(words) == ["person", "car", "car 0.60", "car 0.35", "person 0.90"]
    page.press("n")
    assert page.ask(words) == []


def test_pictures_have_words_and_a_lacking_sensor_says_so(page):
    alts = "[...document.querySelectorAll('.panel img')].map(e => e.alt)"
    assert page.ask(alts)[1] == "thermal image of 0.png, 2 objects"
    assert page.ask("[...document.querySelectorAll('.panel img')].every(e => e.complete && e.naturalWidth === 64)")
    page.press("l")
    assert visible(page, ".panel img") == [False, True]
    assert page.ask("document.querySelector('.panel figcaption').textContent") == "rgb: no image"


def test_a_click_on_a_header_sorts_and_a_second_turns_round(page):
    first = "[...document.querySelectorAll('#models tbody th')].map(e => e.textContent.trim())"
    order = "document.querySelector('#models th[aria-sort]')?.getAttribute('aria-sort')"
    assert page.ask(first) == ["rgb", "thermal", "both"]
    page.click("#models thead th:nth-child(7) button")
    assert (page.ask(first), page.ask(order)) == (["both", "rgb", "thermal"], "descending")
    page.click("#models thead th:nth-child(7) button")
    assert (page.ask(first), page.ask(order)) == (["rgb", "both", "thermal"], "ascending"), "nothing comes last"
    page.click("#models thead th:nth-child(1) button")
    assert page.ask(first) == ["thermal", "rgb", "both"]
    assert page.ask("document.querySelectorAll('#models th[aria-sort]').length") == 1


def test_curves_are_those_of_the_chosen_class(page):
    shown = "[...document.querySelectorAll('#precision-and-recall .chart')].filter(e => e.checkVisibility())"
    assert page.ask(f"{shown}.map(e => e.dataset.chart)") == ["all classes"] * 2
    choose = "(e => { e.value = 'class person'; e.dispatchEvent(new Event('change')) })"
    page.ask(f"{choose}(document.querySelector('.switch'))")
    assert page.ask(f"{shown}.map(e => e.dataset.chart)") == ["class person"] * 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_a_phone_and_a_desk_by_day_and_night(page, width, scheme):
    page.size(width, 844, scheme)
    assert page.ask("document.documentElement.scrollWidth") == width
    paper = page.ask("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) > 600) == (scheme == "light")
    sides = page.ask("[...document.querySelectorAll('.panel')].map(e => e.getBoundingClientRect().top)")
    assert (sides[0] == sides[1]) == (width == 1280)


def test_paper_shows_no_controls(page):
    assert all(visible(page, "#gallery .controls, nav"))
    page.size(794, 1123, "dark", media="print")
    assert not any(visible(page, "#gallery .controls, nav, .caption button"))
    assert all(visible(page, ".panel, #verdict, table"))
    assert page.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
