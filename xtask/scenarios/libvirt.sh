# libvirt of Debian 13, as its packages install it: what it thinks of the host and of its processor; a domain defined, started,
# suspended, resumed, saved, restored, put into a snapshot and taken back to it; a CPU, memory, a disk and a network card plugged
# in while it runs, and disk and card out again. The same on stock's modules.
#: debian dbus libvirt-clients libvirt-daemon-system qemu-system-x86 qemu-utils runsc
#: compare
#: kernels 6.12
#: slow all
#: timeout 1500
#: seconds 300
#: memory 6144
cd /tmp
virsh() { in-debian /usr/bin/env --chdir=/tmp virsh -q -c qemu:///system "$@"; }
fail() { echo "failed: $*"; virsh list --all; tail -n 20 /tmp/console.said /debian/var/log/libvirt/qemu/*.log /tmp/libvirtd.log; exit 1; }
in-debian mkdir -p /run/dbus /run/libvirt /var/lib/libvirt /etc/libvirt || exit 1
# Nothing here is an init, and nobody else is in the host.
cat >>/debian/etc/libvirt/qemu.conf <<'CONF'
security_driver = "none"
user = "root"
group = "root"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
remember_owner = 0
CONF
in-debian dbus-daemon --system --fork || fail "dbus"
in-debian libvirtd -d -v >libvirtd.log 2>&1 || fail "libvirtd"
for second in $(seq $((120 * SLOW))); do
    virsh version >/dev/null 2>&1 && break
    sleep 1
done
virsh version || fail "no answer"
in-debian virt-host-validate qemu
# Without what only guests of guests use, which hsave does not offer.
nested="svm|npt|nrip-save|svme-addr-chk|flushbyasid|lbrv|pause-filter|pfthreshold|tsc-scale|v-vmsave-vmload|vgif|vmcb-clean|vnmi"
for what in domcapabilities capabilities; do
    virsh $what >said || fail $what
    sed -E "/<uuid>/d; /<feature policy='[a-z]*' name='($nested)'/d" said
done

cp /guest/vmlinuz /guest/initrd .
in-debian qemu-img create -q -f qcow2 /tmp/disk.qcow2 16M && dd if=/dev/zero of=second bs=1M count=8 2>/dev/null || fail "disks"
mkfifo console.in console.out
exec 4<>console.out
cat <&4 >console.said &
cat >domain.xml <<'XML'
<domain type='kvm'>
  <name>guest</name>
  <uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>
  <maxMemory slots='4' unit='MiB'>1024</maxMemory>
  <memory unit='MiB'>256</memory>
  <vcpu current='2'>4</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type>
    <kernel>/tmp/vmlinuz</kernel><initrd>/tmp/initrd</initrd>
    <cmdline>console=ttyS0 panic=-1 quiet tsc=nowatchdog nowatchdog hsave=shell</cmdline></os>
  <features><acpi/><apic/></features>
  <cpu mode='host-passthrough'><numa><cell id='0' cpus='0-3' memory='256' unit='MiB'/></numa></cpu>
  <on_reboot>destroy</on_reboot>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/tmp/disk.qcow2'/><target dev='vda' bus='virtio'/></disk>
    <serial type='pipe'><source path='/tmp/console'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
XML
cat >memory.xml <<'XML'
<memory model='dimm'><target><size unit='MiB'>128</size><node>0</node></target></memory>
XML
cat >second.xml <<'XML'
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/tmp/second'/><target dev='vdb' bus='virtio'/></disk>
XML
cat >network.xml <<'XML'
<interface type='user'><mac address='52:54:00:11:22:33'/><model type='virtio'/><rom enabled='no'/></interface>
XML
# The guest does what is typed, and says so at its end.
n=0
guest() {
    n=$((n + 1))
    echo "$1; echo do\"\"ne $n" >&3
    for second in $(seq $((120 * SLOW))); do
        grep -q "^done $n" console.said && return
        sleep 1
    done
    fail "the guest does not: $1"
}
state() { echo "$1: $(virsh domstate guest)"; }
exec 3<>console.in
virsh define domain.xml || fail define
virsh start guest || fail start
state started
guest 'mkdir -p /x; mount -t tmpfs x /x; head -c 4194304 /dev/urandom >/x/noise; md5sum /x/noise >/x/sum; grep -c ^processor /proc/cpuinfo >/x/cpus'
virsh suspend guest || fail suspend
state suspended
virsh resume guest || fail resume
guest 'md5sum -c /x/sum'
virsh save guest /tmp/saved || fail save
state saved
virsh restore /tmp/saved || fail restore
state restored
guest 'md5sum -c /x/sum'
virsh snapshot-create-as guest one || fail snapshot
guest 'echo later >/x/later'
virsh snapshot-revert guest one || fail revert
guest 'md5sum -c /x/sum && [ ! -e /x/later ] && echo "as it was" '
grep 'as it was' console.said | grep -v echo
virsh setvcpus guest 3 --live || fail setvcpus
guest 'until [ -e /sys/devices/system/cpu/cpu2 ]; do sleep 1; done; echo 1 >/sys/devices/system/cpu/cpu2/online; echo "cpus: $(grep -c ^processor /proc/cpuinfo)"'
guest 'grep MemTotal /proc/meminfo >/x/memory'
virsh attach-device guest memory.xml --live || fail memory
guest 'for m in /sys/devices/system/memory/memory*; do [ "$(cat $m/state)" = online ] || echo online >$m/state; done; [ "$(cat /x/memory)" != "$(grep MemTotal /proc/meminfo)" ] && echo "memory: more"'
virsh attach-device guest second.xml --live || fail disk
guest 'until [ -e /dev/vdb ]; do sleep 1; done; dd if=/x/noise of=/dev/vdb bs=1M count=4 2>/dev/null; sync; echo 3 >/proc/sys/vm/drop_caches; [ "$(head -c 4194304 /dev/vdb | md5sum | cut -c1-32)" = "$(cut -c1-32 /x/sum)" ] && echo "disk: written"'
virsh attach-device guest network.xml --live || fail network
guest 'until ifconfig eth0 10.0.2.15 up; do sleep 1; done; ping -c 1 10.0.2.2 >/dev/null && echo "network: answers"'
virsh detach-device guest second.xml --live || fail "detach disk"
virsh detach-device guest network.xml --live || fail "detach network"
guest 'until [ ! -e /dev/vdb ] && ! ifconfig eth0 2>/dev/null >/dev/null; do sleep 1; done; echo "unplugged: both"'
tr -d '\r' <console.said | grep '^\(cpus\|memory\|disk\|network\|unplugged\):'
echo exit >&3
for second in $(seq $((60 * SLOW))); do
    [ "$(virsh domstate guest)" = 'shut off' ] && break
    sleep 1
done
state ended
virsh undefine guest --snapshots-metadata || fail undefine
kill $(cat /debian/run/libvirtd.pid)
