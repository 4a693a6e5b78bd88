"""What runs in the converter's process, where nothing may have imported the gguf package that is installed."""

import logging
import os
import sys


def run(home: str, arguments: list[str]) -> None:
    """convert_hf_to_gguf.py's own main, without what it says on its way."""
    logging.basicConfig(level=logging.ERROR)
    os.environ["TQDM_DISABLE"] = "1"
    if home not in sys.path:
        sys.path.insert(0, home)
    sys.argv = ["convert_hf_to_gguf.py", *arguments]
    import convert_hf_to_gguf  # type: ignore[import-not-found]

    convert_hf_to_gguf.main()
