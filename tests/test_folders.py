"Odd, broken and hostile files, and those kept on the disk: what does not fit into notebook 02."
import os, struct, subprocess, sys, zlib
from urllib.error import URLError

import numpy as np, pytest, torch, torchvision
from images import write_images
from PIL import Image, ImageFile

from spot_artifacts import folders
from spot_artifacts.core import ImagesError, lock_file, OutOfMemory, SpotError
from spot_artifacts.data import ImageSet, spot_dls
from spot_artifacts.folders import (as_image_set, folder_images, link_listing, list_images, load_image, split_folders,
                                    stl10, where_kept)
from spot_artifacts.toy import toy_images

CORNERS = [(220, 40, 40), (40, 200, 60), (50, 60, 210), (230, 220, 60)]    # red green / blue yellow


def picture(width=72, height=48):
    "Four plain quarters, each of a different colour."
    small = np.array(CORNERS, dtype=np.uint8).reshape(2, 2, 3)
    return Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST)


def quarters(image):
    "The colours in the middle of an image's four quarters, as a list of tuples."
    n = image.shape[-1]
    return [tuple(image[:, y, x].tolist()) for y in (n//4, 3*n//4) for x in (n//4, 3*n//4)]


def close(found, wanted, within=12):
    return all(abs(a - b) <= within for f, w in zip(found, wanted) for a, b in zip(f, w))


def cut(file):
    file.write_bytes(file.read_bytes()[:file.stat().st_size//2])


def claim_size(file, width, height):
    "Let a PNG's header claim another size."
    content = bytearray(file.read_bytes())
    content[16:24] = struct.pack('>II', width, height)
    content[29:33] = struct.pack('>I', zlib.crc32(content[12:29]))
    file.write_bytes(content)


@pytest.fixture
def folder(tmp_path):
    "A folder with one good image, good.png."
    path = tmp_path/'some images'
    path.mkdir()
    picture().save(path/'good.png')
    return path


@pytest.mark.parametrize('name, mode', [('a.jpg', 'RGB'), ('a.JPEG', 'CMYK'), ('a.png', 'RGBA'), ('a.webp', 'RGBA'),
                                        ('a.png', 'P'), ('a.bmp', 'P'), ('a.bmp', 'RGB')])
def test_modes_keep_colours(folder, name, mode):
    img = picture().quantize(8) if mode == 'P' else picture().convert(mode)
    img.save(folder/name, **(dict(quality=95) if name[-3:] in ('jpg', 'PEG', 'ebp') else {}))
    assert close(quarters(load_image(folder/name, 32)), CORNERS, within=25 if mode == 'CMYK' else 12)


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'I;16'])
def test_grey_modes(folder, mode):
    grey = np.full((48, 48), 200, dtype=np.uint8)
    grey[:, :24] = 0
    if mode == 'I;16': img = Image.fromarray(grey.astype(np.uint16)*257)
    else: img = Image.fromarray(grey).convert(mode, dither=0)
    img.save(folder/'grey.png')
    left, right = quarters(load_image(folder/'grey.png', 32))[:2]
    assert left == (0, 0, 0) and right == ((255,)*3 if mode == '1' else (200,)*3)


def test_transparent_is_white(folder):
    img = picture().convert('RGBA')
    img.putalpha(0)
    img.save(folder/'rgba.png')
    picture().quantize(4).save(folder/'palette.png', transparency=bytes(4))
    picture().save(folder/'keyed.png', transparency=CORNERS[0])
    assert quarters(load_image(folder/'rgba.png', 32)) == [(255, 255, 255)]*4
    assert quarters(load_image(folder/'palette.png', 32)) == [(255, 255, 255)]*4
    assert quarters(load_image(folder/'keyed.png', 32)) == [(255, 255, 255), *CORNERS[1:]]


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation(folder, orientation):
    T = Image.Transpose
    undo = [None, T.FLIP_LEFT_RIGHT, T.ROTATE_180, T.FLIP_TOP_BOTTOM, T.TRANSPOSE, T.ROTATE_90, T.TRANSVERSE,
            T.ROTATE_270]
    img, exif = picture(), Image.Exif()
    exif[0x0112] = orientation
    if undo[orientation - 1] is not None: img = img.transpose(undo[orientation - 1])
    for name in 'turned.jpg', 'turned.png', 'turned.webp':
        img.save(folder/name, exif=exif, quality=95)
        assert close(quarters(load_image(folder/name, 32)), CORNERS), name


def test_broken_exif_is_ignored(folder):
    picture().save(folder/'odd.jpg', exif=b'Exif\0\0this is no EXIF block at all', quality=95)
    assert close(quarters(load_image(folder/'odd.jpg', 32)), CORNERS)


def test_square_is_central(folder):
    wide = np.zeros((40, 120, 3), dtype=np.uint8)
    wide[:, 40:80] = 255
    Image.fromarray(wide).save(folder/'wide.png')
    Image.fromarray(wide.transpose(1, 0, 2)).save(folder/'tall.png')
    assert load_image(folder/'wide.png', 40).min() == 255 and load_image(folder/'tall.png', 40).min() == 255


def test_the_content_and_not_the_name_says_the_format(folder):
    picture().save(folder/'really png.jpg', format='PNG')
    picture().save(folder/'really gif.jpeg', format='GIF')
    mpo = dict(format='MPO', save_all=True, append_images=[picture()])    # some phones' JPEG
    picture().save(folder/'two.jpg', **mpo, quality=95)
    for name in 'really png.jpg', 'really gif.jpeg', 'two.jpg':
        assert close(quarters(load_image(folder/name, 32)), CORNERS), name


@pytest.mark.parametrize('name', ['a.png', 'a.webp'])
def test_animation_gives_its_first_frame(folder, name):
    others = [Image.new('RGB', (72, 48), 'black')]*2
    picture().save(folder/name, save_all=True, append_images=others, duration=50, lossless=True)
    assert close(quarters(load_image(folder/name, 32)), CORNERS)


def test_broken_files_are_skipped_and_named(folder, capsys):
    for name in 'cut.jpg', 'cut.png', 'cut.webp', 'cut.bmp':
        Image.effect_noise((72, 48), 80).convert('RGB').save(folder/name)
        cut(folder/name)
    (folder/'empty.jpg').touch()
    (folder/'text.png').write_text('Dear reader')
    (folder/'dangling.jpg').symlink_to('nowhere')
    picture(40, 20).save(folder/'small.png')
    got = folder_images(folder, 32)
    why = dict(got.skipped)
    assert len(got) == 1 and sorted(why) == ['cut.bmp', 'cut.jpg', 'cut.png', 'cut.webp', 'dangling.jpg', 'empty.jpg',
                                             'small.png', 'text.png']
    assert why['empty.jpg'] == 'empty file' and why['text.png'] == 'not an image' and 'truncated' in why['cut.jpg']
    assert why['dangling.jpg'] == 'No such file or directory' and why['small.png'] == '40 x 20 px, smaller than 32 px'
    out, err = capsys.readouterr()
    assert out == '' and err.count('\n') == 1 and 'skipped 8 of 9 images: cut.bmp (' in err and err.endswith(', ...\n')


def test_unreadable_file_is_skipped(folder, monkeypatch):
    picture().save(folder/'locked.png')
    pillow_open = Image.open
    def locked(file, **kw):
        if file.name == 'locked.png': raise PermissionError(13, 'Permission denied', str(file))
        return pillow_open(file, **kw)
    monkeypatch.setattr(Image, 'open', locked)
    assert folder_images(folder, 32).skipped == (('locked.png', 'Permission denied'),)


def test_unreadable_folder_is_named(folder, monkeypatch):
    def locked(path): raise PermissionError(13, 'Permission denied', str(path))
    monkeypatch.setattr('os.scandir', locked)
    with pytest.raises(SpotError, match='some images: Permission denied'): folder_images(folder, 32)


@pytest.mark.parametrize('side', [10_000, 20_000])    # Pillow would warn of the first and refuse the second
def test_bombs_are_not_loaded(folder, side):
    picture().save(folder/'bomb.png')
    claim_size(folder/'bomb.png', side, side)
    assert folder_images(folder, 32).skipped == (('bomb.png', 'more than 89 million pixels'),)


def test_truncated_is_refused_whatever_pillow_allows(folder, monkeypatch):
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)
    Image.effect_noise((72, 48), 80).save(folder/'cut.jpg')
    cut(folder/'cut.jpg')
    assert [f for f, _ in folder_images(folder, 32).skipped] == ['cut.jpg']
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_strict_stops_and_names(folder):
    (folder/'empty.jpg').touch()
    with pytest.raises(SpotError, match='empty.jpg: empty file. Fix or remove'): folder_images(folder, 32, strict=True)
    with pytest.raises(SpotError, match='empty.jpg: empty file'): load_image(folder/'empty.jpg', 32)


def test_odd_names_depth_links_and_hidden_files(folder):
    deep = folder/'näh'/'日本 語'/'a b'
    deep.mkdir(parents=True)
    for file in deep/'ünïcode  name.PnG', deep/"quote's.webp", folder/'.hidden.png', folder/'folder.jpg'/'in.png':
        file.parent.mkdir(exist_ok=True)
        picture().save(file, format='PNG')
    (deep/'round').symlink_to(folder, target_is_directory=True)
    (folder/'linked').symlink_to(deep, target_is_directory=True)
    (folder/'notes.txt').write_text('not an image, and not named like one')
    names = [f.relative_to(folder).as_posix() for f in list_images(folder)]
    assert names == ['folder.jpg/in.png', 'good.png', "linked/quote's.webp", 'linked/ünïcode  name.PnG',
                     "näh/日本 語/a b/quote's.webp", 'näh/日本 語/a b/ünïcode  name.PnG']
    got = folder_images(str(folder), 32)
    assert len(got) == 6 and got.skipped == ()


def test_order_is_that_of_the_names_and_long_lists_show_progress(tmp_path, capsys, monkeypatch):
    for i in range(500): Image.new('RGB', (8, 8), (i//250, i % 250, 0)).save(tmp_path/f'{i:03d}.bmp')
    for screen in (True, False):
        monkeypatch.setattr('spot_artifacts.folders.bars', lambda: screen)
        got = folder_images(tmp_path, 8)
        assert got.images[:, :2, 0, 0].tolist() == [[i//250, i % 250] for i in range(500)]
        assert ('500/500' in capsys.readouterr().out) == screen, 'a bar on a screen, and none in a pipe'


def test_labels_come_from_the_first_level(tmp_path):
    for name in 'b/1.png', 'a/x/2.png', 'a/3.png', 'c/bad.png', 'stray.png':
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        picture().save(tmp_path/name)
    cut(tmp_path/'c/bad.png')
    got = folder_images(tmp_path, 32, labelled=True)
    assert got.classes == ('a', 'b', 'c') and got.labels.tolist() == [0, 0, 1]
    assert [f for f, _ in got.skipped] == ['c/bad.png', 'stray.png']


@pytest.mark.parametrize('what, message', [
    ('missing', 'no such folder'), ('file.png', 'is a file'), ('empty', 'no image in it'),
    ('broken', 'Give other images'), ('small', 'Give a smaller size')])
def test_nothing_to_load(tmp_path, what, message):
    for name in 'empty', 'broken', 'small': (tmp_path/name).mkdir()
    picture().save(tmp_path/'file.png')
    picture(16, 16).save(tmp_path/'small/a.png')
    (tmp_path/'broken/a.png').touch()
    with pytest.raises(SpotError, match=message) as error: folder_images(tmp_path/what, 32)
    assert what in str(error.value) and '\n' not in str(error.value)


def test_stl10_damaged_or_missing(tmp_path, monkeypatch):
    files = tmp_path/'stl10_binary'
    files.mkdir()
    (files/'class_names.txt').write_text('airplane\nbird\n')
    (files/'test_X.bin').write_bytes(bytes(2*3*96*96))
    with pytest.raises(SpotError, match='test_y.bin is missing'): stl10(tmp_path, 'test')
    (files/'test_y.bin').write_bytes(b'\1')
    with pytest.raises(SpotError, match='do not fit together'): stl10(tmp_path, 'test')
    (files/'test_y.bin').write_bytes(b'\1\2')
    assert stl10(tmp_path, 'test').labels.tolist() == [0, 1]
    (files/'test_X.bin').write_bytes(bytes(1000))
    with pytest.raises(SpotError, match='test_X.bin: damaged'): stl10(tmp_path, 'test')
    def offline(*args, **kw): raise URLError('no network')
    monkeypatch.setattr(torchvision.datasets, 'STL10', offline)
    with pytest.raises(SpotError, match='could not be downloaded'): stl10(tmp_path, 'test', download=True)


def test_a_run_from_the_disk_is_the_run_from_memory(tmp_path, monkeypatch):
    "With no memory to spare images stay in a file, and every weight of a run comes out the same."
    from spot_artifacts.pretraining import pretrain
    from spot_artifacts.recipe import Recipe
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'cache'))
    write_images(tmp_path/'photos', images=toy_images(40, 32, seed=6, cache=False).images)
    recipe, weights = Recipe.small(32, width=.1, ae_width=.1, ae_batch=8, batch=8, ae_epochs=1., epochs=1.), []
    for free in (1e12, 0):
        monkeypatch.setattr(folders, 'free_memory', lambda: free)
        images = folder_images(tmp_path/'photos', 32)
        assert (tmp_path/'cache').exists() == (not free)
        pretrain(images, recipe, tmp_path/f'run-{free:g}', progress=False)
        weights.append((tmp_path/f'run-{free:g}/weights.safetensors').read_bytes())
    assert weights[0] == weights[1]


@pytest.fixture
def no_memory(tmp_path, monkeypatch):
    "With no memory to spare, decoded folders go into files; this is where."
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'cache'))
    monkeypatch.setattr(folders, 'free_memory', lambda: 0)
    return tmp_path/'cache/spot_artifacts'


def plain(folder, colour, n=3):
    "A folder of images of one colour, all with the same time."
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.new('RGB', (16, 16), colour).save(folder/f'{i}.bmp')
        os.utime(folder/f'{i}.bmp', (1e9, 1e9))
    return folder


def test_two_folders_of_one_name_and_time_do_not_share_a_cache(tmp_path, monkeypatch, no_memory):
    found = []
    for place, colour in ('a', 'red'), ('b', 'blue'):
        plain(tmp_path/place/'photos', colour)
        monkeypatch.chdir(tmp_path/place)
        found.append(folder_images('photos', 16).images[0, :, 0, 0].tolist())
    assert found == [[255, 0, 0], [0, 0, 255]]


def test_a_changed_file_of_the_same_size_and_time_is_decoded_again(tmp_path, no_memory):
    folder = plain(tmp_path/'photos', 'red')
    assert folder_images(folder, 16).images[0, :, 0, 0].tolist() == [255, 0, 0]
    plain(folder, 'blue')
    assert folder_images(folder, 16).images[0, :, 0, 0].tolist() == [0, 0, 255]


def test_a_folder_is_the_same_by_any_path(tmp_path, monkeypatch, no_memory, capsys):
    folder = plain(tmp_path/'photos', 'red')
    (tmp_path/'link').symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    for path in folder, 'photos', 'link', '../' + tmp_path.name + '/photos': folder_images(path, 16)
    assert len(list(no_memory.glob('*.bytes'))) == 1
    assert capsys.readouterr().err.count('decoded once into') == 1


@pytest.mark.parametrize('damage', ['empty', 'short', 'one bit', 'no note', 'note cut', 'foreign note',
                                    'note of nothing'])
def test_a_damaged_cache_is_made_again(tmp_path, no_memory, damage):
    folder = plain(tmp_path/'photos', 'red')
    wanted = folder_images(folder, 16).fingerprint
    [file], [note] = no_memory.glob('*.bytes'), no_memory.glob('*.json')
    whole, text = file.read_bytes(), note.read_text()
    flipped = bytearray(whole)
    flipped[5] ^= 1
    file.write_bytes({'empty': b'', 'short': flipped[:100], 'one bit': flipped}.get(damage, whole))
    notes = {'note cut': text[:20], 'foreign note': '[[0, "x"]]', 'note of nothing': '{}'}
    if damage == 'no note': note.unlink()
    if damage in notes: note.write_text(notes[damage])
    for _ in range(2): assert folder_images(folder, 16).fingerprint == wanted
    assert sorted(f.suffix for f in no_memory.iterdir()) == ['.bytes', '.json']


def test_a_cache_is_private_and_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch, no_memory):
    synced, replace = [], os.replace
    fsync = os.fsync
    monkeypatch.setattr(os, 'fsync', lambda fd: synced.append(os.fstat(fd).st_ino) or fsync(fd))
    def checked(part, file):
        assert os.stat(part).st_ino in synced and os.stat(part).st_mode & 0o777 == 0o600
        replace(part, file)
    monkeypatch.setattr(os, 'replace', checked)
    before = os.umask(0)
    try: folder_images(plain(tmp_path/'photos', 'red'), 16)
    finally: os.umask(before)
    assert {f.stat().st_mode & 0o777 for f in no_memory.iterdir()} == {0o600} and len(list(no_memory.iterdir())) == 2
    assert no_memory.stat().st_ino in synced


