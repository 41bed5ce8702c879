def test_on_8_simulated_devices(passes_alone):
    passes_alone("multidevice", "--simulated-devices", "--xla_force_host_platform_device_count=8")
