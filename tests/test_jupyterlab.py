"Two notebooks, run from top to bottom by JupyterLab's own Run All in a browser."
import os, secrets, shutil, socket, subprocess, sys, time
from urllib.error import URLError
from urllib.request import urlopen

import pytest

RUN_ALL = """async () => {
    const app = window.jupyterapp, panel = app.shell.currentWidget
    await panel.context.ready
    await panel.sessionContext.ready
    await app.commands.execute('notebook:run-all-cells')
    return panel.content.model.toJSON().cells.filter(c => c.cell_type == 'code' && [].concat(c.source).join('').trim())
}"""


@pytest.fixture(scope='module')
def lab(root, tmp_path_factory):
    "Address and token of a JupyterLab server on a copy of the notebooks."
    folder, token = tmp_path_factory.mktemp('lab'), secrets.token_hex(8)
    for name in ('nbs', 'images'): shutil.copytree(root/name, folder/name)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    words = ['--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}', f'--ServerApp.root_dir={folder}',
             f'--IdentityProvider.token={token}', '--LabApp.expose_app_in_browser=True', '--LabApp.news_url=None',
             '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate']
    folders = {f'JUPYTER_{k}_DIR': str(folder/k) for k in ('CONFIG', 'RUNTIME')}
    env = dict(os.environ, PYTHONPATH=str(root), OMP_NUM_THREADS='1', **folders)
    with (folder/'log.txt').open('w') as log:
        command = [sys.executable, '-m', 'jupyterlab', *words]
        server = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
    try:
        for _ in range(240):
            try: urlopen(f'http://127.0.0.1:{port}/api', timeout=5).close()
            except (URLError, ConnectionError, TimeoutError):
                assert server.poll() is None, (folder/'log.txt').read_text()
                time.sleep(.5)
            else: break
        else: pytest.fail('JupyterLab did not start: ' + (folder/'log.txt').read_text())
        yield f'http://127.0.0.1:{port}', token
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.parametrize('name', ['10_encoder', '12_damage'])
def test_run_all(name, lab, browser):
    address, token = lab
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(300_000)
    page.goto(f'{address}/lab/tree/nbs/{name}.ipynb?token={token}')
    page.wait_for_function("""() => {
        const panel = window.jupyterapp?.shell.currentWidget
        return panel?.context?.path.endsWith('.ipynb') && panel.sessionContext.session?.kernel
    }""")
    cells = page.evaluate(RUN_ALL)
    context.close()
    assert len(cells) > 10
    errors = [o for c in cells for o in c['outputs'] if o['output_type'] == 'error']
    assert not errors, errors[0]['traceback']
    assert all(c['execution_count'] for c in cells), 'a cell was not run'
