"""Where things lie, for every test: the repository, the helpers, and the folder of real data beside the checkout."""

from pathlib import Path

HELPERS = Path(__file__).resolve().parent
REPOSITORY = HELPERS.parents[1]
SHARED = REPOSITORY.parent / "shared"
