"""How commands behave: options, names of results, streams, signals, what is imported."""
import argparse, json, os, shlex, signal, subprocess, sys
from inspect import signature
from pathlib import Path

import pytest
from command import TINY, start, state

from spot_artifacts import demo, folders, options, visualize
from spot_artifacts.cli import COMMANDS, main, parser

TINY_PROBE = ['--labels', 12, '--seeds', 1, '--epochs', 1, '--device', 'cpu']


# ---- options

def subparsers(): return next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)).choices


@pytest.mark.parametrize('name', COMMANDS)
def test_every_parameter_is_an_option_with_a_help_text(name):
    actions = {a.dest: a for a in subparsers()[name]._actions if a.dest != 'help'}
    assert list(actions) == list(signature(COMMANDS[name]).parameters)
    for dest, action in actions.items():
        assert action.option_strings in ([f'--{dest.replace("_", "-")}'], [] if dest == 'images' else None), dest
        assert len(action.help) > 10 and '%(' not in action.help, action.help
        optional = not action.required and name + dest != 'infoimages'
        if optional and action.nargs != '+': assert action.help.count('(default: ') == 1, (dest, action.help)
    text = subparsers()[name].format_help()
    assert COMMANDS[name].__doc__.split()[0] in text and '=' * 20 not in text


def test_words_become_values():
    words = 'probe --weights w --images i --labels 20 --strict --epochs 2.5 --protocol knn --out=~/x.json'
    options = vars(parser().parse_args(words.split()))
    assert (options['labels'], options['strict'], options['epochs'], options['seeds']) == (20, True, 2.5, 2)
    assert options['protocol'] == 'knn' and options['out'] == os.path.expanduser('~/x.json')


def test_as_a_module(root):
    from spot_artifacts import __version__
    command = [sys.executable, '-m', 'spot_artifacts', '--version']
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.stdout == f'{__version__}\n' and done.returncode == 0


@pytest.mark.parametrize('words', ['--help', 'pretrain --help', 'pretrain', 'dance'])
def test_help_does_not_wait_for_torch(root, words):
    code = ('import atexit, sys; atexit.register(lambda: print("torch" in sys.modules))\n'
            'from spot_artifacts.cli import main; main()')
    done = subprocess.run([sys.executable, '-c', code, *words.split()], cwd=root, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == 'False' and done.returncode == (0 if '--help' in words else 2)


# ---- results

def test_other_results_get_a_free_name(run, photos, tmp_path, succeeds):
    for k in '', '-2', '-3':
        succeeds('spot', '--weights', run, '--out', tmp_path/'spotted', '--device', 'cpu', photos/'cats/00.png')
        assert (tmp_path/f'spotted{k}/spot.json').exists()
    for k in '', '-2':
        succeeds('probe', '--weights', run, '--images', photos, *TINY_PROBE)
        assert f'probe{k}.json' in state(run)


def test_two_commands_at_once_get_a_name_each(tmp_path):
    "The second starts while the first works: nothing is there yet when either looks."
    names = [options.claim(tmp_path/'x.json').name for _ in range(3)]
    folders = [options.claim(tmp_path/'spotted', folder=True).name for _ in range(3)]
    assert names == ['x.json', 'x-2.json', 'x-3.json'] and folders[0] == 'spotted'


def test_spot_keeps_what_it_has(run, photos, tmp_path, monkeypatch, fails):
    judge, calls = visualize.spot, []
    def stop_at_the_third(*args):
        calls.append(1)
        if len(calls) == 3: raise KeyboardInterrupt
        return judge(*args)
    monkeypatch.setattr(visualize, 'spot', stop_at_the_third)
    files = sorted(photos.rglob('*.png'))[:4]
    fails('spot', '--weights', run, '--out', tmp_path/'spotted', '--device', 'cpu', *files, status=130,
          says=['stopped', f'{tmp_path}/spotted has the verdicts so far'])
    found = json.loads((tmp_path/'spotted/spot.json').read_text())['images']
    assert [f['image'] for f in found] == [str(f) for f in files[:2]]
    assert all((tmp_path/'spotted'/f['map']).exists() for f in found)


def test_a_game_without_masks_has_results_too(photos, tmp_path, succeeds):
    (tmp_path/'gan.json').write_text('{"fakes": "gan", "lrn": false}')
    said = succeeds('pretrain', '--images', photos, '--out', tmp_path/'run', '--recipe', tmp_path/'gan.json',
                    '--steps', 1, *TINY)
    assert 'C is right about' in said.out and 'dropped entries' not in said.out


def test_variables_of_a_launcher_that_is_gone(photos, tmp_path, monkeypatch, succeeds):
    for name, value in dict(RANK='1', WORLD_SIZE='2').items(): monkeypatch.setenv(name, value)
    said = succeeds('pretrain', '--images', photos, '--out', tmp_path/'run', '--steps', 1, *TINY)
    assert {'weights.safetensors', 'results.json'} <= state(tmp_path/'run').keys() and 'are written' in said.out


def test_a_cpu_with_a_number_is_the_cpu(photos, tmp_path, succeeds):
    words = [w if w != 'cpu' else 'cpu:0' for w in TINY]
    succeeds('pretrain', '--images', photos, '--out', tmp_path/'run', '--steps', 1, *words)
    assert 'thread' in json.loads((tmp_path/'run/results.json').read_text())['device']


def test_an_error_of_our_own_keeps_its_traceback(photos, tmp_path, monkeypatch):
    def bug(*args): raise RuntimeError('a bug')
    monkeypatch.setattr(demo, 'measure', bug)
    with pytest.raises(RuntimeError, match='a bug'):
        main(['pretrain', '--images', str(photos), '--out', str(tmp_path/'run'), '--steps', '1', *TINY])


# ---- streams

def test_a_reader_that_leaves_is_no_traceback(monkeypatch, capsys):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, 'w') as pipe, pytest.raises(SystemExit) as stop:
        monkeypatch.setattr(sys, 'stdout', pipe)
        main(['info'])
    assert stop.value.code == 1 and capsys.readouterr().err == ''