def test_old_caches_make_room_but_not_those_in_use(tmp_path, monkeypatch, no_memory):
    one = 3*3*16**2/1e9
    monkeypatch.setattr(folders, 'CACHE_GB', 2.5*one)
    def kept(): return {f.name for f in no_memory.glob('*.bytes')}
    def load(name):
        before = kept()
        images = folder_images(plain(tmp_path/name, 'red'), 16)
        [file] = (kept() - before) or [None]
        return images, file
    (a, file_a), (b, file_b) = load('a'), load('b')
    for file, when in (file_a, 1), (file_b, 2): os.utime(no_memory/file, (when, when))
    del b
    c, file_c = load('c')                                   # a is older than b, but in use
    assert kept() == {file_a, file_c} and a.images.float().mean() == 85
    os.utime(no_memory/file_c, (3, 3))
    del a, c
    folder_images(tmp_path/'a', 16)                         # a is used again: now c is the oldest
    d, file_d = load('d')
    assert kept() == {file_a, file_d}
    assert {f.stem for f in no_memory.glob('*.json')} == {f.rpartition('.')[0] for f in kept()}


def test_what_a_killed_run_left_half_decoded_is_removed(tmp_path, no_memory):
    no_memory.mkdir(parents=True)
    (no_memory/f'.folder-0123.bytes.{"ab12"*4}.tmp').write_bytes(bytes(1000))
    in_use = no_memory/f'.folder-4567.bytes.{"cd34"*4}.tmp'
    with in_use.open('wb') as f:
        assert lock_file(f)                                # another run is still decoding
        folder_images(plain(tmp_path/'photos', 'red'), 16)
        assert list(no_memory.glob('*.tmp')) == [in_use]


