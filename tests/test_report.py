"The demo's report, opened in a browser, and its templates."
import pytest
from jinja2 import UndefinedError

from spot_artifacts.report import render


@pytest.fixture(scope='module', params=[1280, 390], ids=lambda width: f'{width}px')
def report(request, browser, demo_run):
    "The page at a desktop's and at a phone's width, with its errors and requests."
    page = browser.new_page(viewport={'width': request.param, 'height': 800})
    page.errors, page.requested = [], []
    page.on('console', lambda message: page.errors.append(message.text) if message.type == 'error' else None)
    page.on('pageerror', lambda error: page.errors.append(str(error)))
    page.on('request', lambda request: page.requested.append(request.url))
    page.goto((demo_run/'report.html').resolve().as_uri(), wait_until='load')
    yield page
    page.close()


def test_no_errors(report):
    assert report.errors == []


def test_is_self_contained(report, demo_run):
    "One file, and nothing beside it: pictures are inside."
    outside = [url[:200] for url in report.requested if not url.startswith(('data:', 'blob:'))]
    assert outside == [(demo_run/'report.html').resolve().as_uri()]


def test_pictures_show_and_say_what_they_are(report):
    pictures = report.eval_on_selector_all('img', 'all => all.map(i => [i.alt.trim(), i.naturalWidth])')
    assert pictures, 'the page has no picture'
    assert all(alt and width for alt, width in pictures), [alt for alt, width in pictures if not (alt and width)]


def test_no_sideways_scroll(report):
    width, window = report.evaluate('[document.documentElement.scrollWidth, window.innerWidth]')
    assert width <= window


def test_templates_escape_their_values():
    page = dict(page='<p title="{{ x }}">{{ x }}</p>')
    assert render(page, x='<b>"&') == '<p title="&lt;b&gt;&#34;&amp;">&lt;b&gt;&#34;&amp;</p>'
    with pytest.raises(UndefinedError, match="'x' is undefined"): render(page)
