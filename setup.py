"Package metadata lives in settings.ini; this file only hands it to setuptools."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).with_name("settings.ini"), encoding="utf-8")
settings = config["DEFAULT"]
extras = {key.removesuffix("_requirements"): value.split() for key, value in settings.items() if key.endswith("_requirements")}

setup(
    version=settings["version"], description=settings["description"], keywords=settings["keywords"].split(),
    author=settings["author"], license=settings["license"],
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"), long_description_content_type="text/markdown",
    packages=find_packages(include=["papersuite", "papersuite.*"]), package_data={"papersuite": ["py.typed"]},
    install_requires=settings["requirements"].split(), extras_require=extras,
    entry_points={"console_scripts": [settings["console_scripts"]], "nbdev": ["papersuite=papersuite._modidx:d"]},
    zip_safe=False,
)
