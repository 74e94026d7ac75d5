"""Build the site in _docs/: the notebooks with their saved outputs, the guides, and a page for each module.

Needs neither Quarto nor the network. Only notebooks with an `#| exec_doc` cell are run: they show results files."""
import ast, dataclasses, json, re, shutil, sys, tempfile
from itertools import groupby, takewhile
from pathlib import Path

if sys.version_info < (3, 11):
    sys.exit('The site needs Python 3.11 or newer; the library does not. Another one: make docs PYTHON=python3.12')

import nbformat, yaml
from nbdev.config import get_config
from nbformat.v4 import new_markdown_cell, new_raw_cell
from readme import LINK
from refresh import Client, Failed
from smalldocs import api, layout
from smalldocs.config import BuildError, load
from smalldocs.site import Site
from spot_artifacts.live import photographs, write_live
from spot_artifacts.runs import load_weights

ROOT = Path(__file__).resolve().parents[1]
NBS, OUT, KATEX = ROOT/'nbs', ROOT/'_docs', ROOT/'tools/katex'
CFG = get_config(cfg_name='settings.ini', path=ROOT)
BLOB = f'{CFG.git_url}/blob/{CFG.branch}'
COLAB = f'https://colab.research.google.com/github/{CFG.user}/{CFG.repo}/blob/{CFG.branch}'
OWN = f'{CFG.doc_host}{CFG.doc_baseurl}/'
RUN_IT = (f'::: {{{{.run-it}}}}\n[Open in Colab]({COLAB}/nbs/{{0}}) · [the notebook on GitHub]({BLOB}/nbs/{{0}})\n:::')


def relink(text):
    "The site's own pages and pictures of the project's images/ lie in the site; other files are in the repository."
    def target(path):
        return path[3:] if path.startswith('../images/') else f'{BLOB}/{path[3:]}'
    text = re.sub(rf'(\]\(|\bhref="){re.escape(OWN)}', r'\1./', text)
    return LINK.sub(lambda m: m[1] + (target(m[2]) if m[2].startswith('../') else m[2]), text)


# Commits that results name and that were rewritten before the repository was published: they have no page.
LOST = (ROOT/'nbs/results/lost_commits.txt').read_text().split()


def muted(text):
    "A line that says how a result was made steps back behind it; its commits and folders lead to the repository."
    def commit(m): return m[0] if m[1] in LOST else f'[{m[0]}]({CFG.git_url}/commit/{m[1]})'
    def linked(line):
        line = re.sub(r'`([0-9a-f]{10})(-dirty)?`', commit, line[0])
        folders = f'{CFG.git_url}/tree/{CFG.branch}/nbs'
        return re.sub(r'(\((results/[^)]*?)[^/)]*\) and )(\d+ more)', rf'\1[\3]({folders}/\2)', line)
    text = re.sub(r'^(\*How was this made\?\*|- \[).*$', linked, text, flags=re.MULTILINE)
    return re.sub(r'^\*How was this made\?\*.*$', r'::: {.how-made}\n\g<0>\n:::', text, flags=re.MULTILINE)


# What a fold is named after: its functions, classes and constants; if these are private, they; else what it calls.
NAMES = (r"^(?:def|class) ([A-Za-z]\w*)|^(_?[A-Z]{3,}(?:\['\w+'\])?) \+?=", r'^(?:def|class) (\w+)()', r'^([\w.]+)()\(')


def named_fold(source):
    "A folded cell, whose summary says what is in it. `#| fold` is for exported cells: Quarto's own would be exported."
    rest = re.sub(r'^#\| (?:fold|code-fold: true)\n', '', source, flags=re.MULTILINE)
    if rest == source: return source
    found = next(filter(None, (re.findall(kind, source, re.MULTILINE) for kind in NAMES)), [])
    names = list(dict.fromkeys(a or b for a, b in found))
    summary = ', '.join(names[:4]) + ', ...'*(len(names) > 4)
    return f'#| code-fold: true\n#| code-summary: "Code: {summary}"\n{rest}'


def only_imports(cell):
    "Is it a cell of imports and of nothing else?"
    try: lines = ast.parse(cell.source).body if cell.cell_type == 'code' else []
    except SyntaxError: return False        # a line for the shell
    return bool(lines) and all(isinstance(line, (ast.Import, ast.ImportFrom)) for line in lines)


