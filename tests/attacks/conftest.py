"""Puts the small open federation of ``observations.py`` on the path of every attack's tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
