"""What do a puzzle's remedies do to the features, and who finds a lens? Writes nbs/results/pretexts/STUDY-SEED.json.

puzzle_studies.py jigsaw SEED [SEED ...]           jigsaw puzzles of drawn images, the rows of TABLE5 and TABLE4
puzzle_studies.py lens TRAIN TEST SEED [SEED ...]  patches of photographs seen through a lens; two folders"""
import sys
from dataclasses import replace
from pathlib import Path

import torch
from spot_artifacts.context import ContextChoices, lens_study
from spot_artifacts.core import provenance, write_json
from spot_artifacts.data import random_subset
from spot_artifacts.folders import folder_images
from spot_artifacts.jigsaw import JigsawChoices, TABLE4, TABLE5, shortcut_study
from spot_artifacts.toy import toy_images

RESULTS = Path(__file__).resolve().parents[1]/'nbs/results/pretexts'
JIGSAW = JigsawChoices.small(32, epochs=8.)
PATCHES = ContextChoices.small(32, width=.125, lr=4e-3, flip=0., area=(1., 1.), aspect=(1., 1.), epochs=6.)
LENSES = (0, 'keep'), (1, 'keep'), (2, 'keep'), (2, 'project'), (2, 'drop')     # px, and the remedy


def jigsaw(train, test, seed):
    protocol, recipe = dict(labels=500, values=600), replace(JIGSAW, seed=seed)
    rows = shortcut_study(train, test, recipe, TABLE5 | TABLE4, *protocol.values(), seed=seed)
    return dict(recipe=recipe.to_dict(), protocol=protocol, rows=rows)


def lens(train, test, seed):
    recipe = replace(PATCHES, seed=seed)
    return dict(recipe=recipe.to_dict(), rows=lens_study(train, test, recipe, LENSES, seed=seed))


def main(study, *words):
    torch.set_num_threads(1)
    if study == 'jigsaw': run, train, test, seeds = jigsaw, toy_images(4000, 32), toy_images(1000, 32, seed=1), words
    else:
        run, seeds = lens, words[2:]
        train, test = (random_subset(folder_images(f, 32), n) for f, n in zip(words, (5000, 1000)))
    for seed in map(int, seeds):
        file = RESULTS/f'{study}-{seed}.json'
        if file.exists(): continue
        write_json(file, dict(provenance(train, 'cpu'), seed=seed, test_images=len(test), **run(train, test, seed)))
        print(file, flush=True)


if __name__ == '__main__': main(*sys.argv[1:])
