# gVisor's sandbox on its KVM platform, Debian's package: it starts a container, whose program forks, waits for children, sends signals,
# has threads and maps memory (tests/src/bin/workload.rs); the same as on stock's modules.
#: debian dbus libvirt-clients libvirt-daemon-system qemu-system-x86 qemu-utils runsc
#: payloads workload
#: compare
#: kernels 6.12
#: slow all
#: timeout 600
#: seconds 90
runsc() { in-debian timeout $((120 * SLOW)) runsc --root=/tmp/runsc --platform=kvm --network=none --ignore-cgroups "$@"; }
runsc do uname -s || { echo "no container"; exit 1; }
runsc do /payload/workload || exit 2
runsc do sh -c 'for i in 1 2 3 4; do (echo $i | sort | cat >/dev/null) & done; wait; seq 2000 | sort -R | sort -n | sha256sum'
