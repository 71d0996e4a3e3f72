import pytest

from dd3g.pose.detection import long_json


@pytest.fixture(params=["whole", "in parts"])
def reading(request, monkeypatch):
    """Every file is also read as if it were too long for the memory."""
    if request.param == "in parts":
        for name, value in {"SMALL": 0, "MANY": 1, "FIELDS": 12, "CHUNK": 5}.items():
            monkeypatch.setattr(long_json, name, value)
