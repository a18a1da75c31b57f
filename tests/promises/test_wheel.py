"""The built wheel holds all that is needed: installed apart from the checkout, it trains and its result is loaded."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from jobs import CAPTIONS

ROOT = Path(__file__).resolve().parents[2]


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The scripts' folder of a fresh environment with the wheel; what cft depends on is lent by this environment."""
    pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is not installed (the extra `dev`)")
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    scripts = folder / "env" / "bin"
    packages = run(scripts / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    run(*pip, "--python", scripts / "python", "install", "--no-deps", "--no-index", wheel, cwd=folder)
    # a path in a .pth file is searched last, and .pth files in it, such as the checkout's own, are not read
    (Path(packages.strip()) / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return scripts


def test_the_wheel_s_package_is_not_the_checkout_s(installed, tmp_path):
    place = run(installed / "python", "-c", "import cft; print(cft.__file__)", cwd=tmp_path)
    assert place.startswith(str(installed.parent)) and str(ROOT) not in place


def test_the_wheel_s_command_explains_itself(installed, tmp_path):
    page = run(installed / "cft-run", "--help", cwd=tmp_path)
    assert "model" in page and "smollm2" in page


def test_the_wheel_trains_a_model_elsewhere_and_loads_the_result(installed, tmp_path):
    words = "model=tiny logger=none train.steps=2 train.batch_size=4 data.rows=40 data.holdout=4 eval.rows=10".split()
    run(installed / "cft-run", *CAPTIONS, *words, cwd=tmp_path)
    (folder,) = tmp_path.glob("outputs/tiny-*")
    load = f"from cft import Embedder; print(Embedder.load({str(folder)!r}).encode(['a text']).shape)"
    assert run(installed / "python", "-c", load, cwd=tmp_path).startswith("(1, ")
    plan = run(installed / "cft-study", "plan", "table2", "--scale", "smoke", "data.packages=[peft]", cwd=tmp_path)
    assert "table2" in plan
