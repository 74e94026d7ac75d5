"Parts of a set that cost no copy, and batches of them: what does not fit into notebook 01."
import subprocess, sys

import numpy as np, pytest, torch
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Learner, load_learner
from fastai.losses import CrossEntropyLossFlat
from torch import nn

from spot_artifacts import data as data_module
from spot_artifacts.core import ImagesError
from spot_artifacts.data import ImageSet, in_batches, random_split, random_subset, spot_dls, TensorDL
from spot_artifacts.toy import toy_images


@pytest.fixture(scope='module')
def data(): return toy_images(40, 16, seed=2, cache=False)


@pytest.fixture
def mapped(data, tmp_path):
    "The same set, mapped from a file."
    np.save(tmp_path/'images.npy', data.images.numpy())
    return ImageSet(torch.from_numpy(np.load(tmp_path/'images.npy', mmap_mode='c')), data.labels, data.classes)


def same_memory(a, b): return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


PARTS = [slice(None), slice(3, 30), slice(1, 40, 7), torch.tensor([5, 0, 5]), torch.arange(40) % 3 == 1,
         torch.tensor([]).long()]


@pytest.mark.parametrize('i', PARTS, ids=str)
@pytest.mark.parametrize('j', [slice(None), slice(0, 2), torch.tensor([0])], ids=str)
def test_a_part_of_a_part(data, mapped, i, j):
    if not len(data.labels[i]) and torch.is_tensor(j): j = torch.tensor([]).long()
    for whole in data, mapped:
        part = whole[i][j]
        assert same_memory(part.store, whole.images)
        assert torch.equal(part.images, data.images[i][j]) and torch.equal(part.labels, data.labels[i][j])
        assert len(part) == len(part.images) and part.shape == part.images.shape and part.size == 16
        assert torch.equal(torch.cat([part.pixels(slice(0, 0)), *part.batches(2)]), part.images)
        assert part.fingerprint == ImageSet(data.images[i][j].clone(), data.labels[i][j]).fingerprint


def test_a_split_copies_nothing(data, mapped):
    for whole in data, mapped:
        parts = random_split(whole, .2)
        smaller = *random_split(parts[0]), random_subset(parts[1], 3)
        assert all(same_memory(part.store, whole.store) for part in (*parts, *smaller))
        assert torch.cat([part.rows for part in parts]).sort()[0].tolist() == list(range(40))


def test_loaders_read_rows_of_the_same_memory(data, mapped):
    for whole in data, mapped:
        part = random_split(whole)[0]
        dl = TensorDL(part, 8, shuffle=True)
        assert same_memory(dl.source.store, whole.store)
        seen = torch.cat([x for x, _ in dl])
        plain = TensorDL(ImageSet(part.images, part.labels), 8, shuffle=True)
        assert torch.equal(seen, torch.cat([x for x, _ in plain]))


def test_pixels_reads_what_is_asked_for(data):
    part = data[torch.arange(39, -1, -1)]
    assert torch.equal(part.pixels(slice(0, 2)), data.images[[39, 38]])
    assert torch.equal(part.pixels(torch.tensor([3])), data.images[[36]])
    assert part.to('cpu') is part
    assert [len(x) for x in in_batches(part, 16)] == [len(x) for x in in_batches(data.images, 16)] == [16, 16, 8]


def blank(*shape): return torch.zeros(shape, dtype=torch.uint8)


@pytest.mark.parametrize('images', [torch.zeros(2, 3, 8, 8), blank(2, 8, 8, 3), blank(3, 8, 8), blank(2, 3, 8, 9)],
                         ids=lambda t: f'{t.dtype}{tuple(t.shape)}')
def test_what_is_not_a_set_of_images(images):
    with pytest.raises(ImagesError, match='Give uint8'): ImageSet(images)


def test_images_stay_off_a_gpu_that_is_too_small(monkeypatch):
    images = ImageSet(blank(10, 3, 8, 8))
    for free, fits in (10_000, True), (3000, False):
        monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (free, 10_000))
        assert data_module._fits(images, torch.device('cuda')) is fits
    assert data_module._fits(images[:3], torch.device('cuda')) is True