def test_two_processes_decode_one_folder(tmp_path, no_memory):
    folder = plain(tmp_path/'photos', 'red', 40)
    code = f'''from spot_artifacts import folders
folders.free_memory = lambda: 0
print(folders.folder_images({str(folder)!r}, 16).fingerprint)'''
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    running = [subprocess.Popen([sys.executable, '-c', code], **pipes) for _ in range(2)]
    said = [p.communicate() for p in running]
    assert all(p.returncode == 0 for p in running), said
    assert said[0][0] == said[1][0] == folder_images(folder, 16).fingerprint + '\n'
    assert sorted(f.suffix for f in no_memory.iterdir()) == ['.bytes', '.json']


def test_where_images_are_kept(monkeypatch):
    for free, wanted in [(1e9, '1.0 GB of memory are free: decoded once and kept in memory'),
                         (1e6, 'kept in a file in'),
                         (None, 'how much memory is free is unknown: decoded once and kept in memory')]:
        monkeypatch.setattr(folders, 'free_memory', lambda: free)
        assert wanted in where_kept(1000, 64)


class Items:
    "A data set as torchvision has them, of whatever is given."
    def __init__(self, *items, **attributes):
        self.items = items
        self.__dict__.update(attributes)
    def __len__(self): return len(self.items)
    def __getitem__(self, i): return self.items[i]


