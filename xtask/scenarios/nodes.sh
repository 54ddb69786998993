# On a host with two nodes, memory that a guest only reads moves to the node where it runs.
#: kernels 6.12
#: slow all
#: payloads nodes
#: qemu -object memory-backend-ram,id=m0,size=2G -object memory-backend-ram,id=m1,size=2G -numa node,memdev=m0,cpus=0 -numa node,memdev=m1,cpus=1
#: timeout 300
#: seconds 40
/payload/nodes
