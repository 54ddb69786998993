#!/bin/sh
# A Debian 13 that runs guests with libvirt and has what people look at them with, as its operator left it before hsave: the kernel, its
# headers, QEMU, libvirt, perf, bpftrace. In a chroot; $1 is the kernel's release. What apt will want for hsave's packages lies in its
# cache, because the emulated host has no network.
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
install() { apt-get install -y --no-install-recommends "$@"; }
apt-get update
install "linux-image-$1" "linux-headers-$1" kmod udev qemu-system-x86 libvirt-daemon-system libvirt-clients linux-perf bpftrace python3
apt-get clean
install --download-only dkms
# Nobody here starts services.
grep -q '^user = "root"' /etc/libvirt/qemu.conf || cat >>/etc/libvirt/qemu.conf <<'CONF'
security_driver = "none"
cgroup_controllers = [ ]
CONF
