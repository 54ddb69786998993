# A Linux guest runs on one engine while VMs come and go on another, on the same CPUs: each gets the one that is current when it is
# made. An engine that was made for another base is refused, and each of two is unloaded and loaded under the other.
#: kernels 6.12
#: payloads exits
#: engines
#: timeout 600
#: seconds 120
d=/sys/kernel/hsave
insmod /modules/stranger.ko 2>/dev/null && exit 1
dmesg | grep -q 'hsave_0_2 is made for another state of version 1 of the interface' || exit 2
insmod /modules/hsave_0_2.ko && [ $(cat $d/current) = kvm_amd ] || exit 3
[ $(cat $d/engines/hsave_0_2/version) = 0.2 ] && [ $(cat $d/engines/hsave_0_2/vms) = 0 ] || exit 4
echo nobody 2>/dev/null >$d/current && exit 5
[ $(cat $d/current) = kvm_amd ] || exit 6
boot-guest microvm check >/tmp/guest 2>&1 &
guest=$!
until grep -q 'Booting paravirt' /tmp/guest; do
    kill -0 $guest || { cat /tmp/guest; exit 7; }
    sleep 1
done
[ $(cat $d/engines/kvm_amd/vms) = 1 ] && [ $(cat $d/vms/*/engine) = kvm_amd ] || exit 8
echo hsave_0_2 >$d/current && [ $(cat $d/current) = hsave_0_2 ] || exit 9
# It has a VM.
rmmod kvm_amd 2>/dev/null && exit 10
/payload/exits >/tmp/exits 2>&1 &
exits=$!
both=0
while kill -0 $exits 2>/dev/null; do
    [ $(cat $d/engines/*/vms | grep -v 0 | wc -l) = 2 ] && both=$((both + 1))
done
wait $exits || { cat /tmp/exits; exit 11; }
wait $guest || { cat /tmp/guest; exit 12; }
[ $both != 0 ] || exit 13
[ -z "$(ls $d/vms)" ] || exit 14
rmmod kvm_amd && [ $(cat $d/current) = hsave_0_2 ] && [ -c /dev/kvm ] || exit 15
insmod /modules/kvm-amd.ko && [ $(cat $d/current) = hsave_0_2 ] || exit 16
rmmod hsave_0_2 && [ $(cat $d/current) = kvm_amd ] && [ -c /dev/kvm ] || exit 17
rmmod kvm_amd && [ ! -e /dev/kvm ] && [ -z "$(cat $d/current)" ] || exit 18
insmod /modules/hsave_0_2.ko && [ -c /dev/kvm ] && rmmod hsave_0_2 && insmod /modules/kvm-amd.ko || exit 19
# Whoever opens /dev/kvm while the current engine goes gets the other one.
insmod /modules/hsave_0_2.ko || exit 20
touch /tmp/on
while [ -e /tmp/on ]; do true </dev/kvm || touch /tmp/none; done 2>/dev/null &
opens=$!
for i in $(seq 15); do
    for other in hsave_0_2 kvm_amd; do
        now=$(cat $d/current)
        [ $now = $other ] && continue
        while ! rmmod $now 2>/dev/null; do :; done
        [ $(cat $d/current) = $other ] || exit 21
        insmod /modules/$(echo $now | sed s/kvm_amd/kvm-amd/).ko || exit 22
    done
done
rm /tmp/on
wait $opens
[ ! -e /tmp/none ] || exit 23
rmmod hsave_0_2 || exit 24
