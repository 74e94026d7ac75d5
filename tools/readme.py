"Write README.md from nbs/index.ipynb; with --check, only report whether it is up to date."
import base64, re, sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
PICTURES = Path('images/readme')  # the notebook's own figures; other pictures lie in images/
BANNER = '<!-- Made from nbs/index.ipynb by `make readme`: edit the notebook, not this file. -->'
DIRECTIVE = re.compile(r'^[ \t]*#[ \t]*\|[ \t]*([\w-]+):?[ \t]*(.*?)[ \t]*$', re.MULTILINE)
LINK = re.compile(r'(\]\(|\b(?:src|href)=")(?!\w+:|#|/)([^)"\s]+)')


def relink(text):
    "Links relative to nbs/ become links relative to the project's root."
    return LINK.sub(lambda m: m[1] + (m[2][3:] if m[2].startswith('../') else f'nbs/{m[2]}'), text)


def block(output, name, alt, pictures):
    "One output as markdown; a picture is put into `pictures` as file `name`."
    data = output.get('data', {'text/plain': output.get('text', '')})
    if 'image/png' in data:
        pictures[PICTURES/name] = base64.b64decode(data['image/png'])
        return f'![{alt}]({PICTURES/name})'
    if 'text/markdown' in data: return relink(data['text/markdown'])
    text = data.get('text/plain', '').rstrip('\n')
    return f'```text\n{text}\n```' if text else ''


def render(nb):
    "The README's text, and its pictures as {path: bytes}."
    blocks, pictures = [], {}
    for cell in nb.cells:
        flags = dict(DIRECTIVE.findall(cell.source)) if cell.cell_type == 'code' else {}
        if 'hide' in flags or flags.get('include') == 'false': continue
        if cell.cell_type == 'markdown': blocks.append(relink(cell.source))
        if cell.cell_type != 'code': continue
        source = DIRECTIVE.sub('', cell.source).strip()
        if source and flags.get('echo') != 'false': blocks.append(f'```python\n{source}\n```')
        if flags.get('output') == 'false': continue
        for i, output in enumerate(o for o in cell.outputs if o.get('name') != 'stderr'):
            blocks.append(block(output, f'{cell.id}-{i}.png', flags.get('fig-alt', 'figure').strip('"\''), pictures))
    blocks.insert(1, BANNER)  # below the title
    return '\n\n'.join(b.strip('\n') for b in blocks if b) + '\n', pictures


def main(check):
    text, pictures = render(nbformat.read(ROOT/'nbs/index.ipynb', as_version=4))
    files = {Path('README.md'): text.encode(), **pictures}
    orphans = {f.relative_to(ROOT) for f in (ROOT/PICTURES).glob('*.png')} - files.keys()
    stale = [f for f, data in files.items() if not (ROOT/f).exists() or (ROOT/f).read_bytes() != data]
    if check:
        wrong = ', '.join(str(f) for f in [*stale, *sorted(orphans)])
        if wrong: sys.exit(f'Not what nbs/index.ipynb gives: {wrong}. To fix: make readme')
        return print('README.md is up to date.')
    for file in stale:
        (ROOT/file).parent.mkdir(parents=True, exist_ok=True)
        (ROOT/file).write_bytes(files[file])
    for file in orphans: (ROOT/file).unlink()
    print('wrote', ', '.join(map(str, stale)) or 'nothing: README.md was up to date')


if __name__ == '__main__': main('--check' in sys.argv[1:])