def test_the_data_module_imports_no_heavy_library():
    code = """import sys, spot_artifacts.data
print([m for m in ("fastai", "torchvision", "matplotlib") if m in sys.modules])"""
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == '[]\n'


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_pretraining_takes_little_more_memory_than_the_images(tmp_path):
    "At most 1.3 times the images' bytes, where a copy of the training part would make it 2."
    code = f"""import re, torch
from spot_artifacts.data import ImageSet
from spot_artifacts.pretraining import pretrain
from spot_artifacts.recipe import Recipe
recipe = Recipe.small(32, width=.05, ae_width=.05, batch=8, ae_batch=8, ae_epochs=1e-4, epochs=1e-4)
def peak(): return 1024*int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])
def run(n, out):
    images = ImageSet(torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8))
    pretrain(images, recipe, out, progress=False)
    return images.shape.numel()
run(300, {str(tmp_path/'warm')!r})
before = peak()
size = run(100_000, {str(tmp_path/'run')!r})
print((peak() - before)/size)"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert .9 < float(done.stdout) < 1.3, done.stdout


@pytest.mark.parametrize('labels, says', [
    (torch.zeros(40), 'float32 labels'), (torch.zeros(39).long(), r'labels \(39,\) of 40 images'),
    (torch.full((40,), 10), 'labels from 10 to 10, and 10 classes'), (torch.full((40,), -1), 'labels from -1'),
    (torch.zeros(40, 1).long(), 'labels')], ids=str)
def test_what_are_not_labels(data, labels, says):
    with pytest.raises(ImagesError, match=says): ImageSet(data.images, labels, data.classes)


def test_labels_in_a_list_or_as_bytes(data):
    for labels in data.labels.tolist(), data.labels.byte():
        assert ImageSet(data.images, labels).fingerprint == data.fingerprint


@pytest.mark.parametrize('bs', [0, -1])
def test_a_batch_of_nothing(data, bs):
    with pytest.raises(ImagesError, match='bs=1 or more'): TensorDL(data, bs)


@pytest.fixture(scope='module')
def learner(data, tmp_path_factory):
    "Any classifier on our loaders, fitted for an epoch."
    from fastai.metrics import accuracy
    net = nn.Sequential(nn.Flatten(), nn.Linear(3*16*16, 10))
    dls = spot_dls(data[:30], data[30:], 16, bs=8, steps=2)
    learn = Learner(dls, net, CrossEntropyLossFlat(), metrics=accuracy, path=tmp_path_factory.mktemp('learner'))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return learn


def test_fastai_predicts_on_our_loaders(learner, data):
    with learner.no_bar():
        for i, part in enumerate((data[:30], data[30:])):
            predictions, labels = learner.get_preds(ds_idx=i)
            assert labels.equal(part.labels) and predictions.shape == (len(part), 10)
        dl = learner.dls.test_dl(data[:5])
        assert learner.get_preds(dl=dl, with_decoded=True)[0].shape == (5, 10)
        learner.show_results()


def test_fastai_interprets_on_our_loaders(learner, data):
    with learner.no_bar():
        seen = ClassificationInterpretation.from_learner(learner)
        assert seen.confusion_matrix().sum() == 10 and seen.top_losses(2)[1].shape == (2,)
        assert list(seen.vocab) == list(data.classes)
        seen.print_classification_report()


@pytest.mark.filterwarnings('ignore:load_learner')
def test_an_exported_learner_has_no_images_and_predicts(learner, data):
    learner.export()
    file = learner.path/'export.pkl'
    assert file.stat().st_size < 10*3*16*16*11*4
    again = load_learner(file)
    with learner.no_bar(), again.no_bar():
        name, index, p = again.predict(data.images[0])
        assert name == data.classes[index] and p.allclose(learner.get_preds(dl=learner.dls.test_dl(data[:1]))[0][0])
        with pytest.raises(ImagesError, match='not images'): again.predict('cat.jpg')
