"""Run notebooks from top to bottom and save their outputs: all of nbs/, or those named (`refresh.py 12_damage index`).

Cells that nbdev_test skips are not run and keep the outputs they have."""
import argparse, os, subprocess, sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbdev.config import get_config
from nbdev.process import extract_directives

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT/'nbs'


class Failed(Exception): "A cell failed; the text names the notebook and the cell."


class Client(NotebookClient):
    "Skips the cells that nbdev_test skips, and names the cell that fails."
    def __init__(self, nb, name, skip_flags):
        super().__init__(nb, timeout=None, kernel_name='python3', coalesce_streams=True,
                         resources={'metadata': {'path': str(NBS)}})
        self.file_name, self.skip_flags = name, skip_flags

    def skips(self, cell):
        directives = extract_directives(cell, remove=False)
        return directives.get('eval:', [''])[0].lower() == 'false' or self.skip_flags & directives.keys()

    async def async_execute_cell(self, cell, cell_index, **kwargs):
        if cell.cell_type != 'code' or self.skips(cell): return cell
        try: return await super().async_execute_cell(cell, cell_index, **kwargs)
        except (CellExecutionError, DeadKernelError) as e:
            raise Failed(f'nbs/{self.file_name}, cell {cell_index} (id {cell.id}) failed:\n{e}') from None


def refresh(path, skip_flags):
    "Run one notebook and save it, outputs included, if every cell succeeds."
    print(f'nbs/{path.name}', flush=True)
    nb = nbformat.read(path, as_version=4)
    Client(nb, path.name, skip_flags).execute()
    nbformat.write(nb, path)
    subprocess.run([Path(sys.executable).parent/'nbdev_clean', '--fname', path], cwd=ROOT, check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('names', nargs='*', help='notebooks, with or without .ipynb (default: all)')
    paths = [NBS/f'{Path(name).stem}.ipynb' for name in parser.parse_args().names] or sorted(NBS.glob('[!_.]*.ipynb'))
    for path in paths:
        if not path.exists(): sys.exit(f'No notebook {path.relative_to(ROOT)}')
    os.chdir(ROOT)
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    skip_flags = set(get_config().tst_flags.split())
    for path in paths:
        try: refresh(path, skip_flags)
        except Failed as e: sys.exit(str(e))


if __name__ == '__main__': main()
