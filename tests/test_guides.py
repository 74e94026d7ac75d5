"The guides: their commands are commands of `spot-artifacts`, and their Python runs."
import re, shlex

import nbformat, pytest
from images import write_images

from spot_artifacts.cli import parser
from spot_artifacts.folders import folder_images
from spot_artifacts.toy import toy_images
from spot_artifacts.pretraining import pretrain
from spot_artifacts.recipe import Recipe


def text_of(path):
    if path.suffix == '.md': return path.read_text(encoding='utf-8')
    return '\n'.join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == 'markdown')


def blocks(path, language): return re.findall(rf'```{language}\n(.*?)```', text_of(path), re.S)


@pytest.mark.parametrize('guide', ['index.ipynb', 'own_images.md', 'reproduce.ipynb'])
def test_commands(root, guide):
    lines = '\n'.join(blocks(root/'nbs'/guide, 'sh')).replace('\\\n', ' ').splitlines()
    spoken = [shlex.split(line.rstrip('& '), comments=True) for line in lines]
    commands = [words[words.index('spot-artifacts') + 1:] for words in spoken if 'spot-artifacts' in words]
    assert commands
    for words in commands: parser().parse_args([w for w in words if w != '$resume'])    # exits where a word is wrong


def test_own_images_python(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images('photos', images=toy_images(40, 64, seed=9, cache=False).images)
    recipe = Recipe.small(64, width=.1, ae_width=.1, ae_epochs=1., epochs=1., batch=16)
    pretrain(folder_images('photos', 64), recipe, 'runs/photos', progress=False)
    write_images('labelled', images=toy_images(20, 64, seed=8, cache=False).images, classes=('a', 'b'))
    names = {}
    for code in blocks(root/'nbs/own_images.md', 'python'): exec(code, names)
    assert len(names['found']) == 40 and set(names['found'].values()) <= {'a', 'b'}
    assert names['features'].shape[0] == 32 and names['features'].isfinite().all()
    assert Recipe.load('mine.json').drop_rate == .5
