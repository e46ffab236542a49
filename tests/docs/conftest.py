"""What is tested here: the scripts that make pages of the site, and the examples that pages show."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("scripts/docs", "examples/extend", "tests/report")]
