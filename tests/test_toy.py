"The cache of the drawn set: what does not fit into notebook 03."
import os

from spot_artifacts import toy
from spot_artifacts.data import ImageSet, random_split
from spot_artifacts.toy import toy_images


def test_the_cache_goes_to_its_folder_and_never_stops_the_work(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    wanted = toy_images(20, 16, cache=False).fingerprint
    assert not any(tmp_path.iterdir())
    assert toy_images(20, 16).fingerprint == wanted
    [file] = (tmp_path/'spot_artifacts').iterdir()
    monkeypatch.setattr(toy, '_draw_set', None)                   # from here on, only the cache can answer
    assert toy_images(20, 16).fingerprint == wanted
    monkeypatch.undo()
    assert toy_images(20, 16, cache=file).fingerprint == wanted   # a file where the folder should be
    def no_space(tensors, file, made):
        file.write_bytes(b'half')
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(toy, 'save_file', no_space)
    assert toy_images(20, 16, cache=tmp_path/'full').fingerprint == wanted
    assert not any((tmp_path/'full').iterdir())


def test_a_cache_made_differently_is_not_read(tmp_path):
    wanted = toy_images(20, 16, cache=tmp_path).fingerprint
    [file] = tmp_path.iterdir()
    toy_images(20, 16, seed=1, cache=tmp_path)
    [other] = set(tmp_path.iterdir()) - {file}
    os.replace(other, file)
    assert toy_images(20, 16, cache=tmp_path).fingerprint == wanted


def test_a_part_of_the_drawn_set_is_a_plain_set():
    data = toy_images(20, 16, cache=False)
    part, _ = random_split(data)
    assert type(part) is ImageSet and part.store is data.store and part.classes == data.classes
    assert data.parts.shape == (20, 16, 16) and data.boxes.shape == (20, 4)
