"""The wheel holds every Python file of the project, and every folder's mark that its types can be read."""

import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_wheel_holds_every_file(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith((".py", "py.typed"))}
    sources = {path.relative_to(ROOT) for name in ("kernels", "gpt", "bench") for path in (ROOT / name).rglob("*.py")}
    files = sources | {path.parent / "py.typed" for path in sources}
    assert packed == {f"octavo/{path}" for path in files}


def test_the_wheel_holds_the_servers_page(wheel: Path) -> None:
    folder = "gpt/server/static"
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if f"/{folder}/" in name}
    assert packed == {f"octavo/{folder}/{path.name}" for path in (ROOT / folder).iterdir()}
