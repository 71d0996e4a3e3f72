"""Which samples each process takes, and where a run with other processes goes on."""

from dd3g.training.data import _indices


def test_processes_share_what_one_would_see():
    one = list(_indices(size=6, processes=1, rank=0, consumed=24, count=5))
    assert one[0] == [24, 25, 26, 27, 28, 29] and one[4][-1] == 53
    shares = [list(_indices(2, 3, rank, 24, 5)) for rank in range(3)]
    assert [a + b + c for a, b, c in zip(*shares, strict=True)] == one
    later = [list(_indices(3, 2, rank, 24 + 2 * 6, 3)) for rank in range(2)]
    assert [a + b for a, b in zip(*later, strict=True)] == one[2:]
