# A Linux guest with four vCPUs works with its memory, disk and network while it goes from one engine to another and back, 200 times;
# then another one that has a PCI bus, which besides moves to another QEMU meanwhile, and is given a processor and memory.
#: slow all
#: engines
#: timeout 1800
#: seconds 400
insmod /modules/hsave_0_2.ko || exit 2
CPUS=4 UPGRADES=200 boot-guest microvm moves || exit 3
[ -z "$(ls /sys/kernel/hsave/vms)" ] || exit 4
rm -r /tmp/*
CPUS=4 UPGRADES=40 PLUG=yes boot-guest q35 moves || exit 5
[ -z "$(ls /sys/kernel/hsave/vms)" ] || exit 4
rmmod hsave_0_2 || exit 6