def folded_imports(cells):
    "Cells of imports that follow one another become one, which is folded."
    out = []
    for imports, group in groupby(cells, only_imports):
        group = list(group)
        if imports:
            lines = '\n'.join(re.sub(r'^#\|.*\n', '', cell.source, flags=re.MULTILINE) for cell in group)
            group = group[:1]
            group[0].source = f'#| code-fold: true\n#| code-summary: "Code: imports"\n{lines}'
        out += group
    return out


def shown(cell, heading):
    "The cell as the site shows it: without the directives that only nbdev reads, and its pictures with a text."
    if cell.cell_type == 'markdown': cell.source = relink(cell.source)
    if cell.cell_type != 'code': return cell
    cell.source = named_fold(cell.source)
    cell.source = re.sub(r'^#\|(?! *[\w-]+: ).*\n?', '', cell.source, flags=re.MULTILINE)
    outputs = [o.get('data', {}) for o in cell.outputs]
    for data in outputs:
        if 'text/markdown' in data: data['text/markdown'] = muted(relink(data['text/markdown']))
    if any({'image/png', 'image/jpeg'} & data.keys() for data in outputs) and 'fig-alt:' not in cell.source:
        cell.source = f'#| fig-alt: {json.dumps("Figure: " + heading)}\n{cell.source}'
    return cell


def split_heading(text):
    "Text up to its last heading, and what follows it."
    lines, fenced, cut = text.split('\n'), False, 0
    for i, line in enumerate(lines):
        fenced ^= line.startswith('```')
        if line.startswith('#') and not fenced: cut = i + 1
    return '\n'.join(lines[:cut]), '\n'.join(lines[cut:])


def is_line(cell):
    "Does the page show no more of the cell than the line of a fold?"
    return not cell.source.strip() or 'code-fold: true' in cell.source and not cell.outputs


def beside(cells):
    "Puts text and the code that follows it into one div, so that a wide window can show them side by side."
    out, close = [], '\n'.join(['::::::', '', ':::::::'])
    is_open = False
    for i, cell in enumerate(cells):
        if cell.cell_type == 'markdown' and is_open: out, is_open = [*out, new_markdown_cell(close)], False
        out.append(cell)
        run = list(takewhile(lambda c: c.cell_type == 'code', cells[i + 1:])) if cell.cell_type == 'markdown' else []
        if all(map(is_line, run)): continue
        above, text = split_heading(cell.source)
        if not text.strip() or re.search(r'^(```|\||!\[|:::)', text, re.MULTILINE): continue     # as wide as it can be
        cell.source = f'{above}\n\n::::::: {{.pair}}\n\n:::::: {{.said}}\n\n{text}\n\n::::::\n\n:::::: {{.run}}\n'
        is_open = True
    return [*out, new_markdown_cell(close)] if is_open else out


def notebook_page(path):
    "The notebook as a page: its title and summary in front, links to run it, and no hidden cells."
    nb = nbformat.read(path, as_version=4)
    if any('#| exec_doc' in c.source for c in nb.cells): Client(nb, path.name, set()).execute()
    heading, _, summary = nb.cells.pop(0).source.partition('\n')
    heading, number = heading.lstrip('# '), re.match(r'(\d\d\w?)_', path.stem)
    front = dict(title=f'{number[1]} · {heading}' if number else heading, description=summary.strip('> \n'))
    cells = [new_raw_cell(f'---\n{yaml.safe_dump(front, allow_unicode=True, width=1000)}---')]
    if path.stem != 'index': cells.append(new_markdown_cell(RUN_IT.format(path.name)))
    for cell in nb.cells:
        if cell.cell_type == 'code' and re.search(r'^#\| *hide\b', cell.source, re.MULTILINE): continue
        title = cell.cell_type == 'markdown' and re.search(r'^#+ (.*)', cell.source, re.MULTILINE)
        if title: heading = title[1]
        cells.append(shown(cell, heading))
    cells = folded_imports(cells)
    nb.cells = beside(cells) if number else cells
    return nb


