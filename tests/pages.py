"What the tests in a browser share."
import time


def until(page, expression, seconds=30):
    """Waits until the JavaScript `expression` is true.

    Playwright's `wait_for_function` calls `eval` in the page at each look but the first, which our pages' content
    security policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(f'Boolean({expression})'):
        assert time.monotonic() < end, f'still not true after {seconds} s: {expression}'
        page.wait_for_timeout(50)


def read(page, name):
    "The object `name` of the page, with its typed arrays as lists."
    return page.evaluate(f'Object.fromEntries(Object.entries({name}).map(([k, v]) => [k, v.length ? [...v] : v]))')
