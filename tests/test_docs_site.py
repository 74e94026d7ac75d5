"The site: built once, served from this machine, every page opened in a browser at the width of a phone and a desktop."
import re, subprocess, sys
from configparser import ConfigParser
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from threading import Thread
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest
import torch
from pages import read, until

from spot_artifacts.data import to_float
from spot_artifacts.folders import load_image
from spot_artifacts.live import answers
from spot_artifacts.runs import load_weights

LOOK = '''() => {
    const bad = e => e.closest('pre, code, .katex, script, style')
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), words = []
    while (walk.nextNode()) if (!bad(walk.currentNode.parentElement)) words.push(walk.currentNode.data)
    const all = (css, f) => [...document.querySelectorAll(css)].map(f)
    return {
        text: words.join(''),
        ids: all('[id]', e => e.id),
        links: all('a[href]', a => a.href),
        folds: all('details.code-fold summary', s => s.textContent.trim()),
        targets: all('[src], link[href]', e => e.src || e.href),
        pictures: all('img', i => [i.naturalWidth > 0, i.alt, i.src.slice(0, 80)]),
        formulas: all('.math', m => [
            !!m.querySelector('.katex') && !m.querySelector('.katex-error'), m.textContent.slice(0, 80)]),
    }
}'''
TOO_WIDE = '''() =>
    [document.documentElement, document.querySelector('main')].some(e => e && e.scrollWidth > e.clientWidth) &&
    [...document.querySelectorAll('main *')]
        .filter(e => e.scrollWidth > e.clientWidth && e.clientWidth && getComputedStyle(e).overflowX == 'visible')
        .map(e => e.outerHTML.slice(0, 80)).slice(-3)'''


@pytest.fixture(scope='session')
def built(root, tmp_path_factory):
    "How `make docs` ended, and the folder of the site."
    if sys.version_info < (3, 11): pytest.skip('make docs needs Python 3.11 or newer')
    out = tmp_path_factory.mktemp('docs')/'site'
    return subprocess.run([sys.executable, 'tools/docs.py', out], cwd=root, capture_output=True, text=True), out


@pytest.fixture(scope='session')
def site(built):
    ended, folder = built
    assert (folder/'index.html').exists(), ended.stderr
    return folder


@pytest.fixture(scope='session')
def address(site):
    "Where the site is served."
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
        def do_GET(self):
            if self.path != '/favicon.ico': return super().do_GET()
            self.send_response(204)  # asked for by a page without one
            self.end_headers()
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=site))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()


@pytest.fixture(scope='session')
def pages(site, address, browser):
    "By address: what each page shows, says and asks for."
    found, phone, desktop = {}, {'width': 390, 'height': 800}, {'width': 1280, 'height': 800}
    page, errors, requests = browser.new_page(), [], []
    def on_console(message):
        if message.type in ('error', 'warning'): errors.append(message.text)
    def on_response(response):
        if response.status >= 400: errors.append(f'{response.status} {response.url}')
    page.on('console', on_console)
    page.on('pageerror', lambda error: errors.append(str(error)))
    page.on('request', lambda request: requests.append(request.url))
    page.on('response', on_response)
    for file in sorted(site.rglob('*.html')):
        url = address + file.relative_to(site).as_posix()
        errors.clear(), requests.clear()
        page.set_viewport_size(phone)
        page.goto(url, wait_until='load')
        found[url] = seen = page.evaluate(LOOK)
        seen['wide'] = {'390 px': page.evaluate(TOO_WIDE)}
        page.set_viewport_size(desktop)
        seen['wide']['1280 px'] = page.evaluate(TOO_WIDE)
        seen.update(errors=[*errors], requests=[*requests])
    page.close()
    return found


@pytest.fixture
def page(browser, address):
    "The home page, for a visit."
    page = browser.new_page(viewport={'width': 1280, 'height': 800})
    page.goto(address, wait_until='load')
    yield page
    page.close()


def complaints(pages, of): return {url: bad for url, seen in pages.items() if (bad := of(seen))}


def test_builds_without_complaint(built): assert built[0].returncode == 0, built[0].stderr


def test_pages_are_there(root, pages, address):
    "Each notebook and each module has its page."
    wanted = [f'{f.stem}.html' for f in (root/'nbs').glob('*.ipynb')]
    wanted += [f'api/{f.stem}.html' for f in (root/'spot_artifacts').rglob('*.py') if f.stem[0] != '_']
    assert not {address + name for name in wanted} - pages.keys()


def test_sidebar_is_in_chapters(root, page, pages):
    "Every notebook stands in one chapter, and the reader's path, images, networks, the game, comes first."
    chapters = page.eval_on_selector_all('#quarto-sidebar .sidebar-item-section', """sections => sections.map(s => [
        s.querySelector('.sidebar-item-container').innerText.trim(),
        [...s.querySelectorAll('.sidebar-item .sidebar-link')].map(a => a.href.split('/').pop())])""")
    names = [name for name, _ in chapters]
    assert names[:3] == ['Images', 'Networks', 'The game'] and names[-1] == 'Library'
    listed = [name for _, links in chapters[:-1] for name in links if re.match(r'\d\d_', name)]
    notebooks = sorted(f'{f.stem}.html' for f in (root/'nbs').glob('[0-9]*.ipynb'))
    assert sorted(listed) == notebooks
    path = [name for name in notebooks if '01' <= name[:2] < '25']
    assert listed[:len(path)] == path


