"Files that are written whole or not at all, and how much memory is free: what does not fit into notebook 00."
import errno, os, stat, subprocess, sys

import pytest, torch

from spot_artifacts.core import atomic_write, DiskError, free_memory, is_temporary, new_file, remove_unused, write_json

TEMPORARY = '.a.json.0123456789abcdef.tmp'


def names(folder): return sorted(f.name for f in folder.iterdir())


@pytest.mark.parametrize('error', [OSError(errno.ENOSPC, 'No space left on device'), RuntimeError('unexpected pos 64')])
def test_a_write_that_fails_changes_nothing(tmp_path, error):
    file = tmp_path/'a.json'
    write_json(file, 'good')
    def write(tmp):
        tmp.write_text('half')
        raise error
    with pytest.raises(DiskError, match='a.json: could not be written') as e:
        atomic_write(file, write, older=tmp_path/'older')
    assert '\n' not in str(e.value) and names(tmp_path) == ['a.json'] and file.read_text() == '"good"\n'


def test_an_error_of_another_kind_passes_and_leaves_no_file(tmp_path):
    def write(tmp): raise KeyError('a bug')
    with pytest.raises(KeyError): atomic_write(tmp_path/'a.json', write)
    assert names(tmp_path) == []


def test_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(DiskError, match='No such file or directory'): write_json(tmp_path/'missing'/'a.json', 1)


def test_the_temporary_name_is_new_each_time_and_in_the_same_folder(tmp_path):
    seen = []
    for _ in range(3): atomic_write(tmp_path/'a.json', lambda tmp: (seen.append(tmp), tmp.write_text('x')))
    assert len(set(seen)) == 3 and all(f.parent == tmp_path and is_temporary(tmp_path/f.name) is False for f in seen)
    assert names(tmp_path) == ['a.json']


def test_a_planted_link_is_not_followed(tmp_path, monkeypatch):
    "Whoever guesses the temporary name cannot make us write elsewhere."
    (tmp_path/'secret').write_text('mine')
    (tmp_path/TEMPORARY).symlink_to('secret')
    (tmp_path/'a.json.tmp').symlink_to('secret')
    monkeypatch.setattr('secrets.token_hex', lambda n: '0123456789abcdef')
    with pytest.raises(DiskError, match='File exists'): write_json(tmp_path/'a.json', 1)
    monkeypatch.undo()
    write_json(tmp_path/'a.json', 1)
    assert (tmp_path/'secret').read_text() == 'mine' and (tmp_path/'a.json.tmp').is_symlink()


@pytest.mark.parametrize('mask', [0o022, 0o077, 0o002])
def test_permissions_are_those_of_any_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_json(tmp_path/'a.json', 1)
        with new_file(tmp_path/'private', 0o600) as f: f.write(b'x')
        (tmp_path/'plain').touch()
    finally: os.umask(before)
    modes = {f.name: stat.S_IMODE(f.stat().st_mode) for f in tmp_path.iterdir()}
    assert modes['a.json'] == modes['plain'] and modes['private'] == 0o600


def test_what_a_killed_process_left_goes_and_what_is_in_use_stays(tmp_path):
    others = ['.b.json.0123456789abcdef.tmp', 'a.json.tmp', '.a.json.swp', '.a.json.notes.tmp']
    for name in TEMPORARY, *others: (tmp_path/name).touch()
    with new_file(tmp_path/'a.json'):
        write_json(tmp_path/'a.json', 1)
        assert len(names(tmp_path)) == 6                        # the open one, a.json, and four that are not ours
        assert TEMPORARY not in names(tmp_path)
    assert names(tmp_path) == sorted(['a.json', *others])


def test_a_killed_process_frees_its_file(tmp_path):
    code = f'''import os, signal
from spot_artifacts.core import new_file
with new_file({str(tmp_path/"a.json")!r}) as f: os.kill(os.getpid(), signal.SIGKILL)'''
    subprocess.run([sys.executable, '-c', code])
    [left] = tmp_path.iterdir()
    assert is_temporary(left) and remove_unused(left) and names(tmp_path) == []


def test_only_process_0_writes(tmp_path, monkeypatch):
    second = dict(RANK='1', LOCAL_RANK='1', WORLD_SIZE='2', MASTER_ADDR='localhost')
    for name, value in second.items(): monkeypatch.setenv(name, value)
    write_json(tmp_path/'a.json', 1)
    assert names(tmp_path) == []


def test_the_file_before_is_kept(tmp_path):
    for i in range(3): atomic_write(tmp_path/'a', lambda tmp: torch.save(i, tmp), older=tmp_path/'b')
    assert [torch.load(tmp_path/n) for n in 'ab'] == [2, 1]


def put(root, files):
    for name, text in files.items():
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        (root/name).write_text(text)


MEMINFO = {'proc/meminfo': 'MemTotal: 9000 kB\nMemFree: 5 kB\nMemAvailable: 1000 kB\n'}


@pytest.mark.parametrize('files, wanted', [
    ({}, 1_024_000),
    ({'proc/self/cgroup': '0::/\n'}, 1_024_000),
    ({'proc/self/cgroup': 'damaged'}, 1_024_000),
    ({'proc/self/cgroup': '0::/\n', 'sys/fs/cgroup/memory.max': 'max\n',
      'sys/fs/cgroup/memory.current': '5\n'}, 1_024_000),
    ({'proc/self/cgroup': '0::/a/b\n', 'sys/fs/cgroup/a/memory.max': '900\n', 'sys/fs/cgroup/a/memory.current': '500\n',
      'sys/fs/cgroup/a/memory.stat': 'inactive_file 40\n', 'sys/fs/cgroup/a/b/memory.max': '9000\n',
      'sys/fs/cgroup/a/b/memory.current': '500\n', 'sys/fs/cgroup/a/b/memory.stat': ''}, 440),
    ({'proc/self/cgroup': '7:cpu,memory:/x\n1:name=systemd:/\n0::/\n',
      'sys/fs/cgroup/memory/x/memory.limit_in_bytes': '700\n',
      'sys/fs/cgroup/memory/x/memory.usage_in_bytes': '600\n',
      'sys/fs/cgroup/memory/x/memory.stat': 'total_inactive_file 11\n'}, 111),
    ({'proc/self/cgroup': '7:memory:/docker/of/the/host\n', 'sys/fs/cgroup/memory/memory.limit_in_bytes': '700\n',
      'sys/fs/cgroup/memory/memory.usage_in_bytes': '900\n', 'sys/fs/cgroup/memory/memory.stat': ''}, 0),
])
def test_free_memory_is_the_least_of_all_limits(tmp_path, files, wanted):
    put(tmp_path, {**MEMINFO, **files})
    assert free_memory(tmp_path) == wanted


def test_free_memory_without_meminfo(tmp_path):
    assert free_memory(tmp_path) is None
    put(tmp_path, {'proc/meminfo': 'MemTotal: 9000 kB\n', 'proc/self/cgroup': '0::/\n'})
    assert free_memory(tmp_path) is None
    put(tmp_path, {'sys/fs/cgroup/memory.max': '700', 'sys/fs/cgroup/memory.current': '100',
                   'sys/fs/cgroup/memory.stat': ''})
    assert free_memory(tmp_path) == 600


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_free_memory_of_this_machine():
    assert 0 < free_memory() < 2**50
