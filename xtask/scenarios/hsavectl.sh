# hsavectl in the emulated host, where both pairs of modules are installed as a package leaves them: it switches, and refuses while
# there is a VM.
#: kernels 6.12
#: installed
#: smp 2
#: virtual-time
#: timeout 300
#: seconds 120
ours=/lib/modules/$(uname -r)/updates/dkms
fail() { echo "failed: $*"; hsavectl status; exit 1; }
serves() { hsavectl status --json | grep -q "\"serving\": \"$1\"" || fail "$1 does not serve"; }
ours() { grep -q ' hsave_.*\[kvm\]$' /proc/kallsyms; }
stays() { [ "$(cat /proc/sys/kernel/random/boot_id)" = "$boot" ] || fail "another boot"; }
boot=$(cat /proc/sys/kernel/random/boot_id)
depmod -a

echo "modprobe takes what lies under updates"
hsavectl status
modprobe kvm_amd || fail "modprobe"
ours && [ -c /dev/kvm ] || fail "it is not hsave that was loaded"
serves hsave

echo "to stock and back"
hsavectl use stock || fail "use stock"
serves stock; ours && fail "hsave is there still"
modinfo -F filename kvm | grep -q /kernel/ || fail "the next boot is not stock's"
hsavectl use stock | grep -q 'already' || fail "stock again"
hsavectl use hsave || fail "use hsave"
serves hsave; ours || fail "hsave is not there"

echo "with a VM"
qemu-system-x86_64 -accel kvm -M microvm -smp 2 -m 64 -nodefaults -display none -S &
vmm=$!
for i in $(seq $((60 * SLOW))); do
    ls -l /proc/$vmm/fd | grep -q kvm-vcpu:1 && break
    sleep 1
done
hsavectl use stock 2>/tmp/said && fail "it did not refuse"
cat /tmp/said
grep -q "process $vmm (qemu-system-x86) has a VM with 2 vCPUs" /tmp/said || fail "it does not name the process"
serves hsave; kill -0 $vmm || fail "the VMM is gone"
hsavectl use stock --next-boot || fail "for the next boot"
serves hsave
hsavectl status --json | grep -q '"next_boot": "stock"' || fail "the next boot is not stock's"
hsavectl vms
hsavectl vms --json | grep -q "\"pid\": $vmm" || fail "the VM is not listed"
hsavectl report >/tmp/report || fail "report"
for words in "serving: hsave" "kvm.halt_poll_ns: " "kvm_amd.npt: " "hsave: virtual machines with SVM" "spec_store_bypass: "; do
    grep -q "$words" /tmp/report || fail "the report has no \"$words\""
done
if [ -d /sys/kernel/hsave ]; then
    hsavectl engines || fail "engines"
    hsavectl upgrade --dry-run || fail "a dry run"
else
    hsavectl engines 2>/tmp/said && fail "engines where there are none"
    cat /tmp/said
fi
kill $vmm
wait $vmm

echo "without the VM, and with modules that cannot be loaded"
hsavectl use stock || fail "use stock without a VM"
serves stock
mv $ours/kvm-amd.ko /tmp/kvm-amd.ko
echo "no module" >$ours/kvm-amd.ko
hsavectl use hsave 2>/tmp/said && fail "what cannot be loaded was loaded"
cat /tmp/said
grep -q 'stock serves as before' /tmp/said || fail "it does not say what serves now"
serves stock
mv /tmp/kvm-amd.ko $ours/kvm-amd.ko
hsavectl use hsave || fail "hsave in the end"
serves hsave
stays
