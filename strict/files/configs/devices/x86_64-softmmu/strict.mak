# A PC that starts a Linux kernel and talks through serial ports; no more is emulated for the tests' host.
CONFIG_I440FX=y
CONFIG_HPET=y
CONFIG_SERIAL_ISA=y
CONFIG_ISA_DEBUG=y
CONFIG_E1000_PCI=n