def in_a_shell(line, root, **env):
    command = shlex.join([sys.executable, '-m', 'spot_artifacts'])
    return subprocess.run(line.replace('spot-artifacts', command), shell=True, cwd=root, capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(root), **env})


@pytest.mark.parametrize('closed', ['>&-', '>&- <&-', '>&- <&- 2>&-'])
def test_streams_that_are_closed(root, tmp_path, run, photos, closed):
    out, image = tmp_path/'spotted', photos/'cats/00.png'
    done = in_a_shell(f'spot-artifacts spot --weights {run} --out {out} --device cpu {image} {closed}', root)
    assert done.returncode == 0 and done.stderr == ''
    assert len(json.loads((out/'spot.json').read_text())['images']) == 1


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs /dev/full')
def test_output_that_cannot_be_written(root):
    done = in_a_shell('spot-artifacts info > /dev/full', root)
    assert done.returncode == 1 and done.stderr.startswith('spot-artifacts: ') and done.stderr.count('\n') == 1
    assert 'No space left' in done.stderr


@pytest.mark.parametrize('encoding, says', [('ascii', '82.1 % +/- 0.4, \\u2603'), ('latin-1', '82.1 % ± 0.4, \\u2603'),
                                            ('utf-8', '82.1 % ± 0.4, ☃')])
def test_characters_that_the_terminal_lacks(root, encoding, says):
    code = "from spot_artifacts import cli; cli.prepare_streams(); print('82.1 % \xb1 0.4, \u2603')"
    env = {**os.environ, 'PYTHONIOENCODING': encoding}
    done = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, env=env)
    assert done.stdout.decode(encoding).strip() == says


def test_no_file_name_reaches_the_terminal_as_a_command(run, photos, tmp_path, succeeds, fails):
    red = tmp_path/'\x1b[31mred.png'
    red.write_bytes((photos/'cats/00.png').read_bytes())
    said = succeeds('spot', '--weights', run, '--out', tmp_path/'spotted', '--device', 'cpu', red)
    assert '\x1b' not in said.out + said.err and r'\x1b[31mred.png: ' in said.out
    line = fails('spot', '--weights', run, '--out', tmp_path/'spotted', '--device', 'cpu', tmp_path/'\x1b[31mnone.png')
    assert '\x1b' not in line and 'none.png' in line


# ---- Ctrl-C

def test_ctrl_c_before_there_is_a_run(tmp_path, photos, monkeypatch, fails):
    def stop(*args, **kw): raise KeyboardInterrupt
    monkeypatch.setattr(folders, 'folder_images', stop)
    line = fails('pretrain', '--images', photos, '--out', tmp_path/'run', *TINY, status=130, says=['stopped'])
    assert 'resume' not in line


WAIT = "print('waiting', flush=True); time.sleep(60)"


@pytest.mark.parametrize('code, says', [
    (f'cli.import_module = lambda name: exec({WAIT!r})', ''),
    (f'cli.COMMANDS["info"] = stop; atexit.register(lambda: exec({WAIT!r}))', 'stopped.'),
    (f'cli.COMMANDS["info"] = end; atexit.register(lambda: exec({WAIT!r}))', '')],
    ids=['imports', 'a second one', 'at the end'])
def test_ctrl_c_at_any_moment_is_quiet(root, tmp_path, code, says):
    (tmp_path/'script.py').write_text('import atexit, time\nfrom spot_artifacts import cli\n'
                                      'def stop():\n    "Stops."\n    raise KeyboardInterrupt\n'
                                      f'def end(): "Ends."\n{code}\ncli.main()')
    process = start(tmp_path/'script.py', 'info', env={**os.environ, 'PYTHONPATH': str(root)})
    while process.stdout.readline() != 'waiting\n': assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT and err == (f'spot-artifacts: {says}\n' if says else '')
