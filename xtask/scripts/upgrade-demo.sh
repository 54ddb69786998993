# `./x run --upgrade`: a guest counts on its console while the engine under it is replaced ten times.
d=/sys/kernel/hsave
insmod /modules/hsave_0_2.ko || exit 1
# Line by line, which busybox's grep does not do.
upgrade-guest | while read -r line; do
    case $line in guest:*) echo "$line" && echo "$line" >>/tmp/guest ;; esac
done &
# What it says first about its clock is of its own start.
until grep -q "longest gap" /tmp/guest 2>/dev/null; do sleep 1; done
vm=$(echo $d/vms/*)
for n in 1 2 3 4 5; do
    for engine in hsave_0_2 kvm_amd; do
        sleep 2
        echo $engine >$vm/upgrade || { cat $vm/error; exit 2; }
        echo "host: the engine is now $(cat $vm/engine); the VM stood still for $(($(cat $vm/pause_ns) / 1000)) us"
    done
done
# And once more, when all of them are behind it.
before=$(grep -c "longest gap" /tmp/guest)
until [ $(grep -c "longest gap" /tmp/guest) -gt $before ]; do sleep 1; done
kill -9 $(cat $vm/pid)
wait
rmmod hsave_0_2 || exit 3
echo "host: replaced ten times"
