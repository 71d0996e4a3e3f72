import threading
import warnings

from dd3g.quiet import quiet


def test_warnings_come_back_after_threads_that_overlap():
    """The one that comes first leaves first, which `warnings.catch_warnings` does not expect."""
    second_is_in, first_is_out = threading.Event(), threading.Event()

    def second():
        with quiet():
            second_is_in.set()
            first_is_out.wait(10)

    with warnings.catch_warnings(record=True, action="always") as heard:
        thread = threading.Thread(target=second)
        with quiet():
            thread.start()
            assert second_is_in.wait(10)
            warnings.warn("held back", stacklevel=1)
        warnings.warn("held back by the other", stacklevel=1)
        first_is_out.set()
        thread.join()
        warnings.warn("heard", stacklevel=1)
    assert [str(w.message) for w in heard] == ["heard"]
