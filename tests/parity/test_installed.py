"""Says where the parity tests do not run."""

import pytest


@pytest.mark.parametrize("name", ["torch", "transformers", "open_clip"])
def test_the_real_libraries_are_here(name, request):
    if name == "open_clip":
        request.getfixturevalue("open_clip")
        return
    pytest.importorskip(name, reason=f"no parity without {name}: make test-parity")
