import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "multidevice"


def test_on_8_simulated_devices():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "pytest", "-n", "0", "--simulated-devices", str(FOLDER)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=FOLDER.parent.parent)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
