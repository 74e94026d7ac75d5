"The README's Python runs as it stands, on folders of the names that it uses."
import re

import torch
from images import write_images

from spot_artifacts import toy_images, transfer_body


def test_readme_python(root, tmp_path, monkeypatch):
    use, own = re.findall(r'```python\n(.*?)```', (root/'README.md').read_text(), re.S)
    images = toy_images(60, 64, seed=9, cache=False).images
    write_images(tmp_path/'photos', images=images)
    write_images(tmp_path/'labelled', images=images, classes=('a', 'b'))
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(use, names)
    before = transfer_body(names['load_weights']('photos-32').discriminator).state_dict()
    after = names['model'][0].state_dict()
    assert any(not after[k].cpu().equal(before[k]) for k in before), 'fine-tuning moved nothing'
    assert all(torch.isfinite(p).all() for p in names['model'].parameters())
    exec(own, names)
    assert names['load_weights']('runs/python').recipe.size == 64
