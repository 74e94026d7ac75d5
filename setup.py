"What changes with a release is read from settings.ini; what does not is in pyproject.toml."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

root = Path(__file__).parent
config = ConfigParser()
config.read(root/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
statuses = {'1': '1 - Planning', '2': '2 - Pre-Alpha', '3': '3 - Alpha', '4': '4 - Beta', '5': '5 - Production/Stable'}


class WithoutBenchmark(build_py):
    "The benchmark is for the clone: it compares the library with a plain version of itself."
    modules = 'plain', 'roofline', 'speed', 'time_to_accuracy'

    def find_package_modules(self, package, folder):
        found = super().find_package_modules(package, folder)
        return [m for m in found if m[0] != cfg['lib_path'] or m[1] not in self.modules]


setup(
    cmdclass=dict(build_py=WithoutBenchmark),
    version=cfg['version'],
    description=cfg['description'],
    long_description=(root/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    keywords=cfg['keywords'].split(),
    url=cfg['git_url'],
    classifiers=[f"Development Status :: {statuses[cfg['status']]}",
                 f"Intended Audience :: {cfg['audience']}",
                 f"Natural Language :: {cfg['language']}",
                 'Programming Language :: Python :: 3',
                 *(f'Programming Language :: Python :: 3.{minor}' for minor in range(10, 14)),  # as in test.yml
                 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
    packages=find_packages(include=[cfg['lib_path'], f"{cfg['lib_path']}.*"]),
    package_data={cfg['lib_path']: ['ort/*', 'photographs/*', 'weights/*']},
    install_requires=cfg['requirements'].split(),
    extras_require={key.removesuffix('_requirements'): cfg[key].split()
                    for key in cfg if key.endswith('_requirements')},
    entry_points={'console_scripts': cfg['console_scripts'].split(),
                  'nbdev': [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]},
)
