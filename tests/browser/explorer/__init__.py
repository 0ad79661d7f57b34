"""The explorer in a browser: every control, by keyboard and by mouse, against the library's own numbers.

The same tests run on a small page made here (from disk and over http), and on the book's chapter when there is one.
What a page should show is computed from the state saved in that very page. `test_jupyterlab` drives a kernel.
"""

import pytest

pytest.register_assert_rewrite(f"{__name__}.controls")  # a helper that fails shows its numbers, as a test does
