import os
import socket
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from protojax import sharding


def test_one_device():
    mesh = sharding.mesh()
    assert mesh.axis_names == ("data",) and mesh.size == jax.device_count()
    assert mesh.axis_types == (jax.sharding.AxisType.Auto,)
    tree = {"a": np.arange(6).reshape(3, 2), "b": np.arange(3)}
    for placed in (sharding.split(tree, mesh), sharding.from_local(tree, mesh)):
        jax.tree.map(np.testing.assert_array_equal, sharding.to_host(placed), tree)


PROGRAM = """
    import sys
    import jax
    import jax.numpy as jnp
    import numpy as np
    from protojax import sharding

    sharding.start_processes(sys.argv[1], 2, int(sys.argv[2]))
    mesh = sharding.mesh()
    assert (jax.process_count(), mesh.size, len(mesh.local_devices)) == (2, 4, 2)
    whole = np.arange(24, dtype=np.int32).reshape(2, 12)
    own = np.split(whole, 2, axis=1)[jax.process_index()]
    batch = sharding.from_local({"x": own}, mesh, axis=1)
    np.testing.assert_array_equal(sharding.to_host(batch)["x"], whole)
    # Ten rows on four devices are padded to twelve.
    arrays = sharding.split(np.arange(1, 11), mesh)
    np.testing.assert_array_equal(sharding.to_host(arrays), [*range(1, 11), 0, 0])
    total = jax.jit(lambda x: x.sum(), out_shardings=sharding.replicated(mesh))(arrays)
    assert int(sharding.to_host(total)) == 55
    print("done")
"""


def test_two_processes(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(PROGRAM))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
    }
    running = [
        subprocess.Popen(
            [sys.executable, str(path), address, str(index)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        for process in running:
            out, err = process.communicate(timeout=120)
            # Gloo writes to the standard output, too.
            assert process.returncode == 0 and out.endswith("done\n"), err
    finally:
        for process in running:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("localhost", 2, 0), "--coordinator 'localhost': give HOST:PORT"),
        ((":80", 2, 0), "--coordinator ':80': give HOST:PORT"),
        (("localhost:80", 2, 2), "--process-index 2 of --processes 2"),
        (("localhost:80", 0, 0), "--process-index 0 of --processes 0"),
    ],
)
def test_impossible_processes(arguments, message):
    with pytest.raises(ValueError, match=message):
        sharding.start_processes(*arguments)