def test_a_dataset_of_pillow_images_or_tensors():
    byte = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    pillow = Image.fromarray(byte.permute(1, 2, 0).numpy())
    data = as_image_set(Items((pillow, 1), (byte, torch.tensor(0)), (byte/255, np.int64(2)), classes=['a', 'b', 'c']))
    assert all(torch.equal(image, byte) for image in data.images)
    assert data.labels.tolist() == [1, 0, 2] and data.classes == ('a', 'b', 'c') and data.size == 40
    assert as_image_set(Items((byte, 0), (byte, 1)), 40).classes == ('0', '1')
    assert as_image_set(Items(picture(72, 48), picture(50, 60)), 32).shape == (2, 3, 32, 32)
    assert torch.equal(as_image_set(Items(byte[:1])).images[0], byte[:1].expand(3, -1, -1))
    assert close(quarters(as_image_set(Items((picture(), 0)), 32).images[0]), CORNERS)


def test_labels_that_are_not_classes_are_left_out():
    for label in .5, 'cat', None, -1, [0, 1], picture():
        data = as_image_set(Items((picture(), label), (picture(), 0)))
        assert data.labels is None and data.classes == ()


@pytest.mark.parametrize('source, size, message', [
    (7, None, 'int: no images. Give a folder'), ({1, 2}, 32, 'set: no images. Give a folder'),
    (Items(), 32, 'no images'),
    (Items((picture(20, 30), 0)), 32, r'Items\[0\]: 20 x 30 px, not 32 px. Give a smaller size'),
    (Items((picture(), 0), ('a.png', 0)), 32, r'Items\[1\]: a str. Give a Pillow image'),
    (Items((torch.zeros(32, 32), 0)), 32, r'shape \(32, 32\)'),
    (Items((torch.randn(3, 32, 32), 0)), 32, 'normalise nothing'),
    (torch.zeros(2, 3, 8, 8), 8, r'Give uint8 \(N, 3, S, S\)'),
    (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 16, 'images of 8 px, not 16'),
    ('no folder', None, 'needs a size'), ('no folder', 32, 'no such folder')])