def test_no_errors(pages): assert not complaints(pages, lambda seen: seen['errors'])


def test_asks_no_other_host(pages, address):
    def elsewhere(url): return not url.startswith((address, 'data:', 'blob:'))
    assert not complaints(pages, lambda seen: [url for url in [*seen['requests'], *seen['targets']] if elsewhere(url)])


def test_pictures_show_and_say_what_they_are(pages):
    assert sum(len(seen['pictures']) for seen in pages.values()) > 20
    def bad(seen): return [(alt, src) for shows, alt, src in seen['pictures'] if not (shows and alt.strip())]
    assert not complaints(pages, bad)


def test_links_lead_somewhere(pages, site, address):
    def broken(link):
        url, anchor = urldefrag(link)
        if not url.startswith(address): return not link.startswith(('https://', 'mailto:'))
        url = urljoin(url, 'index.html') if url.endswith('/') else url
        if url in pages: return bool(anchor) and unquote(anchor) not in pages[url]['ids']
        return not (site/unquote(urlsplit(url).path[1:])).is_file()
    assert not complaints(pages, lambda seen: sorted({link for link in seen['links'] if broken(link)}))


def test_links_to_its_own_pages_stay_in_the_site(root, pages):
    settings = ConfigParser()
    settings.read(root/'settings.ini')
    own = settings['DEFAULT']['doc_host'] + settings['DEFAULT']['doc_baseurl']
    assert not complaints(pages, lambda seen: [link for link in seen['links'] if link.startswith(own)])


def test_formulas_are_set(pages):
    assert sum(len(seen['formulas']) for seen in pages.values()) > 50
    assert not complaints(pages, lambda seen: [tex for fine, tex in seen['formulas'] if not fine])
    raw = re.compile(r'\$\$|\$[^$\n]*[\\_^][^$\n]*\$|\\(?:frac|mathbf|sum|hat|phi|begin|odot)\b|\{#|@fig-|@eq-')
    assert not complaints(pages, lambda seen: raw.findall(seen['text']))


def test_no_sideways_scroll(pages):
    assert not complaints(pages, lambda seen: {width: bad for width, bad in seen['wide'].items() if bad})


def test_code_and_formulas_fit_their_column(page, root, address):
    "All of it, beside its text as well as below; 120 columns are the limit in the notebooks."
    too_wide = """() => {
        document.querySelectorAll('details').forEach(d => d.open = true)
        const all = [...document.querySelectorAll('main pre.sourceCode, .katex-display')]
        return [all.length, all.filter(e => e.scrollWidth > e.clientWidth).map(e => e.innerText.slice(0, 60))]
    }"""
    for file in (root/'nbs').glob('*.ipynb'):
        page.goto(f'{address}{file.stem}.html', wait_until='load')
        for width in 1300, 1536, 1600, 1750, 1920:
            page.set_viewport_size({'width': width, 'height': 900})
            found, bad = page.evaluate(too_wide)
            assert found and not bad, f'{file.stem} at {width} px: {bad}'


@pytest.mark.parametrize('width', [390, 1300, 1536, 1920])
def test_text_stands_beside_its_code(page, address, width):
    "Where the window is wide; above it elsewhere. No text stands beside a fold alone."
    page.set_viewport_size({'width': width, 'height': 900})
    page.goto(f'{address}20_losses.html', wait_until='load')
    pairs = page.eval_on_selector_all('.pair', """pairs => pairs.map(p => {
        const [said, run] = [...p.children].map(e => e.getBoundingClientRect())
        return [p.children.length, said.right <= run.left && Math.abs(said.top - run.top) < 5, said.bottom <= run.top,
                [...p.children[1].querySelectorAll('pre, img, table')].some(e => e.checkVisibility())]
    })""")
    assert len(pairs) > 5
    assert all(found == 2 and shows and (beside if width >= 1536 else above) for found, beside, above, shows in pairs)


def test_folds_say_what_is_in_them(pages):
    assert sum(len(seen['folds']) for seen in pages.values()) > 100
    assert not complaints(pages, lambda seen: [fold for fold in seen['folds'] if not re.match(r'Code:\s+\w', fold)])


def test_plumbing_is_folded(page, address):
    "The method is open."
    folds = []
    for name in '54_game_page', '58_live':
        page.goto(f'{address}{name}.html', wait_until='load')
        folds += page.locator('details.code-fold summary').all_inner_texts()
    assert len(folds) > 30 and all(part in ' '.join(folds) for part in ("GAME['setup']", "_LIVE['erase']"))
    page.goto(f'{address}20_losses.html', wait_until='load')
    summaries = page.locator('details.code-fold summary').all_inner_texts()
    assert [' '.join(s.split()) for s in summaries] == ['Code: imports']