def live(site):
    "The page on which you damage a picture and play, for the package's networks."
    about = ('These networks learned from 60,000 photographs of 64 x 64 px (Tiny ImageNet). The pictures offered '
             'here are not among them.')
    write_live(load_weights('photos-64'), photographs(), site/'live.html', about, still='game/index.html',
               home='index.html')


def gather(site):
    "Copies nbs/ to the folder `site`, notebooks as pages, with what they show from the rest of the project."
    for file in sorted(NBS.rglob('*')):
        to = site/file.relative_to(NBS)
        if not file.is_file() or any(part.startswith('.') for part in file.relative_to(NBS).parts): continue
        to.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == '.ipynb': nbformat.write(notebook_page(file), to)
        elif file.suffix == '.md': to.write_text(relink(file.read_text(encoding='utf-8')), encoding='utf-8')
        else: shutil.copy(file, to)
    shutil.copytree(ROOT/'images', site/'images')
    live(site)
    shutil.copy(ROOT/'CHANGELOG.md', site.parent)


def field_docs(docments):
    "smalldocs' reader of parameters, which also reads what a dataclass's fields say of themselves."
    def read(sym):
        found = docments(sym)
        for f in dataclasses.fields(sym) if dataclasses.is_dataclass(sym) else ():
            if f.name in found: found[f.name].docment = found[f.name].docment or f.metadata.get('doc')
        return found
    return read


def notebooks():
    "{module: file name of the notebook that exports it}, modules of sub-packages as `transfer.probes`."
    exports = {f.name: re.search(r'#\| default_exp ([\w.]+)', f.read_text('utf-8')) for f in NBS.glob('[0-9]*.ipynb')}
    return {found[1]: name for name, found in exports.items() if found}


def library_pages(site):
    "Writes a page for each module, and the index of names that become links; returns {page: notebook}."
    api.safe_docments = field_docs(api.safe_docments)
    lib, source = CFG.lib_name, notebooks()
    (site/'api').mkdir()
    (site/'api/_metadata.yml').write_text('code-overflow: wrap\n')
    pages = api.build(api.Settings(site=site, packages=[lib], root=ROOT, source=BLOB))
    notebook_of = {}
    for page in pages:
        text = page.read_text(encoding='utf-8').replace(f'title: "{lib}.', 'title: "', 1)
        module = re.search('title: "(.*)"', text)[1]
        notebook = notebook_of[page.stem] = source[module]
        note = f'\n`from {lib}.{module} import *` · explained in [notebook {notebook[:2]}](../{notebook})\n'
        page.write_text(text.replace('\n---\n', f'\n---\n{note}', 1), encoding='utf-8')
    index = json.loads((site/'_symbols.json').read_text())
    linked = {name: to for name, to in index.items() if re.search('[A-Z_.]', name)}  # `fit` may be another library's
    (site/'_symbols.json').write_text(json.dumps(linked))
    return notebook_of


def finish(out, notebook_of):
    "Edit links of library pages lead to notebooks. No file asks another host: KaTeX lies in the site, no web fonts."
    shutil.copytree(KATEX, out/'site_libs/katex')
    for page in out.rglob('*.html'):
        up = '../'*len(page.relative_to(out).parent.parts)
        text = page.read_text(encoding='utf-8').replace(layout.KATEX, f'{up}site_libs/katex')
        if page.parent.name == 'api':
            text = re.sub(r'/nbs/api/([\w.]+)\.qmd', lambda m: f'/nbs/{notebook_of[m[1]]}', text)
        page.write_text(text, encoding='utf-8')
    for css in (out/'site_libs/themes').rglob('*.css'):
        css.write_text(re.sub(r'@import\s+url\([^)]*\);?', '', css.read_text(encoding='utf-8')), encoding='utf-8')


def main(out=OUT):
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)/'nbs'
        try:
            gather(folder)
            notebook_of = library_pages(folder)
            site = Site(load(folder), quiet=True)
            site.out = Path(out).resolve()
            pages = site.build()
        except (Failed, BuildError) as e: sys.exit(str(e))
    finish(site.out, notebook_of)
    if site.warnings: sys.exit('\n'.join(['The site is built, but:', *site.warnings]))
    print(f'{pages} pages in {site.out}: open index.html there, or serve it: python -m http.server -d {site.out}')


if __name__ == '__main__': main(*sys.argv[1:])
