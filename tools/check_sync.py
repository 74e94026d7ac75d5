"Do the library and the notebooks agree, and are the notebooks clean? Exports and cleans a copy, then compares."
import shutil, subprocess, sys, tempfile
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def tracked(root, lib):
    "Paths, relative to `root`, of the modules and the notebooks."
    files = [*(root/lib).rglob('*.py'), *(root/'nbs').rglob('*.ipynb')]
    return {f.relative_to(root) for f in files if '.ipynb_checkpoints' not in f.parts}


def complaint(file, root, fresh):
    "What is wrong with `file`, or None: `root` is the tree as it is, `fresh` as it should be."
    if not (fresh/file).exists(): return f'{file}: no notebook exports it; delete it'
    if not (root/file).exists(): return f'{file}: missing'
    if (root/file).read_bytes() != (fresh/file).read_bytes():
        return f'{file}: not clean' if file.suffix == '.ipynb' else f'{file}: differs from its notebook'


def main():
    cfg = ConfigParser()
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    lib = cfg['DEFAULT']['lib_path']
    with tempfile.TemporaryDirectory() as tmp:
        fresh = Path(tmp)
        for file in tracked(ROOT, lib) | {Path('settings.ini')}:
            if file.suffix != '.py' or file.stem in ('__init__', '__main__'):  # written by hand; nbdev adds to __init__
                (fresh/file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT/file, fresh/file)
        for command in 'nbdev_export', 'nbdev_clean':
            subprocess.run([Path(sys.executable).parent/command], cwd=fresh, check=True)
        complaints = [complaint(file, ROOT, fresh) for file in sorted(tracked(ROOT, lib) | tracked(fresh, lib))]
    complaints = [c for c in complaints if c]
    if complaints: sys.exit('\n'.join([*complaints, 'The notebooks in nbs/ are the source. To fix: make export']))
    print('Library and notebooks are in sync, and the notebooks are clean.')


if __name__ == '__main__': main()
