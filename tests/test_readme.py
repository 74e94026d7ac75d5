"The README's Python runs as it stands, on folders of the names that it uses."
import re

import torch
from PIL import Image

from spot_artifacts.toy import toy_images


def test_readme_python(root, tmp_path, monkeypatch):
    code = re.search(r'```python\n(.*?)```', (root/'README.md').read_text(), re.S).group(1)
    data = toy_images(60, 64, seed=9, cache=False)
    for i, (image, label) in enumerate(zip(data.images, data.labels)):
        for folder in (tmp_path/'photos', tmp_path/'labelled'/data.classes[label % 2]):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder/f'{i}.png')
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert (tmp_path/'runs/photos/weights.safetensors').exists()
    before, after = names['load_weights']('runs/photos').discriminator.backbone.conv1, names['model'][0].conv1
    assert not before[0].weight.equal(after[0].weight.cpu()), 'fine-tuning moved nothing'
    assert all(torch.isfinite(p).all() for p in names['model'].parameters())