@pytest.mark.parametrize('name', ['59_photographs', 'results'])
def test_results_link_to_files_commits_and_folders(page, address, site, root, name):
    page.goto(f'{address}{name}.html', wait_until='load')
    lines = page.eval_on_selector_all('.how-made, main li:has(> a[href$=".json"])', """lines => lines.map(e => [
        e.innerText, [...e.querySelectorAll('a')].map(a => [a.innerText, a.getAttribute('href')])])""")
    links = [link for _, found in lines for link in found]
    files = [to for _, to in links if to.endswith('.json')]
    assert len(set(files)) > 8 and all((site/file).is_file() for file in files)
    lost = (root/'nbs/results/lost_commits.txt').read_text().split()
    commits, folders = r'\b[0-9a-f]{10}(?:-dirty)?\b', r'\d+ more'
    for kind, end in (commits, '/commit/{:.10}'), (folders, '/nbs/results/'):
        shown = [word for text, _ in lines for word in re.findall(kind, text)]
        linked = [(word, to) for word, to in links if re.fullmatch(kind, word)]
        assert sorted(word for word in shown if word not in lost) == sorted(word for word, _ in linked) and linked
        assert all(to.startswith('https://github.com/') and end.format(word) in to for word, to in linked)


def test_each_table_of_results_says_how_it_was_made(page, address):
    "The first one lists all runs; their lines are a list at the end."
    page.goto(f'{address}results.html', wait_until='load')
    order = page.eval_on_selector_all('main table, main .how-made', 'all => all.map(e => e.tagName)')
    assert order.count('TABLE') > 10 and order == ['TABLE'] + ['TABLE', 'DIV']*(order.count('TABLE') - 1)


def test_notebooks_can_be_run_and_edited(root, pages, address):
    for file in (root/'nbs').glob('*.ipynb'):
        if file.stem == 'index': continue
        links = pages[f'{address}{file.stem}.html']['links']
        own = [link for link in links if link.endswith(f'/nbs/{file.name}')]
        assert any(link.startswith('https://colab.') for link in own), file.name
        assert any('/edit/' in link for link in own), file.name


def test_search(page):
    page.get_by_role('searchbox').fill('RepairBlock')
    results = page.locator('.search-result')
    results.first.wait_for()
    assert any('api/repair.html#RepairBlock' in r.get_attribute('href') for r in results.all())
    results.first.click()
    page.wait_for_url('**/*repair*')
    assert 'RepairBlock' in page.locator('main').inner_text()


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_light_and_dark(page, scheme):
    "Text stands out, in the text and in the sidebar."
    page.emulate_media(color_scheme=scheme)
    page.reload(wait_until='load')
    def brightness(css, of):
        r, g, b = map(float, re.findall(r'[\d.]+', page.eval_on_selector(css, f'e => getComputedStyle(e).{of}'))[:3])
        return (.3*r + .6*g + .1*b)/255
    papers = [brightness(css, 'backgroundColor') for css in ('body', '#quarto-sidebar')]
    inks = [brightness(css, 'color') for css in ('main p', '.sidebar-link:not(.active)')]
    if scheme == 'light': assert min(papers) > .9 and max(inks) < .4
    else: assert max(papers) < .2 and min(inks) > .7


def test_game(page, address):
    "The game with networks is found from the home page; the one without is played to its end with the keyboard."
    page.locator('#quarto-sidebar a[href$="live.html#play"]').click()
    page.wait_for_selector('#choices:visible')
    page.wait_for_selector('#turn[aria-busy=false]', timeout=60_000)
    page.goto(f'{address}game/index.html', wait_until='load')
    assert page.locator('#real').is_visible() and page.locator('#corrupt').is_visible()
    for n in range(10):
        until(page, f'document.querySelector("#task").textContent.startsWith("{n + 1} of 10")')
        page.keyboard.press('rc'[n % 2])
        page.wait_for_selector('#next:visible')
        page.keyboard.press('n' if n < 9 else 'x')
    assert 'The end: you were right about' in page.inner_text('#said')


def test_the_live_page_works_from_the_disk(site, browser):
    "Offline, and its answers are PyTorch's."
    from test_live import answered, same
    file = site/'live.html'
    assert file.stat().st_size < 15e6
    page, errors = browser.new_page(), []
    page.on('pageerror', lambda error: errors.append(str(error)))
    page.context.set_offline(True)
    page.goto(file.as_uri(), wait_until='load')
    answered(page)
    page.fill('#theta', '50')
    answered(page)
    found = read(page, 'shown')
    x = torch.tensor(page.evaluate('[...pixels]')).view(1, 3, 64, 64)
    page.close()
    mask = torch.tensor(found['kept']).float().view(1, 1, 8, 8)
    assert 0 < (mask == 0).sum() < mask.numel() and found['seconds'] > 0 and not errors
    picture = load_image(files('spot_artifacts')/'photographs/cat.jpg', 64)
    assert (to_float(picture[None]) - x).abs().mean() < .1, 'the first picture'
    same(found, answers(load_weights('photos-64'), x, mask), 1e-2)
