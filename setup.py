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
            # Batch scripts are of a clone; commands read the rest.
            target, scripts = Path(self.build_lib, "dd3g", "configs"), shutil.ignore_patterns("slurm")
            shutil.copytree("configs", target, ignore=scripts, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
