import doctest
from pathlib import Path


def test_examples_on_the_conventions_page():
    page = Path(__file__).parent.parent / "docs" / "conventions.md"
    result = doctest.testfile(str(page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 25 and result.failed == 0