def test_what_is_not_a_source_of_images(source, size, message):
    with pytest.raises(ImagesError, match=message) as e: as_image_set(source, size)
    assert '\n' not in str(e.value)


def test_a_dataset_larger_than_memory(monkeypatch):
    monkeypatch.setattr(folders, 'free_memory', lambda: 1000)
    with pytest.raises(ImagesError, match='do not fit into memory. Give a folder'):
        as_image_set(Items((picture(), 0)), 32)


def test_a_folder_and_loaders_as_image_sets(tmp_path):
    write_images(tmp_path, 6, 20, classes=('a', 'b'))
    plain, labelled = as_image_set(str(tmp_path), 16), as_image_set(tmp_path, 16, labelled=True)
    assert plain.labels is None and labelled.classes == ('a', 'b') and torch.equal(plain.images, labelled.images)
    dls = spot_dls(labelled[:4], labelled[4:], 16, 2)
    assert as_image_set(dls).fingerprint == labelled[:4].fingerprint and as_image_set(labelled) is labelled
    assert as_image_set(torchvision.datasets.ImageFolder(str(tmp_path)), 16).fingerprint == labelled.fingerprint
    assert isinstance(as_image_set(labelled.images), ImageSet)


def test_pipes_sockets_and_devices_are_left_alone(tmp_path):
    write_images(tmp_path, 3)
    os.mkfifo(tmp_path/'pipe.png')
    (tmp_path/'device.png').symlink_to('/dev/zero')
    assert len(folder_images(tmp_path, 32)) == 3


