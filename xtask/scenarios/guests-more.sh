# The same with more seeds.
#: kernels 6.12
#: slow all
#: compare
#: payloads guests
#: strict
#: virtual-time
#: smp 1
#: timeout 1200
#: seconds 400
/payload/guests 9..30
