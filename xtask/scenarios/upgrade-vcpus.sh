# A VM with 64 vCPUs, of which three run and others are called on, goes from one engine to another and back.
#: payloads upgrades
#: engines
#: timeout 300
#: seconds 40
insmod /modules/hsave_0_2.ko || exit 2
/payload/upgrades || exit 3
rmmod hsave_0_2 || exit 4
