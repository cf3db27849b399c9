"""The examples of the README are the ones the tests run."""

from pathlib import Path

BINDINGS = Path(__file__).parents[2]


def test_the_readme_shows_the_tested_examples():
    readme = (BINDINGS.parent / "README.md").read_text()
    python = (BINDINGS / "python/tests/first_payment.py").read_text()
    assert python in readme
    folder = BINDINGS / "kotlin/src/test/kotlin/org/superscalar/wallet"
    kotlin = (folder / "FirstPayment.kt").read_text()
    assert kotlin[kotlin.index("suspend fun") :] in readme
