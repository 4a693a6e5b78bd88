"""Tests that need files of other projects; without them there is nothing to collect."""

from real_files import FOLDER

collect_ignore_glob = [] if FOLDER else ["test_*.py"]