def test_1200_nested_folders(tmp_path, monkeypatch):
    write_images(tmp_path, 3)
    monkeypatch.chdir(tmp_path)
    for _ in range(1200):
        os.mkdir('n')
        os.chdir('n')
    Image.new('RGB', (40, 40)).save('deep.png')
    assert len(folder_images(tmp_path, 32)) == 4
    subprocess.run(['rm', '-r', tmp_path/'n'], check=True)      # pytest's own way is recursive


def test_kinds_that_are_not_read_are_counted_and_named(tmp_path, capsys):
    write_images(tmp_path, 2)
    for name in 'a.gif', 'b.HEIC', 'c.heic', 'notes.txt': (tmp_path/name).write_bytes(b'x')
    Image.new('RGB', (40, 40)).save(tmp_path/'d.tiff')
    assert len(folder_images(tmp_path, 32)) == 3
    assert '3 files of other kinds (1 .gif, 2 .heic) are not read: convert them' in capsys.readouterr().err
    for file in tmp_path.glob('*.[pt]*'): file.unlink()
    with pytest.raises(ImagesError, match='no image .* 3 files of other kinds'): list_images(tmp_path)


def test_a_name_cannot_reach_the_terminal(tmp_path, capsys):
    write_images(tmp_path, 2)
    (tmp_path/'\x1b[31mred\nline.png').write_bytes(b'x')
    folder_images(tmp_path, 32)
    said = capsys.readouterr().err
    assert '\x1b' not in said and said.count('\n') == 1 and r'\x1b[31mred\nline.png' in said


