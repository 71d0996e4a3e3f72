"""Puts configs/ into the wheel as dd3g/configs; all else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """An editable install needs no copy: it finds configs/ beside the package."""

    def run(self) -> None:
        """Build the packages, then copy the configurations."""
        super().run()
        if not self.editable_mode:
            shutil.copytree("configs", Path(self.build_lib, "dd3g", "configs"), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
