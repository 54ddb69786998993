# Guests made up from a few seeds, at the edges of what a processor and a hypervisor take: each step ends as on stock.
#: kernels 6.12
#: compare
#: payloads guests
#: strict
#: virtual-time
#: smp 1
#: timeout 300
#: seconds 60
/payload/guests 1..9
