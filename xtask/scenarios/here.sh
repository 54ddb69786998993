# What `./x test --here` does on a real machine, in the emulated one: scenarios of its own on stock's modules and on ours, and stock's are back
# at the end, also if it is killed in the middle of one with a guest running.
#: kernels 6.12
#: payloads exits
#: here
#: timeout 600
#: seconds 90
d=/tmp/here
# What stock's need, and ours do without.
for module in $(cat /stock/kvm); do
    case $module in kvm | kvm-amd) ;; *) insmod /stock/$module.ko 2>/dev/null ;; esac
done
mkdir -p $d/scripts $d/stock $d/ours
cp /stock/kvm.ko /stock/kvm-amd.ko $d/stock && cp /modules/kvm.ko /modules/kvm-amd.ko $d/ours || exit 1
echo 'ls -d /sys/kernel/hsave 2>/dev/null; [ "$HSAVE_HERE" = 1 ]' >$d/scripts/whose
echo '/payload/exits >/dev/null' >$d/scripts/exits
echo 'echo before; setsid sleep 61 & sleep 60' >$d/scripts/sleeps
echo 'rmmod kvm_amd; echo gone; exit 7' >$d/scripts/fails
printf '%s\n' 'whose 10' 'exits 300' 'sleeps 2' 'fails 10' >$d/list
stock() { [ -c /dev/kvm ] && grep -q '^kvm_amd ' /proc/modules && [ ! -e /sys/kernel/hsave ]; }
ours() { [ -c /dev/kvm ] && [ -e /sys/kernel/hsave ]; }
ours || exit 2
# Not while ours are loaded, whose parameters would be stock's afterwards.
sh /payload/test-here $d && exit 10
ours && rmmod kvm_amd kvm || exit 11
# As they are by themselves, and one that was told otherwise, in each way.
insmod /stock/kvm.ko ignore_msrs=1 && insmod /stock/kvm-amd.ko nested=0 && echo 12345 >/sys/module/kvm/parameters/halt_poll_ns || exit 12
noted() { for file in /sys/module/kvm*/parameters/*; do echo "$file $(cat $file)"; done; }
noted >/tmp/noted
sh /payload/test-here $d || exit 3
stock && ! pidof sleep || exit 4
for log in $d/out/*.log; do head -n 1 $log | grep -q 'hsave: here, ' || exit 16; done
noted | diff /tmp/noted - || exit 13
cut -d' ' -f1-3 $d/results | tr '\n' ';' >$d/summary
[ "$(cat $d/summary)" = 'whose stock 0;whose ours 0;exits stock 0;exits ours 0;sleeps stock 124;sleeps ours 124;fails stock 7;fails ours 7;' ] ||
    { cat $d/results $d/out/*; exit 5; }
[ -z "$(cat $d/out/whose.stock)" ] && [ "$(cat $d/out/whose.ours)" = /sys/kernel/hsave ] || exit 6
# It is killed, and what runs it with it, while a guest runs on ours.
echo '[ -e /sys/kernel/hsave ] || exit 0; while /payload/exits >/dev/null; do :; done' >$d/scripts/exits
echo 'exits 300' >$d/list
for signal in TERM KILL; do
    setsid sh /payload/test-here $d >/dev/null 2>&1 &
    runner=$!
    until ours; do sleep 1; done
    sleep 3
    ours && kill -$signal -$runner || exit 7
    for i in $(seq 30); do sleep 1; [ -e $d/restored ] && break; done
    stock && ! pidof exits || { cat $d/restore.log; exit 8; }
done
# What was not loaded is not loaded afterwards.
rmmod kvm_amd kvm
echo 'whose 10' >$d/list
sh /payload/test-here $d && ! grep -q '^kvm ' /proc/modules || exit 14
insmod /stock/kvm.ko && insmod /stock/kvm-amd.ko || exit 15
# Not while somebody's machine runs.
sleep 30 </dev/kvm &
sleep 1
sh /payload/test-here $d && exit 9
kill $!
