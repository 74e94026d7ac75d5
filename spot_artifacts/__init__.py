"""Features without labels, by learning to spot artifacts (Jenni & Favaro, CVPR 2018).

The names in `__all__` are what most users need; a module is imported when one of its names is first used."""
__version__ = "0.1.0"

from importlib import import_module

_HOME = {name: module for module, names in {
    'core': ['SpotError'],
    'data': ['ImageSet'],
    'folders': ['folder_images'],
    'toy': ['toy_images'],
    'recipe': ['Recipe'],
    'runs': ['load_weights'],
    'pretraining': ['pretrain', 'measure'],
    'visualize': ['spot'],
    'transfer.probes': ['probe', 'knn_probe', 'as_frame'],
    'transfer.finetune': ['classify', 'transfer_body', 'transfer_model', 'transfer_groups'],
    'transfer.compare': ['compare', 'few_labels'],
    'ablations': ['ablate'],
}.items() for name in names}
__all__ = [*_HOME]


def __getattr__(name):
    if name not in _HOME: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return globals().setdefault(name, getattr(import_module(f'{__name__}.{_HOME[name]}'), name))


def __dir__(): return sorted({*globals(), *_HOME})