def test_classes_of_one_letter(tmp_path):
    for split in 'train', 'val': write_images(tmp_path/split, 4, classes='01')
    assert folder_images(split_folders(tmp_path)[0], 32, labelled=True).classes == ('0', '1')


def test_listings(tmp_path):
    images = write_images(tmp_path/'images', 3)
    listing, out = tmp_path/'list.txt', tmp_path/'out'
    for bad, says in (('00.png cat\n../list.txt dog', 'no file'), ('00.png', 'no file'), ('a.png cat', 'no file'),
                      ('/etc/passwd cat', 'no file')):
        listing.write_text(bad)
        with pytest.raises(ImagesError, match=says): link_listing(listing, images, out)
        assert not out.exists(), 'a failure must not be in the way of another try'
    listing.write_text('00.png\tcat\t0\t0\n01.png dog\n02.png,cat')
    link_listing(listing, images, out)
    assert folder_images(out, 32, labelled=True).labels.tolist() == [0, 0, 1]
    with pytest.raises(ImagesError, match='cannot be read'): link_listing(tmp_path, images, tmp_path/'new')


@pytest.mark.parametrize('file, content', [('fold_indices.txt', b'0 1 x\n'), ('fold_indices.txt', b'0 99999\n'),
                                           ('fold_indices.txt', b'-1 0\n'), ('fold_indices.txt', b'\xff\xfe'),
                                           ('train_y.bin', bytes(40)), ('class_names.txt', b'cat\n')])
def test_stl10_of_damaged_lists(tiny_stl10, file, content):
    (tiny_stl10/'stl10_binary'/file).write_bytes(content)
    with pytest.raises(ImagesError, match='do not fit together'): stl10(tiny_stl10, 'train', fold=0)


def test_no_memory_to_read_is_not_a_damaged_image(tmp_path, monkeypatch):
    write_images(tmp_path, 3)
    def full(*args, **kw): raise MemoryError
    monkeypatch.setattr(folders, 'free_memory', lambda: 3*32**2*20)
    with monkeypatch.context() as m:
        m.setattr(folders.ImageOps, 'fit', full)
        with pytest.raises(OutOfMemory, match='3 images of 32 px: memory is full. Try .*, or at most 10 images'):
            folder_images(tmp_path, 32)
    assert not folder_images(tmp_path, 32).skipped


def test_a_user_without_a_home(monkeypatch):
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    def nowhere(): raise RuntimeError('Could not determine home directory.')
    monkeypatch.setattr(folders.Path, 'home', nowhere)
    assert 'decoded once' in where_kept(100, 32)
