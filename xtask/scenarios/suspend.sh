# The host sleeps under a guest that boots (ACPI S3), and its clock wakes it: late, because a clock that rings before the host
# sleeps rings for nobody. Its clock is this machine's, because the emulator's virtual time stands still meanwhile.
#: kernels 6.12
#: slow all
#: qemu -rtc clock=host
#: timeout 300
#: seconds 90
grep -q '\[deep\]' /sys/power/mem_sleep || exit 1
boot-guest microvm check >/tmp/log 2>&1 &
guest=$!
for word in 'Booting paravirt' 'guest: init'; do
    for i in $(seq $((120 * SLOW))); do
        grep -q "$word" /tmp/log && break
        sleep 1
    done
    echo 0 >/sys/class/rtc/rtc0/wakealarm
    echo +$((20 * SLOW)) >/sys/class/rtc/rtc0/wakealarm && echo mem >/sys/power/state || exit 2
done
wait $guest || { cat /tmp/log; exit 3; }
cat /tmp/log
[ $(cat /sys/power/suspend_stats/success) = 2 ] || exit 4
